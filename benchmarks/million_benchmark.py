"""A store of a million examples in ten thousand blocks, as one is created, resumed, listed and opened: seconds and peak memory of each.

    python benchmarks/million_benchmark.py --examples 1000000 --block 100

Every example has its own id and caption; layout and metadata are those of a 7B model (28 layers, hidden size 3,584, 430 tokens). All blocks
but one are marked, and none has values but the status of its examples: what is measured is what grows with the numbers of examples and
blocks. Each step runs in a process of its own, so that peak memory is its own; its imports are not timed. Processor seconds are those of
all threads; the peak of `create` includes the table and arrays that are given to it.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from stratascope.store import ActivationStore, BlockWriter, StoreLayout, create_store
from stratascope.store.format.shards import encode_chunk, encode_file
from stratascope.store.io.store_files import store_files

TOKENS = 430
RELATIONS = ("left of", "right of", "above", "below", "inside", "under")


def layout_of(options: argparse.Namespace) -> StoreLayout:
    return StoreLayout(
        examples=options.examples, layers=28, hidden=3584, heads=28, tokens=TOKENS, positions=("final", "image"),
        spans=("image", "caption", "final"), choices=("True", "False"), record=frozenset({"residual"}), block=options.block, thumbnail=None,
        computed_dtype="bfloat16",
    )  # fmt: skip


def create(options: argparse.Namespace) -> None:
    n = options.examples
    rng = np.random.default_rng(0)
    kind = rng.integers(0, len(RELATIONS), n)
    rows = pd.DataFrame(
        {
            "id": [f"example-{i:07d}" for i in range(n)],
            "image": [f"{i // 2:012d}.jpg" for i in range(n)],
            "caption": [f"The cat {i % 9973} is {RELATIONS[k]} the bed {i % 7919}." for i, k in enumerate(kind)],
            "relation": np.array(RELATIONS)[kind],
            "label": rng.integers(0, 2, n),
            "subject": "cat",
            "object": "bed",
        }
    )
    spans = np.tile(np.array([[4, 400], [402, 420], [TOKENS - 1, TOKENS]], np.int32), (n, 1, 1))
    tokens = np.full((n, TOKENS), 7, np.int32)
    tokens[:, 402:420] = rng.integers(0, 30_000, (n, 18))
    create_store(
        options.store, layout_of(options), examples=rows, spans=spans, token_ids=tokens, vocabulary={k: f"t{k}" for k in range(30_000)},
        n_tokens=np.full(n, TOKENS), grid=np.tile([18, 22], (n, 1)), position_present=np.ones((n, 2), bool), has_map=np.zeros(n, bool),
        provenance={"model": "simulated"},
    )  # fmt: skip


def mark(options: argparse.Namespace) -> None:
    """Mark all blocks but the last one, as the writer does, with the status of their examples and no other values."""
    layout = layout_of(options)
    status = layout.array("status")
    data = encode_chunk(layout.array("written"), np.ones(1, np.uint8))
    files = store_files(options.store)
    for block in range(layout.blocks - 1):
        recorded = np.ones(len(layout.block_examples(block)), np.uint8)
        files.put_all({status.key(block): partial(encode_file, status, recorded, None)})
        files.mark(block, data)


def resume(options: argparse.Namespace) -> None:
    with BlockWriter(options.store) as writer:
        assert writer.pending() == [layout_of(options).blocks - 1]


def opened(options: argparse.Namespace) -> None:
    store = ActivationStore.open(options.store)
    assert len(store) == options.examples
    assert store.layout.blocks == layout_of(options).blocks


def listed(options: argparse.Namespace) -> None:
    store = ActivationStore.open(options.store)
    assert int(store.written.sum()) == store.layout.blocks - 1


def table(options: argparse.Namespace) -> None:
    store = ActivationStore.open(options.store)
    assert store.examples["id"].iloc[-1] == f"example-{options.examples - 1:07d}"


STEPS: dict[str, Callable[[argparse.Namespace], None]] = {
    "create": create,
    "mark": mark,
    "resume": resume,
    "open": opened,
    "list": listed,
    "table": table,
}
TEXTS = {
    "create": "create, all metadata",
    "mark": "mark all blocks but one",
    "resume": "resume: find the block that is left",
    "open": "open",
    "list": "open and list the blocks that are written",
    "table": "open and read the table of examples",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=1_000_000)
    parser.add_argument("--block", type=int, default=100)
    parser.add_argument("--store", help=argparse.SUPPRESS)
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        begin, processor = time.perf_counter(), time.process_time()
        STEPS[options.step](options)
        taken = [time.perf_counter() - begin, time.process_time() - processor]
        print(json.dumps([*taken, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))
        return
    print(f"{options.examples:,} examples in {-(-options.examples // options.block):,} blocks")
    print("\n| step | seconds | processor seconds | peak memory |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "million.zarr"
        for step, text in TEXTS.items():
            words = [sys.executable, __file__, "--step", step, "--store", str(store), "--examples", str(options.examples)]
            done = subprocess.run([*words, "--block", str(options.block)], capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            seconds, processor, peak = json.loads(done.stdout)
            print(f"| {text} | {seconds:.2f} | {processor:.2f} | {peak:,.0f} MB |", flush=True)
        files = [path.stat().st_size for path in store.rglob("*") if path.is_file()]
        print(f"\n{len(files):,} files, {sum(files) / 1e6:,.0f} MB of metadata, status and markers")


if __name__ == "__main__":
    main()
