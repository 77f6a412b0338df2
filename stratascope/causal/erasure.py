"""Concept erasure: affine maps after which no linear classifier or regressor finds a concept (LEACE), and mean projection."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stratascope.errors import InvalidInputError

Floats = NDArray[np.float64]

FEW_EXAMPLES = 10
"""Below this many examples for each dimension the covariance is shrunk."""
_TINY = 1e-10


@dataclass(frozen=True, eq=False)
class Erasure:
    """An affine map x -> x - write (read (x - centre)) of rank k.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> z = rng.integers(0, 2, 400)
    >>> x = rng.normal(size=(400, 8)) + 2 * z[:, None]
    >>> erased = leace(x, one_hot(z))(x)
    >>> bool(np.abs(erased[z == 1].mean(0) - erased[z == 0].mean(0)).max() < 1e-9)
    True
    """

    write: Floats
    """(d, k)"""
    read: Floats
    """(d, k)"""
    centre: Floats
    """(d,)"""

    def __call__(self, x: NDArray[Any]) -> Floats:
        """(..., d) -> (..., d) with the concept erased."""
        return np.asarray(x - ((x - self.centre) @ self.read) @ self.write.T)

    @property
    def rank(self) -> int:
        """Number of dimensions that are changed."""
        return int(self.write.shape[1])


def one_hot(codes: NDArray[np.integer]) -> Floats:
    """(n,) class codes -> (n, class) indicators of the classes that occur."""
    return np.asarray(codes[:, None] == np.unique(codes), np.float64)


def shrinkage_of(x: Floats) -> float:
    """Weight of the scaled identity in the covariance: 0 with ten examples or more a dimension, else that of Ledoit & Wolf (2004)."""
    n, d = x.shape
    if n >= FEW_EXAMPLES * d:
        return 0.0
    from sklearn.covariance import ledoit_wolf_shrinkage

    return float(ledoit_wolf_shrinkage(x))


class Whitening:
    """Covariance of rows and its (pseudo-)inverse, computed once for many concepts.

    Parameters
    ----------
    x
        (n, d) rows.
    shrinkage
        Weight of the scaled identity, 0 to 1; by default `shrinkage_of`.

    Raises
    ------
    InvalidInputError
        If `shrinkage` is not between 0 and 1, or there are fewer than two rows.
    """

    def __init__(self, x: NDArray[Any], *, shrinkage: float | None = None) -> None:
        rows = np.asarray(x, np.float64)
        if rows.ndim != 2 or len(rows) < 2:
            raise InvalidInputError(f"expected rows of shape (n, d) with n of at least 2, found {rows.shape}")
        if shrinkage is not None and not 0 <= shrinkage <= 1:
            raise InvalidInputError(f"expected `shrinkage` between 0 and 1, found {shrinkage:g}")
        self.centre = rows.mean(0)
        self.centred = rows - self.centre
        self.variance = float(np.square(self.centred).sum() / len(rows))
        # a layer at which all rows are equal up to rounding holds no concept
        self.constant = self.variance <= 1e-12 * max(float(np.square(self.centre).sum()), 1e-300)
        self.shrinkage = 0.0 if self.constant else shrinkage_of(rows) if shrinkage is None else shrinkage

    def covariance_with(self, z: Floats) -> Floats:
        """(d, c) covariance of the rows with (n, c) values."""
        return np.asarray(self.centred.T @ (z - z.mean(0)) / len(z))

    def solve(self, right: Floats) -> Floats:
        """(d, c) inverse covariance times (d, c); the pseudo-inverse on the support without shrinkage."""
        from scipy import linalg

        n, d = self.centred.shape
        covariance = self.centred.T @ self.centred / n
        if self.shrinkage:
            covariance *= 1 - self.shrinkage
            covariance[np.diag_indices(d)] += self.shrinkage * self.variance / d
            return np.asarray(linalg.solve(covariance, right, assume_a="pos"))
        values, vectors = linalg.eigh(covariance)
        kept = values > values.max(initial=0) * d * np.finfo(float).eps
        return np.asarray(vectors[:, kept] / values[kept] @ (vectors[:, kept].T @ right))

    def erasures(self, covariances: Sequence[Floats]) -> list[Erasure]:
        """LEACE of each concept, given its (d, c) covariance with the rows."""
        if self.constant:
            return [self.nothing() for _ in covariances]
        solved = self.solve(np.concatenate(covariances, 1))
        ends = np.cumsum([c.shape[1] for c in covariances])[:-1]
        return [self._erasure(c, s) for c, s in zip(covariances, np.split(solved, ends, axis=1), strict=True)]

    def _erasure(self, covariance: Floats, solved: Floats) -> Erasure:
        values, vectors = np.linalg.eigh(covariance.T @ solved)
        kept = values > _TINY * values.max(initial=0)
        root = vectors[:, kept] / np.sqrt(values[kept])
        return Erasure(covariance @ root, solved @ root, self.centre)

    def nothing(self) -> Erasure:
        """The map that changes nothing."""
        empty = np.zeros((len(self.centre), 0))
        return Erasure(empty, empty, self.centre)


def leace(x: NDArray[Any], z: NDArray[Any], *, shrinkage: float | None = None) -> Erasure:
    """Least-squares concept erasure (LEACE; Belrose et al. 2023, arXiv 2306.03819, theorem 4.3).

    r(x) = x - W^+ P W (x - E[x]), with the whitening W = Cov(x)^(-1/2) and the orthogonal projector P on the column space of
    W Cov(x, z); written here without square roots as x - C (C' S C)^+ C' S (x - E[x]), where C = Cov(x, z) and S is the inverse of
    Cov(x). Afterwards x and z are uncorrelated, whatever the shrinkage: that only decides how much else changes.

    Parameters
    ----------
    x
        (n, d) rows.
    z
        (n, c): indicators of classes (`one_hot`), or numbers such as box centres.
    shrinkage
        Weight of the scaled identity in the covariance; by default 0 with ten rows or more a dimension, else that of Ledoit & Wolf.

    Raises
    ------
    InvalidInputError
        If `z` does not have one row for each of `x`.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(500, 4))
    >>> z = x[:, :1] + x[:, 1:2]
    >>> erasure = leace(x, z)
    >>> erasure.rank, bool(np.abs(np.cov(erasure(x).T, z.T)[:4, 4]).max() < 1e-12)
    (1, True)
    """
    values = np.asarray(z, np.float64)
    if values.ndim != 2 or len(values) != len(x):
        raise InvalidInputError(f"expected `z` of shape ({len(x)}, c), found {values.shape}")
    whitening = Whitening(x, shrinkage=shrinkage)
    return whitening.erasures([whitening.covariance_with(values)])[0]


def mean_projection(x: NDArray[Any], z: NDArray[Any]) -> Erasure:
    """Orthogonal projection that removes the span of the differences of class means (arXiv 2506.11673).

    For two classes the component along the difference of the class means is set to that of their midpoint; for more classes the span of
    the class means is set to their mean; for numbers the span of Cov(x, z) is set to that of E[x].

    Parameters
    ----------
    x
        (n, d) rows.
    z
        (n, c): indicators of classes, or numbers.
    """
    values = np.asarray(z, np.float64)
    rows = np.asarray(x, np.float64)
    classes = is_one_hot(values)
    if classes:
        values = values[:, values.any(0)]
        means = values.T @ rows / values.sum(0)[:, None]
        centre = means.mean(0)
        spread = means - centre
    else:
        centre = rows.mean(0)
        spread = (rows - centre).T @ (values - values.mean(0)) / len(rows)
        spread = spread.T
    basis = orthonormal(spread.T, float(np.abs(centre).max(initial=0)))
    return Erasure(basis, basis, centre)


def is_one_hot(z: Floats) -> bool:
    """Whether (n, c) values are indicators of classes."""
    return bool(np.isin(z, (0.0, 1.0)).all() and (z.sum(1) == 1).all())


def orthonormal(vectors: Floats, scale: float = 0.0) -> Floats:
    """(d, c) vectors -> (d, k) orthonormal basis of their span; vectors that are rounding errors of values of `scale` count as 0."""
    left, sizes, _ = np.linalg.svd(vectors, full_matrices=False)
    kept = sizes > max(1e-6 * sizes.max(initial=0), 1e-6 * scale)
    return np.asarray(left[:, kept])
