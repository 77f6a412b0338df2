"""Writes docs/tour.ipynb: the cells below, with what they show on the demo.

    python docs/site/make_tour.py DEMO

DEMO is a folder that `stratascope demo --out DEMO` filled. tests/test_docs_pages.py runs the cells again.
"""

from __future__ import annotations

import ast
import base64
import io
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

NOTEBOOK = Path(__file__).resolve().parents[1] / "tour.ipynb"

CELLS: list[tuple[str, str]] = [
    (
        "markdown",
        """# A tour of Stratascope

From opening a store to a probe of your own, on the demo: `stratascope demo --out demo` makes it in about a minute. No model and no
torch is needed from here on.""",
    ),
    (
        "code",
        """import numpy as np
import pandas as pd

import stratascope as ss

store = ss.ActivationStore.open("demo/original.zarr")
store""",
    ),
    (
        "markdown",
        "Each example is an image, a caption, and whether the caption is true. The model read them once; the store is what it thought.",
    ),
    ("code", 'store.examples[["image", "caption", "relation", "label"]].head()'),
    (
        "code",
        """x = store.read("residual", layer=5, position="final")  # (example, hidden): after five decoder blocks, at the last token
x.shape, x.dtype""",
    ),
    (
        "markdown",
        "## Where can the caption's truth be read?\n\nOne probe a layer, folds that never split an image, intervals by bootstrap.",
    ),
    ("code", 'truth = ss.probe.layer_curve(store, task="truth", position="final")\ntruth'),
    (
        "markdown",
        """A curve means something beside its controls: the same probe on images that were replaced by their mean colour, and on labels
that were shuffled. The difference is paired, example by example.""",
    ),
    (
        "code",
        """blank = ss.ActivationStore.open("demo/blank.zarr")
text_only = ss.probe.layer_curve(blank, task="truth", position="final")
shuffled = ss.probe.layer_curve(store, task="truth:shuffled", position="final")
truth.difference(text_only)""",
    ),
    ("code", 'truth.plot(baselines={"blank image": text_only, "labels shuffled": shuffled})'),
    ("markdown", "## Where does the final token look?\n\nBy part of the prompt, every head a dot: an average hides the heads."),
    ("code", "share = ss.analysis.attention_share(store)\nshare"),
    (
        "code",
        """heads = share.head_table().query("part == 'image'").sort_values("share", ascending=False)
heads[["layer", "head", "share", "token_share"]].head(4).reset_index(drop=True)""",
    ),
    ("markdown", "## One example\n\nThe whole attention maps of an example, rolled out onto its inputs (Abnar & Zuidema 2020)."),
    (
        "code",
        """example = 3
rolled = ss.analysis.rollout(store.maps(example))  # (layer + 1, token); row 0: onto the inputs
start, stop = store.spans["image"][example]
cells = rolled[0, start:stop].reshape(store.grid[example])
_, (ax,) = ss.report.new_figure(1, width=2.2, height=2.2)
ss.report.draw_overlay(store.thumbnail(example), cells, ax, title=store.examples.caption[example])""",
    ),
    (
        "markdown",
        """Which of these maps to believe is measured, not assumed: parts of the image were hidden one by one, and the answer's
logits compared.""",
    ),
    (
        "code",
        """faith = ss.analysis.Faithfulness.load("demo/results/faithfulness.zarr.zip")
faith.rows()[["label", "correlation", "low", "high"]].round(2)""",
    ),
    (
        "markdown",
        """## A probe of your own

Any column of classes, or any classes by example id, are a task; cut numbers into classes first, as here (only `geometry`, where the things
are, is predicted as numbers). is the first-named thing in the left half of the image? It is asked where the
model writes that thing's name.""",
    ),
    (
        "code",
        """table = store.examples
centre = (table.subject_x0 + table.subject_x1) / 2 / table.image_width
left = pd.Series(np.where(centre < 0.5, "left half", "right half"), index=table.id)
mine = ss.probe.layer_curve(store, task="side", position="subject", values={"side": left.to_dict()})
mine""",
    ),
    ("markdown", "And with any estimator at all, since `read` gives plain arrays:"),
    (
        "code",
        """probe = ss.probe.LogisticProbe(C=1e-2)  # scikit-learn's interface, and its solution
folds = ss.probe.grouped_folds(table.image.tolist())  # no image in two folds
train, test = folds.of != 0, folds.of == 0
probe.fit(x[train], table.label[train]).score(x[test], table.label[test])""",
    ),
    (
        "markdown",
        """All of it on one page: `stratascope report demo/original.zarr`. Every result has `save` and `load`.""",
    ),
]


def run_cell(source: str, names: dict[str, Any]) -> Any:
    """The value of a cell's last expression, None where it has none."""
    body = ast.parse(source).body
    last = body.pop() if isinstance(body[-1], ast.Expr) else None
    exec(compile(ast.Module(body, []), "cell", "exec"), names)
    return eval(compile(ast.Expression(last.value), "cell", "eval"), names) if isinstance(last, ast.Expr) else None


def output_of(value: Any, count: int) -> list[dict[str, Any]]:
    """What a notebook stores of a value: its figure, or its text and HTML."""
    from matplotlib.axes import Axes

    data: dict[str, Any] = {}
    if isinstance(value, Axes):
        buffer = io.BytesIO()
        value.get_figure().savefig(buffer, format="png", dpi=80)
        data["image/png"] = base64.b64encode(buffer.getvalue()).decode()
        data["text/plain"] = ["<Axes>"]
    else:
        data["text/plain"] = repr(value).splitlines(keepends=True)
        if hasattr(value, "_repr_html_"):
            data["text/html"] = value._repr_html_().splitlines(keepends=True)
    return [{"output_type": "execute_result", "execution_count": count, "metadata": {}, "data": data}]


def notebook() -> dict[str, Any]:
    """The notebook, run in the working folder, which holds `demo`."""
    names: dict[str, Any] = {}
    cells: list[dict[str, Any]] = []
    count = 0
    for number, (kind, source) in enumerate(CELLS):
        cell: dict[str, Any] = {"cell_type": kind, "id": f"cell-{number}", "metadata": {}, "source": source.splitlines(keepends=True)}
        if kind == "code":
            count += 1
            value = run_cell(source, names)
            cell |= {"execution_count": count, "outputs": [] if value is None else output_of(value, count)}
        cells.append(cell)
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}, "language_info": {"name": "python"}}
    return {"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}


if __name__ == "__main__":
    import matplotlib as mpl

    mpl.use("Agg")
    demo = Path(sys.argv[1]).resolve()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.symlink(demo, "demo")
        NOTEBOOK.write_text(json.dumps(notebook(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
