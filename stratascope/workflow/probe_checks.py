"""What one probe command asks for, held against its stores before anything is solved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

import pandas as pd

from stratascope.errors import InvalidInputError
from stratascope.store import column_texts
from stratascope.store.io.example_identity import refuse_other_examples

if TYPE_CHECKING:
    from stratascope.probe import Study
    from stratascope.store import ActivationStore
    from stratascope.workflow.probe_request import ProbeRequest


SHOWN_IDS = 5
"""Of ids that the store does not know."""


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
    from stratascope.report.viewer.page import results_in
    from stratascope.results.collection import relation_to

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
    from stratascope.probe.study.study import positions_of

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
