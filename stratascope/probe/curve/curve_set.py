"""`CurveSet`: the curves of a store, with their controls and baselines."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import pandas as pd

from stratascope.errors import InvalidInputError
from stratascope.probe.curve.advantage import Advantage
from stratascope.probe.curve.layer_curve import LayerCurve
from stratascope.probe.curve.metrics import score_band
from stratascope.probe.tasks.geometry import GEOMETRY, reads_boxes, reads_image
from stratascope.stats.intervals import largest_deviation

POSITIONS = ("final", "object", "relation", "subject", "image")
TASKS = ("truth", "relation", "answer")
"""Order of tasks and positions in a set; others follow by name."""

TIDY_COLUMNS = (
    "store", "task", "position", "layer", "fold", "target", "strength", "metric", "value",
    "low", "high", "low_simultaneous", "high_simultaneous", "chance",
)  # fmt: skip


class CurveLike(Protocol):
    """What identifies a layer curve: the curve itself, or a results file that holds one."""

    @property
    def task(self) -> str: ...

    @property
    def position(self) -> str | None: ...

    @property
    def attributes(self) -> Mapping[str, Any]: ...


C = TypeVar("C", bound=CurveLike)


@dataclass(frozen=True, eq=False)
class CurveGroup(Generic[C]):
    """Curves of one store with their controls, and curves of its baselines: which of them belong together."""

    own: Sequence[C]
    """Curves of the store itself: one per task or control, and position or head."""
    baselines: Mapping[str, Sequence[C]] = field(default_factory=dict)
    """Name of a baseline store -> its curves, which have no controls."""

    @property
    def plain(self) -> list[C]:
        """Curves other than controls."""
        return [curve for curve in self.own if ":" not in curve.task]

    def sorted(self) -> list[C]:
        """Curves other than controls: truth first, then by position, the final token first."""

        def place(names: Sequence[str], name: str) -> tuple[int, str]:
            return (names.index(name) if name in names else len(names), name)

        return sorted(self.plain, key=lambda c: (*place(TASKS, c.task), *place(POSITIONS, c.position or "")))

    def of_task(self, task: str) -> list[C]:
        """The curves of a task by its full name, by position or head."""
        return [curve for curve in self.own if curve.task == task]

    def controls_of(self, curve: C) -> dict[str, C]:
        """Name of a control -> the curve of the same position with its labels."""
        same = [c for c in self.own if c.task.startswith(f"{curve.task}:") and c.position == curve.position]
        return {control.task.partition(":")[2]: control for control in same}

    def baselines_of(self, curve: C) -> dict[str, C]:
        """Name of a baseline -> the curve of the same task, position and array in its store."""
        key = (curve.task, curve.position, curve.attributes.get("array"))
        named = ((name, curve) for name, curves in self.baselines.items() for curve in curves)
        return {name: c for name, c in named if (c.task, c.position, c.attributes.get("array")) == key}

    def beside(self, curve: C) -> dict[str, C]:
        """A curve's controls and baselines by name; the geometry of boxes last, because only positions in boxes have it."""
        beside = {**self.controls_of(curve), **self.baselines_of(curve)}
        return {name: beside[name] for name in sorted(beside, key=lambda name: name == GEOMETRY)}


