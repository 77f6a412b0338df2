"""The curves of one probe command, and which of them belong together: the same in what it says, keeps and draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stratascope.workflow.probe_files import shown_metric
from stratascope.workflow.probe_request import ProbeRequest

if TYPE_CHECKING:
    from stratascope.probe import Advantage, LayerCurve


@dataclass(frozen=True, eq=False)
class Probed:
    """Curves of a store with their controls, and those of its baselines."""

    request: ProbeRequest
    own: Sequence[LayerCurve]
    """Of the store itself: a curve for each task, its controls, and position or head."""
    others: Mapping[str, Sequence[LayerCurve]]
    """Name of a baseline -> its curves, which have no controls."""

    @property
    def plain(self) -> list[LayerCurve]:
        """Curves that are no controls."""
        return [curve for curve in self.own if ":" not in curve.task]

    def name_of(self, task: str) -> str:
        """What the curves of a task that was asked for are called: with the choice of examples."""
        from stratascope.probe.study.study_plan import task_name

        return task_name(task, self.request.settings.get("only", ()))

    def of_task(self, task: str) -> list[LayerCurve]:
        """A task's own curves, by position or head."""
        name = self.name_of(task)
        return [curve for curve in self.own if curve.task == name]

    def metric_of(self, curve: LayerCurve) -> str:
        """What a curve is drawn and told by."""
        return shown_metric(curve, self.request.metric)

    def controls_of(self, curve: LayerCurve) -> dict[str, LayerCurve]:
        """Name of a control -> the same probe as a curve's, given labels without meaning."""
        same = [c for c in self.own if c.task.startswith(f"{curve.task}:") and c.position == curve.position]
        return {control.task.partition(":")[2]: control for control in same}

    def baselines_of(self, curve: LayerCurve) -> dict[str, LayerCurve]:
        """Name of a baseline -> the same probe as a curve's, on its store."""
        same = (curve.task, curve.position)
        return {name: next(c for c in found if (c.task, c.position) == same) for name, found in self.others.items()}

    def beside(self, curve: LayerCurve) -> dict[str, LayerCurve]:
        """A curve's controls and baselines by name."""
        return {**self.controls_of(curve), **self.baselines_of(curve)}

    def advantages_of(self, curve: LayerCurve) -> dict[str, Advantage]:
        """The curve above chance, its controls, the embeddings, each baseline; and above the best of all (`all`)."""
        metric = self.metric_of(curve)
        over: dict[str, Advantage] = {"chance": curve.difference(metric=metric)}
        over |= {name: curve.difference(control, metric) for name, control in self.controls_of(curve).items()}
        if self.request.array == "residual" and 0 in curve.layers:
            over["embeddings"] = curve.difference_from_layer(0, metric)
        over |= {name: curve.difference(baseline, metric) for name, baseline in self.baselines_of(curve).items()}
        if len(over) > 1:
            over["all"] = type(over["chance"]).over_all(list(over.values()))
        return over
