"""Published files leave out what the configuration classes know: a plan reads the same values as transformers does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stratascope.extract.families import config_defaults as defaults
from stratascope.extract.families.model_families import FAMILIES, image_rule, model_shape
from stratascope.extract.model_files import ModelSource

transformers = pytest.importorskip("transformers")

from tests.extract.saved import save_files  # noqa: E402

VISION_CLASSES = {
    "qwen2_vl": "qwen2_vl_vision",
    "qwen2_5_vl": "qwen2_5_vl_vision",
    "qwen3_vl": "qwen3_vl_vision",
    "clip_vision_model": "clip_vision_model",
    "siglip_vision_model": "siglip_vision_model",
}


def plain(value: Any) -> Any:
    """As JSON has it; of sizes the sides that are given."""
    found = json.loads(json.dumps(value, default=dict))
    return {name: side for name, side in found.items() if side is not None} if isinstance(found, dict) else found


@pytest.mark.parametrize("kind", defaults.TEXT_DEFAULTS)
def test_text_models(kind: str) -> None:
    made = transformers.CONFIG_MAPPING[kind]()
    layers, hidden, heads, width, context = defaults.TEXT_DEFAULTS[kind]
    assert (made.num_hidden_layers, made.hidden_size, made.num_attention_heads) == (layers, hidden, heads)
    assert (getattr(made, "head_dim", None) or hidden // heads) == (width or hidden // heads)
    assert made.max_position_embeddings == context


@pytest.mark.parametrize("kind", defaults.VISION_DEFAULTS)
def test_vision_towers(kind: str) -> None:
    if kind in FAMILIES:
        made = transformers.CONFIG_MAPPING[kind](vision_config={}).vision_config
    else:
        made = transformers.CONFIG_MAPPING[VISION_CLASSES[kind]]()
    values = defaults.VISION_DEFAULTS[kind]
    assert {name: plain(getattr(made, name)) for name in values} == plain(values)


@pytest.mark.parametrize("family", defaults.TOWERS)
def test_towers_of_a_config_that_names_none(family: str) -> None:
    made, values = transformers.CONFIG_MAPPING[family]().vision_config, defaults.TOWERS[family]
    assert {name: getattr(made, name) for name in values} == values


@pytest.mark.parametrize("family", defaults.MODEL_DEFAULTS)
def test_models(family: str) -> None:
    made, values = transformers.CONFIG_MAPPING[family](), defaults.MODEL_DEFAULTS[family]
    assert {name: plain(getattr(made, name)) for name in values} == values


@pytest.mark.parametrize("kind", defaults.IMAGE_PROCESSOR_DEFAULTS)
def test_image_processors(kind: str) -> None:
    made, values = getattr(transformers, kind)().to_dict(), defaults.IMAGE_PROCESSOR_DEFAULTS[kind]
    assert {name: plain(made[name]) for name in values} == values


def test_every_family_has_the_image_processor_that_transformers_gives_it() -> None:
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES as known

    assert {name: known[name]["torchvision"] for name in FAMILIES} == defaults.IMAGE_PROCESSORS


def test_qwen2_5_vl_32b_as_published_has_no_depth(tmp_path: Path) -> None:
    """Its vision_config as on the Hub, beside this size's text model."""
    vision = {
        "hidden_size": 1280, "in_chans": 3, "intermediate_size": 3456, "model_type": "qwen2_5_vl", "num_heads": 16,
        "out_hidden_size": 5120, "patch_size": 14, "spatial_merge_size": 2, "spatial_patch_size": 14, "tokens_per_second": 2,
        "window_size": 112,
    }  # fmt: skip
    text = {"hidden_size": 5120, "num_hidden_layers": 64, "num_attention_heads": 40, "max_position_embeddings": 128000}
    published = {"model_type": "qwen2_5_vl", "vision_config": vision, **text, "torch_dtype": "bfloat16"}
    (tmp_path / "config.json").write_text(json.dumps(published))
    shape = model_shape(ModelSource("the model", tmp_path))
    made = transformers.AutoConfig.from_pretrained(tmp_path).vision_config
    assert (shape.vision_layers, shape.vision_hidden) == (made.depth, made.hidden_size) == (32, 1280)
    assert shape.vision_whole == tuple(made.fullatt_block_indexes) == (7, 15, 23, 31)
    assert (shape.layers, shape.hidden, shape.heads, shape.context) == (64, 5120, 40, 128000)


def test_qwen2_vl_without_the_width_of_its_tower_does_not_take_the_decoders(tmp_path: Path) -> None:
    """`hidden_size` of its vision_config is the width that the decoder is given."""
    text = {"hidden_size": 3584, "num_hidden_layers": 28, "num_attention_heads": 28, "max_position_embeddings": 32768}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2_vl", "vision_config": {"hidden_size": 3584}, **text}))
    assert model_shape(ModelSource("the model", tmp_path)).vision_hidden == 1280


@pytest.mark.parametrize(
    ("name", "left_out"),
    [
        ("qwen2_vl", ("patch_size", "merge_size", "size")),
        ("qwen3_vl", ("merge_size",)),
        ("idefics3", ("max_image_size",)),
        ("idefics3", ("max_image_size", "size", "do_image_splitting")),
        ("smolvlm", ("max_image_size",)),
        ("internvl", ("min_patches", "max_patches")),
        ("llava_next", ("image_grid_pinpoints",)),
    ],
)
def test_image_settings_that_are_left_out_are_those_of_the_familys_image_processor(
    tmp_path: Path, name: str, left_out: tuple[str, ...]
) -> None:
    """Held against what transformers' own image processor then has."""
    folder = save_files(name, tmp_path)
    settings = json.loads((folder / "processor_config.json").read_text())
    for field in left_out:
        settings["image_processor"].pop(field, None)
    (folder / "processor_config.json").write_text(json.dumps(settings))
    if "image_grid_pinpoints" in left_out:
        config = json.loads((folder / "config.json").read_text())
        del config["image_grid_pinpoints"]
        (folder / "config.json").write_text(json.dumps(config))
    rule, own = image_rule(ModelSource("the model", folder)), transformers.AutoImageProcessor.from_pretrained(folder)
    found = {
        "patch_size": lambda: rule.patch,
        "merge_size": lambda: rule.merge,
        "size": lambda: (
            {"shortest_edge": rule.min_pixels, "longest_edge": rule.max_pixels} if name == "qwen2_vl" else {"longest_edge": rule.longest}
        ),
        "max_image_size": lambda: {"longest_edge": rule.side},
        "do_image_splitting": lambda: rule.split,
        "min_patches": lambda: rule.fewest,
        "max_patches": lambda: rule.most,
        "image_grid_pinpoints": lambda: [list(canvas) for canvas in rule.pinpoints],
    }
    for field in left_out:
        assert found[field]() == plain(getattr(own, field))
