"""Run interventions on the examples of a store: blocks of examples, a cache of finished ones, and checks against the store."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from tqdm.auto import tqdm

from stratascope.errors import InvalidInputError, ProvenanceMismatchError, StoreError
from stratascope.extract.plan.answer_tokens import ABSENT
from stratascope.extract.plan.extraction_plan import ExtractionPlan
from stratascope.extract.plan.intervention_plan import (
    BATCH_TOKENS,
    check_same_extraction,
    reruns_whole_prompts,
    settings_of_store,
    with_stored_pixels,
)
from stratascope.extract.run.extraction import plan_extraction, require_extract_extra
from stratascope.store import ActivationStore
from stratascope.store.io.durable import write_output

if TYPE_CHECKING:
    from stratascope.extract.run.intervention import Measured
    from stratascope.extract.run.residual_edits import Edits, Interventions

BLOCK = 16
"""Examples whose results are cached together."""
ARRAYS = ("logits", "change", "collateral", "divergence", "others")
"""Arrays of `MeasuredExamples` and of the cache."""


class Design(Protocol):
    """Which variants to run on which examples."""

    @property
    def parts(self) -> tuple[tuple[str, ...], ...]: ...
    @property
    def windows(self) -> Sequence[tuple[int, int]]: ...
    @property
    def sources(self) -> Sequence[str]: ...
    def folds(self) -> Iterator[tuple[int, np.ndarray]]: ...
    def stacks(self, fold: int) -> Mapping[tuple[str, int], Edits]: ...


SourceVectors = Callable[[int, Mapping[str, np.ndarray | None], Sequence[int]], Mapping[str, np.ndarray]]
"""(example, position -> its tokens, layers) -> position -> (layer, source, token, d) residual streams to patch in."""


@dataclass(frozen=True)
class MeasuredExamples:
    """Results of all variants, in the order position, window, slot."""

    examples: np.ndarray
    """(example,) their numbers, ascending."""
    logits: np.ndarray
    """(example, choice) float32, without an edit."""
    change: np.ndarray
    """(example, variant, choice) float32: logits minus those of the unedited rerun."""
    collateral: np.ndarray
    """(example, variant) float32: norm of the edit relative to that of the residual stream."""
    divergence: np.ndarray
    """(example, variant) float32: KL divergence of the next-token distribution, in nats."""
    others: np.ndarray
    """(example, variant) float32: the same among all tokens but the answers."""
    halvings: int = 0
    """How often passes were halved because memory ran out, in this run."""


def plan_of_store(store: ActivationStore, where: Path | None = None, **given: Any) -> ExtractionPlan:
    """The plan of the extraction that made a store.

    Parameters
    ----------
    store
        The store.
    where
        Its path.
    given
        Where data and model are, as of `settings_of_store`.

    Raises
    ------
    ProvenanceMismatchError
        If model, prompt or data are not those of the store; names what differs.
    InvalidInputError
        If the data cannot be found.
    MissingExtraError
        If the `extract` extra is not installed.
    """
    require_extract_extra()
    settings = settings_of_store(store, where, **given)
    plan = plan_extraction(settings, weights=True)
    if (again := with_stored_pixels(settings, plan, store)) is not None:
        plan = plan_extraction(again, weights=True)
    check_same_extraction(plan, store)
    return plan


def run_interventions(
    plan: ExtractionPlan,
    store: ActivationStore,
    design: Design,
    *,
    cache: Path,
    key: str,
    source_vectors: SourceVectors | None = None,
    batch_tokens: int = BATCH_TOKENS,
    progress: bool = False,
) -> MeasuredExamples:
    """Run all variants of the chosen examples; continue an interrupted run.

    Parameters
    ----------
    plan
        From `plan_of_store`.
    store
        The store; answers and residual streams of the run must be those that it holds.
    design
        Variants and examples.
    cache
        Folder of finished blocks of examples.
    key
        Digest of everything that decides the numbers; a cache with another one is refused.
    source_vectors
        Residual streams to patch in, where the design has sources.
    batch_tokens
        Tokens of variants in a forward pass, at most; halved permanently when memory runs out.
    progress
        Show a progress bar.

    Raises
    ------
    StoreError
        If the cache is of other settings, or damaged.
    InvalidInputError
        If memory does not suffice for a single variant.
    ProvenanceMismatchError
        If the model does not give the store's answers or residual streams.
    CaptureError
        If an unedited rerun does not reproduce the pass.
    """
    _check_cache(cache, key)
    blocks: list[Block] = []
    for fold, numbers in design.folds():
        for block, start in enumerate(range(0, len(numbers), BLOCK)):
            path = cache / f"fold-{fold}-block-{block}.npz"
            blocks.append(Block(len(blocks), fold, numbers[start : start + BLOCK], path))
    pending = [block for block in blocks if not block.path.exists()]
    total = sum(len(block.examples) for block in blocks)
    halvings = _fill(plan, store, design, pending, cache, source_vectors, batch_tokens, progress, total) if pending else 0
    found: dict[str, list[np.ndarray]] = {name: [] for name in ARRAYS}
    for each in blocks:
        arrays = _read(each.path, len(each.examples))
        for name in ARRAYS:
            found[name].append(arrays[name])
    numbers = np.concatenate([block.examples for block in blocks])
    order = np.argsort(numbers)
    return MeasuredExamples(numbers[order], **{name: np.concatenate(parts)[order] for name, parts in found.items()}, halvings=halvings)


@dataclass(frozen=True)
class Block:
    """Examples of a fold whose results are cached together."""

    number: int
    """Its place among all blocks, finished or not."""
    fold: int
    examples: np.ndarray
    path: Path
    """File of its results."""


def _fill(
    plan: ExtractionPlan,
    store: ActivationStore,
    design: Design,
    pending: Sequence[Block],
    cache: Path,
    source_vectors: SourceVectors | None,
    batch_tokens: int,
    progress: bool,
    total: int,
) -> int:
    """Run and cache blocks; the number of halvings."""
    import torch

    from stratascope.extract.run.device_memory import OutOfMemory, attempt
    from stratascope.extract.run.halvings import Halvings, read_halvings
    from stratascope.extract.run.inputs import check_cut, shown_image
    from stratascope.extract.run.intervention import Answers, InterventionRunner, pass_tokens
    from stratascope.extract.run.residual_edits import DeviceEdits, Interventions
    from stratascope.extract.run.self_check import LIMITS
    from stratascope.extract.run.session import ExtractionSession
    from stratascope.extract.run.vision_features import FeatureCache, feature_budget

    session = ExtractionSession(plan, batch_tokens)
    session.kept = Halvings(by_shard=read_halvings(cache), path=cache)
    model, limits = session.model, LIMITS[str(plan.provenance["model"]["dtype"])]
    whole = reruns_whole_prompts(plan)
    runner = InterventionRunner(model, whole=whole)
    order = [int(k) for block in pending for k in block.examples]
    session.features = FeatureCache([name for k in order for name in plan.images_of(k)], feature_budget(model.device))
    names = list(dict.fromkeys(name for part in design.parts for name in part))

    def batch_of(example: int) -> Any:
        names = plan.images_of(example)

        def prepared(number: int) -> Any:
            made = session.prepare(shown_image(plan, names[number]))
            check_cut(plan, example, made, number)
            return made

        def features(number: int) -> Any:
            return session.compute_features(example, prepared(number), names[number])

        if model.accepts_features:
            obtain = session.features.obtain
            return session.batch([example], {}, [obtain(name, partial(features, number)) for number, name in enumerate(names)])
        return session.batch([example], prepared(0).tensors)

    def edits_of(fold: int) -> Interventions:
        edits = {place: DeviceEdits.of(stack, model.device) for place, stack in design.stacks(fold).items()}
        return Interventions(tuple(design.parts), tuple(design.windows), edits, len(design.sources))

    def measured(example: int, batch: Any, chosen: Interventions, first: bool, most: int) -> Measured:
        tokens = {name: plan.position_tokens(example, name) for name in names}
        own = plan.tokenizer.answers(plan.examples[example]) if plan.tokenizer.scored else ()
        choices = tuple(dict.fromkeys(answer[0] for answer in own)) or session.request.choices
        sources = None if source_vectors is None else source_vectors(example, tokens, chosen.layers)
        tracked = runner.trace(batch)
        if first:
            _check_residual(store, example, tracked.trace, tokens, limits.inner)
        answers = Answers(choices, own, len(plan.store.choices))
        return runner.measure_answers(tracked, answers, tokens, chosen, sources, limits.inner, tokens_of_pass=most)

    def free() -> None:
        session.features.clear()
        torch.cuda.empty_cache()

    ready: tuple[int, Interventions] | None = None
    with tqdm(total=total, initial=total - len(order), desc="intervene", unit="example", disable=not progress) as bar:
        for block in pending:
            if ready is None or ready[0] != block.fold:
                ready = edits = None  # the edits of one fold at a time fill the memory
                edits = attempt(partial(edits_of, block.fold))
                if isinstance(edits, OutOfMemory):
                    raise session.too_little("the directions of a fold", edits, "lower `controls`, choose fewer `layers`")
                ready = block.fold, edits
            results: list[Measured] = []
            for place, k in enumerate(map(int, block.examples)):
                length = len(plan.layouts[k].ids)
                batch = attempt(partial(batch_of, k))
                if isinstance(batch, OutOfMemory):  # the second time with nothing else in the device's memory
                    free()
                    batch = attempt(partial(batch_of, k))
                if isinstance(batch, OutOfMemory):
                    raise session.too_little(f"the image {plan.shown[k]}", batch, "extract with lower `max_pixels`")
                while len(results) == place:
                    most = session.kept.limit("interventions", block.number, place, batch_tokens)
                    most = most if whole else pass_tokens(most, length)
                    found = attempt(partial(measured, k, batch, ready[1], place == 0, most))
                    if not isinstance(found, OutOfMemory):
                        results.append(found)
                    elif most == 1:
                        raise session.too_little(f"one variant of an example of {length} tokens", found, "choose later `positions`")
                    else:
                        free()
                        session.halve("interventions", block.number, place, most // 2)
                _check_answers(store, k, results[-1].logits, limits.logits)
                bar.update(1)
            _write(block.path, results)
    return session.halvings


def _check_answers(store: ActivationStore, example: int, logits: np.ndarray, tolerance: float) -> None:
    stored = store.read("answer_logits", examples=example)
    stored, logits = (values[np.isfinite(stored) & (stored > ABSENT)] for values in (stored, logits))
    gap = float(np.abs(logits - stored).max())
    if not gap <= tolerance * max(1.0, float(np.abs(stored).max())):
        raise ProvenanceMismatchError(
            f"example {store.examples['id'].iloc[example]}: expected the answer logits of {store.name} ({_numbers(stored)}), found "
            f"{_numbers(logits)}; run on the kind of device and with the versions of the extraction (`stratascope info` prints them)"
        )


def _check_residual(store: ActivationStore, example: int, trace: Any, tokens: Mapping[str, np.ndarray | None], tolerance: float) -> None:
    for name, found in tokens.items():
        if found is None or not len(found) or not store.available("residual", name)[example]:
            continue
        stored = store.read("residual", position=name, examples=example)
        for row, layer in zip(stored, store.layers, strict=True):
            own = trace.inputs[layer][0, list(found)].float().mean(0).cpu().numpy()
            gap = float(np.linalg.norm(own - row) / max(float(np.linalg.norm(row)), 1e-30))
            if not gap <= tolerance:
                raise ProvenanceMismatchError(
                    f"example {store.examples['id'].iloc[example]}: expected the residual stream of {store.name} at {name}, layer {layer}, "
                    f"found another ({gap:.3g} of its norm off); run with the device and the versions of the extraction"
                )


def _numbers(values: np.ndarray) -> str:
    return ", ".join(f"{value:.4g}" for value in values)


def _check_cache(cache: Path, key: str) -> None:
    path = cache / "settings.json"
    if path.exists():
        try:
            known = json.loads(path.read_text("utf-8")).get("key")
        except (OSError, ValueError, AttributeError) as error:
            raise StoreError(f"{path}: expected settings of unfinished interventions, found: {error}; remove the folder") from error
        if known != key:
            raise InvalidInputError(
                f"{cache}: expected unfinished interventions of the same store, probes and settings, found others; give another `out`, "
                "or remove the folder"
            )
        return
    if cache.exists() and any(cache.iterdir()):
        raise InvalidInputError(f"{cache}: expected a folder of unfinished interventions, found other files; give another `out`")
    text = json.dumps({"key": key}).encode()
    write_output(path, lambda file: file.write(text))


def _write(path: Path, results: Sequence[Measured]) -> None:
    count = len(results)
    arrays = {
        "logits": np.stack([r.logits for r in results]),
        "change": np.stack([r.change for r in results]).reshape(count, -1, results[0].change.shape[-1]),
        **{name: np.stack([getattr(r, name) for r in results]).reshape(count, -1) for name in ("collateral", "divergence", "others")},
    }
    write_output(path, lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]


def _read(path: Path, count: int) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ARRAYS}
    except Exception as error:
        raise StoreError(f"{path}: expected a finished block of interventions, found: {error}; remove the file and run again") from error
    if any(len(values) != count for values in arrays.values()):
        raise StoreError(f"{path}: expected {count} examples, found others; remove the file and run again")
    return arrays
