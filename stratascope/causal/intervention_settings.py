"""Settings of interventions, and the variants of a position and window that they ask for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from stratascope.causal.directions import CONTROLS, DEFAULT_CONTROLS
from stratascope.errors import InvalidInputError

KINDS = ("erase", "reflect", "steer", "patch")
"""Kinds of interventions."""
METHODS = ("leace", "means", "pattern", "logistic")
"""What is erased: the concept by LEACE, the span of the class means, the Haufe pattern, or the logistic direction (a contrast)."""
CONTROL_FACTOR = 1.0
"""Random directions are steered along by this many distances of the class means, or by the factor that is nearest to it."""


@dataclass(frozen=True)
class InterventionSettings:
    """Which interventions to run, validated at construction."""

    task: str = "truth"
    """Task of the saved probe results, such as truth, relation or geometry."""
    positions: tuple[str, ...] = ("final",)
    """Positions to change; A+B changes both together."""
    layers: tuple[int, ...] | None = None
    """Residual layers to change, each alone; None: all of the store."""
    window: int = 1
    """Successive layers that are changed together."""
    kinds: tuple[str, ...] = ("erase", "reflect", "steer")
    """Of `KINDS`."""
    methods: tuple[str, ...] = ("leace", "means")
    """What `erase` removes, of `METHODS`."""
    factors: tuple[float, ...] = (0.5, 1.0, 2.0, 5.0)
    """Steering in distances of the class means; each is run with both signs."""
    controls: int = 20
    """Draws of each kind of random direction."""
    control_kinds: tuple[str, ...] = DEFAULT_CONTROLS
    """Kinds of random directions, of `CONTROLS`."""
    examples: int | None = 256
    """Number of evenly spaced examples that are changed; None: all of the task. Directions are fitted on all."""
    seed: int = 0
    """Seed of random directions and shuffled labels."""

    def __post_init__(self) -> None:
        for name, known in (("kinds", KINDS), ("methods", METHODS), ("control_kinds", CONTROLS)):
            for value in getattr(self, name):
                if value not in known:
                    raise InvalidInputError(f"expected `{name}` among {', '.join(known)}, found {value!r}")
        if not self.kinds or not self.positions:
            raise InvalidInputError("expected at least one of `kinds` and of `positions`, found none")
        if any(not factor > 0 for factor in self.factors):
            raise InvalidInputError(f"expected `factors` above 0 (both signs are run), found {', '.join(map(str, self.factors))}")
        for name, least in (("window", 1), ("controls", 0), ("examples", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InvalidInputError(f"expected `{name}` of at least {least}, found {value}")

    @property
    def control_factor(self) -> float:
        """The factor of random directions."""
        return min(self.factors, key=lambda factor: (abs(factor - CONTROL_FACTOR), factor))

    def slots(self, sources: Sequence[str] = ()) -> pd.DataFrame:
        """One row for each variant of a position and window: kind, method, control, factor, draw, source.

        Patches come last. `factor` is signed, 0 for kinds without one; `draw` is -1 and `control` empty for the concept itself.

        Parameters
        ----------
        sources
            Names of the sources of patching.
        """
        rows = []

        def row(kind: str, method: str, control: str = "", factor: float = 0.0, draw: int = -1, source: str = "") -> None:
            rows.append((kind, method, control, factor, draw, source))

        draws = [(control, draw) for control in self.control_kinds for draw in range(self.controls)]
        if "erase" in self.kinds:
            for method in self.methods:
                row("erase", method)
            for control, draw in draws if "leace" in self.methods else ():
                row("erase", "leace", control, 0.0, draw)
            for draw in range(self.controls) if set(self.methods) - {"leace"} else ():
                row("erase", "projection", "covariance", 0.0, draw)
        if "reflect" in self.kinds:
            row("reflect", "means")
            for draw in range(self.controls):
                row("reflect", "means", "covariance", 0.0, draw)
        if "steer" in self.kinds:
            for factor in self.factors:
                row("steer", "means", "", factor)
                row("steer", "means", "", -factor)
            for control, draw in draws:
                row("steer", "means", control, self.control_factor, draw)
        for source in sources:
            row("patch", "source", source=source)
        return pd.DataFrame(rows, columns=["kind", "method", "control", "factor", "draw", "source"])
