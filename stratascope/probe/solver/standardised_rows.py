"""The rows of one layer: standardised once, sorted into blocks, with exact means and deviations of every union of blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stratascope.errors import InvalidInputError

Floats = NDArray[Any]
_TAIL = 20.0
"""Eigenvalues up to this multiple of the smallest are replaced by their mean: their eigenvectors cost more than they save."""
_SMALL = 2**21
CHUNK = 1024
"""Number of rows standardised at a time, in float64."""


@dataclass(frozen=True, eq=False)
class Moments:
    """Mean and deviation of training sets, in the coordinates of `Rows.z`."""

    count: NDArray[np.float64]
    """(problem,)"""
    mean: Floats
    """(problem, column)"""
    scale: Floats
    """(problem, column); 1 where a column is constant in the training set, as in scikit-learn's StandardScaler."""


@dataclass(frozen=True, eq=False)
class Eigenbasis:
    """Leading eigenvectors of the Gram matrix of the rows: a preconditioner only, its accuracy never changes a solution."""

    values: Floats
    """(rank,)"""
    vectors: Floats
    """(column, rank)"""
    rest: float
    """Mean of the omitted eigenvalues."""


def suited_dtype(x: Floats) -> np.dtype[Any]:
    """float64 for small layers, where it is as fast and more precise."""
    return np.dtype(np.float64 if x.size <= _SMALL else np.float32)


class Rows:
    """Rows sorted by block; a problem trains on a union of blocks.

    Columns are centred and scaled by the mean and deviation of all rows in float64 before they are rounded, so that channels
    with a mean of 1e4 lose nothing; what remains, the mean and deviation of a single training set, is applied to the weights,
    never to the rows.

    Attributes
    ----------
    z
        (row, column) standardised rows, sorted by block.
    order
        (row,) the index into x of each row.
    offsets
        (block + 1,) the rows of block b are offsets[b]:offsets[b + 1].
    """

    def __init__(self, x: Floats, blocks: NDArray[np.integer], *, dtype: Any = None) -> None:
        """x (example, column), blocks (example,) with -1 for examples left out; dtype float64 only if x is, unless given."""
        x = np.asarray(x)
        blocks = np.asarray(blocks)
        if x.ndim != 2 or len(x) != len(blocks):
            raise InvalidInputError(f"expected rows (example, column) and one block an example, found {x.shape} and {blocks.shape}")
        used = np.flatnonzero(blocks >= 0)
        self.order = used[np.argsort(blocks[used], kind="stable")]
        self.blocks = int(blocks.max()) + 1
        self.offsets = np.searchsorted(blocks[self.order], np.arange(self.blocks + 1))
        self.n, self.d = len(self.order), x.shape[1]
        self.dtype = np.dtype(dtype or (np.float64 if x.dtype == np.float64 else np.float32))
        self._standardise(x)

    def _standardise(self, x: Floats) -> None:
        mean = np.zeros(self.d)
        for rows in self._chunks():
            mean += x[self.order[rows]].sum(axis=0, dtype=np.float64)
        mean /= self.n
        square = np.zeros(self.d)
        for rows in self._chunks():
            deviation = x[self.order[rows]] - mean
            square += np.einsum("ij,ij->j", deviation, deviation)
        variance = square / self.n
        # the rule of scikit-learn's StandardScaler for columns that vary by rounding alone
        eps = np.finfo(np.float64).eps
        constant = variance <= self.n * eps * variance + (self.n * mean * eps) ** 2
        self.mean, self.scale = mean, np.where(constant, 1.0, np.sqrt(variance))
        self.z = np.empty((self.n, self.d), self.dtype)
        self._sum = np.zeros((self.blocks, self.d))
        self._square = np.zeros((self.blocks, self.d))
        for block in range(self.blocks):
            for rows in self._chunks(self.offsets[block], self.offsets[block + 1]):
                z = (x[self.order[rows]] - mean) / self.scale
                z[:, constant] = 0
                self.z[rows] = z
                self._sum[block] += z.sum(axis=0)
                self._square[block] += np.einsum("ij,ij->j", z, z)
        if not np.isfinite(self._square).all():
            raise InvalidInputError(
                "expected finite activations, found NaN or infinity; leave out the examples that have them (`only`)",
                in_python="store.available tells which examples have the position",
            )
        self.norms = np.einsum("ij,ij->i", self.z, self.z)

    def _chunks(self, start: int = 0, stop: int | None = None) -> list[slice]:
        stop = self.n if stop is None else stop
        return [slice(a, min(a + CHUNK, stop)) for a in range(start, stop, CHUNK)]

    def part(self, block: int) -> slice:
        """The rows of a block."""
        return slice(int(self.offsets[block]), int(self.offsets[block + 1]))

    def rows_of(self, mask: NDArray[np.bool_]) -> NDArray[np.intp]:
        """Row numbers of a union of blocks, mask (block,)."""
        return np.flatnonzero(np.repeat(mask, np.diff(self.offsets)))

    def moments(self, training: NDArray[np.bool_]) -> Moments:
        """Mean and deviation over each training set, training (problem, block); InvalidInputError where one has fewer than two rows."""
        weight = training.astype(np.float64)
        count = weight @ np.diff(self.offsets)
        if (count < 2).any():
            raise InvalidInputError("expected at least two training examples, found a training set without; give fewer folds (`folds`)")
        mean = weight @ self._sum / count[:, None]
        variance = weight @ self._square / count[:, None] - mean**2
        # variance comes by subtraction, so a column constant in the training set leaves rounding of the size of its mean
        constant = variance <= 1e-12 * (1 + mean**2)
        scale = np.sqrt(np.where(constant, 1.0, variance))
        return Moments(count=count, mean=mean.astype(self.dtype), scale=scale.astype(self.dtype))

    def unscaled(self, weight: Floats, intercept: Floats, moments: Moments, problems: NDArray[np.intp]) -> tuple[Floats, Floats]:
        """Weights (problem, output, column) and intercepts of standardised rows in units of x, in float64."""
        weight = weight / moments.scale[problems].astype(np.float64)[:, None]
        intercept = intercept - np.einsum("pkd,pd->pk", weight, moments.mean[problems].astype(np.float64))
        weight = weight / self.scale
        return weight, intercept - weight @ self.mean

    def eigenbasis(self, rank: int | None = None) -> Eigenbasis:
        """Eigenvectors of z'z; of the smaller of z'z and zz' where there are fewer rows than columns.

        Parameters
        ----------
        rank
            How many; by default those whose eigenvalue stands out from the smallest ones.
        """
        from scipy.linalg import eigh

        wide = self.n < self.d
        gram = self.z @ self.z.T if wide else self.z.T @ self.z
        values, vectors = eigh(gram, driver="evd", overwrite_a=True, check_finite=False)
        values, vectors = np.maximum(values[::-1], 0), vectors[:, ::-1]
        keep = min(rank or max(int((values > _TAIL * values[-1]).sum()), 1), len(values))
        if wide:
            keep = min(keep, int((values > 1e-6 * values[0]).sum()) or 1)
        rest = float(values[keep:].sum() / max(self.d - keep, 1))
        values, vectors = values[:keep], vectors[:, :keep]
        if wide:
            vectors = self.z.T @ (vectors / np.sqrt(np.maximum(values, np.finfo(self.dtype).tiny)))
        return Eigenbasis(values=values.astype(self.dtype), vectors=np.ascontiguousarray(vectors, dtype=self.dtype), rest=rest)
