"""The results of one store, gathered from their files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from stratascope.datasets.prompts import PROMPTS
from stratascope.errors import InvalidInputError, NotRecordedError
from stratascope.probe.curve.curve_set import CurveGroup
from stratascope.results.locations import ENDING, results_folders
from stratascope.results.probe_runs import earlier_text, split_earlier
from stratascope.results.stored_result import StoredResult, is_baseline, other_store, relation_to, store_name
from stratascope.store import ActivationStore

_LATER = {"final", "relation", "object"}
"""Positions at the relation of the caption or after it."""
Progress = Callable[[int, int], object]
"""Called with the number of steps done and of all steps."""


@dataclass(frozen=True, eq=False)
class ResultSet:
    """Results of one store, and layer curves of its baselines: stores of another condition or with untrained weights."""

    own: Sequence[StoredResult]
    beside: Sequence[StoredResult] = ()
    """Curves of baselines: the same architecture and examples under another condition."""
    others: int = 0
    """Number of files left out because they are of other stores."""
    earlier: Sequence[StoredResult] = ()
    """Results left out because a later run of `probe` replaced their curve."""

    @property
    def left_out(self) -> list[str]:
        """What was left out, one line each."""
        others = f"{self.others} results files of other stores in the same folder" if self.others else ""
        return [line for line in (others, earlier_text(self.earlier)) if line]

    @property
    def current(self) -> ResultSet:
        """The results without those whose curve a later run of `probe` replaced."""
        kept, earlier = split_earlier([*self.own, *self.beside], self.own)
        own = [found for found in self.own if found in kept]
        return replace(self, own=own, beside=[found for found in self.beside if found in kept], earlier=earlier)

    def of(self, kind: str) -> list[StoredResult]:
        """Results of the store of one kind, those weighted by attention alone first.

        Results of all examples where there are any, else of the first selection of examples. Probes are all here: their task names the
        selection.
        """
        found = [f for f in self.own if f.kind == kind]
        first = min((f.only for f in found if not f.task), default=())
        return sorted((f for f in found if f.task or f.only == first), key=lambda f: f.weighing != "attention")

    @property
    def whole(self) -> ResultSet:
        """The results of all examples, and those of probes."""
        return replace(self, own=[f for f in self.own if f.task or not f.only])

    @property
    def selections(self) -> dict[tuple[str, ...], list[StoredResult]]:
        """Selection of examples -> results of these examples alone, without those of probes."""
        found: dict[tuple[str, ...], list[StoredResult]] = {}
        for f in self.own:
            if f.only and not f.task:
                found.setdefault(f.only, []).append(f)
        return found

    @cached_property
    def curve_group(self) -> CurveGroup[StoredResult]:
        """All layer curves, with their controls and baselines."""
        baselines: dict[str, list[StoredResult]] = {}
        for curve in self.beside:
            baselines.setdefault(str(curve.fingerprint), []).append(curve)
        return CurveGroup(self.of("layer_curve"), baselines)

    @cached_property
    def curves(self) -> list[StoredResult]:
        """Layer curves over the residual stream without controls; truth and the final token first."""
        return [f for f in self.curve_group.sorted() if f.attributes.get("array", "residual") == "residual"]

    @property
    def tasks(self) -> list[str]:
        """Tasks of the curves, truth first."""
        return list(dict.fromkeys(f.task for f in self.curves))

    def controls_of(self, curve: StoredResult) -> list[StoredResult]:
        """The same probe as that of a curve on control labels."""
        return list(self.curve_group.controls_of(curve).values())

    def baselines_of(self, curve: StoredResult) -> list[StoredResult]:
        """The same probe as that of a curve on the stores of baselines."""
        return list(self.curve_group.baselines_of(curve).values())

    def saved_advantages(self, curve: StoredResult) -> list[StoredResult]:
        """Paired differences of the curve from its baselines and controls; without that from its own layer 0."""
        mine = [f for f in self.of("advantage") if (f.task, f.position) == (curve.task, curve.position)]
        return [f for f in mine if "layer" not in (f.attributes.get("baseline") or {})]

    def one(self, kind: str, command: str) -> StoredResult:
        """The first result of a kind; NotRecordedError with the `command` that computes it."""
        found = self.of(kind)
        if not found:
            raise NotRecordedError(f"expected a result of kind {kind}, found none; make it with `{command}`")
        return found[0]


def in_caption_text(curve: StoredResult) -> bool:
    """Whether the text before the position of a curve states its labels, so that decoding them is trivial.

    These are the relation of the caption and its category, at the relation's own tokens and later ones, where the prompt names it.
    """
    if curve.task.partition(" (")[0] not in ("relation", "category") or not _LATER & set(curve.position.split("+")):
        return False
    prompt = (curve.attributes.get("provenance") or {}).get("prompt", {})
    known = PROMPTS.get(str(prompt.get("name")))
    text = str(prompt.get("text") or (known.text if known else "{caption}"))
    return any(f"{field}}}" in text for field in ("{caption", "{relation", "question"))


def gather(
    store: ActivationStore, paths: Iterable[str | Path] = (), *, where: str | Path | None = None, progress: Progress = lambda *_: None
) -> ResultSet:
    """All results of a store.

    Parameters
    ----------
    store
        The store.
    paths
        Files and folders; the store's default folders if empty. Files must be of this store; in a folder `results`, which several
        stores may share, those of others are left out.
    where
        Path or address of the store; its name by default.
    progress
        Called with the number of files read, and of all files.

    Raises
    ------
    InvalidInputError
        A result is of another store, or of this one before blocks were added or made again.
    NotRecordedError
        There are no results.
    """
    given = [Path(p) for p in paths]
    shared: set[Path] = set()
    if not given:
        folders = results_folders(where or store.name)
        shared = {folders[-1]} if len(folders) > 1 else set()
        given = [folder for folder in folders if folder.is_dir()]
        if not given:
            raise NotRecordedError(
                f"expected results in {' or '.join(map(str, folders))}, found no such folder; "
                f"make some with `stratascope probe {where or store.name}`"
            )
    own: list[StoredResult] = []
    beside: list[StoredResult] = []
    others = 0
    fingerprint, known = store.fingerprint(), set()
    files = _files(given)
    for number, (path, root) in enumerate(files):
        progress(number, len(files))
        found = StoredResult.load(path)
        if found.identity in known:
            continue
        match relation_to(found, store, fingerprint):
            case "own":
                own.append(found)
            case "baseline":
                beside.append(found)
            case _ if root in shared:
                others += 1
                continue
            case _:
                raise other_store(found, store)
        known.add(found.identity)
    progress(len(files), len(files))
    if not own:
        text = f" ({others} of other stores)" if others else ""
        raise NotRecordedError(
            f"expected results of {store.name} in {', '.join(map(str, given))}, found none{text}; "
            f"make some with `stratascope probe {where or store.name}`"
        )
    return ResultSet(own, beside, others).current


def gather_results(paths: Iterable[str | Path]) -> ResultSet:
    """Results of one store and its baselines, without the store.

    Parameters
    ----------
    paths
        Files and folders.

    Raises
    ------
    NotRecordedError
        There are no results.
    InvalidInputError
        Some results are of another store, which is no baseline of the store that most files are of.
    """
    found = [StoredResult.load(path) for path, _ in _files([Path(p) for p in paths])]
    if not found:
        raise NotRecordedError(f"expected results in {', '.join(map(str, paths))}, found none; make some with `stratascope probe STORE`")
    prints = [f.fingerprint for f in found]
    most = max(dict.fromkeys(prints), key=lambda p: (prints.count(p), -prints.index(p)))
    own = [f for f in found if f.fingerprint == most]
    provenance: dict[str, Any] = next((f.attributes["provenance"] for f in own if "provenance" in f.attributes), {})
    beside = [f for f in found if f.fingerprint != most and is_baseline(f, provenance)]
    if others := [f for f in found if f not in own and f not in beside]:
        raise InvalidInputError(
            f"expected results of one store and its baselines, found {len(own)} files of {store_name(own[0])} and {len(others)} of other "
            f"stores, such as {others[0].path} of {store_name(others[0])}; give the store before the results, or the files of one store"
        )
    return ResultSet(own, beside).current


def _files(paths: Iterable[Path]) -> list[tuple[Path, Path]]:
    """Results files, each with the given path that led to it."""
    found: list[tuple[Path, Path]] = []
    for path in paths:
        if path.is_dir():
            found += [(inner, path) for inner in sorted(path.glob(f"*{ENDING}"))]
        elif path.is_file():
            found.append((path, path))
        else:
            raise NotRecordedError(f"expected results at {path}, found nothing there; check the path")
    return found
