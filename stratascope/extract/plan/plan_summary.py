"""A plan in words: shapes, bytes on disk, blocks, tokens, and one example's tokens with their spans."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np

from stratascope.extract.plan.answer_forms import token_texts
from stratascope.extract.plan.duration import ExtractionTiming
from stratascope.extract.plan.extraction_plan import ExtractionPlan
from stratascope.extract.plan.photo_boxes import alignment_cases
from stratascope.extract.plan.token_layout import TILES
from stratascope.extract.plan.visible_boxes import is_whole
from stratascope.store.io.overview import bytes_text

SHOWN_SPANS = ("system", "image", TILES, "subject", "relation", "object", "final")
"""Spans that are named within the tokens of an example."""

MOST_FAILURES = 5
PASSES_BACK = 2.5
"""Of processor time, measured: docs/benchmarks.md."""


def plan_summary(plan: ExtractionPlan, show: int = 1) -> str:
    """What would be recorded, in which shapes, at what cost on disk."""
    counts, layout = plan.token_counts, plan.store
    model = plan.provenance["model"]
    drawn = plan.settings.untrained
    assumed = plan.settings.device == "auto" and find_spec("torch") is None
    cells = np.array([tokens.grid[0] * tokens.grid[1] for tokens in plan.layouts])
    lines = [
        f"model      {plan.settings.model} ({model['family']}): {plan.shape.layers} blocks, hidden {plan.shape.hidden}, "
        f"{plan.shape.heads} heads; "
        f"{model['dtype']} on {model['device']}{'' if drawn is None else f'; untrained, weights drawn with seed {drawn}'}"
        + ("; device assumed, since there is no torch here to ask (--device)" if assumed else ""),
        f"prompt     {plan.prompt.name}: {plan.prompt.text!r}; answers "
        + ", ".join(f"{c!r} = token {t}" for c, t in plan.tokenizer.choice_ids.items()),
        *(f"           {line}" for line in [unanswered(plan), _without_thinking(plan)] if line),
        f"condition  {plan.settings.condition}",
        f"tokens     {counts.min()} to {counts.max()}, mean {counts.mean():.1f}; "
        f"of them image {cells.min()} to {cells.max()}, mean {cells.mean():.1f}",
        *image_notes(plan),
        *_beyond_cells(plan),
        f"blocks     {layout.blocks} of {layout.block} examples",
        *_knockouts(plan),
        *_estimates(plan),
        "",
        f"{'array':<18} {'shape':<58} {'raw':>9} {'on disk':>9}",
    ]
    table = plan.estimate
    specs = [spec for spec in layout.arrays() if spec.by_block]
    shapes = {spec.name: " x ".join(f"{n} {d}" for d, n in zip(spec.dims, spec.shape, strict=True)) for spec in specs}
    for name, raw, disk in zip(table["array"], table["raw_bytes"], table["estimated_bytes"], strict=True):
        lines.append(_row("examples, tokens" if name == "created" else name, shapes.get(name, ""), int(raw), int(disk)))
    lines.append(_row("all", "", int(table["raw_bytes"].sum()), int(table["estimated_bytes"].sum())))
    missing = (~plan.present).sum(0)
    absent = [f"{name} in {count:,}" for name, count in zip(layout.positions, missing, strict=True) if name.endswith("_box")]
    if absent:
        lines += ["", f"examples without a box: {', '.join(absent)}"]
    if plan.failed:
        lines += ["", f"{len(plan.failed):,} of {len(plan.examples):,} examples cannot be recorded"]
    for example, reason in list(plan.failed.items())[:MOST_FAILURES]:
        lines += ["", f"cannot be recorded: example {plan.examples[example].id}: {reason}"]
    if len(plan.failed) > MOST_FAILURES:
        lines.append(f"... and {len(plan.failed) - MOST_FAILURES} more")
    shown = range(min(show, len(plan.examples)))
    lines += ["", *(f"{plan.examples[k].id}: {example_tokens(plan, k)}" for k in shown)]
    return "\n".join(lines)


def image_notes(plan: ExtractionPlan) -> list[str]:
    """What was done to photos and their boxes, with counts: nothing where all are taken as they are."""
    facts = [fact for fact in plan.facts.values() if not fact.problem]
    done = {
        "turned upright by EXIF orientation": sum(fact.orientation != 1 for fact in facts),
        "16-bit grey reduced to 8 bits": sum(fact.mode.startswith("I") for fact in facts),
        "transparency laid on white": sum(fact.transparent for fact in facts),
    }
    lines = [f"images     {', '.join(f'{what} {count:,}' for what, count in done.items() if count)}"] if any(done.values()) else []
    cases = alignment_cases(plan.alignments)
    if cases:
        counts = ", ".join(f"{case} {count:,}" for case, count in cases.items())
        lines.append(f"boxes      of {len(plan.alignments):,} photos: {counts}, the others as annotated")
    refused = [(name, alignment.reason) for name, alignment in plan.alignments.items() if alignment.reason]
    lines += [f"           boxes refused: {name}: {reason}" for name, reason in refused[:MOST_FAILURES]]
    return lines + ([f"           ... and {len(refused) - MOST_FAILURES:,} more"] if len(refused) > MOST_FAILURES else [])


def unanswered(plan: ExtractionPlan) -> str:
    """What a prompt forgoes from which no right answer follows; "" where one does."""
    if plan.provenance["prompt"]["answers"]:
        return ""
    return (
        f"no answer to {plan.prompt.name!r} follows from the label, so nothing will say how often the model is right "
        "(stratascope answers, the report): take true-false or yes-no, or examples that are questions with choices"
    )


def _without_thinking(plan: ExtractionPlan) -> str:
    """Which options of the chat template leave the model's reasoning out; "" where there is none."""
    options = plan.tokenizer.wording.template_options
    given = ", ".join(f"{name}={value}" for name, value in options.items())
    return f"the chat template is given {given}, so that the answer follows the prompt without reasoning" if options else ""


