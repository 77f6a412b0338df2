"""Table of faithfulness: correlation of every method with the knockout effect in every setting, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stratascope.analysis.knockout_targets import kind_of_target
from stratascope.analysis.relevance import Method
from stratascope.errors import TooFewExamplesError
from stratascope.stats.bootstrap import Bootstrap
from stratascope.stats.intervals import Band
from stratascope.stats.mean_ratio import FEWEST_BOUNDED, mean_ratio
from stratascope.stats.rank_correlation import FEWEST_TARGETS, rank_correlations

TARGETS = ("spans", "cells")
MODES = ("later", "final")
"""In this order the leading setting takes the first that the store holds, whatever the results."""
SETTING = ["targets", "mode", "window"]
ROLES = ("method", "baseline", "reference")
LEADING_TEXTS = "targets mode window method label second? second_label? baseline? baseline_label?"
LEADING_NUMBERS = "correlation low high ahead? ahead_low? ahead_high? over_baseline? over_baseline_low? over_baseline_high?"
"""Names in the record of the leading setting; `?` marks those that only some records hold."""

Floats = NDArray[np.float64]


def compare(
    effects: Floats,
    scores: Floats,
    random: Floats,
    methods: Sequence[Method],
    modes: Sequence[str],
    windows: Sequence[str],
    targets: Sequence[str],
) -> tuple[pd.DataFrame, Floats]:
    """Rows of the table and (row, example) correlations.

    Parameters
    ----------
    effects
        (example, mode, window, target) knockout effects; NaN where not measured.
    scores
        (example, method, window, target).
    random
        (draw, example, window, target) random scores, which replace those of the method `random`.
    methods, modes, windows, targets
        Names along the axes; the first window is all blocks.

    Raises
    ------
    TooFewExamplesError
        If there are too few targets of each kind to rank.
    """
    kinds = np.array([kind_of_target(name) for name in targets])
    rows, correlations = [], []
    for kind in (k for k in TARGETS if (kinds == k).sum() >= FEWEST_TARGETS):
        for m, mode in enumerate(modes):
            for w, window in enumerate(windows):
                effect = effects[:, m, w][:, kinds == kind]
                setting = {"targets": kind, "mode": mode, "window": window, "effect_size": _mean_size(effect)}
                for k, method in enumerate(methods):
                    score = scores[:, k, w][:, kinds == kind]
                    about = {"method": method.name, "role": method.role, **_blocks_of(method, window, windows[0])}
                    plain = method.role == "baseline"
                    rows.append({**setting, "effect": "size", **about})
                    if method.name == "random":
                        drawn = np.where(np.isfinite(score), random[:, :, w][..., kinds == kind], np.nan)
                        correlations.append(rank_correlations(drawn, np.abs(effect)).mean(0))
                    else:
                        correlations.append(rank_correlations(score if plain else np.abs(score), np.abs(effect)))
                    if method.signed:
                        # a knockout removes the contribution of the tokens
                        rows.append({**setting, "effect": "signed", **about})
                        correlations.append(rank_correlations(score, -effect))
    if not rows:
        raise TooFewExamplesError(f"expected at least {FEWEST_TARGETS} targets of a kind, found {', '.join(targets)}")
    return pd.DataFrame(rows), np.stack(correlations)


def _blocks_of(method: Method, window: str, whole: str) -> dict[str, str]:
    """Blocks that the scores of a method are of where the knockout is in a window, and its label there."""
    if window == whole or method.blocks == "none":
        return {"blocks": whole if method.blocks != "none" else "", "label": method.label}
    if method.blocks == "all":
        return {"blocks": whole, "label": f"{method.label.removesuffix(', all blocks')}, all blocks"}
    return {"blocks": window, "label": method.label.removesuffix(", few blocks")}


def _mean_size(effects: Floats) -> float:
    known = np.isfinite(effects)
    return float(np.abs(effects[known]).mean()) if known.any() else float("nan")


def with_intervals(rows: pd.DataFrame, correlations: Floats, images: NDArray[Any], level: float, draws: int, seed: int) -> pd.DataFrame:
    """The table: rows of `compare` with means over examples, intervals, and paired differences from the highest method.

    Raises
    ------
    TooFewExamplesError
        If no row of the first window has correlations in `FEWEST_BOUNDED` images.
    """
    known = np.isfinite(correlations)
    rows["examples"] = known.sum(1)
    rows["images"] = counted = np.array([len(np.unique(images[row])) for row in known])
    most = int(counted[rows["window"] == rows["window"].iloc[0]].max())
    if most < FEWEST_BOUNDED:
        raise TooFewExamplesError(f"expected knockout effects in at least {FEWEST_BOUNDED} images, found {most}; measure more examples")
    bootstrap = Bootstrap(images, draws=draws, seed=seed)
    mean, alone = _means(correlations, bootstrap, level)
    rows["correlation"], rows["low"], rows["high"] = mean, alone.low, alone.high
    role = rows["role"].to_numpy()
    together, behind = np.full((2, len(rows)), np.nan), np.full((3, len(rows)), np.nan)
    for _, part in rows.groupby([*SETTING, "effect"], sort=False):
        places = part.index[counted[part.index] >= FEWEST_BOUNDED].to_numpy()
        ranked = places[role[places] != "reference"]
        for family in (ranked, places[role[places] == "reference"]):
            if len(family):
                bands = _means(correlations[family], bootstrap, level)[1]
                together[:, family] = bands.low_simultaneous, bands.high_simultaneous
        methods = ranked[role[ranked] == "method"]
        if len(methods):
            best = int(np.flatnonzero(ranked == methods[mean[methods].argmax()])[0])
            behind[:, ranked] = _behind(correlations[ranked], best, bootstrap, level)
    rows["low_simultaneous"], rows["high_simultaneous"] = together
    rows["behind"], rows["behind_low"], rows["behind_high"] = behind
    return rows


def _means(values: Floats, bootstrap: Bootstrap, level: float) -> tuple[Floats, Band]:
    """(row,) means over the examples with a value, and their band over rows (bootstrap-t)."""
    mean, _, bands = mean_ratio(values, np.ones_like(values), bootstrap, level=level, bounded=True)
    return mean, bands


def _behind(values: Floats, best: int, bootstrap: Bootstrap, level: float) -> Floats:
    """(3, row) mean difference of the row `best` from each row, with ends that hold at once for all pairs of rows.

    Differences are of the examples with values in both rows.
    """
    first, second = np.triu_indices(len(values), 1)
    found = np.zeros((3, len(values)))
    if len(first):
        mean, bands = _means(values[first] - values[second], bootstrap, level)
        ends = np.stack([mean, bands.low_simultaneous, bands.high_simultaneous])
        found[:, second[first == best]] = ends[:, first == best]
        found[:, first[second == best]] = -ends[[0, 2, 1]][:, second == best]
    return found


def in_order(rows: pd.DataFrame) -> pd.DataFrame:
    """Methods and baselines, highest first, then the reference."""
    place = np.lexsort((-rows["correlation"].fillna(-2).to_numpy(), (rows["role"] == "reference").to_numpy()))
    return rows.iloc[place]


def highest(rows: pd.DataFrame) -> dict[str, Any]:
    """The highest method of a setting, its distance from the next and from the baselines, and the reference."""
    rows = in_order(rows)
    known = rows["low_simultaneous"].notna()
    rows = rows[known] if known.any() else rows  # the others have too few images
    methods, baselines, references = (rows[rows["role"] == role] for role in ROLES)
    if methods.empty:
        methods, baselines = baselines, baselines.iloc[:0]
    best = methods.iloc[0]
    found = {name: best[name] for name in (*SETTING, "effect_size", "method", "label", "correlation")}
    found |= {"low": best["low_simultaneous"], "high": best["high_simultaneous"]}
    for rest, name, prefix in ((methods.iloc[1:], "second", "ahead"), (baselines, "baseline", "over_baseline")):
        other = rest.iloc[0] if len(rest) else None
        found |= {name: "" if other is None else other["method"], f"{name}_label": "" if other is None else other["label"]}
        found |= {f"{prefix}{end}": np.nan if other is None else other[f"behind{end}"] for end in ("", "_low", "_high")}
    reference = references.iloc[0] if len(references) else dict.fromkeys(("correlation", "low", "high"), np.nan)
    return found | {"reference": reference["correlation"], "reference_low": reference["low"], "reference_high": reference["high"]}


def leading_record(table: pd.DataFrame) -> dict[str, Any]:
    """The highest method for the first of `TARGETS` and of `MODES` that the store holds, masked in all blocks."""
    wanted = table[(table["effect"] == "size") & (table["window"] == table["window"].iloc[0]) & table["low_simultaneous"].notna()]
    for name, order in (("targets", TARGETS), ("mode", MODES)):
        wanted = wanted[wanted[name] == min(wanted[name].unique(), key=order.index)]
    found = highest(wanted)
    record: dict[str, Any] = {name.rstrip("?"): str(found[name.rstrip("?")]) for name in LEADING_TEXTS.split()}
    record |= {name.rstrip("?"): float(found[name.rstrip("?")]) for name in LEADING_NUMBERS.split()}
    return {name: value for name, value in record.items() if value == value and value != ""}
