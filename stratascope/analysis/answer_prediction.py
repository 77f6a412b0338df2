"""Answer prediction: AUROC of attention on the gold boxes for a right answer, and a box geometry baseline (AdaptVis, figure b)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stratascope.analysis.box_cells import BOXES, box_geometry
from stratascope.analysis.model_answers import answers_right
from stratascope.analysis.overlap import BoxOverlap, known_boxes
from stratascope.errors import InvalidInputError, TooFewExamplesError
from stratascope.figures.predictions import draw_prediction
from stratascope.results.file import ResultFile
from stratascope.results.result import CHOICE, Result, new_axes, table_field
from stratascope.results.schema import columns
from stratascope.stats.auroc import Auroc
from stratascope.stats.intervals import INTERVAL, minimum_detectable_effect
from stratascope.store import ActivationStore
from stratascope.store.format.json_schema import each
from stratascope.store.io.example_identity import image_groups

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FOLDS = 5
LEAST = "minimum_detectable_effect"
FEWEST = 20
"""Minimum number of right and of wrong answers for the baseline."""


class AnswerPrediction(
    Result,
    kind="answer_prediction",
    command="overlap",
    prefix="prediction",
    schema={
        **each(str, "store condition map measure box"),
        **CHOICE,
        **each(int, "examples right images seed"),
        **each(float, "level"),
        "baseline": each(float, "auroc low high"),
    },
):
    """AUROC of each head's overlap with the boxes for a right answer, and of a baseline from the box geometry."""

    table: pd.DataFrame = table_field(
        columns(
            ints="layer head", shares=f"auroc {INTERVAL} undefined", floats="advantage advantage_low advantage_high", grid="layer head"
        ),
        name="auroc",
    )
    """layer, head (-1: fused over heads), auroc, low, high, low_simultaneous, high_simultaneous, undefined (share of examples
    without attention of the head on the image; they count as its mean), advantage (over the baseline, paired), advantage_low,
    advantage_high (simultaneous: report these for the best head), minimum_detectable_effect (advantage, with 80 % power; not in files of
    version 0.1)."""
    baseline: dict[str, float]
    """auroc, low, high of a logistic regression on the box geometry, out of fold, folds grouped by image."""
    attributes: Mapping[str, Any]
    """store, condition, map, measure, only, box, examples, right, images, level, seed."""

    @property
    def best(self) -> pd.Series[Any]:
        """Row with the highest AUROC; its simultaneous interval accounts for the selection."""
        return self.table.iloc[int(self.table["auroc"].to_numpy().argmax())]

    def contents(self) -> ResultFile:
        """What `save` writes."""
        file = super().contents()
        return replace(file, attributes={**file.attributes, "baseline": self.baseline})

    @classmethod
    def from_contents(cls, file: ResultFile) -> AnswerPrediction:
        """The prediction that a file holds."""
        attributes = dict(file.attributes)
        return cls(file.tables["auroc"], attributes.pop("baseline"), attributes)

    @property
    def options(self) -> Mapping[str, Any]:
        """Parameters of `answer_prediction` and of its overlap."""
        return {name: self.attributes[name] for name in ("map", "measure", "box", "level", "seed")} | {"only": self.only}

    @property
    def name_parts(self) -> tuple[str | None, ...]:
        """Weighting unless `attention`, and the selection of examples."""
        return (None if self.attributes["map"] == "attention" else self.attributes["map"], *self.only)

    def to_frame(self) -> pd.DataFrame:
        """The table."""
        return self.table

    def summary(self) -> str:
        """AUROC of the best head and of the box geometry."""
        best, base = self.best, self.baseline
        count = f"n = {self.attributes['examples']:,}, {self.attributes['right']:,} right"
        verdict = f"not significantly above the box geometry ({count}{self._power})"
        if best["advantage_low"] > 0:
            verdict = f"significantly above the box geometry ({count})"
        return (
            f"AUROC for a right answer: block {int(best['layer'])} head {int(best['head'])} {best['auroc']:.3f} "
            f"[{best['low_simultaneous']:.3f}, {best['high_simultaneous']:.3f}] (best of {len(self.table)} heads, simultaneous interval); "
            f"box geometry {base['auroc']:.3f} [{base['low']:.3f}, {base['high']:.3f}]; best head {verdict}"
        )

    @property
    def _power(self) -> str:
        """The advantage of any head that would have been detected, of a file that holds it."""
        if LEAST not in self.table:
            return ""
        least, most = float(self.table[LEAST].max()), 1 - self.baseline["auroc"]
        what = f"an advantage of {least:.2f} of any head" if least <= most else "not even an AUROC of 1 of every head"
        return f"; {what} would have been detected with 80 % power"

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the AUROC of each head by decoder block, and the baseline."""
        return draw_prediction(self.table, self.baseline, new_axes(ax))


def answer_prediction(
    store: ActivationStore, overlap: BoxOverlap, *, box: str = "both", level: float = 0.95, seed: int = 0
) -> AnswerPrediction:
    """AUROC of the overlap for a right answer, by layer and head, with intervals clustered by image.

    The baseline is an L2-regularised logistic regression on `box_geometry` and its squares, out of fold with folds grouped by image.
    Its scores become ranks within each fold, so that folds can be compared.

    Parameters
    ----------
    overlap
        Overlap computed from this store.
    box
        `subject`, `object` or `both`; examples without both boxes are left out (the baseline needs both).
    level
        Level of the intervals.
    seed
        Seed of the folds and the simultaneous intervals.

    Raises
    ------
    InvalidInputError
        If the overlap is of another store, or the box is unknown.
    TooFewExamplesError
        With fewer than 20 right or 20 wrong answers.
    NotRecordedError
        If labels name no choice, or no box is known.
    """
    if overlap.attributes["store"] != store.fingerprint():
        raise InvalidInputError(
            "expected an overlap computed from this store, found one of another store or of fewer blocks; compute it again"
        )
    if box not in BOXES:
        raise InvalidInputError(f"expected a box of {', '.join(BOXES)}, found {box!r}")
    geometry = box_geometry(store)
    known = known_boxes(overlap, box) & np.isfinite(geometry.to_numpy()[overlap.examples]).all(1)
    chosen = overlap.examples[known]
    right = answers_right(store, chosen)
    if min(int(right.sum()), int((~right).sum())) < FEWEST:
        raise TooFewExamplesError(
            f"expected at least {FEWEST} right and {FEWEST} wrong answers with known boxes, found {int(right.sum())} and "
            f"{int((~right).sum())}; use more examples, or harder ones"
        )
    images = image_groups(store.examples).labels[chosen]
    layers, heads = overlap.attributes["layers"], overlap.attributes["heads"]
    scores = overlap.values[known][..., BOXES.index(box)].reshape(len(chosen), -1).astype(np.float64)
    undefined = np.isnan(scores)
    # a head without attention on the image predicts nothing: it gets its mean over the other examples
    means = np.where(undefined, 0, scores).sum(0) / np.maximum((~undefined).sum(0), 1)
    scores = np.where(undefined, means, scores)
    found = Auroc.of(scores, right, images)
    base = Auroc.of(_geometry_scores(geometry.to_numpy()[chosen], right, images, seed)[:, None], right, images)
    ahead = found.minus(base)
    index = pd.MultiIndex.from_product([layers, heads], names=["layer", "head"])
    low_all, high_all = ahead.simultaneous(level, seed=seed)
    table = pd.DataFrame(
        {
            "auroc": found.value,
            **_ends(found, level, seed),
            "undefined": undefined.mean(0),
            "advantage": ahead.value,
            "advantage_low": np.maximum(low_all, -1),
            "advantage_high": np.minimum(high_all, 1),
            LEAST: minimum_detectable_effect(ahead.value - low_all, ahead.error),
        },
        index=index,
    ).reset_index()
    low, high = (float(end[0]) for end in base.interval(level))
    attributes = {name: overlap.attributes[name] for name in ("store", "condition", "map", "measure")}
    attributes["only"] = list(overlap.attributes.get("only", ()))
    counts = {"examples": len(chosen), "right": int(right.sum()), "images": len(set(images)), "level": level, "seed": seed}
    return AnswerPrediction(
        table, {"auroc": float(base.value[0]), "low": max(low, 0.0), "high": min(high, 1.0)}, {**attributes, "box": box, **counts}
    )


def _ends(found: Auroc, level: float, seed: int) -> dict[str, NDArray[np.float64]]:
    pairs = (("low", "high"), ("low_simultaneous", "high_simultaneous"))
    both = (found.interval(level), found.simultaneous(level, seed=seed))
    return {
        name: np.clip(value, 0, 1) for names, values in zip(pairs, both, strict=True) for name, value in zip(names, values, strict=True)
    }


def _geometry_scores(geometry: NDArray[np.float64], right: NDArray[np.bool_], images: NDArray[Any], seed: int) -> NDArray[np.float64]:
    """(example,) rank within its fold, from 0 to 1, of the out-of-fold prediction from the box geometry."""
    from scipy.stats import rankdata
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    # squares express "close to the centre" and "medium size"
    features = np.concatenate([geometry, np.square(geometry - geometry.mean(0))], 1)
    out = np.empty(len(right))
    splits = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed).split(features, right, images)
    for train, test in splits:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000))
        model.fit(features[train], right[train])
        out[test] = (rankdata(model.decision_function(features[test])) - 0.5) / len(test)
    return out
