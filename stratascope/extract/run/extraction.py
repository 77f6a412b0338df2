"""Plan and run an extraction on this machine. Torch is imported only once a model is needed."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from stratascope.errors import InvalidInputError, StratascopeError
from stratascope.extract.families.general_family import GeneralModel
from stratascope.extract.model_files import ModelSource, missing_extra
from stratascope.extract.plan.duration import ExtractionTiming
from stratascope.extract.plan.extraction_plan import ExtractionPlan
from stratascope.extract.plan.planning import build_plan
from stratascope.extract.plan.settings import ExtractionSettings
from stratascope.extract.run.distributed import assigned_shard, visible_gpus
from stratascope.extract.run.output_store import OutputStore, check_disk, check_files
from stratascope.store.io.store_files import check_writable, place_of, store_exists

LIBRARIES = ("torch", "torchvision", "transformers", "tokenizers", "qwen-vl-utils", "numpy", "pillow", "zarr", "numcodecs", "stratascope")

BATCH_TOKENS = 8192
"""Tokens in a forward pass, at most, padding included."""


@dataclass(frozen=True)
class ExtractionReport:
    """What one run of an extraction wrote."""

    store: str | Path
    written_blocks: int
    written_examples: int
    blocks: int
    failed: dict[str, str]
    """Id of each example that failed in this run -> the reason."""
    halvings: int
    """How often a batch was halved because memory ran out."""
    tower_passes: int = 0
    """How often the vision tower ran: once per image when its features are kept for all its captions."""
    shard: tuple[int, int] = (0, 1)
    """Number of the process, and count of processes."""

    def summary(self) -> str:
        """One line: examples and blocks written in this run."""
        if not store_exists(self.store):  # the process that owns the first block creates it
            shard = "/".join(map(str, self.shard))
            return f"{self.store}: nothing to do for shard {shard}: the store has {self.blocks} blocks, none of them its own"
        if not self.written_blocks:
            return f"{self.store}: nothing left to do"
        failed = f"; {len(self.failed)} of them failed" if self.failed else ""
        return f"{self.store}: wrote {self.written_examples:,} examples in {self.written_blocks} of {self.blocks} blocks{failed}"


def require_extract_extra(*, load: bool = True) -> None:
    """Fail early, with the pip command, when torch and its companions are not installed.

    Parameters
    ----------
    load
        Import them, which takes seconds; otherwise only look whether they are installed.

    Raises
    ------
    MissingExtraError
        If one of them is not installed.
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


def plan_extraction(settings: ExtractionSettings, *, weights: bool = False, progress: bool = False) -> ExtractionPlan:
    """Tokenise every example, check every image, lay out the store; run nothing and write nothing.

    Parameters
    ----------
    settings
        Model, data, and what to save.
    weights
        Fetch a Hub model's weights too, because an extraction follows.
    progress
        Show progress bars, or a line every ten seconds without a terminal.

    Raises
    ------
    InvalidInputError
        For anything that would make the extraction fail or its numbers meaningless: bad rows, missing or unreadable images, an answer
        without known tokens, a prompt longer than the model's context, a position that no example has.
    MissingExtraError
        If the model is on the Hub and the `extract` extra is not installed.

    Examples
    --------
    >>> import tempfile
    >>> from stratascope.datasets import write_scenes
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = write_scenes(folder, 4, seed=0)
    >>> plan_extraction(ExtractionSettings("demo", (folder / "scenes.jsonl",), folder / "images", record=("residual",), device="cpu"))
    <ExtractionPlan of demo: 4 examples, 6 layers; residual>
    """
    return build_plan(settings, has_gpu=lambda: visible_gpus() != 0, load_general=_load_general, weights=weights, progress=progress)


def _load_general(source: ModelSource, system: str | None) -> GeneralModel:
    """See `general_model`; imports torch and transformers."""
    require_extract_extra()
    from stratascope.extract.run.general_model import check_official, general_model

    found = general_model(source, system)
    check_official(source, found.rule, system)
    return found


def estimate_time(
    plan: ExtractionPlan,
    *,
    timed: bool | None = None,
    batch_tokens: int = BATCH_TOKENS,
    planning: float = 0.0,
    progress: bool = False,
) -> ExtractionTiming | str:
    """Estimate the duration of an extraction from a few timed batches; text says why there is no estimate.

    Parameters
    ----------
    plan
        From `plan_extraction`.
    timed
        Whether to run batches; None: if a GPU and the weights are available.
    batch_tokens
        Tokens in a forward pass, at most.
    planning
        Seconds that planning took.
    progress
        Show a progress bar.
    """
    if not timed:
        why = (
            "disabled" if timed is False
            else "no GPU found; set `timed` to measure on this machine" if not (plan.device.startswith("cuda") and visible_gpus())
            else "the model's weights are not downloaded; set `timed` to fetch them" if not plan.weights_here
            else "the images are not available" if plan.settings.image_size is not None
            else None
        )  # fmt: skip
        if why:
            return why
    try:
        begin = time.perf_counter()
        require_extract_extra()
        from stratascope.extract.run.timing import time_extraction

        before = planning + time.perf_counter() - begin
        return time_extraction(plan.with_weights(), batch_tokens=batch_tokens, before=before, progress=progress)
    except (StratascopeError, RuntimeError, MemoryError, OSError) as error:
        return str(error).splitlines()[0]


