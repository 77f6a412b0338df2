"""Proofs that a type is captured rightly: against eager attention, the model's own logits, single examples and padding on the left."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GenerationConfig

from stratascope.errors import CaptureError
from stratascope.extract.families.general_family import MERGED_TOWERS, ONE_IMAGE, ProcessorRule, reruns_whole
from stratascope.extract.families.image_tokens import ImageTokens
from stratascope.extract.plan.answer_tokens import ABSENT
from stratascope.extract.run.capture import Capture, Pooling, capturing
from stratascope.extract.run.decoder import attention_blocks, find_decoder
from stratascope.extract.run.general_inputs import general_inputs, image_tensors, image_token_id
from stratascope.extract.run.generation import Generation
from stratascope.extract.run.inputs import PreparedImages
from stratascope.extract.run.intervention import Answers, InterventionRunner
from stratascope.extract.run.model import Batch, Captured, CaptureModel, CaptureRequest
from stratascope.extract.run.residual_edits import DeviceEdits, Interventions, changed_layers
from stratascope.extract.run.tower_maps import TowerMapRequest
from stratascope.extract.run.vision_tower import CellRequest, find_tower, patch_places, tower_blocks
from tests.extract.general.tiny import Tiny, build, image_processor, photo, words
from tests.extract.hooked import drawn_edits, hooked_logits, plain_edit

ROWS, INNER = 1e-5, 2e-4
"""Differences of attention weights; of residual streams and logits, relative to their size."""
PAIR = (300, 301)
RANKS = 5
"""Most likely next tokens that are compared."""
PROJECTIONS = ("attn.proj", "attn.o_proj", "attn.out_proj", "attention.o_proj", "attn.wo", "attention.proj")
"""Output projections of attention in vision towers."""
WITHOUT_CACHE = ("blip-2",)
"""Types that return no key-value cache, so that nothing can be generated."""
GENERATED = 4
"""Tokens that are generated."""
SEVERAL = ((300,), (301, 302), (301, 303, 304))
"""Answers of several tokens."""
LONG = 1000
"""Tokens of a prompt beyond which only its final token is edited, in one window."""
LENGTHS = ((9, 3), (4, 7))
"""Words before and after the image, of each example."""


@dataclass
class Proved:
    """What holds for a type."""

    blocks: int
    attending: tuple[int, ...]
    causal: bool


@dataclass
class Case:
    """One prompt and its image."""

    ids: list[int]
    image: dict[str, torch.Tensor]


def prove(name: str, tiny: Tiny, *, rows: bool = True) -> Proved:
    """Check a type with a tiny random model; AssertionError or any error of the model if something differs.

    Parameters
    ----------
    name, tiny
        The type and how its tiny model is made.
    rows
        Whether its attention rows are compared; False: residuals and answers alone.
    """
    model = build(name, tiny)
    cases = [_case(model, name, tiny, seed, *lengths) for seed, lengths in enumerate(LENGTHS)]
    expected = [_eager(model, case) for case in cases]
    ours = CaptureModel.of(model, ProcessorRule("", "", "", _no_probe))
    attending, count = attention_blocks(ours.decoder.config), len(ours.decoder.layers)
    vocabulary = len(expected[0].logits)
    alone = [_captured(ours, [case], vocabulary) for case in cases]
    batches = (
        [*((each, [k]) for k, each in enumerate(alone)), (_captured(ours, cases, vocabulary), [0, 1])]
        if ours.accepts_features
        else [(each, [k]) for k, each in enumerate(alone)]
    )
    causal = True
    for found, members in batches:
        for row, k in enumerate(members):
            _compare(found, row, expected[k], rows=rows, tokens=len(cases[k].ids))
            if found.maps is not None:
                assert found.maps.check(row, causal=False)
                causal &= not any(block["later"][row].any() for block in found.maps.blocks)
    if ours.accepts_features:
        _left_padded(ours, cases, expected, rows=rows)
    if name in WITHOUT_CACHE:
        with pytest.raises(CaptureError, match="returns its key-value cache"):
            prove_generation(model, cases)
    else:
        prove_generation(model, cases)
    prove_interventions(model, name, cases[1])
    return Proved(count, attending, causal)


def _no_probe(width: int, height: int) -> ImageTokens:
    raise AssertionError("images are prepared already")


def _case(model: Any, name: str, tiny: Tiny, seed: int, before: int, after: int) -> Case:
    made = image_processor(name, tiny)(images=[photo(seed)], return_tensors="pt")
    image = image_tensors(made)
    count = tiny.features or _features(model, image)
    text = words(before + after, seed)
    return Case([1, *text[:before], *[image_token_id(model.config)] * count, *text[before:]], image)


def _features(model: Any, image: Mapping[str, torch.Tensor]) -> int:
    ours = CaptureModel.of(model, ProcessorRule("", "", "", _no_probe))
    return ours.features(PreparedImages(dict(image), ((),))).tokens


@dataclass
class Expected:
    """The plain model with eager attention."""

    residual: np.ndarray
    """(layer, hidden) of the final token, in the order in which the blocks ran."""
    middle: np.ndarray
    """(layer, hidden): mean over all tokens."""
    rows: list[np.ndarray]
    """(head, token) of each block with attention weights."""
    logits: np.ndarray
    """(vocabulary,) of the final token."""


def _eager(model: Any, case: Case) -> Expected:
    model.set_attn_implementation("eager")
    decoder, seen = find_decoder(model), []

    def keep(module: Any, args: Any, kwargs: Any) -> None:
        seen.append((args[0] if args else kwargs["hidden_states"])[0].clone())

    hooks = [module.register_forward_pre_hook(keep, with_kwargs=True) for module in (*decoder.layers, decoder.norm)]
    ids = torch.tensor([case.ids])
    try:
        with torch.inference_mode():
            image = {name: values.to(model.dtype) if values.is_floating_point() else values for name, values in case.image.items()}
            inputs = general_inputs(model, ids, torch.tensor([ids.shape[1]]), image)
            output = model(**inputs, use_cache=False, output_attentions=True)
    finally:
        for hook in hooks:
            hook.remove()
    attentions = getattr(output, "attentions", None) or getattr(output.get("language_model_outputs"), "attentions", None)
    kept = [each for each in attentions or () if each is not None]
    if len(kept) == len(decoder.layers):  # with the weights of cross-attention, over the image
        kept = [kept[block] for block in attention_blocks(decoder.config)]
    weights = [each[0, :, -1].numpy() for each in kept]
    return Expected(
        torch.stack([each[-1] for each in seen]).numpy(),
        torch.stack([each.mean(0) for each in seen]).numpy(),
        weights,
        output.logits[0, -1].numpy(),
    )


def _pooling(cases: list[Case]) -> Pooling:
    return Pooling.of([[np.array([len(case.ids) - 1]), np.arange(len(case.ids))] for case in cases])


def prove_generation(model: Any, cases: list[Case]) -> bool:
    """Tokens against transformers' `generate`, their residual stream against one pass over prompt and tokens; whether in one batch."""
    ours = CaptureModel.of(model, ProcessorRule("", "", "", _no_probe))
    asked = Generation(GENERATED, (), tuple(range(GENERATED)))
    groups = [[case] for case in cases] + ([cases] if ours.accepts_features and ours.decodes_together else [])
    found = [(_captured(ours, group, generation=asked), group) for group in groups]
    model.set_attn_implementation("eager")
    for case in cases:
        kinds = _inputs(model, case.ids, case.image, 0)
        options = GenerationConfig(do_sample=False, max_new_tokens=GENERATED, pad_token_id=0, eos_token_id=None)
        made = model.generate(**kinds, generation_config=options)
        tokens = made[0, len(case.ids) :].tolist()
        inputs = _inputs(model, [*case.ids, *tokens], case.image, GENERATED)
        seen = _entries(model, inputs)[:, len(case.ids) :]
        for captured, group in found:
            for row in (row for row, member in enumerate(group) if member is case):
                assert captured.generated is not None
                assert captured.generated_residual is not None
                assert captured.generated[row].tolist() == tokens
                _close(captured.generated_residual[:, :, row], seen, INNER, "residual stream at generated tokens")
    return len(groups) > len(cases)


