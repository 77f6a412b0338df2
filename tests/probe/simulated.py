"""Simulated activations of correlated layers, and the curve's statistics without a store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import norm

from stratascope.probe.curve.advantage import Advantage
from stratascope.probe.curve.metrics import score_influences, score_layers, width_of
from stratascope.probe.solver.standardised_rows import Rows
from stratascope.probe.study.curve_assembly import label_draw_weights
from stratascope.probe.tasks.controls import control_labels, shuffled_labels
from stratascope.probe.validation.cross_validation import classify
from stratascope.probe.validation.folds import Folds, grouped_folds
from stratascope.probe.validation.out_of_fold import OutOfFold
from stratascope.stats.auroc import Auroc
from stratascope.stats.bootstrap import Bootstrap
from stratascope.stats.intervals import Band, band


class Simulation:
    """Layers of d columns that share most of their noise with the layer below; labels shift column 0 by `shift` from a layer on."""

    def __init__(
        self,
        seed: int,
        *,
        n: int = 300,
        d: int = 8,
        layers: int = 6,
        shift: float = 0.0,
        onset: int = 0,
        same: float = 0.9,
        draws: int = 400,
    ):
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
        self.bootstrap = Bootstrap(self.groups, draws=draws, seed=seed)

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


class TypedSimulation:
    """One layer in which labels shift column 0, and types (of captions, say) the others: what a control task can be learned from.

    Types are drawn at random for each example, and their places are the same in every data set. A control task has `control_draws` draws
    of its labels; `further` draws stand for all that could have been drawn. `options` are
    those of `classify`.
    """

    def __init__(
        self,
        seed: int,
        *,
        n: int = 600,
        d: int = 16,
        types: int = 49,
        shift: float = 0.5,
        apart: float = 0.5,
        draws: int = 400,
        control_draws: int = 20,
        further: int = 60,
        shuffled: bool = False,
        **options: Any,
    ):
        rng = np.random.default_rng([seed, 12])
        groups = np.arange(n) // 2
        self.shift, self.seed, self.control_draws, self.shuffled, self.options = shift, seed, control_draws, shuffled, options
        self.labels, self.types = rng.integers(0, 2, n), rng.integers(0, types, n)
        self.places = apart * np.random.default_rng(0).standard_normal((types, d))
        self.places[:, 0] = 0
        self.x = rng.standard_normal((n, d)) + self.places[self.types]
        self.x[:, 0] += shift * (2 * self.labels - 1)
        self.folds: Folds = grouped_folds(groups, self.labels, seed=seed)
        self.bootstrap = Bootstrap(groups, draws=draws, seed=seed)
        kinds = pd.DataFrame({"relation": self.types // 7, "subject": self.types % 7})
        drawing = {"draws": control_draws + further, "seed": seed}
        self.controls = (
            shuffled_labels(self.labels, self.folds, **drawing)
            if shuffled
            else control_labels(self.labels, kinds, self.folds, types=["relation", "subject"], **drawing)
        )

    def selectivity(self, metrics: Sequence[str] = ("auroc",)) -> dict[str, tuple[Band, float, float]]:
        """Metric -> score minus that of the control with its interval; its exact expectation for fresh examples; score of the control."""
        tasks = np.stack([self.labels, *self.controls])
        answers = classify(Rows(self.x, self.folds.of), tasks, self.folds, classes=2, **self.options)
        scored = []
        for labels, answer in zip(tasks[: 1 + self.control_draws], answers, strict=False):
            share, turned = (float(measured[0]) for measured in answer.shares(0, unknown=1.0))
            scored.append(score_influences(answer.logits, labels, self.folds.of, 2, share, turned))
        resamples, found = self.bootstrap.weights, {}
        weights = label_draw_weights("truth:control", self.control_draws, len(resamples), self.seed)
        others = range(len(tasks) - (len(tasks) - 1 - self.control_draws or self.control_draws), len(tasks))
        for metric in metrics:
            scores, influences = zip(*(one[metric] for one in scored), strict=True)
            influences = [np.bincount(self.bootstrap.groups, influence) for influence in influences]
            control = np.array(scores[1:])
            value = scores[0] - control.mean()
            draws = value + resamples @ (influences[0] - np.mean(influences[1:], axis=0)) - weights @ control
            bands = band(np.array([value]), draws[:, None], **width_of(metric, self.bootstrap.count))
            limit = 0.5 if self.shuffled else np.mean([self._expected(answers[k], metric, tasks[k]) for k in others])
            found[metric] = bands, self._expected(answers[0], metric) - float(limit), float(control.mean())
        return found

    def _expected(self, answer: OutOfFold, metric: str, control: Any = None) -> float:
        """Mean expected score of the fold models, exactly: logits are normal given type and label; both labels are equally likely.

        Of the truth, or of the labels that a control gives to the types.
        """
        shifted = np.array([-1.0, 1.0])[:, None]  # the label that shifts column 0
        of_type = np.zeros(len(self.places), int)
        if control is not None:
            of_type[self.types] = control
        labels = np.broadcast_to([[0], [1]] if control is None else of_type, (2, len(self.places)))
        each = []
        for weight, bias in zip(answer.fold_directions[:, 0].astype(float), answer.fold_intercepts[:, 0], strict=True):
            size = max(float(np.linalg.norm(weight)), 1e-12)
            mean = self.places @ weight + bias + self.shift * weight[0] * shifted
            if metric == "auroc":
                each.append(norm.cdf((mean[labels == 1][:, None] - mean[labels == 0]) / (np.sqrt(2) * size)).mean())
            else:
                each.append(norm.cdf((2 * labels - 1) * mean / size).mean())
        return float(np.mean(each))


def scored_advantage(seed: int | Sequence[int], effects: Sequence[float], *, n: int, same: float = 0.9, draws: int = 1000) -> Advantage:
    """AUROC over chance of normal scores with the expected AUROC .5 + effect in each layer, whose noise is correlated by `same`.

    Two examples a group. No probe is trained, so that many large data sets are cheap: the draws are a multiplier bootstrap of the AUROC's
    influence by group.
    """
    rng = np.random.default_rng([13, *np.atleast_1d(seed)])
    labels = rng.integers(0, 2, n)
    noise = rng.standard_normal((len(effects), n))
    for layer in range(1, len(effects)):
        noise[layer] = same * noise[layer - 1] + np.sqrt(1 - same**2) * noise[layer]
    shift = np.sqrt(2) * norm.ppf(0.5 + np.asarray(effects))
    found = Auroc.of((noise + shift[:, None] * labels).T, labels == 1, np.arange(n) // 2)
    value, facts = found.value - 0.5, {"chance": 0.5, "examples": n}
    spread = rng.standard_normal((draws, len(found.influence))) @ found.influence
    layers = np.arange(len(effects))
    return Advantage.of(layers, value, value + spread, metric="auroc", name="truth", baseline="chance", attributes=facts, groups=n // 2)
