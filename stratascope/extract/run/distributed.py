"""Shard and GPU of a process that torchrun or SLURM started."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from stratascope.errors import InvalidInputError
from stratascope.extract.plan.settings import ExtractionSettings

LAUNCHERS = {
    "torchrun": ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    "SLURM": ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
}
"""Launcher -> the variables that hold the process's number, the count of processes, and its number on its machine."""

STARTED_BY_SRUN = ("SLURM_STEP_ID", "SLURM_STEPID", "SLURM_STEP_NUM_TASKS")
"""At least one of them is set in every task that srun starts, and none in the batch script itself."""


@dataclass(frozen=True)
class Rank:
    """Number of a process among those that a launcher started."""

    launcher: str
    number: int
    of: int
    local: int
    """Its number on its own machine."""

    @property
    def text(self) -> str:
        """One line that names the shard and the variables it was read from."""
        number, of, _ = LAUNCHERS[self.launcher]
        return f"shard {self.number}/{self.of}, from {self.launcher}'s {number} and {of}"


def launched_rank(environment: Mapping[str, str]) -> Rank | None:
    """This process's rank; None without a launcher. torchrun within SLURM counts as torchrun.

    Raises
    ------
    InvalidInputError
        If the variables contradict each other; or in a SLURM batch of several tasks without srun, where this process would be the first
        of them and the others would never start.
    """
    for launcher, names in LAUNCHERS.items():
        if names[0] in environment:
            rank = _rank(launcher, names, environment)
            if launcher == "SLURM" and rank.of > 1 and not any(name in environment for name in STARTED_BY_SRUN):
                raise InvalidInputError(
                    f"expected srun to start this batch's {rank.of} tasks, found a process that it did not start: put srun in front of the "
                    f"command, pass `shard` 0/1 to do all of the work in this process, or `shard` I/N for a part"
                )
            return rank
    return None


def visible_gpus() -> int | None:
    """Number of GPUs that this process may use; None if torch is not installed."""
    try:
        import torch
    except ImportError:
        return None
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def device_of(rank: Rank, gpus: int) -> str:
    """The device of a process on a machine with that many visible GPUs, at least one.

    Raises
    ------
    InvalidInputError
        If there are fewer GPUs than processes on this machine.
    """
    if gpus == 1 and rank.launcher == "SLURM":  # --gpus-per-task=1 shows each task its own GPU alone
        return "cuda:0"
    if rank.local >= gpus:
        raise InvalidInputError(
            f"expected a GPU for each process on this machine, found {gpus} and {rank.launcher}'s {LAUNCHERS[rank.launcher][2]} = "
            f"{rank.local}; start at most {gpus} here, or set `device`"
        )
    return f"cuda:{rank.local}"


def _rank(launcher: str, names: tuple[str, str, str], environment: Mapping[str, str]) -> Rank:
    found = ", ".join(f"{name}={environment.get(name, '(absent)')}" for name in names)
    try:
        number, of = int(environment[names[0]]), int(environment[names[1]])
        local = int(environment.get(names[2], number))
    except (KeyError, ValueError) as error:
        raise _senseless(launcher, found) from error
    if not (0 <= number < of and 0 <= local < of):
        raise _senseless(launcher, found)
    return Rank(launcher, number, of, local)


def _senseless(launcher: str, found: str) -> InvalidInputError:
    return InvalidInputError(f"expected {launcher}'s variables to number this process, found {found}; pass `shard` I/N")


def assigned_shard(
    environment: Mapping[str, str], shard: tuple[int, int] | None, settings: ExtractionSettings
) -> tuple[tuple[int, int], ExtractionSettings, str]:
    """This process's shard, the settings with its GPU, and a line about both; `shard` overrides the launcher.

    Raises
    ------
    InvalidInputError
        As `launched_rank` without a `shard`, and as `device_of`.
    """
    try:
        rank = launched_rank(environment)
    except InvalidInputError:
        if shard is None:
            raise
        rank = None
    if rank is None or rank.of == 1:
        return shard or (0, 1), settings, ""
    parts = [] if shard else [rank.text]
    if settings.device == "auto" and (gpus := visible_gpus()):
        settings = replace(settings, device=device_of(rank, gpus))
        parts.append(f"on {settings.device}")
    return shard or (rank.number, rank.of), settings, "; ".join(parts)
