"""Plan of interventions: settings of a stored extraction, comparison with the store, and cost. No torch."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from stratascope.datasets.own_prompts import stored_prompt
from stratascope.errors import InvalidInputError, ProvenanceMismatchError
from stratascope.extract.families.general_family import ONE_IMAGE, family_of, reruns_whole
from stratascope.extract.model_files import QUANTIZE, on_loading
from stratascope.extract.plan.answer_tokens import scored_rows
from stratascope.extract.plan.extraction_plan import ExtractionPlan
from stratascope.extract.plan.settings import ExtractionSettings
from stratascope.store import ActivationStore
from stratascope.store.format.generated_positions import generated_number
from stratascope.store.format.provenance import differences

BATCH_TOKENS = 8192
"""Tokens of variants in a forward pass, at most."""
COMPARED = ("model", "processor", "prompt", "data", "condition", "seed", "answer_logits")
"""Parts of the provenance that must be those of the store; what was saved besides may differ."""
_MACHINE = ("model.device", "model.device_map", "model.hardware", "model.attention")


def settings_of_store(
    store: ActivationStore,
    where: Path | None = None,
    *,
    data: Sequence[Path] = (),
    images: Path | None = None,
    boxes: Path | None = None,
    model: str | None = None,
    device: str = "auto",
) -> ExtractionSettings:
    """Settings of the extraction that made a store, with the residual stream alone to record.

    Provenance holds digests of the data, not where they are: `data`, `images` and `boxes` come from the stored command line where they
    are not given, or from the folder of scenes that `stratascope demo` leaves beside its stores.

    Parameters
    ----------
    store
        The store.
    where
        Its path.
    data, images, boxes
        Files of examples, folder of images, gold boxes.
    model
        Folder or Hub id, if the model has moved.
    device
        Device of the model.

    Raises
    ------
    InvalidInputError
        If the data cannot be found, or the provenance does not name the model.
    """
    provenance = store.provenance
    held, prompt = provenance.get("model"), provenance.get("prompt") or {}
    if not isinstance(held, Mapping) or not held.get("name"):
        raise InvalidInputError(f"{store.name}: expected a store whose provenance names its model, found none; extract again")
    facts = provenance.get("data") or {}
    paths = _stored_paths(str(provenance.get("command") or ""), where)
    data = tuple(data) or tuple(paths.get("examples", ()))
    images = images or next(iter(paths.get("images", ())), None)
    boxes = (boxes or next(iter(paths.get("boxes", ())), None)) if facts.get("boxes") else None
    if not data or images is None or (facts.get("boxes") and boxes is None):
        lacking = [f"`{n}`" for n, v in (("data", data), ("images", images), ("boxes", boxes or not facts.get("boxes"))) if not v]
        raise InvalidInputError(
            f"expected the data of {store.name} where its extraction read them, found none; give {', '.join(lacking)} "
            "(their contents are compared with the store's)"
        )
    return ExtractionSettings(
        model=model or str(held["name"]),
        examples=data,
        images=images,
        boxes=boxes,
        **({"stored_prompt": own} if (own := stored_prompt(prompt)) else {"prompt": str(prompt.get("name"))}),
        shuffle_options=facts.get("shuffle_options"),
        system=prompt.get("system"),
        condition=str(provenance.get("condition") or "original"),
        positions=tuple(name for name in store.layout.positions if generated_number(name) is None) or None,
        record=("residual",),
        thumbnail=None,
        limit=facts.get("limit"),
        dtype=held.get("dtype"),
        device=device,
        revision=held.get("revision"),
        untrained=held.get("untrained"),
        quantize=next((bits for bits in QUANTIZE if held.get("quantization") == on_loading(bits)), None),
        seed=int(provenance.get("seed") or 0),
        max_pixels=None,
    )


def _stored_paths(command: str, where: Path | None) -> dict[str, list[Path]]:
    """Existing paths of --examples, --images and --boxes in a stored command line, as given or relative to the store's folder."""
    words = shlex.split(command) if command else []
    folder = Path(".") if where is None else where.resolve().parent
    if words[1:2] == ["demo"]:
        scenes = folder / "scenes"
        given = {"examples": [scenes / "scenes.jsonl"], "images": [scenes / "images"], "boxes": [scenes / "instances.json"]}
        return {name: [path for path in paths if path.exists()] for name, paths in given.items()}
    found: dict[str, list[Path]] = {"examples": [], "images": [], "boxes": []}
    for k, word in enumerate(words):
        name, equals, value = word.removeprefix("--").partition("=")
        if word.startswith("--") and name in found and (equals or k + 1 < len(words)):
            path = Path(value if equals else words[k + 1])
            found[name] += [p for p in dict.fromkeys((path, folder / path)) if p.exists()][:1]
    return found


def with_stored_pixels(settings: ExtractionSettings, plan: ExtractionPlan, store: ActivationStore) -> ExtractionSettings | None:
    """Settings with the store's limit of pixels, if that is what differs from the plan; None otherwise."""
    stored, planned = (p.get("processor") or {} for p in (store.provenance, plan.provenance))
    if "max_pixels" in stored and stored.get("max_pixels") != planned.get("max_pixels"):
        return replace(settings, max_pixels=int(stored["max_pixels"]))
    return None


