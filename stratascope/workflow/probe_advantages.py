"""What a curve is compared with: the same in what a probe says, keeps and draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from stratascope.workflow.probe_files import shown_metric

if TYPE_CHECKING:
    from stratascope.probe import Advantage, LayerCurve
    from stratascope.workflow.probing import ProbeRequest


def advantages(
    curve: LayerCurve, curves: Sequence[LayerCurve], others: Mapping[str, Sequence[LayerCurve]], request: ProbeRequest
) -> dict[str, Advantage]:
    """The curve above chance, its controls, the embeddings, each baseline; and above the best of all (`all`)."""
    metric = shown_metric(curve, request.metric)
    over: dict[str, Advantage] = {"chance": curve.difference(metric=metric)}
    for other in curves:
        if other.position == curve.position and other.task.startswith(f"{curve.task}:"):
            over[other.task.partition(":")[2]] = curve.difference(other, metric)
    if request.array == "residual" and 0 in curve.layers:
        over["embeddings"] = curve.difference_from_layer(0, metric)
    for name, found in others.items():
        twin = next(other for other in found if (other.task, other.position) == (curve.task, curve.position))
        over[name] = curve.difference(twin, metric)
    if len(over) > 1:
        over["all"] = type(over["chance"]).over_all(list(over.values()))
    return over
