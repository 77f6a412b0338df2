"""Effects of interventions by layer, with intervals and simultaneous bands."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import NormalDist
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stratascope.stats.bootstrap import Bootstrap
from stratascope.stats.intervals import INTERVALS, band, clustered_wilson
from stratascope.stats.mean_ratio import log_spread, mean_ratio

Floats = NDArray[Any]

SERIES = ["position", "kind", "method", "control", "factor", "source"]
"""Columns of the variants that name a series of layers."""
LEAST_DIFFERENCE = 0.2
"""A pair is used for patching if its logit differences differ by at least this share of their root mean square over all pairs."""


MOST_UNEQUAL = ((64, 1.25), (128, 1.4))
"""(images, spread of the logarithm of sizes, mean over layers): fewer images of more unequal sizes have a lower end of the interval, but no
upper one: the large sizes that a sample lacks have no limit. The layers decide together: those whose own sample lacks them look even."""
FEWEST_PAIRS = 10
"""Pairs below which patching decides nothing, and the restored share has no interval."""


def series(variants: pd.DataFrame) -> Iterator[tuple[dict[str, Any], pd.DataFrame]]:
    """Each series with its variants, by layer and draw; the index is the number of the variant."""
    for names, rows in variants.groupby(SERIES, sort=False, dropna=False):
        yield dict(zip(SERIES, names, strict=True)), rows.sort_values(["layer", "draw"], kind="stable")


def by_layer(rows: pd.DataFrame, values: Floats) -> tuple[NDArray[np.int64], NDArray[np.int64], Floats]:
    """First and last layers of the windows, and (layer, draw, example) values of the rows' variants."""
    layers = rows["layer"].to_numpy(np.int64)
    first = np.unique(layers)
    draws = len(rows) // len(first)
    last = rows["last"].to_numpy(np.int64)[::draws]
    return first, last, values[rows.index.to_numpy()].reshape(len(first), draws, -1)


def effect_table(
    variants: pd.DataFrame,
    arrays: dict[str, Floats],
    difference: Floats,
    bootstrap: Bootstrap,
    sources: dict[str, Floats],
    *,
    level: float,
) -> pd.DataFrame:
    """Effects of every series by layer, averaged over draws.

    Parameters
    ----------
    variants
        As of `InterventionDesign.variants`.
    arrays
        `change`, `flipped`, `collateral`, `divergence` and `others`, (variant, example); NaN where not measured.
    difference
        (example,) difference of the answer logits without an edit.
    bootstrap
        Resamples of images.
    sources
        Name -> (example,) difference of the answer logits of the source.
    level
        Of the intervals.
    """
    tables = []
    for names, rows in series(variants):
        first, last, flipped = by_layer(rows, arrays["flipped"])
        by_example = {name: by_layer(rows, values)[2].mean(1) for name, values in arrays.items() if name != "flipped"}
        size = np.abs(by_layer(rows, arrays["change"])[2]).mean(1)
        table: dict[str, Any] = {**names, "layer": first, "last": last, "examples": np.isfinite(size).sum(1)}
        table |= flip_shares(flipped.mean(1), bootstrap, level=level) | relative("effect", size, difference, bootstrap, level=level)
        table |= {name: known_mean(by_example[name]) for name in ("change", "collateral", "divergence", "others")}
        table |= restored(by_example["change"], difference, sources.get(str(names["source"])), bootstrap, level=level)
        tables.append(pd.DataFrame(table))
    return pd.concat(tables, ignore_index=True)


def flip_shares(values: Floats, bootstrap: Bootstrap, *, level: float) -> dict[str, Floats]:
    """Shares of flipped answers, means of (layer, example) values, with intervals of the measured examples' groups.

    Wilson's interval at each layer, on the effective sample size, and a simultaneous band over layers that is nowhere narrower than
    Wilson's interval with its critical value: around few flipped answers the standard errors of resamples are too small.
    """
    value, draws = known_mean(values), bootstrap.mean_of_known(values).T
    known = np.isfinite(value)
    drawn = draws[:, known]
    drawn = drawn[np.isfinite(drawn).all(1)]  # without the resamples that draw no measured example
    found = {"flipped": value, **{f"flipped_{end}": np.full(len(value), np.nan) for end in INTERVALS}}
    together = level
    if known.any() and len(drawn) > 1:
        groups = min(len(np.unique(bootstrap.groups[np.isfinite(row)])) for row in values[known])
        bands = band(value[known], drawn, level=level, groups=groups, counted=True).within((0, 1))
        together = max(level, 2 * NormalDist().cdf(bands.critical) - 1)
        for end, ends in bands.ends.items():
            found[f"flipped_{end}"][known] = ends
    for layer in np.flatnonzero(known):
        mine = np.isfinite(values[layer])
        low, high = clustered_wilson(values[layer, mine], bootstrap.groups[mine], level)
        if np.isfinite(low):  # of two groups or more
            found["flipped_low"][layer], found["flipped_high"][layer] = low, high
            low, high = clustered_wilson(values[layer, mine], bootstrap.groups[mine], together)
            found["flipped_low_simultaneous"][layer] = np.fmin(found["flipped_low_simultaneous"][layer], low)
            found["flipped_high_simultaneous"][layer] = np.fmax(found["flipped_high_simultaneous"][layer], high)
    return found


