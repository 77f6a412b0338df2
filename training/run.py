"""A resumable training run: settings, model, optimiser, log, and the scenes of each step."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from stratascope.datasets.scene_shapes import KINDS
from stratascope.datasets.scenes import RELATIONS, SIZE, Thing, render, sample_scene
from training.batched_vision import CELLS, BatchedVision, patchify
from training.tiny_model import build_model, build_tokenizer

CELL_PIXELS = SIZE // CELLS


@dataclass(frozen=True)
class Settings:
    """Steps of 64 scenes (vision) or 12 scenes with 8 questions (decoder, joint), and their learning rates."""

    seed: int = 0
    vision_steps: int = 700
    decoder_steps: int = 3000
    joint_steps: int = 4000
    vision_rate: float = 2e-3
    decoder_rate: float = 2e-3
    joint_rate: float = 7e-4
    pool: int = 16000
    """Scenes with cached features for the decoder stage; the other stages use each scene once."""


def cell_of(thing: Thing) -> int:
    return int(thing.y // CELL_PIXELS) * CELLS + int(thing.x // CELL_PIXELS)


def scenes_for(seed: int, stage: int, step: int, count: int) -> tuple[list[list[Thing]], torch.Tensor]:
    """`count` scenes and their patches, (count, 144, 588) uint8; depends only on its arguments, so that runs resume exactly."""
    rng = np.random.default_rng([seed, stage, step])
    scenes = [sample_scene(rng) for _ in range(count)]
    return scenes, torch.from_numpy(patchify(np.stack([render(things, rng) for things in scenes])))


def schedule(step: int, steps: int, warm: int = 60) -> float:
    return min(1.0, (step + 1) / warm) * (0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * step / steps)))


class Run:
    """Model, optimiser and log of a run, saved together, so that an interrupted run continues from its last checkpoint."""

    def __init__(self, out: Path, settings: Settings) -> None:
        self.out, self.settings = out, settings
        self.checkpoint = out / "checkpoint.pt"
        torch.manual_seed(settings.seed)
        self.tokenizer = build_tokenizer()
        self.model = build_model(self.tokenizer)
        self.vision = BatchedVision(self.model.model.visual)
        width = self.model.config.text_config.hidden_size
        self.cell_readouts = nn.ModuleDict(
            {
                "kind": nn.Linear(width, len(KINDS) + 1),
                "outer": nn.Linear(width, len(KINDS) + 1),
                "row": nn.Linear(width, CELLS),
                "column": nn.Linear(width, CELLS),
                "place": nn.Linear(width, 3),
            }
        )
        self.name_readouts = nn.ModuleDict(
            {"row": nn.Linear(width, CELLS), "column": nn.Linear(width, CELLS), "relation": nn.Linear(width, len(RELATIONS))}
        )
        self.stage, self.step, self.cpu = 0, 0, 0.0
        self.log: list[dict[str, object]] = []
        self.optimiser_state: dict[str, object] | None = None
        self._tick = time.process_time()
        if self.checkpoint.exists():
            self._load()

    def _load(self) -> None:
        saved = torch.load(self.checkpoint, weights_only=True)
        if saved["settings"] != asdict(self.settings):
            raise SystemExit(f"{self.checkpoint} was made with {saved['settings']}; use another --out or the same settings")
        self.model.load_state_dict(saved["model"])
        self.cell_readouts.load_state_dict(saved["cell_readouts"])
        self.name_readouts.load_state_dict(saved["name_readouts"])
        self.stage, self.step, self.cpu = saved["stage"], saved["step"], saved["cpu"]
        self.log, self.optimiser_state = saved["log"], saved["optimiser"]

    def save(self, optimiser: torch.optim.Optimizer | None) -> None:
        part = self.checkpoint.with_suffix(".partial")
        torch.save(
            {
                "settings": asdict(self.settings),
                "model": self.model.state_dict(),
                "cell_readouts": self.cell_readouts.state_dict(),
                "name_readouts": self.name_readouts.state_dict(),
                "stage": self.stage,
                "step": self.step,
                "cpu": self.cpu_seconds(),
                "log": self.log,
                "optimiser": optimiser.state_dict() if optimiser else None,
            },
            part,
        )
        part.replace(self.checkpoint)
        (self.out / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in self.log))

    def cpu_seconds(self) -> float:
        now = time.process_time()
        self.cpu, self._tick = self.cpu + now - self._tick, now
        return self.cpu

    def note(self, **figures: object) -> None:
        row = {"stage": self.stage, "step": self.step, "cpu_s": round(self.cpu_seconds()), **figures}
        self.log.append(row)
        print(json.dumps(row), flush=True)

    def steps(self, total: int, optimiser: torch.optim.Optimizer) -> Iterator[int]:
        """Yield the remaining steps; sets the learning rate before each and saves every hundred."""
        if self.optimiser_state is not None:
            optimiser.load_state_dict(self.optimiser_state)
            self.optimiser_state = None
        peaks = [group["initial_lr"] for group in optimiser.param_groups]
        while self.step < total:
            for group, peak in zip(optimiser.param_groups, peaks, strict=True):
                group["lr"] = peak * schedule(self.step, total)
            yield self.step
            self.step += 1
            if self.step % 100 == 0:
                self.save(optimiser)
        self.stage, self.step = self.stage + 1, 0
        self.save(None)


def optimiser_for(groups: list[tuple[list[nn.Parameter], float]], decay: float) -> torch.optim.AdamW:
    split = []
    for parameters, rate in groups:
        for wanted, weight_decay in ((True, decay), (False, 0.0)):
            chosen = [p for p in parameters if (p.ndim > 1) == wanted]
            split.append({"params": chosen, "lr": rate, "initial_lr": rate, "weight_decay": weight_decay})
    return torch.optim.AdamW(split, betas=(0.9, 0.98))
