"""Published benchmarks: rows, images, prompts and answers from files of the published form, and what is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from published import BLINK, CV_BENCH_2D, CV_BENCH_3D, EMBSPATIAL, POPE, SPATIALEVAL, SPHERE, THREE_D_SR, held, parquet, photo, tsv

from stratascope.cli import main
from stratascope.datasets import BENCHMARKS, PROMPTS, Example, convert_benchmark, fetch_benchmark, load_examples
from stratascope.errors import InvalidInputError, MissingExtraError

pytest.importorskip("pyarrow")
NOTE = "Note: You only need to respond with {} without providing any additional information.\n"


def unpacked(out: Path, name: str, *files: Path) -> list[Example]:
    """The examples of a converted benchmark, in the form that its prompt asks for."""
    report = convert_benchmark(name, files, out)
    prompt = PROMPTS[report.prompt]
    examples = load_examples(out / "rows.jsonl", choices=None if prompt.answers else prompt.choices)
    assert report.rows == len(examples)
    assert {path.name for path in (out / "images").iterdir()} == {name for example in examples for name in example.images}
    assert report.images == len({name for example in examples for name in example.images})
    return examples


def test_cv_bench(tmp_path: Path) -> None:
    files = parquet(tmp_path / "test_2d.parquet", CV_BENCH_2D), parquet(tmp_path / "test_3d.parquet", CV_BENCH_3D)
    examples = unpacked(tmp_path / "out", "cv-bench", *files)
    assert [example.id for example in examples] == ["2D-0", "2D-1", "3D-1"]
    assert [example.relation for example in examples] == ["Count", "Relation", "Depth"]
    assert [example.options[example.label] for example in examples] == ["1", "left", "desk"]
    assert [example.split for example in examples] == ["test_2d", "test_2d", "test_3d"]
    assert [example.extra["source"] for example in examples] == ["ADE20K", "COCO", "Omni3D"]
    assert [Path(example.image).suffix for example in examples] == [".png", ".jpg", ".jpg"]
    assert (tmp_path / "out" / "images" / examples[0].image).read_bytes() == photo(1, "PNG")
    shown = PROMPTS["cv-bench"].fill(examples[0])
    assert shown.text == f"{NOTE.format('A, B, C, D')}\n{CV_BENCH_2D[0]['prompt']}"
    assert shown.text[slice(*shown.intervals["caption"])] == "How many organs are in the image?"


def test_blink(tmp_path: Path) -> None:
    examples = unpacked(tmp_path / "out", "blink", parquet(tmp_path / "val-00000-of-00001.parquet", BLINK))
    assert [example.options[example.label] for example in examples] == ["yes", "no", "yes"]
    assert {(example.relation, example.split) for example in examples} == {("Spatial_Relation", "val")}
    assert PROMPTS["blink"].fill(examples[0]).text == NOTE.format("A, B") + BLINK[0]["prompt"]


def test_blink_with_two_images(tmp_path: Path) -> None:
    rows = [{**row, "image_1": held(2 * k), "image_2": held(2 * k + 1)} for k, row in enumerate(BLINK)]
    examples = unpacked(tmp_path / "out", "blink", parquet(tmp_path / "val-00000-of-00001.parquet", rows))
    written = [[(tmp_path / "out" / "images" / name).read_bytes() for name in example.images] for example in examples]
    assert written == [[photo(2 * k, "JPEG"), photo(2 * k + 1, "JPEG")] for k in range(len(BLINK))]


def test_embspatial_bench(tmp_path: Path) -> None:
    examples = unpacked(tmp_path / "out", "embspatial", parquet(tmp_path / "test-00000-of-00001.parquet", EMBSPATIAL))
    assert [example.label for example in examples] == [0, 1]
    assert [example.relation for example in examples] == ["left", "right"]
    assert examples[0].extra == {"data_source": "mp3d"}, "columns with names of other fields are left out"
    assert len({example.image for example in examples}) == 1
    assert PROMPTS["embspatial"].fill(examples[0]).text == NOTE.format("A, B, C, D") + (
        "How are the chair and the lamp positioned in relation to each other in the image?\nA) The chair is left of the lamp.\n"
        "B) The chair is right of the lamp.\nC) The chair is above the lamp.\nD) The chair is under the lamp."
    )


def test_spatialeval(tmp_path: Path) -> None:
    examples = unpacked(tmp_path / "out", "spatialeval", parquet(tmp_path / "test-00000-of-00002.parquet", SPATIALEVAL))
    assert [example.right_option for example in examples] == ["Northeast", "Mr. A. Books", "5"]
    assert [example.label for example in examples] == [0, 3, 1]
    assert examples[1].options == ("Narwhal's", "Dr. B. Lee", "Oz Oddities", "Mr. A. Books")
    assert {(example.relation, example.split, example.extra["mode"]) for example in examples} == {("spatialmap", "test", "vqa")}
    assert [example.extra["question_number"] for example in examples] == ["0", "1", "2"]
    assert len({example.image for example in examples}) == 1
    shown = PROMPTS["spatialeval"].fill(examples[0])
    assert shown.text == f"{SPATIALEVAL[0]['text']}\nAnswer:"
    assert shown.text[slice(*shown.intervals["caption"])] == SPATIALEVAL[0]["text"].split(" Available")[0]


def test_pope_with_photos(tmp_path: Path) -> None:
    examples = unpacked(tmp_path / "out", "pope", parquet(tmp_path / "adversarial-00000-of-00001.parquet", POPE))
    assert [example.id for example in examples] == ["adversarial-1", "adversarial-2", "adversarial-3"]
    assert [example.label for example in examples] == [1, 0, 1]
    assert [example.image for example in examples] == [f"COCO_val2014_{k:012d}.jpg" for k in (310196, 310196, 310197)]
    assert [example.subject for example in examples] == ["snowboard", "backpack", "person"]
    assert {example.relation for example in examples} == {"adversarial"}


def test_3dsrbench(tmp_path: Path) -> None:
    examples = unpacked(tmp_path / "out", "3dsrbench", tsv(tmp_path / "3dsrbench_v1_vlmevalkit_circular.tsv", THREE_D_SR))
    assert [len(example.options) for example in examples] == [2, 2, 2, 2, 4, 4, 4, 4]
    assert [example.options[example.label] for example in examples] == ["key", "key", "cup", "cup", *"rrrr"]
    assert [example.extra["circle"] for example in examples] == ["0", "0", "1", "1", "2", "2", "2", "2"]
    assert [example.extra["flips"] for example in examples] == ["Q7AB"] * 4 + ["Z9"] * 4
    assert PROMPTS["vlmevalkit"].fill(examples[0]).text == (
        "Question: Which is closer to the camera?\nOptions:\nA. cup\nB. key\nPlease select the correct answer from the options above. \n"
    )


def test_sphere(tmp_path: Path) -> None:
    file = tmp_path / "position_only.json"
    file.write_text(json.dumps(SPHERE))
    report = convert_benchmark("sphere", file, tmp_path / "out")
    assert (report.rows, report.images, report.left_out, report.groups) == (2, 2, 1, {"position_only": 2})
    assert "1 without options left out, whose answer is a number\nnext: " in report.summary()
    assert "--images test2017 --prompt letters" in report.summary()
    assert not (tmp_path / "out" / "images").exists()
    examples = load_examples(tmp_path / "out" / "rows.jsonl", choices=PROMPTS["letters"].choices)
    assert [example.id for example in examples] == ["position_only-1.a", "position_only-2.b"]
    assert [example.image for example in examples] == ["000000000063.jpg", "000000000069.jpg"]
    assert [example.options[example.label] for example in examples] == ["left", "in front"]
    assert [example.extra["viewpoint"] for example in examples] == ["ego", "allo"]
    for rows, message in (
        ([{**SPHERE[0], "answer": "up"}], "row 0: expected the answer among the options once"),
        ([SPHERE[1]], "found 1 without options alone"),
        ([{"question_id": "1"}], "found none of name question, option, answer, metadata"),
        ({}, "expected a JSON list of questions, found dict"),
    ):
        file.write_text(json.dumps(rows))
        with pytest.raises(InvalidInputError, match=message):
            convert_benchmark("sphere", file, tmp_path / "other")
    with pytest.raises(InvalidInputError, match=r"found sphere[;:] use `convert_benchmark`"):
        fetch_benchmark("sphere", tmp_path / "fetched")


def test_an_image_may_be_that_of_another_row(tmp_path: Path) -> None:
    """As in VLMEvalKit's files, where a short text is the index of the row with the image."""
    rows = [THREE_D_SR[0], {**THREE_D_SR[1], "image": "0"}]
    examples = unpacked(tmp_path / "out", "3dsrbench", tsv(tmp_path / "a.tsv", rows))
    assert examples[0].image == examples[1].image


