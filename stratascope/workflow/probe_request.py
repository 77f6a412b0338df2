"""What one probe command asks of a store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stratascope.store import ActivationStore

LAYER_LABELS = {
    "residual": "residual stream after k blocks",
    "vision_residual": "vision tower after k blocks",
    "head_outputs": "decoder block",
}
"""What the axis of an array's layers is called."""


@dataclass(frozen=True)
class ProbeRequest:
    """What one command asks of a store."""

    tasks: tuple[str, ...] = ("truth", "relation")
    positions: tuple[str, ...] | None = None
    """All of the array by default."""
    array: str = "residual"
    layers: tuple[int, ...] | None = None
    controls: tuple[str, ...] = ()
    """shuffled, control: added to every task."""
    values: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    """Tasks by example id."""
    baselines: Mapping[str, ActivationStore] = field(default_factory=dict)
    """Name -> store of the same examples."""
    by: str = "relation"
    """Column of the examples by whose values accuracy is taken apart."""
    measures: tuple[str, ...] = ()
    """mdl, calibration: measured besides."""
    transfer_to: tuple[str, ...] = ()
    """Positions, and names of baselines, where probes of each layer are tested, too."""
    transfer: bool = False
    """Whether probes of each layer are tested at all others."""
    metric: str | None = None
    """What is drawn and compared; accuracy, or R2 for values, by default."""
    margin: float = 0.0
    """An advantage has to exceed it."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `ProbeSettings`."""

    @property
    def all_tasks(self) -> tuple[str, ...]:
        """Each task followed by its controls; tasks of values have no control task."""
        found = []
        for task in self.tasks:
            plain = ":" in task
            controls = () if plain else tuple(c for c in self.controls if not (task == "geometry" and c == "control"))
            found += [task, *(f"{task}:{control}" for control in controls)]
        return tuple(dict.fromkeys(found))

    @property
    def layer_label(self) -> str:
        """What the axis of layers is called."""
        return LAYER_LABELS.get(self.array, "layer")