def extract(
    settings: ExtractionSettings,
    out: Path | str,
    *,
    shard: tuple[int, int] | None = None,
    batch_tokens: int = BATCH_TOKENS,
    progress: bool = False,
    command: str | None = None,
    on_note: Callable[[str], object] = lambda text: None,
) -> ExtractionReport:
    """Plan and run an extraction.

    Parameters
    ----------
    settings
        Model, data, and what to save.
    out, batch_tokens, progress, command
        See `run_extraction`.
    shard
        Number of this process and count of processes; None: as torchrun or SLURM numbered it, otherwise all blocks.
    on_note
        Receives lines about the run: its shard and GPU, changes to images and boxes, failed examples.

    Raises
    ------
    StratascopeError
        As `plan_extraction` and `run_extraction`.
    """
    from stratascope.extract.plan.plan_summary import image_notes, unanswered
    from stratascope.extract.plan.unknown_words import vocabulary_notes

    require_extract_extra(load=False)
    place = place_of(out)
    if isinstance(place, str) and not store_exists(place):  # before planning, which reads every image
        check_writable(place)
    (rank, of), settings, note = assigned_shard(os.environ, shard, settings)
    if note:
        on_note(note)
    plan = plan_extraction(settings, weights=True, progress=progress)
    for line in filter(None, [unanswered(plan), *vocabulary_notes(plan), *image_notes(plan)]):
        on_note(line)
    report = run_extraction(plan, place, rank=rank, of=of, batch_tokens=batch_tokens, progress=progress, command=command)
    for example, reason in report.failed.items():
        on_note(f"failed: example {example}: {reason}")
    if report.halvings:
        on_note(f"memory ran out {report.halvings} times and batches were halved; lower `batch_tokens` to save time")
    return report


def run_extraction(
    plan: ExtractionPlan,
    out: Path | str,
    *,
    rank: int = 0,
    of: int = 1,
    batch_tokens: int = BATCH_TOKENS,
    progress: bool = False,
    command: str | None = None,
) -> ExtractionReport:
    """Fill the store at `out` according to `plan`; continue an interrupted run.

    Parameters
    ----------
    plan
        From `plan_extraction`.
    out
        Folder of the store, or its address in a bucket (s3, gs, az). A new one is created after the model's first batch; an existing one
        is continued if its provenance is the same.
    rank, of
        This process takes the blocks b with b % of == rank.
    batch_tokens
        Tokens in a forward pass, at most, padding included.
    progress
        Show a progress bar with examples per second and the time left.
    command
        Command line to keep in the store's provenance.

    Returns
    -------
    ExtractionReport
        What this run wrote.

    Raises
    ------
    ProvenanceMismatchError
        If the store was made with other settings, data or model; the differing fields are named.
    StoreError
        If `out` is something else than a store, or cannot be written.
    UnreachableError
        If the server of `out` refuses or does not answer.
    CaptureError
        If the activations captured from the first batch do not agree with the model's own outputs.
    MissingExtraError
        If torch, torchvision, transformers or qwen-vl-utils is not installed.
    InvalidInputError
        If the plan has only a stated image size or was made from a bundled description, `rank` is not below `of`, the device or the
        weights cannot be used, or the model's files changed since planning.
    """
    plan.check_files()
    require_extract_extra()
    if plan.settings.image_size is not None:
        raise InvalidInputError("expected real images for an extraction, found a plan with a stated image size; leave out `image_size`")
    if not 0 <= rank < of:
        raise InvalidInputError(f"expected a shard I/N with 0 <= I < N, found {rank}/{of}")
    out = place_of(out)
    check_disk(plan, out)
    provenance = {**plan.provenance, **run_provenance(plan, command)}
    with OutputStore(plan, out, provenance, rank, of) as store:
        pending = store.pending(rank, of)
        failed: dict[str, str] = {}
        halvings = passes = 0
        count = sum(len(store.block_examples(block)) for block in pending)
        if pending:
            from stratascope.extract.run.session import ExtractionSession  # imports torch, so only when there is work
            from stratascope.extract.run.shard_block import fill_blocks

            session = ExtractionSession(plan, batch_tokens)
            session.kept = store.halvings
            check_files(plan)

            def checked() -> None:
                store.open()
                store.add_readout(lambda: session.model.unembedding.readout(plan.readout_words))

            with tqdm(total=count, desc="extract", unit="example", disable=not progress) as bar:
                fill_blocks(session, store, pending, bar, on_checked=checked, in_bucket=isinstance(out, str))
            failed = {plan.examples[k].id: reason for k, reason in session.failed.items()}
            halvings, passes = session.halvings, session.features.computed
    return ExtractionReport(out, len(pending), count, plan.store.blocks, failed, halvings, passes, (rank, of))


def run_provenance(plan: ExtractionPlan, command: str | None) -> dict[str, Any]:
    """Provenance beyond the plan: hardware, library versions, date and command (the last two are not compared on resuming)."""
    import torch

    model = plan.provenance["model"]
    cuda = plan.device.startswith("cuda")
    hardware = torch.cuda.get_device_name(plan.device) if cuda and torch.cuda.is_available() else "cpu"
    return {
        "model": {**model, "hardware": hardware, "attention": "sdpa", **({"tf32": False} if cuda else {})},
        "libraries": library_versions(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
    }


def library_versions() -> dict[str, str]:
    """Versions of Python and of every library that can change a number."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found
