"""The full pipeline on generated scenes with the built-in model, without network or GPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

import numpy as np

from stratascope.demo.stages import LAYERS, Stages, digest
from stratascope.errors import TooFewExamplesError
from stratascope.report.blocks import CommandLine
from stratascope.results.locations import ENDING
from stratascope.scheduling import shared_processes

if TYPE_CHECKING:
    import pandas as pd

    from stratascope.probe import CurveSet, LayerCurve
    from stratascope.results.result import Result
    from stratascope.store import ActivationStore

SHUFFLED = "truth:shuffled"
KNOCKOUTS = 48
"""Scenes whose knockouts are measured, enough for intervals also of those with other objects; each costs about twenty forward passes."""
PATCHES = 64
"""Scenes whose residual stream is saved at every image token."""
LEFT_OUT = ("gradient_rollout", "gradient_maps", "vision_maps", "vision_change")
"""Arrays that the store lacks, for the time that they take; it has all others, so that every command can run on it."""
FEWEST_SCENES = 64
FEWEST_OF_RELATIONS = 160
"""Scenes with which every relation has the examples that a probe needs; with fewer, the demo leaves the task out."""
CONDITIONS = ("original", "blank")
SUMMARY_CURVES = ("truth-final", "truth-final-blank", "truth-shuffled-final")
"""Curves in the demo's summary."""
MODULES = ("stratascope.extract.run.shard_block", "stratascope.probe.study.study", "scipy.stats", "sklearn.base", "dask.threaded")
"""What extraction and probes import; the import starts before the scenes are drawn."""
LATER = ("scipy.stats", "sklearn.base", "matplotlib.figure", "matplotlib.font_manager")
"""What this process imports between extraction and first figure."""
KEPT = ": finished before, kept"


def run_demo(
    out: Path,
    *,
    scenes: int = 512,
    seed: int = 0,
    progress: bool = False,
    on_step: Callable[[str], object] = lambda text: None,
    on_result: Callable[[str], object] | None = None,
    command_line: CommandLine | None = None,
    processes: int = 1,
) -> str:
    """Generate scenes, extract them with original and blank images, train probes, run all analyses, write the report.

    An interrupted run continues: finished, unchanged steps are kept. Results of earlier stores are moved to another folder.

    Parameters
    ----------
    out
        Folder to fill: `scenes/`, `original.zarr`, `blank.zarr`, `results/`.
    scenes
        Number of scenes, with one caption each; with fewer than 160 there are no probes of the relation.
    seed
        Seed of scenes, folds and resamples.
    progress
        Show progress bars.
    on_step
        Receives a line for each step as it begins, or when it is kept from an earlier run.
    on_result
        Receives the summary of the curves as soon as the probes are trained; the returned text then leaves it out.
    command_line
        Writes the commands that the report lists; see `report.report_file.write_report`.
    processes
        Processes that extract and probe; 1: this one alone. With more, a script needs the guard `if __name__ == "__main__":`.

    Returns
    -------
    str
        Summary of the curves, and the paths of the output.

    Raises
    ------
    MissingExtraError
        If the `extract` extra is not installed.
    TooFewExamplesError
        If there are too few scenes for probes.
    InvalidInputError
        If the folder has other content, or was filled with other settings.
    """
    from stratascope.extract.run.extraction import require_extract_extra

    require_extract_extra(load=False)
    if scenes < FEWEST_SCENES:
        raise TooFewExamplesError(f"expected at least {FEWEST_SCENES} scenes for probes, found {scenes}")
    stages = Stages(out, {"scenes": scenes, "seed": seed})
    if processes == 1 or all(stages.noted(condition) for condition in CONDITIONS):
        return _run_stages(stages, 1, progress, on_step, on_result, command_line)
    with shared_processes(processes, MODULES):
        Thread(target=lambda: [import_module(name) for name in LATER], daemon=True).start()  # while the processes extract
        return _run_stages(stages, processes, progress, on_step, on_result, command_line)


