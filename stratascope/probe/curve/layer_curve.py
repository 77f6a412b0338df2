"""A score by layer of one task at one position, with all that is needed to compare it with another."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stratascope.errors import InvalidInputError
from stratascope.probe.curve.advantage import Advantage
from stratascope.probe.curve.fit_warnings import notes_on
from stratascope.probe.curve.metrics import main_metric, predict
from stratascope.probe.curve.onset_offset import EVENTS, LayerEvent, event_table
from stratascope.probe.curve.pairing import refuse_unpaired
from stratascope.probe.solver.losses import probabilities
from stratascope.results.file import ResultFile
from stratascope.results.result import Result, new_axes
from stratascope.results.schema import ResultSchema, columns, floats
from stratascope.stats.intervals import INTERVAL, constant_within_folds
from stratascope.store import condition_of
from stratascope.store.format.json_schema import each
from stratascope.store.format.provenance import PROVENANCE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Floats = NDArray[Any]


def _labels(attributes: Mapping[str, Any], tables: Mapping[str, pd.DataFrame], _: Collection[str]) -> str | None:
    """A curve holds each example's label: the number of its class, or the value of each target."""
    table = tables["examples"]
    for column in attributes["targets"] or ["label"]:
        if column not in table:
            return f"expected a column {column!r} in table 'examples', found {', '.join(map(str, table.columns))}"
        if table[column].dtype.kind not in ("fiu" if attributes["targets"] else "iu"):
            return f"expected numbers in column {column!r} of table 'examples', found {table[column].dtype}"
    if not attributes["targets"] and not table["label"].between(0, len(attributes["classes"]) - 1).all():
        least, most = table["label"].min(), table["label"].max()
        return f"expected 0 to {len(attributes['classes']) - 1} in column 'label' of table 'examples', found {least} to {most}"
    return None


_SCHEMA = ResultSchema(
    {
        **each(str, "task"),
        **each(str | None, "position"),
        **each(list[str], "classes targets"),
        "settings": {
            **each(str, "array? store? fingerprint? method? groups? leakage_text?"),
            **each(int, "folds? seed? minimum? draws?"),
            **each(float, "level? tolerance? leakage?"),
            **each(list[str], "split? only? types?"),
            "strengths?": list[float] | None,
            "directions?": bool,
            "provenance?": PROVENANCE,
        },
    },
    {
        "table": columns(
            text="position task metric", ints="layer", floats=f"value {INTERVAL} chance", flags="at_edge", grid="metric layer"
        ),
        "events": replace(EVENTS, kinds={**EVENTS.kinds, "metric": "text"}),
        "folds": columns(
            text="target absent_classes",
            ints="layer fold iterations",
            floats="strength certificate inner_loss accuracy gap noise_share",
            flags="at_edge",
        ),
        "examples": columns("example", text="id group", ints="example fold", keys=["example"]),
    },
    {
        "logits": floats("layer output example"),
        "draws_*": floats("layer draw"),
        "directions": floats("layer output column"),
        "intercepts": floats("layer output"),
    },
    (_labels,),
)


