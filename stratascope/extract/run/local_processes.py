"""Fill a store with several processes of this machine: each takes a share of the blocks and of the cores.

One process leaves cores idle where the model is small: most of the time then goes to starting operations, which threads cannot share.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from threading import RLock

from stratascope.extract.plan.settings import ExtractionSettings
from stratascope.extract.run.extraction import plan_extraction, require_extract_extra, run_extraction
from stratascope.scheduling import run_all


@dataclass(frozen=True)
class Share:
    """The blocks of one process."""

    settings: ExtractionSettings
    out: Path
    rank: int
    of: int
    progress: bool
    command: str | None


def extract_in_processes(
    settings: ExtractionSettings, out: Path, processes: int, *, progress: bool = False, command: str | None = None
) -> None:
    """Plan and run an extraction in this process, or in several at once.

    Parameters
    ----------
    settings
        Model, data, and what to save.
    out
        Folder of the store; an existing one is continued, see `run_extraction`.
    processes
        Processes, each with its own copy of the model; 1: this one alone. Several come from the open `scheduling.shared_processes`.
    progress
        Show a progress bar of the first process.
    command
        Command line to keep in the store's provenance.

    Raises
    ------
    StratascopeError
        As `plan_extraction` and `run_extraction`.
    ClusterLostError
        If one of several processes ended half-way.
    """
    shares = [Share(settings, out, rank, processes, progress and rank == 0, command) for rank in range(processes)]
    run_all(_fill, shares, scheduler="processes" if processes > 1 else None, workers=processes)


def _fill(share: Share) -> None:
    if share.of > 1:
        require_extract_extra()
        import torch
        from tqdm import tqdm

        tqdm.set_lock(RLock())  # the default lock is one of the system, which would outlive a process that is killed
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // share.of))
    plan = plan_extraction(share.settings)
    run_extraction(plan, share.out, rank=share.rank, of=share.of, progress=share.progress, command=share.command)
