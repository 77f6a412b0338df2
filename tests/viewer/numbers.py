"""Numbers of the page, as it gives them for download."""

from __future__ import annotations

import csv
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.viewer.browser import Browser

Row = dict[str, str]


def table(browser: Browser) -> list[Row]:
    """Lines of the CSV."""
    with browser.downloaded(lambda: browser.keys("v")).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def numbers(browser: Browser, *, layered: bool = True) -> dict[int, list[Row]]:
    """Rows of tokens in order, by layer; under 0 where there is one map for all layers."""
    out: dict[int, dict[int, Row]] = {}
    for row in table(browser):
        out.setdefault(int(row["layer"]) if layered else 0, {})[int(row["token"])] = row
    return {layer: [by[k] for k in sorted(by)] for layer, by in out.items()}


def weights(rows: list[Row]) -> NDArray[Any]:
    """(token,) weights."""
    return np.array([float(row["weight"]) for row in rows])
