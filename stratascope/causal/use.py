"""Layers at which an intervention is called used: its effect exceeds that of random directions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import NormalDist
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stratascope.causal.directions import MATCHED
from stratascope.causal.effects import FEWEST_PAIRS, SERIES, by_layer, known_mean, relative, series
from stratascope.stats.bootstrap import Bootstrap
from stratascope.stats.intervals import INTERVALS, POWER, minimum_detectable_effect

Floats = NDArray[Any]


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
    tables = []
    groups = {tuple(names[key] for key in SERIES): rows for names, rows in series(variants)}
    for (position, kind, method, control, factor, source), rows in groups.items():
        if control or (kind == "steer" and factor != control_factor):
            continue
        head = {"position": position, "kind": kind, "method": method, "source": source}
        if kind == "patch":
            own = effects[(effects["kind"] == kind) & (effects["position"] == position) & (effects["source"] == source)]
            low, error = own["restored_low_simultaneous"].to_numpy(), own["restored_error"].to_numpy()
            tables.append(
                pd.DataFrame(
                    {
                        **head,
                        "layer": own["layer"].to_numpy(),
                        "last": own["last"].to_numpy(),
                        "effect": own["restored"].to_numpy(),
                        "control": 0.0,
                        "excess": own["restored"].to_numpy(),
                        "excess_error": error,
                        **{f"excess_{end}": own[f"restored_{end}"].to_numpy() for end in INTERVALS},
                        "score": np.nan,
                        "threshold": np.nan,
                        "minimum_detectable_effect": margin + minimum_detectable_effect(own["restored"].to_numpy() - low, error),
                        "used": (low > margin) & (own["pairs"].to_numpy() >= FEWEST_PAIRS),
                    }
                )
            )
            continue
        first, last, values = by_layer(rows, np.abs(change))
        own_size = values[:, 0]
        if kind == "steer":  # both signs
            other = groups.get((position, kind, method, control, -factor, source))
            own_size = own_size if other is None else (own_size + by_layer(other, np.abs(change))[2][:, 0]) / 2
        drawn_method = control_method(kind, method)
        drawn = [
            by_layer(groups[key], np.abs(change))[2]
            for drawn_kind in MATCHED
            if (key := (position, kind, drawn_method, drawn_kind, factor, source)) in groups
        ]
        matched = np.concatenate(drawn, 1) if drawn else np.full((len(first), 0, values.shape[-1]), np.nan)  # (layer, draw, example)
        baseline = matched.mean(1) if matched.shape[1] else np.zeros_like(own_size)
        given: dict[str, Any] = {"difference": difference, "bootstrap": bootstrap, "level": level}
        excess = relative("excess", own_size - baseline, sizes=own_size, **given)
        effect = relative("effect", own_size, **given)
        control = relative("effect", baseline, **given)["effect"]
        drawn_effects = known_mean(matched)
        score, threshold = above_draws(known_mean(own_size), drawn_effects.T, level=level)
        size = known_mean(np.where(np.isfinite(own_size), np.abs(difference), np.nan))
        spread = drawn_effects.std(1) / size if matched.shape[1] else np.zeros(len(first))
        reach = np.full(len(first), math.inf) if math.isinf(threshold) else threshold * spread
        least = least_excess(effect, excess, control, reach, margin)
        tables.append(
            pd.DataFrame(
                {
                    **head,
                    "layer": first,
                    "last": last,
                    "effect": effect["effect"],
                    "control": control if matched.shape[1] else np.nan,
                    **excess,
                    "score": score,
                    "threshold": threshold,
                    "minimum_detectable_effect": least,
                    "used": (score > threshold) & (excess["excess_low_simultaneous"] > margin),
                }
            )
        )
    return pd.concat(tables, ignore_index=True)


def least_excess(effect: Mapping[str, Floats], excess: Mapping[str, Floats], control: Floats, rank: Floats, margin: float) -> Floats:
    """(layer,) excess that would have been called used with 80 % power by both rules; NaN where none would.

    A larger effect is taken to vary between images in proportion to its size.

    Parameters
    ----------
    effect, excess
        As `relative` returns them.
    control
        (layer,) effect of random directions.
    rank
        (layer,) excess that the rank among random directions needs; infinite where there are too few.
    margin
        That the lower bound of the excess must exceed.
    """
    power = NormalDist().inv_cdf(POWER)
    with np.errstate(divide="ignore", invalid="ignore"):
        varies = effect["effect_error"] / effect["effect"]
        reach = (excess["excess"] - excess["excess_low_simultaneous"]) / excess["excess_error"]

        def solved(needed: Floats | float, errors: Floats | float) -> Floats:
            left = 1 - errors * varies
            return np.where(left > 0, (needed + errors * varies * control) / left, np.nan)

        least = np.maximum(solved(margin, reach + power), solved(rank, power))
    return np.where(np.isfinite(least), least, np.nan)


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
