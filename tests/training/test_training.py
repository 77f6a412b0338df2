"""The training's shortcuts equal the stock model, and a run that was stopped goes on as if it had not been."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from PIL import Image  # noqa: E402

from stratascope.datasets.scenes import render, sample_scene, sample_statement  # noqa: E402
from stratascope.extract.model_files import resolve_model  # noqa: E402
from training.batched_vision import BatchedVision, patchify  # noqa: E402
from training.packing import NAME, Packing, verdict_question  # noqa: E402
from training.question_stage import hidden_states, make_batch, question_stage  # noqa: E402
from training.run import Run, Settings, scenes_for  # noqa: E402
from training.tiny_model import build_model, build_processor, build_tokenizer  # noqa: E402
from training.vision_stage import train_vision  # noqa: E402

SMALL = Settings(vision_steps=3, decoder_steps=3, joint_steps=2, pool=200)


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


def test_the_shipped_tokenizer_is_the_one_that_is_built(tokenizer) -> None:
    shipped = json.loads((resolve_model("demo").folder / "tokenizer.json").read_text())
    assert shipped["model"]["vocab"] == tokenizer.get_vocab() | shipped["model"]["vocab"]
    assert len(shipped["model"]["vocab"]) == len(tokenizer)


def test_patches_are_those_of_the_processor(tokenizer) -> None:
    rng = np.random.default_rng(0)
    images = np.stack([render(sample_scene(rng), rng) for _ in range(3)])
    made = build_processor(tokenizer).image_processor(images=[Image.fromarray(i) for i in images], return_tensors="pt")
    vision = BatchedVision(build_model(tokenizer).model.visual)
    ours = (torch.from_numpy(patchify(images)).float() - vision.mean) * vision.scale
    first_frame = made["pixel_values"].view(3, 144, 3, 2, 196)[:, :, :, 0].reshape(3, 144, 588)
    np.testing.assert_allclose(ours, first_frame, atol=1e-5)


@torch.no_grad()
def test_packed_questions_equal_the_stock_model_asked_one_by_one(tokenizer, tmp_path: Path) -> None:
    run = Run(tmp_path, SMALL)
    packing = Packing(run.tokenizer)
    scenes, patches = scenes_for(0, 50, 0, 2)
    batch = make_batch(run, packing, scenes, np.random.default_rng(1), 0.5)
    model = run.model.eval()
    model.model.language_model.config._attn_implementation = NAME
    hidden, _ = hidden_states(run, packing, run.vision(patches), batch.ids)
    packed = model.lm_head(hidden[batch.final[0], batch.final[1]])
    model.model.language_model.config._attn_implementation = "eager"
    rng = np.random.default_rng([0, 50, 0])
    again = [sample_scene(rng) for _ in range(2)]
    images = [Image.fromarray(render(things, rng)) for things in again]
    processor = build_processor(tokenizer)
    for question in (0, 7, 8, 15):
        row, end = divmod(question, 8)[0], int(batch.final[1, question]) + 1
        start = packing.prefix + question % 8 * packing.segment
        made = processor.image_processor(images=[images[row]], return_tensors="pt")
        ids = torch.cat([torch.tensor(packing.prefix_ids), batch.ids[row, start:end]])[None]
        kinds = (ids == model.config.image_token_id).int()
        alone = model(input_ids=ids, attention_mask=torch.ones_like(ids), mm_token_type_ids=kinds, **made).logits[0, -1]
        np.testing.assert_allclose(packed[question], alone, atol=1e-4)


def test_the_question_that_was_trained_is_the_default_prompt() -> None:
    from stratascope.datasets import PROMPTS, Example, split_caption

    rng = np.random.default_rng(0)
    things = sample_scene(rng)
    statement = sample_statement(things, rng)
    caption = statement.caption(things)
    example = Example("1", "x", caption, statement.relation, statement.label, "s", split_caption(caption, statement.relation))
    assert PROMPTS["true-false"].fill(example).text == verdict_question(statement, things)


@pytest.mark.slow
def test_a_stopped_run_goes_on_as_if_it_had_not_been(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def finish(folder: Path) -> dict[str, torch.Tensor]:
        run = Run(folder, SMALL)
        packing = Packing(run.tokenizer)
        if run.stage == 0:
            train_vision(run)
        if run.stage == 1:
            question_stage(run, packing, joint=False)
        if run.stage == 2:
            question_stage(run, packing, joint=True)
        return run.model.state_dict()

    torch.set_num_threads(1)
    (tmp_path / "whole").mkdir()
    whole = finish(tmp_path / "whole")
    stopped = tmp_path / "stopped"
    stopped.mkdir()
    run = Run(stopped, SMALL)
    train_vision(run)
    again = finish(stopped)
    assert all(torch.equal(whole[name], again[name]) for name in whole)
