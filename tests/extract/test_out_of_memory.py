"""Memory runs out: every library's way of saying so halves the batch, and where that was is kept for a resumed run."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from stratascope.causal import FoldLabels, InterventionDesign, InterventionSettings  # noqa: E402
from stratascope.errors import CaptureError, InvalidInputError, StoreError  # noqa: E402
from stratascope.extract import plan_extraction, run_extraction  # noqa: E402
from stratascope.extract.run import intervention_session as session  # noqa: E402
from stratascope.extract.run.device_memory import OutOfMemory, attempt  # noqa: E402
from stratascope.extract.run.halvings import Halving, Halvings, read_halvings  # noqa: E402
from stratascope.extract.run.intervention import InterventionRunner  # noqa: E402
from stratascope.extract.run.intervention_session import run_interventions  # noqa: E402
from stratascope.extract.run.loading import on_device  # noqa: E402
from stratascope.extract.run.model import CaptureModel  # noqa: E402
from stratascope.extract.run.residual_edits import DeviceEdits  # noqa: E402
from stratascope.extract.run.shard_block import ShardBlock  # noqa: E402
from stratascope.extract.run.tail_pass import TailPass  # noqa: E402
from stratascope.store import ActivationStore, verify  # noqa: E402
from tests.extract.test_extraction import contents  # noqa: E402

SHORT = {
    "caching allocator": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "cuBLAS handle": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "cuBLAS workspace": RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
    "cuDNN": RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    "cuDNN 9": RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    "pinned host memory": torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be reported later"),
    "host memory": RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes."),
    "numpy": MemoryError("Unable to allocate 4.00 TiB for an array"),
}
OTHER = {
    "illegal access": RuntimeError("CUDA error: an illegal memory access was encountered"),
    "shapes": RuntimeError("mat1 and mat2 shapes cannot be multiplied (3x4 and 3x4)"),
    "capture": CaptureError("expected a run, found it out of memory"),
    "value": ValueError("out of memory"),
}


def raising(error: BaseException) -> Callable[[], Any]:
    def work() -> Any:
        raise error

    return work


@pytest.mark.parametrize("error", SHORT.values(), ids=SHORT)
def test_every_librarys_way_to_say_it_is_understood(error: BaseException) -> None:
    found = attempt(raising(error))
    assert isinstance(found, OutOfMemory)
    assert found.reason == str(error).splitlines()[0]


def test_this_machines_own_allocator_says_it_in_a_way_that_is_understood() -> None:
    assert isinstance(attempt(lambda: torch.empty(1 << 55, dtype=torch.uint8)), OutOfMemory)


@pytest.mark.parametrize("error", OTHER.values(), ids=OTHER)
def test_other_errors_are_not_swallowed(error: BaseException) -> None:
    with pytest.raises(type(error), match=re.escape(str(error))):
        attempt(raising(error))


def test_weights_that_fill_pinned_or_cublas_memory_are_refused_in_one_line() -> None:
    class Heavy:
        def to(self, device: torch.device) -> Any:
            raise SHORT["cuBLAS handle"]

    with pytest.raises(InvalidInputError, match=r"memory for the model's weights on cuda:0, found too little \(CUDA error: CUBLAS"):
        on_device(Heavy(), torch.device("cuda:0"))


class Shortage:
    """Batches of more than two examples find no memory from an example on; keeps the members of all batches that ran.

    The memory may run out before the batch starts, or when its tensors are copied to the device.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: BaseException, *, since: int = 0, copying: bool = False) -> None:
        self.ran: list[tuple[int, ...]] = []
        launch, move = CaptureModel.launch, CaptureModel._on_device

        def short(model: CaptureModel, batch: Any, request: Any) -> Any:
            if not copying and len(batch.members) > 2 and max(batch.members) >= since:
                raise error
            found = launch(model, batch, request)
            self.ran.append(batch.members)
            return found

        def no_room(model: CaptureModel, tensors: Any) -> Any:
            if copying and len(tensors.get("input_ids", ())) > 2:
                raise error
            return move(model, tensors)

        monkeypatch.setattr(CaptureModel, "launch", short)
        monkeypatch.setattr(CaptureModel, "_on_device", no_room)


