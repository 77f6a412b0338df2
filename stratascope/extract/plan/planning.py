"""Build a plan from settings: read examples, check images, tokenise prompts, choose positions and targets. No torch."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from stratascope.datasets.box_alignment import BoxAlignment
from stratascope.datasets.boxes import BoxIndex
from stratascope.datasets.examples import Example, files_digest, load_examples
from stratascope.datasets.prompts import Prompt
from stratascope.datasets.question_rows import shuffled_options
from stratascope.errors import InvalidInputError
from stratascope.extract.families.general_family import (
    GeneralLoader,
    GeneralModel,
    check_cells,
    check_records,
    is_general,
)
from stratascope.extract.families.image_tokens import NO_GRID, TILES, ImageRule, PatchGrid
from stratascope.extract.families.model_families import ModelShape, image_rule, logits_capped, model_shape
from stratascope.extract.families.tower_views import TowerViews
from stratascope.extract.model_files import ModelSource, check_weight_form, on_loading, quantization
from stratascope.extract.plan.answer_tokens import ANSWER_LOGITS, SUMMED, answer_forms
from stratascope.extract.plan.extraction_plan import ExtractionPlan, patch_counts
from stratascope.extract.plan.generated_answers import end_of_turn, generation_provenance
from stratascope.extract.plan.image_boxes import aligned_examples, alignment_cases, stretched_examples
from stratascope.extract.plan.images import images_digest, shown_images
from stratascope.extract.plan.knockout_plan import ALL_MODES, Knockouts, layer_windows, ordered_targets
from stratascope.extract.plan.positions import saved_positions, vision_positions
from stratascope.extract.plan.prompt_layouts import check_shots, check_single_images, image_facts, planned_layouts
from stratascope.extract.plan.published_models import PublishedModel, model_to_plan
from stratascope.extract.plan.settings import BOX_POSITIONS, TOP_TOKENS, ExtractionSettings, with_companions
from stratascope.extract.plan.token_layout import SPANS, PromptTokenizer, TokenLayout
from stratascope.store import StoreLayout
from stratascope.store.format.prompt_parts import numbered_images
from stratascope.store.io.offered_choices import OPTIONS

DEFAULT_PATCH_LAYERS = 5
"""Evenly spaced layers at which image tokens are saved by default."""


@contextmanager
def _no_collection() -> Iterator[None]:
    """Pause garbage collection while millions of permanent objects are created."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            if not gc.get_freeze_count():  # makes the new objects old at once: the next collection would examine them all
                gc.freeze()
                gc.unfreeze()
            gc.enable()


