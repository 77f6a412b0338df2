"""Report of a pre-registered study: its plan, the primary outcome first, every curve of its family, deviations."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath
from typing import Any

import pandas as pd

from stratascope.figures.drawing import draw_advantages, draw_layer_curves, new_figure
from stratascope.figures.style import paper_style
from stratascope.preregistration import StudyPlan, parse_plan
from stratascope.probe.preregistered.study_result import CURVE, StudyResult, of_curve
from stratascope.probe.study.study_plan import task_name
from stratascope.report.blocks import Beside, Block, Cited, Commands, Drawing, Fact, Facts, Folded, Missing, Prose, Remark, Section, Table
from stratascope.report.page import Page
from stratascope.report.result_set import ResultSet
from stratascope.report.sections import HALF
from stratascope.results.locations import ENDING
from stratascope.results.registry import result_class
from stratascope.results.stored_result import Source, StoredResult
from stratascope.store import ActivationStore

CAUSAL = ("intervention", "encoding_use")
"""Kinds of results that belong to the causal part of a study."""


def write_study_page(store: ActivationStore, result: StudyResult, folder: Path) -> tuple[Path, int]:
    """Write `study.html` from a study and the results of its plan in a folder.

    Parameters
    ----------
    store
        The store that was probed.
    result
        The study.
    folder
        Of its results; files of other plans are left out.

    Returns
    -------
    tuple
        The page, and the number of results of other plans.
    """
    found = [StoredResult.load(path) for path in sorted(folder.glob(f"*{ENDING}"))]
    mine = [one for one in found if one.attributes.get("study") == result.digest]
    causal = [one for one in found if one.kind in CAUSAL and one.fingerprint == result.attributes["fingerprint"]]
    others = sum(one.attributes.get("study") not in (None, result.digest) for one in found)
    fingerprint = result.attributes["fingerprint"]
    curves = ResultSet(
        [one for one in mine if one.fingerprint == fingerprint],
        [one for one in mine if one.fingerprint != fingerprint and one.kind == "layer_curve"],
    )
    page = study_page(store, result, curves, causal)
    return page.write(folder / "study.html"), others


def study_page(store: ActivationStore, result: StudyResult, curves: ResultSet, causal: Sequence[StoredResult] = ()) -> Page:
    """The page of a study.

    Parameters
    ----------
    store, result
        As of `write_study_page`.
    curves
        Results of the study's probes.
    causal
        Results of interventions on the store.
    """
    own = result.attributes
    sections = [
        Section("Primary outcome", [*_primary_blocks(result), *_primary_figures(result, curves)], "primary"),
        Section("All curves of the plan", _family_blocks(result), "family"),
        *([Section("Probes on other images", transfers, "transfers")] if (transfers := list(_transfer_blocks(result))) else []),
        *([Section("Interventions", blocks, "interventions")] if (blocks := list(_causal_blocks(result, causal))) else []),
        Section("Deviations from the plan", _deviation_blocks(result), "deviations"),
        Section("Plan", _plan_blocks(result), "plan"),
    ]
    subtitle = f"{PurePath(store.name).name} · {store.layout.examples:,} examples · plan {result.digest[:16]}"
    return Page(own["title"], sections, subtitle, "Made by Stratascope from the results files of one pre-registered plan.")


def study_blocks(results: ResultSet) -> list[Block]:
    """A study within the report of its store: sentence, overview and deviations; [] without one."""
    blocks: list[Block] = []
    for found in results.of("study"):
        result: StudyResult = found.result
        blocks += [*_primary_blocks(result), _overview(result), *_deviation_blocks(result)]
    return blocks


def _source(table: str = "claims", detail: str = "") -> Source:
    return Source(f"study{ENDING}", f"tables/{table}", detail)


def _primary_blocks(result: StudyResult) -> list[Block]:
    row, own = result.primary, result.attributes
    source = _source(detail="primary outcome")
    ends = f" [{row['peak_low']:.3f}, {row['peak_high']:.3f}]"
    facts = [
        Fact(Cited(str(row["detected"]), str(row["detected"]), source), "primary outcome detected in"),
        Fact(Cited(f"{row['peak']:+.3f}", float(row["peak"]), source), f"largest advantage, layer {row['peak_layer']}", ends),
        Fact(Cited(f"{row['examples']:,}", int(row["examples"]), source), f"examples of {row['images']:,} images"),
        Fact(Cited(result.digest[:8], result.digest, Source(f"study{ENDING}", "attributes/digest")), "SHA-256 of the plan, first digits"),
    ]
    blocks: list[Block] = [Prose(str(own["question"])), Prose(result.sentence, lead=True), Facts(facts)]
    hypothesis = own["primary"]["hypothesis"]
    return [*blocks, Remark(f"Hypothesis, fixed beforehand: {hypothesis}")] if hypothesis else blocks


def _primary_figures(result: StudyResult, curves: ResultSet) -> list[Block]:
    """Scores of the primary curve with its baselines, and the advantage over each with the band of the family."""
    row, own = result.primary, result.attributes
    blocks: list[Block] = []
    mine = [c for c in curves.curves if (c.task, c.position) == (row["task"], row["position"])]
    for curve in mine:
        figure, (ax,) = new_figure(1, width=HALF, height=2.7)
        beside = _beside(curves, curve)
        tables = {"probe": curve.table("table"), **{name: c.table("table") for name, c in beside.items()}}
        with paper_style():
            draw_layer_curves(tables, ax, metric=own["metric"], chance=float(row["chance"]), muted=list(beside))
            ax.legend(fontsize=6, loc="best")
        blocks.append(
            Drawing(
                figure,
                f"score of the probe for {curve.title} by layer, with controls and baselines",
                "Out-of-fold scores. Bands: 95 % CI (pointwise), bootstrap over images.",
                curve.title,
                [c.source("tables/table") for c in (curve, *beside.values())],
            )
        )
    figure, (ax,) = new_figure(1, width=HALF, height=2.7)
    same = of_curve(result.layers, row[CURVE])
    with paper_style():
        draw_advantages({name: same[same["baseline"] == name].assign(metric=own["metric"]) for name in result.baselines}, ax)
        for height in (own["margin"], own["equivalence_margin"]):
            ax.axhline(height, color="black", linewidth=0.6, linestyle=(0, (1, 2)))
        ax.legend(fontsize=6, loc="best")
    caption = f"{own['family']}. Dotted: margin {own['margin']:g} and equivalence margin {own['equivalence_margin']:g}."
    blocks.append(Drawing(figure, "advantage over each baseline by layer", caption, "Advantage over each baseline", [_source("layers")]))
    return [Beside(blocks)]


def _beside(curves: ResultSet, curve: StoredResult) -> dict[str, StoredResult]:
    """Name -> controls and baselines of a curve."""
    return {c.task.rpartition(":")[2]: c for c in curves.controls_of(curve)} | {c.condition: c for c in curves.baselines_of(curve)}


def _overview(result: StudyResult) -> Drawing:
    own = result.attributes
    return Drawing(
        result.figure(),
        "advantage over every baseline, curves by layers",
        f"{own['family']}. Detected: the lower bound exceeds {own['margin']:g} for every baseline. Absent: the upper bound for some "
        f"baseline lies below {own['equivalence_margin']:g}.",
        sources=[_source("layers", "all")],
    )


def _family_blocks(result: StudyResult) -> list[Block]:
    over_all = result.claims[result.claims["baseline"] == "all"]
    single = result.claims[result.claims["baseline"] != "all"]
    return [
        _overview(result),
        Table(["curve", *_CLAIM], [_claim_cells(row) for _, row in over_all.iterrows()], "Over every baseline", sources=[_source()]),
        Folded(
            "Over each baseline",
            [
                Table(
                    ["curve", "baseline", *_CLAIM],
                    [_claim_cells(row, row["baseline"]) for _, row in single.iterrows()],
                    sources=[_source()],
                )
            ],
        ),
    ]


_CLAIM = ("examples", "detected", "absent", "undecided", "largest advantage", "at layer", "detectable with 80 % power")


def _claim_cells(row: pd.Series[Any], *more: str) -> list[Any]:
    where = str(row["position"]) if row["array"] == "residual" else f"{row['position']} ({row['array']})"
    name = f"{row['task']} at {where}" + (", primary" if row["primary"] else "")
    peak = f"{row['peak']:+.3f} [{row['peak_low']:.3f}, {row['peak_high']:.3f}]".replace("-", "−")
    layers = [str(row[verdict]).removeprefix("layers ").removeprefix("layer ") for verdict in ("detected", "absent", "undecided")]
    shown = ["–" if text == "no layer" else text for text in layers]
    return [name, *more, int(row["examples"]), *shown, peak, int(row["peak_layer"]), float(row["minimum_detectable_effect"])]


def _transfer_blocks(result: StudyResult) -> Iterator[Block]:
    table = result.transfers
    for store in dict.fromkeys(table["store"]):
        mine = table[table["store"] == store]
        layers = sorted(set(mine["layer"]))
        cells = []
        for key, rows in mine.groupby(CURVE, sort=False):
            by_layer = rows.set_index("layer")["value"]
            cells.append([f"{key[0]} at {key[2]}", *(float(by_layer[k]) if k in by_layer else None for k in layers)])
        caption = (
            f"Probes trained on the original images and tested on {store} images, with unchanged labels; chance level "
            f"{mine['chance'].iloc[0]:.3g}. No claim rests on these scores."
        )
        names = ["curve", *(f"layer {k}" for k in layers)]
        yield Table(names, cells, f"{str(mine['metric'].iloc[0]).replace('_', ' ')}: {store}", caption, [_source("transfers")])


def _causal_blocks(result: StudyResult, causal: Sequence[StoredResult]) -> Iterator[Block]:
    for found in causal:
        if result_class(found.kind) is None:
            continue
        loaded = found.result
        yield Prose(loaded.summary())
        if (figure := loaded.figure()) is not None:
            yield Drawing(figure, f"figure of {found.name}", title=found.name, sources=[found.source()])
    plan = parse_plan(result.attributes["plan"])
    if plan.causal is not None and not causal:
        yield Missing("The plan has interventions without results in the folder yet; run them with", _intervene(plan, result))


def _intervene(plan: StudyPlan, result: StudyResult) -> str:
    """The command that runs the planned interventions."""
    part = plan.causal
    assert part is not None
    only = next((task.only for task in plan.tasks if task.task == part.task), ())
    options = {
        "task": task_name(part.task, only),
        "positions": ",".join(part.positions),
        "kinds": ",".join(part.kinds),
        "layers": ",".join(map(str, part.layers or ())),
        "factors": ",".join(f"{factor:g}" for factor in part.factors) if "steer" in part.kinds else "",
        "controls": str(part.controls),
        "examples": str(part.examples),
    }
    words = [word for name, value in options.items() if value for word in (f"--{name}", value)]
    return shlex.join(["stratascope", "intervene", str(result.attributes["store"]), "results", *words])


def _deviation_blocks(result: StudyResult) -> list[Block]:
    return [Remark(text) for text in result.deviations] or [Prose("No deviations from the plan.")]


def _plan_blocks(result: StudyResult) -> list[Block]:
    own = result.attributes
    stores = [[name, fingerprint[:16]] for name, fingerprint in own["stores"].items()]
    return [
        Prose(f"SHA-256 of the plan's content (comments and order do not count): {result.digest}"),
        Commands(own["plan"].rstrip().splitlines()),
        Folded("Stores", [Table(["store", "fingerprint"], stores)]),
        Commands(["stratascope study PLAN.toml DIR"], "Reproduce this report"),
    ]