def _run_stages(
    stages: Stages,
    processes: int,
    progress: bool,
    on_step: Callable[[str], object],
    on_result: Callable[[str], object] | None,
    command_line: CommandLine | None,
) -> str:
    """Run or keep each stage; parameters and result as of `run_demo`."""
    from stratascope.datasets.scenes import write_scenes
    from stratascope.probe import LayerCurve

    out, scenes, seed = stages.out, stages.settings["scenes"], stages.settings["seed"]
    drawn, results = out / "scenes", out / "results"

    def step(text: str, folder: Path, parts: Mapping[str, Callable[[], object]], made_of: Callable[[str], Any]) -> None:
        kept = all(stages.kept(name, made_of(name)) for name in parts)
        on_step(f"{text}{KEPT if kept else ''}")
        if not kept:
            for name, make in parts.items():
                stages.make(name, made_of(name), folder, make)

    drawing = {"scenes": lambda: write_scenes(drawn, scenes, seed=seed)}
    step(f"1/5 drawing {scenes} scenes in {drawn}", drawn, drawing, lambda _: [scenes, seed])
    again = f"stratascope demo --out . --scenes {scenes} --seed {seed}"
    before = {condition: stages.noted(condition) for condition in CONDITIONS}
    stores = {
        condition: _extracted(stages, condition, f"{k + 2}/5", again, processes, progress, on_step)
        for k, condition in enumerate(CONDITIONS)
    }
    prints = {condition: store.fingerprint() for condition, store in stores.items()}
    if None not in before.values() and before != prints and results.exists():
        aside = next(path for k in range(1000) if not (path := out / f"results-before-{k + 1}").exists())
        results.rename(aside)
        stages.leave(results)
        on_step(f"{results} belongs to other stores: moved to {aside}")
    shown: list[str] = []

    def show(curves: Mapping[str, LayerCurve]) -> None:
        shown.append(_summary(stores["original"], curves))
        if on_result is not None:
            on_result(f"\n{shown[0]}\nfigure: {results / 'truth.png'}\n")

    probes = partial(_save_curves, stores["original"], stores["blank"], results, seed, processes, progress, show)
    step("4/5 probing every layer", results, {"probes": probes}, lambda _: prints)
    if not shown:
        show({name: LayerCurve.load(results / f"probe-{name}{ENDING}") for name in SUMMARY_CURVES})
    step(
        "5/5 answers, attention, attribution, faithfulness and report",
        results,
        _analyses(stores["original"], out, seed, command_line),
        # the report depends on all results
        lambda name: [prints, {p.name: digest(p) for p in sorted(results.glob(f"*{ENDING}"))} if name == "report" else None],
    )
    stages.finish()
    where = (
        f"report: {results / 'report.html'}\n"
        f"folder: {out} with the stores original.zarr and blank.zarr, and results/ with results (*.zarr.zip) and figures (*.png)"
    )
    return where if on_result is not None else f"{shown[0]}\n\n{where}"


def _extracted(
    stages: Stages, condition: str, step: str, command: str, processes: int, progress: bool, on_step: Callable[[str], object]
) -> ActivationStore:
    """The store of a condition, kept from an earlier run or extracted now."""
    from stratascope.extract import ExtractionSettings
    from stratascope.extract.plan.settings import RECORDS
    from stratascope.extract.run.local_processes import extract_in_processes
    from stratascope.store import ActivationStore

    out = stages.out
    path = out / f"{condition}.zarr"
    if path.exists() and (known := stages.noted(condition)):
        store = ActivationStore.open(path)
        if store.complete and store.fingerprint() == known:
            stages.note(condition, known)
            on_step(f"{step} extracting into {path}{KEPT}")
            return store
    on_step(f"{step} extracting into {path}")
    settings = ExtractionSettings(
        model="demo",
        examples=(out / "scenes" / "scenes.jsonl",),
        images=out / "scenes" / "images",
        boxes=out / "scenes" / "instances.json",
        condition=condition,
        record=tuple(name for name in RECORDS if name not in LEFT_OUT) if condition == "original" else ("residual",),
        knockouts=KNOCKOUTS,
        patches=PATCHES if condition == "original" else 0,
    )
    extract_in_processes(settings, path, processes, progress=progress, command=command)
    store = ActivationStore.open(path)
    stages.note(condition, store.fingerprint())
    return store


