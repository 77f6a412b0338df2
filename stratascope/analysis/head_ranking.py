"""The table of heads: ranked by what they carry of the answer, by their look at the boxes and by what a probe reads from them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stratascope.analysis.attribution import LogitAttribution
from stratascope.analysis.head_agreement import AGREEMENT, head_agreement, head_ranking
from stratascope.analysis.overlap import BoxOverlap
from stratascope.errors import InvalidInputError
from stratascope.results.file import ResultFile, load_result, save_result
from stratascope.store import choice_of, choice_text

RESULT_KIND = "head_ranking"
_HEAD = re.compile(r"head (\d+)")


@dataclass(frozen=True)
class HeadRanking:
    """Every head with its scores, and how far the scores agree."""

    table: pd.DataFrame
    """layer, head, one column a score (`attribution`: share of the logit difference's variance that the head carries; `overlap`: lift
    of its attention in both boxes; `probe`: score of a probe on its output), one SCORE_rank each (1 is best), mean_rank; best first."""
    agreement: pd.DataFrame
    """first, second, spearman, low, high, heads, shared_tenth; see `heads.head_agreement`."""
    attributes: dict[str, Any]
    """store, condition, layers, heads, scores (name -> what it is), only."""

    def grid(self, score: str) -> NDArray[np.float64]:
        """(layer, head) one score; InvalidInputError where the table does not hold it."""
        if score not in self.attributes["scores"]:
            raise InvalidInputError(f"expected a score of {', '.join(self.attributes['scores'])}, found {score!r}")
        return np.asarray(self.table.pivot(index="layer", columns="head", values=score).to_numpy(float))

    def save(self, path: Path | str) -> None:
        """Write the result to one file."""
        save_result(path, ResultFile(RESULT_KIND, {"heads": self.table, "agreement": self.agreement}, {}, self.attributes))

    @classmethod
    def load(cls, path: Path | str) -> HeadRanking:
        """What `save` wrote; StoreError for any other file."""
        file = load_result(path, RESULT_KIND)
        return cls(file.tables["heads"], file.tables["agreement"], dict(file.attributes))


def rank_heads(
    attribution: LogitAttribution | None = None, overlap: BoxOverlap | None = None, probe: ResultFile | None = None, *, level: float = 0.95
) -> HeadRanking:
    """Heads ranked by each score that is given, and the scores' agreement.

    Parameters
    ----------
    attribution, overlap
        Of the same store; an overlap by head.
    probe
        A result whose table has a score for each layer and head, such as that of a probe on `head_outputs`.
    level
        Of the intervals.

    Raises
    ------
    InvalidInputError
        If no score is given, they are of different stores, layers or examples (`only`), or the overlap is fused over heads.
    """
    scores: dict[str, NDArray[np.float64]] = {}
    about: dict[str, str] = {}
    facts: dict[str, Any] = {}
    if attribution is not None:
        scores["attribution"], facts = attribution.carried, attribution.attributes
        about["attribution"] = "share of the logit difference's variance"
    if overlap is not None:
        if overlap.attributes["heads"] == [-1]:
            raise InvalidInputError("expected an overlap by head, found one fused over heads; compute it with fused=False")
        if facts and facts["store"] != overlap.attributes["store"]:
            raise InvalidInputError("expected attribution and overlap of the same store, found two; compute both again")
        scores["overlap"], facts = overlap.mean("both"), facts or overlap.attributes
        about["overlap"] = f"{overlap.attributes['measure']} of {overlap.attributes['map']} in both boxes"
    if probe is not None:
        layers = facts["layers"] if facts else None
        settings = probe.attributes.get("settings")
        made_from = probe.attributes.get("fingerprint") or (settings.get("fingerprint") if isinstance(settings, dict) else None)
        if facts and made_from is not None and made_from != facts["store"]:
            raise InvalidInputError("expected a probe of the same store as the other scores, found one of another; probe this store")
        scores["probe"], found = probe_grid(probe, layers)
        facts = facts or {"layers": found, "store": made_from, "condition": None}
        about["probe"] = f"{probe.attributes.get('metric', 'score')} of a probe for {probe.attributes.get('task', 'its task')}"
    if not scores:
        raise InvalidInputError("expected at least one score of heads, found none")
    only = _one_choice([result.attributes for result in (attribution, overlap, probe) if result is not None])
    table = head_ranking(scores, layers=facts["layers"])
    agreement = head_agreement(scores, level=level) if len(scores) > 1 else pd.DataFrame(columns=list(AGREEMENT)).astype(AGREEMENT)
    attributes = {
        "store": facts["store"],
        "condition": facts["condition"],
        "layers": list(facts["layers"]),
        "heads": int(next(iter(scores.values())).shape[1]),
        "scores": about,
        "only": only,
        "level": level,
    }
    return HeadRanking(table, agreement, attributes)


def _one_choice(attributes: Sequence[Mapping[str, Any]]) -> list[str]:
    """Which examples the scores are of."""
    found = [choice_of(own) for own in attributes]
    if any(set(other) != set(found[0]) for other in found):
        named = " and ".join(choice_text(other) or "all examples" for other in dict.fromkeys(found))
        raise InvalidInputError(f"expected scores of the same examples, found those of {named}; make them with the same choice")
    return list(found[0])


def probe_grid(result: ResultFile, layers: Sequence[int] | None = None) -> tuple[NDArray[np.float64], list[int]]:
    """(layer, head) scores of a probe by head, and the numbers of its layers.

    Any table will do that has the columns layer, value and either head or row or position named `head 0`, `head 1`, ...; where it holds
    several metrics, the one that the result's attribute `metric` names.

    Raises
    ------
    InvalidInputError
        If no table is like that, or a layer is missing.
    """
    for table in result.tables.values():
        found = _by_head(table, result.attributes)
        if found is not None:
            grid = found.pivot_table(index="layer", columns="head", values="value")
            missing = [k for k in layers or () if k not in grid.index]
            if missing:
                raise InvalidInputError(
                    f"expected probe scores of blocks {', '.join(map(str, layers or ()))}, found none of {', '.join(map(str, missing))}; "
                    "run `stratascope probe STORE --array head_outputs` without --layers, or move its result elsewhere"
                )
            grid = grid.loc[list(layers)] if layers is not None else grid
            return grid.to_numpy(float), [int(k) for k in grid.index]
    raise InvalidInputError(
        f"expected a probe's scores by head, found a result of kind {result.kind!r} without; make one with `stratascope probe --array "
        "head_outputs`"
    )


def _by_head(table: pd.DataFrame, attributes: Mapping[str, Any]) -> pd.DataFrame | None:
    if not {"layer", "value"} <= set(table.columns):
        return None
    if "metric" in table.columns and attributes.get("metric") in set(table["metric"]):
        table = table[table["metric"] == attributes["metric"]]
    if "head" in table.columns:
        return table
    for column in ("row", "position"):
        if column in table.columns and table[column].astype(str).str.fullmatch(_HEAD.pattern).all():
            return table.assign(head=table[column].astype(str).str.extract(_HEAD.pattern)[0].astype(int))
    return None
