"""The estimate of time: what a sample took, extended to the whole, held against an extraction whose every piece costs what we say."""

from __future__ import annotations

import dataclasses
import re
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from stratascope.cli import main
from stratascope.errors import InvalidInputError
from stratascope.extract import ExtractionSettings, plan_extraction, run_extraction
from stratascope.extract.plan.duration import ExtractionTiming, Stage
from stratascope.extract.plan.plan_summary import span_text, timing_text

pytest.importorskip("torch")

import torch

from stratascope.extract.run import output_store, timing
from stratascope.extract.run import shard_block as blockwork
from stratascope.extract.run.model import CaptureModel
from stratascope.extract.run.session import ExtractionSession
from stratascope.store import BlockWriter


class Clock:
    """Goes on only where a piece of work says what it costs; knows the bill by kind of work."""

    def __init__(self) -> None:
        self.bill: Counter[str] = Counter()
        self._lock = threading.Lock()

    def __call__(self) -> float:
        return float(sum(self.bill.values()))

    def charge(self, name: str, seconds: float) -> None:
        with self._lock:
            self.bill[name] += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock by which images, tower, model, filling, knockouts and writing cost something else each, and maps extra."""
    made = Clock()

    def costing(owner: Any, method: str, name: str, cost: Callable[..., float]) -> None:
        real = getattr(owner, method)

        def costly(*args: Any, **kwargs: Any) -> Any:
            made.charge(name, cost(*args))
            return real(*args, **kwargs)

        monkeypatch.setattr(owner, method, costly)

    def model(session: ExtractionSession, batch: Any) -> float:
        mapped = session.plan.has_map[list(batch.members)].any()
        return batch.input_ids.numel() * (0.003 if mapped else 0.001)

    costing(ExtractionSession, "load", "images", lambda *_: 0.02)
    costing(ExtractionSession, "compute_features", "vision tower", lambda *_: 0.05)
    costing(ExtractionSession, "launch", "model", model)
    costing(ExtractionSession, "knock_out", "knockouts", lambda session, k, *_: 0.01 * int(session.plan.token_counts[k]))
    costing(blockwork, "fill", "filling", lambda plan, members, *_: 0.0002 * int(plan.token_counts[list(members)].sum()))
    costing(BlockWriter, "write", "writing", lambda _writer, _block, arrays: 0.03 * len(arrays["status"]))
    return made


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"maps": 6, "record": ("residual", "attention_maps", "knockout"), "knockouts": 8, "knockout_window": 0, "positions": ("final",)},
        {"condition": "shuffled-image", "record": ("residual",), "block": 16},
    ],
    ids=["some maps, some knockouts", "shuffled images, small blocks"],
)
def test_the_whole_costs_what_the_sample_said(settings: ExtractionSettings, tmp_path: Path, clock: Clock, changes: dict[str, Any]) -> None:
    plan = plan_extraction(dataclasses.replace(settings, limit=48, thumbnail=None, **changes))
    found = timing.time_extraction(plan, batch_tokens=600, clock=clock)
    assert not list(tmp_path.iterdir())
    clock.bill.clear()
    run_extraction(plan, tmp_path / "whole.zarr", batch_tokens=600)
    spent = {name: seconds for name, seconds in clock.bill.items() if seconds}
    working = sum(stage.seconds for stage in found.stages)
    told = {name: share * working for name, share in found.shares.items() if share}
    assert told == pytest.approx(spent, rel=0.15)
    assert found.beginning + working == pytest.approx(sum(spent.values()), rel=0.05)
    assert found.low <= sum(spent.values()) <= found.high * 1.05
    assert found.low <= sum(spent.values()) - spent["images"]  # images are prepared beside the model


@pytest.mark.slow
def test_what_is_done_once_is_in_both_ends(
    settings: ExtractionSettings, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planning, loading, making the store and the check of the first batch, as the extraction's own bill has them."""

    def costly(owner: Any, name: str, seconds: float) -> None:
        real = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args, **kwargs: (clock.charge("once", seconds), real(*args, **kwargs))[1])

    costly(ExtractionSession, "_check", 0.5)
    for module in (timing, output_store):
        costly(module, "create_store", 3.0)
    costly(CaptureModel, "__init__", 7.0)
    plan = plan_extraction(dataclasses.replace(settings, limit=48, thumbnail=None, record=("residual",)))
    found = timing.time_extraction(plan, before=11.0, batch_tokens=600, clock=clock)
    assert found.beginning == pytest.approx(11 + 7 + 3 + 0.5)
    clock.bill.clear()
    run_extraction(plan, tmp_path / "whole.zarr", batch_tokens=600)
    assert clock.bill["once"] == pytest.approx(7 + 3 + 0.5)
    assert found.low <= 11 + clock() <= found.high * 1.05