def prove_interventions(model: Any, name: str, case: Case) -> None:
    """Changes of answers of one and of several tokens by edits and patches, against plain hooks on the model, one variant at a time."""
    ours = CaptureModel.of(model, ProcessorRule("", "", "", _no_probe))
    count, hidden, length = len(ours.decoder.layers), int(ours.decoder.config.hidden_size), len(case.ids)
    shape: Any = SimpleNamespace(attention=attention_blocks(ours.decoder.config), layers=count)
    source: Any = SimpleNamespace(config={"model_type": name})
    assert ours.accepts_features == (name not in ONE_IMAGE)
    runner = InterventionRunner(ours, whole=reruns_whole(source, shape))
    image = np.flatnonzero(np.array(case.ids) == image_token_id(model.config))[:3]
    places = {"final": np.array([length - 1]), "word": np.array([length - 4]), "image": image}
    windows = ((1, 2),) if length > LONG else ((0, 0), (1, 2), (count, count))
    layers = changed_layers(windows)
    stacks = {(position, layer): drawn_edits(2, hidden, layer, 0.3) for position in places for layer in layers}
    patches = {
        q: np.random.default_rng(5).normal(size=(len(layers), 1, len(each), hidden)).astype(np.float32) for q, each in places.items()
    }
    edits = {place: DeviceEdits.of(stack, torch.device("cpu")) for place, stack in stacks.items()}
    parts = (("final",), ("word", "image"))[: 1 if length > LONG else 2]
    chosen = Interventions(parts, windows, edits, sources=1)
    features = [ours.features(PreparedImages(case.image, ((),)))] if ours.accepts_features else []
    batch = Batch((0,), torch.tensor([case.ids]), torch.tensor([length]), {} if features else case.image, _pooling([case]), features)
    given = (places, chosen, patches, 1e-3)
    with torch.inference_mode():
        tracked = runner.trace(batch)
        one = runner.measure_answers(tracked, Answers(PAIR), *given, tokens_of_pass=10_000)
        several = runner.measure_answers(tracked, Answers((300, 301), SEVERAL, 4), *given, tokens_of_pass=10_000)
    model.set_attn_implementation("eager")

    def logits(*edit: Any) -> np.ndarray:
        return hooked_logits(model, _inputs(model, case.ids, case.image, 0), *edit)[list(PAIR)].numpy()

    def scores(*edit: Any) -> list[float]:
        """Summed log-probabilities of the answers."""
        found = []
        for answer in SEVERAL:
            shares = hooked_logits(model, _inputs(model, [*case.ids, *answer[:-1]], case.image, len(answer) - 1), *edit, 3)
            shares = shares[-len(answer) :].double().log_softmax(-1)
            found.append(sum(float(shares[k, token]) for k, token in enumerate(answer)))
        return found

    untouched, moved = ({}, {}, (0, -1)), 0.0
    plain, summed = logits(*untouched), np.array(scores(*untouched))
    assert one.logits == pytest.approx(plain, abs=1e-4)
    assert several.logits[:3] == pytest.approx(summed, abs=2e-4)
    assert (several.logits[3], np.abs(several.change[..., 3]).max()) == (ABSENT, 0)
    for p, part in enumerate(chosen.parts):
        for w, window in enumerate(windows):
            for slot in (1, 2):
                made = {place: plain_edit(stack, slot) for place, stack in stacks.items() if slot < 2}
                if slot == 2:
                    made = {
                        (q, layer): lambda x, rows=patches[q][k, 0]: torch.from_numpy(rows)
                        for q in places
                        for k, layer in enumerate(layers)
                    }
                edit = ({q: places[q] for q in part}, made, window)
                expected = logits(*edit) - plain
                assert one.change[p, w, slot] == pytest.approx(expected, abs=1e-4, rel=1e-4), (part, window, slot)
                moved = max(moved, float(np.abs(expected).max()))
                if window == (1, 2) and slot == 1:
                    expected = np.array(scores(*edit)) - summed
                    assert several.change[p, w, slot, :3] == pytest.approx(expected, abs=2e-4, rel=1e-4), (part, window, slot)
    assert moved > 0.01, "a test in which nothing moves would show little"


