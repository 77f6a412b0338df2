"""The command line: what it prints, and how it fails."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from stratascope.analysis import AnswerConfidence
from stratascope.cli import SECTIONS, all_commands, main
from stratascope.results.registry import load_result


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def extraction(scenes: Path, *more: str) -> list[str]:
    return ["--model", "demo", "--examples", str(scenes / "scenes.jsonl"), "--images", str(scenes / "images"), *more]


def assert_refused(result: Result, pattern: str) -> None:
    """Exit code 2, one line on stderr, no traceback."""
    assert result.exit_code == 2, result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1
    assert re.search(pattern, lines[0]), lines[0]


def test_help_lists_every_command_in_the_order_of_use() -> None:
    text = run("--help").output
    sections = [text.index(f"\n{title}:\n") for title in SECTIONS]
    assert sections == sorted(sections)
    listed = [line.split()[0] for line in text[sections[0] :].splitlines() if line.startswith("  ")]
    assert listed == [name for section in SECTIONS.values() for name in section]
    assert listed == [command.name for command in all_commands().values()]


@pytest.mark.parametrize("command", sorted(all_commands()))
def test_every_command_has_help_with_an_example(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    assert f"stratascope {command}" in result.output.partition("Example")[2]


@pytest.mark.slow
def test_plan_prints_shapes_bytes_and_blocks(scenes: Path) -> None:
    text = run("plan", *extraction(scenes, "--boxes", str(scenes / "instances.json"))).output
    assert "96 examples on 96 images" in text
    assert "2 of 64 examples" in text
    assert re.search(r"residual +7 layer x 7 position x 96 example x 96 hidden +[\d.]+ MB +[\d.]+ [kM]B", text)
    assert "[subject: " in text


def test_plan_without_photos_needs_a_stated_size(scenes: Path) -> None:
    arguments = ["plan", "--model", "demo", "--examples", str(scenes / "scenes.jsonl"), "--images", "nowhere"]
    assert_refused(run(*arguments), "expected a folder of images, found none at nowhere")
    assert "image 30 to 30" in run(*arguments, "--image-size", "640x480").output
    assert run(*arguments, "--image-size", "big").exit_code == 2
    without = arguments[:-2]
    assert run(*without, "--image-size", "640x480").output == run(*arguments, "--image-size", "640x480").output
    assert_refused(run(*without), "set --images")


@pytest.mark.slow
def test_the_plans_bytes_are_what_is_then_on_disk(plan, store_path: Path) -> None:
    estimate = plan.estimate.set_index("array")["estimated_bytes"]
    for array in ("residual", "attention_rows", "attention_mean", "attention_maps", "thumbnail"):
        on_disk = sum(p.stat().st_size for p in (store_path / array).rglob("*") if p.is_file())
        assert estimate[array] == pytest.approx(on_disk, rel=0.1), array
    assert estimate.sum() == pytest.approx(sum(p.stat().st_size for p in store_path.rglob("*") if p.is_file()), rel=0.1)


def test_info_names_arrays_completeness_and_provenance(store_path: Path) -> None:
    text = run("info", str(store_path)).output
    assert "96 examples in 2 blocks of 64, complete" in text
    assert "attention_maps" in text
    assert re.search(r"condition +original", text)
    assert re.search(r"libraries\.torch +\d", text)


@pytest.mark.slow
def test_verify_finds_nothing_wrong_and_then_a_flipped_bit(store_path: Path, scenes: Path, tmp_path: Path) -> None:
    result = run("verify", str(store_path), "--images", str(scenes / "images"))
    assert result.exit_code == 0, result.output
    assert "complete; every written number is what was written" in result.output
    damaged = tmp_path / "damaged.zarr"
    shutil.copytree(store_path, damaged)
    victim = sorted(path for path in (damaged / "residual").rglob("*") if path.is_file() and path.name != "zarr.json")[-1]
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 4
    victim.write_bytes(data)
    result = run("verify", str(damaged))
    assert result.exit_code == 1
    assert "bad blocks: 1" in result.output
    result = run("verify", str(damaged), "--repair")
    assert "unmarked blocks 1" in result.output
    assert "1 of 2 blocks written" in run("verify", str(damaged)).output
    assert (
        run("extract", *extraction(scenes, "--boxes", str(scenes / "instances.json"), "--device", "cpu", "--out", str(damaged))).exit_code
        == 0
    )
    assert "the same" in run("diff", str(damaged), str(store_path)).output


def test_copy_takes_a_part_that_says_so(store_path: Path, tmp_path: Path) -> None:
    target = tmp_path / "small.zip"
    arguments = ["--arrays", "residual", "--layers", "0,6", "--positions", "final", "--examples", "0-9"]
    result = run("copy", str(store_path), str(target), *arguments)
    assert result.exit_code == 0, result.output
    text = run("info", str(target)).output
    assert "10 examples" in text
    assert "layers taken: 0, 6" in text
    assert run("diff", str(store_path), str(target)).exit_code == 1


@pytest.mark.slow
def test_diff_names_what_differs(store_path: Path, scenes: Path, tmp_path: Path) -> None:
    blank = tmp_path / "blank.zarr"
    run("extract", *extraction(scenes, "--condition", "blank", "--boxes", str(scenes / "instances.json"), "--out", str(blank)))
    result = run("diff", str(store_path), str(blank))
    assert result.exit_code == 1
    assert "provenance  condition: original | blank" in result.output
    assert re.search(r"numbers +residual: [\d,]+ of [\d,]+ values differ", result.output)
    assert run("diff", str(store_path), str(store_path)).exit_code == 0


def test_answers_are_counted_and_saved(store_path: Path, store, tmp_path: Path) -> None:
    result = run("answers", str(store_path), "--out", str(tmp_path))
    found = AnswerConfidence.load(tmp_path / "answers.zarr.zip")
    right = store.read("answer_logits").argmax(-1) == [store.layout.choices.index(str(bool(k))) for k in store.examples["label"]]
    assert found.answers["right"].tolist() == right.tolist()
    assert re.search(rf"all relations +accuracy +{right.mean():.1%}", result.output)


@pytest.mark.slow
def test_rollout_and_share_write_results_and_figures(store_path: Path, tmp_path: Path) -> None:
    for command in (["rollout", str(store_path), "--examples", "0,2-3"], ["share", str(store_path)]):
        result = run(*command, "--out", str(tmp_path))
        assert result.exit_code == 0, result.output
    assert {p.name for p in tmp_path.iterdir()} == {"rollout.zarr.zip", "rollout.png", "share.zarr.zip", "share.png"}


@pytest.mark.slow
def test_examples_are_asked_for_by_number_and_by_id(store_path: Path, store, tmp_path: Path) -> None:
    name = store.examples["id"][5]
    for command in ("rollout", "flow"):
        result = run(command, str(store_path), "--examples", f"0,{name},2-3", "--out", str(tmp_path))
        assert result.exit_code == 0, result.output
        assert load_result(tmp_path / f"{command}.zarr.zip").tables["examples"]["example"].tolist() == [0, 5, 2, 3]
    assert_refused(run("rollout", str(store_path), "--examples", "nobody"), f"found 'nobody'; its ids are like {store.examples['id'][0]}")


@pytest.mark.slow
@pytest.mark.parametrize("command", ["rollout", "flow"])
def test_examples_without_a_map_are_left_out_by_name(command: str, tmp_path: Path) -> None:
    """The second of the golden store's examples has none; an unwritten one is refused as ever."""
    golden = str(Path(__file__).parent / "store" / "golden" / "v1.zarr")
    result = run(command, golden, "--examples", "0,1,golden-4", "--out", str(tmp_path))
    assert result.exit_code == 0, result.output
    assert re.search(r"left out, being without attention maps .*: golden-1\n", result.stdout)
    assert load_result(tmp_path / f"{command}.zarr.zip").tables["examples"]["example"].tolist() == [0, 4]
    assert_refused(run(command, golden, "--examples", "1", "--out", str(tmp_path)), "found 1 that failed, lack a position or have no map")
    assert_refused(run(command, golden, "--examples", "0,2", "--out", str(tmp_path)), "not written yet")


