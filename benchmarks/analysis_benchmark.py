"""Share, rollout and flow beside what people would compute them with.

    python benchmarks/analysis_benchmark.py --folder DIR [--maps real.npz] [--networkx 1]

The shapes are those of Qwen2.5-VL-7B on a VSR photo: 28 layers, 28 heads, 430 tokens. Maps are drawn with a first token that takes most
of the attention, neighbours, and a heavy tail of tokens that every row looks at; `--maps` takes a real decoder's maps (array `maps`
(layer, token, token) in an npz) for the flow as well. Times are wall seconds of one thread, the best of several, but for those of whole
stores, which are single passes with warm caches.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from stratascope.analysis import attention_share, flow, rollout, rollout_examples, rollout_packed
from stratascope.analysis.flow import UNIT, flow_capacities
from stratascope.store import ActivationStore, BlockWriter, StoreLayout, create_store, encode_maps

LAYERS, HEADS, TOKENS = 28, 28, 430
GRID = (18, 20)
GENERAL_UNIT = 2**30
"""scipy's capacities are 32-bit; it does not say so when they overflow."""


def drawn_maps(layers: int, tokens: int, seed: int = 0) -> np.ndarray:
    """(layer, query, key) causal maps whose rows sum to 1."""
    rng = np.random.default_rng(seed)
    wanted = rng.normal(size=(layers, 1, tokens)) * 1.2
    near = -np.abs(np.arange(tokens)[:, None] - np.arange(tokens)) / rng.uniform(2, 40, (layers, 1, 1))
    logits = rng.normal(size=(layers, tokens, tokens)) + wanted + 2 * np.exp(near)
    logits[:, :, 0] += rng.uniform(5, 9, (layers, 1))
    weights = np.exp(logits) * np.tri(tokens)
    return np.asarray(weights / weights.sum(-1, keepdims=True))


def drawn_rows(rng: np.random.Generator, examples: int) -> np.ndarray:
    """(layer, example, head, token) float16 rows."""
    weights = rng.gamma(0.2, size=(LAYERS, examples, HEADS, TOKENS)).astype(np.float32) + 1e-6
    weights[..., 0] += weights.sum(-1)
    return np.asarray(weights / weights.sum(-1, keepdims=True), np.float16)


def matrix_product(maps: np.ndarray) -> np.ndarray:
    """The rollout as everybody writes it: the whole matrix of every layer, of which one row is looked at."""
    eye, whole = np.eye(maps.shape[-1]), None
    for layer in maps:
        mixed = layer + eye
        mixed /= mixed.sum(-1, keepdims=True)
        whole = mixed if whole is None else mixed @ whole
    assert whole is not None
    return np.asarray(whole[-1])


def seconds(work: Callable[[], Any], repeats: int = 5) -> float:
    """The best of several runs."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def compare_rollout(maps: np.ndarray) -> None:
    packed = encode_maps(maps)
    ours, theirs = seconds(lambda: rollout(maps), 20), seconds(lambda: matrix_product(maps), 3)
    np.testing.assert_allclose(rollout(maps)[0], matrix_product(maps), atol=1e-12)
    stored = seconds(lambda: rollout_packed(packed), 20)
    print(f"| rollout, one example | {ours * 1e3:.1f} ms | matrix product in numpy | {theirs * 1e3:.0f} ms | {theirs / ours:.0f} |")
    print(f"| rollout from packed maps, one example | {stored * 1e3:.1f} ms | the same | {theirs * 1e3:.0f} ms | {theirs / stored:.0f} |")


def compare_flow(maps: np.ndarray, name: str, tokens_for_networkx: int, tokens_for_scipy: int = 8) -> None:
    flow(maps[:2, :8, :8] / maps[:2, :8, :8].sum(-1, keepdims=True))  # compile
    found = flow(maps)
    layers, count = maps.shape[:2]
    ours = seconds(lambda: flow(maps), 3)
    bound = seconds(lambda: flow(maps, tokens=()))
    shape = f"{layers} layers, {count} tokens"
    other = (found.cut == "other").mean()
    print(
        f"| flow to all tokens, {name} ({shape}) | {ours:.2f} s | | | |\n"
        f"| its closed-form bound, exact for {found.certified.mean():.0%} (limited neither at source nor target: {other:.0%}) "
        f"| {bound * 1e3:.0f} ms | | | |"
    )
    picked = np.linspace(0, count - 1, tokens_for_scipy).astype(int)
    each, off = scipy_flow(maps, picked, found.value)
    print(
        f"| flow, a token, {name} | {ours / count * 1e3:.2f} ms | scipy, Dinic (off by at most {off:.0e}) | {each * 1e3:.0f} ms "
        f"| {each * count / ours:.0f} |"
    )
    if tokens_for_networkx:
        picked = np.linspace(0, count - 1, tokens_for_networkx + 2).astype(int)[1:-1]
        each = networkx_flow(maps, picked, found.value)
        print(
            f"| flow, a token, {name} | {ours / count * 1e3:.2f} ms | networkx, preflow-push | {each:.1f} s | {each * count / ours:,.0f} |"
        )


def scipy_flow(maps: np.ndarray, tokens: np.ndarray, found: np.ndarray) -> tuple[float, float]:
    """Seconds a token, the graph given, and how far the values are from ours."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import maximum_flow

    capacities = flow_capacities(maps)
    count = maps.shape[-1]
    layer, upper, lower = np.nonzero(capacities)
    values = np.rint(capacities[layer, upper, lower] / UNIT * GENERAL_UNIT).astype(np.int32)
    size = (len(maps) + 1) * count
    graph = csr_array((values, ((layer + 1) * count + upper, layer * count + lower)), shape=(size, size))
    start = time.perf_counter()
    flows = [maximum_flow(graph, size - 1, int(token)).flow_value / GENERAL_UNIT for token in tokens]
    return (time.perf_counter() - start) / len(tokens), float(np.abs(np.array(flows) - found[tokens]).max())


