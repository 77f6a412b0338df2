"""Principal components of the residual stream at one position, by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stratascope.analysis.parallel import held_examples
from stratascope.errors import InvalidInputError, NotRecordedError, TooFewExamplesError
from stratascope.figures.drawing import new_figure
from stratascope.figures.style import paper_style
from stratascope.results.file import made_from
from stratascope.results.result import CHOICE, Result, array_field, new_axes, table_field, titled
from stratascope.results.schema import columns
from stratascope.scheduling import run_all
from stratascope.store import ActivationStore
from stratascope.store.format.json_schema import Along, each

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COMPONENTS = 2
MOST_PANELS = 4
"""Layers in a figure, evenly spaced."""
FEWEST = 3
"""Examples: fewer lie on a line."""


class PrincipalComponents(
    Result,
    kind="principal_components",
    command="pca",
    schema={**each(str, "store condition position"), **CHOICE, "layers": Along("layer", int)},
):
    """First two principal components of the residual stream at one position, by layer."""

    scores: NDArray[np.float32] = array_field("float", "layer component example")
    """(layer, component, example) projections of the centred activations, in the units of the activations. The sign of a component is
    that which makes its largest weight positive."""
    explained: NDArray[np.float64] = array_field("share", "layer component")
    """(layer, component) share of the variance of the layer; NaN where the layer is the same for all examples."""
    examples: pd.DataFrame = table_field(columns("example", ints="example label"))
    """One row per example: example (its number), label (as stored; of a true caption 1, of a false one 0)."""
    attributes: Mapping[str, Any]
    """store, condition, position, layers (numbers), only."""

    @property
    def options(self) -> Mapping[str, Any]:
        """Parameters of `principal_components`."""
        return {"position": self.attributes["position"], "only": self.only}

    @property
    def name_parts(self) -> tuple[str | None, ...]:
        """The position and the selection of examples."""
        return (str(self.attributes["position"]), *self.only)

    @property
    def layers(self) -> list[int]:
        """Numbers of the layers."""
        return list(self.attributes["layers"])

    def to_frame(self) -> pd.DataFrame:
        """One row per layer and example: layer, example, label, first, second, and the shares of variance."""
        frames = []
        for layer, scores, explained in zip(self.layers, self.scores, self.explained, strict=True):
            told = {"first": scores[0], "second": scores[1], "explained_first": explained[0], "explained_second": explained[1]}
            frames.append(self.examples.assign(layer=layer, **told))
        return pd.concat(frames, ignore_index=True)

    def summary(self) -> str:
        """Share of the variance that both components explain, at the first layer in which examples differ, and at the last."""
        known = np.flatnonzero(np.isfinite(self.explained).all(1))
        ends = [f"{self.explained[k].sum():.0%} of the variance at layer {self.layers[k]}" for k in sorted({*known[:1], *known[-1:]})]
        told = f"two components explain {', '.join(ends)}" if ends else "all examples are the same in every layer"
        return f"{self.attributes['position']}: {told} ({len(self.examples):,} examples)"

    def plot(self, ax: Axes | None = None, *, layer: int | None = None) -> Axes:
        """Draw both components of a layer, coloured by label.

        Parameters
        ----------
        ax
            Axes to draw on; a new figure's by default.
        layer
            Number of the layer; the last by default.
        """
        from stratascope.figures.predictions import draw_components

        k = len(self.layers) - 1 if layer is None else self.layers.index(layer)
        title = titled(f"layer {self.layers[k]}", self.only)
        return draw_components(self.scores[k], self.examples["label"].to_numpy(), self.explained[k], new_axes(ax), title=title)

    def figure(self, store: ActivationStore | None = None) -> Figure:
        """Panels of evenly spaced layers."""
        chosen = np.unique(np.linspace(0, len(self.layers) - 1, min(MOST_PANELS, len(self.layers))).round().astype(int))
        with paper_style():
            figure, axes = new_figure(len(chosen), width=1.9 * len(chosen), height=2.2)
            for k, ax in zip(chosen, axes, strict=True):
                self.plot(ax, layer=self.layers[k])
            axes[-1].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), markerscale=2)
            figure.suptitle(f"Residual stream at {self.attributes['position']}", fontsize=8.5)
        return figure


def principal_components(
    store: ActivationStore,
    examples: Sequence[int] | NDArray[Any] | None = None,
    *,
    position: str = "final",
    only: Sequence[str] = (),
    progress: bool = False,
) -> PrincipalComponents:
    """Project the residual stream of every layer onto its first two principal components (Pearson 1901).

    The components are those of the centred activations, not scaled: a few dimensions with a large variance can determine them. They show
    what varies most, which need not be what the model uses or a probe reads.

    Parameters
    ----------
    store
        With `residual`.
    examples
        Example numbers or a mask; all recorded ones by default.
    position
        Position of the residual stream.
    only
        COLUMN=VALUE: keep the examples with one of the given values of each column; see `store.chosen_examples`.
    progress
        Show a progress bar where stderr is a terminal.

    Raises
    ------
    NotRecordedError
        If the store lacks the residual stream.
    InvalidInputError
        If the position is unknown, or no examples are left.
    TooFewExamplesError
        If fewer than 3 examples have the position.

    Examples
    --------
    >>> components = principal_components(store, position="final")  # doctest: +SKIP
    >>> components.scores.shape  # layers, components, examples  # doctest: +SKIP
    (7, 2, 512)
    """
    if "residual" not in store.arrays:
        raise NotRecordedError(f"{store.name}: expected the residual stream, found none; extract with `record` residual")
    if position not in store.positions:
        raise InvalidInputError(f"expected a `position` of {', '.join(store.positions)}, found {position!r}")
    numbers = held_examples(store, "residual", examples, only)
    numbers = numbers[store.available("residual", position)[numbers]]
    if len(numbers) < FEWEST:
        raise TooFewExamplesError(f"expected at least {FEWEST} recorded examples with the position {position}, found {len(numbers)}")
    layers = [int(layer) for layer in store.layers]

    def project(layer: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        return first_components(store.read("residual", layer=layer, position=position, examples=numbers))

    found = run_all(project, layers, progress=progress, label="layers")
    return PrincipalComponents(
        np.stack([scores for scores, _ in found]).astype(np.float32),
        np.stack([explained for _, explained in found]),
        pd.DataFrame({"example": numbers, "label": store.examples["label"].fillna(-1).to_numpy(np.int64)[numbers]}),
        {**made_from(store), "position": position, "layers": layers, "only": list(only)},
    )


def first_components(x: NDArray[Any], count: int = COMPONENTS) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Scores of the first principal components, and their shares of the variance.

    Parameters
    ----------
    x
        (example, column), at least as many of both as `count` plus one.
    count
        Of components.

    Returns
    -------
    tuple
        (component, example) scores with the largest weight of each component positive, and (component,) shares of the variance. Constant
        columns give scores of 0 and shares of NaN.
    """
    from scipy.sparse.linalg import svds

    centred = np.asarray(x, np.float64) - np.mean(x, 0, dtype=np.float64)
    total = np.square(centred).sum()
    # rounding of the mean, not variance
    if total <= np.square(x, dtype=np.float64).sum() * np.finfo(np.float64).eps:
        return np.zeros((count, len(x))), np.full(count, np.nan)
    start = np.ones(min(centred.shape))
    start[1::2] = -0.5
    _, sizes, rows = svds(centred, k=count, v0=start, solver="arpack")
    order = np.argsort(-sizes, kind="stable")
    sizes, rows = sizes[order], rows[order]
    rows *= np.sign(rows[np.arange(count), np.abs(rows).argmax(1)])[:, None]
    return rows @ centred.T, np.square(sizes) / total
