"""Several runs of `probe` into one folder: results of different runs are never shown as one."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from planted import planted_store

from stratascope.cli import main
from stratascope.probe import layer_curve
from stratascope.report import gather
from stratascope.report.figure_drawing import FigureSelection
from stratascope.store import ActivationStore


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    planted_store(folder / "original.zarr", examples=160)
    planted_store(folder / "blank.zarr", examples=160, condition="blank")
    return folder


def probe(stores: Path, out: Path, *options: str) -> str:
    done = CliRunner().invoke(main, ["probe", str(stores / "original.zarr"), "--out", str(out), "--layers", "0,3", *options])
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.slow
def test_a_figure_of_a_task_shows_the_selection_that_was_asked_for(stores: Path, tmp_path: Path) -> None:
    store = ActivationStore.open(stores / "original.zarr")
    fast: dict[str, Any] = {"layers": (0, 3), "draws": 200, "strengths": (1e-2,)}
    for only in ((), ("label=1",)):
        curve = layer_curve(store, "relation", "relation", only=only, minimum=5, **fast)
        curve.save(tmp_path / f"{curve.file_name}.zarr.zip")
    curve = layer_curve(store, "truth", "final", **fast)
    curve.save(tmp_path / f"{curve.file_name}.zarr.zip")
    results = gather(store, [tmp_path])
    assert results.tasks == ["truth", "relation", "relation (label=1)"]
    # the caption states every label of the task on all examples
    assert FigureSelection("relation").resolved(results).task == "relation (label=1)"
    assert FigureSelection("truth").resolved(results).task == "truth"
    out = ["-o", str(tmp_path / "c.svg")]
    done = CliRunner().invoke(main, ["figure", "curves", str(tmp_path), "--task", "relation", *out])
    assert "stated by the caption" in (tmp_path / "c.svg").read_text()
    assert "task: relation (label=1); of all examples: stratascope figure probe-relation" in done.output
    for name in ("probe-relation", "probe-relation-relation.zarr.zip", str(tmp_path / "probe-relation.png")):
        assert CliRunner().invoke(main, ["figure", name, str(tmp_path), *out]).exit_code == 0, name


@pytest.mark.parametrize(("places", "shown"), [(("final", "subject"), "relation (label=1)"), (("subject",), "relation")])
def test_all_examples_are_shown_where_the_caption_states_no_label(places: tuple[str, ...], shown: str) -> None:
    """The subject precedes the relation in the caption."""
    curves = [SimpleNamespace(task="relation", position=place, attributes={}) for place in places]
    results = SimpleNamespace(tasks=["relation", "relation (label=1)"], curves=curves)
    assert FigureSelection("relation").resolved(results).task == shown  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_run_with_other_options_makes_results_of_the_earlier_one_out_of_date(stores: Path, tmp_path: Path) -> None:
    out, store = tmp_path / "results", ActivationStore.open(stores / "original.zarr")
    blank = ["--baseline", str(stores / "blank.zarr")]
    first = probe(stores, out, "--tasks", "truth", "--positions", "final", *blank)
    probe(stores, out, "--tasks", "relation", "--positions", "relation")
    assert "earlier run" not in first
    both = gather(store, [out])
    assert not both.earlier
    runs = {f.attributes["run"] for f in both.own}
    assert len(runs) == 2

    # the same command again is the same run
    assert "earlier run" not in probe(stores, out, "--tasks", "truth", "--positions", "final", *blank)
    assert {f.attributes["run"] for f in gather(store, [out]).own} == runs

    later = probe(stores, out, "--tasks", "truth", "--positions", "final", "--seed", "1")
    assert "also holds 2 results of earlier runs of probe with other options" in later
    found = gather(store, [out])
    assert sorted(f.name for f in found.earlier) == ["advantage-truth-final-over-blank.zarr.zip", "probe-truth-final-blank.zarr.zip"]
    assert not found.beside
    assert {f.task for f in found.own} == {"truth", "relation"}

    page = tmp_path / "page.html"
    done = CliRunner().invoke(main, ["report", str(stores / "original.zarr"), str(out), "-o", str(page), "--json"])
    assert json.loads(done.output)["results_of_earlier_runs"] == [f.name for f in found.earlier]
    text = page.read_text()
    assert "The curves are of 2 runs of probe" in text
    assert "Left out: 2 results of earlier runs of probe with other options" in text
    drawn = CliRunner().invoke(main, ["figure", "curves", str(stores / "original.zarr"), str(out), "-o", str(tmp_path / "c.svg")])
    assert "left out: 2 results of earlier runs" in drawn.output
