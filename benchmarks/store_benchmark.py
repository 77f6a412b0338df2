"""The store beside what people write activations into today: time, bytes, one layer of all examples, one example in all layers.

    python benchmarks/store_benchmark.py --examples 1024 --layers 28 --hidden 3584 --folder DIR

Everything is written block by block, as a model yields it, and read in the same process with warm caches. The residuals have the heavy
tails and outlier channels of Qwen2.5-VL and were computed in bfloat16. Times are processor seconds of the whole process (user and
system, all threads) unless they say wall; ratios compare formats within this one run. Formats that write a file or a row for each
example are timed on `--slow-examples` and scaled up in proportion.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from store_formats import FORMATS, Format, Size, residuals

REPEATS = 7


def timed(task: Callable[[], object], repeats: int = 1) -> tuple[float, float]:
    """Median processor seconds and wall seconds."""
    found = []
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        task()
        found.append((time.process_time() - cpu, time.perf_counter() - wall))
    return statistics.median(c for c, _ in found), statistics.median(w for _, w in found)


def measure(entry: Format, size: Size, root: Path) -> dict[str, float]:
    """Times for all examples, bytes an example."""
    blocks = residuals(size)
    folder = root / entry.name.replace(" ", "_")
    folder.mkdir()
    cpu, wall = timed(lambda: entry.write(folder, size, blocks))
    stored = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    middle = size.layers // 2
    expected = np.concatenate([values[middle] for _, values in blocks])
    first = timed(lambda: entry.layer(entry.opened(folder), size, middle))
    handle = entry.opened(folder)
    if not np.array_equal(entry.layer(handle, size, middle), expected):
        raise SystemExit(f"{entry.name} did not give back what was written")
    layer = timed(lambda: entry.layer(handle, size, middle), REPEATS)
    example = timed(lambda: entry.example(handle, size, size.examples // 2), REPEATS)
    handle = None  # closes it
    shutil.rmtree(folder)
    return {"write": cpu, "write_wall": wall, "bytes": stored / size.examples, "first": first[0], "layer": layer[0], "example": example[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=1024)
    parser.add_argument("--slow-examples", type=int, default=64)
    parser.add_argument("--layers", type=int, default=28, help="decoder blocks; the store holds one layer more")
    parser.add_argument("--hidden", type=int, default=3584)
    parser.add_argument("--folder", type=Path, default=None, help="where to write; a real disk, or flushing means nothing")
    options = parser.parse_args()
    rows = []
    for entry in FORMATS:
        count = min(options.slow_examples, options.examples) if entry.slow else options.examples
        size = Size(count, options.layers + 1, options.hidden)
        with tempfile.TemporaryDirectory(dir=options.folder) as root:
            measure(entry, Size(2, 2, 8), Path(root))  # imports and first uses are nobody's cost
            found = measure(entry, size, Path(root))
        scale = options.examples / count
        rows.append((entry, {k: v * (scale if k in ("write", "write_wall", "first", "layer") else 1) for k, v in found.items()}))
    own, plain = rows[0][1], rows[2][1]
    raw = 2 * (options.layers + 1) * options.hidden
    shape = f"{options.examples} examples, {options.layers} + 1 layers of {options.hidden}"
    print(f"{shape}, on {os.cpu_count()} cores; times relative to the store.\n")
    columns = "write, CPU | write, wall | examples/s | disk, of raw bfloat16 | first layer, opening included | one layer | one example"
    print(f"| format | {columns} | |")
    print("|---|---|---|---|---|---|---|---|---|")
    for entry, found in rows:
        print(
            f"| {entry.name} | {found['write'] / own['write']:.2g} | {found['write_wall'] / own['write_wall']:.2g} "
            f"| {options.examples / found['write_wall']:,.0f} | {found['bytes'] / raw:.2f} | {found['first'] / own['first']:.2g} "
            f"| {found['layer'] / own['layer']:.2g} "
            f"| {found['example'] / own['example']:.2g} | {entry.note} |"
        )
    floats = options.examples * options.hidden * 4 / 1e6
    print(
        f"\nOne layer of all examples ({floats:.0f} MB of float32) takes the store {own['layer']:.4f} CPU seconds, "
        f"{own['layer'] / plain['layer']:.1f} times np.load of the same floats; zarr-python on the same files "
        f"{rows[1][1]['layer'] / plain['layer']:.1f} times."
    )


if __name__ == "__main__":
    main()
