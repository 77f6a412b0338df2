"""Runs of `probe`: which results belong together, and which a later run made out of date."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from stratascope.results.stored_result import StoredResult


def split_earlier(results: Sequence[StoredResult], curves: Iterable[StoredResult]) -> tuple[list[StoredResult], list[StoredResult]]:
    """Results that belong to the run of their curve, and those of an earlier run, whose curve a later run replaced.

    A run of `probe` with other options writes the curve of a task and position anew. Advantages, baselines, controls and tables that
    only the earlier run made are then of other folds, layers or bands.

    Parameters
    ----------
    results
        Of one store and its baselines; only their attributes are read.
    curves
        Those among them that are layer curves of the store itself.
    """
    runs: dict[tuple[str, str], set[object]] = {}
    for curve in curves:
        if curve.kind == "layer_curve" and ":" not in curve.task:
            runs.setdefault((curve.task, curve.position), set()).add(curve.attributes.get("run"))
    of_task: dict[str, set[object]] = {}
    for (task, _), some in runs.items():
        of_task.setdefault(task, set()).update(some)
    current: list[StoredResult] = []
    earlier: list[StoredResult] = []
    for found in results:
        task = found.task.partition(":")[0]
        known = runs.get((task, found.position)) if "position" in found.attributes else of_task.get(task)
        (earlier if known and found.attributes.get("run") not in known else current).append(found)
    return current, earlier


def run_names(curves: Iterable[StoredResult]) -> Mapping[str, list[str]]:
    """Run -> its curves without controls, as `task at position`; "" for curves that no run of the command made."""
    found: dict[str, list[str]] = {}
    for curve in curves:
        if ":" not in curve.task:
            found.setdefault(str(curve.attributes.get("run") or ""), []).append(curve.title)
    return found


def earlier_text(earlier: Sequence[StoredResult]) -> str:
    """A line that names results of earlier runs; empty without any."""
    if not earlier:
        return ""
    count = len(earlier)
    names = ", ".join(found.name for found in earlier[:3]) + (", ..." if count > 3 else "")
    what = "result of an earlier run" if count == 1 else "results of earlier runs"
    return f"{count} {what} of probe with other options ({names})"