def _analyses(store: ActivationStore, out: Path, seed: int, command_line: CommandLine | None) -> dict[str, Callable[[], object]]:
    """Analyses by name; the report last."""
    from stratascope import analysis
    from stratascope.analysis.example_images import MOST_EXAMPLES
    from stratascope.datasets.boxes import BoxIndex
    from stratascope.datasets.examples import files_digest
    from stratascope.report.report_file import write_report
    from stratascope.results.saved_files import save_with_figure

    results, boxes = out / "results", out / "scenes" / "instances.json"

    def save(result: Result) -> object:
        return save_with_figure(result, results, store=store)

    def point() -> object:
        found = analysis.pointing(store, BoxIndex.from_coco(boxes), seed=seed)
        return save(replace(found, attributes={**found.attributes, "boxes": files_digest([boxes])}))

    mapped = np.flatnonzero(store.available("attention_maps"))[:MOST_EXAMPLES].tolist()
    return {
        "answers": lambda: save(analysis.answer_confidence(store)),
        "share": lambda: save(analysis.attention_share(store)),
        "rollout": lambda: save(analysis.rollout_examples(store, mapped)),
        "overlap": lambda: _save_overlap(store, results, seed),
        "attribution": lambda: save(analysis.logit_attribution(store)),
        "components": lambda: save(analysis.principal_components(store)),
        "faithfulness": lambda: save(analysis.faithfulness(store, seed=seed)),
        "pointing": point,
        "report": lambda: write_report(store, [results], results / "report.html", where=out / "original.zarr", command_line=command_line),
    }


def _save_overlap(store: ActivationStore, results: Path, seed: int) -> None:
    """Overlap with the boxes, prediction of right answers if there are enough wrong ones, and a figure of both."""
    from stratascope.analysis import answer_prediction, attention_overlap
    from stratascope.figures.drawing import save_figure
    from stratascope.results.saved_files import save_with_figure

    overlap = attention_overlap(store)
    save_with_figure(overlap, results, draw=False)
    try:
        prediction = answer_prediction(store, overlap, seed=seed)
    except TooFewExamplesError:
        prediction = None
    if prediction is not None:
        save_with_figure(prediction, results, draw=False)
    save_figure(overlap.figure(prediction=prediction), results / f"{overlap.file_name}.png")


def _save_curves(
    original: ActivationStore,
    blank: ActivationStore,
    results: Path,
    seed: int,
    processes: int,
    progress: bool,
    show: Callable[[Mapping[str, LayerCurve]], None],
) -> None:
    """Curves, advantages, accuracy by relation, figures; `show` receives the summary's curves as soon as their figure is drawn."""
    from stratascope.probe.curve.breakdown import AccuracyBy
    from stratascope.results.locations import file_name
    from stratascope.results.saved_files import save_with_figure

    joint = _probe(original, blank, results / LAYERS, seed, processes, progress)
    curves = _by_name(joint)
    related = "relation-final" in curves
    _draw_truth(curves, results)
    show(dict(zip(SUMMARY_CURVES, (curves[name] for name in ("truth-final", "truth-final-blank", f"{SHUFFLED}-final")), strict=True)))
    for name, curve in curves.items():
        save_with_figure(curve, results, name=file_name(curve.file_name, "blank" if name.endswith("blank") else None), draw=False)
    for name in ("truth-final", *(["relation-final"] if related else [])):
        for over, advantage in joint.advantages_of(curves[name]).items():
            if over != "chance":  # the curve's own file holds it
                save_with_figure(advantage, results, name=file_name("advantage", name, "over", over), draw=False)
    relations = dict(zip(original.examples["id"], original.examples["relation"], strict=True))
    for position in ("final", "object", "subject"):
        save_with_figure(AccuracyBy.of(curves[f"truth-{position}"], relations, "relation"), results)
    if related:
        _draw_relation(curves, results)