@dataclass(frozen=True, eq=False)
class CurveSet(CurveGroup[LayerCurve]):
    """Curves of a store, its controls and baselines, and their advantages.

    Examples
    --------
    >>> from stratascope.probe import probe_study
    >>> curves = CurveSet(probe_study(store, ("truth", "truth:shuffled"), ("final",), draws=200))
    >>> advantages = curves.advantages_of(curves.plain[0])
    >>> {name: str(advantage.detected) for name, advantage in advantages.items()}["shuffled"]
    'layers 3-5'
    >>> joint = curves.with_family()
    >>> joint.advantages_of(joint.plain[0])["shuffled"].band_text
    '95 % simultaneous band over 6 layers'
    """

    metric: str | None = None
    """The metric of claims, figures and comparisons; by default each curve's own."""

    def metric_of(self, curve: LayerCurve) -> str:
        """The metric of a curve in claims, figures and summaries: the requested one if the curve has it."""
        return curve.metric if self.metric is None or self.metric not in set(curve.table["metric"]) else self.metric

    @property
    def digest(self) -> str:
        """Eight hexadecimal digits that name the set: those of equal curves, settings, controls and baselines are equal."""
        kept = ("store", "provenance", "remarks", "duplicate_images", "run")
        curves = {"": self.own, **self.baselines}
        known = sorted(
            json.dumps(
                [name, c.task, c.position, c.layers.tolist(), {k: v for k, v in c.attributes.items() if k not in kept}],
                sort_keys=True,
                default=str,
            )
            for name, some in curves.items()
            for c in some
        )
        return hashlib.sha256("\n".join(known).encode()).hexdigest()[:8]

    def with_family(self, *, margin: float = 0.0, equivalence_margin: float | None = None) -> CurveSet:
        """The same curves with one simultaneous band over all of them, so that all their claims hold together.

        The family holds the scores of every curve that is no control, and their advantages over each control and baseline, in all layers.
        Curves and their advantages then have that band, in their files too; its description is in the attribute `family`.

        Parameters
        ----------
        margin, equivalence_margin
            An advantage must exceed the margin to be detected; one below the equivalence margin (0.03, or 0.01 of R2, by default) counts
            as absent.

        Raises
        ------
        InvalidInputError
            The curves have different numbers of bootstrap draws.
        """
        largest, comparisons = None, 0
        for curve in self.plain:
            for name, advantage in self.advantages_of(curve).items():
                if name == "all":
                    continue
                found = largest_deviation(advantage.draws)
                if largest is not None and len(largest) != len(found):
                    raise InvalidInputError(
                        f"expected curves with the same number of draws, found {len(largest)} and {len(found)}; give all the same `draws`"
                    )
                largest = found if largest is None else np.maximum(largest, found)
                comparisons += advantage.draws.shape[1]
        family = None
        if largest is not None:
            critical = float(np.quantile(largest, self.plain[0].level))
            family = {"critical": critical, "comparisons": comparisons, "text": family_text(self.plain)}
        facts = {"margin": margin} | ({} if equivalence_margin is None else {"equivalence_margin": equivalence_margin})

        def reported(curve: LayerCurve, **more: Any) -> LayerCurve:
            return replace(curve, attributes={**curve.attributes, "metric": self.metric_of(curve), **facts, **more})

        own = [reported(c) if family is None or ":" in c.task else with_band(reported(c, family=family)) for c in self.own]
        return replace(self, own=own, baselines={name: [reported(c) for c in some] for name, some in self.baselines.items()})

    def advantages_of(self, curve: LayerCurve) -> dict[str, Advantage]:
        """Advantages of a curve over chance, each control, the embeddings, each baseline, and the best of these (`all`).

        Embeddings (layer 0) are a baseline at text positions alone: at image positions layer 0 is the output of the vision tower.
        """
        metric = self.metric_of(curve)
        over: dict[str, Advantage] = {"chance": curve.difference(metric=metric)}
        over |= {name: curve.difference(control, metric) for name, control in self.controls_of(curve).items()}
        if curve.attributes.get("array", "residual") == "residual" and 0 in curve.layers and not reads_image(curve.position):
            over["embeddings"] = curve.difference_from_layer(0, metric)
        over |= {name: curve.difference(baseline, metric) for name, baseline in self.baselines_of(curve).items()}
        if len(over) > 1:
            over["all"] = Advantage.over_all(list(over.values()))
        return over

    def notes_of(self, curve: LayerCurve) -> list[str]:
        """What the controls and baselines of a curve can and cannot say: one draw of labels, a position that depends on a gold box."""
        once = [name for name, control in self.controls_of(curve).items() if name != GEOMETRY and not control.controls]
        drawn = [f"intervals over {', '.join(once)} leave out the variance between draws of the labels: give several `control_draws`"]
        return [*(drawn if once else []), *self._box_notes(curve)]

    def _box_notes(self, curve: LayerCurve) -> list[str]:
        if not reads_boxes(curve.position) or not self.baselines_of(curve):
            return []
        return [
            f"a gold box selects the image tokens of {curve.position}, so that they encode where the box is even without the photo: "
            f"exceed {GEOMETRY}, because {', '.join(self.baselines_of(curve))} is no text-only baseline here"
        ]


def with_band(curve: LayerCurve) -> LayerCurve:
    """The curve with the simultaneous band of its family in the table, for its metric."""
    rows, family = curve.table["metric"] == curve.metric, curve.attributes["family"]
    value, draws = curve.table.loc[rows, "value"].to_numpy(), curve.draws[curve.metric].T
    groups = int(curve.examples["group"].nunique())
    ends = score_band(value, draws, curve.metric, groups, curve.level, curve.certain, family).ends
    table = curve.table.copy()
    for name in ("low_simultaneous", "high_simultaneous"):
        table.loc[rows, name] = ends[name]
    return replace(curve, table=table)


def family_text(curves: Sequence[LayerCurve]) -> str:
    """The curves of a family in words: `2 tasks x 5 positions x 7 layers`."""
    tasks, rows = list(dict.fromkeys(c.task for c in curves)), list(dict.fromkeys(c.position for c in curves))
    layers = max(len(c.layers) for c in curves)
    what = "head" if all(str(row).startswith("head ") for row in rows) else "position"
    counts = [(len(tasks), "task"), (len(rows), what)] if len(curves) == len(tasks) * len(rows) else [(len(curves), "curve")]
    words = [f"{n} {name}s" for n, name in counts if n > 1] + [f"{layers} layers" if layers > 1 else "1 layer"]
    return " x ".join(words)


def tidy_table(curves: Mapping[str, Sequence[LayerCurve]]) -> pd.DataFrame:
    """All scores of curves in one long table: a row per store, task, position, layer, metric and fold.

    Rows over all folds have intervals, and no fold, target or strength. Rows of one fold have no interval: its accuracy, and the loss in
    its training examples that selected the strength (`inner_loss`), one per target in a task of values.

    Parameters
    ----------
    curves
        Name of a store -> its curves.

    Examples
    --------
    >>> from stratascope.probe import layer_curve
    >>> table = tidy_table({"original": [layer_curve(store, layers=3, draws=200)]})
    >>> table.query("fold.isna()")["metric"].tolist()
    ['accuracy', 'balanced_accuracy', 'log_loss', 'auroc']
    """
    parts = []
    for store, some in curves.items():
        for curve in some:
            named = {"store": store, "task": curve.task, "position": curve.position or ""}
            parts.append(curve.table.assign(**named))
            kept = ["layer", "target", "fold", "strength"]
            by_fold = curve.folds.melt(kept, ["accuracy", "inner_loss"], "metric", "value").dropna(subset="value")
            parts.append(by_fold.assign(**named))
    table = pd.concat(parts, ignore_index=True).reindex(columns=list(TIDY_COLUMNS))
    return table.astype({"layer": "int64", "fold": "Int64"}).fillna({"target": ""})