def check_same_extraction(plan: ExtractionPlan, store: ActivationStore) -> None:
    """Refuse a plan that is not of the model, prompt and data of a store.

    Raises
    ------
    ProvenanceMismatchError
        Naming every field that differs, with both values.
    """
    # as a store holds it: tuples are lists
    held, now = (json.loads(json.dumps({name: p.get(name) for name in COMPARED})) for p in (store.provenance, plan.provenance))
    found = {
        name: pair
        for name, pair in differences(held, now, ignore=()).items()
        if name not in _MACHINE and not all(value in (None, "(absent)") for value in pair)
    }
    if found:
        lines = "; ".join(f"{name}: {_short(a)} in the store, {_short(b)} now" for name, (a, b) in found.items())
        raise ProvenanceMismatchError(
            f"expected the model, prompt and data of {store.name}, found others: {lines}; interventions need exactly those of the store"
        )
    ids = [example.id for example in plan.examples]
    if ids != store.examples["id"].tolist():
        raise ProvenanceMismatchError(f"expected the {len(store)} examples of {store.name} in their order, found {len(ids)} others")


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:12]}..."


def reruns_whole_prompts(plan: ExtractionPlan) -> bool:
    """Whether variants are whole prompts, as some blocks keep another state than keys and values, or take no positions of single tokens."""
    return reruns_whole(plan.source, plan.shape)


def tail_length(plan: ExtractionPlan, example: int, positions: Sequence[str]) -> int | None:
    """Tokens of the prompt from the first one that an edit at positions changes, directly or through later tokens, to the last.

    Parameters
    ----------
    plan
        The plan.
    example
        Its number.
    positions
        Positions that are changed together.

    Returns
    -------
    int or None
        All of the prompt where variants are whole prompts; None if the example lacks one of the positions.
    """
    tokens = [plan.position_tokens(example, name) for name in positions]
    if any(found is None or not len(found) for found in tokens):
        return None
    layout, family = plan.layouts[example], family_of(plan.source)
    length, first = len(layout.ids), min(int(found.min()) for found in tokens if found is not None)
    if reruns_whole_prompts(plan):
        return length
    start, stop = (0, 0) if family.causal else (0, length) if family.prefix else layout.spans["image"]
    return length - (start if start <= first < stop else first)


def bare_passes(
    plan: ExtractionPlan,
    examples: Sequence[int],
    reruns: Sequence[tuple[Sequence[str], int]],
    slots: int,
    batch_tokens: int = BATCH_TOKENS,
) -> float:
    """Computed tokens times blocks of all variants of an example, as forward passes over its prompt; mean over examples.

    Includes the unedited pass, and the unedited rerun of each position and window that variants are compared with. Answers of several
    tokens are run once for each text that they need behind the prompt. A variant that is a whole prompt runs all blocks.

    Parameters
    ----------
    plan
        The plan.
    examples
        Their numbers.
    reruns
        Positions that are changed together, and the first layer, of each position and window.
    slots
        Variants of each.
    batch_tokens
        Tokens in a forward pass, at most: each pass over whole prompts has an unedited row.
    """
    blocks, total, whole = plan.shape.layers, 0.0, reruns_whole_prompts(plan)
    depths: dict[tuple[str, ...], int] = {}
    for part, first in reruns:
        depths[tuple(part)] = depths.get(tuple(part), 0) + (blocks if whole else blocks - first)
    for example in examples:
        length = len(plan.layouts[example].ids)
        tails = {part: tail_length(plan, example, part) for part in depths}
        total += 1
        for behind in scored_rows(plan.tokenizer.answers(plan.examples[example])) if plan.tokenizer.scored else ((),):
            ran = length + len(behind)
            unedited = max(1.0, slots / max(1, batch_tokens // ran - 1)) if whole else 1.0
            unedited = 0.0 if whole and plan.source.config.get("model_type") in ONE_IMAGE else unedited  # that is the unedited pass
            computed = sum((tail + len(behind)) * depths[part] for part, tail in tails.items() if tail is not None)
            total += (computed * (slots + unedited) / blocks + (ran if behind else 0)) / length
    return total / max(len(examples), 1)


def later_cost(plan: ExtractionPlan, variants: int, examples: int | None) -> str:
    """Cost of interventions at the final token of all layers, as a line of a plan; empty if they cannot be run on its store.

    Parameters
    ----------
    plan
        Of the extraction.
    variants
        Variants of a position and layer.
    examples
        How many are changed; None: all.
    """
    known = np.flatnonzero([k not in plan.failed for k in range(len(plan.examples))])
    if not len(known) or "residual" not in plan.store.record:
        return ""
    count = len(known) if examples is None else min(examples, len(known))
    chosen = known[np.arange(count) * len(known) // count].tolist()
    same = len({plan.layouts[k].ids[-1] for k in known}) == 1  # what enters the first block there
    passes = bare_passes(plan, chosen, [(("final",), layer) for layer in range(int(same), plan.shape.layers + 1)], variants)
    return (
        f"intervene  {variants} variants a layer at final, for each of {count:,} examples: the work of {passes:.1f} forward passes an "
        "example (a later command)"
    )