@_no_collection()
def build_plan(
    settings: ExtractionSettings,
    *,
    has_gpu: Callable[[], bool],
    load_general: GeneralLoader,
    weights: bool = False,
    progress: bool = False,
) -> ExtractionPlan:
    """Tokenise every example, check every image, lay out the store; run nothing and write nothing.

    Parameters
    ----------
    settings
        Model, data, and what to save.
    has_gpu
        Whether `device="auto"` means a GPU; called once examples and images are checked, as it may import torch.
    load_general
        Reads a model whose type has no family of its own; imports torch.
    weights, progress
        See `plan_extraction`.

    Raises
    ------
    InvalidInputError
        For anything that would make the extraction fail or mean nothing: bad rows, missing or unreadable images, an answer
        without known tokens, a prompt longer than the model's context, a position that no example has.
    MissingExtraError
        If the model is on the Hub and the `extract` extra is not installed.
    """
    trained = settings.untrained is None
    source = model_to_plan(settings.model, revision=settings.revision, weights=weights and trained)
    check_weight_form(source, quantize=settings.quantize, untrained=not trained)
    system = settings.asked.system if settings.system is None else settings.system
    general = load_general(source, system) if is_general(source) else None
    shape, rule = _shape_and_rule(source, settings, general)
    prompt = settings.asked
    boxes = BoxIndex.from_coco(settings.boxes) if settings.boxes else None
    asked = None if prompt.answers else prompt.choices
    examples = load_examples(settings.examples, boxes, asked, progress=progress)[: settings.limit]
    if settings.shuffle_options is not None:
        examples = [shuffled_options(example, settings.shuffle_options, prompt.last) for example in examples]
    images = len(examples[0].images)
    if images > 1:
        check_single_images(images, _requests_of_cells(settings) | {"condition": [settings.condition]})
    shots = [name for shot in prompt.shots for name in shot.images]
    if general is not None and images + len(shots) > 1:
        general.rule.probe.check_together(images + len(shots))
    if isinstance(source, PublishedModel):
        source = source.with_texts(_texts(prompt.for_examples(examples), examples, system))
    context = image_facts(settings, shots, strict=True)
    shot_sizes = [(context[name].width, context[name].height) for name in shots]
    tokenizer = PromptTokenizer(source, prompt.for_examples(examples), rule, system, images, shot_sizes)
    names = [name for example in examples for name in example.images]
    seen = shown_images(names, settings.condition, settings.seed)
    shown, together = seen[::images], [tuple(seen[k : k + images]) for k in range(0, len(seen), images)]
    facts = image_facts(settings, names, strict=settings.strict, progress=progress)
    check_shots(settings, examples, facts, context)
    facts |= context
    layouts = planned_layouts(tokenizer, examples, together, facts, settings, progress)
    if images == 1 and any(layout.grid == NO_GRID for layout in layouts):
        check_cells(source, _requests_of_cells(settings))
    unusable = [fact.problem for fact in facts.values() if fact.problem]
    if len(unusable) == len(facts) - len(context):
        raise InvalidInputError(f"expected at least one readable image, found none of {len(unusable):,}: {unusable[0]}")
    alignments: dict[str, BoxAlignment] = {}
    if boxes is not None and settings.image_size is not None:
        examples = stretched_examples(examples, boxes, settings.image_size)
    elif boxes is not None:
        examples, alignments = aligned_examples(examples, boxes, facts, strict=settings.strict)
    longest = max(range(len(layouts)), key=lambda k: len(layouts[k].ids))
    beyond = 0
    if tokenizer.scored:
        _check_scored(tokenizer, settings.record)
        beyond = max(len(tokens) for example in examples for tokens in tokenizer.answers(example)) - 1
    if len(layouts[longest].ids) + max(beyond, settings.generate) > shape.context:
        fact, more = facts[shown[longest]], f" and {settings.generate} to generate" if settings.generate else ""
        raise InvalidInputError(
            f"example {examples[longest].id}: expected at most {shape.context - beyond} tokens (the model's context"
            f"{' without the longest answer' if beyond else ''}), "
            f"found {len(layouts[longest].ids)}{more}, {_image_tokens(layouts[longest])} of them for an image of "
            f"{fact.width} x {fact.height}; " + ("lower `max_pixels`" if isinstance(rule, PatchGrid) else "shrink the image")
        )
    has_map = _evenly_spaced(len(examples), settings.maps) if "attention_maps" in settings.record else np.zeros(len(examples), bool)
    record = settings.held - (frozenset() if has_map.any() else with_companions("attention_maps", "vision_maps", "gradient_maps"))
    tower = TowerViews(source, rule, shape) if "vision_maps" in record else None
    if tower and images + len(shots) > 1:
        check_single_images(images + len(shots), {"record": ["vision_maps"]})
    forms = answer_forms(tokenizer.tokenizer) if "form_logits" in record else {}
    record -= frozenset() if forms else {"form_logits"}
    knocked = _evenly_spaced(len(examples), settings.knockouts) if "knockout" in record else np.zeros(len(examples), bool)
    record -= {"knockout", "vision_change"}  # added below, with their targets
    patched = _evenly_spaced(len(examples), settings.patches)
    record -= frozenset() if patched.any() else {"patch_residual"}
    sees = bool(record & {"vision_residual", "vision_output"})
    dtype, device = _dtype_and_device(settings, shape, has_gpu)
    positions = saved_positions(settings, examples, layouts)
    store = StoreLayout(
        examples=len(examples),
        layers=shape.layers,
        hidden=shape.hidden,
        heads=shape.heads,
        head_dim=shape.head_dim if "head_outputs" in record else 0,
        tokens=len(layouts[longest].ids),
        positions=positions,
        spans=(*SPANS, *numbered_images(images), *([TILES] if any(TILES in layout.spans for layout in layouts) else [])),
        choices=tuple(tokenizer.prompt.choices),
        record=record,
        vision_layers=shape.vision_layers if "vision_residual" in record else 0,
        vision_hidden=shape.vision_hidden if "vision_residual" in record else 0,
        vision_positions=vision_positions(positions) if sees else (),
        answer_forms=tuple(forms),
        ranks=TOP_TOKENS if "top_tokens" in record else 0,
        patches=int(patch_counts(layouts, patched).max()),
        patch_layers=_patch_layers(settings, shape.layers) if patched.any() else (),
        fusion=settings.fusion,
        softmax_layers=shape.attention if shape.attention and len(shape.attention) < shape.layers else (),
        block=settings.block,
        thumbnail=None if settings.condition == "patch-shuffle" else settings.thumbnail and settings.thumbnail[::-1],
        computed_dtype=dtype,
        generated=settings.generate,
        **({} if tower is None else tower.sizes([(facts[shown[k]].width, facts[shown[k]].height) for k in np.flatnonzero(has_map)])),
    )
    provenance = {
        "model": {
            "name": settings.model,
            "revision": source.revision,
            "family": str(source.config["model_type"]),
            "dtype": dtype,
            "device": device.partition(":")[0],
            "quantization": quantization(source) if settings.quantize is None else on_loading(settings.quantize),
            **({"device_map": settings.device_map} if settings.device_map else {}),
            "files": source.digests(weights=trained, progress=progress),
            **({} if trained else {"untrained": settings.untrained}),
        },
        "processor": {"rule": type(rule).__name__, **rule.settings()},
        "prompt": {
            "name": tokenizer.prompt.name,
            "text": tokenizer.prompt.text,
            "system": system,
            **tokenizer.prompt.provenance(),
            "choices": tokenizer.choice_ids,
            **({"answer_tokens": tokenizer.answer_tokens} if tokenizer.scored else {}),
            "answers": list(tokenizer.prompt.answers or (tokenizer.prompt.choices if examples[0].choices else ())) or None,
            "chat_template": source.chat_template,
            **({"dates": sorted(tokenizer.prompt_format.dates)} if tokenizer.prompt_format.dates else {}),
            **({"template_options": options} if (options := dict(tokenizer.prompt_format.template_options)) else {}),
        },
        "data": {
            "examples": files_digest(settings.examples),
            "boxes": files_digest([settings.boxes]) if settings.boxes else None,
            "images": images_digest(facts),
            **({"shots": {name: fact.sha256 for name, fact in context.items()}} if shots else {}),
            "limit": settings.limit,
            **({"labels": "choice"} if examples[0].choices else {"labels": "none"} if examples[0].label is None else {}),
            **({"questions": True} if examples[0].is_question else {}),
            **({OPTIONS: True} if examples[0].lettered else {}),
            **({} if settings.shuffle_options is None else {"shuffle_options": settings.shuffle_options}),
            **({"box_alignment": cases} if (cases := alignment_cases(alignments)) else {}),
        },
        **({"vision": {"full_attention": list(shape.vision_whole)}} if shape.vision_layers else {}),
        "answer_logits": {**ANSWER_LOGITS, **({"score": SUMMED} if tokenizer.scored else {})},
        "condition": settings.condition,
        "seed": settings.seed,
        "fusion": store.fusion,
        "maps": settings.maps,
        **({"patches": settings.patches} if patched.any() else {}),
        **generation_provenance(settings.generate, end_of_turn(source)),
    }
    plan = ExtractionPlan(
        settings, source, shape, tokenizer, examples, shown, facts, alignments, layouts, has_map, patched, forms, None, store, provenance,
        [each[1:] for each in together] if images > 1 else [], tower,
    )  # fmt: skip
    plan = _with_knockouts(plan, knocked) if knocked.any() else plan
    return _with_changes(plan) if "vision_change" in settings.record else plan


