"""What a run of probes is asked for, checked against its stores before anything is solved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

import pandas as pd

from stratascope.errors import InvalidInputError
from stratascope.probe.study.study import TASKS, Study
from stratascope.probe.study.study_plan import positions_of
from stratascope.results.stored_result import relation_to, results_in
from stratascope.store import ActivationStore, column_texts
from stratascope.store.io.example_identity import refuse_other_examples


@dataclass(frozen=True)
class ProbeRequest:
    """Tasks, positions, baselines and further measures of one run."""

    tasks: tuple[str, ...] = TASKS
    positions: tuple[str, ...] | None = None
    """All of the array by default."""
    array: str = "residual"
    layers: tuple[int, ...] | None = None
    controls: tuple[str, ...] = ()
    """shuffled, control: added to every task."""
    values: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    """Tasks by example id."""
    baselines: Mapping[str, ActivationStore] = field(default_factory=dict)
    """Name -> store of the same examples."""
    by: str = "relation"
    """Column of the examples by whose values accuracy is taken apart."""
    measures: tuple[str, ...] = ()
    """mdl, calibration: measured besides."""
    transfer_to: tuple[str, ...] = ()
    """Positions, and names of baselines, where probes of each layer are tested, too."""
    transfer: bool = False
    """Whether probes of each layer are tested at all others."""
    metric: str | None = None
    """What is drawn and compared; accuracy, or R2 for values, by default."""
    margin: float = 0.0
    """An advantage has to exceed it."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `ProbeSettings`."""

    @property
    def all_tasks(self) -> tuple[str, ...]:
        """Each task followed by its controls; tasks of values have no control task."""
        found = []
        for task in self.tasks:
            plain = ":" in task
            controls = () if plain else tuple(c for c in self.controls if not (task == "geometry" and c == "control"))
            found += [task, *(f"{task}:{control}" for control in controls)]
        return tuple(dict.fromkeys(found))


SHOWN_IDS = 5
"""Ids that a message names."""


def check_baselines(store: ActivationStore, request: ProbeRequest) -> None:
    """Refuse a baseline of other examples, or of the same in another order: differences are paired by example.

    Raises
    ------
    InvalidInputError
        Ids, images, captions, relations, labels, or the columns that the tasks, groups and splits use differ.
    """
    settings = request.settings
    used = (
        *(task.partition(":")[0] for task in request.tasks),
        settings.get("groups", "image"),
        *(("split",) if settings.get("split") else ()),
    )
    for name, other in request.baselines.items():
        refuse_other_examples(store, other, f"a baseline ({name})", used)


def results_of_others(store: ActivationStore, request: ProbeRequest, folder: Path) -> Iterator[str]:
    """Says that a folder holds results of other stores, before results of this one are written there."""
    names = {PurePath(other.name).name for other in (store, *request.baselines.values())}
    fingerprint, others = store.fingerprint(), []
    for found in results_in(folder):
        called = found.attributes.get("store") if "fingerprint" in found.attributes else None
        if relation_to(found, store, fingerprint) == "other" or (found.fingerprint == fingerprint and called not in (None, *names)):
            others.append(f"{found.name} (of {called or 'another store'})")
    if others:
        yield (
            f"{folder} holds {len(others):,} results that are not of {PurePath(store.name).name} as it is now, such as "
            f"{others[0]}; those of the same name are replaced, the others stay: give each store a folder of its own (--out)"
        )


def check_transfer(store: ActivationStore, request: ProbeRequest) -> None:
    """Raises InvalidInputError for a place that is neither a position of the array nor a baseline."""
    known = [*(place for place in positions_of(store, request.array) if place), *request.baselines]
    for name in request.transfer_to:
        if name not in known:
            raise InvalidInputError(
                f"expected --transfer-to with a position or the name of a baseline, found {name!r}; there are {', '.join(known)}"
            )


def check_asked(store: ActivationStore, request: ProbeRequest, studies: Mapping[tuple[str, str | None], Study]) -> None:
    """InvalidInputError where something was asked for that no task or column serves."""
    asked = {task.partition(":")[0] for task in request.tasks}
    if idle := [name for name in request.values if name not in asked]:
        raise InvalidInputError(f"expected --tasks with {idle[0]}, whose values are given, found {', '.join(request.tasks)}")
    try:
        column_texts(store, request.by)
    except InvalidInputError as error:
        raise InvalidInputError(f"--by: {error}") from error
    there = {metric for study in studies.values() for plan in study.plans.values() for batch in plan for metric in batch.metrics}
    if request.metric not in (None, *there):
        raise InvalidInputError(f"expected --metric of {', '.join(sorted(there))}, found {request.metric!r}")


def check_values(store: ActivationStore, request: ProbeRequest) -> None:
    """InvalidInputError where the user's values are of no example of the store."""
    for name, values in request.values.items():
        if not set(values) & set(store.examples["id"]):
            theirs, own = ", ".join(sorted(map(str, values))[:3]) or "none", ", ".join(store.examples["id"][:3])
            raise InvalidInputError(
                f"{name}: expected values of examples of {store.name} (ids such as {own}), found ids {theirs}; give its ids"
            )


def values_elsewhere(store: ActivationStore, request: ProbeRequest) -> Iterator[str]:
    """Says which of the user's values are of no example of the store."""
    known = set(store.examples["id"])
    for name, values in request.values.items():
        foreign = [str(given) for given in values if given not in known]
        if foreign:
            more = ", ..." if len(foreign) > SHOWN_IDS else ""
            yield f"{name}: {len(foreign):,} of {len(values):,} ids are not in this store: {', '.join(foreign[:SHOWN_IDS])}{more}"


def without_values(store: ActivationStore, request: ProbeRequest) -> Iterator[str]:
    """Says how many examples take no part, having no value of the user's."""
    for name, values in request.values.items():
        known = pd.Series(dict(values), dtype=object).dropna().index
        absent = int((~store.examples["id"].isin(known)).sum())
        if absent:
            yield f"{name}: {absent:,} of {len(store.examples):,} examples have no value and take no part"


MEASURES = ("mdl", "calibration")


def check_measures(request: ProbeRequest, *, by_head: bool) -> None:
    """InvalidInputError for an unknown measure, or for a measure or transfer of an array by head."""
    for name in request.measures:
        if name not in MEASURES:
            raise InvalidInputError(f"expected --measures among {', '.join(MEASURES)}, found {name!r}")
    if by_head and request.measures:
        raise InvalidInputError(
            "expected an array of one vector a position for --measures, found one with a vector for each head; leave --measures out"
        )
    if by_head and (request.transfer or request.transfer_to):
        raise InvalidInputError(f"expected an array of one vector a position for --transfer, found {request.array}; leave --transfer out")
