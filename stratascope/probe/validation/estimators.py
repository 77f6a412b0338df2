"""Any scikit-learn estimator as a probe: its name, its checks, and its out-of-fold predictions."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from stratascope.errors import InvalidInputError, TooFewExamplesError
from stratascope.probe.validation.cross_validation import METHODS, without_directions
from stratascope.probe.validation.folds import Folds
from stratascope.probe.validation.out_of_fold import OutOfFold, decision_share, noise_share

Floats = NDArray[Any]
NAMED = ("mlp",)
"""Names of estimators besides the methods of the solver."""
_LINEAR = ("LogisticProbe", "LinearSVC", "LinearSVR", "LinearDiscriminantAnalysis", "NearestCentroid")
_NEVER = -60.0
"""Logit of a class without a training example."""
_MLP: Mapping[str, Any] = {"hidden_layer_sizes": (64,), "alpha": 10.0, "learning_rate_init": 3e-3, "tol": 1e-3, "max_iter": 500}
"""One hidden layer of 64 units, trained by Adam until the loss no longer falls. The weight decay is strong, because activations have about
as many columns as there are examples."""


class Estimator(Protocol):
    """A scikit-learn classifier or regressor."""

    def fit(self, X: Any, y: Any) -> Any: ...

    def predict(self, X: Any) -> Any: ...

    def get_params(self, deep: bool = True) -> Any: ...

    def set_params(self, **params: Any) -> Any: ...


Method = str | Estimator
"""A name in `METHODS` or `NAMED`, or an estimator."""


def checked_method(method: Any) -> Any:
    """The method itself.

    Raises
    ------
    InvalidInputError
        There is no such method, or an estimator cannot be distinguished from another by its parameters.
    """
    if isinstance(method, str):
        if method not in (*METHODS, *NAMED):
            raise InvalidInputError(f"expected a method of {', '.join((*METHODS, *NAMED))}, or a scikit-learn estimator, found {method!r}")
    elif isinstance(method, type) or not all(callable(getattr(method, name, None)) for name in ("fit", "predict", "get_params")):
        raise InvalidInputError(
            f"expected a method of {', '.join((*METHODS, *NAMED))}, or a scikit-learn estimator with fit, predict and get_params, "
            f"found {method!r}"
        )
    else:
        method_text(method)
    return method


def method_text(method: Method) -> str:
    """The method's name, or the class of an estimator with all its parameters: the same text for the same predictions.

    Raises
    ------
    InvalidInputError
        A parameter has no text that identifies it, such as a function.

    Examples
    --------
    >>> from sklearn.linear_model import RidgeClassifier
    >>> method_text(RidgeClassifier(alpha=2.0))[:47]
    'sklearn.linear_model._ridge.RidgeClassifier(alp'
    """
    return method if isinstance(method, str) else _text(method, "method")


def _text(value: Any, name: str) -> str:
    if callable(getattr(value, "get_params", None)) and not isinstance(value, type):
        inner = ", ".join(f"{key}={_text(one, key)}" for key, one in sorted(value.get_params(deep=False).items()))
        return f"{type(value).__module__}.{type(value).__qualname__}({inner})"
    if isinstance(value, np.ndarray):
        digest = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()[:16]
        return f"array({value.dtype.str}, {value.shape}, {digest})"
    if isinstance(value, list | tuple):
        first, last = "()" if isinstance(value, tuple) else "[]"
        return f"{first}{', '.join(_text(one, name) for one in value)}{last}"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_text(key, name)}: {_text(one, name)}' for key, one in value.items())}}}"
    if isinstance(value, np.random.RandomState | np.random.Generator):
        raise InvalidInputError(
            f"expected a number as {name}, found a generator, whose state changes with every fit; give a number, or leave it out: it is "
            "then the study's seed"
        )
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    text = repr(value)
    if " at 0x" in text:
        raise InvalidInputError(
            f"expected parameters whose repr shows their content, found {name} = {text}: layers cached for it could not be distinguished "
            "from those of another estimator; give a value with such a repr"
        )
    return text


def is_nonlinear(method: Method) -> bool:
    """Whether a method is anything but the solver's methods and scikit-learn's linear models, alone or after standardisation."""
    if isinstance(method, str):
        return method not in METHODS
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import StandardScaler

    if isinstance(method, Pipeline):
        *before, (_, last) = method.steps
        return not all(step in (None, "passthrough") or isinstance(step, StandardScaler) for _, step in before) or is_nonlinear(last)
    return not (type(method).__module__.startswith("sklearn.linear_model.") or type(method).__name__ in _LINEAR)


def nonlinear_remark(method: Method, *, bilinear: bool) -> str | None:
    """Warning to print with the scores of a nonlinear probe; None for a linear one."""
    if not bilinear and not is_nonlinear(method):
        return None
    name = method if isinstance(method, str) else type(method).__name__
    what = "a bilinear probe" if bilinear else f"a nonlinear probe ({name})"
    return f"{what} finds more than can be read linearly; compare it with the linear probe and with its own controls"


def refuse_unfit(method: Method, *, values: bool, task: str) -> None:
    """Refuse an estimator that does not fit the kind of a task.

    Raises
    ------
    InvalidInputError
        A regressor for classes, or a classifier for values.
    """
    from sklearn.base import is_classifier, is_regressor

    if isinstance(method, str) or (is_regressor(method) if values else is_classifier(method)):
        return
    wanted = "regressor for values" if values else "classifier for classes"
    raise InvalidInputError(
        f"task {task!r}: expected a {wanted}, found {type(method).__name__}; give another `method`, or leave the task out"
    )


def estimator_of(method: Method, *, values: bool, seed: int) -> Any:
    """A new, unfitted estimator; `seed` is every random state that it leaves open.

    Parameters
    ----------
    method
        A name in `NAMED`, or an estimator.
    values
        Whether the task has values instead of classes.
    seed
        Of the study.
    """
    from sklearn.base import clone

    if isinstance(method, str):
        from sklearn.neural_network import MLPClassifier, MLPRegressor
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        found = make_pipeline(StandardScaler(), (MLPRegressor if values else MLPClassifier)(**_MLP))
    else:
        found = clone(method)
    open_states = {name: seed for name, value in found.get_params().items() if name.rpartition("__")[2] == "random_state" and value is None}
    return found.set_params(**open_states)


def fit_out_of_fold(
    estimator: Any, x: Floats, labels: NDArray[Any], blocks: NDArray[np.integer], folds: Folds, *, classes: int
) -> list[OutOfFold]:
    """Fit an estimator to each training set, and predict the fold that it lacks.

    A search over hyperparameters (`GridSearchCV` and other estimators with a parameter `cv` that is None) selects within the training
    examples by the study's own folds, so that no image is divided. The noise of training is measured with models that lack one more fold,
    the next or the one before.

    Parameters
    ----------
    estimator
        Unfitted; it receives activations as recorded: standardisation is a step of a pipeline.
    x
        (example, column).
    labels
        (labelling, example) class codes, or (labelling, example, target) values.
    blocks
        (example,) folds of the examples, -1 for examples left out.
    folds
        Of the same examples.
    classes
        Number of classes; 0 for a task of values.

    Returns
    -------
    list of OutOfFold
        By labelling, without directions.

    Raises
    ------
    InvalidInputError
        The estimator cannot be fitted, or gives neither probabilities nor a decision function.
    TooFewExamplesError
        A training set has one class only.
    """
    return [_fit_labelling(estimator, x, one, blocks, folds, classes) for one in labels]


def _fit_labelling(estimator: Any, x: Floats, labels: NDArray[Any], blocks: NDArray[Any], folds: Folds, classes: int) -> OutOfFold:
    targets = [labels] if classes else list(labels.T)
    columns = [_fit_target(estimator, x, target, blocks, folds, classes) for target in targets]
    logits = np.concatenate([column[0] for column in columns]).astype(np.float32)
    noise, turned = (np.concatenate([column[place] for column in columns]) for place in (1, 2))
    models = len(noise)
    unknown = np.full(models, np.nan)
    return OutOfFold(
        logits=logits,
        strength=unknown,
        inner_loss=np.full((1, models), np.nan),
        gap=unknown,
        certificate=unknown,
        iterations=np.zeros(models, np.intp),
        noise_share=noise,
        decision_share=turned,
        absent=np.concatenate([column[3] for column in columns]),
        at_edge=np.zeros(models, bool),
        **without_directions(len(logits), models, len(targets)),
    )


def _fit_target(
    estimator: Any, x: Floats, y: NDArray[Any], blocks: NDArray[Any], folds: Folds, classes: int
) -> tuple[Floats, Floats, Floats, NDArray[np.bool_]]:
    """Logits (output, example), noise share and decision share (fold,), absent classes (fold, class) of one labelling or target."""
    count = folds.count
    tested = list(range(count)) if folds.test is None else [folds.test]
    outputs = 1 if classes <= 2 else classes
    logits = np.full((outputs, len(x)), np.nan)
    noise, turned = np.full(len(tested), np.nan), np.full(len(tested), np.nan)
    absent = np.zeros((len(tested), classes), bool)
    # a model that lacks a fold and the next one serves as the smaller model of both
    smaller: dict[int, list[Floats]] = {fold: [] for fold in tested}
    if folds.test is None and count > 2:
        for fold in tested:
            after = (fold + 1) % count
            model = _fitted(estimator, x, y, blocks, [fold, after], classes)
            for other in (fold, after):
                smaller[other].append(_predicted(model, x[blocks == other], classes))
    for place, fold in enumerate(tested):
        model = _fitted(estimator, x, y, blocks, [fold], classes)
        index = blocks == fold
        logits[:, index] = _predicted(model, x[index], classes)
        if classes:
            absent[place] = ~np.isin(np.arange(classes), model.classes_)
        if smaller[fold]:
            correlation = float(np.sqrt((count - 2) / (count - 1)))
            noise[place] = noise_share(logits[:, index], np.stack(smaller[fold]), correlation)
            turned[place] = decision_share(logits[:, index], np.stack(smaller[fold]), correlation)
    return logits, noise, turned, absent


def _fitted(estimator: Any, x: Floats, y: NDArray[Any], blocks: NDArray[Any], lacking: list[int], classes: int) -> Any:
    from sklearn.base import clone

    rows = np.flatnonzero((blocks >= 0) & ~np.isin(blocks, lacking))
    if classes and len(np.unique(y[rows])) < 2:
        raise TooFewExamplesError("expected at least two classes in every training set, found a constant label; give fewer folds")
    model = clone(estimator)
    inner = blocks[rows]
    splits = [(np.flatnonzero(inner != fold), np.flatnonzero(inner == fold)) for fold in np.unique(inner)]
    parameters = model.get_params(deep=False)
    last = parameters["steps"][-1][0] if "steps" in parameters else ""
    for name in ("cv", f"{last}__cv"):
        if len(splits) > 1 and name in (everything := model.get_params()) and everything[name] is None:
            model.set_params(**{name: splits})
    try:
        return model.fit(x[rows], y[rows])
    except (ValueError, TypeError) as error:
        raise InvalidInputError(
            f"expected an estimator that fits {len(rows):,} examples of {x.shape[1]:,} numbers, found that {type(estimator).__name__} "
            f"fails: {error}"
        ) from error


def _predicted(model: Any, x: Floats, classes: int) -> Floats:
    """(output, example) logits of the classes, or the predicted values."""
    if not classes:
        return np.asarray(model.predict(x), np.float64).reshape(1, -1)
    known = getattr(model, "classes_", None)
    if known is None or not (hasattr(model, "predict_proba") or hasattr(model, "decision_function")):
        raise InvalidInputError(
            f"expected a classifier with classes_, and predict_proba or decision_function, found none in {type(model).__name__}; "
            "give another `method`"
        )
    if hasattr(model, "predict_proba"):
        share = np.clip(np.asarray(model.predict_proba(x), np.float64), np.finfo(np.float64).eps, 1)
        scores = np.log(share)
    else:
        scores = np.asarray(model.decision_function(x), np.float64)
        if scores.ndim == 1:
            scores = np.stack([np.zeros(len(scores)), scores], axis=1)
    every = np.full((len(x), classes), _NEVER)
    every[:, known] = scores
    return every.T if classes > 2 else (every[:, 1] - every[:, 0])[None]
