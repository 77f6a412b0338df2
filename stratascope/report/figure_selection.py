"""Which of several results of a kind a figure or a text is about, and what it is called there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from stratascope.errors import NotRecordedError
from stratascope.results.collection import Findings
from stratascope.results.view import Found


@dataclass(frozen=True)
class Choice:
    """Which of several results of a kind a figure shows."""

    task: str | None = None
    """None for truth, or the first there is."""
    position: str | None = None
    """None for the final token, or the first there is."""


FIRST = Choice()
"""Of the task and position that come first."""


def chosen_curve(findings: Findings, choice: Choice, *, needs: Callable[[Found], object] = lambda curve: True) -> Found:
    """The curve of the chosen task and position; NotRecordedError listing what there is."""
    for curve in findings.curves:
        if choice.task in (None, curve.task) and choice.position in (None, curve.position) and needs(curve):
            return curve
    there = ", ".join(c.title for c in findings.curves) or "none"
    wanted = f"{choice.task or 'any task'} at {f'position {choice.position}' if choice.position else 'any position'}"
    raise NotRecordedError(f"expected a layer curve of {wanted} with what the figure needs, found {there}; run `stratascope probe STORE`")


def score_of(curve: Found) -> str:
    """What a reader is told of a curve: accuracy, or R2 of a task of values."""
    return "r2" if curve.attributes.get("targets") else "accuracy"


def by_relation(findings: Findings, choice: Choice) -> Found:
    """Accuracy by relation of the chosen curve; NotRecordedError where there is none."""
    there = [f for f in findings.of("accuracy_by") if f.attributes.get("by") == "relation"]
    order = {(c.task, c.position): k for k, c in enumerate(findings.curves)}
    there.sort(key=lambda f: order.get((f.task, f.position), 99))
    for found in there:
        if choice.task in (None, found.task) and choice.position in (None, found.position):
            return found
    raise NotRecordedError("expected accuracy by relation among the results, found none; run `stratascope probe STORE --tasks truth`")


def advantage_name(found: Found) -> str:
    """Over what: blank images, shuffled labels, ..."""
    over = found.attributes.get("baseline") or {}
    if "of" in over:
        return "the best of its baselines"
    if "layer" in over:
        return "the embeddings" if over["layer"] == 0 else f"layer {over['layer']}"
    control = str(over.get("task", "")).partition(":")[2]
    condition = str(over.get("condition") or "chance")
    names = {"shuffled": "shuffled labels", "control": "the control task"}
    names |= {"blank": "blank images", "mirror": "mirrored images", "shuffled-image": "exchanged images"}
    names |= {"untrained": "untrained weights"}
    return names.get(control or condition, control or condition)
