"""Transfer across data sets: probes trained on one store and tested on other examples in another store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stratascope.errors import InvalidInputError
from stratascope.figures.drawing import draw_layer_curves, metric_name, new_figure
from stratascope.figures.style import paper_style
from stratascope.probe.curve.advantage import DERIVED, Advantage
from stratascope.probe.curve.claims import LayerClaims, equivalence_margin_of
from stratascope.probe.curve.curve_table import CurveTable
from stratascope.probe.curve.metrics import best_row, better_than_chance, chance_levels, main_metric, score_layers, score_table
from stratascope.probe.curve.value_metrics import score_values
from stratascope.probe.study.positions import Position, available_at, position_text, read_at
from stratascope.probe.study.study import SCHEDULER, plan_study
from stratascope.probe.study.study_plan import ProbeOptions, ProbeSettings, layers_of, shows_probe_options, wanted_examples
from stratascope.probe.study.transfer import apply_probes, refuse_without_directions
from stratascope.probe.tasks.matched_tasks import match_tasks, refuse_other_model, store_label
from stratascope.probe.tasks.task import Task
from stratascope.results.layer_intervals import LayerIntervals
from stratascope.results.result import new_axes, table_field
from stratascope.results.schema import columns
from stratascope.stats.bootstrap import Bootstrap
from stratascope.stats.intervals import INTERVAL, INTERVALS, Band
from stratascope.store import ActivationStore, condition_of
from stratascope.store.io.example_identity import group_labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Floats = NDArray[Any]
OWN = "own_value own_low own_high"
_SCHEMA = {
    **DERIVED,
    "to": str,
    "metric": str,
    "trained": {"store": str, "condition": str, "prompt": str | None, "examples": int, "images": int},
    "tested": {"store": str, "fingerprint": str, "condition": str, "prompt": str | None, "examples": int, "images": int},
    "classes": list[str],
    "shared_images": int,
    "unmatched": dict[str, int],
    "unmatched_trained": dict[str, int],
    "level": float,
}


class CrossTransfer(CurveTable, kind="cross_transfer", command="probe", prefix="test", schema=_SCHEMA):
    """Scores, on the examples of another store, of probes trained on all examples of a store.

    Examples
    --------
    >>> found = cross_transfer(store, other_store, layers=(1, 3), draws=200)
    >>> found.value(3) > 0.9
    True
    """

    table: pd.DataFrame = table_field(
        columns(text="metric", ints="layer", floats=f"value {INTERVAL} chance {OWN} minimum_detectable_effect", grid="metric layer")
    )
    """Each layer's probe tested at the same layer: layer, metric, value, low, high, low_simultaneous, high_simultaneous, chance;
    own_value, own_low, own_high: out-of-fold score in the store of training, on the same classes; minimum_detectable_effect: the
    advantage over chance that would have been detected with 80 % power."""
    matrix: pd.DataFrame = table_field(columns(text="metric", ints="layer to_layer", floats=f"value {INTERVAL} chance", empty=True))
    """layer (trained), to_layer (tested), metric, value, low, high, low_simultaneous, high_simultaneous (over all pairs), chance; no rows
    where only the same layers were tested."""

    @property
    def metric(self) -> str:
        """Metric of figure and summary."""
        return str(self.attributes["metric"])

    @property
    def name_parts(self) -> tuple[str | None, ...]:
        """Task, position and the store of the test."""
        return (*super().name_parts, "on", str(self.attributes["to"]))

    @property
    def options(self) -> Mapping[str, Any]:
        """Task, position and metric."""
        return {name: self.attributes[name] for name in ("task", "position", "metric")}

    def rows(self, metric: str | None = None) -> pd.DataFrame:
        """Rows of one metric by layer, the result's by default."""
        return self.table[self.table["metric"] == (metric or self.metric)].reset_index(drop=True)

    def value(self, layer: int, metric: str | None = None) -> float:
        """The score at a layer in a metric, the result's by default; InvalidInputError where there is no such layer."""
        rows = self.rows(metric).set_index("layer")["value"]
        if layer not in rows.index:
            raise InvalidInputError(f"expected a layer of {rows.index.tolist()}, found {layer}")
        return float(rows[layer])

    def summary(self) -> str:
        """Highest score with its simultaneous interval, the layers above chance, and what was left out."""
        rows, (trained, tested) = self.rows(), (self.attributes[name] for name in ("trained", "tested"))
        best = best_row(rows, self.metric)
        ends = f"[{best['low_simultaneous']:.3f}, {best['high_simultaneous']:.3f}]"
        score = f"{metric_name(self.metric)} {best['value']:.3f} {ends} at layer {int(best['layer'])}"
        above, below = (LayerIntervals.of(rows["layer"], better_than_chance(rows, self.metric, worse=worse)) for worse in (False, True))
        where = f"above chance in {above}" if above else self.claims.detection
        where += f"; significantly below chance in {below}" if below else ""
        lines = [
            f"{self.title}, trained on {trained['store']} ({trained['examples']:,} examples), tested on {self.attributes['to']} "
            f"({tested['examples']:,} examples, {tested['images']:,} images): {score} (chance {best['chance']:.3f}); {where} "
            f"({self.attributes['level']:.0%} simultaneous band); {best['own_value']:.3f} [{best['own_low']:.3f}, {best['own_high']:.3f}] "
            f"in {trained['store']} itself",
            *(f"  {remark}" for remark in self.remarks),
        ]
        return "\n".join(lines)

    @property
    def claims(self) -> LayerClaims:
        """Layers in which the score on the other store is above chance, and minimum detectable effects."""
        rows, level = self.rows(), float(self.attributes["level"])
        over = {name: rows[name].to_numpy() - rows["chance"].to_numpy() for name in ("value", *INTERVALS)}
        low, high, low_all, high_all = (over[end] for end in INTERVALS)
        if self.metric == "log_loss":  # lower is better
            low, high, low_all, high_all = -high, -low, -high_all, -low_all
        return LayerClaims.of(
            rows["layer"].to_numpy(),
            -over["value"] if self.metric == "log_loss" else over["value"],
            Band(low, high, low_all, high_all, critical=float("nan")),
            rows["minimum_detectable_effect"].to_numpy(),
            metric=self.metric,
            margin=0.0,
            equivalence_margin=equivalence_margin_of(self.metric),
            level=level,
            chance=float(rows["chance"].iloc[0]),
            examples=int(self.attributes["tested"]["examples"]),
        )

    @property
    def remarks(self) -> list[str]:
        """What was left out of training and test, and how the stores differ."""
        facts = self.attributes
        trained, tested = facts["trained"], facts["tested"]
        lines = []
        if facts["shared_images"]:
            lines.append(f"left out: {facts['shared_images']:,} examples of {facts['to']} whose image is also in {trained['store']}")
        for name, store in (("unmatched", facts["to"]), ("unmatched_trained", trained["store"])):
            if facts[name]:
                each = ", ".join(f"{label} {count:,}" for label, count in facts[name].items())
                lines.append(f"left out: {sum(facts[name].values()):,} examples of {store} of classes that only it has: {each}")
        lines += [
            f"the {what} differs: {trained[what]} in training, {tested[what]} in the test"
            for what in ("condition", "prompt")
            if trained[what] != tested[what]
        ]
        return lines

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the score by layer on the other store, with that in the store of training dashed."""
        own = self.table.assign(value=self.table["own_value"], low=self.table["own_low"], high=self.table["own_high"])
        trained = PurePath(self.attributes["trained"]["store"]).stem
        names = {f"tested on {self.attributes['to']}": self.table, f"{trained}, cross-validated": own}
        chance = float(self.rows()["chance"].iloc[0])
        with paper_style():
            return draw_layer_curves(names, new_axes(ax), metric=self.metric, chance=chance, muted=list(names)[1:], title=self.title)

    def figure(self, store: ActivationStore | None = None) -> Figure:
        """The curve, and the matrix of training and test layers where there is one."""
        from stratascope.figures.score_grids import draw_transfer

        full = len(self.matrix) > 0
        figure, axes = new_figure(2 if full else 1, width=6.8 if full else 4.0, height=2.9)
        with paper_style():
            self.plot(axes[0])
            axes[0].legend(loc="best")
            if full:
                draw_transfer(self.matrix, axes[1], title=f"Tested on {self.attributes['to']}")
        return figure


@shows_probe_options
def cross_transfer(
    store: ActivationStore | str | Path,
    other: ActivationStore | str | Path,
    task: str = "truth",
    position: Position = "final",
    *,
    name: str | None = None,
    metric: str | None = None,
    matrix: bool = False,
    array: str = "residual",
    layers: int | Sequence[int] | None = None,
    values: Mapping[str, Mapping[str, object]] | None = None,
    scheduler: str | None = SCHEDULER,
    workers: int | None = None,
    progress: bool = False,
    output: str | Path | None = None,
    **options: Unpack[ProbeOptions],
) -> CrossTransfer:
    """Train probes on one store and test them on other examples in another store of the same model.

    Each probe is trained on all examples of `store`, with the strength that is best on average in cross-validation. It is tested on the
    examples of `other` whose image is not in `store` (by content where both stores hold hashes, else by name). Classes are matched by
    name; examples of classes that only one store has take no part in training and test.

    Parameters
    ----------
    store, other
        Stores of training and test: the same model, the same layers, other examples.
    task, position, array, layers, values
        As of `plan_study`; `values` are of the examples of both stores.
    name
        Name of the other store in figures and files; that of its folder by default.
    metric
        Of summary and figure; AUROC for two classes, balanced accuracy for more, R2 for values by default.
    matrix
        Also test each layer's probe at all other layers.
    scheduler, workers, progress, output
        As of `probe_study`.
    options
        Fields of `ProbeSettings`; `split` does not apply.

    Returns
    -------
    CrossTransfer
        Intervals: cluster bootstrap over the test images, models not refitted.

    Raises
    ------
    InvalidInputError
        The stores are of different models, all images are shared, fewer than two classes are, or the probe is not linear.
    NotRecordedError
        A store lacks the array, a layer, the position, or the data of the task.

    Examples
    --------
    >>> found = cross_transfer(store, other_store, layers=(1, 3), draws=200)
    >>> found.attributes["tested"]["examples"], found.attributes["shared_images"]
    (240, 0)
    """
    source, target = (one if isinstance(one, ActivationStore) else ActivationStore.open(one) for one in (store, other))
    place = position_text(position)
    options["split"] = ()
    settings = ProbeSettings(array=array, **options)
    refuse_without_directions(settings, place)
    refuse_other_model(source, target, array)
    usable = [wanted_examples(one, None, settings.only) & available_at(one, array, place) for one in (source, target)]
    matched = match_tasks(
        source, target, task, usable, minimum=settings.minimum, folds=settings.folds, values=values, types=settings.column_types
    )
    study = plan_study(source, (matched.source,), (place,), array=array, layers=layers, **options)
    held = layers_of(target, array, list(study.layers) if source.layout.array(array).layer_dim else None)
    answers = study.answers(scheduler=scheduler, workers=workers, progress=progress, output=output)[place]
    (batch,) = study.plans[place]
    (curve,) = [c for c in study.curves_of(place, answers) if c.task == study.tasks[0]]
    solved = [answer.answers[0][0] for answer in answers]
    weights, biases = np.stack([one.direction for one in solved]), np.stack([one.intercept for one in solved])
    used = np.flatnonzero(matched.target.codes >= 0)
    groups = group_labels(target.examples, settings.groups)[used]
    test = _Test(target, place, settings, matched.target, used, Bootstrap(groups, draws=settings.draws, seed=settings.seed))
    chosen = metric or ("r2" if batch.targets else main_metric(len(batch.classes)))
    table = test.scores(np.array(held), [test.logits(layer, weights[[k]], biases[[k]])[0] for k, layer in enumerate(held)])
    if chosen not in set(table["metric"]):
        raise InvalidInputError(f"expected `metric` of {', '.join(dict.fromkeys(table['metric']))}, found {chosen!r}")
    own = curve.table.set_index(["metric", "layer"])[["value", "low", "high"]].add_prefix("own_")
    return CrossTransfer(
        table=table.join(own, on=["metric", "layer"]),
        matrix=test.matrix(held, weights, biases, chosen) if matrix else table.iloc[:0].assign(to_layer=np.zeros(0, np.int64)),
        attributes={
            "task": study.tasks[0],
            "position": place,
            "fingerprint": source.fingerprint(),
            "to": name or PurePath(store_label(target)).stem,
            "metric": chosen,
            "trained": {**_facts(source), "examples": int(batch.used.sum()), "images": int(curve.examples["group"].nunique())},
            "tested": {
                **_facts(target), "fingerprint": target.fingerprint(), "examples": len(used), "images": len(np.unique(groups)),
            },
            "classes": list(batch.classes),
            "shared_images": matched.shared_images,
            "unmatched": matched.unmatched[1],
            "unmatched_trained": matched.unmatched[0],
            "level": settings.level,
            "settings": {name: value for name, value in settings.attributes.items() if name != "split"},
        },
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Test:
    """Test examples of a store, and the scores of logits on them."""

    store: ActivationStore
    position: str | None
    settings: ProbeSettings
    task: Task
    used: NDArray[np.intp]
    bootstrap: Bootstrap

    def logits(self, layer: int, weights: Floats, biases: Floats) -> Floats:
        """(probe, output, example) of probes at one layer of the store."""
        array = self.settings.array
        held = layer if self.store.layout.array(array).layer_dim else None
        x = read_at(self.store, array, self.position, layer=held, examples=self.used, pair=self.settings.pair)
        return apply_probes(weights, biases, x.reshape(len(x), -1))

    def _scored(self, stacked: Floats) -> tuple[dict[str, Floats], dict[str, Floats], dict[str, float]]:
        """Values, draws and chance levels of logits (probe, output, example)."""
        if self.task.values is not None:
            none = np.zeros((len(stacked), len(self.task.targets)))
            values, draws = score_values(stacked, self.task.values[self.used], self.task.targets, self.bootstrap, none)
            return values, draws, dict.fromkeys(values, 0.0)
        codes, classes = self.task.codes[self.used], len(self.task.classes)
        values, draws = score_layers(stacked, codes, np.zeros(len(codes), np.intp), classes, self.bootstrap)
        return values, draws, chance_levels(codes, classes)

    def scores(self, layers: NDArray[np.intp], logits: Sequence[Floats]) -> pd.DataFrame:
        """One row per metric and layer, with a simultaneous band over the layers and the minimum detectable effect."""
        values, draws, chance = self._scored(np.stack(logits))
        count, level = self.bootstrap.count, self.settings.level
        certain = np.array([(one == one[..., :1]).all() for one in logits])
        table = score_table(layers, values, draws, chance, count, level, certain)
        least = [
            Advantage.of(
                layers, value - chance[metric], draws[metric] - chance[metric], metric=metric, name=self.task.name, baseline="chance",
                level=level, attributes={"chance": chance[metric]}, groups=count, certain=certain,
            ).minimum_detectable_effect
            for metric, value in values.items()
        ]  # fmt: skip
        return table.assign(minimum_detectable_effect=np.concatenate(least))

    def matrix(self, layers: Sequence[int], weights: Floats, biases: Floats, metric: str) -> pd.DataFrame:
        """One row per pair of layers, with a simultaneous band over all pairs."""
        parts = [self._scored(self.logits(layer, weights, biases)) for layer in layers]
        value = {metric: np.concatenate([values[metric] for values, _, _ in parts])}
        draws = {metric: np.concatenate([drawn[metric] for _, drawn, _ in parts], axis=1)}
        trained, tested = np.tile(layers, len(layers)), np.repeat(layers, len(layers))
        table = score_table(trained, value, draws, parts[0][2], self.bootstrap.count, self.settings.level)
        return table.assign(to_layer=tested)


def _facts(store: ActivationStore) -> dict[str, Any]:
    prompt = store.provenance.get("prompt")
    called = prompt.get("name") if isinstance(prompt, Mapping) else None
    return {"store": store_label(store), "condition": condition_of(store.provenance), "prompt": called}
