"""Answers as a command does them: computed, saved, and said in a few words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stratascope.workflow.telling import part_lines, result_path, told

if TYPE_CHECKING:
    from stratascope.store import ActivationStore


def save_answers(store: ActivationStore, folder: Path, *, only: Sequence[str] = ()) -> str:
    """How often the model is right and how sure it is: saved, and said over all relations and for the best and the worst."""
    from stratascope.analysis import answer_confidence

    found = answer_confidence(store, only=only)
    found.save(result_path(folder, "answers", *only))
    rows = found.table[found.table["relation"] != ""].sort_values("accuracy", kind="stable")
    chosen = [found.table.iloc[0]] + ([rows.iloc[-1], rows.iloc[0]] if len(rows) > 1 else [])
    lines = [
        f"{row['relation'] or 'all relations':<16} right {row['accuracy']:6.1%} [{row['accuracy_low']:.1%}, {row['accuracy_high']:.1%}] "
        f"of {row['examples']:,}, confidence {row['confidence']:.2f}"
        for row in chosen
    ]
    lines[:0] = part_lines(store, only, len(found.answers))
    if found.attributes["condition"].startswith("untrained"):
        lines.insert(0, "of untrained weights, not of the model:")
    return told(folder, lines)
