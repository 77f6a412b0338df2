"""The examples in docstrings of probes and statistics give what they show."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from pathlib import Path

import pytest
from planted import planted_store
from planted_cells import planted_cells

import stratascope.preregistration
import stratascope.probe
import stratascope.stats
from stratascope.preregistration import parse_plan
from stratascope.probe import layer_curve
from stratascope.store import ActivationStore

UNITS = (stratascope.probe, stratascope.stats, stratascope.preregistration)
PLAN = """
title = "Planted"
question = "Where is truth?"
metric = "auroc"
equivalence_margin = 0.1
draws = 200
extraction = { prompt = "true-false" }
stores = [{ name = "original", role = "original" }]
tasks = [{ task = "truth" }]
probes = [{ positions = ["final"] }]
primary = { task = "truth", position = "final" }
"""
MODULES = [
    "stratascope.commands.signature",
    *sorted(module.name for unit in UNITS for module in pkgutil.walk_packages(unit.__path__, f"{unit.__name__}.")),
]


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    folder: Path = tmp_path_factory.mktemp("examples")
    store = ActivationStore.open(
        planted_store(folder / "a.zarr", examples=240, hidden=8, strength=3.0, hashed=True, heads=True, split=True)
    )
    other = planted_store(folder / "b.zarr", examples=240, hidden=8, strength=3.0, hashed=True, images_from=500, seed=1)
    file = folder / "probe-truth-final.zarr.zip"
    layer_curve(store, layers=(1, 2, 3), draws=200).save(file)
    boxed = ActivationStore.open(planted_store(folder / "c.zarr", examples=64, boxes=True))
    patched = ActivationStore.open(planted_cells(folder / "p.zarr", examples=30))
    return {
        "store": store,
        "other_store": ActivationStore.open(other),
        "boxed": boxed,
        "curve_file": file,
        "patched": patched,
        "study_plan": parse_plan(PLAN),
        "study_stores": {"original": store},
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", MODULES)
def test_examples_give_what_they_show(name: str, names: dict[str, object]) -> None:
    module = importlib.import_module(name)
    options = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    assert doctest.testmod(module, extraglobs=names, optionflags=options).failed == 0
