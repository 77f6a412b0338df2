"""Broken and odd input files: each is read as it is meant, or refused with an error of our own."""

from __future__ import annotations

import copy
import json
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from stratascope.cli import FAULT, main
from stratascope.datasets import PROMPTS, BoxIndex, load_examples
from stratascope.errors import InvalidInputError
from stratascope.extract.families.model_families import image_rule
from stratascope.extract.model_files import resolve_model
from stratascope.extract.plan.token_layout import PromptTokenizer

FEW = settings(max_examples=80, derandomize=True, deadline=None)

ODD_WORDS = (
    *("", " ", "\x00", "\u202eabc", "e\u0301", "\ufb01sh", "a\u200bb", "\ud800", "👩\u200d👧", "ß", "İ", "ﷺ", "\u2028", "A" * 3000),
    *("<|im_end|>", "{caption}", "\\", "../x", "9" * 30),
)
ODD_TEXT = st.text(max_size=12) | st.sampled_from(ODD_WORDS)
ODD_NUMBER = st.booleans() | st.integers() | st.floats() | st.just(10**400)
ODD_VALUE = st.none() | ODD_NUMBER | ODD_TEXT | st.lists(ODD_TEXT, max_size=2) | st.just({})


VSR_ROW = {"image": "a.jpg", "caption": "The cat is under the bed.", "relation": "under", "label": 1, "id": "x", "split": "test"}
COCO = {
    "images": [{"id": 1, "file_name": "a.jpg", "width": 60, "height": 40}],
    "annotations": [{"id": 5, "image_id": 1, "category_id": 2, "bbox": [1.0, 2.0, 10.0, 10.0], "iscrowd": 0}],
    "categories": [{"id": 2, "name": "cat"}],
}
CAPTIONS = [{"image_path": "data/c/a.jpeg", "caption_options": ["A cup on a table", "A cup under a table"]}] * 2
NUMBERED = [
    [139, "A photo of a tv above a chair", "A photo of a tv below a chair"],
    [285, "A photo of a tv to the left of a chair", "x on y"],
]
QUESTION = {
    "id": 0,
    "question": "<image>\nUSER: Where is the tv in relation to the chair? Answer with left, right, above or below.",
    "answer": ["Above"],
}


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value within a JSON value, its own included."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


def changed(value: Any, path: tuple[Any, ...], new: Any, remove: bool) -> Any:
    """A copy with the value at a path replaced or removed."""
    if not path:
        return new
    out = copy.deepcopy(value)
    inner = out
    for key in path[:-1]:
        inner = inner[key]
    if remove:
        del inner[path[-1]]
    else:
        inner[path[-1]] = new
    return out


def broken(value: Any) -> st.SearchStrategy[Any]:
    """The value with one or two of its places replaced by something odd, or removed."""

    @st.composite
    def draw(draw: st.DrawFn) -> Any:
        out = value
        for _ in range(draw(st.integers(1, 2))):
            out = changed(out, draw(st.sampled_from(list(places(out)))), draw(ODD_VALUE), draw(st.booleans()))
        return out

    return draw()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module")
def tokenizer() -> PromptTokenizer:
    source = resolve_model("demo")
    return PromptTokenizer(source, PROMPTS["true-false"], image_rule(source))


def refused_or(read: Callable[[], Any]) -> Any:
    """What is read, or None where it is refused in words that can be printed in a line."""
    try:
        return read()
    except InvalidInputError as error:
        if not str(error).strip():
            raise AssertionError("an error without words") from error
        return None


@pytest.mark.slow
@FEW
@given(row=broken(VSR_ROW))
def test_rows_are_read_as_they_are_or_refused(row: Any, place: Path, tokenizer: PromptTokenizer) -> None:
    path = place / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    found = refused_or(lambda: load_examples(path))
    if found is None:
        return
    (example,) = found
    given = row.get("label")
    label = None if given in (None, "") or given != given else bool(given)  # JSON has no other numbers that are none
    assert (example.caption, example.relation, example.label) == (row["caption"], row["relation"], label)
    assert example.caption[slice(*example.parts.relation)].lower() == example.relation.strip().lower()
    refused_or(lambda: tokenizer.layout(example, (56, 56)))


ODD_NAMES = ("e\u0301té", "İstanbul", "ß", "👩\u200d👧 hat", "a\u200bb", "naïve")
NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8) | st.sampled_from(ODD_NAMES)


def composed(text: str) -> str:
    """As tokenizers normalise: letters and their marks as one character."""
    return unicodedata.normalize("NFC", text)


@pytest.mark.slow
@FEW
@given(subject=NAMES, thing=NAMES)
def test_spans_hold_the_words_that_they_name(subject: str, thing: str, place: Path, tokenizer: PromptTokenizer) -> None:
    path = place / "spans.jsonl"
    path.write_text(json.dumps({**VSR_ROW, "caption": f"The {subject} is under the {thing}."}) + "\n")
    found = refused_or(lambda: load_examples(path))
    layout = found and refused_or(lambda: tokenizer.layout(found[0], (56, 56)))
    if not layout:
        return
    decode = tokenizer.tokenizer.decode
    for name, words in (("subject", found[0].subject), ("object", found[0].object), ("relation", "under")):
        a, b = layout.spans[name]
        assert composed(words.strip()) in composed(decode(layout.ids[a:b].tolist(), skip_special_tokens=False))
        assert a < b <= layout.spans["final"][1]
    assert layout.spans["subject"][1] <= layout.spans["relation"][0] < layout.spans["object"][0]


