"""Train the built-in model: `python -m training.train --out FOLDER`; resumable, seeded, one thread, no GPU.

Three stages (see training/README.md): the vision tower on dense targets of each cell; the decoder on cached image features,
with guided attention and throw-away read-outs that fade to nothing; both towers together on the answers alone.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from itertools import permutations
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as functional
from torch import nn

from stratascope.datasets.forms import KINDS
from stratascope.datasets.scenes import (
    EXCLUSIVE,
    RELATIONS,
    SIZE,
    Thing,
    askable,
    exclusive_relation,
    render,
    sample_scene,
    sample_statement,
)
from training.batched_vision import CELLS, BatchedVision, patchify
from training.packing import NAME, Packing, relation_question, verdict_question
from training.tiny_model import build_model, build_tokenizer

CELL_PIXELS = SIZE // CELLS
PLACE_LAYER, RELATION_LAYER = 2, 4
"""Residual layers at which a name's token is taught to know its thing's place, and the pair's relation."""
OUTER_RADIUS = 24.0
"""Things larger than this hold others; their cells are named by a read-out of their own."""


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
    """Scenes whose features are cached for the decoder's stage; the other stages see each scene once."""


def cell_of(thing: Thing) -> int:
    return int(thing.y // CELL_PIXELS) * CELLS + int(thing.x // CELL_PIXELS)


def scenes_for(seed: int, stage: int, step: int, count: int) -> tuple[list[list[Thing]], torch.Tensor]:
    """`count` scenes and their patches, (count, 144, 588) uint8; a function of its arguments alone, so that runs resume exactly."""
    rng = np.random.default_rng([seed, stage, step])
    scenes = [sample_scene(rng) for _ in range(count)]
    return scenes, torch.from_numpy(patchify(np.stack([render(things, rng) for things in scenes])))


def schedule(step: int, steps: int, warm: int = 60) -> float:
    return min(1.0, (step + 1) / warm) * (0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * step / steps)))


class Run:
    """Model, optimiser and log of a run, saved together so that an interrupted run goes on from its last checkpoint."""

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
        """The steps still to be done; sets the learning rate before each and saves every hundred."""
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


# ---------------------------------------------------------------- stage 0: what is where


def cell_targets(scenes: list[list[Thing]]) -> dict[str, torch.Tensor]:
    """Per cell: kind centred there (last index: none), kind of a large thing that covers it, place of the kind's centre."""
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
    """Fold the cell read-outs into the merger's last layer (a linear change of the features), and start words where they read.

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


# ---------------------------------------------------------------- stages 1 and 2: questions


@dataclass
class Batch:
    """Packed questions of some scenes: token ids, and what each marked token must answer."""

    ids: torch.Tensor
    final: torch.Tensor
    answer: torch.Tensor
    asked: list[str]
    names: torch.Tensor
    """(4, names): batch row, question, token within the question, cell."""
    pair: torch.Tensor
    """Index into `names` of each question's second name."""
    relation: torch.Tensor
    """(questions, 8): 1 holds, 0 does not, -1 not clear-cut."""


def held_relations(things: list[Thing], i: int, j: int) -> list[int]:
    """For each of `RELATIONS`: 1 where it holds for the pair, 0 where it does not, -1 where that is not clear-cut or never asked."""
    pairs = askable(things)
    return [-1 if r not in pairs else 1 if (i, j) in pairs[r][True] else 0 if (i, j) in pairs[r][False] else -1 for r in RELATIONS]


