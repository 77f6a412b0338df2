"""Effects of interventions by layer with simultaneous bands, and the layers at which an effect exceeds its random controls."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stratascope.causal.directions import MATCHED
from stratascope.stats.bootstrap import Bootstrap
from stratascope.stats.intervals import INTERVALS, band

Floats = NDArray[Any]

SERIES = ["position", "kind", "method", "control", "factor", "source"]
"""Columns of the variants that name a series of layers."""
LEAST_DIFFERENCE = 0.2
"""A pair is used for patching if its logit differences differ by at least this share of their root mean square over all pairs."""


FEWEST_PAIRS = 10
"""Pairs below which patching decides nothing."""


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
    scale, tables = float(np.abs(difference).mean()), []
    for names, rows in series(variants):
        first, last, flipped = by_layer(rows, arrays["flipped"])
        by_example = {name: by_layer(rows, values)[2].mean(1) for name, values in arrays.items() if name != "flipped"}
        size = np.abs(by_layer(rows, arrays["change"])[2]).mean(1) / scale
        table: dict[str, Any] = {**names, "layer": first, "last": last, "examples": np.isfinite(size).sum(1)}
        for name, values, counted in (("flipped", flipped.mean(1), True), ("effect", size, False)):
            table |= banded(name, values, bootstrap, level=level, counted=counted)
        table |= {name: _known_mean(by_example[name]) for name in ("change", "collateral", "divergence", "others")}
        table |= restored(by_example["change"], difference, sources.get(str(names["source"])), bootstrap, level=level)
        tables.append(pd.DataFrame(table))
    return pd.concat(tables, ignore_index=True)


def banded(name: str, values: Floats, bootstrap: Bootstrap, *, level: float, counted: bool = False) -> dict[str, Floats]:
    """Means over examples of (layer, example) values, with pointwise intervals and a simultaneous band over layers."""
    value, draws = _known_mean(values), bootstrap.mean_of_known(values).T
    known = np.isfinite(value) & np.isfinite(draws).all(0)
    found = {name: value, **{f"{name}_{end}": np.full(len(value), np.nan) for end in INTERVALS}}
    if known.any():
        bands = band(value[known], draws[:, known], level=level, groups=bootstrap.count if counted else None, counted=counted)
        for end, ends in bands.ends.items():
            found[f"{name}_{end}"][known] = np.clip(ends, 0, 1) if counted else ends
    return found


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
    names = ["restored", *(f"restored_{end}" for end in INTERVALS), "restored_median"]
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
    bottom = np.where(kept, np.abs(gap), np.nan)[None]
    value = _known_mean(top) / _known_mean(bottom)
    draws = (bootstrap.mean_of_known(top) / bootstrap.mean_of_known(bottom)).T
    found["restored"] = value
    if np.isfinite(draws).all():
        found |= {f"restored_{end}": ends for end, ends in band(value, draws, level=level).ends.items()}
    found["restored_median"] = np.median((change / np.where(kept, gap, np.nan))[:, kept], axis=1)
    return found


def least_difference(gap: Floats) -> float:
    """Smallest difference of a pair that is used."""
    return LEAST_DIFFERENCE * float(np.sqrt(np.mean(gap**2)))


def fewest_draws(level: float) -> int:
    """Random draws below which no layer can be called used at a level: 19 at .95."""
    return math.ceil(level / (1 - level) - 1e-9)


def above_draws(own: Floats, draws: Floats, *, level: float) -> tuple[Floats, float]:
    """Standardised effects by layer, and the threshold that random draws exceed at any layer with probability 1 - level.

    Each series of layers, the concept's and every draw's, is standardised by mean and deviation of all others, and its largest value over
    layers is taken. If the concept is exchangeable with the draws, its rank among these is uniform, whatever the number of layers and
    their dependence: the family-wise error is at most 1 - level. A concept that is used raises the deviation of the draws' series only.

    Parameters
    ----------
    own
        (layer,) effect of the concept, mean over examples.
    draws
        (draw, layer) effect of each draw; a draw is the same random concept at all layers.
    level
        1 - family-wise error.

    Returns
    -------
    tuple
        (layer,) standardised effects of the concept, and the threshold; infinite with fewer than `fewest_draws` draws.

    Examples
    --------
    >>> import numpy as np
    >>> draws = np.random.default_rng(0).normal(size=(20, 6))
    >>> own = np.array([0.0, 0.0, 0.0, 0.0, 9.0, 9.0])
    >>> score, threshold = above_draws(own, draws, level=0.95)
    >>> (score > threshold).tolist()
    [False, False, False, False, True, True]
    """
    every = np.concatenate([own[None], draws])
    count = len(every)
    if count <= fewest_draws(level):
        return np.full(len(own), np.nan), math.inf
    total, square = every.sum(0), np.square(every).sum(0)
    mean = (total - every) / (count - 1)
    variance = np.maximum((square - every**2) / (count - 1) - mean**2, 0)
    # layers at which nothing varies, such as the embedding of one token, have no effect
    scale = max(float(np.abs(every).max()), 1e-300)
    score = np.where(variance > (1e-9 * scale) ** 2, (every - mean) / np.sqrt(np.maximum(variance, 1e-300)), 0.0)
    score = np.where((variance <= (1e-9 * scale) ** 2) & (every > mean + 1e-6 * scale), np.inf, score)
    largest = np.sort(score[1:].max(1))
    return score[0], float(largest[min(len(largest), math.ceil(level * count - 1e-9)) - 1])


def use_table(
    variants: pd.DataFrame,
    change: Floats,
    effects: pd.DataFrame,
    difference: Floats,
    bootstrap: Bootstrap,
    *,
    level: float,
    margin: float,
    control_factor: float,
) -> pd.DataFrame:
    """Layers at which each kind of intervention acts more than the matched random directions do.

    The effect is the mean size of the change, in units of the mean size of the logit difference. A layer is used if (a) its effect minus
    the mean of the draws exceeds `margin` by the lower end of the simultaneous band over layers (bootstrap over images), and (b) it
    exceeds the threshold of `above_draws`. Patching has no random directions: its band alone decides.

    Parameters
    ----------
    variants, difference, bootstrap, level
        As of `effect_table`.
    change
        (variant, example)
    effects
        As `effect_table` returns it.
    margin
        Share of the mean logit difference.
    control_factor
        Factor of the random directions of steering.
    """
    scale, tables = float(np.abs(difference).mean()), []
    groups = {tuple(names[key] for key in SERIES): rows for names, rows in series(variants)}
    for (position, kind, method, control, factor, source), rows in groups.items():
        if control or (kind == "steer" and factor != control_factor):
            continue
        head = {"position": position, "kind": kind, "method": method, "source": source}
        if kind == "patch":
            own = effects[(effects["kind"] == kind) & (effects["position"] == position) & (effects["source"] == source)]
            low = own["restored_low_simultaneous"].to_numpy()
            tables.append(
                pd.DataFrame(
                    {
                        **head,
                        "layer": own["layer"].to_numpy(),
                        "last": own["last"].to_numpy(),
                        "effect": own["restored"].to_numpy(),
                        "control": 0.0,
                        "excess": own["restored"].to_numpy(),
                        **{f"excess_{end}": own[f"restored_{end}"].to_numpy() for end in INTERVALS},
                        "score": np.nan,
                        "threshold": np.nan,
                        "used": (low > margin) & (own["pairs"].to_numpy() >= FEWEST_PAIRS),
                    }
                )
            )
            continue
        first, last, values = by_layer(rows, np.abs(change) / scale)
        own_size = values[:, 0]
        if kind == "steer":  # both signs
            other = groups.get((position, kind, method, control, -factor, source))
            own_size = own_size if other is None else (own_size + by_layer(other, np.abs(change) / scale)[2][:, 0]) / 2
        drawn_method = control_method(kind, method)
        drawn = [
            by_layer(groups[key], np.abs(change) / scale)[2]
            for drawn_kind in MATCHED
            if (key := (position, kind, drawn_method, drawn_kind, factor, source)) in groups
        ]
        matched = np.concatenate(drawn, 1) if drawn else np.full((len(first), 0, values.shape[-1]), np.nan)  # (layer, draw, example)
        baseline = matched.mean(1) if matched.shape[1] else np.zeros_like(own_size)
        excess = banded("excess", own_size - baseline, bootstrap, level=level)
        score, threshold = above_draws(_known_mean(own_size), _known_mean(matched).T, level=level)
        tables.append(
            pd.DataFrame(
                {
                    **head,
                    "layer": first,
                    "last": last,
                    "effect": _known_mean(own_size),
                    "control": _known_mean(baseline) if matched.shape[1] else np.nan,
                    **excess,
                    "score": score,
                    "threshold": threshold,
                    "used": (score > threshold) & (excess["excess_low_simultaneous"] > margin),
                }
            )
        )
    return pd.concat(tables, ignore_index=True)


def control_method(kind: str, method: str) -> str:
    """Method of the random directions that a kind is compared with: LEACE with LEACE, every projection with projections."""
    return "projection" if kind == "erase" and method != "leace" else method


def use_events(use: pd.DataFrame) -> pd.DataFrame:
    """One row for each position, kind, method and source: used_onset (first layer used), used_offset (first layer after the last).

    -1 stands for none: no layer is used, or the last layer still is.
    """
    rows = []
    for names, table in use.groupby(["position", "kind", "method", "source"], sort=False):
        layers = table["layer"].to_numpy()[table["used"].to_numpy(bool)]
        later = table["layer"].to_numpy()
        after = later[later > layers.max()] if len(layers) else []
        rows.append((*names, int(layers.min()) if len(layers) else -1, int(after[0]) if len(after) else -1))
    return pd.DataFrame(rows, columns=["position", "kind", "method", "source", "used_onset", "used_offset"])


def _known_mean(values: Floats) -> Floats:
    """Mean over the last axis without NaN; NaN where all are."""
    known = np.isfinite(values)
    count = known.sum(-1)
    return np.asarray(np.where(count > 0, np.where(known, values, 0).sum(-1) / np.maximum(count, 1), np.nan))
