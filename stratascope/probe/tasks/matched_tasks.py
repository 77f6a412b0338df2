"""Tasks of two stores with other examples: the same model, no image in both, classes of the same names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stratascope.errors import InvalidInputError, NotRecordedError
from stratascope.probe.tasks.numeric_values import ColumnTypes
from stratascope.probe.tasks.task import Task, find_task
from stratascope.store import ActivationStore
from stratascope.store.format.provenance import same_model_files
from stratascope.store.io.example_identity import IMAGE, IMAGE_HASH, PERCEPTUAL_HASH, further_images, group_labels


@dataclass(frozen=True, eq=False)
class MatchedTasks:
    """A task of a store, and the same task of another, on the classes that both have."""

    source: Task
    target: Task
    shared_images: int
    """Examples of the target left out because their image is in the source."""
    unmatched: tuple[dict[str, int], dict[str, int]]
    """Class -> examples, of classes that only the source, or only the target, has."""


def refuse_other_model(source: ActivationStore, target: ActivationStore, array: str) -> None:
    """Refuse a store of another model, revision, or shape of the array.

    Raises
    ------
    InvalidInputError
        The models differ; the message names the first difference.
    """
    models = [model if isinstance(model := store.provenance.get("model"), Mapping) else {"name": model} for store in (source, target)]
    own, theirs = store_label(source), store_label(target)
    for field in ("name", "revision", "untrained", "quantization"):
        left, right = (model.get(field) for model in models)
        if left != right:
            raise InvalidInputError(
                f"expected a store of the same model as {own}, found {field} {right!r} in {theirs} and {left!r} in {own}: directions of "
                "one model mean nothing in another"
            )
    if not same_model_files(*models):
        raise InvalidInputError(f"expected a store of the same model files as {own}, found others in {theirs}")
    shapes = [
        [(dim, n) for dim, n in zip(spec.dims, spec.shape, strict=True) if dim not in ("example", spec.layer_dim, spec.position_dim)]
        for spec in (store.layout.array(array) for store in (source, target))
    ]
    if shapes[0] != shapes[1] or source.layout.layers != target.layout.layers:
        raise InvalidInputError(
            f"expected {array} of {source.layout.layers} decoder blocks with {_size(shapes[0])} numbers as in {own}, found "
            f"{target.layout.layers} with {_size(shapes[1])} in {theirs}; extract both with the same model"
        )


def shared_images(source: ActivationStore, target: ActivationStore) -> NDArray[np.bool_]:
    """(example of the target,) whether an image of it, or a near-duplicate, is in the source: by content where known, else by name."""
    first = (IMAGE, IMAGE_HASH, PERCEPTUAL_HASH)
    columns = [first, *max((list(further_images(store.examples)) for store in (source, target)), key=len)]
    tables = []
    for store in (source, target):
        table = store.examples.reindex(columns=[name for names in columns for name in names]).astype(object)
        for names in columns[1:]:
            if names[0] not in store.examples.columns:  # examples with fewer images
                table[list(names)] = table[list(first)]
        tables.append(table.fillna("").astype(str))
    # names of different stores say nothing about images with a hash
    apart = [table.assign(**{name: f"{number}/" + table[name] for name, *_ in columns}) for number, table in enumerate(tables)]
    labels = group_labels(pd.concat(apart, ignore_index=True))
    by_content = np.isin(labels[len(tables[0]) :], labels[: len(tables[0])])
    own, other = tables
    known = {name for column, *_ in columns for name in own[column]}
    unhashed = {name for column, sha256, _ in columns for name in own[column][own[sha256] == ""]}
    by_name = [other[name].isin(unhashed) | ((other[sha256] == "") & other[name].isin(known)) for name, sha256, _ in columns]
    return np.asarray(by_content | np.any(by_name, 0), bool)


def match_tasks(
    source: ActivationStore,
    target: ActivationStore,
    name: str,
    usable: Sequence[NDArray[np.bool_]],
    *,
    minimum: int,
    folds: int,
    values: Mapping[str, Mapping[str, object]] | None = None,
    types: ColumnTypes = ColumnTypes(),  # noqa: B008 (frozen)
) -> MatchedTasks:
    """The task of a name in two stores, on images that only one has and classes that both have.

    Parameters
    ----------
    source, target
        Stores of training and test.
    name, values, types
        As of `find_task`.
    usable
        (example,) masks of the usable examples of both.
    minimum, folds
        Fewest examples of a class in training, and the number of folds for the error message.

    Raises
    ------
    InvalidInputError
        All images are shared, fewer than two classes are, the column is a quantity in one store alone, or values are of ids that both
        stores have.
    NotRecordedError
        The target has no usable example.
    """
    if ":" in name:
        raise InvalidInputError(f"expected a task without control, found {name!r}")
    if name in (values or {}):
        ids = [set(store.examples["id"]) for store in (source, target)]
        if both_have := sorted(ids[0] & ids[1]):
            raise InvalidInputError(
                f"task {name!r}: expected ids that only one of the stores has, because values are by id, found {len(both_have):,} in both, "
                f"such as {both_have[0]}; put the values in a column of the examples"
            )
    same = shared_images(source, target) & usable[1]
    usable = [usable[0], usable[1] & ~same]
    own, theirs = store_label(source), store_label(target)
    if not usable[1].any():
        if not same.any():
            raise NotRecordedError(f"expected examples at the position in {theirs}, found none; choose another position or store")
        raise InvalidInputError(
            f"expected other images in {theirs} than in {own}, found all {int(same.sum()):,} of them shared: for another condition of the "
            "same examples give it as a baseline and name it (`transfer_to`)"
        )
    tasks = [_found(store, name, mask, values, types) for store, mask in zip((source, target), usable, strict=True)]
    if (tasks[0].values is None) != (tasks[1].values is None):
        of_numbers, of_classes = (own, theirs) if tasks[1].values is None else (theirs, own)
        raise InvalidInputError(
            f"task {name!r}: expected the same kind of column in both stores, found quantities in {of_numbers} and classes in "
            f"{of_classes}; name it in `numeric` or in `categorical`"
        )
    if tasks[0].values is not None:
        used = [replace(task, codes=np.where(mask, task.codes, -1)) for task, mask in zip(tasks, usable, strict=True)]
        return MatchedTasks(used[0], used[1], int(same.sum()), ({}, {}))
    tasks[0] = tasks[0].among(usable[0], minimum, folds)
    counts = [_counts(task, mask) for task, mask in zip(tasks, usable, strict=True)]
    both = [label for label in counts[0] if label in counts[1]]
    if len(both) < 2:
        raise InvalidInputError(
            f"task {name!r}: expected at least two classes of {minimum} examples or more in {own} (`minimum`) that {theirs} also has, "
            f"found {', '.join(both) or 'none'}; {own} has {', '.join(counts[0])}, {theirs} has {', '.join(counts[1])}: give both stores "
            "the same class names, in a column of the examples"
        )
    alone = tuple({label: count for label, count in own.items() if label not in both} for own in counts)
    kept = [_renamed(task, mask, both) for task, mask in zip(tasks, usable, strict=True)]
    return MatchedTasks(kept[0], kept[1], int(same.sum()), (alone[0], alone[1]))


def _found(
    store: ActivationStore,
    name: str,
    usable: NDArray[np.bool_],
    values: Mapping[str, Mapping[str, object]] | None,
    types: ColumnTypes,
) -> Task:
    try:
        return find_task(store, name, usable, values, types)[0]
    except (InvalidInputError, NotRecordedError) as error:
        raise type(error)(f"{store_label(store)}: {error}") from error


def _counts(task: Task, usable: NDArray[np.bool_]) -> dict[str, int]:
    count = np.bincount(task.codes[usable & (task.codes >= 0)], minlength=len(task.classes))
    return {label: int(n) for label, n in zip(task.classes, count, strict=True) if n}


def _renamed(task: Task, usable: NDArray[np.bool_], classes: list[str]) -> Task:
    """The task with these classes alone, in this order."""
    number = np.array([classes.index(label) if label in classes else -1 for label in task.classes] + [-1])
    return Task(task.name, np.where(usable, number[task.codes], -1), tuple(classes))


def store_label(store: ActivationStore) -> str:
    """The last part of the store's path or address."""
    return PurePath(store.name.rstrip("/")).name


def _size(shape: list[tuple[str, int]]) -> str:
    return " x ".join(str(n) for _, n in shape)
