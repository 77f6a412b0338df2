"""The result files of probing and their names; what each holds is in docs/results.md."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from stratascope.store import column_texts
from stratascope.store.io.durable import write_output
from stratascope.store.io.example_filter import NO_VALUE
from stratascope.workflow.telling import file_name, result_path

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd

    from stratascope.probe import Advantage, LayerCurve
    from stratascope.store import ActivationStore


def save_curve(curve: LayerCurve, folder: Path, suffix: str = "") -> Path:
    """Save as probe-TASK-POSITION[-SUFFIX].zarr.zip in `folder`."""
    path = result_path(folder, "probe", curve.task, curve.position, suffix)
    curve.save(path)
    return path


def save_spreadsheet(task: str, curves: Mapping[str, Sequence[LayerCurve]], folder: Path) -> Path:
    """Every score of a task, its controls and baselines (curves by store) as probe-TASK.csv, for R, a spreadsheet, a paper's table."""
    from stratascope.probe import tidy_table

    path = folder / f"{file_name('probe', task)}.csv"
    write_output(path, lambda file: file.write(tidy_table(curves).to_csv(index=False, float_format="%.6g").encode()))
    return path


def shown_metric(curve: LayerCurve, metric: str | None = None) -> str:
    """What a curve is drawn and told by: accuracy, which everybody can read, or R2 for a task of values, unless one is asked for."""
    if metric is not None and metric in set(curve.table["metric"]):
        return metric
    return "r2" if curve.targets else "accuracy"


def save_advantage(curve: LayerCurve, baseline: LayerCurve, folder: Path, name: str) -> Path:
    """What the curve is above a baseline, saved as advantage-TASK-POSITION-over-NAME.zarr.zip; of accuracy, or R2 for values."""
    return keep_advantage(curve.difference(baseline, shown_metric(curve)), curve, folder, name)


def keep_advantage(advantage: Advantage, curve: LayerCurve, folder: Path, name: str) -> Path:
    """Save as advantage-TASK-POSITION-over-NAME.zarr.zip."""
    path = result_path(folder, "advantage", curve.task, curve.position, "over", name)
    advantage.save(path)
    return path


def save_accuracy_by(curve: LayerCurve, store: ActivationStore, column: str, folder: Path) -> Path:
    """The curve's accuracy for each value of a column of the examples, saved as probe-TASK-POSITION-by-COLUMN.zarr.zip."""
    from stratascope.probe import accuracy_by

    table = accuracy_by(curve, dict(zip(store.examples["id"], column_texts(store, column).fillna(NO_VALUE), strict=True)))
    return save_table(folder, "accuracy_by", table, curve, "probe", curve.task, curve.position, "by", column, by=column)


def save_table(folder: Path, kind: str, table: pd.DataFrame, curve: LayerCurve, *name: str | None, **facts: Any) -> Path:
    """One table of a kind with what it was made from."""
    from stratascope.results.file import ResultFile, save_result

    path = result_path(folder, *name)
    told = {"task": curve.task, "position": curve.position, "fingerprint": curve.attributes.get("fingerprint"), **facts}
    save_result(path, ResultFile(kind, {"table": table}, {}, told))
    return path
