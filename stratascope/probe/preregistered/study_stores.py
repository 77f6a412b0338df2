"""Stores of a pre-registered study: open them, and check them against the plan."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from stratascope.errors import InvalidInputError, NotRecordedError, UnwrittenBlockError
from stratascope.preregistration.study_plan import ORIGINAL, StudyPlan, StudyStore
from stratascope.probe.study.positions import available_at, position_names
from stratascope.store import ActivationStore
from stratascope.store.format.prompt_parts import CELL_POSITION, TOKEN_POSITION
from stratascope.store.format.provenance import same_model_files
from stratascope.store.io.example_identity import refuse_other_examples
from stratascope.store.io.store_files import inside, store_exists

AGAIN = "record it with `stratascope extract --for PLAN.toml --out DIR`"


def study_stores(plan: StudyPlan, folder: str | Path) -> dict[str, ActivationStore]:
    """Open the stores of a plan in a folder, named as the plan names them: `original.zarr`, ...

    Raises
    ------
    NotRecordedError
        A store is missing.
    UnreachableError
        A server refuses or does not answer.
    """
    found = {}
    for store in plan.stores:
        path = inside(folder, f"{store.name}.zarr")
        if not store_exists(path):
            raise NotRecordedError(
                f"expected the store {path} (condition {store.condition}{_drawn(store)}), found none; record it with "
                f"`stratascope extract --for PLAN.toml --out {folder}`"
            )
        found[store.name] = ActivationStore.open(path)
    return found


def check_stores(plan: StudyPlan, stores: Mapping[str, ActivationStore]) -> None:
    """Check that each store was recorded as the plan says, and that all are of one model and the same examples.

    Parameters
    ----------
    plan, stores
        As of `preregistered_study`.

    Raises
    ------
    InvalidInputError
        A store was recorded with other settings than the plan's, or the stores are of other models or examples.
    NotRecordedError
        A store or an array is missing.
    UnwrittenBlockError
        A store is not finished.
    """
    lacking = [store.name for store in plan.stores if store.name not in stores]
    if lacking:
        raise NotRecordedError(f"expected the stores {', '.join(s.name for s in plan.stores)}, found none for {', '.join(lacking)}")
    own = stores[plan.original.name]
    columns = [task.task for task in plan.tasks]
    for wanted in plan.stores:
        store = stores[wanted.name]
        if not store.complete:
            left = int((~store.written).sum())
            raise UnwrittenBlockError(f"expected {store.name} complete, found {left} of {store.layout.blocks} blocks missing; {AGAIN}")
        held = store.provenance
        expected = {"condition": wanted.condition, "prompt": plan.extraction.prompt, "untrained": wanted.untrained}
        model, prompt = _part(held, "model"), _part(held, "prompt")
        found = {
            "condition": str(held.get("condition") or ORIGINAL),
            "prompt": prompt.get("name", plan.extraction.prompt),
            "untrained": model.get("untrained"),
        }
        unlike = [f"{name} {found[name]!r}, not {expected[name]!r}" for name in expected if found[name] != expected[name]]
        if unlike:
            raise InvalidInputError(f"expected {store.name} as planned for {wanted.name!r}, found {'; '.join(unlike)}; {AGAIN}")
        for probed in plan.probes:
            if probed.array not in store.layout.record:
                raise NotRecordedError(f"expected the array {probed.array} in {store.name}, found none; {AGAIN}")
        if store is not own:
            _check_same_model(own, store)
            refuse_other_examples(own, store, f"a store of the study ({wanted.name})", columns)


def _check_same_model(own: ActivationStore, store: ActivationStore) -> None:
    ours, theirs = own.provenance, store.provenance
    models = [_part(provenance, "model") for provenance in (ours, theirs)]
    unlike = [key for key in ("name", "revision", "dtype") if models[0].get(key) != models[1].get(key)]
    unlike += [] if same_model_files(*models) else ["files"]
    unlike = [f"the model's {key}" for key in unlike]
    unlike += [key for key in ("processor", "prompt") if ours.get(key) != theirs.get(key)]
    if own.layout.layers != store.layout.layers or own.layout.hidden != store.layout.hidden:
        unlike.append("the layers")
    if unlike:
        raise InvalidInputError(
            f"expected {store.name} of the same model and prompt as {own.name}, found a difference in {', '.join(unlike)}; extract both "
            "with the same options"
        )


def _part(provenance: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A record of a provenance; planted stores have a name in its place."""
    found = provenance.get(name)
    return found if isinstance(found, Mapping) else {"name": found} if found else {}


def _recorded(store: ActivationStore, array: str, position: str) -> bool:
    """Whether an example has the array at a position, or at both of a pair; False where the store lacks the position."""
    dim = store.layout.array(array).position_dim
    held = () if dim is None else store.layout.positions_of(dim)
    return set(position_names(position)) <= set(held) and bool(available_at(store, array, position).any())


def expanded_positions(store: ActivationStore, positions: Iterable[str]) -> tuple[str, ...]:
    """Positions of a plan, with the groups `cells` and `tokens` replaced by those of their positions that a store holds."""
    names = {"cells": CELL_POSITION, "tokens": TOKEN_POSITION}
    found = dict[str, None]()
    for position in positions:
        rule = names.get(position)
        held = [name for name in store.layout.positions if rule.fullmatch(name)] if rule is not None else []
        found.update(dict.fromkeys(held or [position]))
    return tuple(found)


def missing_positions(plan: StudyPlan, stores: Mapping[str, ActivationStore]) -> list[str]:
    """Positions that no example has, in any store.

    Raises
    ------
    NotRecordedError
        Only some of the stores lack a position, or the primary outcome needs one.
    """
    found = []
    for probed in plan.probes:
        for position in expanded_positions(stores[plan.original.name], probed.positions):
            lacking = [name for name, store in stores.items() if not _recorded(store, probed.array, position)]
            if not lacking:
                continue
            primary = (plan.primary.array, plan.primary.position) == (probed.array, position)
            if primary or len(lacking) < len(stores):
                raise NotRecordedError(
                    f"expected {probed.array} at {position} in every store, found none in {', '.join(lacking)}; record them with "
                    "`stratascope extract --for PLAN.toml`" + (" and --boxes" if "_box" in position else "")
                )
            found.append(position)
    return list(dict.fromkeys(found))


def _drawn(store: StudyStore) -> str:
    return "" if store.untrained is None else f", untrained with seed {store.untrained}"
