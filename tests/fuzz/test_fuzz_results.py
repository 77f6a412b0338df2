"""Results whose attributes, tables or arrays were changed and that were given the digest they then have: drawn, or refused in one line."""

from __future__ import annotations

import json
import math
import re
from dataclasses import fields, replace
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import pytest
from edits import changed_json, digested, result_of, rezipped, some, unpacked
from hypothesis import given
from hypothesis import strategies as st

from stratascope.errors import StoreError
from stratascope.probe.study.codelength_study import FinishedCodes
from stratascope.probe.study.layer_cache import FinishedLayers
from stratascope.probe.validation.out_of_fold import OutOfFold
from stratascope.report.figure_registry import FIGURES
from stratascope.results.file import read_file
from stratascope.results.registry import load_result, result_kinds, save_result

RECORDED = "residual,attention_rows,attention_maps,head_outputs,head_logits,value_logits,value_norms,vision_residual,vision_output,knockout"
PROBE = ("probe", "--layers", "3,4", "--folds")
CACHES = {cache.kind: cache for cache in (FinishedLayers, FinishedCodes)}
"""Kind of a finished layer -> the class that reads it."""
ALL = (
    [*PROBE, "3", "--tasks", "truth", "--positions", "final,subject", "--controls", "shuffled", "--transfer", "--measures", "calibration"],
    ["heads"],
    [*PROBE, "3", "--tasks", "truth", "--array", "head_outputs"],
    [*PROBE, "2", "--tasks", "relation", "--positions", "final", "--strengths", "0.01", "--minimum", "8", "--measures", "mdl"],
    [*PROBE, "3", "--tasks", "truth", "--positions", "object", "--measures", "sizes", "--sizes", "64"],
    ["answers"],
    ["share"],
    ["rollout", "--examples", "0,1"],
    ["flow", "--examples", "0,1"],
    ["overlap"],
    ["attribution"],
    ["faithfulness"],
    ["knockouts"],
    ["lens"],
    ["pca"],
    ["pointing"],
    ["entanglement"],
    ["patches", "--cells", "36", "--draws", "100"],
    ["explain", "0"],
)
"""What makes a result of nearly every kind from one store."""
INTERVENE = ("--layers", "3,4", "--examples", "12", "--controls", "2", "--factors", "1", "--kinds", "erase,reflect,steer,patch")
PLAN = """
title = "Truth"
question = "Is truth decodable?"
metric = "auroc"
equivalence_margin = 0.05
folds = 3
draws = 200
controls = ["shuffled"]
control_draws = 2
extraction = { prompt = "true-false", record = ["residual"] }
stores = [{ name = "s", role = "original" }, { name = "mirror", role = "transfer", condition = "mirror" }]
tasks = [{ task = "truth" }]
probes = [{ positions = ["final", "subject"], layers = [0, 3, 4] }]
primary = { task = "truth", position = "final", baseline = "all", hypothesis = "It is." }
"""


