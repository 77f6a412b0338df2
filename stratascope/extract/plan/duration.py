"""How long an extraction will take, made of what a sample of it took (no torch)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

LANES = {
    "vision tower": "device",
    "model": "device",
    "gradients": "device",
    "knockouts": "device",
    "images": "reading",
    "filling": "filling",
    "writing": "writing",
}
"""Kind of work -> what does it. Work of one lane is done one piece after the other; lanes work beside each other."""

Sample = tuple[float, float]
"""Units of work, and the seconds that they took."""


@dataclass(frozen=True)
class Stage:
    """One kind of work, as a sample of it went and as much of it as there is."""

    name: str
    """Of `LANES`."""
    work: float
    """Units in the whole extraction: tokens, images or bytes."""
    samples: tuple[Sample, ...]
    threads: int = 1
    """That share the work; the samples were taken in one."""

    @property
    def seconds(self) -> float:
        """Of the whole extraction, at the samples' mean rate."""
        return self._at(sum(seconds for _, seconds in self.samples) / sum(units for units, _ in self.samples))

    @property
    def fastest(self) -> float:
        """Seconds of the whole extraction, if all of it went as the fastest sample did."""
        return self._at(min(seconds / units for units, seconds in self.samples))

    @property
    def slowest(self) -> float:
        """Seconds of the whole extraction, if all of it went as the slowest sample did."""
        return self._at(max(seconds / units for units, seconds in self.samples))

    def _at(self, rate: float) -> float:
        return self.work * rate / self.threads


@dataclass(frozen=True)
class ExtractionTiming:
    """What a timing run found: how long a whole extraction takes, what it waits for, and the memory that it needs."""

    examples: int
    """Of the whole extraction."""
    timed_examples: int
    timed_batches: int
    stages: tuple[Stage, ...]
    beginning: float
    """Seconds before the first block is worked on, and of what is done once: planning, loading torch and the model, making the store,
    comparing the first batch with the model."""
    device: str
    """In words."""
    batch_tokens: int
    """Tokens in a forward pass, at most."""
    halvings: int = 0
    """How often that had to be halved for lack of memory."""
    peak: int | None = None
    """Bytes of the accelerator's memory that were in use at once, the weights among them; None on a CPU."""
    features: int = 0
    """Bytes that images' features may take beside them."""
    memory: int | None = None
    """Bytes that the accelerator has; None on a CPU."""

    @property
    def low(self) -> float:
        """Seconds, if every lane goes as its fastest sample and none waits for another."""
        lanes: dict[str, float] = {}
        for stage in self.stages:
            lane = LANES[stage.name]
            lanes[lane] = lanes.get(lane, 0.0) + stage.fastest
        return self.beginning + max(lanes.values())

    @property
    def high(self) -> float:
        """Seconds, if everything goes as its slowest sample and nothing is done beside anything else."""
        return self.beginning + sum(stage.slowest for stage in self.stages)

    @property
    def shares(self) -> Mapping[str, float]:
        """Kind of work -> its share of all seconds of work, the largest first."""
        seconds: dict[str, float] = {}
        for stage in self.stages:
            seconds[stage.name] = seconds.get(stage.name, 0.0) + stage.seconds
        total = sum(seconds.values())
        return {name: seconds[name] / total for name in sorted(seconds, key=lambda name: -seconds[name])} if total else {}

    def cost(self, price: float) -> tuple[float, float]:
        """What the range of time costs at `price` an hour."""
        return self.low / 3600 * price, self.high / 3600 * price
