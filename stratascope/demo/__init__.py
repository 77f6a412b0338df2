"""The whole way on generated scenes with the built-in model, without network or GPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stratascope.errors import TooFewExamplesError

if TYPE_CHECKING:
    from stratascope.probe import LayerCurve
    from stratascope.store import ActivationStore

SHUFFLED = "truth:shuffled"
KNOCKOUTS = 32
"""Scenes whose knockouts are measured: each takes as long as some twenty plain passes."""
FEWEST_SCENES = 160


def run_demo(
    out: Path, *, scenes: int = 512, seed: int = 0, progress: bool = False, say: Callable[[str], object] = lambda text: None
) -> str:
    """Generate scenes, extract them as they are and with blank images, probe, roll out, draw; go on where it stopped.

    Parameters
    ----------
    out
        Folder to fill: `scenes/`, `original.zarr`, `blank.zarr`, `results/`.
    scenes
        How many to generate, one caption each.
    seed
        Of scenes, folds and resamples.
    progress
        Show progress bars.
    say
        Told each step as it begins.

    Returns
    -------
    str
        What the curves show in two sentences, and where everything lies.

    Raises
    ------
    MissingExtraError
        If the `extract` extra is not installed.
    TooFewExamplesError
        If there are too few scenes to probe.
    """
    from stratascope.datasets.scenes import write_scenes
    from stratascope.extract import ExtractionSettings, plan_extraction, run_extraction
    from stratascope.extract.extraction import require_extract_extra
    from stratascope.extract.settings import RECORDS
    from stratascope.store import ActivationStore
    from stratascope.workflow.attention import roll_and_draw, save_answers, share_and_draw
    from stratascope.workflow.attributing import attribute_and_draw
    from stratascope.workflow.believing import compare_and_draw, point_and_draw
    from stratascope.workflow.overlapping import overlap_and_draw
    from stratascope.workflow.probing import save_accuracy_by, save_advantage, save_curve
    from stratascope.workflow.reporting import write_report

    require_extract_extra()
    if scenes < FEWEST_SCENES:
        raise TooFewExamplesError(f"expected at least {FEWEST_SCENES} scenes, so that relations can be probed, found {scenes}")
    out.mkdir(parents=True, exist_ok=True)
    say(f"1/5 drawing {scenes} scenes in {out / 'scenes'}")
    rows = write_scenes(out / "scenes", scenes, seed=seed)
    stores = {}
    for number, condition in ((2, "original"), (3, "blank")):
        path = out / f"{condition}.zarr"
        say(f"{number}/5 extracting into {path}")
        settings = ExtractionSettings(
            model="demo",
            examples=(rows,),
            images=out / "scenes" / "images",
            boxes=out / "scenes" / "instances.json",
            condition=condition,
            # all there is, so that every command has something to work on
            record=RECORDS if condition == "original" else ("residual",),
            knockouts=KNOCKOUTS,
        )
        again = f"stratascope demo --out . --scenes {scenes} --seed {seed}"
        run_extraction(plan_extraction(settings), path, progress=progress, command=again)
        stores[condition] = ActivationStore.open(path)
    original, results = stores["original"], out / "results"
    say("4/5 probing every layer")
    curves = _probe(original, stores["blank"], seed, progress)
    for name, curve in curves.items():
        save_curve(curve, results, "blank" if name.endswith("blank") else "")
    for name, control in (
        ("truth-final", f"{SHUFFLED}-final"),
        ("truth-final", "truth-final-blank"),
        ("relation-final", "relation-final-blank"),
    ):
        save_advantage(curves[name], curves[control], results, "shuffled" if control.startswith(SHUFFLED) else "blank")
    for position in ("final", "object", "subject"):
        save_accuracy_by(curves[f"truth-{position}"], original, "relation", results)
    _draw(curves, results)
    say("5/5 answers, attention, attribution, faithfulness and report")
    save_answers(original, results)
    share_and_draw(original, results)
    roll_and_draw(original, results, examples=None, window=None)
    overlap_and_draw(original, results)
    attribute_and_draw(original, results)
    compare_and_draw(original, results, seed=seed)
    point_and_draw(original, results, boxes=out / "scenes" / "instances.json", seed=seed)
    write_report(original, [results], results / "report.html", where=out / "original.zarr")
    where = (
        f"All of it on one page: {results / 'report.html'}\n"
        f"Everything is in {out}: stores original.zarr and blank.zarr, results/ with the curves (*.zarr.zip) and figures (*.png)."
    )
    return f"{_sentences(original, curves)}\n\n{where}"


def _probe(original: ActivationStore, blank: ActivationStore, seed: int, progress: bool) -> dict[str, LayerCurve]:
    """Curves by name: task-position, with `-blank` for those of the store with blank images."""
    from stratascope.probe import probe_study

    options: dict[str, Any] = {"seed": seed, "scheduler": "threads", "progress": progress}
    found = probe_study(original, ("truth", SHUFFLED, "relation"), ("final", "subject", "object"), **options)
    curves = {f"{curve.task}-{curve.position}": curve for curve in found}
    for curve in probe_study(blank, ("truth", "relation"), ("final",), **options):
        curves[f"{curve.task}-{curve.position}-blank"] = curve
    return curves


def _draw(curves: dict[str, LayerCurve], folder: Path) -> None:
    from stratascope.workflow.probing import draw_curves

    draw_curves(
        {"final token": curves["truth-final"], "object": curves["truth-object"], "subject": curves["truth-subject"]},
        folder / "truth.png",
        muted={"blank image, final": curves["truth-final-blank"], "labels shuffled, final": curves[f"{SHUFFLED}-final"]},
        title="Is the caption true?",
    )
    draw_curves(
        {"final token": curves["relation-final"], "object": curves["relation-object"]},
        folder / "relation.png",
        muted={"blank image, final": curves["relation-final-blank"]},
        title="Which relation does the caption name?",
    )


def _sentences(store: ActivationStore, curves: dict[str, LayerCurve]) -> str:
    """What the truth curve shows, with the model's own accuracy beside it, in two sentences."""
    from stratascope.analysis.answers import answers_right

    truth, blank, shuffled = (curves[name].rows("accuracy") for name in ("truth-final", "truth-final-blank", f"{SHUFFLED}-final"))
    right = answers_right(store, np.arange(store.layout.examples)).mean()
    start = truth["value"].iloc[0]
    best = truth.iloc[int(truth["value"].to_numpy().argmax())]
    onset = curves["truth-final"].onset.layer
    rises = "never rises above chance" if onset is None else f"rises above chance from layer {onset} on"
    return (
        f"At the final token a linear probe for the caption's truth starts at {start:.2f} in the embeddings (chance 0.5), "
        f"{rises} and reaches {best['value']:.2f} [{best['low']:.2f}, {best['high']:.2f}] at layer {int(best['layer'])}; the model itself "
        f"answers {right:.1%} of these scenes right. With blank images the same probe stays between {blank['value'].min():.2f} and "
        f"{blank['value'].max():.2f}, with shuffled labels between {shuffled['value'].min():.2f} and {shuffled['value'].max():.2f}: "
        "what it reads comes from the image.\n\n"
        "(Early in its training the model was taught to look from a name to its thing; that it does so is no finding.)"
    )