def networkx_flow(maps: np.ndarray, tokens: np.ndarray, found: np.ndarray) -> float:
    """Seconds a token, the graph given."""
    import networkx

    graph = networkx.DiGraph()
    capacities = flow_capacities(maps)
    for layer, upper, lower in zip(*np.nonzero(capacities), strict=True):
        graph.add_edge((layer + 1, upper), (layer, lower), capacity=int(capacities[layer, upper, lower]))
    start = time.perf_counter()
    for token in tokens:
        value = networkx.maximum_flow_value(graph, (len(maps), maps.shape[1] - 1), (0, token))
        assert value == round(float(found[token]) * UNIT), "the two solvers differ"
    return (time.perf_counter() - start) / len(tokens)


def build_store(path: Path, examples: int) -> ActivationStore:
    """A store of rows and maps of a 7B model's shape; eight drawn examples, repeated."""
    layout = StoreLayout(
        examples=examples, layers=LAYERS, hidden=8, heads=HEADS, tokens=TOKENS, positions=("final",),
        spans=("image", "caption", "final"), choices=("True", "False"), record=frozenset({"attention_rows", "attention_maps"}),
        thumbnail=None,
    )  # fmt: skip
    image, caption, final = (14, 14 + GRID[0] * GRID[1]), (390, 400), (TOKENS - 1, TOKENS)
    table = pd.DataFrame({"id": [f"e{k}" for k in range(examples)], "image": [f"{k}.jpg" for k in range(examples)]})
    facts = {"caption": "The cat is under the bed.", "relation": "under", "label": 1, "subject": "cat", "object": "bed", "split": "test"}
    create_store(
        path, layout, examples=table.assign(**facts, image_width=640, image_height=480),
        spans=np.tile(np.array([image, caption, final], np.int32), (examples, 1, 1)),
        token_ids=np.zeros((examples, TOKENS), np.int32), vocabulary={0: "x"}, n_tokens=np.full(examples, TOKENS, np.int32),
        grid=np.tile(np.array(GRID, np.int32), (examples, 1)), position_present=np.ones((examples, 1), bool),
        has_map=np.ones(examples, bool), provenance={"condition": "original"},
    )  # fmt: skip
    packed = [encode_maps(drawn_maps(LAYERS, TOKENS, seed)) for seed in range(8)]
    rng = np.random.default_rng(0)
    with BlockWriter(path) as writer:
        for block in range(layout.blocks):
            numbers = layout.block_examples(block)
            arrays = {
                "attention_rows": drawn_rows(rng, len(numbers)),
                "attention_maps": np.stack([packed[k % 8] for k in numbers]),
                "answer_logits": np.zeros((len(numbers), 2), np.float32),
                "status": np.ones(len(numbers), np.uint8),
            }
            writer.write(block, arrays)
    return ActivationStore.open(path)


def whole_stores(folder: Path, examples: int) -> None:
    store = build_store(folder / "shape-7b.zarr", examples)
    rollout_examples(store, [0])
    for scheduler in ("synchronous", "threads"):
        taken = seconds(partial(rollout_examples, store, scheduler=scheduler), 2)
        what = f"rollouts of {examples} examples from the store, {scheduler}"
        print(f"| {what} | {taken:.1f} s | | | {taken / examples * 1000:.0f} s for 1,000 |")
    reading = seconds(lambda: [store.read("attention_rows", examples=range(k, min(k + 16, examples))) for k in range(0, examples, 16)], 3)
    shares = seconds(lambda: attention_share(store), 3)
    print(f"| shares, entropy and sinks of {examples} examples | {shares:.2f} s | only reading the rows | {reading:.2f} s "
          f"| {reading / shares:.2f} |")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where to put the store; a temporary folder by default")
    parser.add_argument("--maps", type=Path, help="npz with a real decoder's maps")
    parser.add_argument("--networkx", type=int, default=0, metavar="N", help="tokens to give networkx, about 25 s each")
    parser.add_argument("--examples", type=int, default=64)
    options = parser.parse_args()
    print("| what | Stratascope | instead of | takes | times faster |\n|---|---|---|---|---|")
    with threadpool_limits(1), tempfile.TemporaryDirectory() as temporary:
        maps = drawn_maps(LAYERS, TOKENS)
        compare_rollout(maps)
        compare_flow(maps, "drawn maps", options.networkx)
        if options.maps:
            real = np.load(options.maps)["maps"].astype(np.float64)
            real /= real.sum(-1, keepdims=True)
            compare_flow(real, "real maps", options.networkx)
            compare_flow(real[-8:], "real maps, top 8", 0)
        whole_stores(options.folder or Path(temporary), options.examples)


if __name__ == "__main__":
    main()
