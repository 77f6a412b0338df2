"""The command to run next on a store that an extraction filled."""

from __future__ import annotations

import shlex
from pathlib import Path

from stratascope.store import ActivationStore, condition_of, label_kind


def next_step(store: ActivationStore, path: str | Path) -> str:
    """The command to run next on a store, given its completeness, condition, prompt and arrays; `path` is how to name the store."""
    from stratascope.probe.tasks.task import MINIMUM_COUNT

    name, provenance = shlex.quote(str(path)), store.provenance
    if not store.complete:
        left = int((~store.written).sum())
        return f"not complete: {left} of {store.layout.blocks} blocks are missing; other processes or the same command write them"
    if "residual" not in store.layout.record or "final" not in store.layout.positions:
        return f"next: stratascope info {name}"
    if condition_of(provenance) != "original":
        return f"next, as a baseline for the store of the original images: stratascope probe STORE --baseline {name}"
    if (kind := label_kind(provenance)) == "none":
        return f"next: stratascope probe {name} --tasks COLUMN --positions final"
    if kind == "choice":
        task = "choice"
    else:
        # a prompt without the relation asks for it, and the relation of a false caption is not that of the image
        stated = any(part in str(provenance["prompt"].get("text")) for part in ("{caption}", "{relation}"))
        task = "truth" if stated else "relation --only label=1"
        if stated and store.examples["label"].value_counts().reindex([0, 1], fill_value=0).min() < MINIMUM_COUNT:
            return f"next: stratascope view {name}"
    return f"next: stratascope probe {name} --tasks {task} --positions final"
