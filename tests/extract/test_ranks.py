"""Processes that a launcher starts share the blocks of one store: by torchrun's and SLURM's variables."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from stratascope.cli import main
from stratascope.errors import InvalidInputError
from stratascope.extract.run.distributed import Rank, device_of, launched_rank
from stratascope.store import ActivationStore
from tests.extract.test_extraction import contents

TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}
SLURM = {"SLURM_PROCID": "2", "SLURM_NTASKS": "4", "SLURM_LOCALID": "0", "SLURM_STEP_ID": "0"}
BATCH = {"SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_LOCALID": "0", "SLURM_JOB_ID": "17"}
"""As a batch script sees it that calls the command without srun."""


def test_ranks_are_what_the_launcher_says() -> None:
    assert launched_rank({}) is None
    assert launched_rank({"WORLD_SIZE": "8"}) is None
    assert launched_rank(TORCHRUN) == Rank("torchrun", 5, 8, 1)
    assert launched_rank(SLURM) == Rank("SLURM", 2, 4, 0)
    assert launched_rank({**SLURM, **TORCHRUN}).launcher == "torchrun"
    assert launched_rank(TORCHRUN).text == "shard 5/8, from torchrun's RANK and WORLD_SIZE"


@pytest.mark.parametrize(
    "odd",
    [{"RANK": "8"}, {"RANK": "-1"}, {"RANK": "first"}, {"WORLD_SIZE": ""}, {"LOCAL_RANK": "9"}, {"WORLD_SIZE": None}],
    ids=lambda odd: str(odd),
)
def test_variables_that_make_no_sense_together_are_refused(odd: dict[str, str | None]) -> None:
    environment = {name: value for name, value in {**TORCHRUN, **odd}.items() if value is not None}
    with pytest.raises(InvalidInputError, match=r"expected torchrun's variables .* found RANK=.*pass `shard` I/N"):
        launched_rank(environment)


def test_a_batch_of_several_tasks_without_srun_is_refused_and_told_what_to_do() -> None:
    with pytest.raises(InvalidInputError, match=r"expected srun to start this batch's 4 tasks.*`shard` 0/1"):
        launched_rank(BATCH)
    assert launched_rank({**BATCH, "SLURM_NTASKS": "1"}) == Rank("SLURM", 0, 1, 0)
    assert launched_rank({**BATCH, **TORCHRUN}).launcher == "torchrun"


@pytest.mark.slow
@pytest.mark.parametrize(("more", "code"), [((), 2), (("--shard", "0/1"), 0)])
def test_an_explicit_shard_settles_a_batch_without_srun(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...], code: int
) -> None:
    pytest.importorskip("torch")
    for name, value in BATCH.items():
        monkeypatch.setenv(name, value)
    words = _command(scenes, tmp_path / "s.zarr")[3:]
    result = CliRunner().invoke(main, [*words, "--limit", "4", *more])
    assert result.exit_code == code, result.output
    assert (tmp_path / "s.zarr").exists() is (code == 0)


def test_each_process_has_its_own_gpu() -> None:
    rank = Rank("torchrun", 5, 8, 1)
    assert device_of(rank, 4) == "cuda:1"
    assert device_of(Rank("SLURM", 3, 4, 3), 1) == "cuda:0"
    with pytest.raises(InvalidInputError, match="start at most 1 here"):
        device_of(rank, 1)


pytest.importorskip("torch")


def _command(scenes: Path, out: Path) -> list[str]:
    made = [sys.executable, "-m", "stratascope", "extract", "--model", "demo", "--examples", str(scenes / "scenes.jsonl")]
    return [*made, "--images", str(scenes / "images"), "--device", "cpu", "--record", "residual", "--out", str(out)]


@pytest.fixture(scope="module")
def whole(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "s.zarr"
    subprocess.run(_command(scenes, out), check=True, capture_output=True)
    return out


@pytest.mark.slow
def test_two_processes_started_at_once_make_one_store(scenes: Path, whole: Path, tmp_path: Path) -> None:
    """Both may try to make the store; one does, the other joins it."""
    out = tmp_path / "s.zarr"
    started = []
    for rank in "01":
        environment = {**os.environ, "RANK": rank, "WORLD_SIZE": "2", "LOCAL_RANK": rank}
        started.append(subprocess.Popen(_command(scenes, out), env=environment, stderr=subprocess.PIPE, text=True))
    for rank, process in enumerate(started):
        _, said = process.communicate()
        assert process.returncode == 0, said
        assert f"shard {rank}/2, from torchrun's RANK and WORLD_SIZE" in said
    assert contents(out) == contents(whole)
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.slow
def test_who_comes_second_to_creation_joins(plan, store_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The race for certain: the store appears between the look for it and its creation."""
    from stratascope.extract import run_extraction
    from stratascope.extract.run import output_store

    out, real = tmp_path / "s.zarr", output_store.create_store

    def late(path: Path, *given, **known) -> None:
        real(path, *given, **known)
        real(path, *given, **known)

    monkeypatch.setattr(output_store, "create_store", late)
    run_extraction(plan, out, rank=1, of=2)
    assert ActivationStore.open(out).written.tolist() == [False, True]


@pytest.mark.slow
def test_interrupted_by_hand_and_run_again_equals_undisturbed(scenes: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "s.zarr"
    process = subprocess.Popen(_command(scenes, out), stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not (out / "written").exists():
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate()
    assert process.returncode == 130, said
    assert said.strip().splitlines()[-1] == "stratascope: interrupted; run the same command to continue"
    assert "Traceback" not in said
    subprocess.run(_command(scenes, out), check=True, capture_output=True)
    assert contents(out) == contents(whole)
