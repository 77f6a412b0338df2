"""The store that an extraction fills: created late, checked early."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Any, Self

import numpy as np

from stratascope.errors import CaptureError, InvalidInputError, StoreError
from stratascope.extract.plan.extraction_plan import ExtractionPlan
from stratascope.extract.plan.store_contents import store_contents
from stratascope.extract.run.halvings import Halvings
from stratascope.store import BlockWriter, Readout, create_store
from stratascope.store.io.overview import bytes_text
from stratascope.store.io.readout import add_readout, has_readout
from stratascope.store.io.store_files import check_writable, store_exists


class OutputStore:
    """The store that a plan fills: an existing one is opened at once, a new one is created after the model's first batch.

    A start that fails (no such device, damaged weights, a wrong capture) therefore leaves nothing behind.
    """

    def __init__(self, plan: ExtractionPlan, path: str | Path, provenance: dict[str, Any], rank: int = 0, of: int = 1) -> None:
        self._plan, self._path, self._provenance = plan, path, provenance
        self.halvings = Halvings(rank, of)
        """Where batches were halved, in this run and in earlier ones."""
        self._writer: BlockWriter | None = None
        self._opening = Lock()
        if store_exists(path):
            self.open()
        else:
            check_writable(path)

    def open(self) -> BlockWriter:
        """The store's writer; creates the store if there is none."""
        with self._opening:
            if self._writer is None:
                if not store_exists(self._path):
                    self._create()
                writer = BlockWriter(self._path)
                try:
                    writer.check_provenance(self._provenance)
                    writer.check_layout(self._plan.store)
                    self.halvings.keep_in(self._path)
                except StoreError:
                    writer.close()
                    raise
                self._writer = writer
            return self._writer

    def _create(self) -> None:
        try:
            create_store(self._path, self._plan.store, **{**store_contents(self._plan), "provenance": self._provenance})
        except StoreError:
            if not store_exists(self._path):
                raise  # otherwise another process created it: join that store, if it is the same

    def add_readout(self, readout: Callable[[], Readout]) -> None:
        """Add the final norm and unembedding rows, unless the store has them or holds no residual stream."""
        if "residual" in self._plan.store.record and not has_readout(self._path):
            with contextlib.suppress(CaptureError):  # a norm of another form: the store goes without
                add_readout(self._path, readout())

    def pending(self, rank: int, of: int) -> list[int]:
        """Blocks of this rank that are not written yet; those with a usable example come first."""
        layout, failed = self._plan.store, self._plan.failed
        blocks = self._writer.pending(rank, of) if self._writer else list(range(rank, layout.blocks, of))
        return sorted(blocks, key=lambda block: all(k in failed for k in layout.block_examples(block)))

    def block_examples(self, block: int) -> range:
        """Numbers of the examples of a block."""
        return self._plan.store.block_examples(block)

    def write(self, block: int, arrays: dict[str, np.ndarray]) -> None:
        """Write every array of a block."""
        self.open().write(block, arrays)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()


def check_files(plan: ExtractionPlan) -> None:
    """Check that the model's files did not change between planning and loading.

    Raises
    ------
    InvalidInputError
        Naming the changed files.
    """
    planned = plan.provenance["model"]["files"]
    found = plan.source.digests(weights=plan.settings.untrained is None)
    if changed := sorted(name for name in planned.keys() | found.keys() if planned.get(name) != found.get(name)):
        raise InvalidInputError(
            f"{plan.source.name}: expected the model's files to stay as they were when planning, found {', '.join(changed)} changed while "
            "the model was loaded; run this again"
        )


def check_disk(plan: ExtractionPlan, out: str | Path) -> None:
    """Check before the model is loaded that the store fits on the disk; existing parts of it are not counted twice.

    A bucket has no size that could be checked.

    Raises
    ------
    InvalidInputError
        With the free and the required bytes.
    """
    if isinstance(out, str):
        return
    needed = int(plan.estimate["estimated_bytes"].sum())
    held = sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) if out.exists() else 0
    place = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    free = shutil.disk_usage(place).free
    if needed - held > free:
        raise InvalidInputError(
            f"expected {bytes_text(needed - held)} free at {place} for this plan, found {bytes_text(free)}; choose another `out`, fewer "
            "`positions` or less to `record`"
        )