def test_a_range_is_from_side_by_side_to_one_after_the_other() -> None:
    stages = (
        Stage("model", 1000, ((10, 1.0), (10, 2.0))),
        Stage("vision tower", 100, ((1, 0.1),)),
        Stage("images", 100, ((1, 0.4),), threads=4),
        Stage("writing", 50, ((5, 30.0),), threads=2),
    )
    found = ExtractionTiming(1000, 20, 2, stages, 5.0, "cpu", 8192)
    assert found.low == 5 + 150  # the writing lane; the device's is 100 + 10
    assert found.high == 5 + 200 + 10 + 10 + 150
    assert list(found.shares) == ["model", "writing", "vision tower", "images"]
    assert sum(found.shares.values()) == pytest.approx(1)
    assert found.cost(7200) == (2 * found.low, 2 * found.high)


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [
        (3.14, 18.2, "3.1 to 18 seconds"),
        (60, 180, "1.0 to 3.0 minutes"),
        (20, 125, "0.33 to 2.1 minutes"),
        (9000, 36000, "2.5 to 10 hours"),
    ],
)
def test_spans_in_words(low: float, high: float, text: str) -> None:
    assert span_text(low, high) == text


def short_of_memory(monkeypatch: pytest.MonkeyPatch, tokens: int) -> None:
    """Passes of more than so many tokens, padding included, find no memory."""
    real = ExtractionSession.launch

    def launch(session: ExtractionSession, batch: Any) -> Any:
        if batch.input_ids.numel() > tokens:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate more.")
        return real(session, batch)

    monkeypatch.setattr(ExtractionSession, "launch", launch)


@pytest.mark.slow
def test_a_timing_run_out_of_memory_says_what_to_give(plan, monkeypatch: pytest.MonkeyPatch) -> None:
    short_of_memory(monkeypatch, 1000)
    found = timing.time_extraction(plan, batch_tokens=8192)
    assert found.halvings
    assert found.batch_tokens <= 1000
    assert f"memory ran out {found.halvings} times and batches were halved; set `batch_tokens` to {found.batch_tokens}" in timing_text(
        found
    )


def planned(scenes: Path, *more: str) -> Result:
    files = ["--examples", str(scenes / "scenes.jsonl"), "--images", str(scenes / "images")]
    return CliRunner().invoke(main, ["plan", "--model", "demo", "--device", "cpu", *files, *more])


@pytest.mark.slow
def test_the_plan_prints_time_work_and_cost(scenes: Path) -> None:
    result = planned(scenes, "--time", "--price", "3600", "--limit", "40")
    assert result.exit_code == 0, result.output
    time, work, cost = result.output.strip().splitlines()[-3:]
    assert re.fullmatch(r"time       [\d.]+ to [\d.]+ seconds for 40 examples, [\d.]+ to [\d,.]+ per second \(.*\)", time)
    assert re.search(r"model \d+%", work)
    assert work.endswith("measured on 1 batches with 40 examples on cpu")
    dear = float(time.split(" to ")[1].split()[0])
    assert re.fullmatch(r"cost       [\d.]+ to [\d.]+ at 3600 per hour, without downloading the model", cost)
    assert float(cost.split()[3]) == dear


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ((), "no GPU found; set --time to measure on this machine"),
        (("--no-time",), "disabled"),
        (("--time", "--image-size", "640x480"), "expected real images"),
        (("--time", "--device", "cuda"), "expected a CUDA device"),
    ],
)
def test_a_plan_stands_without_its_time(scenes: Path, more: tuple[str, ...], why: str) -> None:
    result = planned(scenes, *more)
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[-1].startswith(f"time       not estimated: {why}")


@pytest.mark.slow
def test_a_plan_stands_where_not_even_one_example_fits(scenes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short_of_memory(monkeypatch, 10)
    result = planned(scenes, "--time")
    assert result.exit_code == 0, result.output
    last = result.output.splitlines()[-1]
    assert re.search(r"not estimated: expected memory for one example of \d+ tokens on cpu, .* lower --max-pixels", last)


@pytest.mark.slow
def test_photos_that_cannot_be_decoded_are_not_timed(settings: ExtractionSettings, scenes: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for number, image in enumerate(sorted((scenes / "images").iterdir())):
        (tmp_path / "images" / image.name).write_bytes(b"no image" if number % 2 else image.read_bytes())
    plan = plan_extraction(dataclasses.replace(settings, images=tmp_path / "images"))
    found = timing.time_extraction(plan)
    assert found.timed_examples == len(plan.examples) - len(plan.failed)
    assert {stage.name: stage.work for stage in found.stages}["images"] == found.timed_examples
    nothing = dataclasses.replace(plan, facts={name: dataclasses.replace(f, problem="broken") for name, f in plan.facts.items()})
    with pytest.raises(InvalidInputError, match="at least one image"):
        timing.time_extraction(nothing)


def test_batches_that_are_timed_are_spread_over_all_lengths_and_both_kinds(plan) -> None:
    some = dataclasses.replace(plan, has_map=np.arange(len(plan.examples)) % 48 == 0)
    session = ExtractionSession(some, 300)
    session.clock = lambda: 0.0
    run = timing._Run(session, 60.0)
    batches = timing.planned_batches(session)
    assert sorted(k for batch in batches for k in batch) == list(range(len(plan.examples)))
    chosen = run._chosen(batches)
    mapped = [any(some.has_map[k] for k in batch) for batch in chosen]
    assert mapped.count(True) == 2
    assert mapped.count(False) == 3
    assert len({tuple(batch) for batch in chosen}) == len(chosen)
