"""Results of another store: refused, or left out of a shared folder and counted; curves of a baseline are shown."""

from __future__ import annotations

import json
import shutil

import pytest
from click.testing import CliRunner
from planted import planted_store

from stratascope.cli import main
from stratascope.probe import layer_curve
from stratascope.report.viewer import ViewServer
from stratascope.results.registry import load_result
from stratascope.results.stored_result import StoredResult, relation_to
from stratascope.store import ActivationStore
from tests.viewer.asking import ask


@pytest.fixture(scope="module")
def probed_stores(tmp_path_factory):
    """Two stores of the same ids and other numbers, a third with blank images, and results of each."""
    folder = tmp_path_factory.mktemp("probed")
    quick = {"layers": (0, 1), "strengths": (1e-2,), "draws": 100}
    paths = [
        planted_store(folder / "a.zarr", examples=200, layers=1, onset=1),
        planted_store(folder / "b.zarr", examples=200, layers=1, onset=1, seed=1),
        planted_store(folder / "c.zarr", examples=200, layers=1, onset=1, condition="blank"),
    ]
    for path, name in zip(paths, ("own", "theirs", "blank"), strict=True):
        layer_curve(path, **quick).save(folder / name / f"probe-{name}.zarr.zip")
    return folder


@pytest.fixture
def two_stores(probed_stores, tmp_path):
    """A copy of them, beside which a test may write."""
    return shutil.copytree(probed_stores, tmp_path, dirs_exist_ok=True)


@pytest.mark.slow
def test_results_of_another_store_are_refused(two_stores):
    for more in ((), ("--export", str(two_stores / "page"))):
        refused = CliRunner().invoke(
            main, ["view", str(two_stores / "a.zarr"), "--results", str(two_stores / "theirs"), "--no-browser", *more]
        )
        assert refused.exit_code == 2
        assert "probe-theirs.zarr.zip: expected results of" in refused.stderr
        assert "found those of b.zarr" in refused.stderr
    assert not (two_stores / "page").exists()


def test_results_of_the_store_and_its_baselines_are_shown_and_others_of_a_shared_folder_are_not(two_stores):
    shared = two_stores / "results"
    shared.mkdir()
    for name in ("own", "theirs", "blank"):
        shutil.copy(two_stores / name / f"probe-{name}.zarr.zip", shared)
    done = CliRunner().invoke(main, ["view", str(two_stores / "a.zarr"), "--export", str(two_stores / "page")])
    assert done.exit_code == 0, done.output
    assert "1 results files of other stores are not shown" in done.stderr
    kept = {path.name for path in (two_stores / "page" / "results").iterdir()}
    assert kept == {"index.json", "probe-own.zarr.zip", "probe-blank.zarr.zip"}
    with ViewServer(str(two_stores / "a.zarr"), results=shared, shown=["probe-own.zarr.zip"]) as server:
        assert [e["name"] for e in json.loads(ask(server, "results/index.json").body)["files"]] == ["probe-own.zarr.zip"]
        assert ask(server, "results/probe-theirs.zarr.zip").status == 404
        assert ask(server, "results/probe-own.zarr.zip").status == 200
    refused = CliRunner().invoke(main, ["figure", "curves", str(shared), "-o", str(two_stores / "f.svg")])
    assert refused.exit_code == 2
    assert "expected results of one store and its baselines" in refused.stderr
    assert not (two_stores / "f.svg").exists()
    drawn = CliRunner().invoke(main, ["figure", "curves", str(two_stores / "a.zarr"), "-o", str(two_stores / "f.svg")])
    assert drawn.exit_code == 0, drawn.output
    assert "left out: 1 results files of other stores in the same folder" in drawn.stdout


@pytest.mark.slow
def test_a_second_probe_into_a_folder_says_whose_results_lie_there(two_stores):
    """Of another store, and of one that says the same of itself but is called otherwise."""
    twin = planted_store(two_stores / "twin.zarr", examples=200, layers=1, onset=1, numbers=1)
    assert ActivationStore.open(twin).fingerprint() == ActivationStore.open(two_stores / "a.zarr").fingerprint()
    quick = ("--tasks", "truth", "--positions", "final", "--layers", "1", "--strengths", "1e-2", "--scheduler", "synchronous")

    def probed(name: str, *more: str, out: str = "res") -> str:
        done = CliRunner().invoke(main, ["probe", str(two_stores / name), *quick, *more, "--out", str(two_stores / out)])
        assert done.exit_code == 0, done.output
        return done.stdout

    baseline = ("--baseline", str(two_stores / "c.zarr"))
    assert " results that are not " not in probed("a.zarr", *baseline)
    assert " results that are not " not in probed("a.zarr", *baseline), "its own and its baseline's are expected there"
    assert " results that are not " not in probed("a.zarr"), "curves of a baseline are no other results"
    assert " results that are not of b.zarr as it is now, such as " in probed("b.zarr")
    probed("a.zarr", out="other")
    assert "such as probe-truth-final.zarr.zip (of a.zarr)" in probed("twin.zarr", out="other")


@pytest.mark.slow
def test_curves_of_other_pictures_are_no_baseline(two_stores):
    own = ActivationStore.open(two_stores / "a.zarr")
    other = StoredResult(two_stores / "x", load_result(two_stores / "blank" / "probe-blank.zarr.zip"))
    assert relation_to(other, own, own.fingerprint()) == "baseline"
    own.provenance["data"]["images"] = "0" * 64
    assert relation_to(other, own, own.fingerprint()) == "baseline", "stores that do not say it are taken as before"
    other.attributes["provenance"]["data"]["images"] = "1" * 64
    assert relation_to(other, own, own.fingerprint()) == "other"


@pytest.mark.slow
def test_heads_of_another_stores_probe_are_refused(two_stores):
    refused = CliRunner().invoke(
        main,
        ["heads", str(two_stores / "a.zarr"), "--probe", str(two_stores / "theirs" / "probe-theirs.zarr.zip"), "--out", str(two_stores)],
    )
    assert refused.exit_code == 2
    assert "found those of b.zarr" in refused.stderr
