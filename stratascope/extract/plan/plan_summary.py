"""Summary text of a plan: shapes, bytes on disk, shard blocks, tokens, and the spans of single examples."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np

from stratascope.extract.families.image_tokens import TILES
from stratascope.extract.model_files import QUANTIZE
from stratascope.extract.plan.answer_tokens import token_texts
from stratascope.extract.plan.duration import ExtractionTiming
from stratascope.extract.plan.extraction_plan import ExtractionPlan
from stratascope.extract.plan.image_boxes import alignment_cases, is_whole
from stratascope.extract.plan.published_models import PublishedModel
from stratascope.extract.plan.token_layout import TokenLayout
from stratascope.extract.plan.unknown_words import vocabulary_notes
from stratascope.extract.plan.weights_memory import weight_bytes
from stratascope.store.format.prompt_parts import IMAGE_POSITION
from stratascope.store.io.overview import bytes_text

SPAN_COLOURS = {
    "system": "bright_black",
    "image": "yellow",
    TILES: "bright_yellow",
    "subject": "blue",
    "relation": "magenta",
    "object": "cyan",
    "final": "green",
}
"""Spans that are marked in the tokens of an example, and their colours in a terminal."""

MOST_FAILURES = 5
GRADIENT_PASSES = 2.5
"""Time of a forward and backward pass, in forward passes: docs/benchmarks.md."""


def plan_summary(plan: ExtractionPlan, show: int = 1) -> str:
    """Model, prompt, token counts, and shape and bytes of each array."""
    counts, layout = plan.token_counts, plan.store
    model = plan.provenance["model"]
    drawn = plan.settings.untrained
    assumed = plan.settings.device == "auto" and find_spec("torch") is None
    cells = np.array([image_tokens(tokens) for tokens in plan.layouts])
    lines = [
        f"model      {plan.settings.model} ({model['family']}): {plan.shape.layers} decoder blocks, hidden size {plan.shape.hidden}, "
        f"{plan.shape.heads} heads; "
        f"{model['dtype']} on {model['device']}{'' if drawn is None else f'; untrained, weights drawn with seed {drawn}'}"
        + ("; device assumed, because torch is not installed (`device`)" if assumed else ""),
        *_origin(plan),
        *_weights(plan),
        f"prompt     {plan.prompt.name}: {plan.prompt.text!r}; answers " + _answers(plan),
        *(f"           {line}" for line in [unanswered(plan), _without_thinking(plan)] if line),
        f"condition  {plan.settings.condition}",
        f"tokens     {counts.min()} to {counts.max()}, mean {counts.mean():.1f}; "
        f"image{'s' if plan.further else ''} {cells.min()} to {cells.max()}, mean {cells.mean():.1f}",
        *_shots(plan),
        *vocabulary_notes(plan),
        *image_notes(plan),
        *_beyond_cells(plan),
        f"shards     {layout.blocks} of {layout.block} examples",
        *_knockouts(plan),
        *_estimates(plan),
        *_generated(plan),
        *_patches(plan),
        *_vision_maps(plan),
        *_changes(plan),
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
        lines += ["", f"{len(plan.failed):,} of {len(plan.examples):,} examples cannot be used"]
    for example, reason in list(plan.failed.items())[:MOST_FAILURES]:
        lines += ["", f"cannot be used: example {plan.examples[example].id}: {reason}"]
    if len(plan.failed) > MOST_FAILURES:
        lines.append(f"... and {len(plan.failed) - MOST_FAILURES} more")
    shown = range(min(show, len(plan.examples)))
    lines += ["", *(f"{plan.examples[k].id}: {example_tokens(plan, k)}" for k in shown)]
    return "\n".join(lines)


def image_tokens(layout: TokenLayout) -> int:
    """Number of image tokens with a place in an image, or of all tokens of several images."""
    numbered = [b - a for name, (a, b) in layout.spans.items() if IMAGE_POSITION.fullmatch(name)]
    return sum(numbered) or layout.grid[0] * layout.grid[1]


def _shots(plan: ExtractionPlan) -> list[str]:
    """Few-shot turns of the prompt."""
    count, images = len(plan.prompt.shots), len(plan.shots)
    lines = f"shots      {count} with {images} image{'' if images == 1 else 's'}, in the tokens of every example and of the part template"
    return [lines] if count else []


def _answers(plan: ExtractionPlan) -> str:
    held = plan.tokenizer.answer_tokens
    if not held:
        return "each question's options, scored by summed log-probability"
    if isinstance(plan.source, PublishedModel):
        return ", ".join(map(repr, held))
    texts = [f"{c!r} = token{'s' if len(tokens) > 1 else ''} {' '.join(map(str, tokens))}" for c, tokens in held.items()]
    return ", ".join(texts) + ("; scored by summed log-probability" if plan.tokenizer.scored else "")


def image_notes(plan: ExtractionPlan) -> list[str]:
    """Changes to images and boxes, with counts; none if all are used as they are."""
    facts = [fact for fact in plan.facts.values() if not fact.problem]
    done = {
        "rotated by EXIF orientation": sum(fact.orientation != 1 for fact in facts),
        "16-bit grey reduced to 8 bits": sum(fact.mode.startswith("I") for fact in facts),
        "transparency on white": sum(fact.transparent for fact in facts),
    }
    lines = [f"images     {', '.join(f'{what} {count:,}' for what, count in done.items() if count)}"] if any(done.values()) else []
    cases = alignment_cases(plan.alignments)
    if cases:
        counts = ", ".join(f"{case} {count:,}" for case, count in cases.items())
        lines.append(f"boxes      of {len(plan.alignments):,} images: {counts}, the others as annotated")
    refused = [(name, alignment.reason) for name, alignment in plan.alignments.items() if alignment.reason]
    lines += [f"           boxes refused: {name}: {reason}" for name, reason in refused[:MOST_FAILURES]]
    return lines + ([f"           ... and {len(refused) - MOST_FAILURES:,} more"] if len(refused) > MOST_FAILURES else [])


def unanswered(plan: ExtractionPlan) -> str:
    """What is missing without a correct answer to the prompt; "" if there is one."""
    if plan.provenance["prompt"]["answers"]:
        return ""
    return (
        f"the labels give no correct answer to {plan.prompt.name!r}, so the model's accuracy cannot be computed (stratascope answers, "
        "report): use true-false or yes-no, or examples that are questions with choices"
    )


def _without_thinking(plan: ExtractionPlan) -> str:
    """Options of the chat template that turn reasoning off; "" if there are none."""
    options = plan.tokenizer.prompt_format.template_options
    given = ", ".join(f"{name}={value}" for name, value in options.items())
    return f"chat template with {given}: the answer follows the prompt without reasoning" if options else ""


def timing_text(timing: ExtractionTiming, price: float | None = None) -> str:
    """Duration of an extraction, its bottlenecks, GPU memory, and cost at `price` per hour."""
    low, high = timing.low, timing.high
    parts = ", ".join(f"{name} {share:.0%}" for name, share in timing.shares.items())
    lines = [
        f"time       {span_text(low, high)} for {timing.examples:,} examples, {number_text(timing.examples / high)} to "
        f"{number_text(timing.examples / low)} per second (stages in sequence to overlapped; start-up {span_text(timing.beginning)})",
        f"work       {parts}; measured on {timing.timed_batches} batches with {timing.timed_examples:,} examples on {timing.device}",
    ]
    if timing.peak is not None and timing.memory is not None:
        beside = f", and up to {bytes_text(timing.features)} for cached image features" if timing.features else ""
        lines.append(f"memory     {bytes_text(timing.peak)} of the GPU's {bytes_text(timing.memory)}{beside}")
    if timing.halvings:
        lines.append(
            f"           memory ran out {timing.halvings} times and batches were halved; set `batch_tokens` to {timing.batch_tokens}"
        )
    if price is not None:
        cheap, dear = timing.cost(price)
        lines.append(f"cost       {number_text(cheap)} to {number_text(dear)} at {price:g} per hour, without downloading the model")
    return "\n".join(lines)


def span_text(low: float, high: float | None = None) -> str:
    """A duration or a range of durations in seconds, in a fitting unit."""
    one, high = high is None, low if high is None else high
    for size, unit in ((3600.0, "hours"), (60.0, "minutes"), (1.0, "seconds")):
        if high >= 2 * size or unit == "seconds":
            break
    return f"{number_text(low / size)} {unit}" if one else f"{number_text(low / size)} to {number_text(high / size)} {unit}"


def number_text(value: float) -> str:
    """Two significant digits, more for large numbers."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}" if value < 1 else f"{value:.1f}"


