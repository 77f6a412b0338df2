"""What the probes' intervals and onsets hold on simulated data whose truth is known exactly.

    python benchmarks/probe_simulation.py --repeats 400      # about five minutes on one core

Own intervals should cover the expected score of the fitted fold models in 95 % of data sets; noise should have an onset in at
most 5 %; an onset planted at AUROC .75 in 2,000 examples should be found within one layer. The bootstrap that takes examples
for independent is shown beside.
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
from simulated import Simulation, TypedSimulation

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


def selectivity_coverage(repeats: int, *, metric: str, **options: Any) -> tuple[float, float]:
    """Share of data sets whose interval covers the expected difference from a control, and the standard deviation of the control."""
    found = [TypedSimulation(seed, n=400, draws=DRAWS, method="means", **options).selectivity(metric) for seed in range(repeats)]
    covered = np.mean([interval.low[0] <= truth <= interval.high[0] for interval, truth, _ in found])
    return float(covered), float(np.std([control for _, _, control in found]))


def false_onsets(repeats: int, *, n: int, d: int, layers: int, same: float) -> float:
    """Share of pure-noise data sets in which some layer is named."""
    found = 0
    for seed in range(repeats):
        simulation = Simulation(seed, n=n, d=d, layers=layers, same=same)
        found += simulation.advantage(simulation.answers()).onset.layer is not None
    return found / repeats


def planted_onsets(repeats: int) -> dict[str, float]:
    """Onset at layer 4 of 8, AUROC .75, 2,000 examples."""
    events = []
    for seed in range(repeats):
        simulation = Simulation(seed, n=2000, d=16, layers=8, shift=0.478, onset=4, same=0.9)
        events.append(simulation.advantage(simulation.answers()).onset)
    places = np.array([-9 if event.layer is None else event.layer for event in events])
    inside = np.mean([event.low is not None and event.low <= 4 and (event.high or 9) >= 4 for event in events])
    return {"exact": float((places == 4).mean()), "within one": float((abs(places - 4) <= 1).mean()), "in interval": float(inside)}


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=400)
    repeats = parser.parse_args().repeats
    for n, d in ((600, 16), (300, 60)):
        for shift in (0.0, 0.1, 0.3, 0.6, 1.0):
            found = coverage(shift, repeats, n=n, d=d)
            print(f"n {n} d {d} shift {shift}: " + ", ".join(f"{name} {value:.3f}" for name, value in found.items()), flush=True)
    for metric, shift, apart in product(METRICS, (0.0, 0.5, 1.0), (0.0, 0.5)):
        covered, _ = selectivity_coverage(repeats, metric=metric, shift=shift, apart=apart)
        print(f"selectivity in {metric}, shift {shift}, types {apart} apart: covered in {covered:.3f}", flush=True)
    for count in (1, 20):
        covered, spread = selectivity_coverage(repeats, metric="auroc", shuffled=True, control_draws=count, further=0)
        print(f"over shuffled labels, {count} draws: covered in {covered:.3f}, control scatters by {spread:.3f}", flush=True)
    for layers, same in ((8, 0.9), (8, 0.0), (24, 0.97)):
        print(
            f"noise, {layers} layers alike by {same}: onset in {false_onsets(repeats, n=400, d=16, layers=layers, same=same):.3f}",
            flush=True,
        )
    print("planted:", planted_onsets(max(repeats // 4, 20)), flush=True)


if __name__ == "__main__":
    main()