@FEW
@given(data=broken(COCO))
def test_boxes_are_read_or_refused(data: Any, place: Path) -> None:
    path = place / "instances.json"
    path.write_text(json.dumps(data))
    index = refused_or(lambda: BoxIndex.from_coco(path))
    box = index and index.match("a.jpg", "cat")
    if box:
        assert 0 <= box[0] < box[2]
        assert 0 <= box[1] < box[3]


@pytest.mark.slow
@FEW
@given(rows=broken(CAPTIONS) | broken(NUMBERED), asks=st.booleans(), name=st.sampled_from(["coco_qa.json", "vg_qa.json", "c.json"]))
def test_captions_are_read_or_refused(rows: Any, asks: bool, name: str, place: Path) -> None:
    path = place / name
    path.write_text(json.dumps(rows))
    for example in refused_or(lambda: load_examples(path, choices=PROMPTS["four-way"].choices if asks else None)) or ():
        assert example.caption[slice(*example.parts.relation)].lower() == example.relation
        assert 0 <= example.label < (4 if asks else 2)
        assert "/" not in example.image


@pytest.mark.slow
@FEW
@given(row=broken(QUESTION))
def test_questions_are_read_or_refused(row: Any, place: Path) -> None:
    path, data = place / "questions.jsonl", place / "coco_qa_two_obj.json"
    path.write_text(json.dumps(row) + "\n")
    data.write_text(json.dumps(NUMBERED[:1]))
    for example in refused_or(lambda: load_examples([data, path], choices=PROMPTS["four-way"].choices)) or ():
        assert example.label == 2
        assert refused_or(lambda example=example: PROMPTS["four-way"].fill(example)) is not None


CORPUS = {
    "empty": b"",
    "blank lines": b"\n \n",
    "not UTF-8": b'{"image": "\xff"}\n',
    "UTF-16": json.dumps(VSR_ROW).encode("utf-16"),
    "null bytes": b"\0" * 100,
    "deep": b"[" * 100_000,
    "deep objects": b'{"a":' * 100_000,
    "a web page": b"<!DOCTYPE html><html></html>",
    "a picture": bytes.fromhex("89504e470d0a1a0a0000000d49484452"),
    "cut": json.dumps(VSR_ROW).encode()[:-9],
    "two on a line": json.dumps(VSR_ROW).encode() * 2,
    "half a pair": json.dumps({**VSR_ROW, "caption": "The \ud800 is under the bed."}).encode(),
    "a number": b"7\n",
    "a word": b'"image"\n',
    "a long number": b'{"image": ' + b"9" * 10_000 + b"}",
    "a list of nothing": b"[]",
    "a list of lists": b"[[], [[]]]",
    "not a number": b'{"image": NaN, "label": Infinity}',
}


@pytest.mark.parametrize("name", CORPUS)
def test_the_corpus_of_broken_files_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "coco.json"
    path.write_bytes(CORPUS[name])
    for choices in (None, PROMPTS["four-way"].choices):
        with pytest.raises(InvalidInputError):
            load_examples(path, choices=choices)
    with pytest.raises(InvalidInputError):
        BoxIndex.from_coco(path)
    (tmp_path / "folder").mkdir()
    with pytest.raises(InvalidInputError):
        load_examples(tmp_path / "folder")


CORPUS_OF_ROWS = {
    "a zero byte in a file's name": {"image": "a\0.jpg"},
    "a name outside of the folder": {"image": "../a.jpg"},
    "a name of another folder": {"image": "/etc/passwd"},
    "an empty name": {"image": " "},
    "a relation that is all of it": {"caption": "under", "relation": "under"},
    "a relation that is not there": {"relation": "above"},
    "a label between": {"label": 0.5},
    "a label of text": {"label": "1"},
    "half a pair in an id": {"id": "\ud800"},
}


@pytest.mark.parametrize("name", CORPUS_OF_ROWS)
def test_the_corpus_of_broken_rows_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({**VSR_ROW, **CORPUS_OF_ROWS[name]}) + "\n")
    with pytest.raises(InvalidInputError):
        load_examples(path)


def planned(folder: Path, rows: Any, boxes: Any, prompt: str) -> None:
    """A plan of rows and boxes by the command line: made, or refused in one line that blames nobody else."""
    (folder / "rows.jsonl").write_text(json.dumps(rows) + "\n")
    (folder / "instances.json").write_text(json.dumps(boxes))
    files = ["--examples", str(folder / "rows.jsonl"), "--boxes", str(folder / "instances.json"), "--images", str(folder)]
    found = CliRunner().invoke(main, ["plan", "--model", "demo", *files, "--prompt", prompt, "--image-size", "56x56"])
    said = (rows, boxes, prompt, found.output[-400:], found.exception)
    assert found.exit_code in (0, 2), said
    assert found.exception is None or isinstance(found.exception, SystemExit), said
    assert FAULT not in found.stderr, said
    assert found.exit_code == 0 or len(found.stderr.strip().splitlines()) == 1, said


@pytest.mark.slow
@FEW
@given(row=broken(VSR_ROW), prompt=st.sampled_from(sorted(PROMPTS)))
def test_a_plan_of_broken_rows_in_any_prompt_is_made_or_refused_in_one_line(row: Any, prompt: str, place: Path) -> None:
    planned(place, row, COCO, prompt)


@pytest.mark.slow
@FEW
@given(boxes=broken(COCO), prompt=st.sampled_from(sorted(PROMPTS)))
def test_a_plan_with_broken_boxes_is_made_or_refused_in_one_line(boxes: Any, prompt: str, place: Path) -> None:
    planned(place, VSR_ROW, boxes, prompt)


def test_rows_with_a_mark_of_byte_order_and_other_line_ends_are_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(VSR_ROW).encode() + b"\r\n")
    assert load_examples(path)[0].caption == VSR_ROW["caption"]