def make_batch(run: Run, packing: Packing, scenes: list[list[Thing]], rng: np.random.Generator, relation_share: float) -> Batch:
    token = lambda word: run.tokenizer.encode(word, add_special_tokens=False)[0]  # noqa: E731
    verdicts = [token("False"), token("True")]
    relation_words = [token(r.split()[0]) for r in EXCLUSIVE]
    kind_tokens = {token(" " + kind) for kind in KINDS}
    ids = np.full((len(scenes), packing.prefix + packing.questions * packing.segment), run.tokenizer.pad_token_id)
    ids[:, : packing.prefix] = packing.prefix_ids
    final, answer, asked, names, relation = [], [], [], [], []
    for row, things in enumerate(scenes):
        clear = [(i, j) for i, j in permutations(range(len(things)), 2) if exclusive_relation(things[i], things[j]) is not None]
        for question in range(packing.questions):
            if clear and rng.random() < relation_share:
                i, j = clear[int(rng.integers(len(clear)))]
                held = exclusive_relation(things[i], things[j])
                assert held is not None
                segment, target, name = (
                    packing.question(relation_question(things[i], things[j])),
                    relation_words[EXCLUSIVE.index(held)],
                    "where",
                )
            else:
                statement = sample_statement(things, rng)
                i, j = statement.subject, statement.object
                segment, target, name = packing.question(verdict_question(statement, things)), verdicts[statement.label], statement.relation
            start = packing.prefix + question * packing.segment
            ids[row, start : start + len(segment)] = segment
            places = [k for k, t in enumerate(segment) if t in kind_tokens]
            assert len(places) == 2, "a question names two things"
            names += [(row, question, places[0], cell_of(things[i])), (row, question, places[1], cell_of(things[j]))]
            relation.append(held_relations(things, i, j))
            final.append((row, start + len(segment) - 1))
            answer.append(target)
            asked.append(name)
    return Batch(
        torch.from_numpy(ids),
        torch.tensor(final).T,
        torch.tensor(answer),
        asked,
        torch.tensor(names).T,
        torch.arange(1, len(names), 2),
        torch.tensor(relation),
    )