def test_equal_names_with_other_pictures_are_numbered(tmp_path: Path) -> None:
    rows = [POPE[0], {**POPE[2], "image_source": POPE[0]["image_source"]}]
    examples = unpacked(tmp_path / "out", "pope", parquet(tmp_path / "a.parquet", rows))
    assert [example.image for example in examples] == ["COCO_val2014_000000310196.jpg", "COCO_val2014_000000310196-2.jpg"]


@pytest.mark.parametrize(
    ("name", "rows", "changed", "message"),
    [
        ("cv-bench", CV_BENCH_2D, {"answer": "C"}, r"row 1: expected an answer such as \(A\)"),
        ("cv-bench", CV_BENCH_2D, {"answer": "(C)"}, "one of 2 choices"),
        ("cv-bench", CV_BENCH_2D, {"choices": ["left"]}, "list of at least two texts in column 'choices'"),
        ("cv-bench", CV_BENCH_2D, {"prompt": None}, "expected text in column 'prompt', found none"),
        ("cv-bench", CV_BENCH_2D, {"idx": 0}, "expected a new id, found '2D-0' again"),
        ("cv-bench", CV_BENCH_2D, {"image": {"bytes": b"no image", "path": None}}, "cannot be decoded"),
        ("cv-bench", CV_BENCH_2D, {"image": None}, "expected the bytes of an image in column 'image'"),
        ("blink", BLINK, {"image_2": BLINK[0]["image_1"]}, "as many images as in the first row, 1, found 2; convert them apart"),
        ("blink", BLINK, {"answer": "hidden"}, "found \"hidden\""),
        ("embspatial", EMBSPATIAL, {"answer": 4}, "index of one of 4 options"),
        ("spatialeval", SPATIALEVAL, {"oracle_option": "A"}, "letter of the option .Mr. A. Books. in column 'oracle_option', found .A."),
        ("spatialeval", SPATIALEVAL, {"text": "Where? A. here B. there"}, "expected 'Available options:' and lines such as"),
        ("spatialeval", SPATIALEVAL, {"text": "Where? Available options:\nA. here\nC. there"}, "expected 'Available options:' and lines"),
        ("pope", POPE, {"answer": "maybe"}, "expected yes or no"),
        ("3dsrbench", THREE_D_SR, {"B": "", "C": "x"}, "found some in A, C"),
        ("3dsrbench", THREE_D_SR, {"answer": "D"}, "expected one of A, B in column 'answer'"),
        ("3dsrbench", THREE_D_SR, {"image": "7"}, "image in base64|bytes of an image|cannot be decoded"),
    ],
)  # fmt: skip
def test_rows_of_another_form_are_named(tmp_path: Path, name: str, rows: Any, changed: dict[str, Any], message: str) -> None:
    made = [dict(row) for row in rows]
    made[1] |= changed
    file = tsv(tmp_path / "a.tsv", made) if name == "3dsrbench" else parquet(tmp_path / "a.parquet", made)
    with pytest.raises(InvalidInputError, match=message) as refused:
        convert_benchmark(name, file, tmp_path / "out")
    assert f"{file}, row 1" in str(refused.value)
    assert not list((tmp_path / "out").iterdir())