def _knockouts(plan: ExtractionPlan) -> list[str]:
    """Cost of the knockouts."""
    if plan.knockouts is None:
        return []
    chosen, passes = int(plan.knockouts.chosen.sum()), plan.knockout_passes
    kinds = f"{len(plan.knockouts.modes)} modes x {len(plan.knockouts.windows)} windows x {len(plan.knockouts.targets)} targets"
    return [
        f"knockouts  {chosen:,} examples x {kinds}: the work of {passes:,.0f} passes besides the {len(plan.examples):,} of the examples, "
        f"{passes / chosen:,.0f} each (fewer with `knockouts`, `knockout_window`, `knockout_modes`)"
    ]


def _estimates(plan: ExtractionPlan) -> list[str]:
    """Cost of the backward passes."""
    if not plan.store.record & {"hiding_estimate", "gradient_rollout", "gradient_maps"}:
        return []
    return [
        f"estimates  {len(plan.examples):,} forward and backward passes, one example at a time, each the work of {GRADIENT_PASSES} passes"
    ]


def _origin(plan: ExtractionPlan) -> list[str]:
    """Says that the numbers come from a bundled description, if so, and which of them are estimates."""
    if not isinstance(plan.source, PublishedModel):
        return []
    return [
        f"           {plan.source.note}",
        "           sizes and image tokens as published; text tokens ESTIMATED as one for each word, digit and punctuation mark",
    ]


