"""The commands on stores: text, --json, --quiet, --verbose."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from stores import birth, block_arrays, make_store, small_layout

from stratascope.cli import main
from stratascope.store import ActivationStore, BlockWriter, create_store, describe, diff_stores, verify


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("commands") / "a.zarr")


@pytest.fixture(scope="module")
def unlike(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same examples with one number that is infinitely far away: an answer that was not computed."""
    layout = small_layout()
    known = birth(layout)
    known["provenance"]["note"] = "x" * 200
    target = tmp_path_factory.mktemp("commands") / "b.zarr"
    create_store(target, layout, **known)
    with BlockWriter(target) as writer:
        for block in range(layout.blocks):
            arrays = block_arrays(layout, known, block)
            arrays["status"][1] = 2  # has no map
            writer.write(block, arrays)
    return target


def run(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def strict(result: Result) -> Any:
    def refuse(name: str) -> None:
        pytest.fail(f"{name} is no JSON")

    assert result.stdout.count("\n") == 1
    return json.loads(result.stdout, parse_constant=refuse)


@pytest.mark.slow
def test_text_is_the_summary(path: Path, unlike: Path) -> None:
    assert run("info", path).output == describe(ActivationStore.open(path)) + "\n"
    assert run("verify", path).output == verify(path).summary() + "\n"
    assert run("diff", path, unlike).output == diff_stores(path, unlike).summary() + "\n"


@pytest.mark.slow
def test_quiet_prints_nothing_and_keeps_the_exit_code(path: Path, unlike: Path, tmp_path: Path) -> None:
    target = tmp_path / "c.zarr"
    for words, code in ((("info", path), 0), (("verify", path), 0), (("copy", path, target), 0), (("diff", path, unlike), 1)):
        result = run(*words, "-q")
        assert (result.exit_code, result.output) == (code, ""), words
    assert target.is_dir()


@pytest.mark.slow
def test_json_holds_the_same_numbers(path: Path, unlike: Path, tmp_path: Path) -> None:
    store = ActivationStore.open(path)
    info = strict(run("info", path, "--json"))
    assert (info["examples"], info["written_blocks"], info["complete"]) == (len(store), 3, True)
    assert [row["array"] for row in info["arrays"]] == list(store.arrays)
    assert info["status"] == {"recorded": 9, "unreadable_image": 1}
    assert info["provenance"] == store.provenance
    checked = strict(run("verify", path, "--json"))
    assert (checked["ok"], checked["complete"], checked["problems"]) == (True, True, [])
    copied = strict(run("copy", path, tmp_path / "c.zip", "--arrays", "residual", "--examples", "0,2", "--json"))
    assert copied["examples"] == [0, 2]
    assert copied["bytes"] == sum(row["bytes"] for row in copied["arrays"])
    compared = strict(run("diff", path, unlike, "--json"))
    assert compared["same"] is False
    largest = {row["array"]: row["largest"] for row in compared["numbers"]}
    assert largest["answer_logits"] is None  # NaN in one of them: infinitely far
    assert largest["n_tokens"] == 0


@pytest.mark.slow
def test_a_repair_is_reported(path: Path, tmp_path: Path) -> None:
    damaged = make_store(tmp_path / "d.zarr")
    (damaged / ActivationStore.open(damaged).layout.array("residual").key(1)).write_bytes(b"damaged")
    found = strict(run("verify", damaged, "--json"))
    assert (found["ok"], found["bad_blocks"], found["repaired_blocks"]) == (False, [1], [])
    result = run("verify", damaged, "--repair", "--json")
    assert result.exit_code == 1
    assert strict(result)["repaired_blocks"] == [1]
    assert strict(run("verify", damaged, "--json"))["written_blocks"] == 2


def test_verbose_shows_long_values_in_full(path: Path, unlike: Path) -> None:
    assert "x" * 97 + "..." in run("info", unlike).output
    assert "x" * 200 in run("info", unlike, "-v").output
    assert "x" * 200 not in run("diff", path, unlike).output
    assert "x" * 200 in run("diff", path, unlike, "-v").output
    assert run("info", unlike, "-q", "-v").exit_code == 2


@pytest.mark.slow
def test_verbose_prints_the_fingerprint(path: Path, tmp_path: Path) -> None:
    line = f"fingerprint {ActivationStore.open(path).fingerprint()}"
    assert run("verify", path, "-v").output.splitlines()[-1] == line
    assert run("copy", path, tmp_path / "c.zarr", "-v").output.splitlines()[-1] == line  # a complete copy is its source
    assert "fingerprint" not in run("verify", path).output
