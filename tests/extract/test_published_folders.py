"""Published model folders with true tokenizers: tokens, spans, grids and answers as the model's own processor has them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stratascope import ActivationStore
from stratascope.datasets import PROMPTS, Example, split_caption
from stratascope.errors import InvalidInputError
from stratascope.extract import ExtractionSettings, plan_extraction
from stratascope.extract.families.model_families import image_rule, model_shape
from stratascope.extract.model_files import ModelSource
from stratascope.extract.plan.published_models import PublishedModel, model_to_plan, published_models
from stratascope.extract.plan.token_layout import PromptTokenizer
from tests.extract.general.tiny import photo
from tests.extract.published import MODELS, write

transformers = pytest.importorskip("transformers")

from stratascope.extract import run_extraction  # noqa: E402
from stratascope.extract.run.general_model import general_model  # noqa: E402

pytestmark = pytest.mark.slow

SIZES = [(640, 480), (480, 640), (500, 333), (1024, 683), (224, 224), (900, 120)]
CAPTIONS = [
    ("The refrigerator is at the left side of the potted plant.", "at the left side of"),
    ("The teddy bear is under the dining table.", "under"),
    ("The cat is on the wok's rim.", "on"),
    ("The café sign is above the 2nd door.", "above"),
]


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Any]:
    folder = write(request.param, tmp_path_factory.mktemp("published"))
    return request.param, folder, transformers.AutoProcessor.from_pretrained(folder)


def examples() -> list[Example]:
    return [
        Example(str(k), "x.png", caption, relation, True, "test", split_caption(caption, relation))
        for k, (caption, relation) in enumerate(CAPTIONS)
    ]


def official(processor: Any, text: str, image: Image.Image) -> Any:
    if getattr(processor, "chat_template", None) is None:
        return processor(text=f"<image>{text}", images=[image], return_tensors="np")
    turn = {"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": text}]}
    return processor.apply_chat_template([turn], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="np")


def test_tokens_spans_and_grids_are_those_of_the_processor(model: tuple[str, Path, Any]) -> None:
    name, folder, processor = model
    source = ModelSource(name, folder)
    tokenizer = PromptTokenizer(source, PROMPTS["true-false"], image_rule(source))
    for k, size in enumerate(SIZES):
        example = examples()[k % len(CAPTIONS)]
        layout = tokenizer.layout(example, size)
        made = official(processor, tokenizer.prompt.fill(example).text, Image.new("RGB", size, (90, 120, 40)))
        assert layout.ids.tolist() == made["input_ids"][0].tolist()
        _compare_spans(tokenizer, layout, example)
        _compare_image(tokenizer, layout, made)


def test_the_bundled_description_has_the_same_sizes_and_image_tokens_and_few_text_tokens_less(model: tuple[str, Path, Any]) -> None:
    name, folder, _ = model
    if name not in published_models():
        pytest.skip(f"{name} has no bundled description")
    source, bundled = ModelSource(name, folder), model_to_plan(name)
    assert isinstance(bundled, PublishedModel)
    assert model_shape(bundled) == model_shape(source)
    prompt = PROMPTS["true-false"]
    bundled = bundled.with_texts({prompt.fill(example).text for example in examples()} | {" True", " False"})
    exact, estimated = (PromptTokenizer(one, prompt, image_rule(one)) for one in (source, bundled))
    for size in SIZES:
        for example in examples():
            one, other = exact.layout(example, size), estimated.layout(example, size)
            assert (one.grid, one.view) == (other.grid, other.view)
            assert (one.ids == exact.image_id).sum() == (other.ids == estimated.image_id).sum()
            assert len(one.ids) - 9 <= len(other.ids) <= 1.01 * len(one.ids)


def _compare_spans(tokenizer: PromptTokenizer, layout: Any, example: Example) -> None:
    words = {"caption": example.caption, "subject": example.subject, "object": example.object, "relation": example.relation}
    for span, text in words.items():
        start, stop = layout.spans[span]
        assert tokenizer.tokenizer.decode(layout.ids[start:stop].tolist()).strip() == text
    images = np.flatnonzero(layout.ids == tokenizer.image_id)
    start, stop = layout.spans["image"]
    assert start in images
    assert stop - 1 in images
    assert layout.spans["subject"][0] > stop


def _compare_image(tokenizer: PromptTokenizer, layout: Any, made: Any) -> None:
    rows, columns = layout.grid
    start, stop = layout.spans["image"]
    if "image_grid_thw" in made:
        assert (2 * rows, 2 * columns) == tuple(made["image_grid_thw"][0][1:].tolist())
    assert rows * columns == (layout.ids[start:stop] == tokenizer.image_id).sum()


def test_the_general_way_finds_the_same_tokens(model: tuple[str, Path, Any]) -> None:
    name, folder, _ = model
    source = ModelSource(name, folder)
    if "paligemma" in name:
        with pytest.raises(InvalidInputError, match="template"):
            PromptTokenizer(source, PROMPTS["true-false"], general_model(source, None).rule)
        return
    planned = PromptTokenizer(source, PROMPTS["true-false"], image_rule(source))
    general = PromptTokenizer(source, PROMPTS["true-false"], general_model(source, None).rule)
    for example, size in zip(examples(), SIZES, strict=False):
        one, other = general.layout(example, size), planned.layout(example, size)
        assert one.ids.tolist() == other.ids.tolist()
        assert {span: one.spans[span] for span in ("subject", "relation", "object", "caption")} == {
            span: other.spans[span] for span in ("subject", "relation", "object", "caption")
        }
    assert general.answer_tokens == planned.answer_tokens


def test_answers_are_the_tokens_that_the_tokenizer_adds_to_the_prompt(model: tuple[str, Path, Any]) -> None:
    name, folder, processor = model
    source = ModelSource(name, folder)
    tokenizer = PromptTokenizer(source, PROMPTS["true-false"], image_rule(source))
    layout = tokenizer.layout(examples()[0], SIZES[0])
    for answer, tokens in tokenizer.answer_tokens.items():
        whole = processor.tokenizer.decode([*layout.ids.tolist(), *tokens])
        assert whole.endswith(answer)
        assert len(tokens) == 1
        assert processor.tokenizer.decode(list(tokens)).strip() == answer


def test_a_folder_of_true_sizes_in_shards_gives_the_residual_stream_of_transformers(tmp_path: Path) -> None:
    """SmolVLM-256M with two blocks: its own widths, vocabulary, tiles and files; only its weights are random."""
    torch = pytest.importorskip("torch")
    name = "HuggingFaceTB/SmolVLM-256M-Instruct"
    folder = write(name, tmp_path)
    config = transformers.AutoConfig.from_pretrained(folder)
    config.text_config.num_hidden_layers = config.vision_config.num_hidden_layers = 2
    torch.manual_seed(0)
    transformers.AutoModelForImageTextToText.from_config(config, dtype=torch.float32).save_pretrained(folder, max_shard_size="60MB")
    assert (folder / "model.safetensors.index.json").exists()
    rows = [{"image": "x.png", "caption": CAPTIONS[0][0], "relation": CAPTIONS[0][1], "label": 1, "split": "test"}]
    (folder / "rows.jsonl").write_text(json.dumps(rows[0]))
    photo(3, 300, 90).save(folder / "x.png")
    settings = ExtractionSettings(
        model=str(folder), examples=(folder / "rows.jsonl",), images=folder, device="cpu", dtype="float32", prompt="true-false"
    )
    plan = plan_extraction(settings)
    run_extraction(plan, folder / "s.zarr")

    processor = transformers.AutoProcessor.from_pretrained(folder)
    plain = transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype="float32")
    made = official(processor, plan.prompt.fill(plan.examples[0]).text, Image.open(folder / "x.png"))
    with torch.inference_mode():
        expected = plain(**{key: torch.as_tensor(value) for key, value in made.items()}, output_hidden_states=True).hidden_states
    store = ActivationStore.open(folder / "s.zarr")
    for layer in (0, 1):  # the last of transformers' is normed
        held = store.read("residual", layer=layer, position="final")[0]
        np.testing.assert_allclose(held, expected[layer][0, -1], rtol=2e-3, atol=2e-3)  # stored as float16
