"""Whether an erasure was complete: a linear probe, refitted on other images whose activations are erased, should be at chance."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stratascope.causal.erasure import Erasure, Whitening, mean_projection, one_hot
from stratascope.errors import TooFewExamplesError
from stratascope.stats.auroc import Auroc
from stratascope.stats.intervals import INTERVALS

if TYPE_CHECKING:
    from stratascope.causal.design import InterventionDesign

Floats = NDArray[Any]
MOST_EXAMPLES = 2000
"""Examples of a half, at most: the probe's work grows with their square."""
_PENALTIES = 10.0 ** np.arange(-1, 6)
"""Of ridge regression on standardised activations, chosen on the training examples."""


def refitted_probe(x: Floats, codes: NDArray[np.integer], folds: NDArray[np.integer], method: str) -> Floats:
    """(n,) out-of-fold scores of a linear probe after an erasure fitted on the other half of the folds, ranked from 0 to 1 within a fold.

    Parameters
    ----------
    x
        (n, d) rows.
    codes
        (n,) 0 or 1.
    folds
        (n,) folds that keep images together.
    method
        leace or means.

    Raises
    ------
    TooFewExamplesError
        With fewer than four folds, or folds without one of the classes.
    """
    from scipy.stats import rankdata
    from sklearn.linear_model import RidgeCV

    names = np.unique(folds)
    if len(names) < 4:
        raise TooFewExamplesError(f"expected at least four folds for a refitted probe, found {len(names)}")
    found = np.full(len(x), np.nan)
    for half in (names[::2], names[1::2]):
        mine = np.isin(folds, half)
        if len(np.unique(codes[~mine])) < 2:
            raise TooFewExamplesError("expected both classes in each half of the folds, found one")
        erased = _erasure(x[~mine], codes[~mine], method)(x[mine])
        own, labels = folds[mine], 2.0 * codes[mine] - 1
        scores = np.empty(len(own))
        for fold in half:
            test = own == fold
            centre, scale = erased[~test].mean(0), erased[~test].std(0)
            # what is left of an erased direction is rounding, which must not be scaled up
            scale = np.where(scale > 1e-6 * scale.max(initial=0), scale, np.inf)
            probe = RidgeCV(_PENALTIES).fit((erased[~test] - centre) / scale, labels[~test])
            scores[test] = (rankdata(probe.predict((erased[test] - centre) / scale)) - 0.5) / test.sum()
        found[mine] = scores
    return found


def _erasure(x: Floats, codes: NDArray[np.integer], method: str) -> Erasure:
    if method == "means":
        return mean_projection(x, one_hot(codes))
    whitening = Whitening(x)
    return whitening.erasures([whitening.covariance_with(one_hot(codes))])[0]


def with_refitted_probes(use: pd.DataFrame, design: InterventionDesign, level: float) -> pd.DataFrame:
    """The table `use` with the AUROC of a probe refitted after each erasure of two classes: columns refitted and its intervals.

    NaN for other kinds, for several positions or layers together, and where a layer is constant or folds are too few; without these
    columns where there are none.

    Parameters
    ----------
    use
        As `use_table` returns it.
    design
        The interventions.
    level
        Of the intervals.
    """
    labels = design.labels
    names = ["refitted", *(f"refitted_{end}" for end in INTERVALS)]
    made = use.assign(**dict.fromkeys(names, np.nan))
    if len(labels.classes) != 2:
        return use
    for names_of, rows in use[use["kind"] == "erase"].groupby(["position", "method"], sort=False):
        position, method = map(str, names_of)
        if "+" in position or method not in ("leace", "means") or design.settings.window > 1:
            continue
        places = np.flatnonzero((labels.folds >= 0) & np.asarray(design.store.available("residual", position))[labels.examples])
        places = places[(np.arange(most := min(2 * MOST_EXAMPLES, len(places))) * len(places)) // max(most, 1)]
        codes = (labels.labels[places] == np.unique(labels.labels)[-1]).astype(int)
        scores = {index: _scores(design, position, int(layer), method, places, codes) for index, layer in rows["layer"].items()}
        known = [index for index, values in scores.items() if np.isfinite(values).all()]
        if known:
            try:
                area = Auroc.of(np.stack([scores[index] for index in known], 1), codes == 1, labels.groups[places])
            except TooFewExamplesError:
                continue
            ends = (*area.interval(level), *area.simultaneous(level))
            for name, values in zip(names, (area.value, *ends), strict=True):
                made.loc[known, name] = values
    return made if made["refitted"].notna().any() else use


def _scores(design: InterventionDesign, position: str, layer: int, method: str, places: NDArray[np.intp], codes: Floats) -> Floats:
    """(n,) scores of a layer; NaN where it is constant, or there are too few folds."""
    labels = design.labels
    x = design.store.read("residual", layer=layer, position=position, examples=labels.examples[places]).astype(np.float64)
    if Whitening(x, shrinkage=0).constant:
        return np.full(len(x), np.nan)
    try:
        return refitted_probe(x, codes, labels.folds[places], method)
    except TooFewExamplesError:
        return np.full(len(x), np.nan)


def completeness(use: pd.DataFrame) -> str:
    """What refitted probes say of an erasure, from its rows of `use`; empty where none was refitted."""
    rows = use[use["refitted"].notna()] if "refitted" in use else use[:0]
    if rows.empty:
        return ""
    best = rows.iloc[int(rows["refitted"].to_numpy().argmax())]
    found = f"AUROC {best['refitted']:.2f} [{best['refitted_low_simultaneous']:.2f}, {best['refitted_high_simultaneous']:.2f}]"
    above = rows.loc[rows["refitted_low_simultaneous"] > 0.5, "layer"].tolist()
    if not above:
        return f"a probe refitted after the erasure is not significantly above chance ({found} at layer {int(best['layer'])})"
    listed = f"layer{'s' if len(above) > 1 else ''} {', '.join(map(str, above))}"
    return f"erasure was incomplete: a probe refitted after it is above chance at {listed} ({found} at layer {int(best['layer'])})"
