"""Layers detected by the number of examples: whether a layer is not detected because the study is small."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stratascope.errors import InvalidInputError, TooFewExamplesError
from stratascope.figures.drawing import LAYER_LABELS, metric_name, new_figure
from stratascope.figures.style import paper_style
from stratascope.probe.curve.advantage import DERIVED
from stratascope.probe.curve.curve_table import CurveTable, curve_facts
from stratascope.probe.curve.layer_curve import LayerCurve
from stratascope.probe.study.study import SCHEDULER, layer_curve
from stratascope.probe.study.study_plan import ProbeOptions, shows_probe_options
from stratascope.probe.tasks.task import Task
from stratascope.results.layer_intervals import LayerIntervals
from stratascope.results.result import new_axes, table_field
from stratascope.results.schema import columns
from stratascope.store import ActivationStore
from stratascope.store.format.json_schema import each

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FEWEST = 40
"""Fewest examples of a default size."""


class DetectionBySize(
    CurveTable,
    kind="detection_by_size",
    command="probe",
    prefix="sizes",
    schema={**DERIVED, **each(str, "metric"), **each(str | None, "array?"), **each(float, "margin level")},
):
    """Layers in which a probe is detected over chance, in random subsets of the images of several sizes."""

    table: pd.DataFrame = table_field(
        columns(
            ints="size subset layer",
            floats="value low_simultaneous high_simultaneous chance minimum_detectable_effect",
            flags="detected",
            grid="subset_of_size layer",
            text="subset_of_size",
        )
    )
    """One row per subset and layer: size (examples), subset (its number), subset_of_size (both, as text), layer, value,
    low_simultaneous, high_simultaneous (band over the layers of the subset), chance, minimum_detectable_effect, detected."""
    attributes: Mapping[str, Any]

    def shares(self) -> pd.DataFrame:
        """(layer, size) share of the subsets of a size in which the layer is detected."""
        return self.table.pivot_table(index="layer", columns="size", values="detected", aggfunc="mean").astype(float)

    def by_size(self) -> pd.DataFrame:
        """One row per size: size, subsets, first (layer detected in most subsets; -1 for none), share (of the subsets, at that layer, or
        the largest), minimum_detectable_effect (mean over subsets of the median over layers)."""  # fmt: skip
        shares, rows = self.shares(), []
        layers, share = shares.index.to_numpy(), shares.to_numpy()
        for number, size in enumerate(shares.columns.to_numpy()):
            mine = self.table[self.table["size"] == size]
            found = LayerIntervals.of(layers, share[:, number] > 0.5).layers
            effect = mine.groupby("subset")["minimum_detectable_effect"].median().mean()
            largest = float(share[layers == found[0], number][0] if found else share[:, number].max())
            rows.append((int(size), mine["subset"].nunique(), found[0] if found else -1, largest, effect))
        return pd.DataFrame(rows, columns=["size", "subsets", "first", "share", "minimum_detectable_effect"])

    def summary(self) -> str:
        """The layers detected in most subsets, by number of examples."""
        shares, counts = self.shares(), self.table.groupby("size")["subset"].nunique()
        layers, share = shares.index.to_numpy(), shares.to_numpy()
        words = []
        for number, size in enumerate(shares.columns.to_numpy()):
            found = LayerIntervals.of(layers, share[:, number] > 0.5)
            many = f" in most of {counts[size]} subsets" if counts[size] > 1 else ""
            words.append(f"n = {size:,}: {found if found else self._null(size)}{many}")
        return f"{self.title}, layers detected over chance by number of examples: {'; '.join(words)}"

    def _null(self, size: int) -> str:
        """`not detected`, with the largest advantage over layers that would have been detected, mean over subsets."""
        mine = self.table[self.table["size"] == size]
        least, chance = float(mine.groupby("subset")["minimum_detectable_effect"].max().mean()), float(mine["chance"].mean())
        lower, name = self.attributes["metric"] == "log_loss", metric_name(str(self.attributes["metric"]))
        if least > (chance if lower else 1 - chance):
            return f"not detected (not even the best possible {name} would have been with 80 % power)"
        score = f"at most {chance - least:.2f}" if lower else f"at least {chance + least:.2f}"
        return f"not detected ({name} of {score} would have been with 80 % power)"

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the share of subsets in which each layer is detected, by number of examples."""
        from stratascope.figures.heatmaps import draw_grid

        shares = self.shares()
        layers = LAYER_LABELS.get(str(self.attributes.get("array") or "residual"), "layer")
        return draw_grid(
            shares.to_numpy(), new_axes(ax), rows=shares.index.tolist(), columns=shares.columns.tolist(), low=0.0, high=1.0,
            label="Share of subsets in which it is detected", row_label=layers, column_label="Number of examples", title=self.title,
        )  # fmt: skip

    def figure(self, store: ActivationStore | None = None) -> Figure:
        """The grid on a column's width."""
        figure, (ax,) = new_figure(1, width=3.4, height=2.6)
        with paper_style():
            self.plot(ax)
        return figure