@pytest.fixture(scope="module")
def made(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store in which everything is recorded; its results lie beside it."""
    pytest.importorskip("torch")
    path = tmp_path_factory.mktemp("made") / "s.zarr"
    files = ["--examples", str(scenes / "scenes.jsonl"), "--images", str(scenes / "images"), "--boxes", str(scenes / "instances.json")]
    few = ["--limit", "64", "--knockouts", "12", "--knockout-window", "6", "--patches", "24", "--record", f"{RECORDED},vision_change"]
    assert result_of("extract", "--model", "demo", *files, *few, "--out", str(path)).exit_code == 0
    rest = path.with_name("rest.jsonl")
    rest.write_text("\n".join((scenes / "scenes.jsonl").read_text().splitlines()[64:]))
    other = ["--examples", str(rest), *files[2:], "--record", "residual", "--out", str(path.with_name("other.zarr"))]
    assert result_of("extract", "--model", "demo", *other).exit_code == 0
    tested = [*PROBE, "3", "--tasks", "truth", "--positions", "subject", "--test-on", str(path.with_name("other.zarr")), "--transfer"]
    for command, *words in (*ALL, tested):
        out = ["-o", str(path.with_name("r") / "page.html")] if command == "explain" else ["--out", str(path.with_name("r"))]
        found = result_of(command, str(path), *words, *out)
        assert found.exit_code == 0, (command, found.stderr)
    results, mirror, small = str(path.with_name("r")), str(path.with_name("mirror.zarr")), str(path.with_name("small.zarr"))
    path.with_name("plan.toml").write_text(PLAN)
    for words in (
        ["extract", "--model", "demo", *files, "--limit", "64", "--condition", "mirror", "--record", "residual", "--out", mirror],
        ["intervene", str(path), results, "--data", *files[1:], *INTERVENE, "--source", mirror],
        ["causal", results],
        ["study", str(path.with_name("plan.toml")), str(path.parent), "--out", results],
        # at this resolution there are errors to predict
        ["extract", "--model", "demo", *files, "--max-pixels", "20000", "--record", "attention_rows", "--out", small],
        ["overlap", small, "--out", results],
    ):
        found = result_of(*words)
        assert found.exit_code == 0, (words, found.stderr)
    return path


@pytest.fixture(scope="module")
def files(made: Path) -> list[Path]:
    return sorted(made.with_name("r").glob("*.zarr.zip"))


@pytest.fixture(scope="module")
def finished(made: Path) -> list[Path]:
    """Layers by which a probe goes on where it stopped."""
    return sorted((made.with_name("r") / "layers").glob("*.zip"))


@pytest.mark.slow
def test_results_hold_what_their_kinds_declare(files: list[Path], finished: list[Path]) -> None:
    assert {load_result(path).kind for path in files} == set(result_kinds())
    assert {read_file(path).kind for path in finished} == set(CACHES)


def test_what_is_kept_of_a_layer_is_declared(finished: list[Path]) -> None:
    assert set(FinishedLayers.schema.arrays) == {f"*.{field.name}" for field in fields(OutOfFold)}
    for path in finished:
        held = read_file(path)
        for name in held.arrays:
            assert any(fnmatchcase(name, pattern) for pattern in CACHES[held.kind].schema.arrays), name


@pytest.mark.slow
@some(40)
@given(data=st.data())
def test_finished_layers_with_missing_or_other_arrays_are_refused(data: st.DataObject, finished: list[Path], place: Path) -> None:
    path = data.draw(st.sampled_from([next(p for p in finished if p.name.startswith(name)) for name in ("layer-", "codes-")]))
    held = read_file(path)
    arrays = dict(held.arrays)
    name = data.draw(st.sampled_from(sorted(arrays)))
    dims, values = arrays.pop(name)
    other = data.draw(st.sampled_from(["absent", "text", "flat", "renamed"]))
    if other == "text":
        arrays[name] = (dims, np.full(values.shape, "a", dtype=object))
    if other == "flat":
        arrays[name] = ((*dims, "more"), values[..., None])
    if other == "renamed":
        arrays[name] = (("elsewhere", *dims[1:]), values)
    save_result(place / path.name, replace(held, arrays=arrays))
    schema = CACHES[held.kind].schema
    patterns = [pattern for pattern in schema.arrays if fnmatchcase(name, pattern)]  # named where no array is like it
    with pytest.raises(StoreError, match="|".join(map(re.escape, (name, *patterns)))):
        read_file(place / path.name, schema, held.kind)


def read_everywhere(path: Path, made: Path) -> None:
    """By the figures of its kind and by a report: it is drawn, or refused in one line."""
    out = str(path.with_name("out"))
    kind = json.loads(unpacked(path)["zarr.json"])["attributes"]["kind"]
    for name, figure in FIGURES.items():
        if figure.kind == kind:
            result_of("figure", name, str(path), "-o", f"{out}.svg")
    result_of("report", str(made), str(path), "-o", f"{out}.html")
    if kind == "score_grid":
        result_of("heads", str(made), "--probe", str(path), "--out", out)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("edited")


@pytest.mark.slow
@some(40)
@given(data=st.data())
def test_results_with_changed_attributes(data: st.DataObject, files: list[Path], made: Path, place: Path) -> None:
    path = data.draw(st.sampled_from(files))
    content = unpacked(path)
    root = json.loads(content["zarr.json"])
    root["attributes"]["attributes"] = changed_json(root["attributes"]["attributes"], data)
    content["zarr.json"] = json.dumps(root).encode()
    read_everywhere(rezipped(digested(content), place / path.name), made)


@pytest.mark.slow
@some(30)
@given(data=st.data())
def test_results_with_changed_or_missing_tables_and_arrays(data: st.DataObject, files: list[Path], made: Path, place: Path) -> None:
    path = data.draw(st.sampled_from(files))
    content = unpacked(path)
    name = data.draw(st.sampled_from(sorted(name for name in content if name.endswith("/zarr.json"))))
    if data.draw(st.booleans()):
        content = {key: value for key, value in content.items() if not key.startswith(name.removesuffix("zarr.json"))}
    else:
        content[name] = json.dumps(changed_json(json.loads(content[name]), data)).encode()
    read_everywhere(rezipped(digested(content), place / path.name), made)


@pytest.mark.slow
def test_results_with_a_missing_column_are_refused_by_its_name_or_read_without_it(files: list[Path], made: Path, place: Path) -> None:
    refused = set()
    seen = set()
    for path in files:
        held = load_result(path)
        for name, table in held.tables.items():
            for column in table.columns:
                where = (held.kind, name, column)
                if where in seen:
                    continue
                seen.add(where)
                save_result(place / path.name, replace(held, tables={**held.tables, name: table.drop(columns=column)}))
                try:
                    load_result(place / path.name)
                except StoreError as error:
                    said = str(error)
                    assert re.search(rf"{re.escape(path.name)}: .*'{re.escape(column)}'.* table '{name}'", said), said
                    refused.add(where)
                    continue
                read_everywhere(place / path.name, made)
    assert {("layer_curve", "folds", "gap"), ("layer_curve", "events", "metric"), ("layer_curve", "examples", "label")} <= refused


NUMBERS = (0, -1, 1, 7, 2**31, 2**62, -(2**62))
VALUES = {
    "i": NUMBERS,
    "u": NUMBERS,
    "f": (*NUMBERS, math.nan, math.inf, 1e300, -1e300, 5e-324),
    "b": (True, False),
    "O": ("", "x", "a" * 3000, "0-99999", "<b>", "cell_0_0", "$x$"),
}


@pytest.mark.slow
@some(60)
@given(data=st.data())
def test_results_with_other_values(data: st.DataObject, files: list[Path], made: Path, place: Path) -> None:
    """Of the kinds declared, in the places declared: one cell, a whole column or array, or fewer rows."""
    path = data.draw(st.sampled_from(files))
    found = load_result(path)
    tables, arrays = dict(found.tables), dict(found.arrays)
    name = data.draw(st.sampled_from(sorted([*tables, *arrays])))
    if name in tables:
        table = tables[name].copy()
        column = data.draw(st.sampled_from(sorted(table.columns)))
        values = np.array(table[column].to_numpy(), object if table[column].dtype.kind not in "iufb" else None)
        if data.draw(st.integers(0, 9)) == 0:
            tables[name] = table.iloc[: data.draw(st.integers(0, 1))]
        else:
            table[column] = other(values, data)
            tables[name] = table
    else:
        dims, values = arrays[name]
        arrays[name] = (dims, other(np.array(values), data))
    save_result(place / path.name, replace(found, tables=tables, arrays=arrays))
    read_everywhere(place / path.name, made)


def other(values: np.ndarray, data: st.DataObject) -> np.ndarray:
    """The array with something else in one place, or in all."""
    if not values.size:
        return values
    where = data.draw(st.integers(0, values.size - 1)) if data.draw(st.booleans()) else slice(None)
    new = data.draw(st.sampled_from(VALUES.get(values.dtype.kind, VALUES["O"])))
    if values.dtype.kind in "iu":
        new = int(np.clip(new, np.iinfo(values.dtype).min, np.iinfo(values.dtype).max))
    with np.errstate(over="ignore"):
        values.reshape(-1)[where] = new
    return values
