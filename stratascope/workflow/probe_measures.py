"""Further measures of probes, asked for by name: codelength (MDL) and calibration; saved, drawn and said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from stratascope.errors import InvalidInputError
from stratascope.figures.calibration import draw_codelength, draw_reliability
from stratascope.figures.panels import label_outside, panel_figure
from stratascope.report import paper_style, save_figure
from stratascope.workflow.probe_files import save_table, shown_metric
from stratascope.workflow.telling import file_name

if TYPE_CHECKING:
    from stratascope.probe import LayerCurve, Study
    from stratascope.workflow.probed import Probed

MEASURES = ("mdl", "calibration")


def check_measures(measures: Sequence[str], *, by_head: bool) -> None:
    """Raises InvalidInputError for an unknown measure, or one that there is not for heads."""
    for name in measures:
        if name not in MEASURES:
            raise InvalidInputError(f"expected --measures among {', '.join(MEASURES)}, found {name!r}")
    if measures and by_head:
        raise InvalidInputError(
            "expected an array of one vector a position for --measures, found one with a vector for each head; leave --measures out"
        )


def measure(
    probed: Probed, studies: Mapping[tuple[str, str | None], Study], folder: Path, run: Mapping[str, Any]
) -> tuple[list[str], list[Path]]:
    """What is said of the measures that are asked for, and the figures.

    Parameters
    ----------
    probed
        The curves, and what was asked for.
    studies
        By name of the baseline ("" for the store itself) and position.
    folder
        Of results and figures.
    run
        scheduler, workers, progress, output.
    """
    measures = probed.request.measures
    shown = [curve for curve in probed.plain if not curve.targets]
    if not measures or not shown:
        return [], []
    lines: list[str] = []
    figures: list[Path] = []
    if "calibration" in measures:
        for task in dict.fromkeys(curve.task for curve in shown):
            said, path = _calibration([curve for curve in shown if curve.task == task], folder)
            lines, figures = [*lines, *said], [*figures, path]
    if "mdl" in measures:
        said, paths = _codelength(studies, shown, folder, probed.request.layer_label, run)
        lines, figures = [*lines, *said], [*figures, *paths]
    return lines, figures


def _calibration(curves: Sequence[LayerCurve], folder: Path) -> tuple[list[str], Path]:
    from stratascope.probe import calibration

    lines = []
    figure, axes = panel_figure(len(curves), height=1.9, titled=True)
    with paper_style():
        for curve, ax in zip(curves, axes, strict=True):
            table = calibration(curve)
            save_table(folder, "calibration", table, curve, "calibration", curve.task, curve.position)
            rows = curve.rows(shown_metric(curve))
            layer = int(curve.layers[rows["value"].to_numpy().argmax()])
            error = table.set_index("layer").loc[[layer], "error"].iloc[0]
            lines.append(f"{curve.title}: expected calibration error {error:.3f} at layer {layer}")
            draw_reliability(table, ax, layer=layer, title=f"{curve.position or curve.task}, layer {layer}")
            if len(curves) > 2:  # the whole name does not fit below a small panel
                ax.set_xlabel("probability")
        label_outside(axes, metric="accuracy")
        figure.suptitle(f"{curves[0].task}: sure and right", x=0.01, ha="left", fontsize=8.5, fontweight="bold")
    return lines, save_figure(figure, folder / f"{file_name('calibration', curves[0].task)}.png")


def _codelength(
    studies: Mapping[tuple[str, str | None], Study], curves: Sequence[LayerCurve], folder: Path, layers: str, run: Mapping[str, Any]
) -> tuple[list[str], list[Path]]:
    from stratascope.probe import codelength_of

    found = pd.concat([codelength_of(study, **run).assign(store=name) for (name, _), study in studies.items()])
    tables = {(curve.task, curve.position): _of_curve(found, curve) for curve in curves}
    for curve in curves:
        save_table(folder, "codelength", tables[curve.task, curve.position], curve, "codelength", curve.task, curve.position)
    lines = [f"{curve.title}: {_said(tables[curve.task, curve.position])}" for curve in curves]
    paths: list[Path] = []
    for task in dict.fromkeys(curve.task for curve in curves if len(curve.layers) > 1):
        mine = [curve for curve in curves if curve.task == task]
        figure, axes = panel_figure(len(mine), height=1.6 if len(mine) > 1 else 2.4, titled=True)
        with paper_style():
            for curve, ax in zip(mine, axes, strict=True):
                draw_codelength(tables[task, curve.position], ax, task=task, layers=layers if len(mine) < 3 else "after k blocks")
                ax.set_title(curve.position or task)
            label_outside(axes, metric="compression")
            figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
            figure.suptitle(f"{task}: how short labels can be told", x=0.01, ha="left", fontsize=8.5, fontweight="bold")
        paths.append(save_figure(figure, folder / f"{file_name('codelength', task)}.png"))
    return lines, paths


def _of_curve(found: pd.DataFrame, curve: LayerCurve) -> pd.DataFrame:
    """Rows of the curve's task and position, with those of its controls and of other stores."""
    task = found["task"].str.partition(":")[0] == curve.task
    return found[task & (found["position"] == (curve.position or ""))].reset_index(drop=True)


def _said(rows: pd.DataFrame) -> str:
    own = rows[(rows["store"] == "") & ~rows["task"].str.contains(":")]
    best = own.iloc[int(own["value"].to_numpy().argmax())]
    bits, uniform = (best[name] / best["examples"] for name in ("bits", "uniform_bits"))
    where = f" at layer {best['layer']}" if own["layer"].nunique() > 1 else ""
    told = f"{bits:.3f} bits a label{where} instead of {uniform:.3f}"
    return f"{told}, compression {best['value']:.2f} [{best['low']:.2f}, {best['high']:.2f}]"
