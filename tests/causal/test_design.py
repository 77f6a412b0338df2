"""Design of interventions: cross-fitting, slots, refusals."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from stratascope.causal import FoldLabels, InterventionDesign, InterventionSettings
from stratascope.errors import InvalidInputError

COUNT, D, LAYERS = 120, 8, (0, 2, 4)


def stood_in(residual: np.ndarray) -> Any:
    """What a design reads of a store: residual (layer, position, example, d)."""
    layout = SimpleNamespace(record={"residual"}, positions=("final", "object"), hidden=D, choices=("True", "False"))

    def read(array: str, *, layer: int, position: str, examples: np.ndarray) -> np.ndarray:
        return residual[LAYERS.index(layer), layout.positions.index(position)][examples].astype(np.float32)

    present = np.ones((COUNT, 2), bool)
    present[:10, 1] = False

    def available(array: str, position: str | None = None) -> np.ndarray:
        return present[:, layout.positions.index(position)] if position else np.ones(COUNT, bool)

    return SimpleNamespace(name="a.zarr", layout=layout, layers=LAYERS, read=read, available=available, position_present=present)


def labels(classes: tuple[str, ...] = ("False", "True"), seed: int = 0) -> FoldLabels:
    rng = np.random.default_rng(seed)
    groups = np.array([f"image{k // 2}" for k in range(COUNT)])
    values = rng.integers(0, len(classes), COUNT) if classes else rng.normal(size=(COUNT, 2))
    return FoldLabels("truth", np.arange(COUNT), np.arange(COUNT) // 2 % 5, groups, values, classes)


def drawn() -> np.ndarray:
    return np.random.default_rng(3).normal(size=(3, 2, COUNT, D))


def test_edits_of_a_fold_do_not_know_its_examples() -> None:
    known, residual = labels(), drawn()
    settings = InterventionSettings(positions=("final", "object"), controls=3, methods=("leace", "means", "pattern", "logistic"))
    before = InterventionDesign(stood_in(residual), known, settings).stacks(2)
    residual[:, :, known.folds == 2] += 5
    after = InterventionDesign(stood_in(residual), known, settings).stacks(2)
    residual[:, :, known.folds == 3] += 5
    others = InterventionDesign(stood_in(residual), known, settings).stacks(2)
    assert before.keys() == {(position, layer) for position in ("final", "object") for layer in LAYERS}
    for key, stack in before.items():
        for name in ("write", "read", "centre", "shift"):
            assert np.array_equal(getattr(stack, name), getattr(after[key], name)), (key, name)
        assert not np.array_equal(stack.centre, others[key].centre)


def test_slots_steer_by_the_distance_of_the_class_means_and_controls_by_its_length() -> None:
    known, residual = labels(), drawn()
    design = InterventionDesign(stood_in(residual), known, InterventionSettings(controls=4, factors=(1.0, 3.0)))
    stack, slots = design.fit("final", 2, 0), design.slots
    assert len(stack.shift) == len(slots) == design.edited
    training = known.folds != 0
    x, y = residual[1, 0].astype(np.float32)[training], known.labels[training]
    delta = x[y == 1].mean(0) - x[y == 0].mean(0)
    steered = slots.index[(slots["kind"] == "steer") & (slots["control"] == "")]
    for slot in steered:
        assert stack.shift[slot] == pytest.approx(slots["factor"][slot] * delta, abs=1e-5)
    random = slots.index[(slots["kind"] == "steer") & (slots["control"] != "")]
    assert len(random) == 12
    assert np.linalg.norm(stack.shift[random], axis=1) == pytest.approx(np.full(12, np.linalg.norm(delta)), rel=1e-5)
    (reflected,) = slots.index[(slots["kind"] == "reflect") & (slots["control"] == "")]
    middle = (x[y == 1].mean(0) + x[y == 0].mean(0)) / 2
    point = middle + 0.7 * delta
    moved = point - (point - stack.centre[reflected]) @ stack.read[reflected] @ stack.write[reflected].T
    assert moved == pytest.approx(middle - 0.7 * delta, abs=1e-4)


@pytest.mark.parametrize("classes", [("on", "under", "near"), ()])
def test_more_classes_and_numbers_are_erased_with_controls_of_the_same_rank(classes: tuple[str, ...]) -> None:
    known = labels(classes)
    design = InterventionDesign(stood_in(drawn()), known, InterventionSettings(kinds=("erase",), controls=2))
    stack, rank = design.fit("final", 4, 1), 2
    sizes = (np.abs(stack.write).max(1) > 0).sum(1)
    assert (sizes == rank).all()
    with pytest.raises(InvalidInputError, match="two classes for steer"):
        InterventionDesign(stood_in(drawn()), known, InterventionSettings(kinds=("steer",)))


def test_tested_examples_are_evenly_spaced_among_those_with_a_position() -> None:
    design = InterventionDesign(stood_in(drawn()), labels(), InterventionSettings(positions=("object",), examples=11))
    assert design.tested.tolist() == list(range(10, 120, 10))
    assert sorted(np.concatenate([numbers for _, numbers in design.folds()]).tolist()) == design.tested.tolist()
    windows = InterventionDesign(stood_in(drawn()), labels(), InterventionSettings(layers=(2,))).windows
    assert windows == [(2, 2)]
    with pytest.raises(InvalidInputError, match="`window` of at most 3 successive layers"):
        InterventionDesign(stood_in(drawn()), labels(), InterventionSettings(window=2))  # layers 0, 2, 4 are no neighbours


def test_curves_that_disagree_are_refused() -> None:
    table = pd.DataFrame({"example": [0, 1], "group": ["a", "b"], "fold": [0, 1], "label": [0, 1]})
    head = {"targets": [], "classes": ["False", "True"]}
    found = FoldLabels.of_curves("truth", [("a", table, head), ("b", table.iloc[:1], head)])
    assert found.examples.tolist() == [0, 1]
    with pytest.raises(InvalidInputError, match="found example 0 in two folds"):
        FoldLabels.of_curves("truth", [("a", table, head), ("b", table.assign(fold=1), head)])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"kinds": ("erase", "delete")}, "`kinds` among erase"),
        ({"factors": (0.0,)}, "`factors` above 0"),
        ({"window": 0}, "`window` of at least 1"),
        ({"positions": ()}, "at least one of `kinds` and of `positions`"),
    ],
)
def test_settings_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        InterventionSettings(**given)
