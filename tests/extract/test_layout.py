"""Token layouts without torch equal the real processor's, and spans point at their words."""

from __future__ import annotations

import dataclasses
import random
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from stratascope.cli import main
from stratascope.datasets import PROMPTS, CaptionParts, Example, Prompt, Shot, split_caption
from stratascope.errors import InvalidInputError
from stratascope.extract.families.image_tokens import PatchGrid
from stratascope.extract.families.model_families import image_rule
from stratascope.extract.model_files import ModelSource, resolve_model
from stratascope.extract.plan.template_framing import tokens_within
from stratascope.extract.plan.token_layout import PromptTokenizer, TokenLayout

SIZES = [(168, 168), (640, 480), (480, 640), (500, 333), (50, 40), (31, 200), (1920, 1080)]
CAPTION = "The refrigerator is at the left side of the potted plant."


def example(caption: str = CAPTION, relation: str = "at the left side of") -> Example:
    return Example("x", "x.png", caption, relation, True, "test", split_caption(caption, relation))


@pytest.mark.slow
@pytest.mark.parametrize(
    "prompt", [p for p in PROMPTS.values() if not p.asks_question and not {"front", "bottom"} & {*p.choices}], ids=lambda p: p.name
)
@pytest.mark.parametrize("system", [None, "Answer briefly."])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_layout_equals_the_processor(prompt: Prompt, system: str | None, size: tuple[int, int]) -> None:
    transformers = pytest.importorskip("transformers")
    source = resolve_model("demo")
    tokenizer = PromptTokenizer(source, prompt, image_rule(source), system)
    processor = transformers.AutoProcessor.from_pretrained(source.folder)
    text = processor.apply_chat_template(tokenizer.prompt_format.conversation(prompt.fill(example()).text), add_generation_prompt=True)
    made = processor(text=[text], images=[Image.new("RGB", size)], return_tensors="np")
    layout = tokenizer.layout(example(), size)
    assert layout.ids.tolist() == made["input_ids"][0].tolist()
    assert (2 * layout.grid[0], 2 * layout.grid[1]) == tuple(made["image_grid_thw"][0][1:].tolist())


@pytest.mark.parametrize("limits", [(56 * 56, 168 * 168), (56 * 56, 1280 * 28 * 28), (200 * 28 * 28, 1280 * 28 * 28)])
def test_resizing_equals_qwen_vl_utils(limits: tuple[int, int]) -> None:
    utils = pytest.importorskip("qwen_vl_utils")
    grid = PatchGrid("x", 14, 2, *limits)
    rng = np.random.default_rng(0)
    for _ in range(300):
        width, height = (int(v) for v in rng.integers(30, 2000, 2))
        expected = utils.vision_process.smart_resize(height, width, 28, *limits)
        if min(expected) > 0:  # of extreme shapes qwen_vl_utils leaves nothing, the processor at least one cell
            assert grid.resize(width, height) == expected[::-1]


def test_full_size_grid_of_a_coco_photo() -> None:
    assert PatchGrid("x", 14, 2, 56 * 56, 12_845_056).tokens(640, 480).grid == (17, 23)


def test_spans_hold_exactly_their_words() -> None:
    source = resolve_model("demo")
    tokenizer = PromptTokenizer(source, PROMPTS["true-false"], image_rule(source))
    layout = tokenizer.layout(example(), (168, 168))
    decode = tokenizer.tokenizer.decode
    words = {name: decode(layout.ids[a:b].tolist(), skip_special_tokens=False).strip() for name, (a, b) in layout.spans.items()}
    assert words["subject"] == "refrigerator"
    assert words["relation"] == "at the left side of"
    assert words["object"] == "potted plant"
    assert words["caption"] == CAPTION
    assert words["system"] == "You are a helpful assistant."
    assert words["prompt"] == f"True or false: {CAPTION} Answer True or False."
    assert set(layout.ids[slice(*layout.spans["image"])].tolist()) == {tokenizer.image_id}
    assert layout.spans["image"][1] - layout.spans["image"][0] == 36
    assert layout.spans["final"] == (len(layout.ids) - 1, len(layout.ids))


def test_a_prompt_may_end_in_blanks_that_a_template_trims(tmp_path: Path) -> None:
    source = resolve_model("demo")
    asked = Example("x", "x.png", "Which?", "depth", 0, "test", CaptionParts(None, None, None), options=("left", "right"))
    prompt = PROMPTS["vlmevalkit"].for_examples([asked])
    shutil.copytree(source.folder, tmp_path / "model")
    template = str(source.chat_template)
    text = next(found for found in re.findall(r"\{\{[^{}]*\}\}", template) if "text" in found)
    trimming = template.replace(text, "{{ (" + text.strip("{} ") + ") | trim }}")
    (tmp_path / "model" / "chat_template.jinja").write_text(trimming)
    shown = []
    for one in (source, ModelSource("trimming", tmp_path / "model")):
        tokenizer = PromptTokenizer(one, prompt, image_rule(one))
        layout = tokenizer.layout(asked, (168, 168))
        (ahead,) = tokenizer.layouts([(asked, (168, 168))])
        assert isinstance(ahead, TokenLayout)
        assert (ahead.ids.tolist(), ahead.spans) == (layout.ids.tolist(), layout.spans)
        shown.append(tokenizer.tokenizer.decode(layout.ids[slice(*layout.spans["prompt"])].tolist(), skip_special_tokens=False))
    assert shown == [prompt.fill(asked).text, prompt.fill(asked).text.rstrip()]


