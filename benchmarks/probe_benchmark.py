"""Probes of one layer: the batched solver beside scikit-learn's lbfgs in a loop, in one run, on one thread.

    python benchmarks/probe_benchmark.py                      # 4,000 x 1,024: about two minutes
    python benchmarks/probe_benchmark.py --full --relations   # VSR's size, 10,972 x 3,584: about a quarter of an hour

scikit-learn fits fold 0 of every labelling and strength, times the number of folds; both see the same standardised float32
columns. It is timed as it comes (tol 1e-4), where it stops short at large strengths, and with --same at the loosest tol of a
ladder at which its objective is within 1e-5 of the batched one (only that fit counts); with --double the ladder goes on with rows in
float64, which alone get there where weights are hardly regularised. CPU seconds of this process. The synthetic layer has heavy tails,
a common mean and six outlier channels.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import sys
import time
import warnings
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
if __name__ == "__main__" and {"OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"} & set(os.environ):
    os.environ.pop("OPENBLAS_CORETYPE", None)
    os.environ.pop("OPENBLAS_L2_SIZE", None)
    # the library reads them when it is loaded, so they have to be gone before this process starts
    os.execv(sys.executable, [sys.executable, *sys.argv])

import numpy as np
from numpy.typing import NDArray

from stratascope.probe.solver.logistic import BatchSolver
from stratascope.probe.solver.standardised_rows import Rows
from stratascope.probe.validation.cross_validation import STRENGTHS, TOLERANCE, classify
from stratascope.probe.validation.folds import grouped_folds

Floats = NDArray[Any]
FOLDS = 5
Rung = tuple[type[np.floating[Any]], float]
LADDER: tuple[Rung, ...] = ((np.float32, 1e-4), (np.float32, 1e-5), (np.float32, 1e-6))
DOUBLE: tuple[Rung, ...] = ((np.float64, 1e-6), (np.float64, 1e-7))
"""Precision of the rows and scikit-learn's tol: the largest entry of the mean loss's gradient."""
SAME = 1e-5


def layer(n: int, d: int, seed: int = 0) -> tuple[Floats, dict[str, NDArray[np.intp]], NDArray[np.intp]]:
    """Rows (n, d), labellings and groups."""
    rng = np.random.default_rng(seed)
    spectrum = np.arange(1, d + 1) ** -0.5
    hidden = rng.standard_normal((n, d)).astype(np.float32)
    turn = np.linalg.qr(rng.standard_normal((d, d)).astype(np.float32))[0]
    x = (hidden * spectrum.astype(np.float32)) @ turn
    x *= np.exp(0.3 * rng.standard_normal(d)).astype(np.float32) / x.std()
    x += 3 * rng.standard_normal(d).astype(np.float32)
    x *= (1 + 0.3 * rng.exponential(size=(n, 1))).astype(np.float32)
    x[:, rng.choice(d, 6, replace=False)] *= np.array([1000, 3000, 5000, 1e4, 2000, 800], np.float32)

    def score(outputs: int, sharpness: float) -> Floats:
        found = hidden @ (rng.standard_normal((d, outputs)) * spectrum[:, None])
        return sharpness * found / found.std(axis=0)

    types = rng.integers(0, 66, n)
    labels = {
        "truth": (score(1, 1)[:, 0] + 0.6 * rng.logistic(size=n) > 0).astype(np.intp),
        "control": rng.integers(0, 2, 66)[types],
        "7 categories": (score(7, 2) + rng.gumbel(size=(n, 7))).argmax(axis=1),
        "66 relations": (score(66, 3) + rng.gumbel(size=(n, 66))).argmax(axis=1),
    }
    return x, labels, np.sort(rng.integers(0, int(0.57 * n), n))


def batched(rows: Rows, basis: Any, labels: NDArray[np.intp], classes: int) -> tuple[Floats, float, Floats, BatchSolver, Floats]:
    """CPU seconds by strength, wall seconds, objectives of fold 0 (strength, labelling), solver, largest gap by strength."""
    started, wall = time.process_time(), time.perf_counter()
    training = np.tile(~np.eye(FOLDS, dtype=bool), (len(labels), 1))
    which = np.repeat(np.arange(len(labels)), FOLDS)
    solver = BatchSolver(rows, labels, training, classes=classes, which=which, basis=basis, tolerance=TOLERANCE)
    objectives, gaps, seconds = [], [], []
    for strength in STRENGTHS:
        report = solver.solve(strength)
        objectives.append(report.objective[::FOLDS].copy())
        gaps.append((report.gap / report.objective).max())
        seconds.append(time.process_time() - started)
    return np.diff([0.0, *seconds]), time.perf_counter() - wall, np.array(objectives), solver, np.array(gaps)


def one_by_one(x: Floats, y: NDArray[np.intp], ours: Floats, ladder: tuple[Rung, ...]) -> tuple[Floats, Floats, Floats, Floats]:
    """scikit-learn's CPU seconds and relative excess over our objectives by strength, on standardised training rows of one fold.

    Returns seconds and excess as it comes, seconds and excess at the loosest sufficient tol.
    """
    rows = []
    for strength, objective in zip(STRENGTHS, ours, strict=True):
        tries = []
        for dtype, tol in ladder:
            seconds, found = _fit(x.astype(dtype, copy=False), y, strength, tol)
            tries.append((seconds, (found - objective) / objective))
            told = f"{np.dtype(dtype)}, C {strength:g}, tol {tol:g}: {seconds:.1f} s, {tries[-1][1]:+.1e} above"
            print(f"  scikit-learn, {told}", file=sys.stderr, flush=True)
            if tries[-1][1] <= SAME:
                break
        rows.append((*tries[0], *tries[-1]))
    first, excess, last, remaining = np.array(rows).T
    return first, excess, last, remaining


def _fit(x: Floats, y: NDArray[np.intp], strength: float, tol: float) -> tuple[float, float]:
    from sklearn.linear_model import LogisticRegression

    started = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = LogisticRegression(C=strength, tol=tol, max_iter=10_000).fit(x, y)
    seconds = time.process_time() - started
    z = x.astype(np.float64) @ model.coef_.T.astype(np.float64) + model.intercept_
    z = np.concatenate([np.zeros_like(z), z], axis=1) if z.shape[1] == 1 else z
    top = z.max(axis=1, keepdims=True)
    loss = (np.log(np.exp(z - top).sum(axis=1)) + top[:, 0] - z[np.arange(len(y)), y]).sum()
    return seconds, float(loss + 0.5 * (model.coef_.astype(np.float64) ** 2).sum() / strength)


def probekit(x: Floats, labels: Floats, ours: Floats) -> tuple[float, float]:
    """CPU seconds of probekit's batched fit on one fold for all strengths, and its largest relative excess; labels (labelling, row)."""
    import torch
    from probekit.fitters.batch.logistic import fit_logistic_batch

    torch.set_num_threads(1)
    rows, codes = torch.tensor(x)[None].expand(len(labels), -1, -1), torch.tensor(labels, dtype=torch.float32)
    seconds = excess = 0.0
    for strength, objective in zip(STRENGTHS, ours, strict=True):
        started = time.process_time()
        weight, bias = fit_logistic_batch(rows, codes, c_param=strength, normalize=False).to_tensor()
        seconds += time.process_time() - started
        w = weight.double().numpy()
        z = x.astype(np.float64) @ w.T + bias.double().numpy()
        found = (np.logaddexp(0, z) - labels.T * z).sum(axis=0) + 0.5 * (w**2).sum(axis=1) / strength
        excess = max(excess, float(((found - objective) / objective).max()))
    return seconds, excess


