"""Writes docs/tour.ipynb: the cells below, with what they show on the demo.

    python docs/site/make_tour.py DEMO

The first cell installs the package, and is not run here. Where the address of the repository is known, the notebook begins with a badge
that opens it in Colab.

DEMO is a folder that `stratascope demo --out DEMO` filled. tests/test_docs_pages.py runs the cells again.
"""

from __future__ import annotations

import ast
import base64
import importlib.util
import io
import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

NOTEBOOK = Path(__file__).resolve().parents[1] / "tour.ipynb"

CELLS: list[tuple[str, str]] = [
    (
        "markdown",
        """# A tour of Stratascope

From a fresh machine to a figure for a paper, on the demo: a small built-in model that reads generated scenes. The extra `extract`
brings torch, which only the demo, the extraction of your own data and the intervention need. In a checkout of the repository, install by
`pip install -e ".[extract]"`.""",
    ),
    ("code", '%pip install -q "stratascope[extract]"'),
    ("code", "!stratascope demo --out demo --quiet"),
    (
        "code",
        """import json

import numpy as np
import pandas as pd

import stratascope as ss

store = ss.ActivationStore.open("demo/original.zarr")
store""",
    ),
    (
        "markdown",
        """Each example is an image, a caption, and whether the caption is true. The model read each once; the store holds its
activations and attention.""",
    ),
    ("code", 'store.examples[["image", "caption", "relation", "label"]].head()'),
    (
        "code",
        """x = store.read("residual", layer=5, position="final")  # (example, hidden): after five decoder blocks, at the last token
x.shape, x.dtype""",
    ),
    (
        "markdown",
        """## In which layers is the truth of the caption decodable?

One probe a layer, folds that never split an image, intervals by bootstrap.""",
    ),
    ("code", 'truth = ss.probe.layer_curve(store, task="truth", position="final")\ntruth'),
    (
        "markdown",
        """Interpret a curve only against its controls: the same probe on images that were replaced by their mean colour, and on shuffled
labels. The difference is paired, example by example.""",
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
        "Faithfulness: which attribution methods agree with knockouts of parts of the image, by rank correlation.",
    ),
    (
        "code",
        """faith = ss.analysis.Faithfulness.load("demo/results/faithfulness.zarr.zip")
faith.rows()[["label", "correlation", "low", "high"]].round(2)""",
    ),
    (
        "markdown",
        """## Tasks of your own

Any classes by example id are a task. Is the subject in the left half of the image? The probe reads the token of the subject.""",
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
        """## Two positions at once

A pair probe reads two vectors together, here those of the boxes of subject and object. The captions are true, so that the relation
is that of the image. At boxes the place of the box tells much by itself: `stratascope probe` compares with the baseline `box geometry`.""",
    ),
    (
        "code",
        """true = np.flatnonzero(table.label == 1)
ss.probe.layer_curve(store, "relation", "subject_box+object_box", pair="difference", examples=true, layers=[0, 3, 6])""",
    ),
    (
        "markdown",
        """## Data of your own, with a number as target

A row needs an image and a caption; a column of numbers is a regression task. Here `distance` is how far apart
both objects are. [The page on data](data.md) has the columns and boxes.""",
    ),
    (
        "code",
        """some = table.head(160)
x_gap = (some.subject_x0 + some.subject_x1 - some.object_x0 - some.object_x1) / 2
y_gap = (some.subject_y0 + some.subject_y1 - some.object_y0 - some.object_y1) / 2
own = some[["id", "image", "caption", "relation"]].assign(distance=np.hypot(x_gap, y_gap).round(1))
with open("own.jsonl", "w") as file:
    file.writelines(json.dumps(row) + "\\n" for row in own.to_dict("records"))""",
    ),
    ("code", "!stratascope extract --model demo --examples own.jsonl --images demo/scenes/images --out own.zarr --quiet"),
    (
        "code",
        """distance = ss.probe.layer_curve("own.zarr", task="distance", position="final")
distance""",
    ),
    (
        "markdown",
        """## Is it used?

A probe shows what can be decoded. An intervention erases the direction in one layer, runs the model again, and counts the answers that
change, beside random directions.""",
    ),
    (
        "code",
        """!stratascope intervene demo/original.zarr demo/results --examples 16 --layers 4-6 --kinds erase --methods leace \\
    --out use.zarr.zip --quiet""",
    ),
    ("code", 'ss.causal.Intervention.load("use.zarr.zip")'),
    (
        "markdown",
        """## A figure for a paper

One column wide, as PDF, SVG or PNG, from saved results; `stratascope figure --list` names all figures.""",
    ),
    ("code", "!stratascope figure curves demo/original.zarr --task truth --position final --out curves.pdf --quiet"),
    (
        "markdown",
        """All of it on one page: `stratascope report demo/original.zarr`. Every result has `save` and `load`.""",
    ),
]


def run_cell(source: str, names: dict[str, Any]) -> Any:
    """The value of a cell's last expression, None where it has none.

    A line that begins with ! is a command, as in Jupyter; one that begins with % concerns the notebook's own environment and is left out.
    """
    if source.startswith("%"):
        return None
    if source.startswith("!"):
        program, *arguments = shlex.split(source[1:].replace("\\\n", " "))
        subprocess.run([sys.executable, "-m", program, *arguments], check=True, stdout=subprocess.DEVNULL)
        return None
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


def badge() -> str:
    """A link that opens the notebook in Colab, as Markdown; empty where the address of the repository is not known."""
    spec = importlib.util.spec_from_file_location("repository", Path(__file__).with_name("repository.py"))
    assert spec is not None
    assert spec.loader is not None
    repository = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(repository)
    url = repository.repository_url(Path(__file__).resolve().parents[2])
    if not url or "github.com/" not in url:
        return ""
    place = f"https://colab.research.google.com/github/{url.partition('github.com/')[2]}/blob/main/docs/tour.ipynb"
    return f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({place})\n\n"


def notebook() -> dict[str, Any]:
    """The notebook, run in the working folder, which holds `demo`."""
    names: dict[str, Any] = {}
    cells: list[dict[str, Any]] = []
    count = 0
    for number, (kind, text) in enumerate(CELLS):
        source = text if number else badge() + text
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
