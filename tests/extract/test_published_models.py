"""Plans of published models without their files: the bundled sizes and image tokens are those of transformers' classes."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from stratascope.cli import main
from stratascope.errors import InvalidInputError
from stratascope.extract import ExtractionSettings, plan_extraction, run_extraction
from stratascope.extract.families.model_families import FAMILIES, image_rule, model_shape
from stratascope.extract.model_files import ModelSource
from stratascope.extract.plan.plan_summary import plan_summary
from stratascope.extract.plan.published_models import PublishedModel, model_to_plan, published_models

transformers = pytest.importorskip("transformers")
torch = pytest.importorskip("torch")

from tests.extract.saved import wrapped  # noqa: E402

SIZES = [(640, 480), (480, 640), (333, 500), (1200, 300), (64, 64)]
PROCESSORS = {
    "qwen2_vl": ("Qwen2VLProcessor", "Qwen2VLVideoProcessor"),
    "qwen2_5_vl": ("Qwen2_5_VLProcessor", "Qwen2VLVideoProcessor"),
    "qwen3_vl": ("Qwen3VLProcessor", "Qwen3VLVideoProcessor"),
    "llava": ("LlavaProcessor", None),
    "llava_next": ("LlavaNextProcessor", None),
    "idefics3": ("Idefics3Processor", None),
    "smolvlm": ("SmolVLMProcessor", "SmolVLMVideoProcessor"),
    "gemma3": ("Gemma3Processor", None),
    "internvl": ("InternVLProcessor", "InternVLVideoProcessor"),
    "paligemma": ("PaliGemmaProcessor", None),
}
"""Class of the processor of each bundled family, and of its processor of videos."""


def bundled(name: str) -> PublishedModel:
    found = model_to_plan(name)
    assert isinstance(found, PublishedModel)
    return found


@pytest.fixture
def published(settings: ExtractionSettings) -> ExtractionSettings:
    return dataclasses.replace(settings, model="Qwen/Qwen2.5-VL-3B-Instruct")


@pytest.mark.parametrize("name", published_models())
def test_sizes_and_weights_are_those_of_a_model_that_transformers_makes_of_them(name: str) -> None:
    source, shape = bundled(name), model_shape(bundled(name))
    own = {key: value for key, value in source.config.items() if key not in ("model_type", "dtype")}
    config = transformers.AutoConfig.for_model(source.config["model_type"], **own)
    with torch.device("meta"):
        made = transformers.AutoModelForImageTextToText.from_config(config)
    assert sum(weight.numel() for weight in made.parameters()) == source.parameters
    text, vision = config.text_config, config.vision_config
    heads = (
        made.model.language_model.layers[0].self_attn
        if hasattr(made.model, "language_model")
        else made.model.text_model.layers[0].self_attn
    )
    assert (shape.layers, shape.hidden, shape.heads) == (text.num_hidden_layers, text.hidden_size, text.num_attention_heads)
    assert (shape.head_dim, shape.context) == (heads.head_dim, text.max_position_embeddings)
    tower = vision.depth if hasattr(vision, "depth") else vision.num_hidden_layers
    assert shape.vision_layers == tower
    assert source.vocabulary_size == text.vocab_size == made.get_input_embeddings().weight.shape[0]


@pytest.mark.parametrize("name", published_models())
def test_image_tokens_are_those_of_transformers_own_processor(name: str) -> None:
    source = bundled(name)
    family = source.config["model_type"]
    kind, videos = PROCESSORS[family]
    made = getattr(transformers, source.processor_config["image_processor_type"])
    given = {key: value for key, value in source.processor_config.items() if key != "image_processor_type"}
    rest = [getattr(transformers, videos)()] if videos else []
    more = dict(source.processor_settings)
    if family == "paligemma":
        more, given = {}, {**given, "image_seq_length": 256}
    processor = getattr(transformers, kind)(made(**given), wrapped(family), *rest, **more)
    rule, flat = image_rule(source), {"crop_to_patches": True} if family == "internvl" else {}
    runs = [rule.tokens(*size).runs for size in SIZES]
    if family == "smolvlm":
        tiles = [processor.image_processor.get_number_of_image_patches(height, width, {}) for width, height in SIZES]
        assert [sum(run) for run in runs] == [81 * count for count, *_ in tiles]
        return
    counts = processor._get_num_multimodal_tokens(image_sizes=[(height, width) for width, height in SIZES], **flat)
    if family in ("idefics3", "internvl"):  # whose counts of tokens include the markers between the tiles
        tiles = processor.image_seq_len if family == "idefics3" else processor.image_seq_length
        assert [sum(run) for run in runs] == [tiles * count for count in counts["num_image_patches"]]
    else:
        assert [sum(run) for run in runs] == list(counts["num_image_tokens"])


def test_every_planned_family_is_described() -> None:
    assert {bundled(name).config["model_type"] for name in published_models()} == set(FAMILIES)


def test_a_folder_of_the_same_files_has_the_same_plan(published: ExtractionSettings, tmp_path: Path) -> None:
    plan = plan_extraction(published)
    source, folder = plan.source, tmp_path / "model"
    folder.mkdir()
    files = {
        "config.json": source.config,
        "preprocessor_config.json": source.processor_config,
        "tokenizer_config.json": source.tokenizer_settings,
    }
    for file, content in files.items():
        (folder / file).write_text(json.dumps(content))
    (folder / "chat_template.jinja").write_text(str(source.chat_template))
    source.tokenizer.save(str(folder / "tokenizer.json"))
    other = plan_extraction(dataclasses.replace(published, model=str(folder)))
    assert not isinstance(other.source, PublishedModel)
    assert [layout.ids.tolist() for layout in plan.layouts] == [layout.ids.tolist() for layout in other.layouts]
    assert [(layout.spans, layout.grid) for layout in plan.layouts] == [(layout.spans, layout.grid) for layout in other.layouts]
    assert plan.shape == other.shape
    assert plan.store == other.store
    assert "bundled" not in plan_summary(other)


def test_the_plan_says_that_it_is_an_estimate_and_cannot_be_run(published: ExtractionSettings, tmp_path: Path) -> None:
    plan = plan_extraction(published)
    text = plan_summary(plan)
    assert "from the bundled description of Qwen/Qwen2.5-VL-3B-Instruct, revision not checked (its files are not here" in text
    assert "text tokens ESTIMATED" in text
    assert "= token" not in text  # ids are not those of the model
    assert "\ufffd" not in text
    for attempt in (lambda: run_extraction(plan, tmp_path / "store.zarr"), plan.with_weights):
        with pytest.raises(InvalidInputError, match="expected the model's files, found a plan from the bundled description"):
            attempt()
    assert not (tmp_path / "store.zarr").exists()


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("Qwen/Qwen2.5-VL-3B-Instruct", {"revision": "v1"}),
        ("Qwen/Qwen2.5-VL-3B-Instruct", {"weights": True}),
        ("Qwen/Qwen2.5-VL-3B", {}),
    ],
)
def test_there_is_no_description_for_a_revision_an_extraction_or_another_model(name: str, more: dict) -> None:
    with pytest.raises(InvalidInputError, match="found none of these"):
        model_to_plan(name, **more)


def test_files_of_the_model_are_used_where_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = tmp_path / "models--Qwen--Qwen2.5-VL-3B-Instruct"
    (kept / "refs").mkdir(parents=True)
    (kept / "refs" / "main").write_text("a" * 40)
    (kept / "snapshots" / ("a" * 40)).mkdir(parents=True)
    (kept / "snapshots" / ("a" * 40) / "config.json").write_text("{}")
    for module in ("constants", "_snapshot_download.constants"):
        monkeypatch.setattr(f"huggingface_hub.{module}.HF_HUB_CACHE", str(tmp_path))
    found = model_to_plan("Qwen/Qwen2.5-VL-3B-Instruct")
    assert type(found) is ModelSource
    assert found.revision == "a" * 40


def test_without_the_client_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert bundled("google/gemma-3-4b-it").reason == "huggingface_hub is not installed"


def test_command(settings: ExtractionSettings) -> None:
    data = ["--examples", str(settings.examples[0]), "--images", str(settings.images), "--device", "cuda"]
    done = CliRunner().invoke(main, ["plan", "--model", "google/gemma-3-4b-it", *data, "--json"], catch_exceptions=False)
    record = json.loads(done.stdout)
    assert record["bundled_description"].startswith("from the bundled description of google/gemma-3-4b-it")
    assert record["provenance"]["model"]["files"] == {}
    assert record["tokens"]["least"] > 256