@pytest.mark.slow
def test_a_figure_takes_the_words_of_the_probe(store_path: Path, tmp_path: Path) -> None:
    assert run("probe", str(store_path), "--tasks", "truth", "--out", str(tmp_path)).exit_code == 0
    asked = ("figure", "curves", str(tmp_path), "--tasks", "truth")
    for more in (("--position", "all"), ()):
        assert run(*asked, *more, "-o", str(tmp_path / f"curves{len(more)}.svg")).exit_code == 0
    assert_refused(run(*asked, "--position", "nowhere"), "a layer curve of truth at position nowhere with what")


@pytest.mark.slow
def test_rollout_is_drawn_without_thumbnails_too(store_path: Path, tmp_path: Path) -> None:
    assert run("copy", str(store_path), str(tmp_path / "bare.zarr"), "--arrays", "attention_maps").exit_code == 0
    result = run("rollout", str(tmp_path / "bare.zarr"), "--examples", "3", "--out", str(tmp_path))
    assert result.exit_code == 0, result.output
    assert (tmp_path / "rollout.png").exists()


@pytest.mark.slow
def test_probe_writes_curves_and_a_figure(store_path: Path, tmp_path: Path) -> None:
    arguments = ["--tasks", "truth", "--positions", "final,object_box", "--baseline", str(store_path), "--out", str(tmp_path)]
    result = run("probe", str(store_path), *arguments)
    assert result.exit_code == 0, result.output
    assert "probe-truth-final.zarr.zip" in {p.name for p in tmp_path.iterdir()}
    assert "probe-truth-final-baseline.zarr.zip" in {p.name for p in tmp_path.iterdir()}
    assert (tmp_path / "probe-truth.png").exists()