def relative(
    name: str, values: Floats, difference: Floats, bootstrap: Bootstrap, *, level: float, sizes: Floats | None = None
) -> dict[str, Floats]:
    """Means of (layer, example) changes in units of the mean size of the logit difference of the same examples, with intervals.

    `sizes` are those of the changes, where `values` are their excess: what a random direction moves too hides how unequal they are.
    """
    bottom = np.broadcast_to(np.abs(difference), values.shape)
    value, error, bands = mean_ratio(values, bottom, bootstrap, level=level)
    unknown = _without_upper_end(values if sizes is None else sizes, bootstrap)
    ends = {end: np.where(unknown & end.startswith("high"), np.nan, found) for end, found in bands.ends.items()}
    return {name: value, f"{name}_error": error, **{f"{name}_{end}": found for end, found in ends.items()}}


def _without_upper_end(sizes: Floats, bootstrap: Bootstrap) -> NDArray[np.bool_]:
    """(layer,) whether images are too few for an upper end, given how unequal the sizes (layer, example) are."""
    known = np.isfinite(sizes)
    member = (bootstrap.groups[:, None] == np.arange(bootstrap.count)).astype(np.float64)
    present = known.astype(np.float64) @ member > 0
    spread, images = log_spread(np.where(known, sizes, 0) @ member, present), present.sum(1)
    middle = float(spread[images > 0].mean()) if (images > 0).any() else float("nan")
    return np.asarray(np.any([(images < most) & (middle > limit) for most, limit in MOST_UNEQUAL], axis=0))


def restored(
    change: Floats, difference: Floats, source: Floats | None, bootstrap: Bootstrap, *, level: float
) -> dict[str, Floats | int | float]:
    """Share of the logit difference that patching moves towards the source: ratio of means with bands, median, and pairs.

    Parameters
    ----------
    change
        (layer, example)
    difference, source
        (example,) difference of the answer logits of target and source; None for other kinds of interventions.
    """
    layers = len(change)
    names = ["restored", "restored_error", *(f"restored_{end}" for end in INTERVALS), "restored_median"]
    found: dict[str, Any] = {name: np.full(layers, np.nan) for name in names}
    found |= {"pairs": 0, "excluded": 0}
    if source is None:
        return found
    gap = source - difference
    paired = np.isfinite(gap) & np.isfinite(change).all(0)
    if not paired.any():
        return found
    least = least_difference(gap[paired])
    kept = paired & (np.abs(gap) >= least) & (gap != 0)
    found |= {"pairs": int(kept.sum()), "excluded": int((paired & ~kept).sum())}
    if not kept.any():
        return found
    # the sign of a pair's gap is that of its direction: towards the source counts as positive
    sign = np.sign(gap)
    top = np.where(kept, change * sign, np.nan)
    bottom = np.broadcast_to(np.where(kept, np.abs(gap), np.nan), top.shape)
    value, error, bands = mean_ratio(top, bottom, bootstrap, level=level)
    found |= {"restored": value, "restored_error": error}
    if kept.sum() >= FEWEST_PAIRS:
        found |= {f"restored_{end}": ends for end, ends in bands.ends.items()}
    found["restored_median"] = np.median((change / np.where(kept, gap, np.nan))[:, kept], axis=1)
    return found


def least_difference(gap: Floats) -> float:
    """Smallest difference of a pair that is used."""
    return LEAST_DIFFERENCE * float(np.sqrt(np.mean(gap**2)))


def known_mean(values: Floats) -> Floats:
    """Mean over the last axis without NaN; NaN where all are."""
    known = np.isfinite(values)
    count = known.sum(-1)
    return np.asarray(np.where(count > 0, np.where(known, values, 0).sum(-1) / np.maximum(count, 1), np.nan))