def _probe(original: ActivationStore, blank: ActivationStore, layers: Path, seed: int, processes: int, progress: bool) -> CurveSet:
    """Curves of both stores with one band over all of them; `layers` is the cache of layers."""
    from stratascope.probe import CurveSet, probe_study

    where = {"scheduler": "processes", "workers": processes} if processes > 1 else {"scheduler": "threads"}
    options: dict[str, Any] = {"seed": seed, "progress": progress, "output": layers, **where}
    relation = ("relation",) if original.layout.examples >= FEWEST_OF_RELATIONS else ()
    found = probe_study(original, ("truth", SHUFFLED, *relation), ("final", "subject", "object"), **options)
    return CurveSet(found, {"blank": probe_study(blank, ("truth", *relation), ("final",), **options)}).with_family()


def _by_name(joint: CurveSet) -> dict[str, LayerCurve]:
    """Curves by name: task-position, with `-blank` for the store with blank images."""
    own = {f"{curve.task}-{curve.position}": curve for curve in joint.own}
    return own | {f"{curve.task}-{curve.position}-blank": curve for curve in joint.baselines["blank"]}


def _draw_truth(curves: Mapping[str, LayerCurve], folder: Path) -> None:
    from stratascope.figures.drawing import save_figure
    from stratascope.probe.curve.curve_figures import curves_figure

    truth = curves_figure(
        {"final token": curves["truth-final"], "object": curves["truth-object"], "subject": curves["truth-subject"]},
        muted={"blank image, final": curves["truth-final-blank"], "shuffled labels, final": curves[f"{SHUFFLED}-final"]},
        title="Truth of the caption",
    )
    save_figure(truth, folder / "truth.png")


def _draw_relation(curves: Mapping[str, LayerCurve], folder: Path) -> None:
    from stratascope.figures.drawing import save_figure
    from stratascope.probe.curve.curve_figures import curves_figure

    relation = curves_figure(
        {"final token": curves["relation-final"], "object": curves["relation-object"]},
        muted={"blank image, final": curves["relation-final-blank"]},
        title="Relation in the caption",
    )
    save_figure(relation, folder / "relation.png")


def _summary(store: ActivationStore, curves: Mapping[str, LayerCurve]) -> str:
    """Summary of the truth curve, its controls and the model's accuracy."""
    from stratascope.analysis.model_answers import answers_right

    truth, blank, shuffled = (curves[name].rows() for name in SUMMARY_CURVES)
    right = answers_right(store, np.arange(store.layout.examples)).mean()
    start = truth["value"].iloc[0]
    best = truth.iloc[int(truth["value"].to_numpy().argmax())]
    interval = f"[{best['low_simultaneous']:.2f}, {best['high_simultaneous']:.2f}]"
    detected = curves["truth-final"].detected
    rises = f"is detected in {detected}" if detected else "is not detected"
    count, layer = len(curves["truth-final"].examples), int(best["layer"])
    return (
        f"At the final token, the truth of the caption {rises} (n = {count:,}): the AUROC of a linear probe is {start:.2f} in the "
        f"embeddings (chance level 0.5) and reaches {best['value']:.2f} {interval} at layer {layer}; the model itself answers {right:.1%} "
        f"of the scenes correctly. With blank images the AUROC is {_range(blank)}, with shuffled labels {_range(shuffled)}"
        f"{': the probe relies on the image' if detected else ''}.\n\n"
        "(The built-in model was trained to attend from a noun to its object, so this attention is not a finding.)"
    )


def _range(rows: pd.DataFrame) -> str:
    """Lowest and highest value over layers with two digits; one value if they are equal."""
    return " to ".join(dict.fromkeys(f"{value:.2f}" for value in (rows["value"].min(), rows["value"].max())))
