"""How often the intervals that are printed hold an expectation that is known exactly, and how often they are refused.

    python benchmarks/interval_simulation.py                 # about six minutes on one core
    python benchmarks/interval_simulation.py means heads     # some kinds

Prints the tables of docs/benchmarks.md: for each kind of interval and shape of data, the share of data sets in which it covers (of those in
which it is given), in percent. In brackets, where any are: the share that is refused, and the share of all data sets in which an interval
is given and misses. Data sets are those of tests/analysis/simulated_intervals.py. Interventions: intervention_simulation.py; trained
probes and claims about layers: probe_simulation.py.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.append(str(Path(__file__).parents[1] / "tests" / "analysis"))

import simulated_intervals as simulated
from simulated_intervals import Coverage, coverage

SKEWS = ((0.5, 0.3), (1.0, 0.3), (1.0, 1.0), (1.5, 0.3), (1.5, 1.5), (0.3, 1.5), (2.0, 1.0))
KINDS: dict[str, tuple[Callable[..., Any], tuple[int, ...], float, list[tuple[str, dict[str, Any]]]]] = {
    "means": (simulated.means, (32, 48, 64, 128), 1.0, [(shape, {"shape": shape}) for shape in simulated.SHAPES]),
    "correlations": (simulated.means, (8, 16, 32), 1.0, [("bounded", {"shape": "normal", "bounded": True})]),
    "ratios": (simulated.ratios, (24, 40, 120), 2.0, [(f"{a:g} / {b:g}", {"skew": a, "beside": b}) for a, b in SKEWS]),
    "shares": (simulated.shares, (20, 40, 100), 1.0, [(f"{share:g}", {"share": share}) for share in (0.6, 0.9, 0.97)]),
    "heads": (simulated.heads, (20, 40, 100), 1.0, [(f"AUROC {a:g}", {"auroc": a}) for a in (0.5, 0.7, 0.9, 0.97)]),
    "scores": (simulated.scores, (20, 40, 100), 0.5, [(f"AUROC {a:g}", {"auroc": a}) for a in (0.55, 0.75, 0.95)]),
    "cells": (simulated.cells, (20, 40, 100), 0.35, [(f"AUROC {a:g}", {"auroc": a}) for a in (0.55, 0.75, 0.95)]),
    "others": (simulated.others, (24, 40, 100), 1.0, [("", {})]),
}
"""Name -> data sets, numbers of images, repeats in units of `--repeats`, and shapes by name."""


def rows_of(kind: str, repeats: int) -> Iterator[str]:
    """Rows of the table of a kind: shape, interval, and a column for each number of images."""
    simulate, images, scale, shapes = KINDS[kind]
    for name, options in shapes:
        found = [coverage(simulate, round(repeats * scale), images=count, **options) for count in images]
        for interval in found[0]:
            yield " | ".join([f"| {name}", interval, *(_text(each[interval]) for each in found)]) + " |"


def _text(found: Coverage) -> str:
    if found.refused == 0:
        return f"{100 * found.covered:.1f}"
    covered = f"{100 * found.covered:.1f}" if found.refused < 1 else "none"
    return f"{covered} ({100 * found.refused:.0f}, {100 * found.missed:.1f})"


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"of {', '.join(KINDS)}; all by default")
    parser.add_argument("--repeats", type=int, default=300)
    given = parser.parse_args()
    if unknown := set(given.kinds) - set(KINDS):
        parser.error(f"expected kinds of {', '.join(KINDS)}, found {', '.join(sorted(unknown))}")
    for kind in given.kinds or KINDS:
        print(f"\n{kind}\n\n| shape | interval | " + " | ".join(f"{count} images" for count in KINDS[kind][1]) + " |")
        print("|---" * (2 + len(KINDS[kind][1])) + "|", flush=True)
        for row in rows_of(kind, given.repeats):
            print(row, flush=True)


if __name__ == "__main__":
    main()
