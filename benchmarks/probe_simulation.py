"""What the probes' intervals and claims hold on simulated data whose truth is known exactly.

    python benchmarks/probe_simulation.py --repeats 400      # about ten minutes on one core

Own intervals should cover the expected score of the fitted fold models in 95 % of data sets, beside the bootstrap that takes examples
for independent. Noise should be detected in at most 5 %. For signals that are constant, decay, rise in a step or a ramp, or peak, a layer
is claimed before the signal starts, or absent where it exceeds the equivalence margin, in at most 5 % of data sets, and the interval of the
first layer above that margin holds it in at least 95 %. An effect of the minimum detectable size is detected in about 80 %.
"""

from __future__ import annotations

import argparse
import os
import sys
from itertools import product
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.append(str(Path(__file__).parents[1] / "tests" / "probe"))

import numpy as np
from simulated import Simulation, TypedSimulation, scored_advantage

from stratascope.probe.curve.metrics import width_of
from stratascope.stats.intervals import band

METRICS = ("auroc", "accuracy")
DRAWS = 2000
"""As in studies."""


def coverage(shift: float, repeats: int, *, n: int, d: int) -> dict[str, float]:
    """Share of data sets whose interval covers the truth, with and without widening, and of the paired difference of two layers."""
    hits: dict[str, list[bool]] = {}
    level = []
    for seed in range(repeats):
        simulation = Simulation(seed, n=n, d=d, layers=2, shift=shift, same=0.5, draws=DRAWS)
        simulation.shift[1] *= 1.5
        simulation.x[1, :, 0] += 0.5 * shift * (2 * simulation.labels - 1)
        answers = simulation.answers()
        truth = [simulation.truth(answer, number) for number, answer in enumerate(answers)]
        level.append(truth[0]["auroc"])
        for name, widen in (("", True), (" unwidened", False)):
            values, draws = simulation.scores(answers, widen=widen)
            for metric in METRICS:
                width = width_of(metric, simulation.bootstrap.count)
                found = band(values[metric], draws[metric], **width)
                hits.setdefault(metric + name, []).append(bool(found.low[0] <= truth[0][metric] <= found.high[0]))
                between = values[metric][1:] - values[metric][:1], draws[metric][:, 1:] - draws[metric][:, :1]
                apart = band(*between, **width)
                wanted = truth[1][metric] - truth[0][metric]
                hits.setdefault(f"difference of {metric}{name}", []).append(bool(apart.low[0] <= wanted <= apart.high[0]))
    return {"mean auroc": float(np.mean(level))} | {name: float(np.mean(hit)) for name, hit in hits.items()}


def selectivity_coverage(repeats: int, **options: Any) -> dict[str, tuple[float, float]]:
    """Metric -> share of data sets whose interval covers the expected difference from a control, and deviation of the control's score."""
    found = [TypedSimulation(seed, n=400, draws=DRAWS, method="means", **options).selectivity(METRICS) for seed in range(repeats)]
    shares = {}
    for metric in METRICS:
        covered = [interval.low[0] <= truth <= interval.high[0] for interval, truth, _ in (one[metric] for one in found)]
        shares[metric] = float(np.mean(covered)), float(np.std([one[metric][2] for one in found]))
    return shares


def false_onsets(repeats: int, *, n: int, d: int, layers: int, same: float) -> float:
    """Share of pure-noise data sets in which some layer is named."""
    found = 0
    for seed in range(repeats):
        simulation = Simulation(seed, n=n, d=d, layers=layers, same=same)
        found += simulation.advantage(simulation.answers()).onset.layer is not None
    return found / repeats


COURSES = {
    "noise": np.zeros(12),
    "constant .61": np.full(12, 0.11),
    "decay to .52": np.concatenate([np.linspace(0.25, 0.02, 8), np.full(4, 0.02)]),
    "decay to .50": np.concatenate([np.linspace(0.25, 0.0, 8), np.zeros(4)]),
    "step to .65": np.repeat([0.0, 0.15], [4, 8]),
    "ramp to .70": np.concatenate([np.zeros(4), np.linspace(0.025, 0.2, 8)]),
    "peak .65": np.repeat([0.0, 0.15, 0.0], [5, 3, 4]),
    "ramp to .56": np.concatenate([[0.0], np.linspace(0.005, 0.06, 11)]),
    "step from .529 to .65": np.repeat([0.029, 0.15], [4, 8]),
}
"""Name -> expected AUROC over chance by layer."""


def claims(name: str, repeats: int, *, n: int, same: float = 0.9) -> dict[str, float]:
    """Shares of data sets with a false or a right claim about a course of `COURSES`."""
    effects = COURSES[name]
    found: dict[str, list[bool]] = {}
    layers: list[tuple[int, int]] = []
    for seed in range(repeats):
        advantage = scored_advantage([seed, n, list(COURSES).index(name)], effects, n=n, same=same)
        claim = advantage.claims
        margin = claim.onset.equivalence_margin or 0.0
        above = np.flatnonzero(effects > margin)
        first, last = (int(above[0]), int(above[-1])) if len(above) else (len(effects), -1)
        low = len(effects) if claim.onset.low is None else claim.onset.low
        high = len(effects) if claim.onset.high is None else claim.onset.high
        possible = np.flatnonzero(claim.bands.high > margin)
        alone = int(possible[0]) if len(possible) else len(effects)
        layers.append((high - low, high - alone))
        held = {
            "false detection": any(effects[layer] <= 0 for layer in claim.detected.layers),
            "false offset": claim.offset.layer is not None and claim.offset.layer <= last,
            "false absence": any(effects[layer] > margin for layer in claim.absent.layers),
            "interval of the first layer": low <= first <= high,
            "the same with a pointwise lower end": alone <= first <= high,
            "detected": bool(claim.detected),
            "offset": claim.offset.layer is not None,
        }
        for key, value in held.items():
            found.setdefault(key, []).append(value)
    wide, narrow = np.mean(layers, axis=0)
    return {key: float(np.mean(values)) for key, values in found.items()} | {"layers": float(wide), "layers, pointwise": float(narrow)}