def _shape_and_rule(source: ModelSource, settings: ExtractionSettings, general: GeneralModel | None) -> tuple[ModelShape, ImageRule]:
    """The model's sizes and how it writes images; InvalidInputError for records that it does not have."""
    shape = model_shape(source) if general is None else general.shape
    towers = [name for name in ("vision_residual", "vision_change") if name in settings.record]
    if towers and not shape.vision_layers:
        raise InvalidInputError(
            f"expected a model with a known vision tower for {towers[0]}, found {source.config['model_type']!r}; leave "
            f"{towers[0]} out of `record`"
        )
    apart = sorted({"head_logits", "value_logits"} & set(settings.record))
    if apart and general is None and logits_capped(source):
        raise InvalidInputError(
            f"expected a model whose logits are linear in the outputs of heads and MLPs for {', '.join(apart)}, found "
            f"{source.config['model_type']!r} with soft-capped logits; leave {' and '.join(apart)} out of `record`"
        )
    if general is None:
        return shape, image_rule(source, settings.max_pixels)
    check_records(source, shape, settings.record, settings.max_pixels)
    return shape, general.rule


def _texts(prompt: Prompt, examples: Sequence[Example], system: str | None) -> set[str]:
    """All texts of the prompts and answers."""
    answers = {f" {answer}" for example in examples for answer in (*prompt.choices, *example.options)}
    shots = {text for shot in prompt.shots for text in (shot.text, shot.answer)}
    return {prompt.fill(example).text for example in examples} | shots | answers | {system or ""}


