"""First stage: train the vision tower on objects and their positions, and align its probes with word embeddings."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as functional
from torch import nn

from stratascope.datasets.scene_shapes import KINDS
from stratascope.datasets.scenes import SIZE, Thing
from training.batched_vision import CELLS
from training.run import CELL_PIXELS, Run, cell_of, optimiser_for, scenes_for

OUTER_RADIUS = 24.0
"""Objects with a larger radius contain others; a separate probe names their cells."""


def cell_targets(scenes: list[list[Thing]]) -> dict[str, torch.Tensor]:
    """By cell: kind of the object centred there (last index: none), kind of a large object that covers it, position of the centre."""
    count, none = len(scenes), len(KINDS)
    kind = np.full((count, CELLS**2), none)
    outer = np.full((count, CELLS**2), none)
    place = np.zeros((count, CELLS**2, 3), np.float32)
    centres = (np.stack(np.divmod(np.arange(CELLS**2), CELLS)[::-1], 1) + 0.5) * CELL_PIXELS
    for k, things in enumerate(scenes):
        for thing in sorted(things, key=lambda t: -t.radius):
            cell = cell_of(thing)
            if thing.radius > OUTER_RADIUS:
                outer[k, np.hypot(*(centres - (thing.x, thing.y)).T) < 0.8 * thing.radius] = KINDS.index(thing.kind)
                outer[k, cell] = KINDS.index(thing.kind)
            kind[k, cell] = KINDS.index(thing.kind)
            place[k, cell] = (thing.x / SIZE * 2 - 1, thing.y / SIZE * 2 - 1, thing.radius / 20 - 1)
    return {"kind": torch.from_numpy(kind), "outer": torch.from_numpy(outer), "place": torch.from_numpy(place)}


def vision_loss(run: Run, features: torch.Tensor, target: dict[str, torch.Tensor]) -> torch.Tensor:
    weight = torch.ones(len(KINDS) + 1)
    weight[-1] = 0.15
    held = target["kind"] < len(KINDS)
    rows = torch.arange(CELLS**2).repeat(len(features))
    read = {name: layer(features) for name, layer in run.cell_readouts.items()}
    return (
        functional.cross_entropy(read["kind"].flatten(0, 1), target["kind"].flatten(), weight=weight)
        + functional.cross_entropy(read["outer"].flatten(0, 1), target["outer"].flatten(), weight=weight)
        + 0.5 * functional.cross_entropy(read["row"].flatten(0, 1), rows // CELLS)
        + 0.5 * functional.cross_entropy(read["column"].flatten(0, 1), rows % CELLS)
        + 3.0 * (read["place"][held] - target["place"][held]).pow(2).mean()
    )


@torch.no_grad()
def vision_scores(run: Run) -> dict[str, float]:
    scenes, patches = scenes_for(run.settings.seed, 90, 0, 300)
    features, target = run.vision(patches), cell_targets(scenes)
    held = target["kind"] < len(KINDS)
    kind = run.cell_readouts["kind"](features).argmax(-1)
    outer = run.cell_readouts["outer"](features).argmax(-1)
    covered = target["outer"] < len(KINDS)
    off = (run.cell_readouts["place"](features)[held] - target["place"][held]).abs().mean(0)
    return {
        "cells": round((kind == target["kind"]).float().mean().item(), 4),
        "kind": round((kind == target["kind"])[held].float().mean().item(), 4),
        "outer": round((outer == target["outer"])[covered].float().mean().item(), 4),
        "pixels": round(off[:2].mean().item() * SIZE / 2, 2),
    }


def train_vision(run: Run) -> None:
    parameters = [*run.model.model.visual.parameters(), *run.cell_readouts.parameters()]
    optimiser = optimiser_for([(parameters, run.settings.vision_rate)], 0.0)
    for step in run.steps(run.settings.vision_steps, optimiser):
        scenes, patches = scenes_for(run.settings.seed, 1, step, 64)
        loss = vision_loss(run, run.vision(patches), cell_targets(scenes))
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        if step % 50 == 49:
            run.note(loss=round(loss.item(), 3), **vision_scores(run))


@torch.no_grad()
def align(run: Run) -> None:
    """Fold the cell probes into the last layer of the merger (a linear map), and initialise word embeddings with their directions.

    Without it the kind of a thing is a few per cent of the features' variance and the decoder never binds names to things.
    """
    scenes, patches = scenes_for(run.settings.seed, 2, 0, 1000)
    features = run.vision(patches)
    held = cell_targets(scenes)["kind"] < len(KINDS)
    names, gains = ("kind", "outer", "place", "row", "column"), (1.5, 1.2, 1.0, 0.7, 0.7)
    weight = torch.cat([run.cell_readouts[n].weight for n in names])
    bias = torch.cat([run.cell_readouts[n].bias for n in names])
    gain = torch.cat([torch.full_like(run.cell_readouts[n].bias, g) for n, g in zip(names, gains, strict=True)])
    read = functional.linear(features, weight, bias)
    mean, deviation = read[held].mean(0), read[held].std(0)
    generator = torch.Generator().manual_seed(run.settings.seed)
    directions = torch.linalg.qr(torch.randn(weight.shape[1], len(bias), generator=generator))[0]
    change = directions @ torch.diag(gain / deviation) @ weight
    shift = directions @ ((bias - mean) * gain / deviation)
    size = (features @ change.T + shift).pow(2).mean().sqrt()
    last = run.model.model.visual.merger.mlp[2]
    last.bias.copy_((change @ last.bias + shift) / size)
    last.weight.copy_(change @ last.weight / size)
    embedding = run.model.get_input_embeddings().weight
    for k, kind in enumerate(KINDS):
        token = run.tokenizer.encode(" " + kind, add_special_tokens=False)
        assert len(token) == 1, f"{kind} must be one token"
        direction = directions[:, k] + directions[:, len(KINDS) + 1 + k]
        embedding[token[0]] = direction / direction.norm() * embedding[token[0]].norm()
