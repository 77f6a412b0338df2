"""Scikit-learn estimators: the solver as a classifier, and the features of a low-rank bilinear form."""

from __future__ import annotations

from numbers import Real
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, TransformerMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from stratascope.errors import InvalidInputError
from stratascope.probe.solver.logistic import BatchSolver
from stratascope.probe.solver.losses import probabilities
from stratascope.probe.solver.standardised_rows import Rows
from stratascope.probe.validation.cross_validation import TOLERANCE

Floats = NDArray[Any]


class LogisticProbe(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """L2-regularised logistic regression on standardised columns: two classes share one logit, more have a softmax.

    Equal to scikit-learn's `make_pipeline(StandardScaler(), LogisticRegression(C))`.

    Parameters
    ----------
    C
        Inverse regularisation; 1e-3 .. 1e-1 suits thousands of columns.
    tol
        Of the objective, relative.
    max_iter
        Quasi-Newton steps.

    Attributes
    ----------
    classes_
        Sorted.
    coef_
        (1 or classes, column) weights on X as given, standardisation folded in.
    intercept_
        (1 or classes,).
    scale_
        (column,) deviation of the training columns; coef_ * scale_ are the weights that are regularised.
    certificate_
        Bound on the distance of those weights to the exact ones.
    n_iter_
        Steps taken.

    Examples
    --------
    >>> import numpy as np
    >>> y = np.arange(100) % 2
    >>> X = np.random.default_rng(0).normal(y[:, None] * 2.0, 1.0, (100, 3))
    >>> probe = LogisticProbe(C=0.1).fit(X, y)
    >>> probe.coef_.shape, bool(probe.score(X, y) > 0.9)
    ((1, 3), True)
    """

    classes_: NDArray[Any]
    coef_: Floats
    intercept_: Floats
    scale_: Floats

    def __init__(self, C: float = 1e-2, *, tol: float = 1e-10, max_iter: int = 1000) -> None:
        self.C = C
        self.tol = tol
        self.max_iter = max_iter

    def fit(self, X: Any, y: Any) -> Self:
        """Fit the probe; float32 stays float32.

        Parameters
        ----------
        X
            (example, column).
        y
            (example,) labels.

        Raises
        ------
        InvalidInputError
            C is not above 0, or all labels are the same.
        """
        X, y = validate_data(self, X, y, dtype=[np.float64, np.float32], ensure_min_samples=2)
        check_classification_targets(y)
        if not (isinstance(self.C, Real) and 0 < self.C < np.inf):
            raise InvalidInputError(f"expected C > 0, found {self.C!r}; smaller C regularises more")
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise InvalidInputError(
                f"expected at least two classes, found one class only: {self.classes_[0]!r}; a probe needs examples of each"
            )
        rows = Rows(X, np.zeros(len(X), dtype=np.intp))
        solver = BatchSolver(
            rows,
            codes[None],
            np.ones((1, 1), dtype=bool),
            classes=len(self.classes_),
            basis=rows.eigenbasis(),
            tolerance=max(self.tol, TOLERANCE) if rows.dtype == np.float32 else self.tol,
            max_iterations=self.max_iter,
        )
        report = solver.solve(float(self.C))
        if not report.converged[0]:
            import warnings

            from sklearn.exceptions import ConvergenceWarning

            warnings.warn(
                f"expected convergence within max_iter={self.max_iter}, found a gap of {report.gap[0]:.1e}; raise it, or lower C",
                ConvergenceWarning,
                stacklevel=2,
            )
        weight, intercept = solver.directions()
        self.coef_, self.intercept_ = weight[0], intercept[0]
        self.scale_ = rows.scale * solver.moments.scale[0]
        self.certificate_, self.n_iter_ = float(report.certificate[0]), int(report.iterations[0])
        return self

    def decision_function(self, X: Any) -> Floats:
        """Logits of X (example, column): (example,) of the second class, or (example, class)."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
        logits = X @ self.coef_.T + self.intercept_
        return np.asarray(logits[:, 0] if len(self.classes_) == 2 else logits)

    def predict_proba(self, X: Any) -> Floats:
        """(example, class) probabilities of X (example, column)."""
        logits = self.decision_function(X)
        return probabilities(np.atleast_2d(logits.T))

    def predict(self, X: Any) -> NDArray[Any]:
        """(example,) the most likely class of X (example, column)."""
        logits = self.decision_function(X)
        return np.asarray(self.classes_[(logits > 0).astype(int) if logits.ndim == 1 else logits.argmax(axis=1)])


class BilinearFeatures(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Features of a low-rank bilinear form of two vectors: both vectors, and all products of their leading principal components.

    X holds the vectors a and b side by side. Each side's columns are standardised and projected on the `rank` leading principal
    components of the rows that `fit` sees: p = P (a - mean) / scale, and q of b likewise. The features are [a, b, p_1 q_1, p_1 q_2, ...],
    so that a linear classifier on them has logits u'a + v'b + p'Wq + c. L2-regularised logistic regression on their standardised columns
    is a bilinear probe of rank at most `rank`; with all products' weights 0 it is the probe on the concatenation.

    Parameters
    ----------
    rank
        Principal components of each side, at most its columns.
    seed
        Of the randomised decomposition, which scikit-learn's `PCA` uses for large matrices.

    Examples
    --------
    >>> import numpy as np
    >>> sides = np.random.default_rng(0).choice([-1.0, 1.0], (400, 2))
    >>> features = BilinearFeatures(rank=1).fit_transform(sides)
    >>> features.shape, bool((np.abs(features[:, 2]) > 0.5).all())
    ((400, 3), True)
    """

    def __init__(self, rank: int = 16, *, seed: int = 0) -> None:
        self.rank = rank
        self.seed = seed

    def fit(self, X: Any, y: Any = None) -> Self:
        """Estimate means, deviations and principal components of both sides from X (example, 2 x column); y is ignored.

        Raises
        ------
        InvalidInputError
            The number of columns is odd, or the rank is not above 0.
        """
        from sklearn.decomposition import PCA
        from sklearn.preprocessing import StandardScaler

        X = validate_data(self, X, dtype=[np.float64, np.float32], ensure_min_samples=2)
        if X.shape[1] % 2:
            raise InvalidInputError(f"expected two vectors of the same size side by side, found {X.shape[1]} columns")
        if not self.rank > 0:
            raise InvalidInputError(f"expected a rank above 0, found {self.rank!r}; give a larger one (`rank`)")
        self.scaler_ = StandardScaler().fit(X)
        z = self.scaler_.transform(X)
        components = min(self.rank, X.shape[1] // 2, len(X))
        self.projections_ = tuple(PCA(components, random_state=self.seed).fit(side) for side in np.split(z, 2, axis=1))
        return self

    def transform(self, X: Any) -> Floats:
        """(example, 2 x column + rank x rank) both vectors of X (example, 2 x column), and the products."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
        sides = np.split(self.scaler_.transform(X), 2, axis=1)
        first, second = (pca.transform(side) for pca, side in zip(self.projections_, sides, strict=True))
        products = (first[:, :, None] * second[:, None, :]).reshape(len(X), -1)
        return np.concatenate([X, products.astype(X.dtype)], axis=1)
