"""Examples through the model into the store: batches, self-checks, blocks, resuming."""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import Any, Self

import numpy as np
from tqdm.auto import tqdm

from stratascope.errors import InvalidInputError, StoreError
from stratascope.extract.plan.extraction_plan import ExtractionPlan
from stratascope.extract.plan.model_files import missing_extra
from stratascope.store import BlockWriter, create_store
from stratascope.store.io.overview import bytes_text

LIBRARIES = ("torch", "torchvision", "transformers", "tokenizers", "qwen-vl-utils", "numpy", "pillow", "zarr", "numcodecs", "stratascope")


@dataclass(frozen=True)
class ExtractionReport:
    """What a run did: blocks and examples written now, and how many were there before."""

    store: Path
    written_blocks: int
    written_examples: int
    blocks: int
    failed: dict[str, str]
    """Id of each example that could not be recorded now -> the reason."""
    halvings: int
    """How often a batch was halved for lack of the GPU's memory."""
    tower_passes: int = 0
    """How often the vision tower ran: once an image, where its features are kept for all its captions."""


def require_extract_extra(*, load: bool = True) -> None:
    """Fail early, with the pip command, where torch and its companions are not installed.

    Parameters
    ----------
    load
        Import them, which takes seconds; else only look whether they are there, before anything else is checked.

    Raises
    ------
    MissingExtraError
        One of them is absent.
    """
    if not load:
        for name in ("qwen_vl_utils", "torch", "torchvision", "transformers"):
            if find_spec(name) is None:
                raise missing_extra("extraction", ModuleNotFoundError(f"No module named {name!r}", name=name))
        return
    try:
        import qwen_vl_utils  # noqa: F401
        import torch  # noqa: F401
        import torchvision  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        raise missing_extra("extraction", error) from error


def run_extraction(
    plan: ExtractionPlan,
    out: Path | str,
    *,
    rank: int = 0,
    of: int = 1,
    batch_tokens: int = 8192,
    progress: bool = False,
    command: str | None = None,
) -> ExtractionReport:
    """Fill the store at `out` according to `plan`; continue where an earlier run stopped.

    Parameters
    ----------
    plan
        From `plan_extraction`.
    out
        The store's folder; made once the model has answered if it does not exist, else continued if its provenance is the same.
    rank, of
        This process takes the blocks b with b % of == rank.
    batch_tokens
        At most so many tokens, padding included, in a forward pass.
    progress
        Show examples per second and the time left where there is a terminal.
    command
        The command line that asked for this, kept in the store's provenance.

    Returns
    -------
    ExtractionReport
        What was written now, and what was there before.

    Raises
    ------
    ProvenanceMismatchError
        If the store was made by something else; the differing fields are named.
    StoreError
        If something else lies at `out`, or the disk refuses.
    CaptureError
        If what is captured from the first batch does not agree with the model's own answers.
    MissingExtraError
        If torch, torchvision, transformers or qwen-vl-utils is not installed.
    InvalidInputError
        If the plan is of images whose size was only stated, `rank` is not below `of`, the device or the weights cannot be used, or the
        model's files changed since planning.
    """
    require_extract_extra()
    if plan.settings.image_size is not None:
        raise InvalidInputError("expected real images for an extraction, found a plan with a stated image size; leave out --image-size")
    if not 0 <= rank < of:
        raise InvalidInputError(f"expected a shard I/N with 0 <= I < N, found {rank}/{of}")
    out = Path(out)
    _check_disk(plan, out)
    provenance = {**plan.provenance, **run_provenance(plan, command)}
    with _OutputStore(plan, out, provenance) as store:
        pending = store.pending(rank, of)
        failed: dict[str, str] = {}
        halvings = passes = 0
        count = sum(len(store.block_examples(block)) for block in pending)
        if pending:
            from stratascope.extract.run.session import ExtractionSession  # torch is imported only now that there is work for it

            session = ExtractionSession(plan, batch_tokens)
            _check_files(plan)
            with tqdm(total=count, desc="extract", unit="example", disable=not progress) as bar:
                session.work(store, pending, bar, answered=store.open)
            failed = {plan.examples[k].id: reason for k, reason in session.failed.items()}
            halvings, passes = session.halvings, session.features.computed
    return ExtractionReport(out, len(pending), count, plan.store.blocks, failed, halvings, passes)


class _OutputStore:
    """The store that a plan fills: opened at once where it exists, else created once the model has answered.

    So a start that fails (no such device, damaged weights, a wrong capture) leaves nothing behind.
    """

    def __init__(self, plan: ExtractionPlan, path: Path, provenance: dict[str, Any]) -> None:
        self._plan, self._path, self._provenance = plan, path, provenance
        self._writer: BlockWriter | None = None
        self._opening = Lock()
        if path.exists():
            self.open()
        else:
            _check_writable(path)

    def open(self) -> BlockWriter:
        """The store's writer; creates the store if nobody has."""
        with self._opening:
            if self._writer is None:
                if not self._path.exists():
                    self._create()
                writer = BlockWriter(self._path)
                try:
                    writer.check_provenance(self._provenance)
                    writer.check_layout(self._plan.store)
                except StoreError:
                    writer.close()
                    raise
                self._writer = writer
            return self._writer

    def _create(self) -> None:
        try:
            create_store(self._path, self._plan.store, **{**self._plan.store_contents(), "provenance": self._provenance})
        except StoreError:
            if not self._path.exists():
                raise  # else another process was first: its store is joined, if it is the same

    def pending(self, rank: int, of: int) -> list[int]:
        """Blocks of this rank that are to be written; those with an example that the model can be given come first."""
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


def _check_writable(out: Path) -> None:
    """Refuse before the model is loaded a place where nothing can be created."""
    place = next(folder for folder in out.absolute().parents if folder.exists())
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        found = "one without permission to write" if place.is_dir() else "a file"
        raise StoreError(f"{out}: expected to create the store in the folder {place}, found {found}; choose another path")


def _check_files(plan: ExtractionPlan) -> None:
    """Refuse a model whose files changed between planning and loading, so that its digests are not those of what was loaded."""
    planned = plan.provenance["model"]["files"]
    found = plan.source.digests(weights=plan.settings.untrained is None)
    if changed := sorted(name for name in planned.keys() | found.keys() if planned.get(name) != found.get(name)):
        raise InvalidInputError(
            f"{plan.source.name}: expected the model's files to stay as they were when planning, found {', '.join(changed)} changed while "
            "the model was loaded; run this again"
        )


def _check_disk(plan: ExtractionPlan, out: Path) -> None:
    """Refuse before the model is loaded what would not fit; what an unfinished store holds already counts as there."""
    needed = int(plan.estimate["estimated_bytes"].sum())
    held = sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) if out.exists() else 0
    place = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    free = shutil.disk_usage(place).free
    if needed - held > free:
        raise InvalidInputError(
            f"expected {bytes_text(needed - held)} free at {place} for this plan, found {bytes_text(free)}; choose another --out, fewer "
            "--positions or less to --record"
        )


def run_provenance(plan: ExtractionPlan, command: str | None) -> dict[str, Any]:
    """What is known of a run beyond its plan: hardware, library versions, date and command (the last two are not compared on resuming)."""
    import torch

    model = plan.provenance["model"]
    hardware = torch.cuda.get_device_name(plan.device) if plan.device.startswith("cuda") and torch.cuda.is_available() else "cpu"
    return {
        "model": {**model, "hardware": hardware, "attention": "sdpa"},
        "libraries": library_versions(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
    }


def library_versions() -> dict[str, str]:
    """Versions of everything that can move a number, and Python's."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found
