"""The results of one store, gathered from their files: which there are, and that they belong together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from stratascope.errors import InvalidInputError, NotRecordedError
from stratascope.results.file import ResultFile, result_head
from stratascope.results.locations import ENDING, results_folders
from stratascope.results.registry import load_result
from stratascope.results.view import Found
from stratascope.store import ActivationStore, condition_of
from stratascope.store.format.provenance import same_model_files


@dataclass(frozen=True, eq=False)
class Findings:
    """Results of one store, and curves of stores that differ from it in the condition alone, or in that their weights are untrained."""

    own: Sequence[Found]
    beside: Sequence[Found] = ()
    """Baselines: the same architecture and examples under another condition."""
    others: int = 0
    """Files left out because they are of other stores."""

    def of(self, kind: str) -> list[Found]:
        """Results of the store of one kind, those weighed by attention alone first.

        Of all examples where there are such, else of the first part that was chosen; a probe's task tells which examples it is of, so that
        all of them are here.
        """
        found = [f for f in self.own if f.kind == kind]
        first = min((f.only for f in found if not f.task), default=())
        return sorted((f for f in found if f.task or f.only == first), key=lambda f: f.weighing != "attention")

    @property
    def whole(self) -> Findings:
        """Those of all examples, and the probes'."""
        return replace(self, own=[f for f in self.own if f.task or not f.only])

    @property
    def parts(self) -> dict[tuple[str, ...], list[Found]]:
        """Choice of examples -> results of them alone, but for the probes'."""
        found: dict[tuple[str, ...], list[Found]] = {}
        for f in self.own:
            if f.only and not f.task:
                found.setdefault(f.only, []).append(f)
        return found

    @cached_property
    def curves(self) -> list[Found]:
        """Layer curves over the residual stream that are no controls; the final token's and truth first."""
        found = [f for f in self.of("layer_curve") if ":" not in f.task and f.attributes.get("array", "residual") == "residual"]
        return sorted(found, key=lambda f: (_TASKS.get(f.task, 9), f.task, _POSITIONS.get(f.position, 9), f.position))

    @property
    def tasks(self) -> list[str]:
        """Tasks of the curves, truth first."""
        return list(dict.fromkeys(f.task for f in self.curves))

    def controls_of(self, curve: Found) -> list[Found]:
        """The same probe as a curve's, given labels without meaning."""
        return [f for f in self.of("layer_curve") if f.task.startswith(f"{curve.task}:") and f.position == curve.position]

    def baselines_of(self, curve: Found) -> list[Found]:
        """The same probe as a curve's, on the store of another condition."""
        same = (curve.task, curve.position, curve.attributes.get("array"))
        return [f for f in self.beside if f.kind == "layer_curve" and (f.task, f.position, f.attributes.get("array")) == same]

    def advantages_of(self, curve: Found) -> list[Found]:
        """Paired differences of the curve over its baselines and controls; that over its own layer 0 the curve shows by itself."""
        mine = [f for f in self.of("advantage") if (f.task, f.position) == (curve.task, curve.position)]
        return [f for f in mine if "layer" not in (f.attributes.get("baseline") or {})]

    def one(self, kind: str, what: str, command: str) -> Found:
        """The first result of a kind; NotRecordedError saying `what` is missing and by which `command` to make it."""
        found = self.of(kind)
        if not found:
            raise NotRecordedError(f"expected {what} among the results, found none; make it with `{command}`")
        return found[0]


_TASKS = {"truth": 0, "relation": 1, "answer": 2}
_POSITIONS = {"final": 0, "object": 1, "relation": 2, "subject": 3, "image": 4}


