"""Targets of attention knockouts: the tokens of each span, box and group of image cells."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stratascope.analysis.box_cells import box_tokens
from stratascope.errors import InvalidInputError, NotRecordedError
from stratascope.store import ActivationStore
from stratascope.store.format.prompt_parts import IMAGE_POSITION, JOINED, PARTS, grouped_cells, parts_of

CELL = re.compile(r"cell_(\d+)_(\d+)")

TARGET_LABELS = {"cells": "groups of image cells", "spans": "parts of the prompt"}
"""Kind of target -> its label in figures and texts."""
MODE_LABELS = {"final": "masked for the final token", "later": "masked for all later tokens"}
"""Mode of a knockout -> its label: for which tokens the target is masked. Attribution methods are compared with these modes; in the
others a group of tokens cannot attend to the target."""


def setting_text(setting: Mapping[Any, Any]) -> str:
    """Targets, mode and window of a knockout in words.

    Examples
    --------
    >>> setting_text({"targets": "spans", "mode": "later", "window": "0-5"})
    'parts of the prompt masked for all later tokens in blocks 0-5'
    """
    targets, mode = TARGET_LABELS.get(setting["targets"], setting["targets"]), MODE_LABELS.get(setting["mode"], setting["mode"])
    return f"{targets} {mode} in blocks {setting['window']}"


def kind_of_target(name: str) -> str:
    """Kind of a target: `cells` (group of image cells), `boxes` (gold box) `spans` (part of the prompt) or
    `joined` (whole span that takes in several parts, or one of several images).

    Raises
    ------
    InvalidInputError
        For another name.
    """
    if CELL.fullmatch(name):
        return "cells"
    if name in ("subject_box", "object_box"):
        return "boxes"
    if name in PARTS:
        return "spans"
    if name in JOINED or IMAGE_POSITION.fullmatch(name):
        return "joined"
    raise InvalidInputError(
        f"expected a target of {', '.join((*PARTS, *JOINED))}, image_1, subject_box, object_box or cell_ROW_COLUMN, found {name!r}"
    )


def target_tokens(store: ActivationStore, example: int, targets: Sequence[str]) -> NDArray[np.bool_]:
    """(target, token) tokens of the example that belong to each target; none where it is absent, never the final token."""
    number = np.array([example])
    tokens = int(store.n_tokens[example])
    parts = parts_of(store, number)[0, :tokens]
    try:
        boxes = box_tokens(store, number)[0, :2, :tokens]
    except NotRecordedError:
        boxes = np.zeros((2, tokens), bool)
    groups = cell_groups(store, example)
    out = np.zeros((len(targets), tokens), bool)
    for k, name in enumerate(targets):
        kind = kind_of_target(name)
        if kind == "spans":
            out[k] = parts == PARTS.index(name)
        elif kind == "joined":
            start, stop = store.spans[name][example] if name in store.spans else (0, 0)
            out[k] = (np.arange(tokens) >= start) & (np.arange(tokens) < stop)
        elif kind == "boxes":
            out[k] = boxes[("subject_box", "object_box").index(name)]
        else:
            out[k] = groups.get(name, out[k])
    out[:, -1] = False
    return out


def cell_groups(store: ActivationStore, example: int) -> dict[str, NDArray[np.bool_]]:
    """Name -> (token,) of each group of image cells; empty without an image."""
    start = int(store.spans["image"][example, 0]) if "image" in store.spans else -1
    if start < 0:
        return {}
    out: dict[str, NDArray[np.bool_]] = {}
    for name, cells in grouped_cells(*map(int, store.grid[example])).items():
        mask = np.zeros(int(store.n_tokens[example]), bool)
        mask[start + cells] = True
        out[name] = mask
    return out
