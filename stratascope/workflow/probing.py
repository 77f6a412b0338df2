"""Probing as one command does it: curves computed, saved, drawn, and said in a few words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stratascope.report import draw_layer_curves, new_figure, paper_style, save_figure
from stratascope.report.figures import METRIC_LABELS

if TYPE_CHECKING:
    from stratascope.probe import LayerCurve
    from stratascope.store import ActivationStore


def probe_and_draw(
    store: ActivationStore,
    baseline: ActivationStore | None,
    folder: Path,
    *,
    tasks: Sequence[str],
    positions: Sequence[str] | None,
    folds: int,
    seed: int,
    scheduler: str | None = None,
    progress: bool = False,
) -> str:
    """Probe every task at every position, save each curve, draw one figure a task; the text names peaks, onsets and files."""
    chosen = tuple(positions or store.layout.positions)
    lines: list[str] = []
    drawn: dict[str, dict[str, LayerCurve]] = {}
    muted: dict[str, dict[str, LayerCurve]] = {}
    for which, suffix in ((store, ""), (baseline, "baseline")):
        for position in chosen if which is not None else ():
            assert which is not None
            for curve in _curves(which, tasks, position, folds=folds, seed=seed, scheduler=scheduler, progress=progress):
                save_curve(curve, folder, suffix)
                kept, name = (muted, f"{position}, baseline") if suffix else (drawn, position)
                kept.setdefault(curve.task, {})[name] = curve
                lines.append(f"{curve.task:<16} {position:<12} {peak_text(curve)}{'  (baseline)' if suffix else ''}")
                if suffix:
                    save_advantage(drawn[curve.task][position], curve, folder, suffix)
                    over = drawn[curve.task][position].difference(curve)
                    lines.append(f"{curve.task:<16} {position:<12} over the baseline: {over.onset()}, {over.offset()}")
                elif not curve.targets and ":" not in curve.task:
                    save_accuracy_by(curve, store, "relation", folder)
    for task in drawn:
        for control in (name for name in drawn if name.startswith(f"{task}:")):
            for position in chosen:
                save_advantage(drawn[task][position], drawn[control][position], folder, control.partition(":")[2])
    for task, curves in drawn.items():
        path = draw_curves(
            curves, folder / f"probe-{_file_name(task)}.png", muted=muted.get(task, {}), title=f"{task}: what a probe reads, by layer"
        )
        lines.append(f"figure {path}")
    return "\n".join([*lines, f"results in {folder}"])


def _curves(store: ActivationStore, tasks: Sequence[str], position: str, **options: Any) -> list[LayerCurve]:
    """The curves of one position, over the examples that have it."""
    from stratascope.probe import probe_study

    present = store.position_present[:, store.layout.positions.index(position)] if position in store.layout.positions else None
    examples = None if present is None or present.all() else np.flatnonzero(present)
    return probe_study(store, tasks, (position,), examples=examples, **options)


def save_curve(curve: LayerCurve, folder: Path, suffix: str = "") -> Path:
    """Save as probe-TASK-POSITION[-SUFFIX].zarr.zip in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ("-".join(filter(None, ["probe", _file_name(curve.task), curve.position, suffix])) + ".zarr.zip")
    curve.save(path)
    return path


def save_advantage(curve: LayerCurve, baseline: LayerCurve, folder: Path, name: str) -> Path:
    """What the curve is above a baseline, saved as advantage-TASK-POSITION-over-NAME.zarr.zip; of accuracy, or R2 for values."""
    place = "-".join(filter(None, [_file_name(curve.task), curve.position]))
    path = folder / f"advantage-{place}-over-{name}.zarr.zip"
    curve.difference(baseline, "r2" if curve.targets else "accuracy").save(path)
    return path


def save_accuracy_by(curve: LayerCurve, store: ActivationStore, column: str, folder: Path) -> Path:
    """The curve's accuracy for each value of a column of the examples, saved as probe-TASK-POSITION-by-COLUMN.zarr.zip."""
    from stratascope.probe import accuracy_by
    from stratascope.store import ResultFile, save_result

    table = accuracy_by(curve, dict(zip(store.examples["id"], store.examples[column], strict=True)))
    place = "-".join(filter(None, [_file_name(curve.task), curve.position]))
    path = folder / f"probe-{place}-by-{column}.zarr.zip"
    facts = {"task": curve.task, "position": curve.position, "by": column, "fingerprint": curve.attributes["fingerprint"]}
    save_result(path, ResultFile("accuracy_by", {"table": table}, {}, facts))
    return path


def _file_name(task: str) -> str:
    return task.replace(":", "-")


def shown_metric(curve: LayerCurve) -> str:
    """What a curve is drawn and told by: accuracy, which everybody can read, or R2 for a task of values."""
    return "r2" if curve.targets else "accuracy"


def peak_text(curve: LayerCurve) -> str:
    """The best layer's accuracy, or R2, with its interval, and where the score first rises above chance."""
    metric = shown_metric(curve)
    rows = curve.rows(metric)
    best = rows.iloc[int(rows["value"].to_numpy().argmax())]
    interval = f"[{best['low']:.3f}, {best['high']:.3f}]"
    score = f"{METRIC_LABELS[metric]} {best['value']:.3f} {interval} at layer {int(best['layer'])}"
    return f"{score}, chance {best['chance']:.3f}; {curve.onset}"


def draw_curves(
    curves: Mapping[str, LayerCurve], path: Path, *, muted: Mapping[str, LayerCurve], title: str, metric: str | None = None
) -> Path:
    """Layer curves of one task with their controls, as a figure file."""
    metric = metric or shown_metric(next(iter(curves.values())))
    figure, (ax,) = new_figure(1, width=4.6, height=2.9)
    with paper_style():
        tables = {name: curve.table for name, curve in [*curves.items(), *muted.items()]}
        chance = float(next(iter(curves.values())).rows(metric)["chance"].iloc[0])
        draw_layer_curves(tables, ax, metric=metric, chance=chance, muted=list(muted), title=title)
        ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return save_figure(figure, path)
