"""What a reader of a curve should know of how its models were fitted."""

from __future__ import annotations

import pandas as pd

_ROUGH = 1e-4
"""Relative gap of an objective that is worth a note."""


def notes_on(folds: pd.DataFrame) -> list[str]:
    """Sentences on a curve's table of folds: optima at the top of the grid, classes never trained on, models not solved exactly."""
    found = []
    top = folds[folds["at_edge"]]
    if len(top):
        found.append(
            f"at layers {_listed(top['layer'])} the best strength is the largest tried, {top['strength'].max():g}, and the loss still "
            "fell there: larger ones may score better; give strengths that go on"
        )
    absent = folds[folds["absent_classes"] != ""]
    if len(absent):
        names = sorted({name for cell in absent["absent_classes"] for name in cell.split(", ")})
        found.append(f"classes {', '.join(names)} are missing from a training fold and never predicted there; raise --minimum")
    rough = folds[folds["gap"] > _ROUGH]
    if len(rough):
        found.append(f"at layers {_listed(rough['layer'])} the objective is up to {rough['gap'].max():.0e} above its minimum (relative)")
    return found


def _listed(layers: pd.Series) -> str:
    return ", ".join(str(layer) for layer in sorted(set(layers)))