class LayerCurve(Result, kind="layer_curve", command="probe", prefix="probe"):
    """Out-of-fold scores of one task by layer."""

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
    """The examples that took part: example (number in the store), id, group, fold, digest (of image, caption, relation
    and label), label (class code)."""
    logits: Floats
    """(layer, output, example) out of fold; one output for two classes, the logit of the second."""
    draws: Mapping[str, Floats]
    """Metric -> (layer, draw) bootstrap over groups, the same draws for all curves of the same groups."""
    directions: Floats
    """(layer, output, column) weights on activations as recorded, of a probe of all examples; empty where they were not kept."""
    intercepts: Floats
    """(layer, output)"""
    attributes: Mapping[str, Any] = field(default_factory=dict)
    """Settings, provenance and fingerprint of the store."""
    targets: tuple[str, ...] = ()
    """What was regressed on, of a task of values; `classes` is empty then, and logits are predictions."""

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
        """The metric of onset and plot: AUROC for two classes, balanced accuracy for more, R2 for values."""
        return "r2" if self.targets else main_metric(len(self.classes))

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
        """(layer,) where the probe says the same of all examples, so that no other draw of them could change it."""
        return constant_within_folds(self.logits, self.examples["fold"].to_numpy())

    @property
    def notes(self) -> list[str]:
        """What a reader of the curve should know: optima at the top of the grid, classes never trained on, models not solved exactly."""
        return notes_on(self.folds)

    @property
    def predictions(self) -> pd.DataFrame:
        """One row per layer and example: layer, example, id, fold, label, predicted, right, probability (of the label).

        Of a task of values: the predicted targets in columns of their names.
        """
        if self.targets:
            parts = [self.examples[["example", "id", "fold"]].assign(layer=layer) for layer in self.layers]
            found = pd.concat(parts, ignore_index=True)
            return found.assign(**{name: self.logits[:, number].ravel() for number, name in enumerate(self.targets)})
        chances = probabilities(self.logits)
        predicted = predict(self.logits)
        label = self.examples["label"].to_numpy()
        names = np.asarray(self.classes, dtype=object)
        count, layers = len(self.examples), self.layers
        return pd.DataFrame(
            {
                "layer": np.repeat(layers, count),
                "example": np.tile(self.examples["example"].to_numpy(), len(layers)),
                "id": np.tile(self.examples["id"].to_numpy(), len(layers)),
                "fold": np.tile(self.examples["fold"].to_numpy(), len(layers)),
                "label": np.tile(names[label], len(layers)),
                "predicted": names[predicted.ravel()],
                "right": (predicted == label).ravel(),
                "probability": np.take_along_axis(chances, np.broadcast_to(label[:, None], (len(layers), count, 1)), axis=2).ravel(),
            }
        )

    def difference(self, baseline: LayerCurve | None = None, metric: str | None = None) -> Advantage:
        """This curve minus a baseline, layer by layer and draw by draw; minus chance if none is given.

        Minus the control task's curve it is the selectivity; minus the curve of a blank-image store, the advantage over text.

        Parameters
        ----------
        baseline
            A curve of the same layers and groups of examples.
        metric
            The main one by default.

        Raises
        ------
        InvalidInputError
            The curves are of other layers, other groups of examples, or examples that differ in image, caption, relation or label, so
            that they cannot be paired.
        """
        rows = self.rows(metric)
        value, draws = rows["value"].to_numpy(), self.draws[metric or self.metric].T
        if baseline is None:
            chance = rows["chance"].to_numpy()
            return self._advantage(value - chance, draws - chance, metric, "chance", {}, self.certain)
        refuse_unpaired(self, baseline)
        other = baseline.rows(metric or self.metric)["value"].to_numpy()
        fact = {"task": baseline.task, **{key: baseline.attributes.get(key) for key in ("store", "fingerprint")}}
        if "provenance" in baseline.attributes:
            fact["condition"] = condition_of(baseline.attributes["provenance"])
        called = str(baseline.attributes.get("store", baseline.task)) if baseline.task == self.task else baseline.task
        over = draws - baseline.draws[metric or self.metric].T
        return self._advantage(value - other, over, metric, called, {"baseline": fact}, self.certain & baseline.certain)

    def difference_from_layer(self, layer: int = 0, metric: str | None = None) -> Advantage:
        """This curve minus its own score at one layer; layer 0 of `residual` are the embeddings.

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
        return Advantage.of(
            self.layers,
            value,
            draws,
            metric=metric or self.metric,
            name=f"{self.task} at {self.position}",
            baseline=baseline,
            level=float(self.attributes.get("level", 0.95)),
            attributes={"task": self.task, "position": self.position, "fingerprint": self.attributes.get("fingerprint"), **fact},
            groups=self.examples["group"].nunique(),
            certain=certain,
        )

    @property
    def onset(self) -> LayerEvent:
        """First layer at which the main metric is above chance; see `difference` for another baseline."""
        return self.difference().onset()

    @property
    def offset(self) -> LayerEvent:
        """First layer after the peak from which on the main metric is no longer above chance."""
        return self.difference().offset()

    @property
    def peak(self) -> LayerEvent:
        """The layer of the highest main metric, and those that may be it as well."""
        return self.difference().peak()

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
        held = {name: value for name, value in self.attributes.items() if name not in ("store", "fingerprint", "provenance")}
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
        """The best layer's score with its interval and chance level; onset and offset; notes on the fit."""
        rows = self.rows()
        best = rows.iloc[int(rows["value"].to_numpy().argmax())]
        score = f"{self.metric} {best['value']:.3f} [{best['low']:.3f}, {best['high']:.3f}] at layer {int(best['layer'])}, its best"
        return "\n".join(
            [f"{score}; chance {best['chance']:.3g}", f"{self.onset}, {self.offset}", *self.notes, *self.attributes.get("remarks", [])]
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
        return _SCHEMA

    def contents(self) -> ResultFile:
        """What `save` writes; it names onset, peak and offset over chance, too."""
        arrays: dict[str, tuple[tuple[str, ...], Floats]] = {
            "logits": (("layer", "output", "example"), self.logits),
            "directions": (("layer", "output", "column"), self.directions),
            "intercepts": (("layer", "output"), self.intercepts),
        }
        arrays |= {f"draws_{name}": (("layer", "draw"), values) for name, values in self.draws.items()}
        head = {"task": self.task, "position": self.position, "classes": list(self.classes), "targets": list(self.targets)}
        events = event_table(self.onset, self.peak, self.offset).assign(metric=self.metric)
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
        )