def gather(store: ActivationStore, paths: Iterable[str | Path] = (), *, where: str | Path | None = None) -> Findings:
    """All results of a store.

    Parameters
    ----------
    paths
        Files and folders; none for the store's default folders. Files given must be of this store; in a folder `results`, which
        several stores may share, those of others are left out.
    where
        The store's path or address; its name by default.

    Raises
    ------
    InvalidInputError
        If a result is of another store, or of this one before blocks were added or made again.
    NotRecordedError
        If there are no results.
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
    own: list[Found] = []
    beside: list[Found] = []
    others = 0
    fingerprint, known = store.fingerprint(), set()
    for path, root in _files(given):
        found = Found(path, load_result(path))
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
    if not own:
        text = f" ({others} of other stores)" if others else ""
        raise NotRecordedError(
            f"expected results of {store.name} in {', '.join(map(str, given))}, found none{text}; "
            f"make some with `stratascope probe {where or store.name}`"
        )
    return Findings(own, beside, others)


def gather_results(paths: Iterable[str | Path]) -> Findings:
    """Results of one store and its baselines, without the store.

    Parameters
    ----------
    paths
        Files and folders.

    Raises
    ------
    NotRecordedError
        If there are no results.
    InvalidInputError
        If some are of another store, which is no baseline of the store that most files are of.
    """
    found = [Found(path, load_result(path)) for path, _ in _files([Path(p) for p in paths])]
    if not found:
        raise NotRecordedError(f"expected results in {', '.join(map(str, paths))}, found none; make some with `stratascope probe STORE`")
    prints = [f.fingerprint for f in found]
    chosen = max(dict.fromkeys(prints), key=lambda p: (prints.count(p), -prints.index(p)))
    own = [f for f in found if f.fingerprint == chosen]
    provenance: dict[str, Any] = next((f.attributes["provenance"] for f in own if "provenance" in f.attributes), {})
    beside = [f for f in found if f.fingerprint != chosen and _comparable(f, provenance)]
    if others := [f for f in found if f not in own and f not in beside]:
        raise InvalidInputError(
            f"expected results of one store and its baselines, found {len(own)} files of {_name(own[0])} and {len(others)} of other "
            f"stores, such as {others[0].path} of {_name(others[0])}; give the store before the results, or only the files of one store"
        )
    return Findings(own, beside)


def relation_to(found: Found, store: ActivationStore, fingerprint: str) -> Literal["own", "baseline", "other"]:
    """Whether a result is of the store as it is now, of a baseline of it, or of another store.

    Parameters
    ----------
    found
        Its attributes are all that is asked of it.
    store, fingerprint
        The store, and its fingerprint.
    """
    if found.fingerprint == fingerprint:
        return "own"
    return "baseline" if _comparable(found, store.provenance) else "other"


def other_store(found: Found, store: ActivationStore) -> InvalidInputError:
    """The refusal of a result of another store."""
    return InvalidInputError(
        f"{found.path}: expected results of {store.name} as it is now, found those of {_name(found)}; "
        "make the result again, or leave the file out"
    )


def _files(paths: Iterable[Path]) -> Iterable[tuple[Path, Path]]:
    """Results files with the path that led to them."""
    for path in paths:
        if path.is_dir():
            yield from ((inner, path) for inner in sorted(path.glob(f"*{ENDING}")))
        elif path.is_file():
            yield path, path
        else:
            raise NotRecordedError(f"expected results at {path}, found nothing there; check the path")


def _comparable(found: Found, provenance: dict[str, Any]) -> bool:
    """Whether a curve is of the same model, trained or not, and examples under another condition."""
    theirs = found.attributes.get("provenance") or {}
    if found.kind != "layer_curve" or condition_of(theirs) == condition_of(provenance):
        return False
    model, own_model = ({"name": m} if isinstance(m := p.get("model", {}), str) else m for p in (theirs, provenance))
    data, own_data = (p.get("data", {}) for p in (theirs, provenance))
    same = all(model.get(key) == own_model.get(key) for key in ("name", "revision"))
    same &= same_model_files(model, own_model)
    images = {digest for d in (data, own_data) if (digest := d.get("images")) is not None}
    return same and len(images) < 2 and data.get("examples") == own_data.get("examples") and bool(data.get("examples"))


def _name(found: Found) -> str:
    own = found.attributes
    name = own.get("store") if "fingerprint" in own else None
    return f"{name or 'another store'} (fingerprint {str(found.fingerprint)[:12]})"


def results_in(folder: Path) -> Iterator[Found]:
    """Results of a folder by name, with their kind and attributes alone; files of another kind are passed over.

    Raises
    ------
    StoreError
        For a result whose metadata are too large or nested too deeply, or a file that is no regular one.
    """
    for path in sorted(folder.glob(f"*{ENDING}")):
        head = result_head(path)
        if head is not None:
            attributes = head.get("attributes")
            yield Found(path, ResultFile(str(head.get("kind")), attributes=attributes if isinstance(attributes, dict) else {}))