def test_an_answer_without_tokens_is_refused() -> None:
    source = resolve_model("demo")
    with pytest.raises(InvalidInputError, match=r"known tokens of demo behind those of the prompt, found '' = \[\]"):
        PromptTokenizer(source, Prompt("x", "{caption}", ("True", "")), image_rule(source))


@pytest.mark.parametrize(
    ("options", "first"), [([], "[system: You"), (["--no-system"], "<|im_start|>|user"), (["--system", "Hi."], "[system: H|i|.]")]
)
def test_system_turns_on_the_command_line(scenes: Path, options: list[str], first: str) -> None:
    asked = ["plan", "--model", "demo", "--examples", str(scenes / "scenes.jsonl"), "--images", str(scenes / "images"), "--limit", "1"]
    done = CliRunner().invoke(main, [*asked, *options])
    assert done.exit_code == 0, done.output
    shown = next(line for line in done.output.splitlines() if "[image" in line)
    assert first in shown.split("[image")[0]
    assert ("[system" in shown) == (options != ["--no-system"])


def test_a_system_turn_cannot_be_both(scenes: Path) -> None:
    asked = ["plan", "--model", "demo", "--examples", "x", "--images", "y", "--system", "Hi.", "--no-system"]
    done = CliRunner().invoke(main, asked)
    assert done.exit_code == 2
    assert "either --system or --no-system" in done.stderr


def test_a_caption_with_control_tokens_is_refused() -> None:
    source = resolve_model("demo")
    tokenizer = PromptTokenizer(source, PROMPTS["true-false"], image_rule(source))
    with pytest.raises(InvalidInputError, match="control token"):
        tokenizer.layout(example("The <|image_pad|> is under the bed.", "under"), (168, 168))


def test_an_image_too_thin_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="aspect ratio"):
        PatchGrid("x", 14, 2, 56 * 56, 168 * 168).tokens(3000, 10)


@pytest.fixture(scope="module")
def source() -> ModelSource:
    return resolve_model("demo")


SHOTS = (Shot(("a.png",), "True or false: The cat is under the dog. Answer True or False.", "True"), Shot((), "WHETHER?", "False"))


@pytest.mark.parametrize(("system", "images", "shots"), [(None, 1, ()), ("", 1, ()), ("Look closely.", 1, ()), (None, 2, SHOTS)])
def test_layouts_made_ahead_are_those_made_one_by_one(
    source: ModelSource, system: str | None, images: int, shots: tuple[Shot, ...]
) -> None:
    """One by one the whole prompt is tokenised; ahead, plain texts are tokenised without what stands around them."""
    prompt = dataclasses.replace(PROMPTS["true-false"], shots=shots)
    tokenizer = PromptTokenizer(source, prompt, image_rule(source), system, images, [(97, 61)] if shots else [])
    rng = random.Random(0)
    letters = "aB é,.'🐈‍⬛東<>|{}-1% "
    words = ["cat", "dog's bed", "Look closely.", *("x" + "".join(rng.choices(letters, k=6)).strip() for _ in range(120))]
    sizes = [(168, 168), (97, 61), (300, 40)]
    pairs = [
        (example(f"The {rng.choice(words)} is under the {rng.choice(words)}.", "under"), *rng.choices(sizes, k=images)) for _ in range(400)
    ]
    alone = [tokenizer.layout(*pair) for pair in pairs]
    framed = tokenizer._frame((*tokenizer._shots, *(tokenizer.rule.tokens(168, 168) for _ in range(images))))
    assert framed is not None
    assert (framed.opening, framed.closing) == ("<|vision_end|>", "<|im_end|>")
    ahead = list(tokenizer.layouts(pairs))
    assert tokenizer._frames_hold
    for expected, found in zip(alone, ahead, strict=True):
        assert isinstance(found, TokenLayout)
        np.testing.assert_array_equal(found.ids, expected.ids)
        assert found.ids.dtype == expected.ids.dtype
        assert (found.spans, found.grid, found.view, found.cuts) == (expected.spans, expected.grid, expected.view, expected.cuts)


@pytest.mark.parametrize("text", ["a bell is inside", "🐈‍⬛ é東 under", " x  y ", "Ａ\u200b"])
def test_tokens_of_a_stretch_are_all_that_share_characters_with_it(source: ModelSource, text: str) -> None:
    encoded = source.tokenizer.encode(f"<|im_start|>{text}<|im_end|>", add_special_tokens=False)
    for a in range(len(text) + 12):
        for b in range(a + 1, len(text) + 13):
            shared = [k for k, (first, last) in enumerate(encoded.offsets) if first < b and last > a]
            assert tokens_within(encoded, a, b) == ((shared[0], shared[-1] + 1) if shared else None)
