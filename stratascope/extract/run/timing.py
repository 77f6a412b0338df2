"""Time a sample of a plan's batches through all stages of an extraction, into temporary stores."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from stratascope.errors import InvalidInputError
from stratascope.extract.plan.duration import ExtractionTiming, Sample, Stage
from stratascope.extract.plan.extraction_plan import ExtractionPlan
from stratascope.extract.plan.store_contents import store_contents
from stratascope.extract.run.block_arrays import held_examples
from stratascope.extract.run.inputs import first_per_image
from stratascope.extract.run.session import ExtractionSession
from stratascope.extract.run.shard_block import ShardBlock
from stratascope.extract.run.timed_session import Clock, ImmediateQueue, NoBar, TimedSession
from stratascope.extract.run.vision_features import FeatureCache, ImageFeatures, feature_budget
from stratascope.store import BlockWriter, create_store

BATCHES = 6
"""Batches that are timed at most, after a warm-up."""
FEWEST = 2
"""Batches that are timed even if they exceed the time limit."""
WRITTEN = 3
"""Timed batches that are written, into a store each."""
KNOCKED = 2
"""Examples whose knockouts are timed, after a warm-up."""


def time_extraction(
    plan: ExtractionPlan,
    *,
    batch_tokens: int = 8192,
    seconds: float = 60.0,
    before: float = 0.0,
    clock: Clock = time.perf_counter,
    progress: bool = False,
) -> ExtractionTiming:
    """Load the model, run a few of the plan's batches and time each stage; leaves no files.

    The largest batch runs first as a warm-up. The others are spaced evenly over the plan's batches sorted by length. If memory runs out,
    batches are halved as in an extraction, and the timing starts again.

    Parameters
    ----------
    plan
        From `plan_extraction`; weights and images must be available.
    batch_tokens
        As for `run_extraction`.
    seconds
        Time limit after which no further batch starts.
    before
        Seconds that planning and loading torch took.
    clock
        Returns seconds.
    progress
        Show a progress bar.

    Raises
    ------
    InvalidInputError
        If the plan has only a stated image size, no image can be read, the device does not exist, or memory does not hold one example.
    CaptureError
        If the captured activations do not agree with the model's own outputs.
    """
    if plan.settings.image_size is not None:
        raise InvalidInputError("expected real images for a timing run, found a plan with a stated image size; leave out `image_size`")
    begin = clock()
    session = TimedSession(plan, batch_tokens, clock)
    beginning = before + clock() - begin
    while True:
        halvings = session.halvings
        found = _Run(session, seconds, progress).timing(beginning)
        if session.halvings == halvings:
            return found


def planned_batches(session: ExtractionSession) -> list[list[int]]:
    """Example numbers of all expected batches of the full extraction."""
    made: list[list[int]] = []
    layout = session.plan.store
    for block in range(layout.blocks):
        members = [k for k in session.in_order(layout.block_examples(block)) if k not in session.plan.failed]
        while members:
            made.append(session.next_batch(members))
            members = members[len(made[-1]) :]
    return made


class _Run:
    """One attempt at a timing, with a fixed batch size."""

    def __init__(self, session: TimedSession, allowed: float, progress: bool = False) -> None:
        self._session, self._allowed, self._progress = session, allowed, progress
        self._plan = session.plan
        self._bare = replace(self._plan, knockouts=None, changed=None)
        """The plan without knockouts and changes in the vision tower, which are timed separately."""
        self._samples: dict[tuple[str, bool], list[Sample]] = {}
        """(stage, whether the batch has maps) -> samples; False for stages without that difference."""
        self._device = session.model.device

    def timing(self, beginning: float) -> ExtractionTiming:
        session, clock = self._session, self._session.clock
        batches, cuda = planned_batches(session), self._device.type == "cuda"
        if not batches:
            raise InvalidInputError("expected at least one image that can be decoded for a timing run, found none")
        if cuda:
            torch.cuda.reset_peak_memory_stats(self._device)
        timed: list[list[int]] = []
        with tempfile.TemporaryDirectory(prefix="stratascope-timing-") as folder:
            begin = clock()
            create_store(Path(folder) / "whole.zarr", self._plan.store, **store_contents(self._plan))
            beginning += clock() - begin
            self._time(max(batches, key=self._tokens))
            self._samples.clear()
            begin = clock()
            chosen = self._chosen(batches)
            with tqdm(total=len(chosen), desc="timing", unit="batch", disable=not self._progress, leave=False) as bar:
                for batch in chosen:
                    all_kinds = {self._mapped(b) for b in timed} == {self._mapped(b) for b in batches}
                    if len(timed) >= FEWEST and all_kinds and clock() - begin > self._allowed:
                        break
                    arrays = self._time(batch)
                    if len(timed) < WRITTEN:
                        self._write(batch, arrays, Path(folder) / f"{len(timed)}.zarr")
                    timed.append(batch)
                    bar.update(1)
        self._time_knockouts()
        self._time_changes()
        return ExtractionTiming(
            examples=len(self._plan.examples),
            timed_examples=sum(map(len, timed)),
            timed_batches=len(timed),
            stages=self._stages(batches),
            beginning=beginning + session.checking,
            device=f"{self._device} ({torch.cuda.get_device_name(self._device)})" if cuda else str(self._device),
            batch_tokens=session.batch_tokens,
            halvings=session.halvings,
            peak=torch.cuda.max_memory_allocated(self._device) if cuda else None,
            features=feature_budget(self._device) if cuda and session.model.accepts_features else 0,
            memory=torch.cuda.get_device_properties(self._device).total_memory if cuda else None,
        )

    def _through(self, members: Sequence[int]) -> tuple[dict[str, np.ndarray], float]:
        """Run a batch through all stages; returns its arrays and the seconds of the model."""
        session, plan = self._session, self._plan
        session.spent.clear()
        session.features = FeatureCache((name for k in members for name in plan.images_of(k)), feature_budget(self._device))
        images = (session.load(place) for place in first_per_image(plan, members))
        place = plan.store.block_examples(members[0] // plan.store.block)
        begin = session.clock()
        work = ShardBlock(session, place.start, len(place), images, ImmediateQueue(session), NoBar())
        work.run(members)
        seconds = session.clock() - begin - sum(map(sum, session.spent.values()))
        at, found = np.array(members) - place.start, {}
        for spec in plan.store.arrays():
            if spec.name in work.arrays:
                held = held_examples(plan, spec)[place.start : place.stop]
                rows = np.array([int(held[:k].sum()) for k in at if held[k]], np.intp)
                found[spec.name] = work.arrays[spec.name].take(rows, spec.example_axis)
        return found, seconds

    def _time(self, members: Sequence[int]) -> dict[str, np.ndarray]:
        """Run a batch and note its times; returns its arrays."""
        session, plan, tokens = self._session, self._plan, self._tokens(members)
        session.plan = self._bare
        arrays, seconds = self._through(members)
        session.plan = plan
        for name, each in session.spent.items():
            by_token = name in ("filling", "gradients")
            self._note(name, tokens if by_token else len(each), sum(each), name == "filling" and self._mapped(members))
        self._note("model", tokens, seconds, self._mapped(members))
        return arrays

    def _write(self, members: Sequence[int], arrays: dict[str, np.ndarray], path: Path) -> None:
        """Write a batch to a store of its own."""
        plan, clock = self._plan, self._session.clock
        part = replace(
            plan,
            examples=[plan.examples[k] for k in members],
            shown=[plan.shown[k] for k in members],
            further=[plan.further[k] for k in members] if plan.further else (),
            layouts=[plan.layouts[k] for k in members],
            has_map=plan.has_map[list(members)],
            has_patches=plan.has_patches[list(members)],
            store=plan.store.subset(examples=len(members), block=len(members)),
        )
        create_store(path, part.store, **store_contents(part))
        created = _bytes(path)
        with BlockWriter(path) as writer:
            begin = clock()
            writer.write(0, arrays)
            seconds = clock() - begin
        self._note("writing", _bytes(path) - created, seconds)

    def _time_knockouts(self) -> None:
        """Time knockouts of a few examples of medium length."""
        if self._plan.knockouts is None:
            return
        able = [int(k) for k in np.flatnonzero(self._plan.knockouts.chosen) if int(k) not in self._plan.failed]
        able.sort(key=lambda k: self._plan.token_counts[k])
        middle = able[max(0, len(able) // 2 - KNOCKED // 2) :][:KNOCKED]
        for number, k in enumerate([*middle[:1], *middle]):  # the first one twice, as a warm-up
            self._through([k])
            if number and "knockouts" in self._session.spent:
                self._note("knockouts", float(self._plan.token_counts[k]), sum(self._session.spent["knockouts"]))

    def _time_changes(self) -> None:
        """Time the changes in the vision tower of two examples, after a warm-up."""
        able = [] if self._plan.changed is None else [int(k) for k in np.flatnonzero(self._plan.changed) if int(k) not in self._plan.failed]
        for number, k in enumerate([*able[:1], *able[:2]]):
            self._session.spent.clear()
            self._session.vision_changes(k)
            if number:
                self._note("vision changes", 1, sum(self._session.spent["vision changes"]))

    def _stages(self, batches: list[list[int]]) -> tuple[Stage, ...]:
        """All timed stages with their total work."""
        plan = self._plan
        readers, writers = self._session.threads
        blocks: dict[int, list[int]] = {}
        for batch in batches:
            blocks.setdefault(batch[0] // plan.store.block, []).extend(batch)
        estimate = plan.estimate.set_index("array")["estimated_bytes"].drop("created")
        chosen = [] if plan.knockouts is None else [k for k in np.flatnonzero(plan.knockouts.chosen) if k not in plan.failed]
        work = {
            "images": sum(len(list(first_per_image(plan, block))) for block in blocks.values()),
            "vision tower": self._tower_passes([name for batch in batches for k in batch for name in plan.images_of(k)]),
            "gradients": sum(map(self._tokens, batches)),
            "knockouts": float(plan.token_counts[chosen].sum()),
            "vision changes": 0 if plan.changed is None else sum(k not in plan.failed for k in np.flatnonzero(plan.changed)),
            "writing": float(estimate.sum()) * sum(map(len, batches)) / len(plan.examples),
        }
        mapped = {kind: sum(self._tokens(batch) for batch in batches if self._mapped(batch) is kind) for kind in (False, True)}
        threads = {"images": readers, "writing": writers}
        return tuple(
            Stage(name, work.get(name, mapped[kind]), tuple(samples), threads.get(name, 1))
            for (name, kind), samples in self._samples.items()
        )

    def _tower_passes(self, order: list[str]) -> int:
        """How often the vision tower runs for images in this order, given the size of the feature cache."""
        stand_in = torch.empty(self._session.feature_bytes, dtype=torch.uint8, device="meta")
        features = ImageFeatures(stand_in, (), None, None, object, False)
        cache = FeatureCache(order, feature_budget(self._device))
        for name in order:
            cache.obtain(name, lambda: features)
        return cache.computed

    def _chosen(self, batches: list[list[int]]) -> list[list[int]]:
        """Batches with and without maps in turn, each evenly spaced by length, medium lengths first."""
        kinds = [[b for b in batches if self._mapped(b) is kind] for kind in (True, False)]
        kinds = [sorted(each, key=lambda b: int(self._plan.token_counts[b].max())) for each in kinds if each]
        count = BATCHES // len(kinds)
        spread = []
        for each in kinds:
            places = sorted({int((i + 0.5) / count * len(each)) for i in range(count)}, key=lambda place: abs(place - len(each) / 2))
            spread.append([each[place] for place in places])
        return [each[turn] for turn in range(count) for each in spread if turn < len(each)]

    def _mapped(self, batch: Sequence[int]) -> bool:
        return bool((self._plan.has_map | self._plan.has_patches)[list(batch)].any())

    def _tokens(self, batch: Sequence[int]) -> float:
        """Tokens of a batch, padding included."""
        return float(len(batch) * int(self._plan.token_counts[list(batch)].max()))

    def _note(self, name: str, units: float, seconds: float, mapped: bool = False) -> None:
        self._samples.setdefault((name, mapped), []).append((units, seconds))


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
