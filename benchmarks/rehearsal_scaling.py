"""What grows how: the measurements of rehearsals of several sizes in one table.

    python benchmarks/rehearsal_scaling.py DIR DIR DIR [--table TABLE.md]

Each DIR is a folder of `rehearsal.py` with its `measured.json` and its store; where the store is gone, `N=DIR` says its number of
examples. A cost that grows with the n-th power of the number of examples has exponent n: the slope of the straight line through the
measured sizes, both axes logarithmic. 1 is twice the cost for twice the examples; what every run pays alike (starting Python, a fixed
number of examples) is nearer to 0. Growth of time is that of processor time: wall time is also that of whatever else the machine did.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rehearsal import Measured

from stratascope.store import ActivationStore

SMALL = 2.0
"""Processor seconds below which a step is its start, and its growth is noise."""
UNKNOWN = "–"


def measurements(text: str) -> tuple[int, dict[str, Measured]]:
    """Number of examples and what was measured, by step, of `DIR` or `N=DIR`."""
    number, equals, folder = text.rpartition("=")
    rows = json.loads((Path(folder) / "measured.json").read_text())
    examples = int(number) if equals else ActivationStore.open(Path(folder) / "vsr.zarr").layout.examples
    return examples, {row["name"]: Measured(**row) for row in rows}


def exponent(sizes: Sequence[int], costs: Sequence[float]) -> float:
    """Slope of log(cost) over log(size) by least squares; NaN with fewer than two different sizes or a cost of nothing."""
    if len(set(sizes)) < 2 or min(costs) <= 0:
        return float("nan")
    x = np.log(np.asarray(sizes, float))
    return float(np.polyfit(x - x.mean(), np.log(costs), 1)[0])


def table(runs: dict[int, dict[str, Measured]]) -> str:
    """Markdown: a row a step; processor time, memory and bytes at every size with their exponents, and the wall time of the largest."""
    sizes = sorted(runs)
    lines = [
        f"At {' / '.join(f'{n:,}' for n in sizes)} examples; n is the exponent of growth.",
        "",
        f"| step | CPU s | n | peak MB | n | made MB | n | wall s at {sizes[-1]:,} |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in max(runs.values(), key=len):
        steps = {n: runs[n][name] for n in sizes if name in runs[n]}
        wall = f"{steps[sizes[-1]].wall:,.1f}" if sizes[-1] in steps else UNKNOWN
        cells = [
            *_cells(sizes, {n: m.cpu for n, m in steps.items()}, 1, least=SMALL),
            *_cells(sizes, {n: m.peak / 1e6 for n, m in steps.items()}, 0),
            *_cells(sizes, {n: m.bytes / 1e6 for n, m in steps.items()}, 0),
        ]
        lines.append(f"| {name} | {' | '.join(cells)} | {wall} |")
    return "\n".join(lines)


def _cells(sizes: list[int], costs: dict[int, float], digits: int, least: float = 0.0) -> tuple[str, str]:
    """The costs at every size, and their exponent where the largest of them is more than `least`."""
    if not any(costs.values()):
        return "", ""
    slope = exponent(list(costs), list(costs.values())) if max(costs.values()) > least else float("nan")
    said = " / ".join(f"{costs[n]:,.{digits}f}" if n in costs else UNKNOWN for n in sizes)
    return said, "" if np.isnan(slope) else f"{round(slope, 1) + 0.0:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", metavar="DIR", help="a rehearsal's folder, or N=DIR")
    parser.add_argument("--table", type=Path, help="write the table here, too")
    options = parser.parse_args()
    text = table(dict(measurements(folder) for folder in options.folders))
    print(text)
    if options.table:
        options.table.write_text(text + "\n")


if __name__ == "__main__":
    main()
