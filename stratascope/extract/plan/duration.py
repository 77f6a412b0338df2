"""Estimate the duration of an extraction from timed batches. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LANES = {
    "vision tower": "device",
    "model": "device",
    "gradients": "device",
    "knockouts": "device",
    "vision changes": "device",
    "images": "reading",
    "filling": "filling",
    "writing": "writing",
}
"""Stage -> the lane that does it. A lane does one thing at a time; lanes work in parallel."""

Sample = tuple[float, float]
"""Units of work, and the seconds they took."""


@dataclass(frozen=True)
class Stage:
    """One stage of the work: timed samples, and the total amount."""

    name: str
    """A key of `LANES`."""
    work: float
    """Units of the full extraction: tokens, images or bytes."""
    samples: tuple[Sample, ...]
    threads: int = 1
    """Threads that share the work; samples were timed in one."""

    @property
    def seconds(self) -> float:
        """Seconds of the full extraction at the mean rate of the samples."""
        return self._at(sum(seconds for _, seconds in self.samples) / sum(units for units, _ in self.samples))

    @property
    def fastest(self) -> float:
        """Seconds of the full extraction at the rate of the fastest sample."""
        return self._at(min(seconds / units for units, seconds in self.samples))

    @property
    def slowest(self) -> float:
        """Seconds of the full extraction at the rate of the slowest sample."""
        return self._at(max(seconds / units for units, seconds in self.samples))

    def _at(self, rate: float) -> float:
        return self.work * rate / self.threads


@dataclass(frozen=True)
class ExtractionTiming:
    """Estimated duration, bottlenecks and GPU memory of a full extraction."""

    examples: int
    """Examples of the full extraction."""
    timed_examples: int
    timed_batches: int
    stages: tuple[Stage, ...]
    beginning: float
    """Seconds of what happens once: planning, loading torch and the model, creating the store, checking the first batch."""
    device: str
    """Name of the device."""
    batch_tokens: int
    """Tokens in a forward pass, at most."""
    halvings: int = 0
    """How often `batch_tokens` was halved because memory ran out."""
    peak: int | None = None
    """Peak GPU memory in bytes, including the weights; None on a CPU."""
    features: int = 0
    """Bytes that cached image features may take in addition."""
    memory: int | None = None
    """GPU memory in bytes; None on a CPU."""

    @property
    def low(self) -> float:
        """Seconds if every lane runs at its fastest rate and lanes never wait for each other."""
        lanes: dict[str, float] = {}
        for stage in self.stages:
            lane = LANES[stage.name]
            lanes[lane] = lanes.get(lane, 0.0) + stage.fastest
        return self.beginning + max(lanes.values())

    @property
    def high(self) -> float:
        """Seconds if everything runs at its slowest rate and nothing runs in parallel."""
        return self.beginning + sum(stage.slowest for stage in self.stages)

    @property
    def shares(self) -> Mapping[str, float]:
        """Stage -> its share of all seconds of work, the largest first."""
        seconds: dict[str, float] = {}
        for stage in self.stages:
            seconds[stage.name] = seconds.get(stage.name, 0.0) + stage.seconds
        total = sum(seconds.values())
        return {name: seconds[name] / total for name in sorted(seconds, key=lambda name: -seconds[name])} if total else {}

    def cost(self, price: float) -> tuple[float, float]:
        """Lowest and highest cost at `price` per hour."""
        return self.low / 3600 * price, self.high / 3600 * price

    def record(self, price: float | None = None) -> dict[str, Any]:
        """The estimate as plain values."""
        return {
            "seconds": [self.low, self.high],
            "examples": self.examples,
            "shares": dict(self.shares),
            "device": self.device,
            "batch_tokens": self.batch_tokens,
            "peak_bytes": self.peak,
            "memory_bytes": self.memory,
            "cost": None if price is None else self.cost(price),
        }