def hidden_states(run: Run, packing: Packing, features: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
    """The decoder's output (after its norm), and the residual stream after the blocks at which names are read out."""
    embedded = run.model.get_input_embeddings()(ids)
    start = packing.image_start
    embedded = torch.cat([embedded[:, :start], features, embedded[:, start + CELLS**2 :]], 1)
    decoder = run.model.model.language_model
    mask = {"full_attention": torch.ones(1, 1, 1, 1, dtype=torch.bool)}
    between: dict[int, torch.Tensor] = {}
    handles = [
        decoder.layers[layer - 1].register_forward_hook(lambda _module, _args, output, layer=layer: between.__setitem__(layer, output))
        for layer in {PLACE_LAYER, RELATION_LAYER}
    ]
    out = decoder(inputs_embeds=embedded, position_ids=packing.positions.expand(3, len(ids), -1), attention_mask=mask, use_cache=False)
    for handle in handles:
        handle.remove()
    return out.last_hidden_state, between


def rms_normed(x: torch.Tensor) -> torch.Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


def name_loss(run: Run, packing: Packing, between: dict[int, torch.Tensor], batch: Batch) -> torch.Tensor:
    """Where each named thing is, and how the pair stands, read from the names' own tokens early enough to be of use later."""
    row, question, token, cell = batch.names
    at = packing.prefix + question * packing.segment + token
    named = rms_normed(between[PLACE_LAYER][row, at])
    known = batch.relation >= 0
    pair = run.name_readouts["relation"](rms_normed(between[RELATION_LAYER][row, at][batch.pair]))
    return (
        functional.cross_entropy(run.name_readouts["row"](named), cell // CELLS)
        + functional.cross_entropy(run.name_readouts["column"](named), cell % CELLS)
        + 2.0 * functional.binary_cross_entropy_with_logits(pair[known], batch.relation[known].float())
    )


@torch.no_grad()
def answer_scores(run: Run, packing: Packing, scenes_count: int = 400) -> dict[str, float]:
    """Accuracy on unseen scenes: verdict overall and by relation, and naming the relation."""
    rng = np.random.default_rng([run.settings.seed, 91])
    right: dict[str, list[bool]] = defaultdict(list)
    packing.guidance.active = False
    for part in range(scenes_count // 50):
        scenes, patches = scenes_for(run.settings.seed, 92, part, 50)
        batch = make_batch(run, packing, scenes, rng, 0.25)
        hidden, _ = hidden_states(run, packing, run.vision(patches), batch.ids)
        guess = run.model.lm_head(hidden[batch.final[0], batch.final[1]]).argmax(-1)
        for name, ok in zip(batch.asked, (guess == batch.answer).tolist(), strict=True):
            right[name].append(ok)
            if name != "where":
                right["verdict"].append(ok)
    return {name: round(float(np.mean(values)), 3) for name, values in sorted(right.items())}


def question_stage(run: Run, packing: Packing, joint: bool) -> None:
    settings, decoder = run.settings, run.model.model.language_model
    decoder.config._attn_implementation = NAME
    answers = [*decoder.parameters(), *run.model.lm_head.parameters()]
    vision = list(run.model.model.visual.parameters())
    total = settings.joint_steps if joint else settings.decoder_steps
    if joint:
        groups = [(answers, settings.joint_rate), (vision, 0.3 * settings.joint_rate)]
    else:
        groups = [([*answers, *run.name_readouts.parameters()], settings.decoder_rate)]
        pool, cached = [], []
        with torch.no_grad():
            for part in range(settings.pool // 200):
                scenes, patches = scenes_for(settings.seed, 3, part, 200)
                pool += scenes
                cached.append(run.vision(patches))
        features = torch.cat(cached)
    optimiser = optimiser_for(groups, 0.01)
    recent: list[float] = []
    for step in run.steps(total, optimiser):
        rng = np.random.default_rng([settings.seed, 5 if joint else 4, step])
        done = step / total
        fade = 0.0 if joint else min(1.0, max(0.0, (0.55 - done) / 0.1))
        aid = 0.0 if joint else min(1.0, max(0.0, (0.8 - done) / 0.3))
        if joint:
            scenes, patches = scenes_for(settings.seed, 6, step, 12)
            seen = run.vision(patches)
        else:
            chosen = rng.integers(len(pool), size=12)
            scenes, seen = [pool[k] for k in chosen], features[torch.from_numpy(chosen)]
        batch = make_batch(run, packing, scenes, rng, 0.25 if joint else 0.4)
        packing.guidance.active, packing.guidance.where = fade > 0, batch.names
        hidden, between = hidden_states(run, packing, seen, batch.ids)
        logits = run.model.lm_head(hidden[batch.final[0], batch.final[1]])
        loss = functional.cross_entropy(logits, batch.answer)
        recent += (logits.argmax(-1) == batch.answer).float().tolist()
        if aid > 0:
            loss = loss + aid * name_loss(run, packing, between, batch)
        if fade > 0:
            assert packing.guidance.loss is not None
            loss = loss + fade * packing.guidance.loss
        optimiser.zero_grad()
        loss.backward()
        for parameters, _ in groups:
            nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        if step % 100 == 99:
            run.note(
                loss=round(loss.item(), 3),
                train=round(float(np.mean(recent)), 3),
                guided=round(packing.guidance.accuracy, 3) if fade > 0 else None,
                unseen=answer_scores(run, packing),
            )
            recent = []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of checkpoint, log and, in the end, the weights")
    for field in fields(Settings):
        parser.add_argument("--" + field.name.replace("_", "-"), type=type(field.default), default=field.default)
    given = vars(parser.parse_args())
    out = given.pop("out")
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    run = Run(out, Settings(**given))
    packing = Packing(run.tokenizer)
    if run.stage == 0:
        train_vision(run)
    if run.stage == 1:
        if run.step == 0:
            align(run)
        question_stage(run, packing, joint=False)
    if run.stage == 2:
        question_stage(run, packing, joint=True)


if __name__ == "__main__":
    main()
