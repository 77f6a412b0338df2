"""Online codelengths of all layers, positions and tasks of a study."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stratascope.errors import InvalidInputError
from stratascope.probe.curve.advantage import DERIVED
from stratascope.probe.curve.curve_table import CurveTable
from stratascope.probe.solver.blas_threads import one_blas_thread
from stratascope.probe.solver.standardised_rows import Rows
from stratascope.probe.study.codelength import FRACTIONS, Codelength, portions, send
from stratascope.probe.study.layer_cache import Finished
from stratascope.probe.study.layer_task import LayerTask, digest_of, read_layer
from stratascope.probe.study.positions import Position, is_pair
from stratascope.probe.study.study import SCHEDULER, Study, plan_study
from stratascope.probe.study.study_plan import ProbeOptions, shows_probe_options
from stratascope.probe.tasks.task import Task
from stratascope.probe.validation.cross_validation import METHODS, STRENGTHS
from stratascope.results.file import ResultFile
from stratascope.results.result import table_field
from stratascope.results.schema import ResultSchema, columns, floats
from stratascope.stats.bootstrap import Bootstrap
from stratascope.stats.intervals import interval_text
from stratascope.stats.mean_ratio import mean_ratio
from stratascope.store import ActivationStore
from stratascope.store.io.example_identity import group_labels

Floats = NDArray[Any]
METRIC = "compression"


def _own_task(attributes: Mapping[str, Any], tables: Mapping[str, pd.DataFrame], _: Collection[str]) -> str | None:
    """The table has rows of the task itself."""
    rows, task = tables["table"], attributes["task"]
    if ((rows["store"] == "") & (rows["task"] == task)).any():
        return None
    return f"expected rows of task {task!r} without a store in table 'table', found {', '.join(sorted(set(rows['task'])))}"


class CodelengthCurve(CurveTable, kind="codelength", command="probe", prefix="codelength", schema=DERIVED, rules=(_own_task,)):
    """Online codelength of a task by layer, with its controls and baselines."""

    table: pd.DataFrame = table_field(
        columns(
            text="position task metric store", ints="layer examples", floats="value low high bits uniform_bits", keys=["store task layer"]
        )
    )
    """layer, position, task, metric (compression), value, low, high, bits, uniform_bits, examples, store ("" for the store itself)."""

    def summary(self) -> str:
        """Bits per label at the layer of the shortest code, and the compression with its interval."""
        own = self.table[(self.table["store"] == "") & ~self.table["task"].str.contains(":")]
        best = own.iloc[int(own["value"].to_numpy().argmax())]
        bits, uniform = (best[name] / best["examples"] for name in ("bits", "uniform_bits"))
        where = f" at layer {best['layer']}" if own["layer"].nunique() > 1 else ""
        ends = interval_text(best["low"], best["high"], absent="(too few images for an interval)")
        compression = f"compression {best['value']:.2f} {ends}"
        return f"{self.title}: {bits:.3f} bits per label{where} (uniform code {uniform:.3f}), {compression}"


def _every_code(attributes: Mapping[str, Any], _: Mapping[str, pd.DataFrame], arrays: Collection[str]) -> str | None:
    wanted = (f"{b}.{j}" for b, codes in enumerate(attributes["classes"]) for j in range(len(codes)))
    return next((f"expected an array {name!r}, found none" for name in wanted if name not in arrays), None)


@dataclass(frozen=True, eq=False)
class LayerCodes:
    """Codelengths of one layer and position."""

    codes: list[list[Codelength]]
    """By batch and labelling."""
    content: str = ""
    """Digest of what was read; see `layer_task.content_digest`."""


class FinishedCodes(Finished[LayerCodes]):
    """Cache of the codelengths of layers."""

    kind = "layer_codes"
    name = "codes"
    schema = ResultSchema({"classes": list[list[int]]}, {}, {"*.*": floats("example_*")}, rules=(_every_code,))

    def write(self, answer: LayerCodes) -> ResultFile:
        # batches differ in their examples, and a dimension has one length
        arrays = {f"{b}.{j}": ((f"example_{b}",), code.each) for b, codes in enumerate(answer.codes) for j, code in enumerate(codes)}
        return ResultFile(self.kind, arrays=arrays, attributes={"classes": [[code.classes for code in codes] for codes in answer.codes]})

    def read(self, task: LayerTask, file: ResultFile) -> LayerCodes:
        codes = [
            [Codelength(np.asarray(file.arrays[f"{b}.{j}"][1]), int(classes)) for j, classes in enumerate(counts)]
            for b, counts in enumerate(file.attributes["classes"])
        ]
        return LayerCodes(codes)


def codelength_of(
    study: Study,
    *,
    scheduler: str | None = SCHEDULER,
    workers: int | None = None,
    progress: bool = False,
    output: str | Path | None = None,
) -> pd.DataFrame:
    """Online codelength of every task of classes of a study, by position and layer.

    Parameters
    ----------
    study
        From `plan_study`.
    scheduler, workers, progress, output
        As of `probe_study`.

    Returns
    -------
    pandas.DataFrame
        One row per task, position and layer: layer, position, task, metric (compression), value, low, high, bits, uniform_bits, examples.
        Intervals: see `compression_ends`; models are not refitted.

    Raises
    ------
    InvalidInputError
        The study has no task of classes, or a probe for each head.
    TooFewExamplesError
        The first portion has one class only.

    Examples
    --------
    >>> table = codelength_of(plan_study(store, ("truth",), ("final",), layers=(1, 3)))
    >>> table.loc[table["value"].idxmax(), "layer"].item()
    3
    """
    if study.settings.method not in METHODS or (study.settings.pair == "bilinear" and any(map(is_pair, study.plans))):
        raise InvalidInputError(
            "expected a linear probe for a codelength, found another `method` or a bilinear pair; leave the codelength out (`measures`)"
        )
    plans = {place: [batch for batch in plan if not batch.targets] for place, plan in study.plans.items()}
    if study.by_head or not any(plans.values()):
        what = f"a probe for each head of {study.settings.array}" if study.by_head else f"tasks of values: {', '.join(study.tasks)}"
        raise InvalidInputError(f"expected tasks of classes with one probe a layer for a codelength, found {what}; leave it out")
    kept = None if output is None else FinishedCodes(output)
    found = study.over_layers(_send_layer, plans, kept, scheduler=scheduler, workers=workers, progress=progress, label="codelengths")
    rows: list[dict[str, Any]] = []
    settings, groups = study.settings, group_labels(study.store.examples, study.settings.groups)
    for place, plan in plans.items():
        of_place = found[place]
        for k, batch in enumerate(plan):
            bootstrap = Bootstrap(groups[batch.used], draws=settings.draws, seed=settings.seed)
            for labelling, task in enumerate(batch.tasks):
                drawn = [[layer.codes[k][number] for number in batch.draws_of(labelling)] for layer in of_place]
                codes = [Codelength(np.mean([code.each for code in several], axis=0), several[0].classes) for several in drawn]
                scores = np.array([[code.each.mean() for code in several] for several in drawn])
                low, high = compression_ends(np.stack([code.each for code in codes]), scores, len(batch.classes), bootstrap, settings.level)
                rows += [
                    {
                        "layer": layer,
                        "position": place or "",
                        "task": task,
                        "metric": METRIC,
                        "value": code.compression,
                        "low": float(low[column]),
                        "high": float(high[column]),
                        "bits": code.bits,
                        "uniform_bits": code.uniform_bits,
                        "examples": code.examples,
                    }
                    for column, (layer, code) in enumerate(zip(study.layers, codes, strict=True))
                ]
    return pd.DataFrame(rows)


def compression_ends(each: Floats, drawn: Floats, classes: int, bootstrap: Bootstrap, level: float) -> tuple[Floats, Floats]:
    """(layer,) lower and upper ends of the intervals of compressions: bootstrap-t over groups of the logarithm; NaN for fewer than 24.

    Parameters
    ----------
    each
        (layer, example) bits per label, means over draws of the labels.
    drawn
        (layer, draw) mean bits of each draw: their variance over their number is added.
    classes
        Number of classes.
    bootstrap
        Resamples of the examples' groups.
    level
        Of the intervals.
    """
    bits, error, bands = mean_ratio(each, np.ones_like(each), bootstrap, level=level, positive=True, families=np.arange(len(each)))
    count = drawn.shape[1]
    between = drawn.std(axis=1, ddof=1) / np.sqrt(count) if count > 1 else np.zeros(len(bits))
    wider = np.sqrt(1 + np.square(between / np.where(error > 0, error, np.inf)))
    low, high = (np.log2(classes) / (bits * (end / bits) ** wider) for end in (bands.high, bands.low))
    return low, high


def _send_layer(task: LayerTask) -> LayerCodes:
    settings = task.settings
    groups = group_labels(task.store.examples, settings.groups)
    with one_blas_thread():
        x, used = read_layer(task)
        content = digest_of(x, used)
        x = x.reshape(len(used), -1)
        answers = []
        for batch in task.batches:
            there = batch.used[used]
            portion = portions(groups[used[there]], FRACTIONS, settings.seed)
            rows = Rows(x[there], portion)
            strengths = settings.strengths or STRENGTHS
            answers.append(send(rows, batch.labels[:, used[there]], portion, len(batch.classes), strengths, None))
    return LayerCodes(answers, content)


@shows_probe_options
def codelength_by_layer(
    store: ActivationStore | str | Path,
    task: str | Task = "truth",
    position: Position = "final",
    *,
    array: str = "residual",
    layers: int | Sequence[int] | None = None,
    examples: Sequence[int] | NDArray[Any] | None = None,
    values: Mapping[str, Mapping[str, object]] | None = None,
    scheduler: str | None = SCHEDULER,
    workers: int | None = None,
    progress: bool = False,
    output: str | Path | None = None,
    **options: Unpack[ProbeOptions],
) -> pd.DataFrame:
    """Online codelength of a task by layer.

    Parameters
    ----------
    store
        An open store, or its path or address.
    task, position, array, layers, examples, values
        As of `plan_study`.
    scheduler, workers, progress, output
        As of `probe_study`.
    options
        Fields of `ProbeSettings`.

    Returns
    -------
    pandas.DataFrame
        As of `codelength_of`.

    Raises
    ------
    InvalidInputError
        The task has values instead of classes.

    Examples
    --------
    >>> table = codelength_by_layer(store, layers=3, draws=200)
    >>> bool(table["bits"].item() < table["uniform_bits"].item())
    True
    """
    study = plan_study(store, (task,), (position,), array=array, layers=layers, examples=examples, values=values, **options)
    return codelength_of(study, scheduler=scheduler, workers=workers, progress=progress, output=output)
