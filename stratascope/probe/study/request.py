"""`ProbeRequest`: tasks, positions, baselines and measures of a probe run, and checks against its stores."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import pandas as pd

from stratascope.errors import InvalidInputError
from stratascope.probe.curve.layer_curve import LayerCurve
from stratascope.probe.study.positions import available_at, is_pair, position_names
from stratascope.probe.study.study import TASKS, Study
from stratascope.probe.study.study_plan import ProbeSettings, positions_of, task_name
from stratascope.probe.tasks.task import find_task
from stratascope.results.probe_runs import earlier_text, split_earlier
from stratascope.results.stored_result import relation_to, results_in
from stratascope.store import ActivationStore, chosen_examples, column_texts
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
    """Task name -> mapping from example id to class or number."""
    baselines: Mapping[str, ActivationStore] = field(default_factory=dict)
    """Name -> store of the same examples."""
    by: str = "relation"
    """Column of the examples; accuracy is also reported for each of its values."""
    measures: tuple[str, ...] = ()
    """mdl: online codelength; calibration: reliability; sizes: detected layers by number of examples."""
    sizes: tuple[int, ...] = ()
    """Numbers of examples of the measure sizes; an eighth, a quarter, a half and all by default."""
    transfer_to: tuple[str, ...] = ()
    """Positions and names of baselines in which probes of each layer are also tested."""
    transfer: bool = False
    """Whether probes of each layer are also tested at all layers."""
    test_on: Mapping[str, ActivationStore] = field(default_factory=dict)
    """Name -> store of other examples on which the probes of each layer are tested."""
    metric: str | None = None
    """Metric of claims, figures and comparisons; AUROC for two classes, balanced accuracy for more, R2 for values, by default."""
    margin: float = 0.0
    """An advantage must exceed it to be detected."""
    equivalence_margin: float | None = None
    """An advantage below it counts as absent; 0.03, or 0.01 of R2, by default."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `ProbeSettings`."""

    def __post_init__(self) -> None:
        # no score but log-loss, in nats, has an advantage of 1 or more
        below = math.inf if self.metric == "log_loss" else 1.0
        within = self.margin if self.equivalence_margin is None else self.equivalence_margin
        if not 0 <= self.margin <= within < below:
            limit = "" if below == math.inf else ", below 1"
            raise InvalidInputError(
                f"expected a `margin` of at least 0{limit}, and an `equivalence_margin` that is not smaller, found {self.margin:g} and "
                f"{within:g}; correct one of them"
            )

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
"""Ids or classes named in a message."""