def _weights(plan: ExtractionPlan) -> list[str]:
    """Memory of the weights as chosen, and quantised on loading."""
    dtype, chosen = plan.provenance["model"]["dtype"], plan.settings.quantize
    if (found := weight_bytes(plan.source, dtype, chosen)) is None:
        return []
    form = plan.provenance["model"]["quantization"] or dtype
    where = "over all GPUs, then the host's memory and the disk" if plan.settings.device_map else f"on {plan.device}"
    others = (
        []
        if plan.provenance["model"]["quantization"] or not plan.source.weights_here
        else [f"{bytes_text(weight_bytes(plan.source, dtype, bits) or 0)} with {bits}" for bits in QUANTIZE]
    )
    more = f"; `quantize`: {', '.join(others)}" if others else ""
    return [f"weights    {bytes_text(found)} ({form}) {where}{more}"]


def _generated(plan: ExtractionPlan) -> list[str]:
    """Cost of the generated tokens."""
    tokens, shape = plan.store.generated, plan.shape
    if not tokens:
        return []
    last = max(plan.generated_positions, default=-1) + 1 == tokens
    cached = 2 * shape.layers * shape.heads * shape.head_dim * (2 if plan.store.computed_dtype != "float32" else 4)
    passes = tokens if last else tokens - 1
    until = "until its turn ends" if plan.provenance["generation"]["end"] else "(the model's settings name no token that ends a turn)"
    return [
        f"generate   at most {tokens} tokens an example {until}: {passes} more passes a batch, each over one token of every "
        f"example; the key-value cache takes at most {bytes_text(cached)} a token; residual stream at {len(plan.generated_positions)} of "
        "them (fewer with `generate`, `positions`)"
    ]


