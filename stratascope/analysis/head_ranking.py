"""Ranking of the heads of a store by logit attribution, overlap with the boxes and a probe on their outputs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stratascope.analysis.attribution import LISTED_HEADS, LogitAttribution, logit_attribution
from stratascope.analysis.head_agreement import AGREEMENT, checked_scores, head_agreement
from stratascope.analysis.overlap import BoxOverlap, attention_overlap
from stratascope.errors import InvalidInputError, NotRecordedError
from stratascope.figures.drawing import new_figure
from stratascope.figures.heatmaps import draw_heads
from stratascope.figures.style import paper_style
from stratascope.results.file import ResultFile
from stratascope.results.locations import ENDING
from stratascope.results.registry import load_result
from stratascope.results.result import CHOICE, Result, new_axes, table_field, titled
from stratascope.results.schema import columns
from stratascope.results.stored_result import StoredResult, other_store
from stratascope.store import choice_of, choice_options, choice_text
from stratascope.store.format.json_schema import each

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from stratascope.store import ActivationStore

_HEAD = re.compile(r"head (\d+)")


class HeadRanking(
    Result,
    kind="head_ranking",
    command="heads",
    schema={
        **each(str | None, "store condition"),
        **each(int, "heads"),
        **each(float, "level"),
        **CHOICE,
        "layers": list[int],
        "scores": dict[str, str],
    },
):
    """Ranking of heads by several scores, and rank correlation of the scores."""

    table: pd.DataFrame = table_field(columns(ints="layer head", floats="mean_rank", grid="layer head"), name="heads")
    """layer, head, one column per score (`attribution`: share of the variance of the logit difference; `overlap`: lift of its attention
    in both boxes; `probe`: score of a probe on its output), one SCORE_rank each (1 is best), mean_rank; best first."""
    agreement: pd.DataFrame = table_field(
        columns(text="first second", ints="heads", floats="spearman low high", shares="shared_tenth", empty=True)
    )
    """first, second, spearman, low, high, heads, shared_tenth; see `head_agreement`."""
    attributes: Mapping[str, Any]
    """store, condition, layers, heads, scores (name -> description), only."""

    def grid(self, score: str) -> NDArray[np.float64]:
        """(layer, head) one score; InvalidInputError for a score that the table lacks."""
        if score not in self.attributes["scores"]:
            raise InvalidInputError(f"expected a score of {', '.join(self.attributes['scores'])}, found {score!r}")
        return np.asarray(self.table.pivot(index="layer", columns="head", values=score).to_numpy(float))

    @property
    def options(self) -> Mapping[str, Any]:
        """Parameters of `rank_heads`; `scores` are the names of the given scores."""
        return {"scores": list(self.attributes["scores"]), "level": self.attributes["level"], "only": self.only}

    def to_frame(self) -> pd.DataFrame:
        """The table."""
        return self.table

    def summary(self) -> str:
        """Best heads with their scores, and rank correlation of the scores."""
        scores = self.attributes["scores"]
        lines = [f"heads by {', '.join(f'{name} ({about})' for name, about in scores.items())}; ranks in parentheses"]
        for row in self.table.head(LISTED_HEADS).to_dict("records"):
            values = ", ".join(f"{name} {row[name]:.3g} ({row[f'{name}_rank']:g})" for name in scores)
            lines.append(f"  block {row['layer']} head {row['head']}: {values}")
        for row in self.agreement.to_dict("records"):
            lines.append(
                f"Spearman correlation of {row['first']} and {row['second']}: {row['spearman']:+.2f} "
                f"[{row['low']:+.2f}, {row['high']:+.2f}] over {row['heads']} heads; {row['shared_tenth']:.0%} of the best tenth in common"
            )
        return "\n".join(lines)

    def plot(self, ax: Axes | None = None, *, score: str = "") -> Axes:
        """Draw one score, head by decoder block.

        Parameters
        ----------
        ax
            Axes to draw on; a new figure's by default.
        score
            One of `attributes["scores"]`; the first by default.
        """
        score = score or next(iter(self.attributes["scores"]))
        return draw_heads(
            self.grid(score),
            self.attributes["layers"],
            new_axes(ax),
            label=self.attributes["scores"][score],
            diverging=score == "attribution",
            title=titled(score, self.only),
        )

    def figure(self, store: ActivationStore | None = None) -> Figure:
        """One heatmap of heads by layer for each score."""
        scores = list(self.attributes["scores"])
        figure, axes = new_figure(len(scores), width=3.1 * len(scores), height=2.7)
        with paper_style():
            for score, ax in zip(scores, axes, strict=True):
                self.plot(ax, score=score)
        return figure


def rank_heads_of(
    store: ActivationStore, probes: str | Path, *, only: Sequence[str] = (), scheduler: str | None = None, progress: bool = False
) -> tuple[HeadRanking, list[str]]:
    """Rank the heads of a store by every available score.

    Parameters
    ----------
    store
        With logit attribution, or boxes and attention rows.
    probes
        Results file of a probe by head, or a folder to search for one.
    only
        COLUMN=VALUE: keep only these examples.
    scheduler
        None or `synchronous`, `threads`, `processes`, or the address of a Dask scheduler.
    progress
        Show a progress bar where stderr is a terminal.

    Returns
    -------
    tuple
        The ranking, and one line per missing score.

    Raises
    ------
    InvalidInputError
        If there is no score, or the probe is of another store.
    """
    path = Path(probes)
    given = load_result(path) if path.is_file() or path.name.endswith(ENDING) else None
    if given is not None and (found := StoredResult(path, given)).fingerprint != store.fingerprint():
        raise other_store(found, store)
    missing = []
    attribution, overlap = None, None
    try:
        attribution = logit_attribution(store, only=only, by_part=False)
    except NotRecordedError as error:
        missing.append(f"no attribution: {error}")
    try:
        overlap = attention_overlap(store, measure="lift", only=only, scheduler=scheduler, progress=progress)
    except NotRecordedError as error:
        missing.append(f"no overlap: {error}")
    result = given or head_probe_in(path, store, only)
    if result is None:
        command = f"stratascope probe STORE --array head_outputs{choice_options(only)}"
        missing.append(f"no probe by head: run `{command}` first, or give its results file")
    if attribution is None and overlap is None and result is None:
        raise InvalidInputError(f"expected at least one score of heads, found none: {'; '.join(missing)}")
    return rank_heads(attribution, overlap, result), missing


def head_probe_in(folder: Path, store: ActivationStore, only: Sequence[str] = ()) -> ResultFile | None:
    """First result in a folder with a probe by head of this store and these examples, or None."""
    for path in sorted(folder.glob(f"*{ENDING}")):
        result = load_result(path)
        about = result.attributes
        own = (about.get("fingerprint"), about.get("store"), about.get("settings", {}).get("fingerprint"))
        if about.get("array") == "head_outputs" and store.fingerprint() in own and set(choice_of(about)) == set(only):
            try:
                probe_grid(result)
            except InvalidInputError:
                continue
            return result
    return None


def head_ranking(scores: Mapping[str, NDArray[Any]], *, layers: Sequence[int] | None = None) -> pd.DataFrame:
    """Rank heads by the mean of their ranks in each score, best first.

    Rank 1 is best; ties share the mean rank.

    Parameters
    ----------
    scores
        Name -> (layer, head), larger is better: overlap with boxes, attribution, probe accuracy, ...
    layers
        Layer numbers; 0, 1, ... by default.

    Returns
    -------
    pandas.DataFrame
        layer, head, one column per score, one `NAME_rank` each, mean_rank. A head with a NaN score has no rank in it.

    Raises
    ------
    InvalidInputError
        If there are no scores, or their shapes differ.
    """
    shape = checked_scores(scores)
    named = list(range(shape[0])) if layers is None else list(layers)
    if len(named) != shape[0]:
        raise InvalidInputError(f"expected {shape[0]} layer numbers, found {len(named)}")
    index = pd.MultiIndex.from_product([named, range(shape[1])], names=["layer", "head"])
    table = pd.DataFrame({name: np.asarray(value, np.float64).ravel() for name, value in scores.items()}, index=index)
    ranks = table.rank(ascending=False).add_suffix("_rank")
    ranks["mean_rank"] = ranks.mean(axis=1)
    return pd.concat([table, ranks], axis=1).sort_values("mean_rank", kind="stable").reset_index()


def rank_heads(
    attribution: LogitAttribution | None = None, overlap: BoxOverlap | None = None, probe: ResultFile | None = None, *, level: float = 0.95
) -> HeadRanking:
    """Rank heads by each given score, and correlate the scores.

    Parameters
    ----------
    attribution, overlap
        Of one store; the overlap by head.
    probe
        A result with a table of scores by layer and head, such as a probe on `head_outputs`.
    level
        Level of the intervals.

    Raises
    ------
    InvalidInputError
        If no score is given, stores, layers or examples (`only`) differ, or the overlap is fused over heads.
    """
    scores: dict[str, NDArray[np.float64]] = {}
    about: dict[str, str] = {}
    facts: Mapping[str, Any] = {}
    if attribution is not None:
        scores["attribution"], facts = attribution.carried, attribution.attributes
        about["attribution"] = "share of the logit difference's variance"
    if overlap is not None:
        if overlap.attributes["heads"] == [-1]:
            raise InvalidInputError("expected an overlap by head, found one fused over heads; compute it with fused=False")
        if facts and facts["store"] != overlap.attributes["store"]:
            raise InvalidInputError("expected attribution and overlap of one store, found two; compute both again")
        scores["overlap"], facts = overlap.mean("both"), facts or overlap.attributes
        about["overlap"] = f"{overlap.attributes['measure']} of {overlap.attributes['map']} in both boxes"
    if probe is not None:
        layers = facts["layers"] if facts else None
        settings = probe.attributes.get("settings")
        made_from = probe.attributes.get("fingerprint") or (settings.get("fingerprint") if isinstance(settings, dict) else None)
        if facts and made_from is not None and made_from != facts["store"]:
            raise InvalidInputError(
                "expected a probe of the same store as the other scores, found a probe of another store; probe this one"
            )
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
    """Selection of examples of all scores."""
    found = [choice_of(own) for own in attributes]
    if any(set(other) != set(found[0]) for other in found):
        named = " and ".join(choice_text(other) or "all examples" for other in dict.fromkeys(found))
        raise InvalidInputError(f"expected scores of the same examples, found those of {named}; compute them with the same selection")
    return list(found[0])


def probe_grid(result: ResultFile, layers: Sequence[int] | None = None) -> tuple[NDArray[np.float64], list[int]]:
    """(layer, head) scores of a probe by head, and its layer numbers.

    The table has the columns layer, value and head, or row or position with the values `head 0`, `head 1`, ...; of several metrics the
    attribute `metric` of the result chooses one.

    Raises
    ------
    InvalidInputError
        If there is no such table, or a layer is missing.
    """
    for table in result.tables.values():
        found = _by_head(table, result.attributes)
        if found is not None:
            grid = found.pivot_table(index="layer", columns="head", values="value")
            missing = [k for k in layers or () if k not in grid.index]
            if missing:
                raise InvalidInputError(
                    f"expected probe scores of blocks {', '.join(map(str, layers or ()))}, found none of {', '.join(map(str, missing))}; "
                    "run `stratascope probe STORE --array head_outputs` for all layers, or move its result elsewhere"
                )
            grid = grid.loc[list(layers)] if layers is not None else grid
            return grid.to_numpy(float), [int(k) for k in grid.index]
    raise InvalidInputError(
        f"expected scores of a probe by head, found a result of kind {result.kind!r}; make one with `stratascope probe STORE --array "
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
