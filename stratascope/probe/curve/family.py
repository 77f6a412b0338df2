"""Claims over a family of curves: one simultaneous band over all curves, baselines and layers of a study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from stratascope.errors import InvalidInputError
from stratascope.probe.curve.advantage import Advantage
from stratascope.probe.curve.claims import detectable_effect
from stratascope.probe.curve.layer_curve import LayerCurve
from stratascope.probe.curve.metrics import advantage_range, width_of
from stratascope.stats.intervals import NO_SPREAD, Band, band

ALL = "all"
"""Name of the rows over every baseline at once."""
VERDICTS = ("detected", "absent", "undecided")


def family_bands(curves: Sequence[LayerCurve], advantages: Sequence[Advantage], *, level: float) -> list[Band]:
    """Simultaneous bands over a family of advantages, their layers included.

    Advantages of the same examples and seed share their resamples, and one max-t band covers them. Those of other examples are not paired
    with them; each set gets a share of the error rate in proportion to its number of comparisons (Bonferroni between sets).

    Parameters
    ----------
    curves
        The curve of each advantage.
    advantages
        In one metric.
    level
        Of the family.

    Returns
    -------
    list of Band
        Of each advantage; their simultaneous ends may lie beyond the range of the metric.

    Raises
    ------
    InvalidInputError
        The advantages are in several metrics.
    """
    metrics = {str(one.table["metric"].iloc[0]) for one in advantages}
    if len(metrics) > 1:
        raise InvalidInputError(f"expected advantages in one metric, found {', '.join(sorted(metrics))}; give the `metric`")
    sets: dict[tuple[object, ...], list[int]] = {}
    for number, curve in enumerate(curves):
        key = (curve.attributes.get("seed"), *curve.examples["id"], *curve.examples["group"])
        sets.setdefault(key, []).append(number)
    total, found = sum(len(one.table) for one in advantages), dict[int, Band]()
    for members in sets.values():
        some = [advantages[k] for k in members]
        count = sum(len(one.table) for one in some)
        groups = curves[members[0]].examples["group"].nunique()
        joint = band(
            np.concatenate([one.table["value"].to_numpy() for one in some]),
            np.concatenate([one.draws for one in some], axis=1),
            level=1 - (1 - level) * count / total,
            **width_of(next(iter(metrics)), groups),
            certain=np.concatenate([one.bands.low_simultaneous == one.bands.high_simultaneous for one in some]),
        )
        ends = np.cumsum([len(one.table) for one in some])
        for number, one, stop in zip(members, some, ends, strict=True):
            part = slice(stop - len(one.table), stop)
            # pointwise intervals are those of the advantage itself
            found[number] = Band(one.bands.low, one.bands.high, joint.low_simultaneous[part], joint.high_simultaneous[part], joint.critical)
    return [found[number] for number in range(len(curves))]


def family_table(
    curves: Sequence[LayerCurve], over: Sequence[Mapping[str, Advantage]], *, level: float, margin: float, equivalence_margin: float
) -> pd.DataFrame:
    """Advantage, band and verdict of every curve, baseline and layer of a family, and over every baseline at once (`all`).

    `detected`: the lower bound of the band exceeds the margin. `absent`: not detected, and the upper bound lies below the equivalence
    margin (two one-sided tests, Schuirmann 1987). Over all baselines the bounds are the smallest of those over each.

    Parameters
    ----------
    curves
        Of the family, without controls.
    over
        Name of a baseline -> advantage, for each curve.
    level, margin, equivalence_margin
        Of the band, of detection and of absence.

    Returns
    -------
    pandas.DataFrame
        One row per curve, baseline and layer: task, array, position, baseline, layer, value, low, high, low_simultaneous,
        high_simultaneous (over the family), minimum_detectable_effect (with 80 % power), verdict.
    """
    flat = [(curve, name, one) for curve, some in zip(curves, over, strict=True) for name, one in some.items() if name != ALL]
    bands = family_bands([curve for curve, _, _ in flat], [one for _, _, one in flat], level=level)
    parts: list[pd.DataFrame] = []
    for (curve, name, one), own in zip(flat, bands, strict=True):
        error, metric = one.draws.std(axis=0), str(one.table["metric"].iloc[0])
        least = margin + detectable_effect(one.table["value"].to_numpy(), one.draws, own, metric, one.attributes)
        ends = own.within(advantage_range(metric, one.attributes.get("chance"))).ends
        parts.append(
            pd.DataFrame(
                {
                    **_key(curve), "baseline": name, "layer": one.table["layer"], "value": one.table["value"], **ends,
                    "minimum_detectable_effect": np.where(error > NO_SPREAD, least, np.nan),
                }
            )
        )  # fmt: skip
    every = pd.concat(parts, ignore_index=True)
    of_curve = list(_key(curves[0]))
    worst = every.groupby([*of_curve, "layer"], sort=False)
    smallest = worst[["value", "low", "high", "low_simultaneous", "high_simultaneous"]].min()
    largest = worst["minimum_detectable_effect"].max()
    joined = smallest.assign(minimum_detectable_effect=largest).reset_index().assign(baseline=ALL)
    table = pd.concat([joined, every], ignore_index=True)[[*of_curve, "baseline", "layer", *INTERVAL_COLUMNS]]
    found, absent = table["low_simultaneous"] > margin, table["high_simultaneous"] < max(margin, equivalence_margin)
    return table.assign(verdict=np.where(found, "detected", np.where(absent, "absent", "undecided")))


INTERVAL_COLUMNS = ("value", "low", "high", "low_simultaneous", "high_simultaneous", "minimum_detectable_effect")


def _key(curve: LayerCurve) -> dict[str, str]:
    return {"task": curve.task, "array": str(curve.attributes.get("array", "residual")), "position": curve.position or ""}