def test_files_of_another_form_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = parquet(tmp_path / "a.parquet", EMBSPATIAL)
    (tmp_path / "b.parquet").write_bytes(b"not Parquet")
    for name, path, message in (
        ("blink", file, "found none of name idx, sub_task, image_1, image_2, choices, prompt; there are question_id"),
        ("blink", tmp_path / "b.parquet", "expected a readable Parquet file"),
        ("blink", tmp_path / "c.parquet", "expected a readable Parquet file"),
        ("3dsrbench", tmp_path / "c.tsv", "expected a readable table separated by tabs"),
        ("blink", tmp_path / "d.txt", "found .txt"),
        ("vsr", file, "expected a benchmark among cv-bench"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            convert_benchmark(name, path, tmp_path / "out")
    convert_benchmark("embspatial", file, tmp_path / "out")
    with pytest.raises(InvalidInputError, match=r"rows\.jsonl yet, found one"):
        convert_benchmark("embspatial", file, tmp_path / "out")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"stratascope\[parquet\]"):
        convert_benchmark("embspatial", file, tmp_path / "other")


def test_the_command_prints_what_comes_next(tmp_path: Path) -> None:
    file = parquet(tmp_path / "test_3d.parquet", CV_BENCH_3D)
    done = CliRunner().invoke(main, ["convert", "cv-bench", str(file), "--out", str(tmp_path / "cv")])
    assert done.exit_code == 0, done.output
    assert "1 questions on 1 images; Depth 1" in done.output
    line = done.output.splitlines()[1].removeprefix("next: stratascope ").replace("Qwen/Qwen2.5-VL-7B-Instruct", "demo")
    planned = CliRunner().invoke(main, line.split())
    assert planned.exit_code == 0, planned.output
    assert "'A' = token" in planned.output
    found = json.loads(CliRunner().invoke(main, ["convert", "cv-bench", str(file), "--out", str(tmp_path / "2"), "--json"]).output)
    assert (found["rows"], found["prompt"]) == (1, "cv-bench")


def test_every_benchmark_has_a_prompt_for_its_questions() -> None:
    for benchmark in BENCHMARKS.values():
        assert PROMPTS[benchmark.prompt].asks_question
        assert not benchmark.image or benchmark.image in benchmark.needs
