"""Second and third stage: questions about scenes, first with guided attention and auxiliary probes, then on answers only."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from itertools import permutations

import numpy as np
import torch
import torch.nn.functional as functional
from torch import nn

from stratascope.datasets.scene_shapes import KINDS
from stratascope.datasets.scenes import EXCLUSIVE, RELATIONS, Thing, askable, exclusive_relation, sample_statement
from training.batched_vision import CELLS
from training.packing import NAME, Packing, relation_question, verdict_question
from training.run import Run, cell_of, optimiser_for, scenes_for

PLACE_LAYER, RELATION_LAYER = 2, 4
"""Residual layers at which the token of a noun is trained to encode the position of its object, and the relation of the pair."""


@dataclass
class Batch:
    """Packed questions of some scenes: token ids, and the target of each marked token."""

    ids: torch.Tensor
    final: torch.Tensor
    answer: torch.Tensor
    asked: list[str]
    names: torch.Tensor
    """(4, names): batch row, question, token within the question, cell."""
    pair: torch.Tensor
    """Index into `names` of the second noun of each question."""
    relation: torch.Tensor
    """(questions, 8): 1 true, 0 false, -1 ambiguous."""


def held_relations(things: list[Thing], i: int, j: int) -> list[int]:
    """For each of `RELATIONS`: 1 if it holds for the pair, 0 if not, -1 if ambiguous or never asked."""
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
    """Output of the decoder (after its norm), and residual stream at the layers of the auxiliary probes."""
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
    """Auxiliary loss: position of each object and relation of the pair, from the tokens of the nouns at early layers."""
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
    """Accuracy on unseen scenes: true/false overall and by relation, and naming the relation."""
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