@shows_probe_options
def detection_by_size(
    store: ActivationStore | str | Path,
    task: str | Task = "truth",
    position: str | None = "final",
    *,
    sizes: Sequence[int] = (),
    subsets: int = 5,
    metric: str | None = None,
    margin: float = 0.0,
    array: str = "residual",
    layers: int | Sequence[int] | None = None,
    examples: Sequence[int] | NDArray[Any] | None = None,
    values: Mapping[str, Mapping[str, object]] | None = None,
    scheduler: str | None = SCHEDULER,
    workers: int | None = None,
    progress: bool = False,
    output: str | Path | None = None,
    **options: Unpack[ProbeOptions],
) -> DetectionBySize:
    """Probe random subsets of the images, and report the layers detected by their size.

    All probes are fitted again on each subset. All examples of an image (or of a group, with `groups`) are in a subset together.

    Parameters
    ----------
    store, task, position, array, layers, examples, values, scheduler, workers, progress, output
        As of `layer_curve`.
    sizes
        Numbers of examples; by default an eighth, a quarter, a half and all of the examples of the task, without those below 40 and those
        in which a subset has too few examples of its classes for the folds.
    subsets
        Random subsets of each size below that of all examples.
    metric, margin
        As of `probe.CurveSet`: the metric and the margin of detection over chance.
    options
        Fields of `ProbeSettings`; `seed` also draws the subsets.

    Raises
    ------
    InvalidInputError
        A size exceeds the number of examples, or `subsets` is below 1.
    TooFewExamplesError
        A subset of one of `sizes` has too few examples or classes for the folds.

    Examples
    --------
    >>> found = detection_by_size(store, sizes=(120, 240), subsets=1, layers=(1, 3), draws=200)
    >>> found.by_size()[["size", "first"]].to_numpy().tolist()
    [[120, 3], [240, 3]]
    """
    opened = store if isinstance(store, ActivationStore) else ActivationStore.open(store)
    if subsets < 1:
        raise InvalidInputError(f"expected at least 1 of `subsets`, found {subsets}")
    given: dict[str, Any] = {"array": array, "layers": layers, "values": values, "scheduler": scheduler, "workers": workers}
    given |= {"progress": progress, "output": output, **options}
    whole = layer_curve(opened, task, position, examples=examples, **given)
    numbers, groups = whole.examples["example"].to_numpy(), whole.examples["group"].to_numpy()
    count = len(numbers)
    wanted = sorted({*sizes}) if sizes else usual_sizes(count)
    if wanted[-1] > count or wanted[0] < 1:
        raise InvalidInputError(f"expected `sizes` of 1 to {count:,} examples, found {', '.join(map(str, wanted))}")
    names, code = np.unique(groups, return_inverse=True)
    rng = np.random.default_rng([int(whole.attributes.get("seed", 0)), 17])
    parts = []
    for size in wanted:
        rows: list[pd.DataFrame] = []
        for subset in range(subsets if size < count else 1):
            curve = whole
            if size < count:
                order = rng.permutation(len(names))
                sums = np.cumsum(np.bincount(code, minlength=len(names))[order])
                kept = order[: int(np.searchsorted(sums, size)) + 1]
                try:
                    curve = layer_curve(opened, task, position, examples=np.sort(numbers[np.isin(code, kept)]), **given)
                except TooFewExamplesError as error:
                    if not sizes:
                        rows = []
                        break
                    raise TooFewExamplesError(f"`sizes`, {size} examples: {error}; leave this size out") from error
            rows.append(_rows(curve, size, subset, metric, margin))
        parts += rows
    return DetectionBySize(
        pd.concat(parts, ignore_index=True),
        curve_facts(whole, metric=_metric(whole, metric), margin=margin, level=whole.level, array=array),
    )


def usual_sizes(count: int) -> list[int]:
    """The default sizes of a number of examples, ascending."""
    return [*(n for n in (count // 8, count // 4, count // 2) if n >= FEWEST), count]


def _metric(curve: LayerCurve, metric: str | None) -> str:
    return curve.metric if metric is None or metric not in set(curve.table["metric"]) else metric


def _rows(curve: LayerCurve, size: int, subset: int, metric: str | None, margin: float) -> pd.DataFrame:
    """Rows of one subset."""
    rows = curve.rows(_metric(curve, metric))
    claims = curve.difference(metric=_metric(curve, metric)).claims_over(margin)
    kept = ["layer", "value", "low_simultaneous", "high_simultaneous", "chance"]
    found = rows[kept].assign(size=size, subset=subset, subset_of_size=f"{subset} of {size}")
    detected = rows["layer"].isin(claims.detected.layers)
    return found.assign(minimum_detectable_effect=claims.minimum_detectable_effect, detected=detected)
