"""The rehearsal's verdict: what was planted (`rehearsal_store`) beside what the commands found, line by line."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from rehearsal_store import HALF, LOCATION_FROM, OUTLIERS, ROUTE, ROUTE_BLOCKS, SHARES, TOKENS, TRUTH_LAYERS

from stratascope.analysis import FlowResult, RolloutResult
from stratascope.probe import LayerCurve
from stratascope.probe.curve.onset_offset import LayerEvent
from stratascope.results.registry import load_result
from stratascope.store import ActivationStore

PACKING = 0.03
"""How far a weight of a few hundredths may be from what was written: maps are packed into one byte a weight."""


def check(folder: Path) -> list[str]:
    """What was planted beside what was found; lines that begin with WRONG were not as they should be."""
    store, results = ActivationStore.open(folder / "vsr.zarr"), folder / "results"
    truth, blank = (LayerCurve.load(results / f"probe-truth-final{s}.zarr.zip") for s in ("", "-blank"))
    shuffled, place, no_place = (
        LayerCurve.load(results / f"probe-{name}.zarr.zip")
        for name in ("truth-shuffled-final", "geometry-subject", "geometry-shuffled-subject")
    )
    over, first, last = truth.difference(blank), TRUTH_LAYERS[0], TRUTH_LAYERS[-1] + 1
    lines = []

    def say(right: bool, text: str) -> None:
        lines.append(text if right else f"WRONG {text}")

    for right, text in shape(store):
        say(right, text)
    for name, found in (("over chance", truth.difference()), ("over the blank images", over)):
        onset, offset = found.onset, found.offset
        say(_covers(onset, first), f"truth at final, {name}: planted from layer {first}, {onset}")
        # absence needs more examples than detection: it may be left open, but must not be claimed too early
        open_end = not offset.decided if offset.layer is None else offset.layer >= last
        say(open_end, f"truth at final, {name}: planted to layer {last - 1}, {offset}")
    peak = truth.rows("auroc")["value"].max()
    say(peak > 0.6, f"truth at final: AUROC {peak:.3f} at its best")
    for name, curve in (("blank images", blank), ("shuffled labels", shuffled)):
        rows = curve.rows()
        say(curve.onset.layer is None, f"{name}: AUROC {rows['value'].min():.3f} to {rows['value'].max():.3f}, {curve.onset}")
    here, there = place.difference(metric="r2_subject_x"), place.difference(metric="r2_object_x")
    best = place.rows("r2_subject_x")["value"].max()
    say(
        here.onset.layer == LOCATION_FROM,
        f"place at subject: planted from layer {LOCATION_FROM}, {here.onset}; R2 {best:.3f} at its best",
    )
    say(there.onset.layer is None, f"place of the object, not planted: {there.onset}")
    say(no_place.onset.layer is None, f"place with shuffled boxes: {no_place.onset}")
    share = load_result(results / "share.zarr.zip")
    parts = list(share.attributes["parts"])
    image = float(share.arrays["share"][1][..., parts.index("image")].mean())
    say(abs(image - SHARES["image"]) < 1e-3, f"attention on the image: planted {SHARES['image']:.3f}, found {image:.4f}")
    for right, text in routes(store, RolloutResult.load(results / "rollout.zarr.zip"), FlowResult.load(results / "flow.zarr.zip")):
        say(right, text)
    return lines


def routes(store: ActivationStore, rolled: RolloutResult, flowed: FlowResult) -> list[tuple[bool, str]]:
    """Rollout and flow onto the cells of the subject and of the object alone, beside what the planted route's rule gives them.

    Rollout, by groups (final token, subject's cells): a row vector through one 2 x 2 matrix a block, which the rest never enters again.
    Flow: nothing else leads to the cells, and neither column is a narrower cut, so that as much flows as the route's edges carry.
    """
    blocks = store.layout.layers
    step = {
        on: np.array([[1 + ROUTE["stays"], ROUTE["onto"]], [0, 1 + ROUTE["kept"]]]) / 2 if on else np.diag([0, 1 + ROUTE["kept"]]) / 2
        for on in (True, False)
    }
    mass = np.array([1.0, 0.0])
    for block in reversed(range(blocks)):
        mass = mass @ step[block in ROUTE_BLOCKS]
    window = range(*flowed.attributes["window"])
    through = len(set(window) & set(ROUTE_BLOCKS)) * ROUTE["onto"] / 2
    lines = []
    for name, planted, examples, values in (
        ("rollout through all blocks", mass[1], rolled.examples, rolled.values[:, 0]),
        (f"flow through blocks {window[0]} to {window[-1]}", through, flowed.examples, flowed.values),
    ):
        numbers = examples["example"].to_numpy()
        inside = [[cells_of(store, int(number), who) for number in numbers] for who in ("subject", "object")]
        found = np.array([values[k, cells].sum() for k, cells in enumerate(inside[0])])
        off = float(np.abs(found / planted - 1).max())
        text = f"{name}, onto the subject's cells: planted {planted:.4f}, found {found.min():.4f} to {found.max():.4f}"
        lines.append((off < PACKING, f"{text} in {len(found)} examples"))
        nothing = max(float(values[k, np.setdiff1d(b, a)].sum()) for k, (a, b) in enumerate(zip(*inside, strict=True)))
        lines.append((nothing == 0, f"{name}, onto the object's own cells: planted 0, found at most {nothing:.4g}"))
    spans = flowed.spans[flowed.spans["span"] == "subject_box"]["value"]
    right = bool((np.abs(spans / through - 1) < PACKING).all())
    lines.append((right, f"{name}, into the subject's box as one: planted {through:.4f}, found {spans.min():.4f} to {spans.max():.4f}"))
    return lines


def cells_of(store: ActivationStore, example: int, who: str) -> np.ndarray:
    """Tokens of the image cells in a box, by its centre in the store's table."""
    row, (rows, columns), start = store.examples.iloc[example], store.grid[example], store.spans["image"][example, 0]
    x, y = ((row[f"{who}_{axis}0"] + row[f"{who}_{axis}1"]) / 2 / row[f"image_{side}"] for axis, side in (("x", "width"), ("y", "height")))
    near = [np.abs((np.arange(n) + 0.5) / n - at) < HALF for n, at in ((rows, y), (columns, x))]
    return start + np.flatnonzero(np.outer(*near))


def shape(store: ActivationStore) -> list[tuple[bool, str]]:
    """Whether the store is of the shape that the rehearsal is about, and what it is."""
    layout, examples, tokens = store.layout, store.examples, float(np.mean(store.n_tokens))
    scale = f"{layout.layers} decoder blocks, hidden size {layout.hidden:,}, {layout.heads} heads"
    spread = store.read("residual", layer=TRUTH_LAYERS[0], position="final", examples=range(min(256, layout.examples))).std(0)
    outliers = int((spread > 10 * np.median(spread)).sum())
    rows = f"{len(examples):,} examples on {examples['image'].nunique():,} images, {examples['label'].mean():.1%} of their captions true"
    return [
        (True, f"{rows}, splits {', '.join(sorted(examples['split'].unique()))}"),
        ((layout.layers, layout.hidden, layout.heads) == (28, 3584, 28), scale),
        (abs(tokens - TOKENS) < 10, f"{tokens:.0f} tokens on average, {layout.tokens} at most; {TOKENS} wanted"),
        (layout.positions == ("final", "subject"), f"positions {' and '.join(layout.positions)}"),
        (outliers >= OUTLIERS, f"{outliers} channels of more than ten times the median's spread; {OUTLIERS} outliers were planted"),
        (bool(store.has_map.any()), f"whole attention maps of {int(store.has_map.sum())} examples"),
    ]


def _covers(event: LayerEvent, planted: int) -> bool:
    """Whether the interval of the first layer above the equivalence margin holds the planted one; with few examples it is long."""
    low, high = (math.inf if end is None else end for end in (event.low, event.high))
    return event.layer is not None and low <= planted <= high
