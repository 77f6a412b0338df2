"""Simulated activations of correlated layers, and the curve's statistics without a store."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.stats import norm

from stratascope.probe.advantage import Advantage
from stratascope.probe.bootstrap import Bootstrap
from stratascope.probe.cross_validation import classify
from stratascope.probe.folds import Folds, grouped_folds
from stratascope.probe.metrics import score_layers
from stratascope.probe.out_of_fold import OutOfFold
from stratascope.probe.rows import Rows


class Simulation:
    """Layers of d columns that share most of their noise with the layer below; labels shift column 0 by `shift` from a layer on."""

    def __init__(self, seed: int, *, n: int = 300, d: int = 8, layers: int = 6, shift: float = 0.0, onset: int = 0, same: float = 0.9):
        rng = np.random.default_rng([seed, 11])
        self.groups = np.arange(n) // 2
        self.labels = rng.integers(0, 2, n)
        noise = rng.standard_normal((layers, n, d))
        for layer in range(1, layers):
            noise[layer] = same * noise[layer - 1] + np.sqrt(1 - same**2) * noise[layer]
        self.shift = np.where(np.arange(layers) >= onset, shift, 0.0)
        noise[:, :, 0] += self.shift[:, None] * (2 * self.labels - 1)
        self.x = noise
        self.folds: Folds = grouped_folds(self.groups, self.labels, seed=seed)
        self.bootstrap = Bootstrap(self.groups, draws=400, seed=seed)

    def answers(self, **options: Any) -> list[OutOfFold]:
        """Of every layer."""
        return [classify(Rows(x, self.folds.of), self.labels, self.folds, classes=2, **options)[0] for x in self.x]

    def scores(self, answers: list[OutOfFold], *, widen: bool = True) -> tuple[dict[str, Any], dict[str, Any]]:
        """Values and draws."""
        shares = [np.array([getattr(a, name).mean() for a in answers]) if widen else None for name in ("noise_share", "decision_share")]
        logits = np.stack([a.logits for a in answers])
        return score_layers(logits, self.labels, self.folds.of, 2, self.bootstrap, *shares)

    def truth(self, answer: OutOfFold, layer: int) -> dict[str, float]:
        """Expected scores of the fold models on fresh examples, exactly: a linear score of normal columns."""
        auroc, accuracy = [], []
        for weight, bias in zip(answer.fold_directions[:, 0], answer.fold_intercepts[:, 0], strict=True):
            size = max(float(np.linalg.norm(weight)), 1e-12)
            mean = float(self.shift[layer] * weight[0])
            auroc.append(norm.cdf(np.sqrt(2) * mean / size))
            accuracy.append((norm.cdf((mean + bias) / size) + norm.cdf((mean - bias) / size)) / 2)
        return {"auroc": float(np.mean(auroc)), "accuracy": float(np.mean(accuracy))}

    def advantage(self, answers: list[OutOfFold]) -> Advantage:
        """AUROC over chance."""
        values, draws = self.scores(answers)
        layers = np.arange(len(answers))
        return Advantage.of(layers, values["auroc"] - 0.5, draws["auroc"] - 0.5, metric="auroc", name="truth", baseline="chance")