def _inputs(model: Any, ids: list[int], image: Mapping[str, torch.Tensor], generated: int) -> dict[str, Any]:
    """Keywords of a pass over one prompt, whose last tokens are `generated`."""
    given = {name: values.to(model.dtype) if values.is_floating_point() else values for name, values in image.items()}
    made = general_inputs(model, torch.tensor([ids]), torch.tensor([len(ids)]), given)
    if generated and model.config.model_type == "paligemma":  # their prompts attend to all of the prompt, answers to what is before
        made["token_type_ids"][:, -generated:] = 1
    return made


def _entries(model: Any, inputs: Mapping[str, Any]) -> np.ndarray:
    """(layer, token, hidden): what enters each block and the final norm."""
    seen: list[torch.Tensor] = []

    def keep(module: Any, args: Any, kwargs: Any) -> None:
        seen.append((args[0] if args else kwargs["hidden_states"])[0].clone())

    decoder = find_decoder(model)
    hooks = [module.register_forward_pre_hook(keep, with_kwargs=True) for module in (*decoder.layers, decoder.norm)]
    try:
        with torch.inference_mode():
            model(**inputs, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack(seen).numpy()


def _captured(ours: CaptureModel, cases: list[Case], vocabulary: int | None = None, generation: Generation | None = None) -> Captured:
    lengths = torch.tensor([len(case.ids) for case in cases])
    ids = torch.zeros(len(cases), int(lengths.max()), dtype=torch.long)
    for row, case in enumerate(cases):
        ids[row, : len(case.ids)] = torch.tensor(case.ids)
    features = [ours.features(PreparedImages(case.image, ((),))) for case in cases] if ours.accepts_features else []
    images = {} if features else cases[0].image
    batch = Batch(tuple(range(len(cases))), ids, lengths, images, _pooling(cases), features)
    request = CaptureRequest(PAIR, frozenset({"maps"}), ranks=RANKS, known_tokens=vocabulary, model_logits=True, generation=generation)
    return ours.run(batch, request)


def _close(found: np.ndarray, expected: np.ndarray, tolerance: float, what: str) -> None:
    gap = np.abs(found - expected).max() / max(1.0, np.abs(expected).max())
    assert gap <= tolerance, f"{what}: {gap:.3g} apart"


def _compare(found: Captured, row: int, expected: Expected, *, rows: bool, tokens: int) -> None:
    _close(found.residual[:, 0, row], expected.residual, INNER, "residual stream of the final token")
    _close(found.residual[:, 1, row], expected.middle, INNER, "residual stream over all tokens")
    pair = expected.logits[list(PAIR)]
    assert found.model_logits is not None
    _close(found.model_logits[row], pair, INNER, "the model's own logits")
    _close(found.answer_logits[row], pair, INNER, "last residual stream through norm and unembedding")
    assert np.abs(expected.logits[list(PAIR)]).max() > 1e-4
    assert found.top_logits is not None
    _close(found.top_logits[row], np.sort(expected.logits)[: -RANKS - 1 : -1], INNER, "logits of the most likely tokens")
    if rows:
        assert len(found.rows) == len(expected.rows), f"{len(found.rows)} blocks with rows, {len(expected.rows)} with eager weights"
        for k, own in enumerate(expected.rows):
            _close(found.rows[k, row, :, :tokens], own, ROWS, f"rows of attention block {k}")
        assert not found.rows[:, row, :, tokens:].any()


def _left_padded(ours: CaptureModel, cases: list[Case], expected: list[Expected], *, rows: bool) -> None:
    longest = max(len(case.ids) for case in cases)
    ids, mask = torch.zeros(len(cases), longest, dtype=torch.long), torch.zeros(len(cases), longest, dtype=torch.long)
    for row, case in enumerate(cases):
        ids[row, longest - len(case.ids) :], mask[row, longest - len(case.ids) :] = torch.tensor(case.ids), 1
    features = [ours.features(PreparedImages(case.image, ((),))) for case in cases]
    batch = Batch((0, 1), ids, torch.full((len(cases),), longest), {}, _pooling(cases), features)
    inputs = {**ours.inputs(batch), "attention_mask": mask}
    last = torch.full((len(cases),), longest - 1)
    capture = Capture(last, Pooling(last[:, None, None], torch.ones(len(cases), 1, 1)))
    with torch.inference_mode(), capturing(ours.decoder, capture):
        ours.model(**inputs, use_cache=False)
    for row, case in enumerate(cases):
        for layer, own in enumerate(expected[row].residual):
            _close(capture.residual[layer][row, 0].numpy(), own, INNER, f"residual stream of layer {layer} with padding on the left")
        if rows:
            for block, own in zip(sorted(capture.rows), expected[row].rows, strict=True):
                held = capture.rows[block][row, :, longest - len(case.ids) :].numpy()
                _close(held, own, ROWS, f"rows of block {block} with padding on the left")


def misplaced_cells(name: str, tiny: Tiny) -> list[str]:
    """Cells of an image whose token, or entry of the tower where it is captured, is not the only one that a change in their centre changes.

    The tower's attention is removed.
    """
    model, asked = build(name, tiny), image_processor(name, tiny)
    decoder = set(find_decoder(model).modules())
    for path, module in model.named_modules():
        if module not in decoder and path.endswith(PROJECTIONS):
            module.weight.data.zero_()
    ours = CaptureModel.of(model, ProcessorRule("", "", "", _no_probe))
    image = photo(0, 256, 192)
    grid = asked(images=[image], return_tensors="pt")["image_grid_thw"][0].tolist()
    merge = int(getattr(asked, "merge_size", 1))
    rows, columns = grid[1] // merge, grid[2] // merge
    request = CellRequest([np.array([k]) for k in range(rows * columns)], (rows, columns), "merged") if name in MERGED_TOWERS else None
    before, wrong = _features_of(ours, asked, image, request), []
    for row, column in ((0, 0), (1, 2), (rows - 2, 1), (rows - 1, columns - 1), (2, columns - 1)):
        other = image.copy()
        x, y = (int((column + 0.5) * 256 / columns), int((row + 0.5) * 192 / rows))
        other.paste((255, 0, 255), (x - 2, y - 2, x + 3, y + 3))
        found = _features_of(ours, asked, other, request)
        for what in found:
            changed = torch.nonzero((found[what] - before[what]).abs().amax(-1) > 1e-5)[:, 0].tolist()
            if changed != [row * columns + column]:
                wrong.append(f"cell {row}, {column} of {rows} x {columns} changes {what} of {changed}")
    return wrong


def misplaced_patches(name: str, tiny: Tiny) -> list[str]:
    """Patches that leave the tower and whose change moves other image tokens than the one of their square."""
    model, asked = build(name, tiny), image_processor(name, tiny)
    ours = CaptureModel.of(model, ProcessorRule("", "", "", _no_probe))
    made = image_tensors(asked(images=[photo(0, 256, 192)], return_tensors="pt"))
    rows, columns = made["image_grid_thw"][0, 1:].tolist()
    tower = find_tower(model)
    blocks, order = tower_blocks(tower), patch_places(tower, made["image_grid_thw"])
    request = TowerMapRequest(len(blocks), 0, ((rows, columns),))
    plain = ours.features(PreparedImages(made, ((),)), maps=request)
    merge, wrong = int(asked.merge_size), []
    assert plain.maps.shape == (len(blocks), 1, rows * columns, rows * columns)
    for row, column in ((0, 0), (1, 2), (rows - 1, columns - 1), (rows // 2, 1)):
        place = int(order[row * columns + column])

        def change(module: Any, args: Any, output: Any, place: int = place) -> None:
            hidden = output[0] if isinstance(output, tuple) else output
            hidden.view(-1, hidden.shape[-1])[place] += torch.linspace(-3, 2, hidden.shape[-1])

        handle = blocks[-1].register_forward_hook(change)
        moved = ours.features(PreparedImages(made, ((),))).pooled
        handle.remove()
        found = torch.nonzero((moved - plain.pooled).reshape(plain.tokens, -1).abs().amax(-1) > 1e-5)[:, 0].tolist()
        if found != [row // merge * (columns // merge) + column // merge]:
            wrong.append(f"patch {row}, {column} of {rows} x {columns} changes {found}")
    return wrong


def _features_of(ours: CaptureModel, asked: Any, image: Any, request: CellRequest | None) -> dict[str, torch.Tensor]:
    """(cell, hidden) image tokens, and (cell, vision hidden) residual stream of the tower at its entry and its exit."""
    features = ours.features(PreparedImages(image_tensors(asked(images=[image], return_tensors="pt")), ((),)), request)
    found = {"tokens": features.pooled.reshape(features.tokens, -1)}
    if request is not None:
        assert features.vision is not None
        assert len(features.vision) == len(tower_blocks(find_tower(ours.model))) + 1
        found |= {"the entry": features.vision[0], "the exit": features.vision[-1]}
    return found