@pytest.mark.slow
def test_probe_tells_and_draws_values_by_r2(store_path: Path, tmp_path: Path) -> None:
    result = run("probe", str(store_path), "--tasks", "geometry", "--positions", "final", "--out", str(tmp_path))
    assert result.exit_code == 0, result.output
    assert re.search(r"geometry at final: R² -?\d\.\d{3} \[", result.output)
    assert (tmp_path / "probe-geometry.png").exists()


@pytest.mark.parametrize(
    ("arguments", "pattern"),
    [
        (["info", "nothing.zarr"], "nothing.zarr: expected a store"),
        (["probe", "nothing.zarr"], "nothing.zarr: expected a store"),
        (["demo", "--scenes", "0"], "at least 64 scenes"),
        (["plan", "--model", "bla", "--examples", "x", "--images", "y"], "expected 'demo', a folder or a Hub id"),
        (["plan", "--model", "demo", "--examples", "x.jsonl", "--images", "y"], r"x\.jsonl: expected a readable"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_two(arguments: list[str], pattern: str) -> None:
    assert_refused(run(*arguments), pattern)


@pytest.mark.slow
def test_too_few_examples_are_refused_by_name(scenes: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    store = tmp_path / "few.zarr"
    assert run("extract", *extraction(scenes, "--limit", "14", "--record", "residual", "--out", str(store))).exit_code == 0
    assert_refused(run("probe", str(store), "--positions", "final"), "examples")


def test_examples_outside_the_store_are_refused(store_path: Path) -> None:
    assert_refused(run("rollout", str(store_path), "--examples", "96"), "from 0 to 95, found 96")
    assert run("rollout", str(store_path), "--examples", "5-2").exit_code == 2


def test_debug_shows_the_traceback() -> None:
    result = run("--debug", "info", "nothing.zarr")
    assert result.exit_code == 1
    assert result.exception is not None


def test_an_interruption_is_exit_code_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("stratascope.commands.data.demo.run_demo", interrupted)
    result = run("demo", "--scenes", "10", "--out", "never")
    assert result.exit_code == 130
    assert "run the same command to continue" in result.stderr


def test_long_lists_in_a_difference_are_told_by_what_only_one_has() -> None:
    from stratascope.store.maintenance.difference import _side_by_side

    cells = [f"cell_{row}_{column}" for row in range(6) for column in range(6)]
    lines = _side_by_side("layout      knockout_targets:", repr(cells), repr([*cells[:-1], "image"]))
    assert lines == [
        "layout      knockout_targets:",
        f"{'':12}a: 36 values, of them only here cell_5_5",
        f"{'':12}b: 36 values, of them only here image",
    ]
    assert all(len(line) <= 120 for line in _side_by_side("layout      knockout_targets:", "[]", repr(cells)))
    assert _side_by_side("layout      fusion:", "mean", "max") == ["layout      fusion: mean | max"]
    text = "x" * 90
    assert _side_by_side("provenance  prompt.text:", text, "[" + text) == [
        "provenance  prompt.text:",
        f"{'':12}a: {text}",
        f"{'':12}b: [{text}",
    ]
