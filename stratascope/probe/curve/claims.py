"""`LayerClaims`: what a simultaneous band supports, as layers and as one sentence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stratascope.figures.drawing import metric_name
from stratascope.probe.curve.onset_offset import LayerEvent, offset, onset
from stratascope.results.layer_intervals import LayerIntervals
from stratascope.stats.intervals import POWER, Band, auroc_spread, minimum_detectable_effect

Floats = NDArray[Any]


_TURNED = {"at most ": "at least ", "of at least ": "of at most ", "significantly above ": "significantly below "}
_TURNED |= {"first above ": "first below ", "is first above ": "is first below "}
"""Comparisons of a score for which higher is better -> those of the log loss."""


def equivalence_margin_of(metric: str) -> float:
    """The advantage below which a metric counts as equal to the baseline: 0.03, or 0.01 of R2 and of log-loss (nats)."""
    return 0.01 if metric.startswith("r2") or metric == "log_loss" else 0.03


@dataclass(frozen=True, eq=False)
class LayerClaims:
    """Layers in which an advantage is detected, absent or neither; all claims hold together with probability `level`.

    Examples
    --------
    >>> import numpy as np
    >>> from stratascope.probe import Advantage
    >>> value = np.array([0.0, 0.0, 0.3, 0.3])
    >>> draws = value + np.random.default_rng(0).normal(0, 0.004, (500, 4))
    >>> advantage = Advantage.of(np.arange(4), value, draws, metric="auroc", name="truth", baseline="blank")
    >>> advantage.claims.sentence
    'detected in layers 2-3; advantage first above 0.03 at layer 2; still detected in the last layer'
    """

    layers: NDArray[np.integer]
    """(layer,) recorded layers, ascending."""
    value: Floats
    """(layer,)"""
    bands: Band
    detected: LayerIntervals
    """The simultaneous lower bound exceeds the margin."""
    absent: LayerIntervals
    """The simultaneous upper bound lies below the equivalence margin, and the layer is not detected."""
    undecided: LayerIntervals
    """Neither."""
    onset: LayerEvent
    offset: LayerEvent
    minimum_detectable_effect: Floats
    """(layer,) smallest advantage that would have been detected with 80 % power."""
    metric: str
    chance: float | None = None
    """The score of the baseline, if it is a constant."""
    examples: int | None = None
    largest: float | None = None
    """The largest advantage that a score can have over the baseline, where known."""

    @classmethod
    def of(
        cls,
        layers: NDArray[np.integer],
        value: Floats,
        bands: Band,
        detectable: Floats,
        *,
        metric: str,
        margin: float,
        equivalence_margin: float,
        level: float,
        chance: float | None = None,
        examples: int | None = None,
        largest: float | None = None,
    ) -> LayerClaims:
        """From a simultaneous band.

        Parameters
        ----------
        layers, value, bands
            Ascending layers, the advantage and its band.
        detectable
            (layer,) minimum detectable effect over a margin of 0.
        metric, chance, examples, largest
            Name of the score, the constant score of the baseline, the number of examples and the largest possible advantage, for sentences.
        margin
            An advantage must exceed it.
        equivalence_margin
            An advantage below it counts as absent; at least `margin`.
        level
            Of the band.
        """
        given: dict[str, Any] = {"margin": margin, "equivalence_margin": equivalence_margin, "level": level}
        found = bands.low_simultaneous > margin
        absent = ~found & (bands.high_simultaneous < max(margin, equivalence_margin))
        return cls(
            layers,
            value,
            bands,
            LayerIntervals.of(layers, found),
            LayerIntervals.of(layers, absent),
            LayerIntervals.of(layers, ~found & ~absent),
            onset(layers, bands, **given),
            offset(layers, bands, **given),
            margin + detectable,
            metric,
            chance,
            examples,
            largest,
        )

    @property
    def detectable(self) -> float:
        """Largest minimum detectable effect over the layers that are not detected; NaN where all are."""
        rest = ~np.isin(self.layers, self.detected.layers)
        return float(self.minimum_detectable_effect[rest].max()) if rest.any() else float("nan")

    @property
    def sentence(self) -> str:
        """Detected layers, the first layer above the equivalence margin, and what holds after the last one detected."""
        return "; ".join([self.detection, *self._first_above, *self._after])

    @property
    def detection(self) -> str:
        """`detected in layers 4-6`, or `not detected` with the number of examples and the minimum detectable effect."""
        beyond = f" by more than {self.onset.margin:g}" if self.onset.margin else ""
        count = [] if self.examples is None else [f"n = {self.examples:,}"]
        by = ""
        if len(self.layers) == 1:
            low, high = self.bands.low_simultaneous[0], self.bands.high_simultaneous[0]
            by = f", by {self.value[0]:+.3f} [{low:.3f}, {high:.3f}]"
        if self.detected:
            return f"detected{beyond}{by}" if by else f"detected{beyond} in {self.detected}"
        if len(self.absent.layers) == len(self.layers):
            sample = f" ({count[0]})" if count else ""
            return f"not detected{beyond}{by}{sample}; {self.most} in {'this' if by else 'every'} layer"
        limits = "; ".join([*count, f"{self.power} would have been detected with {100 * POWER:.0f} % power"])
        return f"not detected{beyond}{by} ({limits})"

    @property
    def power(self) -> str:
        """The minimum detectable effect as text, or that not even the largest possible advantage would have been detected."""
        largest = self.largest
        if largest is None and self.chance is not None:
            largest = self.chance if self.metric == "log_loss" else 1 - self.chance
        if largest is None or self.detectable <= largest:
            return self.amount(self.detectable, "of at least ")
        return f"not even the best possible {self.amount(largest, 'of ')}"

    @property
    def most(self) -> str:
        """The claim of absence: `AUROC at most 0.53`."""
        return self.amount(self._effect, "at most ")

    @property
    def after(self) -> LayerIntervals:
        """Recorded layers after the last one detected; none where no layer is."""
        rest = self.layers > max(self.detected.layers, default=int(self.layers[-1]))
        return LayerIntervals.of(self.layers, rest)

    def amount(self, effect: float, how: str) -> str:
        """An advantage as text: as a score where the baseline is a constant, such as `AUROC above 0.53`."""
        if self.chance is None:
            return f"advantage {how}{effect:.2g}"
        score = self.chance + effect
        if self.metric == "log_loss":  # lower is better
            score, how = self.chance - effect, _TURNED.get(how, how)
        return f"{metric_name(self.metric)} {how}{score:.2f}"

    @property
    def _effect(self) -> float:
        return float(self.onset.equivalence_margin or 0.0)

    @property
    def _first_above(self) -> list[str]:
        first = int(self.layers[0])
        if not self.detected or len(self.layers) == 1 or (self.onset.low == self.onset.high == first):
            return []
        if self.onset.low is None:
            return [f"{self.most} throughout"]
        if self.onset.high is None:
            return [f"{self.amount(self._effect, 'significantly above ')} in no layer"]
        where = f"in one of {self.onset.span}" if self.onset.low < self.onset.high else f"at {self.onset.span}"
        return [f"{self.amount(self._effect, 'first above ')} {where}"]

    @property
    def _after(self) -> list[str]:
        if not self.detected or len(self.layers) == 1:
            return []
        if self.offset.layer is not None:
            return [f"{self.most} from layer {self.offset.layer} on"]
        if self.offset.decided:
            return ["still detected in the last layer"]
        n = "" if self.examples is None else f" with n = {self.examples:,}"
        return [f"whether it is still decodable in {self.after} cannot be decided{n}"]


def band_text(level: float, family: Mapping[str, Any] | None) -> str:
    """Name of a simultaneous band over layers, or over the curves of a family."""
    return f"{100 * level:g} % simultaneous band over {family['text'] if family else 'layers'}"


def detectable_effect(value: Floats, draws: Floats, bands: Band, metric: str, attributes: Mapping[str, Any]) -> Floats:
    """(layer,) minimum detectable effect; of an AUROC over chance with the standard error that an AUROC of that size has."""
    half, error = value - bands.low_simultaneous, draws.std(axis=0)
    if metric != "auroc" or attributes.get("chance") != 0.5:
        return minimum_detectable_effect(half, error)
    # close to 1 the standard error says little about that at chance: such layers take the largest of the others
    near = (np.abs(value) < 0.4) & (error > 0)
    ratio = np.where(near, 1 / auroc_spread(np.where(near, 0.5 + value, 0.5)), 1.0)
    at_chance = minimum_detectable_effect(half * ratio, error * ratio)
    # the effect that is as large as its own standard error asks for: it falls with the effect, to 0 at an AUROC of 1
    low, high = np.zeros(len(value)), np.full(len(value), 0.5)
    for _ in range(40):
        middle = (low + high) / 2
        enough = middle >= at_chance * auroc_spread(0.5 + middle)
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    return np.where(near, high, high[near].max()) if near.any() else high