@pytest.fixture
def small(settings):
    return plan_extraction(dataclasses.replace(settings, limit=12, block=4, record=("residual",), positions=("final",), thumbnail=None))


@pytest.mark.slow
@pytest.mark.parametrize("copying", [False, True], ids=["computing", "copying to the device"])
@pytest.mark.parametrize("kind", ["cuBLAS handle", "pinned host memory"])
def test_batches_are_halved_whoever_reports_the_shortage(
    small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, copying: bool
) -> None:
    shortage = Shortage(monkeypatch, SHORT[kind], copying=copying)
    report = run_extraction(small, tmp_path / "s.zarr")
    assert (report.halvings, report.written_blocks) == (1, 3)
    assert [len(batch) for batch in shortage.ran] == [2] * 6
    assert verify(tmp_path / "s.zarr").ok


def test_another_error_of_the_device_ends_the_run(small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Shortage(monkeypatch, OTHER["illegal access"])
    with pytest.raises(RuntimeError, match="illegal memory access"):
        run_extraction(small, tmp_path / "s.zarr")
    assert not (tmp_path / "s.zarr").exists()


def test_one_example_that_does_not_fit_is_refused_with_what_to_do(small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CaptureModel, "launch", lambda *_: raising(SHORT["cuDNN"])())
    words = r"expected memory for one example of \d+ tokens on cpu, found too little \(cuDNN error: CUDNN_STATUS_ALLOC_FAILED\); lower"
    with pytest.raises(InvalidInputError, match=words):
        run_extraction(small, tmp_path / "s.zarr", batch_tokens=1)


@pytest.mark.slow
@pytest.mark.parametrize("block", [1, 2], ids=["in the block that was halved", "in the next block"])
def test_interrupted_after_a_halving_and_resumed_gives_the_same_bytes(
    settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    """Memory is short in the middle of the second block. It is not when the run is resumed: larger batches would fit."""
    plan = plan_extraction(dataclasses.replace(settings, limit=24, block=8, record=("residual", "attention_rows"), thumbnail=None))
    order = sorted(range(8, 16), key=lambda k: (plan.token_counts[k], k))
    since, tokens = order[4], 4 * int(plan.token_counts.max())

    def run(path: Path, *, short: bool, stop: int | None = None) -> list[tuple[int, ...]]:
        with monkeypatch.context() as patch:
            shortage = Shortage(patch, SHORT["cuBLAS handle"], since=since if short else 99)
            real, made = ShardBlock._run_batch, []

            def batch(self: ShardBlock, members: list[int]) -> bool:
                done = real(self, members)
                made.extend([members] if done else [])
                if stop is not None and self._first == 8 * stop and len(made) >= 4 and any(len(each) <= 2 for each in made):
                    raise KeyboardInterrupt
                return done

            patch.setattr(ShardBlock, "_run_batch", batch)
            if stop is None:
                run_extraction(plan, path, batch_tokens=tokens)
            else:
                with pytest.raises(KeyboardInterrupt):
                    run_extraction(plan, path, batch_tokens=tokens)
            return shortage.ran

    whole = run(tmp_path / "whole.zarr", short=True)
    assert {len(batch) for batch in whole[:2]} == {4}
    assert max(len(batch) for batch in whole[-4:]) <= 2
    before = run(tmp_path / "part.zarr", short=True, stop=block)
    kept = read_halvings(tmp_path / "part.zarr")
    assert [each.block for each in kept[0, 1]] == [1]
    left = np.flatnonzero(~ActivationStore.open(tmp_path / "part.zarr").written)
    after = run(tmp_path / "part.zarr", short=False)
    assert after == [batch for batch in whole if batch[0] // 8 in left]
    assert before[: len(whole) - len(after)] == whole[: len(whole) - len(after)]
    assert contents(tmp_path / "part.zarr") == contents(tmp_path / "whole.zarr")
    assert verify(tmp_path / "part.zarr").ok


@pytest.mark.slow
def test_knockouts_of_a_resumed_run_are_batched_as_before(settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = ("residual", "knockout")
    plan = plan_extraction(dataclasses.replace(settings, limit=4, block=2, record=record, knockout_modes=("final",), knockout_window=0))
    real, budgets = CaptureModel.knock_out, []

    def run(path: Path, most: int, stop: bool = False) -> list[int]:
        budgets.clear()

        def short(self: CaptureModel, batch: Any, pair: Any, targets: Any, knockouts: Any, budget: int, check: Any) -> Any:
            if budget > most and batch.members[0] >= 2:
                raise SHORT["cuBLAS workspace"]
            if stop and budgets[-1:] == [512]:
                raise KeyboardInterrupt
            budgets.append(budget)
            return real(self, batch, pair, targets, knockouts, budget, check)

        monkeypatch.setattr(CaptureModel, "knock_out", short)
        if stop:
            with pytest.raises(KeyboardInterrupt):
                run_extraction(plan, path)
        else:
            run_extraction(plan, path)
        return list(budgets)

    assert run(tmp_path / "whole.zarr", 600) == [8192, 8192, 512, 512]
    run(tmp_path / "part.zarr", 600, stop=True)
    assert run(tmp_path / "part.zarr", 8192) == [512, 512]
    assert contents(tmp_path / "part.zarr") == contents(tmp_path / "whole.zarr")


def test_halvings_apply_from_their_place_on_to_the_blocks_of_their_process_alone(tmp_path: Path) -> None:
    first = Halvings(rank=0, of=2)
    first.add(Halving("capture", 2, 5, 100))
    first.keep_in(tmp_path)  # as of a store that exists only now
    first.add(Halving("capture", 4, 0, 50))
    assert [first.limit("capture", *at, 800) for at in [(0, 9), (2, 4), (2, 5), (2, 9), (4, 0), (6, 0)]] == [800, 800, 100, 100, 50, 50]
    assert first.limit("capture", 3, 0, 800) == 800
    assert first.limit("knockouts", 6, 0, 800) == 800
    assert first.limit("capture", 6, 0, 20) == 20
    alone = Halvings()
    alone.keep_in(tmp_path)
    alone.add(Halving("capture", 3, 1, 200))
    assert [alone.limit("capture", *at, 800) for at in [(3, 0), (3, 1), (4, 0), (5, 0)]] == [800, 200, 50, 200]
    assert read_halvings(tmp_path) == alone.by_shard
    assert set(alone.by_shard) == {(0, 1), (0, 2)}


@pytest.mark.parametrize("text", ["{", "[1]", '[{"work": "other", "block": 0, "place": 0, "tokens": 1}]', '[{"work": "capture"}]'])
def test_a_damaged_note_of_halvings_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "written/halvings/0-of-1.json"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(StoreError, match=r"0-of-1\.json: expected where an earlier run halved its batches"):
        Halvings().keep_in(tmp_path)
    path.write_text(json.dumps([]))
    assert read_halvings(tmp_path) == {(0, 1): []}


@pytest.fixture(scope="module")
def probed(settings, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A plan, its store, and a design of interventions on the truth at two positions."""
    folder = tmp_path_factory.mktemp("probed")
    plan = plan_extraction(dataclasses.replace(settings, limit=40, record=("residual",), thumbnail=None))
    run_extraction(plan, folder / "s.zarr")
    store = ActivationStore.open(folder / "s.zarr")
    truth = np.arange(40) // 2 % 2
    labels = FoldLabels("truth", np.arange(40), np.arange(40) % 2, np.arange(40).astype(str), truth, ("False", "True"))
    chosen = InterventionSettings(positions=("final", "object"), kinds=("erase",), controls=6, layers=(0, 3, 6), examples=36)
    return plan, store, InterventionDesign(store, labels, chosen)


def passes(monkeypatch: pytest.MonkeyPatch, error: BaseException, most: int, since: int) -> list[tuple[int, int]]:
    """From the example number `since` on, passes of variants with more tokens find no memory; (example, tokens) of those that ran."""
    ran: list[tuple[int, int]] = []
    begun: list[int] = []
    trace, real = InterventionRunner.trace, TailPass.run

    def started(self: Any, batch: Any) -> Any:
        begun.append(batch.members[0])
        return trace(self, batch)

    def short(self: Any, made: Any, edit: Any, kept: int) -> Any:
        tokens = made[-1].edited.stop * (self.trace.length - self.start)
        if tokens > most and len(set(begun)) > since:
            raise error
        ran.append((begun[-1], tokens))
        return real(self, made, edit, kept)

    monkeypatch.setattr(InterventionRunner, "trace", started)
    monkeypatch.setattr(TailPass, "run", short)
    return ran


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["caching allocator", "cuBLAS workspace", "pinned host memory", "numpy"])
def test_passes_of_interventions_are_halved_whoever_reports_the_shortage(
    probed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    plan, store, design = probed
    whole = run_interventions(plan, store, design, cache=tmp_path / "whole", key="a")
    assert whole.halvings == 0
    ran = passes(monkeypatch, SHORT[kind], 100, 5)
    short = run_interventions(plan, store, design, cache=tmp_path / "short", key="a")
    assert short.halvings == 2  # of 256 tokens
    before, after = ([tokens for example, tokens in ran if (example in design_order(design)[:5]) == early] for early in (True, False))
    assert max(before) > 100
    assert max(after) <= 64
    for name in ("logits", "change", "collateral", "divergence", "others"):
        assert getattr(short, name) == pytest.approx(getattr(whole, name), abs=1e-4, nan_ok=True)


def design_order(design: Any) -> list[int]:
    return [int(k) for _, numbers in design.folds() for k in numbers]


@pytest.mark.slow
def test_interventions_resumed_after_a_halving_have_the_bytes_of_an_uninterrupted_run(
    probed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted in the block after the halving; when resumed, there is memory enough, and passes are small nevertheless."""
    plan, store, design = probed

    def run(cache: Path, most: int, stop: int | None = None) -> list[tuple[int, int]]:
        with monkeypatch.context() as patch:
            ran = passes(patch, SHORT["cuBLAS handle"], most, 3)
            written = []

            def write(path: Path, results: Any, real: Any = session._write) -> None:
                if len(written) == stop:
                    raise KeyboardInterrupt
                written.append(path)
                real(path, results)

            patch.setattr(session, "_write", write)
            if stop is None:
                run_interventions(plan, store, design, cache=cache, key="a")
            else:
                with pytest.raises(KeyboardInterrupt):
                    run_interventions(plan, store, design, cache=cache, key="a")
            return ran

    whole = run(tmp_path / "whole", 100)
    run(tmp_path / "part", 100, stop=1)
    assert [halving.tokens for halving in read_halvings(tmp_path / "part")[0, 1]] == [128, 64]
    after = run(tmp_path / "part", 10_000)
    assert after == whole[-len(after) :]
    assert max(tokens for _, tokens in after) <= 64
    files = sorted(path.name for path in (tmp_path / "whole").glob("*.npz"))
    assert len(files) >= 3
    for name in files:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "part" / name).read_bytes()


def test_a_variant_that_does_not_fit_is_refused_with_what_to_do(probed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, store, design = probed
    passes(monkeypatch, SHORT["cuDNN"], 0, 0)
    words = (
        r"expected memory for one variant of an example of \d+ tokens on cpu, found too little \(cuDNN error: CUDNN_STATUS_ALLOC_FAILED\)"
    )
    with pytest.raises(InvalidInputError, match=words):
        run_interventions(plan, store, design, cache=tmp_path / "cache", key="a")
    monkeypatch.setattr(DeviceEdits, "of", lambda *_: raising(SHORT["caching allocator"])())
    with pytest.raises(InvalidInputError, match=r"expected memory for the directions of a fold on cpu, .*; lower `controls`"):
        run_interventions(plan, store, design, cache=tmp_path / "other", key="a")


def test_another_error_of_the_device_ends_the_interventions(probed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, store, design = probed
    passes(monkeypatch, OTHER["illegal access"], 0, 0)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        run_interventions(plan, store, design, cache=tmp_path / "cache", key="a")