def power_curve(repeats: int, *, n: int, layers: int = 12) -> dict[float, float]:
    """Expected AUROC of one of the layers, the others noise -> share of data sets in which that layer is detected."""
    found = {}
    for effect in (0.03, 0.05, 0.1, 0.15, 0.2):
        effects = effect * (np.arange(layers) == layers // 2)
        hits = [layers // 2 in scored_advantage([seed, n, 98], effects, n=n).detected.layers for seed in range(repeats)]
        found[0.5 + effect] = float(np.mean(hits))
    return found


def power(repeats: int, *, n: int, layers: int = 12) -> dict[str, float]:
    """Share of data sets in which an effect of the median minimum detectable size of noise is detected at its layer."""
    sizes = [float(np.median(scored_advantage([seed, n], np.zeros(layers), n=n).minimum_detectable_effect)) for seed in range(20)]
    effects = np.zeros(layers)
    effects[layers // 2] = np.median(sizes)
    hits = [layers // 2 in scored_advantage([seed, n, 99], effects, n=n).detected.layers for seed in range(repeats)]
    return {"AUROC": 0.5 + float(np.median(sizes)), "power": float(np.mean(hits))}


def probe_power(repeats: int, *, n: int, d: int) -> dict[str, float]:
    """The same with trained probes: the expected AUROC of the fold models is that size on average."""
    null = [Simulation(seed, n=n, d=d, layers=1, draws=DRAWS) for seed in range(10)]
    size = float(np.median([one.advantage(one.answers()).minimum_detectable_effect[0] for one in null]))
    hits, level = [], []
    shift = 0.05
    for seed in range(repeats):
        simulation = Simulation(seed, n=n, d=d, layers=1, shift=shift, draws=DRAWS)
        answers = simulation.answers()
        level.append(simulation.truth(answers[0], 0)["auroc"] - 0.5)
        hits.append(bool(simulation.advantage(answers).detected))
        shift = max(shift + 0.02 * (1 if level[-1] < size else -1), 0.0)
    near = np.abs(np.array(level) - size) < 0.25 * size
    return {"AUROC": 0.5 + size, "mean AUROC": 0.5 + float(np.mean(np.array(level)[near])), "power": float(np.mean(np.array(hits)[near]))}


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=400)
    parser.add_argument("--claims", action="store_true", help="only the claims about layers")
    parser.add_argument("--selectivity", action="store_true", help="only the differences from controls")
    given = parser.parse_args()
    repeats = given.repeats
    if given.selectivity:
        print_selectivity(repeats)
        return
    if not given.claims:
        print_intervals(repeats)
    print_claims(repeats)


def print_intervals(repeats: int) -> None:
    """Coverage of intervals, and detections in noise."""
    for n, d in ((600, 16), (300, 60)):
        for shift in (0.0, 0.1, 0.3, 0.6, 1.0):
            found = coverage(shift, repeats, n=n, d=d)
            print(f"n {n} d {d} shift {shift}: " + ", ".join(f"{name} {value:.3f}" for name, value in found.items()), flush=True)
    print_selectivity(repeats)
    for layers, same in ((8, 0.9), (8, 0.0), (24, 0.97)):
        print(
            f"noise, {layers} layers alike by {same}: onset in {false_onsets(repeats, n=400, d=16, layers=layers, same=same):.3f}",
            flush=True,
        )


def print_selectivity(repeats: int) -> None:
    """Coverage of the difference from a control."""
    for shift, apart in product((0.0, 0.5, 1.0), (0.0, 0.5)):
        found = selectivity_coverage(repeats, shift=shift, apart=apart)
        said = ", ".join(f"{metric} covered in {covered:.3f}" for metric, (covered, _) in found.items())
        print(f"selectivity, shift {shift}, types {apart} apart: {said}", flush=True)
    for count in (1, 20):
        covered, spread = selectivity_coverage(repeats, shuffled=True, control_draws=count, further=0)["auroc"]
        print(f"over shuffled labels, {count} draws: AUROC covered in {covered:.3f}, control scatters by {spread:.3f}", flush=True)


def print_claims(repeats: int) -> None:
    """Claims about layers, and minimum detectable effects; a half and a fifth of the data sets for 3,000 and 10,000, more of noise."""
    for n in (200, 400, 1000, 3000, 10000):
        for name in COURSES:
            share = 1.0 if n <= 1000 else 0.5 if n <= 3000 else 0.2
            share = max(2 * share, 1.0) if name == "noise" else share
            found = claims(name, max(round(repeats * share), 20), n=n)
            print(f"{name}, n {n}: " + ", ".join(f"{key} {value:.3f}" for key, value in found.items()), flush=True)
    for n in (200, 400, 1000, 3000):
        curve = power_curve(repeats, n=n)
        print(f"power, n {n}: " + ", ".join(f"AUROC {auroc:g} {share:.3f}" for auroc, share in curve.items()), flush=True)
    for n in (40, 400, 3000):
        print(f"minimum detectable effect, n {n}:", power(repeats, n=n), flush=True)
    for n, d in ((60, 8), (400, 16)):
        print(f"the same with probes, n {n} d {d}:", probe_power(repeats, n=n, d=d), flush=True)


if __name__ == "__main__":
    main()