def _check_scored(tokenizer: PromptTokenizer, record: Sequence[str]) -> None:
    """Refuse records about the logits of two answers, where answers have several tokens."""
    found = [
        name
        for name in record
        if name in ("knockout", "head_logits", "value_logits", "hiding_estimate", "gradient_rollout", "gradient_maps")
    ]
    if found:
        held = tokenizer.answer_tokens.items()
        answers = ", ".join(f"{choice!r} ({len(tokens)})" for choice, tokens in held) or "each question's options"
        raise InvalidInputError(
            f"expected answers of one token each for `record` {', '.join(found)}, which are about the logits of two answers, found "
            f"{answers}; choose other answer words, or leave {'it' if len(found) == 1 else 'them'} out"
        )


def _requests_of_cells(settings: ExtractionSettings) -> dict[str, list[str]]:
    """Parameter -> its values that need the place of each image token."""
    placed = [name for name in settings.positions or () if name in ("cells", *BOX_POSITIONS) or name.startswith("cell_")]
    return {
        "boxes": [str(settings.boxes)] if settings.boxes else [],
        "positions": placed,
        "record": [name for name in settings.record if name in ("vision_output", "vision_residual", "vision_change")],
        "patches": [str(settings.patches)] if settings.patches else [],
    }


def _with_knockouts(plan: ExtractionPlan, chosen: np.ndarray) -> ExtractionPlan:
    """The plan with knockouts of the chosen examples and their arrays in the store."""
    settings = plan.settings
    modes = tuple(mode for mode in ALL_MODES if mode in settings.knockout_modes)
    targets = ordered_targets({name for k in np.flatnonzero(chosen) for name in plan.masked_tokens(int(k))})
    knockouts = Knockouts(chosen, modes, layer_windows(plan.shape.layers, settings.knockout_window), targets)
    names = {"knockout_modes": modes, "knockout_windows": knockouts.window_names, "knockout_targets": targets}
    store = plan.store.subset(record=plan.store.record | {"knockout"}, **names)
    return replace(plan, knockouts=knockouts, store=store, provenance={**plan.provenance, "knockouts": knockouts.provenance()})


def _with_changes(plan: ExtractionPlan) -> ExtractionPlan:
    """The plan with changes in the vision tower of the chosen examples and their array in the store."""
    boxed = [None not in (plan.shown_box(k, "subject"), plan.shown_box(k, "object")) for k in range(len(plan.examples))]
    able = np.flatnonzero(boxed)
    if not len(able):
        raise InvalidInputError("expected gold boxes of subject and object for vision_change, found none; set `boxes` (COCO instances)")
    changed = np.isin(np.arange(len(boxed)), able[_evenly_spaced(len(able), plan.settings.changes)])
    if not changed.any():
        return plan
    sizes = {"change_blocks": plan.shape.vision_layers, "change_cells": int(patch_counts(plan.layouts, changed).max())}
    store = plan.store.subset(record=plan.store.record | {"vision_change"}, **sizes)
    return replace(plan, changed=changed, store=store, provenance={**plan.provenance, "changes": plan.settings.changes})


def _image_tokens(layout: TokenLayout) -> int:
    return sum(b - a for name in ("image", TILES) for a, b in [layout.spans.get(name, (0, 0))])


def _evenly_spaced(count: int, wanted: int | None) -> np.ndarray:
    chosen = np.zeros(count, bool)
    if wanted is None or wanted >= count:
        chosen[:] = True
    else:
        chosen[(np.arange(wanted) * count) // max(wanted, 1)] = True
    return chosen


def _patch_layers(settings: ExtractionSettings, blocks: int) -> tuple[int, ...]:
    """The layers of `patch_residual`, ascending; InvalidInputError for a layer that the model does not have."""
    if settings.patch_layers is None:
        return tuple(sorted({round(layer) for layer in np.linspace(0, blocks, DEFAULT_PATCH_LAYERS)}))
    beyond = [layer for layer in settings.patch_layers if not 0 <= layer <= blocks]
    if beyond:
        raise InvalidInputError(
            f"expected `patch_layers` within 0 to {blocks}, as the model has {blocks} decoder blocks, found {beyond[0]}"
        )
    return tuple(sorted(set(settings.patch_layers)))


def _dtype_and_device(settings: ExtractionSettings, shape: ModelShape, has_gpu: Callable[[], bool]) -> tuple[str, str]:
    """The precision and the device of the extraction."""
    device = ("cuda" if has_gpu() else "cpu") if settings.device == "auto" else settings.device
    if settings.dtype is not None:
        return settings.dtype, device
    return ("float32" if device == "cpu" else shape.dtype), device
