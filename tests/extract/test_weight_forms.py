"""Weights in a form that would be read wrongly, or not at all: refused in one line that names the model or the file."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from stratascope.cli import FAULT, main
from stratascope.errors import InvalidInputError, MissingExtraError
from stratascope.extract import plan_extraction
from stratascope.extract.model_files import ModelSource, check_weight_files, check_weight_form, quantization, resolve_model

torch = pytest.importorskip("torch")

from safetensors.torch import load_file, save_file  # noqa: E402

from stratascope.extract.run.loading import load_image_processor, load_model, usable_device  # noqa: E402

QUANTIZED: list[tuple[dict[str, Any], str]] = [
    ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}, "bitsandbytes, 8 bits"),
    ({"quantization_config": {"quant_method": "bitsandbytes", "_load_in_4bit": True, "load_in_4bit": True}}, "bitsandbytes, 4 bits"),
    ({"quantization_config": {"quant_method": "fp8", "activation_scheme": "dynamic"}}, "fp8"),
    ({"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128}}, "gptq, 4 bits"),
    ({"quantization_config": {"quant_method": "awq", "bits": 4, "version": "gemm"}}, "awq, 4 bits"),
    ({"quantization_config": {"load_in_8bit": True}}, "a method that is not named, 8 bits"),
    ({"text_config": {"quantization_config": {"quant_method": "compressed-tensors"}}}, "compressed-tensors"),
    ({"compression_config": {"format": "int-quantized", "quant_method": "sparseml"}}, "sparseml"),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "model"
    shutil.copytree(resolve_model("demo").folder, made)
    return made


def extract(folder: Path, scenes: Path, out: Path, *more: str):
    words = ["extract", "--model", str(folder), "--examples", str(scenes / "scenes.jsonl"), "--images", str(scenes / "images")]
    return CliRunner().invoke(main, [*words, "--device", "cpu", "--limit", "2", "--record", "residual", "--out", str(out), *more])


def refused_in_one_line(result, told: str) -> None:
    assert result.exit_code == 2, result.output
    lines = [line for line in result.stderr.splitlines() if line.startswith("stratascope: ")]
    assert len(lines) == 1
    assert told in lines[0]
    assert FAULT not in result.output
    assert "Traceback" not in result.output


KNOWN = ("bitsandbytes", "fp8", "gptq", "awq", "compressed-tensors")


@pytest.mark.parametrize(("config", "told"), QUANTIZED, ids=[told for _, told in QUANTIZED])
def test_quantised_models_are_planned_or_refused_by_the_method(settings, folder: Path, config: dict[str, Any], told: str) -> None:
    held = json.loads((folder / "config.json").read_text())
    for name, value in config.items():
        held[name] = {**held.get(name, {}), **value}
    (folder / "config.json").write_text(json.dumps(held))
    if told.partition(",")[0] in KNOWN:
        plan = plan_extraction(dataclasses.replace(settings, model=str(folder)))
        assert plan.provenance["model"]["quantization"] == told
    for untrained in (0,) if told.partition(",")[0] in KNOWN else (None, 0):
        with pytest.raises(InvalidInputError, match=rf"weights that are not quantised.*, found quantization_config .*\({told}\)"):
            plan_extraction(dataclasses.replace(settings, model=str(folder), untrained=untrained))


def test_an_empty_quantization_is_none_and_the_provenance_says_so(plan, folder: Path) -> None:
    held = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**held, "quantization_config": None}))
    assert quantization(ModelSource("the model", folder)) is None
    assert plan.provenance["model"]["quantization"] is None


@pytest.mark.parametrize(("name", "kind"), [("q_proj.weight", "F8_E4M3"), ("q_proj.qweight", "I32"), ("q_proj.weight_packed", "U8")])
def test_quantised_weights_of_which_the_config_says_nothing(tmp_path: Path, name: str, kind: str) -> None:
    types = {"F8_E4M3": torch.float8_e4m3fn, "I32": torch.int32, "U8": torch.uint8}
    save_file({name: torch.zeros(2, 2, dtype=types[kind])}, tmp_path / "model.safetensors")
    with pytest.raises(InvalidInputError, match=rf"model\.safetensors: expected weights of type .*, found {name} of type {kind}"):
        check_weight_files(ModelSource("the model", tmp_path))


def test_integer_buffers_are_no_weights(tmp_path: Path) -> None:
    save_file({"position_ids": torch.zeros(2, dtype=torch.int64), "weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    check_weight_files(ModelSource("the model", tmp_path))


def test_an_adapter_is_refused(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(InvalidInputError, match=r"found an adapter \(adapter_config\.json\).*merge_and_unload"):
        check_weight_form(ModelSource("the model", folder))


@pytest.mark.parametrize("size", [0, 4, 100, 900_000, -1], ids=["empty", "length", "header", "half", "one byte less"])
def test_a_truncated_safetensors_file_is_named(scenes: Path, folder: Path, tmp_path: Path, size: int) -> None:
    path = folder / "model.safetensors"
    os.truncate(path, size if size >= 0 else path.stat().st_size - 1)
    refused_in_one_line(extract(folder, scenes, tmp_path / "s.zarr"), f"{path}: expected a complete safetensors file")
    assert not (tmp_path / "s.zarr").exists()


def test_of_sharded_weights_the_absent_and_the_truncated_shard_is_named(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = [f"model-0000{k}-of-00002.safetensors" for k in (1, 2)]
    halves = list(weights)[::2], list(weights)[1::2]
    for name, held in zip(names, halves, strict=True):
        save_file({key: weights[key].clone() for key in held}, folder / name, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {key: name for name, held in zip(names, halves, strict=True) for key in held}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    source = ModelSource("the model", folder)
    load_model(source, torch.float32)
    os.truncate(folder / names[1], 5000)
    with pytest.raises(InvalidInputError, match=rf"{names[1]}: expected a complete safetensors file"):
        load_model(source, torch.float32)
    (folder / names[1]).unlink()
    with pytest.raises(InvalidInputError, match=rf"files that model\.safetensors\.index\.json names .*, found no {names[1]}; download it"):
        load_model(source, torch.float32)
    for text in ("{", "[]", '{"weight_map": [1]}'):
        (folder / "model.safetensors.index.json").write_text(text)
        with pytest.raises(InvalidInputError, match=r"index\.json: expected an index of weights, JSON with a weight_map"):
            load_model(source, torch.float32)


class Foreign:
    """What no file of weights holds."""


@pytest.mark.parametrize(
    "data",
    [b"", b"not a pickle", pickle.dumps({"weight": Foreign()}, protocol=2), b"PK\x03\x04 cut off", b"\x80\x02."],
    ids=["empty", "text", "another class", "cut zip", "empty stack"],
)
def test_pytorch_weights_that_cannot_be_unpickled_are_named(scenes: Path, folder: Path, tmp_path: Path, data: bytes) -> None:
    (folder / "model.safetensors").unlink()
    path = folder / "pytorch_model.bin"
    path.write_bytes(data)
    refused_in_one_line(extract(folder, scenes, tmp_path / "s.zarr"), f"{path}: expected weights that PyTorch reads")


def test_pytorch_weights_that_are_whole_are_loaded(folder: Path) -> None:
    source = ModelSource("the model", folder)
    expected = load_model(source, torch.float32).state_dict()
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    loaded = load_model(source, torch.float32).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in expected.items())


def test_a_package_that_transformers_lacks_is_named(scenes: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stratascope.extract.run import loading

    def lacking(*given: object, **known: object) -> None:
        raise ImportError("Using this needs Accelerate:\n`pip install accelerate`")

    monkeypatch.setattr(loading.AutoModelForImageTextToText, "from_pretrained", lacking)
    with pytest.raises(MissingExtraError, match="all packages that transformers needs for this model"):
        load_model(ModelSource("the model", folder), torch.float32)
    refused_in_one_line(extract(folder, scenes, tmp_path / "s.zarr"), "Using this needs Accelerate: `pip install accelerate`")


@pytest.mark.parametrize("error", [KeyError("rope"), TypeError("no"), AttributeError("x"), pickle.UnpicklingError("y"), Exception("z")])
def test_whatever_loading_raises_names_the_folder(folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    from stratascope.extract.run import loading

    def failing(*given: object, **known: object) -> None:
        raise error

    monkeypatch.setattr(loading.AutoModelForImageTextToText, "from_pretrained", failing)
    with pytest.raises(
        InvalidInputError, match=rf"expected weights that fit its configuration in {folder}, found: {type(error).__name__} "
    ):
        load_model(ModelSource("the model", folder), torch.float32)


def test_a_config_that_its_class_refuses(scenes: Path, folder: Path, tmp_path: Path) -> None:
    held = json.loads((folder / "config.json").read_text())
    held["text_config"]["intermediate_size"] = "wide"
    (folder / "config.json").write_text(json.dumps(held))
    refused_in_one_line(extract(folder, scenes, tmp_path / "s.zarr"), f"expected weights that fit its configuration in {folder}")


def test_an_image_processor_that_cannot_be_loaded(folder: Path) -> None:
    (folder / "processor_config.json").write_text('{"image_processor": {"image_processor_type": "NoSuchProcessor"}}')
    with pytest.raises(InvalidInputError, match="expected its image processor in"):
        load_image_processor(ModelSource("the model", folder))


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
@pytest.mark.parametrize(("device", "told"), [("cuda", "none; set"), ("cuda:3", "none; set"), ("xpu", ": .*not compiled with XPU")])
def test_devices_that_are_not_here(device: str, told: str) -> None:
    with pytest.raises(InvalidInputError, match=rf"`device` {device}, found ?{told}"):
        usable_device(device)


@pytest.mark.parametrize("device", ["gpu", "meta", "cuda:x", "CPU", ""])
def test_devices_that_do_not_exist(settings, device: str) -> None:
    with pytest.raises(InvalidInputError, match="expected `device` auto, cpu, cuda"):
        dataclasses.replace(settings, device=device)
