"""Text on the layers at which interventions act: labels of their kinds, ranges of layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows of a table by column name."""
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]


def event_title(event: Mapping[str, Any]) -> str:
    """Position and label of a row of `events`."""
    return f"{event['position']}, {event_label(event)}"


def event_label(event: Mapping[str, Any]) -> str:
    """Kind of a row of `events` or `use`, with its method or source."""
    kind = str(event["kind"])
    if kind == "patch":
        return f"patch from {event['source']}"
    return f"erase ({'LEACE' if event['method'] == 'leace' else event['method']})" if kind == "erase" else kind


def use_text(event: Mapping[str, Any], use: pd.DataFrame) -> str:
    """The layers used by a row of `events`, as text."""
    rows = use
    for name in ("position", "kind", "method", "source"):
        rows = rows[rows[name] == event[name]]
    layers = rows["layer"].to_numpy()[rows["used"].to_numpy(bool)].tolist()
    return f"used at {layer_text(layers, rows['layer'].tolist())}" if layers else "use not detected at any layer"


def layer_text(layers: Sequence[int], known: Sequence[int]) -> str:
    """Layers as ranges of successive known ones: `layer 6`, `layers 0-3, 5`."""
    runs: list[list[int]] = []
    order = {layer: k for k, layer in enumerate(sorted(known))}
    for layer in sorted(layers):
        if runs and order[layer] == order[runs[-1][-1]] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    text = ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
    return f"layer {text}" if len(layers) == 1 else f"layers {text}"