def _patches(plan: ExtractionPlan) -> list[str]:
    """Examples and layers whose image tokens are saved."""
    counts, layers = plan.patch_counts, plan.store.patch_layers
    if not counts.any():
        return []
    return [
        f"patches    {counts.sum():,} image tokens of {(counts > 0).sum():,} examples at layers {', '.join(map(str, layers))}: "
        f"{bytes_text(int(counts.sum()) * len(layers) * plan.shape.hidden * 4)} before compression (fewer with `patches`, `patch_layers`)"
    ]


def _vision_maps(plan: ExtractionPlan) -> list[str]:
    """Size of the vision tower's maps, and what a shard block of them takes in memory."""
    store = plan.store
    if plan.tower is None:
        return []
    most = max(int(plan.has_map[start : start + store.block].sum()) for start in range(0, len(plan.has_map), store.block))
    memory = most * store.vision_blocks * store.vision_views * store.vision_tokens**2
    return [
        f"vision     attention maps of {plan.has_map.sum():,} examples in {store.vision_blocks} blocks of the vision tower, at most "
        f"{store.vision_views} views of {store.vision_tokens:,} tokens: a shard takes up to {bytes_text(memory)} of the host's memory "
        "(less with `maps`, `block`)"
    ]


def _changes(plan: ExtractionPlan) -> list[str]:
    """Cost of the changes in the vision tower."""
    if plan.changed is None:
        return []
    count = int(plan.changed.sum())
    return [f"changes    of {count:,} examples in the vision tower: {3 * count:,} more passes of it, 3 each (fewer with `changes`)"]


def _beyond_cells(plan: ExtractionPlan) -> list[str]:
    """Image tokens outside the grid, and images that the grid covers only in part."""
    tiles = [b - a for tokens in plan.layouts for a, b in [tokens.spans.get(TILES, (0, 0))]]
    partial = sum(not is_whole(tokens.view, *plan.file_size(k)) for k, tokens in enumerate(plan.layouts))
    lines = [f"tiles      {min(tiles)} to {max(tiles)} more tokens per image, mean {np.mean(tiles):.1f}, in the span {TILES}"]
    lines = lines if any(tiles) else []
    if partial:
        lines.append(f"view       in {partial:,} examples the model sees part of the image, or also padding; boxes are cropped to it")
    return lines


def _row(name: str, shape: str, raw: int, disk: int) -> str:
    return f"{name:<18} {shape:<58} {bytes_text(raw):>9} {bytes_text(disk):>9}"


def example_tokens(plan: ExtractionPlan, example: int) -> str:
    """Tokens of one example, separated by |; spans in brackets with their name, image tokens as a count."""
    layout = plan.layouts[example]
    texts = token_texts(plan.tokenizer.tokenizer, np.unique(layout.ids))
    numbered = [name for name in layout.spans if IMAGE_POSITION.fullmatch(name)]
    marked = [*numbered, *(name for name in SPAN_COLOURS if name in layout.spans and not (numbered and name == "image"))]
    starts = {layout.spans[name][0]: name for name in marked}
    pieces: list[str] = []
    k = 0
    while k < len(layout.ids):
        name = starts.get(k)
        a, b = layout.spans[name] if name else (k, k + 1)
        if name is None and layout.ids[k] == plan.tokenizer.image_id:  # of a few-shot turn
            b = k + int(np.argmax(np.append(layout.ids[k:] != plan.tokenizer.image_id, True)))
            pieces.append(f"[{b - a} image tokens]")
            k = b
            continue
        text = "|".join(texts[int(t)] for t in layout.ids[a:b]).replace("\n", "\\n")
        if name == "image":
            rows, columns = layout.grid
            text = f"{b - a} tokens, {rows} rows x {columns} columns"
        elif name == TILES or name in numbered:
            text = f"{b - a} tokens"
        pieces.append(f"[{name}: {text.strip()}]" if name else text)
        k = b
    return "|".join(pieces)