def check_baselines(store: ActivationStore, request: ProbeRequest) -> None:
    """Check that baselines hold the same examples in the same order: differences are paired by example.

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
    """Warning if a folder holds results of other stores."""
    names = {PurePath(other.name).name for other in (store, *request.baselines.values())}
    fingerprint, others = store.fingerprint(), []
    for found in results_in(folder):
        called = found.attributes.get("store") if "fingerprint" in found.attributes else None
        if relation_to(found, store, fingerprint) == "other" or (found.fingerprint == fingerprint and called not in (None, *names)):
            others.append(f"{found.name} (of {called or 'another store'})")
    if others:
        yield (
            f"{folder} holds {len(others):,} results that are not of {PurePath(store.name).name} as it is now, such as "
            f"{others[0]}; those of the same name are replaced, the others stay: give each store a folder of its own"
        )


def results_of_earlier_runs(store: ActivationStore, folder: Path) -> Iterator[str]:
    """Warning if a folder holds results of the store whose curve another run of `probe` replaced."""
    fingerprint = store.fingerprint()
    held = [found for found in results_in(folder) if found.task and relation_to(found, store, fingerprint) != "other"]
    _, earlier = split_earlier(held, [found for found in held if found.fingerprint == fingerprint])
    if earlier:
        yield f"{folder} also holds {earlier_text(earlier)}: report and figures leave them out"


def check_transfer(store: ActivationStore, request: ProbeRequest) -> None:
    """Check that each target of a transfer is a position of the array or a baseline; InvalidInputError otherwise."""
    known = [*(place for place in positions_of(store, request.array) if place), *request.baselines]
    for name in request.transfer_to:
        if name not in known and not (is_pair(name) and set(position_names(name)) <= set(known)):
            raise InvalidInputError(
                f"expected `transfer_to` with a position or the name of a baseline, found {name!r}; there are {', '.join(known)}"
            )


def check_pairs(request: ProbeRequest) -> None:
    """Check that a form of pairs goes with a pair of positions; InvalidInputError otherwise."""
    asked = [name for name in ("pair", "rank") if request.settings.get(name) not in (None, getattr(ProbeSettings, name))]
    if asked and not any(is_pair(place) for place in request.positions or ()):
        raise InvalidInputError(
            f"expected a pair among `positions` for `{asked[0]}`, such as subject_box+object_box, found "
            f"{', '.join(request.positions or ()) or 'none'}"
        )


def check_asked(store: ActivationStore, request: ProbeRequest, studies: Mapping[tuple[str, str | None], Study]) -> None:
    """Check that values, column and metric of the request are used by a task; InvalidInputError otherwise."""
    asked = {task.partition(":")[0] for task in request.tasks}
    if idle := [name for name in request.values if name not in asked]:
        raise InvalidInputError(f"expected `tasks` with {idle[0]}, whose values are given, found {', '.join(request.tasks)}")
    for option in ("numeric", "categorical"):
        if idle := [name for name in request.settings.get(option, ()) if name not in asked]:
            raise InvalidInputError(f"expected `tasks` with {idle[0]}, which `{option}` names, found {', '.join(request.tasks)}")
    try:
        column_texts(store, request.by)
    except InvalidInputError as error:
        raise InvalidInputError(f"`by`: {error}") from error
    there = {metric for study in studies.values() for plan in study.plans.values() for batch in plan for metric in batch.metrics}
    if request.metric not in (None, *there):
        raise InvalidInputError(f"expected `metric` of {', '.join(sorted(there))}, found {request.metric!r}")


def check_values(store: ActivationStore, request: ProbeRequest) -> None:
    """Check that custom values name examples of the store; InvalidInputError otherwise."""
    for name, values in request.values.items():
        if not set(values) & set(store.examples["id"]):
            theirs, own = ", ".join(sorted(map(str, values))[:3]) or "none", ", ".join(store.examples["id"][:3])
            raise InvalidInputError(
                f"{name}: expected values of examples of {store.name} (ids such as {own}), found ids {theirs}; give its ids"
            )


def values_elsewhere(store: ActivationStore, request: ProbeRequest) -> Iterator[str]:
    """Warnings: ids of custom values that are not in the store."""
    known = set(store.examples["id"])
    for name, values in request.values.items():
        foreign = [str(given) for given in values if given not in known]
        if foreign:
            more = ", ..." if len(foreign) > SHOWN_IDS else ""
            yield f"{name}: {len(foreign):,} of {len(values):,} ids are not in this store: {', '.join(foreign[:SHOWN_IDS])}{more}"


def without_values(store: ActivationStore, request: ProbeRequest) -> Iterator[str]:
    """Warnings: number of examples without a custom value."""
    for name, values in request.values.items():
        known = pd.Series(dict(values), dtype=object).dropna().index
        absent = int((~store.examples["id"].isin(known)).sum())
        if absent:
            yield f"{name}: {absent:,} of {len(store.examples):,} examples have no value and are excluded"


def rare_classes(store: ActivationStore, request: ProbeRequest, curve: LayerCurve) -> str:
    """Classes that a curve lacks because they have too few examples, with their numbers, as the end of a line; empty without any."""
    if curve.targets:
        return ""
    settings = ProbeSettings(array=request.array, **request.settings)
    wanted = chosen_examples(store, settings.only) if settings.only else np.ones(store.layout.examples, dtype=bool)
    for one in (store, *request.baselines.values()):
        wanted &= available_at(one, request.array, curve.position)
    for other in request.transfer_to:
        if other not in request.baselines:
            wanted &= available_at(store, request.array, other)
    specs = {task_name(task, settings.only): task for task in request.tasks}
    task, _ = find_task(store, specs[curve.task], wanted, request.values, settings.column_types)
    counts = np.bincount(task.codes[wanted & (task.codes >= 0)], minlength=len(task.classes))
    lost = [(int(count), name) for name, count in zip(task.classes, counts, strict=True) if count and name not in curve.classes]
    if not lost:
        return ""
    lost.sort(key=lambda one: (-one[0], one[1]))
    more = f" and {len(lost) - SHOWN_IDS:,} others" if len(lost) > SHOWN_IDS else ""
    named = ", ".join(f"{name} {count:,}" for count, name in lost[:SHOWN_IDS])
    return f"; excluded because they have fewer than {settings.minimum} examples: {named}{more}"


MEASURES = ("mdl", "calibration", "sizes")


def check_measures(request: ProbeRequest, *, by_head: bool) -> None:
    """Check that measures are known, and that they and transfer apply to the array; InvalidInputError otherwise."""
    for name in request.measures:
        if name not in MEASURES:
            raise InvalidInputError(f"expected `measures` among {', '.join(MEASURES)}, found {name!r}")
    if request.sizes and "sizes" not in request.measures:
        raise InvalidInputError(f"expected `measures` with sizes for `sizes`, found {', '.join(request.measures) or 'none'}; add it")
    if by_head and request.measures:
        raise InvalidInputError(
            "expected an array of one vector a position for `measures`, found one with a vector for each head; leave `measures` out"
        )
    if by_head and (request.transfer or request.transfer_to or request.test_on):
        named = "test_on" if request.test_on else "transfer"
        raise InvalidInputError(f"expected an array of one vector a position for `{named}`, found {request.array}; leave `{named}` out")
