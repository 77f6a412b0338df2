"""Plan of a study: settings, and the examples, folds and labels of every task at a position."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from inspect import Parameter, signature
from typing import Any, Literal, TypedDict, TypeVar

import numpy as np
from numpy.typing import NDArray

from stratascope.errors import InvalidInputError, NotRecordedError, UnwrittenBlockError
from stratascope.probe.study.batch import Batch, batch_of
from stratascope.probe.study.positions import PAIR_FORMS, PairForm, available_at
from stratascope.probe.tasks.controls import CONTROL_DRAWS, TYPES, control_labels, shuffled_labels
from stratascope.probe.tasks.numeric_values import ColumnTypes
from stratascope.probe.tasks.task import MINIMUM_COUNT, Task, find_task
from stratascope.probe.validation.cross_validation import METHODS, TOLERANCE
from stratascope.probe.validation.estimators import Estimator, checked_method, method_text, refuse_unfit
from stratascope.probe.validation.folds import Folds, grouped_folds
from stratascope.probe.validation.official_splits import official_split
from stratascope.store import ActivationStore, checked_choice, chosen_examples
from stratascope.store.io.example_identity import group_labels
from stratascope.store.io.selection import listing


@dataclass(frozen=True)
class ProbeSettings:
    """Settings of fits and scores."""

    array: str = "residual"
    """Any recorded array; its last axis is the input of a probe."""
    folds: int = 5
    seed: int = 0
    """Of folds, controls and bootstrap."""
    strengths: tuple[float, ...] | None = None
    """Inverse regularisation C, selected by nested cross-validation. None: 1e-5 .. 100, and 1e3 where the loss still falls; for ridge
    regression 1e-6 .. 100."""
    method: Literal["logistic", "means", "mlp"] | Estimator = "logistic"
    """logistic: L2-regularised logistic regression; means: difference of class means; tasks of values use ridge regression with both. mlp:
    a network with one hidden layer. Or a scikit-learn classifier (regressor for values), which receives activations as recorded and has no
    directions."""
    pair: PairForm = "concatenation"
    """Form of a pair of positions. concatenation: both vectors, the weights of the first position first; difference: first minus second;
    bilinear: both vectors and the products of their principal components (`BilinearFeatures`), without directions."""
    rank: int = 16
    """Principal components of each vector in a bilinear pair probe."""
    split: tuple[str, ...] = ()
    """Names of the training and the test split, such as ("train", "test"), instead of cross-validation."""
    groups: str = "image"
    """Column of the groups that no fold divides; `image` groups by image content."""
    minimum: int = MINIMUM_COUNT
    """Classes with fewer examples are excluded."""
    only: tuple[str, ...] = ()
    """COLUMN=VALUE: only examples with one of the values of each column; task names state the selection."""
    types: tuple[str, ...] = TYPES
    """Columns that define the type of an example in a control task."""
    numeric: tuple[str, ...] = ()
    """Columns of few whole numbers that are quantities: ridge regression, as for columns with fractions or more than ten whole numbers."""
    categorical: tuple[str, ...] = ()
    """Columns of many whole numbers that name classes."""
    control_draws: int = CONTROL_DRAWS
    """Draws of the labels of each control; its score is their mean, and its interval includes the variance between them."""
    tolerance: float = TOLERANCE
    """Tolerance of the solver, relative to the objective."""
    draws: int = 2000
    """Resamples of the bootstrap."""
    level: float = 0.95
    """Confidence level of intervals and bands."""
    directions: bool = True
    """Whether the weights of a probe trained on all examples are kept."""

    @property
    def attributes(self) -> dict[str, Any]:
        """The fields as plain values: an estimator as its text."""
        return {one.name: getattr(self, one.name) for one in fields(self)} | {"method": method_text(self.method)}

    @property
    def column_types(self) -> ColumnTypes:
        """The columns of numbers whose kind is given."""
        return ColumnTypes(self.numeric, self.categorical)

    def __post_init__(self) -> None:
        if self.strengths is not None:
            object.__setattr__(self, "strengths", tuple(sorted(float(c) for c in self.strengths)))
            if not self.strengths or min(self.strengths) <= 0:
                found = ", ".join(f"{c:g}" for c in self.strengths) or "none"
                raise InvalidInputError(
                    f"expected strengths above 0, found {found}; give others (`strengths`), such as 1e-3, 1e-2 and 1e-1"
                )
        object.__setattr__(self, "types", tuple(self.types))
        object.__setattr__(self, "numeric", tuple(self.numeric))
        object.__setattr__(self, "categorical", tuple(self.categorical))
        _ = self.column_types
        object.__setattr__(self, "only", checked_choice(self.only))
        object.__setattr__(self, "split", tuple(self.split))
        checked_method(self.method)
        if self.strengths is not None and self.method not in METHODS:
            raise InvalidInputError(
                "expected `strengths` with method logistic or means alone, found them with another; leave them out, or set the "
                "estimator's own parameters"
            )
        if self.pair not in PAIR_FORMS:
            raise InvalidInputError(f"expected a form of pairs (`pair`) of {', '.join(PAIR_FORMS)}, found {self.pair!r}")
        if self.rank < 1:
            raise InvalidInputError(f"expected a `rank` above 0, found {self.rank}; give 16")
        if len(self.split) not in (0, 2):
            raise InvalidInputError(
                f"expected the names of a training and a test split, found {', '.join(self.split)}; "
                "give two (`split`), such as train and test"
            )
        if not 0 < self.level < 1:
            raise InvalidInputError(f"expected a level between 0 and 1, found {self.level}; give 0.95")
        if self.draws < 100:
            raise InvalidInputError(f"expected at least 100 draws, found {self.draws}; 2000 give stable intervals")
        if self.control_draws < 1:
            raise InvalidInputError(
                f"expected at least 1 draw of the labels of a control, found {self.control_draws}; {CONTROL_DRAWS} give stable "
                "controls (`control_draws`)"
            )
        if not 0 < self.tolerance <= 1e-3:
            raise InvalidInputError(f"expected a tolerance up to 1e-3, found {self.tolerance}; 1e-6 is exact enough for any figure")


class ProbeOptions(TypedDict, total=False):
    """Fields of `ProbeSettings`, except the array, as keyword parameters of a function; defaults are those of the fields."""

    folds: int
    seed: int
    strengths: tuple[float, ...] | None
    method: Literal["logistic", "means", "mlp"] | Estimator
    pair: PairForm
    rank: int
    split: tuple[str, ...]
    groups: str
    minimum: int
    only: tuple[str, ...]
    types: tuple[str, ...]
    numeric: tuple[str, ...]
    categorical: tuple[str, ...]
    control_draws: int
    tolerance: float
    draws: int
    level: float
    directions: bool


Function = TypeVar("Function", bound=Callable[..., Any])


def shows_probe_options(function: Function) -> Function:
    """Show the fields of `ProbeSettings` with their defaults in the signature of a function that takes them as `**options`."""
    own = signature(function)
    named = [parameter for parameter in own.parameters.values() if parameter.kind is not Parameter.VAR_KEYWORD]
    options = [f for f in fields(ProbeSettings) if f.name in ProbeOptions.__annotations__]
    named += [Parameter(f.name, Parameter.KEYWORD_ONLY, default=f.default, annotation=f.type) for f in options]
    function.__signature__ = own.replace(parameters=named)  # type: ignore[attr-defined]
    return function


def plan_position(
    store: ActivationStore,
    tasks: Sequence[str | Task],
    position: str | None,
    settings: ProbeSettings,
    *,
    examples: Sequence[int] | NDArray[Any] | None = None,
    values: Mapping[str, Mapping[str, object]] | None = None,
) -> list[Batch]:
    """Folds and labels of every task at a position.

    Raises
    ------
    NotRecordedError
        No example is recorded there.
    InvalidInputError
        The examples have no column to group by.
    """
    wanted = wanted_examples(store, examples, settings.only)
    usable = wanted & available_at(store, settings.array, position)
    if not usable.any():
        raise NotRecordedError(
            f"expected examples with {settings.array} at position {position!r}, found none recorded; "
            f"this store has positions {', '.join((*store.layout.positions, *store.layout.vision_positions))}; "
            "choose one of them (`positions`)"
        )
    if settings.groups not in store.examples.columns:
        raise InvalidInputError(
            f"expected a column of the examples to group by, found {settings.groups!r}; columns are {', '.join(map(str, store.examples))}; "
            "give one of them (`groups`)"
        )
    groups = group_labels(store.examples, settings.groups)
    tasks_of: dict[str, Task] = {}
    folds_of: dict[str, Folds] = {}
    names: dict[str, list[str]] = {}
    labels: dict[str, list[NDArray[Any]]] = {}
    for spec in tasks:
        found, control = find_task(store, spec, usable, values, settings.column_types)
        found = replace(found, name=task_name(found.name, settings.only))
        if found.name not in tasks_of:
            kept = found.among(usable, settings.minimum, 0 if settings.split else settings.folds)
            tasks_of[found.name], folds_of[found.name] = kept, _folds(store, kept, groups, settings)
            names[found.name], labels[found.name] = [], []
            refuse_unfit(settings.method, values=kept.values is not None, task=found.name)
        task, folds = tasks_of[found.name], folds_of[found.name]
        names[task.name].append(f"{task.name}:{control}" if control else task.name)
        labels[task.name].append(_labels(store, task, control, folds, settings))
    return [batch_of(names[n], t, folds_of[n], labels[n]) for n, t in tasks_of.items()]


def task_name(task: str, only: Sequence[str]) -> str:
    """Task name with the selection of examples, such as `truth (relation=above):shuffled`."""
    if not only:
        return task
    name, colon, control = task.partition(":")
    return f"{name} ({', '.join(text.replace(':', ';') for text in only)}){colon}{control}"


def _folds(store: ActivationStore, task: Task, groups: NDArray[Any], settings: ProbeSettings) -> Folds:
    if settings.split:
        train, test = settings.split
        return official_split(
            store.examples,
            task.codes,
            train=(train,),
            test=(test,),
            groups=settings.groups,
            folds=settings.folds,
            seed=settings.seed,
            class_names=task.classes or None,
        )
    return grouped_folds(groups, task.codes, folds=settings.folds, seed=settings.seed, class_names=task.classes or None, by=settings.groups)


def _labels(store: ActivationStore, task: Task, control: str | None, folds: Folds, settings: ProbeSettings) -> NDArray[Any]:
    """(draw, example, ...) labels of a task (one draw) or of a control."""
    plain = task.codes if task.values is None else task.values
    drawing: dict[str, int] = {"draws": settings.control_draws, "seed": settings.seed}
    if control == "shuffled":
        place = shuffled_labels(np.where(folds.of >= 0, np.arange(len(folds.of)), -1), folds, **drawing)
        return plain[place] if task.values is not None else np.where(folds.of >= 0, plain[place], -1)
    if control == "control":
        if task.values is not None:
            raise InvalidInputError(f"task {task.name!r}: expected classes for a control task, found values; use {task.name}:shuffled")
        return control_labels(task.codes, store.examples, folds, types=settings.types, **drawing)
    return plain[None]


def wanted_examples(store: ActivationStore, examples: Sequence[int] | NDArray[Any] | None, only: Sequence[str] = ()) -> NDArray[np.bool_]:
    """(example,) mask of `examples` that match `only`; UnwrittenBlockError where one of them is not written."""
    count = store.layout.examples
    wanted = np.zeros(count, dtype=bool)
    wanted[slice(None) if examples is None else np.asarray(examples)] = True
    if only:
        wanted &= chosen_examples(store, only)
    blocks = np.arange(count) // store.layout.block
    unwritten = np.unique(blocks[wanted & ~store.written[blocks]])
    if len(unwritten):
        raise UnwrittenBlockError(
            f"expected all examples written, found {len(unwritten)} of {len(store.written)} blocks unwritten "
            f"(the first is {unwritten[0]}); let the extraction finish (the same command goes on)",
            in_python="pass examples=store.available('residual')",
        )
    return wanted


def holds_heads(store: ActivationStore, array: str) -> bool:
    """Whether the array has a vector for each head."""
    dims = store.layout.array(array).dims
    return "head" in dims and dims[-1] != "head"


def refuse_without_heads(store: ActivationStore, array: str) -> None:
    """Raise InvalidInputError where the array has no vector for each head."""
    if not holds_heads(store, array):
        dims = store.layout.array(array).dims
        raise InvalidInputError(
            f"{array}: expected an array with a vector for each head, found one of {' by '.join(dims)}; "
            "give another `array`, such as head_outputs"
        )


def positions_of(store: ActivationStore, array: str) -> tuple[str | None, ...]:
    """Every position of the array; None alone for an array without."""
    dim = store.layout.array(array).position_dim
    return (None,) if dim is None else tuple(store.layout.positions_of(dim))


def layers_of(store: ActivationStore, array: str, layers: int | Sequence[int] | None) -> list[int]:
    """One layer or several, all of the array by default; 0 for an array without layers.

    Raises
    ------
    InvalidInputError
        The array holds no vectors.
    NotRecordedError
        The array lacks one of the layers.
    """
    spec = store.layout.array(array)
    if "patch" in spec.dims:
        raise InvalidInputError(
            f"{array}: expected an array of one vector an example, found one vector an image token; run stratascope patches"
        )
    if "example" not in spec.dims or len(set(spec.dims) - {"example", spec.layer_dim, spec.position_dim}) == 0:
        found = " by ".join(spec.dims)
        raise InvalidInputError(
            f"{array}: expected an array of one vector an example, found one of {found}; give another `array`, such as residual"
        )
    if spec.layer_dim is None:
        return [0]  # such as the vision tower's output
    held = store.layout.layers_of(spec.layer_dim)
    asked = list(held) if layers is None else [int(layer) for layer in np.atleast_1d(layers)]
    absent = [layer for layer in asked if layer not in held]
    if absent:
        raise NotRecordedError(f"{array}: expected layers that the store holds, found {absent[0]}; it holds {listing(held)}")
    return sorted(asked)
