"""Section of a report on interventions: where a concept is encoded, used, both, or neither."""

from __future__ import annotations

from collections.abc import Sequence

from stratascope.causal import EncodingUse, Intervention
from stratascope.report.blocks import Block, Cited, Drawing, Folded, Missing, Prose, Table
from stratascope.report.result_set import ResultSet
from stratascope.report.task_words import POSITION_WORDS, task_words
from stratascope.results.stored_result import StoredResult

EVIDENCE = {
    "erase": "erasing it changes the answer",
    "reflect": "reflecting it changes the answer",
    "steer": "steering along it changes the answer",
    "patch": "patching the whole residual stream moves the answer to that of the source",
}
"""Kind of intervention -> what use means."""


def causal_sentence(results: ResultSet) -> list[Block]:
    """For the summary: where the first concept is encoded and where it is used; [] without interventions."""
    found = _ordered(results)[:1]
    return [Prose(_words(one, str(one.attributes["positions"][0])), lead=True) for one in found]


def _ordered(results: ResultSet) -> list[StoredResult]:
    """Joins of probes with interventions: truth first, and those with erasure first."""
    return sorted(
        results.of("encoding_use"),
        key=lambda f: (f.attributes["concept"] != "truth", f.attributes["concept"], f.attributes["evidence"] != "erase", f.name),
    )


def _words(found: StoredResult, position: str) -> list[str | Cited]:
    result: EncodingUse = found.result
    concept = task_words(str(found.attributes["concept"]))
    used, unused = result.used(position), result.encoded_only(position)
    source = found.source("tables/table", f"layers used {POSITION_WORDS.get(position, position)}")
    where = POSITION_WORDS.get(position, f"at {position}")
    what = EVIDENCE[str(found.attributes["evidence"])]
    begin = f"{concept[:1].upper()}{concept[1:]} {where} is "
    if not used:
        limits = result.use_limits(position)
        if result.undecided(position):
            return [f"Whether {concept} {where} is used is ", Cited("not decided", -1, source), f" ({limits})."]
        return [begin, Cited("not detected", -1, source), f" as used at any layer ({limits})."]
    text: list[str | Cited] = [begin, "used at ", Cited(str(used), used.layers[0], source), f": there {what}"]
    ending = "" if found.attributes["evidence"] == "patch" else " more than random directions do"
    if not unused:
        return [*text, f"{ending}."]
    other = found.source("tables/table", "layers encoded, not used")
    return [*text, f"{ending}. At ", Cited(str(unused), unused.layers[0], other), " it is encoded, and its use is not detected."]


def causal_blocks(results: ResultSet, store: str) -> list[Block]:
    """Probe scores and effects by layer; heat maps of patching; tables of numbers."""
    joined, run = _ordered(results), results.of("intervention")
    if not joined and not run:
        return [Missing("No interventions yet; run the model again with", f"stratascope intervene {store} RESULTS")]
    blocks: list[Block] = [
        Prose(
            "A probe shows what can be decoded, not what the model uses. Here the model is run again with the concept erased, reflected, "
            "steered or patched at one layer; directions come from other images. Dashed: random directions that vary as the "
            "activations do."
        )
    ]
    for found in joined:
        blocks += _joined(found)
    for found in run:
        result: Intervention = found.result
        figure = result.figure() if result.patch_grids() or not joined else None
        if figure is not None:
            blocks.append(
                Drawing(
                    figure,
                    f"effects of interventions on {found.attributes['concept']} by layer",
                    result.summary(),
                    f"Interventions on {found.attributes['concept']}",
                    [found.source("tables/effects")],
                )
            )
    if not joined:
        blocks.append(Missing("Not joined with the probe yet; do it with", "stratascope causal RESULTS"))
    return blocks


def _joined(found: StoredResult) -> Sequence[Block]:
    result: EncodingUse = found.result
    figure = result.figure()
    assert figure is not None
    concept = str(found.attributes["concept"])
    rows = [
        [row["position"], int(row["layer"]), row["score"], bool(row["encoded"]), bool(row["used"]), row["verdict"]]
        for row in result.table.to_dict("records")
    ]
    return [
        *[Prose(_words(found, str(position))) for position in found.attributes["positions"]],
        Drawing(
            figure,
            f"probe score above, effects of interventions below, by layer, for {concept}",
            "Bands: 95 % simultaneous over layers, bootstrap over images. Squares: layers encoded and used, with a family-wise error of "
            "5 % over layers.",
            f"Encoded and used: {concept}",
            [found.source("tables/table"), found.source("tables/effects")],
        ),
        Folded(
            f"{concept}: table",
            [Table(["position", "layer", "probe score", "encoded", "used", "verdict"], rows, sources=[found.source("tables/table")])],
        ),
    ]