def main() -> None:
    """Run, print a table, and save the figures as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=4_000)
    parser.add_argument("--columns", type=int, default=1_024)
    parser.add_argument("--full", action="store_true", help="VSR's size: 10,972 x 3,584")
    parser.add_argument("--relations", action="store_true", help="66 classes, too")
    parser.add_argument("--only-relations", action="store_true", help="66 classes alone")
    parser.add_argument("--same", action="store_true", help="let scikit-learn go on to the same objective, too")
    parser.add_argument("--double", action="store_true", help="and on float64 rows where float32 does not get there (half an hour more)")
    parser.add_argument("--probekit", action="store_true", help="its batched fit, too (two classes; must be installed)")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    n, d = (10_972, 3_584) if asked.full else (asked.examples, asked.columns)

    x, labels, groups = layer(n, d)
    folds = grouped_folds(groups, labels["truth"], folds=FOLDS)
    started = time.process_time()
    rows = Rows(x, folds.of)
    basis = rows.eigenbasis()
    setup = time.process_time() - started
    train = rows.rows_of(np.arange(FOLDS) != 0)
    moments = rows.moments(np.arange(FOLDS)[None] != 0)
    standard = np.ascontiguousarray((rows.z[train] - moments.mean[0]) / moments.scale[0])
    print(f"{n:,} x {d:,}, {FOLDS} folds x {len(STRENGTHS)} strengths, set-up (standardise, eigenbasis) {setup:.1f} CPU-s", flush=True)

    started = time.process_time()
    nested = classify(rows, np.stack([labels["truth"], labels["control"]]), folds, classes=2, basis=basis)
    study = time.process_time() - started
    print(f"nested truth + control {study:.1f} CPU-s", flush=True)

    ladder = (*LADDER, *DOUBLE) if asked.double else LADDER if asked.same else LADDER[:1]
    batches = [("truth", "control"), ("7 categories",), ("66 relations",)]
    batches = batches[2:] if asked.only_relations else batches[: 3 if asked.relations else 2]
    figures: list[dict[str, Any]] = []
    for names in batches:
        stacked = np.stack([labels[name] for name in names])
        classes = int(stacked.max()) + 1
        by_strength, wall, objectives, solver, gaps = batched(rows, basis, stacked, classes)
        ours = float(by_strength.sum())
        print(f"{' + '.join(names)}: batched {ours:.1f} CPU-s", flush=True)
        found = np.array([one_by_one(standard, labels[n][rows.order][train], objectives[:, k], ladder) for k, n in enumerate(names)])
        default, same = FOLDS * found[:, 0].sum(axis=0), FOLDS * found[:, 2].sum(axis=0)
        above, left = found[:, 1].max(axis=0), found[:, 3].max(axis=0)
        reached = left <= SAME
        row = {
            "labels": " + ".join(names),
            "batched": ours,
            "scikit-learn": float(default.sum()),
            "ratio": float(default.sum()) / ours,
            "strengths at which scikit-learn reaches our objective": [s for s, r in zip(STRENGTHS, reached, strict=True) if r],
            "ratio there": float(same[reached].sum() / by_strength[reached].sum()),
            "batched by strength": by_strength.round(3).tolist(),
            "scikit-learn by strength": default.round(3).tolist(),
            "scikit-learn above ours, relative, by strength": [float(f"{v:.1e}") for v in above],
            "share of products with rows": solver.work.rows_seconds / wall,
            "share of preconditioner": solver.work.basis_seconds / wall,
            "GFLOP/s of products": solver.work.flops / solver.work.rows_seconds / 1e9,
            "largest gap by strength, relative": [float(f"{v:.1e}") for v in gaps],
        }
        if len(ladder) > 1:
            row |= {"scikit-learn going on, by strength": same.round(3).tolist(), "still above": [float(f"{v:.1e}") for v in left]}
        if asked.probekit and classes == 2:
            seconds, above_ours = probekit(standard, stacked[:, rows.order][:, train], objectives)
            row |= {"probekit": FOLDS * seconds, "ratio to probekit": FOLDS * seconds / ours, "probekit above ours": above_ours}
        figures.append(row)
        print(json.dumps(row, indent=1), flush=True)
    # every fit needs the set-up once
    first = [f for f in figures if f["labels"] != "66 relations"]
    layer_ours = setup + sum(f["batched"] for f in first)
    layer_theirs = sum(f["scikit-learn"] for f in first)
    going_on = sum(sum(f.get("scikit-learn going on, by strength", ())) for f in first)
    summary = {
        "size": [n, d],
        "setup": setup,
        "layer batched": layer_ours,
        "layer scikit-learn": layer_theirs,
        "layer ratio": layer_theirs / layer_ours,
        "layer ratio, scikit-learn going on": going_on / layer_ours,
        "nested truth + control": study,
        "chosen strengths": [float(c) for c in nested[0].strength],
        "29 layers, minutes on 2 cores": 29 * (study + setup) / 60 / 2,
        "peak memory, GB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
        "machine": platform.processor() or platform.machine(),
        "blas": _blas(),
    }
    print(json.dumps(summary, indent=1))
    if asked.json:
        asked.json.write_text(json.dumps({"rows": figures, "summary": summary}, indent=1))


def _blas() -> list[str]:
    from threadpoolctl import threadpool_info

    return [
        f"{i['internal_api']} {i['version']} {i.get('architecture')} x{i['num_threads']}"
        for i in threadpool_info()
        if i["user_api"] == "blas"
    ]


if __name__ == "__main__":
    main()