def timing_text(found: ExtractionTiming, price: float | None = None) -> str:
    """How long an extraction takes, what it waits for, what memory it needs, and what it costs at `price` an hour."""
    low, high = found.low, found.high
    parts = ", ".join(f"{name} {share:.0%}" for name, share in found.shares.items())
    lines = [
        f"time       {span_text(low, high)} for {found.examples:,} examples, {number_text(found.examples / high)} to "
        f"{number_text(found.examples / low)} a second (one kind of work after the other, or all side by side; "
        f"{span_text(found.beginning)} of it to begin)",
        f"work       {parts}: so it went for {found.timed_batches} batches of {found.timed_examples:,} examples on {found.device}",
    ]
    if found.peak is not None and found.memory is not None:
        beside = f", and up to {bytes_text(found.features)} for images that are shown again" if found.features else ""
        lines.append(f"memory     {bytes_text(found.peak)} of the GPU's {bytes_text(found.memory)}{beside}")
    if found.halvings:
        lines.append(
            f"           it ran out {found.halvings} times and batches were halved; give --batch-tokens {found.batch_tokens} to extract"
        )
    if price is not None:
        cheap, dear = found.cost(price)
        lines.append(f"cost       {number_text(cheap)} to {number_text(dear)} at {price:g} an hour, without fetching the model")
    return "\n".join(lines)


def span_text(low: float, high: float | None = None) -> str:
    """A range of seconds, or a number of them, in the unit that fits its upper end."""
    one, high = high is None, low if high is None else high
    for size, unit in ((3600.0, "hours"), (60.0, "minutes"), (1.0, "seconds")):
        if high >= 2 * size or unit == "seconds":
            break
    return f"{number_text(low / size)} {unit}" if one else f"{number_text(low / size)} to {number_text(high / size)} {unit}"


def number_text(value: float) -> str:
    """Two digits that count, and no fewer than stand before the point."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}" if value < 1 else f"{value:.1f}"


def _knockouts(plan: ExtractionPlan) -> list[str]:
    """What knockouts add to the passes of the model, where they are recorded."""
    if plan.knockouts is None:
        return []
    chosen, passes = int(plan.knockouts.chosen.sum()), plan.knockout_passes
    kinds = f"{len(plan.knockouts.modes)} modes x {len(plan.knockouts.windows)} windows x {len(plan.knockouts.targets)} targets"
    return [
        f"knockouts  {chosen:,} examples x {kinds}: the work of {passes:,.0f} passes beside the {len(plan.examples):,} of the examples, "
        f"{passes / chosen:,.0f} for each (less by --knockouts, --knockout-window, --knockout-modes)"
    ]


def _estimates(plan: ExtractionPlan) -> list[str]:
    """What the way back adds, where it is gone."""
    if "hiding_estimate" not in plan.store.record:
        return []
    return [
        f"estimates  {len(plan.examples):,} examples there and back, one at a time: the work of {PASSES_BACK} passes beside each one's own"
    ]


def _beyond_cells(plan: ExtractionPlan) -> list[str]:
    """Of families whose image tokens are more than cells, or whose cells cover less than the image."""
    tiles = [b - a for tokens in plan.layouts for a, b in [tokens.spans.get(TILES, (0, 0))]]
    partial = sum(not is_whole(tokens.view, *plan.file_size(k)) for k, tokens in enumerate(plan.layouts))
    lines = [f"tiles      {min(tiles)} to {max(tiles)} tokens more of each image, mean {np.mean(tiles):.1f}, in the span {TILES}"]
    lines = lines if any(tiles) else []
    if partial:
        lines.append(f"view       in {partial:,} examples the model sees a part of the image alone, or padding too; boxes are cut to it")
    return lines


def _row(name: str, shape: str, raw: int, disk: int) -> str:
    return f"{name:<18} {shape:<58} {bytes_text(raw):>9} {bytes_text(disk):>9}"


def example_tokens(plan: ExtractionPlan, example: int) -> str:
    """One example's tokens, separated by |, those of a span in brackets with its name; image tokens as a count."""
    layout = plan.layouts[example]
    texts = token_texts(plan.tokenizer.tokenizer, np.unique(layout.ids))
    starts = {layout.spans[name][0]: name for name in SHOWN_SPANS if name in layout.spans}
    pieces: list[str] = []
    k = 0
    while k < len(layout.ids):
        name = starts.get(k)
        a, b = layout.spans[name] if name else (k, k + 1)
        text = "|".join(texts[int(t)] for t in layout.ids[a:b]).replace("\n", "\\n")
        if name == "image":
            rows, columns = layout.grid
            text = f"{b - a} tokens, {rows} rows x {columns} columns"
        elif name == TILES:
            text = f"{b - a} tokens"
        pieces.append(f"[{name}: {text.strip()}]" if name else text)
        k = b
    return "|".join(pieces)
