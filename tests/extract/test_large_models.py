"""Models that one device does not hold: weights on the host and on disk, quantised weights, blocks on several devices."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from safetensors.torch import load_file, save_file  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402

from stratascope.errors import CaptureError, InvalidInputError  # noqa: E402
from stratascope.extract import ExtractionSettings, plan_extraction, run_extraction  # noqa: E402
from stratascope.extract.model_files import ModelSource, check_weight_form, quantization, resolve_model  # noqa: E402
from stratascope.extract.plan.intervention_plan import settings_of_store  # noqa: E402
from stratascope.extract.plan.plan_summary import plan_summary  # noqa: E402
from stratascope.extract.plan.weights_memory import weight_bytes  # noqa: E402
from stratascope.extract.run import attention_function, loading  # noqa: E402
from stratascope.extract.run.attention_function import BlockAttention  # noqa: E402
from stratascope.extract.run.capture import Capture, PatchTokens, Pooling, value_norms  # noqa: E402
from stratascope.extract.run.loading import Arrangement, load_model  # noqa: E402
from stratascope.extract.run.weights import linear_weight, unembedding_weight  # noqa: E402
from stratascope.store import ActivationStore, stored_readout, verify  # noqa: E402

RECORD = (
    "residual", "attention_rows", "attention_maps", "form_logits", "top_tokens", "value_norms", "head_outputs", "head_logits",
    "value_logits", "vision_residual", "vision_output",
)  # fmt: skip
"""All that runs with `device_map`."""


@pytest.fixture(scope="module")
def settings(scenes: Path) -> ExtractionSettings:
    return ExtractionSettings(
        model="demo",
        examples=(scenes / "scenes.jsonl",),
        images=scenes / "images",
        record=RECORD,
        limit=6,
        device="cpu",
        generate=2,
        patches=2,
    )


@pytest.fixture(scope="module")
def whole(settings: ExtractionSettings, tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    path = tmp_path_factory.mktemp("whole") / "s.zarr"
    run_extraction(plan_extraction(settings), path)
    return ActivationStore.open(path)


def _linear(model: Any) -> Any:
    return model.model.language_model.layers[0].self_attn.o_proj


def test_weights_on_the_disk_give_the_same_numbers_to_the_last_bit(
    whole: ActivationStore, settings: ExtractionSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """accelerate puts what the limit does not hold on disk: weights are meta tensors until their module runs."""
    maps: list[dict[str, Any]] = []
    monkeypatch.setattr(loading, "memory_limits", lambda: {"cpu": "900KB"})
    real = loading.is_arranged
    monkeypatch.setattr("stratascope.extract.run.model.is_arranged", lambda model: maps.append(model.hf_device_map) or real(model))
    run_extraction(plan_extraction(dataclasses.replace(settings, device_map="auto")), tmp_path / "s.zarr")
    (used,) = maps
    assert {"cpu", "disk"} == set(used.values())
    assert used["lm_head"] == "disk"
    offloaded = ActivationStore.open(tmp_path / "s.zarr")
    assert offloaded.provenance["model"]["device_map"] == "auto"
    compared = [spec.name for spec in whole.layout.arrays() if spec.by_block]
    assert {*RECORD, "generated_tokens", "patch_residual"} <= set(compared)
    for name in compared:
        np.testing.assert_array_equal(np.asarray(offloaded.group[name][:]), np.asarray(whole.group[name][:]), err_msg=name)
    np.testing.assert_array_equal(stored_readout(offloaded).rows, stored_readout(whole).rows)


def test_eight_bit_weights_are_read_dequantised(settings: ExtractionSettings, tmp_path: Path) -> None:
    functional = pytest.importorskip("bitsandbytes").functional
    model = load_model(resolve_model("demo"), torch.float32, None, Arrangement(quantize="8bit"))
    linear = _linear(model)
    own = functional.int8_vectorwise_dequant(linear.weight.data, linear.weight.SCB)
    assert not torch.allclose(own, _linear(load_model(resolve_model("demo"), torch.float32)).weight, atol=1e-4)
    np.testing.assert_allclose(linear_weight(linear, linear.in_features), own, atol=2e-4 * float(own.abs().max()))
    plan = plan_extraction(dataclasses.replace(settings, quantize="8bit", limit=2, patches=0, record=("residual", "head_logits")))
    run_extraction(plan, tmp_path / "s.zarr")  # the first batch is compared with single examples
    store = ActivationStore.open(tmp_path / "s.zarr")
    assert verify(tmp_path / "s.zarr").ok
    assert store.provenance["model"]["quantization"] == "bitsandbytes, 8 bits, on loading"
    parts = store.read("head_logits").sum((0, 2)) + store.read("mlp_logits").sum(0) + store.read("embedding_logits")
    answers = store.read("answer_logits")
    np.testing.assert_allclose(parts, answers[:, 0] - answers[:, 1], atol=1e-3)
    assert settings_of_store(store, data=settings.examples, images=settings.images).quantize == "8bit"


def test_four_bit_weights_are_read_dequantised() -> None:
    bnb = pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    plain = torch.nn.Linear(64, 128)
    packed = bnb.nn.Linear4bit(64, 128, quant_type="nf4", compute_dtype=torch.float32)
    packed.load_state_dict(plain.state_dict())
    packed = packed.to("cpu")
    own = bnb.functional.dequantize_4bit(packed.weight.data, packed.weight.quant_state)
    assert packed.weight.dtype == torch.uint8
    np.testing.assert_allclose(linear_weight(packed, 64), own, atol=1e-6)
    assert not torch.allclose(own, plain.weight, atol=1e-3)


class Grouped(torch.nn.Module):
    """Weights of 4 bits with a scale for each group of inputs, as GPTQ and AWQ keep them: no attribute `weight`."""

    def __init__(self, linear: torch.nn.Linear, group: int = 32) -> None:
        super().__init__()
        weight = linear.weight.detach().view(linear.out_features, -1, group)
        self.scales = torch.nn.Parameter(weight.abs().amax(-1, keepdim=True) / 7, requires_grad=False)
        self.register_buffer("qweight", torch.round(weight / self.scales).to(torch.int8))
        self.bias = linear.bias

    @property
    def plain(self) -> torch.Tensor:
        return (self.qweight * self.scales).flatten(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(x, self.plain, self.bias)


def test_value_norms_of_packed_weights_are_those_of_what_they_stand_for() -> None:
    model = load_model(resolve_model("demo"), torch.float32)
    attention = model.model.language_model.layers[0].self_attn
    packed = Grouped(attention.o_proj)
    attention.o_proj = packed
    generator = torch.Generator().manual_seed(0)
    heads, width = 4, packed.plain.shape[1] // 4
    value = torch.randn(2, heads, 5, width, generator=generator)
    seen = BlockAttention(0, attention, value, value, value, None, 1.0, None, value.transpose(1, 2))
    np.testing.assert_allclose(seen.output_weight, packed.plain, atol=1e-6)
    for head in range(heads):
        part = packed.plain[:, head * width : (head + 1) * width]
        expected = torch.linalg.norm(value[:, head] @ part.T, dim=-1)
        np.testing.assert_allclose(value_norms(value, seen.output_weight, heads)[:, head], expected, rtol=1e-4)


def test_a_module_that_is_no_linear_map_is_refused() -> None:
    with pytest.raises(CaptureError, match=r"quantised linear module of 8 inputs .*found Conv2d"):
        linear_weight(torch.nn.Conv2d(3, 3, 2), 8)


def test_a_quantised_unembedding_is_refused() -> None:
    head = torch.nn.Linear(8, 16)
    head.weight = torch.nn.Parameter(torch.zeros(16, 8, dtype=torch.int8), requires_grad=False)
    with pytest.raises(CaptureError, match=r"unembedding that is not quantised, found Linear with weights of type torch\.int8"):
        unembedding_weight(head, torch.device("cpu"))


@pytest.fixture
def fp8(tmp_path: Path) -> tuple[Path, Path]:
    """The built-in model with output projections in FP8, and the same weights written out."""
    folders = tmp_path / "fp8", tmp_path / "plain"
    for folder in folders:
        shutil.copytree(resolve_model("demo").folder, folder)
    weights = load_file(folders[0] / "model.safetensors")
    names = [name for name in weights if name.endswith("self_attn.o_proj.weight")]
    assert names
    packed, plain = dict(weights), dict(weights)
    for name in names:
        scale = weights[name].float().abs().max() / 448
        packed[name] = (weights[name].float() / scale).to(torch.float8_e4m3fn)
        packed[name.replace("weight", "weight_scale_inv")] = scale.reshape(1, 1)
        plain[name] = (packed[name].float() * scale).to(weights[name].dtype)
    save_file(packed, folders[0] / "model.safetensors", metadata={"format": "pt"})
    save_file(plain, folders[1] / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folders[0] / "config.json").read_text())
    model = load_model(ModelSource("plain", folders[1]), torch.float32)
    converted = {name.removesuffix(".weight").rpartition(".")[2] for name in names}
    others = [
        name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear) and name.rpartition(".")[2] not in converted
    ]
    config["quantization_config"] = {
        "quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [96, 96], "modules_to_not_convert": others,
    }  # fmt: skip
    (folders[0] / "config.json").write_text(json.dumps(config))
    return folders


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU the weights stay in FP8")
def test_fp8_checkpoints_run_dequantised_on_a_cpu(fp8: tuple[Path, Path], settings: ExtractionSettings, tmp_path: Path) -> None:
    stores = []
    for name, folder in zip(("packed", "plain"), fp8, strict=True):
        own = dataclasses.replace(settings, model=str(folder), record=("residual", "value_norms"), patches=0)
        run_extraction(plan_extraction(own), tmp_path / f"{name}.zarr")
        stores.append(ActivationStore.open(tmp_path / f"{name}.zarr"))
    assert [store.provenance["model"]["quantization"] for store in stores] == ["fp8", None]
    for name in ("residual", "value_norms"):
        found, expected = (np.asarray(store.group[name][:]) for store in stores)
        np.testing.assert_allclose(found, expected, atol=2e-2 * np.nanmax(np.abs(expected)))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"quantize": "3bit"}, "expected `quantize` to be among 4bit, 8bit, found '3bit'"),
        ({"device_map": "balanced"}, "expected `device_map` to be among auto, found 'balanced'"),
        ({"quantize": "4bit", "untrained": 0}, "expected `untrained` without `device_map` and `quantize`"),
        (
            {"device_map": "auto", "record": ("residual", "knockout", "hiding_estimate")},
            "without knockout and hiding_estimate for `device_map`",
        ),
    ],
)
def test_settings_that_need_whole_weights_are_refused(settings: ExtractionSettings, more: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        dataclasses.replace(settings, **more)


@pytest.mark.parametrize(("more", "asked"), [({"quantize": "4bit"}, "`quantize`"), ({"untrained": True}, "`untrained`")])
def test_weights_are_not_quantised_twice(tmp_path: Path, more: dict[str, Any], asked: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "gptq", "bits": 4}}))
    source = ModelSource("the model", tmp_path)
    check_weight_form(source)
    assert quantization(source) == "gptq, 4 bits"
    with pytest.raises(InvalidInputError, match=rf"not quantised for {asked}, .*\(gptq, 4 bits\)"):
        check_weight_form(source, **more)


def test_a_block_that_uses_another_kernel_is_refused(settings: ExtractionSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = attention_function.block_of
    monkeypatch.setattr(attention_function, "block_of", lambda module: None if real(module) == 2 else real(module))
    with pytest.raises(CaptureError, match=r"expected the attention of all softmax blocks .* another kernel in block 2 and 0 more"):
        run_extraction(plan_extraction(settings), tmp_path / "s.zarr")


@pytest.mark.parametrize("device", ["cuda:0", "cuda:1"])
def test_blocks_on_another_device_are_captured_on_the_first(device: str) -> None:
    """With fake tensors, which raise where one operation gets tensors of two devices."""
    with FakeTensorMode():
        main, there = torch.device("cuda:0"), torch.device(device)
        index, weight = torch.zeros(2, 3, 4, dtype=torch.long, device=main), torch.ones(2, 3, 4, device=main)
        rows = torch.zeros(1, dtype=torch.long, device=main)
        patches = PatchTokens(rows, index[:1, 0], frozenset({1}))
        want = frozenset({"maps", "value_norms", "value_logits", "head_outputs"})
        sent: list[Any] = []
        capture = Capture(
            rows.expand(2),
            Pooling(index, weight, (4, 1, 2)),
            want,
            patches=patches,
            send=lambda values: sent.append(values) or values,
            toward={1: torch.zeros(32, device=main)},
            at_entry=Pooling(index, weight, (4, 1, 2)),
        )
        capture.pool(1, torch.zeros(2, 6, 32, device=there))
        capture.pool(0, torch.zeros(2, 6, 32, device=there))
        module = torch.nn.Module()
        module.o_proj = torch.nn.Linear(32, 32, device=there)
        states = torch.zeros(2, 4, 6, 8, device=there)
        capture.on_attention(BlockAttention(1, module, states, states, states, None, 1.0, None, states.transpose(1, 2)))
        made = (capture.residual, capture.final, capture.patch_residual, capture.rows, capture.value_norms, capture.value_logits)
        for held in (*made, capture.head_outputs):
            assert held
            assert {values.device for values in held.values()} == {main}
        assert {values.device for values in sent[0].values()} == {main}
        assert capture.entry.device == main


def test_the_plan_states_the_memory_of_the_weights(settings: ExtractionSettings) -> None:
    source = resolve_model("demo")
    model = load_model(source, torch.float32)
    assert weight_bytes(source, "float32") == sum(weight.numel() * 4 for weight in model.parameters())
    assert "\nweights    " in plan_summary(plan_extraction(settings))
    assert "(bitsandbytes, 4 bits (nf4), on loading) over all GPUs" in plan_summary(
        plan_extraction(dataclasses.replace(settings, quantize="4bit", device_map="auto"))
    )


def test_memory_of_eight_bit_weights_is_that_of_the_loaded_model() -> None:
    pytest.importorskip("bitsandbytes")
    source = resolve_model("demo")
    model = load_model(source, torch.float32, None, Arrangement(quantize="8bit"))
    held = sum(weight.numel() * weight.element_size() for weight in model.parameters())
    held += sum(4 * module.out_features for module in model.modules() if type(module).__name__ == "Linear8bitLt")
    assert weight_bytes(source, "float32", "8bit") == pytest.approx(held, rel=0.01)


def test_memory_of_weights_that_are_not_here_follows_from_their_index(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"dtype": "bfloat16"}')
    (tmp_path / "model.safetensors.index.json").write_text('{"metadata": {"total_size": 1000}, "weight_map": {}}')
    source = ModelSource("the model", tmp_path)
    assert (weight_bytes(source, "bfloat16"), weight_bytes(source, "float32")) == (1000, 2000)
    assert weight_bytes(ModelSource("none", tmp_path / "nowhere"), "float32") is None


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_blocks_on_two_gpus_give_the_numbers_of_one(settings: ExtractionSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "memory_limits", lambda: {0: "900KB", 1: "1GB"})
    for name, more in (("one", {}), ("two", {"device_map": "auto"})):
        run_extraction(plan_extraction(dataclasses.replace(settings, device="cuda", dtype="float32", **more)), tmp_path / f"{name}.zarr")
    one, two = (ActivationStore.open(tmp_path / f"{name}.zarr") for name in ("one", "two"))
    for spec in one.layout.arrays():
        if spec.by_block:
            np.testing.assert_array_equal(np.asarray(two.group[spec.name][:]), np.asarray(one.group[spec.name][:]), err_msg=spec.name)
