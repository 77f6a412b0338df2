"""`LayerCurve`: out-of-fold scores of one task at one position, by layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stratascope.errors import InvalidInputError
from stratascope.figures.drawing import metric_name
from stratascope.probe.curve.advantage import Advantage
from stratascope.probe.curve.claims import LayerClaims, band_text
from stratascope.probe.curve.layer_curve_schema import SCHEMA
from stratascope.probe.curve.metrics import best_row, main_metric, prediction_table
from stratascope.probe.curve.onset_offset import LayerEvent, event_table
from stratascope.probe.curve.pairing import refuse_unpaired
from stratascope.probe.validation.out_of_fold import fit_warnings
from stratascope.results.file import ResultFile
from stratascope.results.layer_intervals import LayerIntervals
from stratascope.results.result import Result, new_axes
from stratascope.results.schema import ResultSchema
from stratascope.stats.intervals import constant_within_folds
from stratascope.store import condition_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Floats = NDArray[Any]


class LayerCurve(Result, kind="layer_curve", command="probe", prefix="probe"):
    """Out-of-fold scores of one task at one position, by layer.

    Examples
    --------
    >>> curve = LayerCurve.load(curve_file)
    >>> curve.onset.layer, curve.offset.layer
    (3, None)
    >>> curve.difference_from_layer(1).onset_over(0.1).layer
    3
    """

    task: str
    """Such as truth, or truth:shuffled for its control."""
    position: str | None
    classes: tuple[str, ...]
    table: pd.DataFrame
    """One row per layer and metric: layer, position, task, metric, value, low, high, low_simultaneous, high_simultaneous, chance,
    at_edge (no optimal strength was found in some fold)."""
    folds: pd.DataFrame
    """One row per layer and fold, and target in a task of values: strength, at_edge, inner_loss, accuracy, gap, certificate,
    iterations, noise_share, absent_classes."""
    examples: pd.DataFrame
    """One row per example of the task: example (number in the store), id, group, fold, digest (of image, caption, relation and label),
    label (class code)."""
    logits: Floats
    """(layer, output, example) out of fold; one output for two classes, the logit of the second."""
    draws: Mapping[str, Floats]
    """Metric -> (layer, draw) cluster bootstrap; curves of the same groups and seed share their resamples."""
    directions: Floats
    """(layer, output, column) weights of a probe trained on all examples, in units of the activations; empty where not kept."""
    intercepts: Floats
    """(layer, output)"""
    attributes: Mapping[str, Any] = field(default_factory=dict)
    """Settings, provenance and fingerprint of the store."""
    targets: tuple[str, ...] = ()
    """Target names of a task of values; `classes` is then empty and logits are predictions."""
    controls: Mapping[str, Floats] = field(default_factory=dict)
    """Metric -> (layer, control draw) scores of each draw of a control's labels. Values of the table are their means; logits, labels and
    weights are those of the first draw. Empty for a task, and for a control of one draw."""

    @property
    def layers(self) -> NDArray[np.intp]:
        """(layer,) layer numbers, ascending."""
        return self.rows()["layer"].to_numpy()

    @property
    def title(self) -> str:
        """Task and position, such as `truth at final`; the task alone of an array without positions."""
        return f"{self.task} at {self.position}" if self.position else self.task

    @property
    def metric(self) -> str:
        """The metric of claims and plot: that of the study, or AUROC for two classes, balanced accuracy for more, R2 for values."""
        given = self.attributes.get("metric")
        return str(given) if given else "r2" if self.targets else main_metric(len(self.classes))

    @property
    def level(self) -> float:
        """Level of the intervals."""
        return float(self.attributes.get("level", 0.95))

    @property
    def chance(self) -> float:
        """Chance level of the main metric."""
        return float(self.rows()["chance"].iloc[0])

    def rows(self, metric: str | None = None) -> pd.DataFrame:
        """Rows of the table of one metric, the main one by default, by layer; InvalidInputError where the curve has no such metric."""
        name = metric or self.metric
        found = self.table[self.table["metric"] == name].reset_index(drop=True)
        if found.empty:
            raise InvalidInputError(f"expected a metric of {sorted(set(self.table['metric']))}, found {name!r}")
        return found

    def value(self, layer: int, metric: str | None = None) -> float:
        """The score at one layer, of the main metric by default; InvalidInputError where the curve has no such layer or metric."""
        rows = self.rows(metric).set_index("layer")["value"]
        if layer not in rows.index:
            raise InvalidInputError(f"expected a layer of {rows.index.tolist()}, found {layer}")
        return float(rows[layer])

    @cached_property
    def certain(self) -> NDArray[np.bool_]:
        """(layer,) whether logits are constant within folds, so that no resample changes the scores."""
        return constant_within_folds(self.logits, self.examples["fold"].to_numpy())

    @property
    def notes(self) -> list[str]:
        """Warnings of the fit: C at the edge of the grid, classes without training examples, models not converged."""
        return fit_warnings(self.folds)

    @property
    def predictions(self) -> pd.DataFrame:
        """One row per layer and example: layer, example, id, fold, label, predicted, right, probability (of the label).

        Of a task of values: the predicted targets in columns of their names.
        """
        return prediction_table(self.logits, self.examples, self.layers, self.classes, self.targets)

    def difference(self, baseline: LayerCurve | None = None, metric: str | None = None) -> Advantage:
        """Advantage over a baseline, paired by layer and resample; over chance by default.

        Over the control task's curve it is the selectivity (Hewitt & Liang 2019); over a blank-image store's, the advantage over text.

        Parameters
        ----------
        baseline
            A curve of the same layers and groups of examples.
        metric
            The main one by default.

        Raises
        ------
        InvalidInputError
            The curves cannot be paired: layers, groups, seeds, or the examples' images, captions, relations or labels differ.
        """
        rows = self.rows(metric)
        value, draws = rows["value"].to_numpy(), self.draws[metric or self.metric].T
        if baseline is None:
            chance = rows["chance"].to_numpy()
            return self._advantage(value - chance, draws - chance, metric, "chance", {"chance": float(chance[0])}, self.certain)
        refuse_unpaired(self, baseline)
        other = baseline.rows(metric or self.metric)["value"].to_numpy()
        fact: dict[str, Any] = {"task": baseline.task, **{key: baseline.attributes.get(key) for key in ("store", "fingerprint")}}
        if "provenance" in baseline.attributes:
            fact["condition"] = condition_of(baseline.attributes["provenance"])
        called = str(baseline.attributes.get("store", baseline.task)) if baseline.task == self.task else baseline.task
        over = draws - baseline.draws[metric or self.metric].T
        return self._advantage(value - other, over, metric, called, {"baseline": fact}, self.certain & baseline.certain)

    def difference_from_layer(self, layer: int = 0, metric: str | None = None) -> Advantage:
        """Advantage over the score of one layer of this curve; layer 0 of `residual` holds the embeddings.

        Parameters
        ----------
        layer
            One of the curve's.
        metric
            The main one by default.

        Raises
        ------
        InvalidInputError
            The curve has no such layer.
        """
        value, draws = self.rows(metric)["value"].to_numpy(), self.draws[metric or self.metric].T
        base = self.value(layer, metric)
        place = int(np.flatnonzero(self.layers == layer)[0])
        fact = {"baseline": {"task": self.task, "layer": layer}}
        certain = self.certain & self.certain[place] | (self.layers == layer)
        return self._advantage(value - base, draws - draws[:, [place]], metric, f"layer {layer}", fact, certain)

    def _advantage(
        self, value: Floats, draws: Floats, metric: str | None, baseline: str, fact: dict[str, Any], certain: NDArray[np.bool_]
    ) -> Advantage:
        name = metric or self.metric
        kept = ("margin", "equivalence_margin", "family") if name == self.metric else ()
        facts = {key: self.attributes[key] for key in kept if key in self.attributes}
        return Advantage.of(
            self.layers,
            value,
            draws,
            metric=name,
            name=self.title,
            baseline=baseline,
            level=self.level,
            attributes={
                "task": self.task,
                "position": self.position,
                "fingerprint": self.attributes.get("fingerprint"),
                "examples": len(self.examples),
                "largest": float(np.abs((name != "log_loss") + value - self.rows(name)["value"].to_numpy()).max()),
                **facts,
                **fact,
            },
            groups=int(self.examples["group"].nunique()),
            certain=certain,
        )

    @property
    def claims(self) -> LayerClaims:
        """Detected, absent and undecided layers over chance; `difference` takes another baseline."""
        return self.difference().claims

    @property
    def detected(self) -> LayerIntervals:
        """Layers in which the main metric is significantly above chance."""
        return self.claims.detected

    @property
    def onset(self) -> LayerEvent:
        """First layer at which the main metric is significantly above chance; `difference` takes another baseline."""
        return self.difference().onset

    @property
    def offset(self) -> LayerEvent:
        """First layer after the last significant one from which on the score is equivalent to chance."""
        return self.difference().offset

    @property
    def peak(self) -> LayerEvent:
        """The layer of the highest main metric; candidates are the layers that are not significantly worse."""
        return self.difference().peak

    def onset_over(self, margin: float) -> LayerEvent:
        """The onset of an advantage over chance that exceeds a margin."""
        return self.difference().onset_over(margin)

    def offset_over(self, margin: float) -> LayerEvent:
        """The offset of an advantage over chance that exceeds a margin."""
        return self.difference().offset_over(margin)

    def plot(self, ax: Axes | None = None, *, baselines: Mapping[str, LayerCurve] | None = None, metric: str | None = None) -> Axes:
        """Draw the curve with its interval, chance, and any baselines dashed in grey.

        Parameters
        ----------
        ax
            Where to draw; a new figure by default.
        baselines
            Name -> curve.
        metric
            The main one by default.
        """
        from stratascope.figures.drawing import draw_layer_curves
        from stratascope.figures.style import paper_style

        with paper_style():
            ax = new_axes(ax)
            others = dict(baselines or {})
            tables = {self.task: self.table, **{name: curve.table for name, curve in others.items()}}
            name = metric or self.metric
            chance = float(self.rows(name)["chance"].iloc[0])
            return draw_layer_curves(tables, ax, metric=name, chance=chance, muted=tuple(others), title=self.title)

    @property
    def options(self) -> Mapping[str, Any]:
        """Parameters of `layer_curve`: task, position, layers, and the settings of the study."""
        held = {name: value for name, value in self.attributes.items() if name not in ("store", "fingerprint", "provenance", "run")}
        return {"task": self.task, "position": self.position, "layers": self.layers.tolist(), **held}

    @property
    def only(self) -> tuple[str, ...]:
        """COLUMN=VALUE that selected its examples; () for all."""
        return tuple(self.attributes.get("only", ()))

    @property
    def name_parts(self) -> tuple[str | None, ...]:
        """Task and position; the task names the selection of examples."""
        return (self.task, self.position)

    def summary(self) -> str:
        """Highest score with its simultaneous interval and the chance level; detected layers; warnings of the fit."""
        rows = self.rows()
        best = best_row(rows, self.metric)
        interval = f"[{best['low_simultaneous']:.3f}, {best['high_simultaneous']:.3f}]"
        score = f"{metric_name(self.metric)} {best['value']:.3f} {interval} at layer {int(best['layer'])} (peak)"
        return "\n".join(
            [
                f"{score}; chance level {best['chance']:.3g}",
                f"above chance: {self.claims.sentence}",
                band_text(self.level, self.attributes.get("family")),
                *self.notes,
                *self.attributes.get("remarks", []),
            ]
        )

    @property
    def _heading(self) -> str:
        return f"LayerCurve of {self.title}: {len(self.examples):,} examples, {len(self.layers)} layers"

    def to_frame(self) -> pd.DataFrame:
        """Rows of the main metric by layer."""
        return self.rows().drop(columns=["position", "task", "metric"])

    @classmethod
    def schema(cls) -> ResultSchema:
        """The schema of the file."""
        return SCHEMA

    def contents(self) -> ResultFile:
        """Tables, arrays and attributes of the file; a table holds onset, peak and offset over chance."""
        arrays: dict[str, tuple[tuple[str, ...], Floats]] = {
            "logits": (("layer", "output", "example"), self.logits),
            "directions": (("layer", "output", "column"), self.directions),
            "intercepts": (("layer", "output"), self.intercepts),
        }
        arrays |= {f"draws_{name}": (("layer", "draw"), values) for name, values in self.draws.items()}
        arrays |= {f"controls_{name}": (("layer", "control_draw"), values) for name, values in self.controls.items()}
        head = {"task": self.task, "position": self.position, "classes": list(self.classes), "targets": list(self.targets)}
        over = self.difference()
        events = event_table(over.onset, over.peak, over.offset, detectable=over.claims.detectable).assign(metric=self.metric)
        tables = {"table": self.table, "folds": self.folds, "examples": self.examples, "events": events}
        return ResultFile(self.kind, tables, arrays, head | {"settings": dict(self.attributes)})

    @classmethod
    def from_contents(cls, file: ResultFile) -> LayerCurve:
        """The curve whose `contents` a file holds."""
        arrays = {name: values for name, (_, values) in file.arrays.items()}
        return cls(
            task=file.attributes["task"],
            position=file.attributes["position"],
            classes=tuple(file.attributes["classes"]),
            table=file.tables["table"],
            folds=file.tables["folds"],
            examples=file.tables["examples"],
            logits=arrays["logits"],
            draws={name.removeprefix("draws_"): values for name, values in arrays.items() if name.startswith("draws_")},
            directions=arrays["directions"],
            intercepts=arrays["intercepts"],
            attributes=file.attributes["settings"],
            targets=tuple(file.attributes["targets"]),
            controls={name.removeprefix("controls_"): values for name, values in arrays.items() if name.startswith("controls_")},
        )
