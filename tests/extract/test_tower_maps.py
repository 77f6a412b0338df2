"""Attention maps of the vision tower against eager attention of transformers, and the patches of each image token against the projector."""

from __future__ import annotations

import dataclasses
import inspect
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import networkx
import numpy as np
import pytest
from networkx.algorithms.flow import dinitz
from PIL import Image

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from stratascope.analysis import flow_examples, rollout_examples  # noqa: E402
from stratascope.analysis.flow import UNIT  # noqa: E402
from stratascope.analysis.tower_flow import tower_flow  # noqa: E402
from stratascope.errors import CaptureError, InvalidInputError, NotRecordedError  # noqa: E402
from stratascope.extract import ExtractionSettings, plan_extraction, run_extraction  # noqa: E402
from stratascope.extract.families.image_tokens import NO_GRID  # noqa: E402
from stratascope.extract.families.tower_views import View  # noqa: E402
from stratascope.extract.plan.extraction_plan import ExtractionPlan  # noqa: E402
from stratascope.extract.plan.images import open_image  # noqa: E402
from stratascope.extract.plan.plan_summary import plan_summary  # noqa: E402
from stratascope.extract.run import tower_maps  # noqa: E402
from stratascope.extract.run.map_packing import packed_map  # noqa: E402
from stratascope.extract.run.self_check import check_prompt, load_processor  # noqa: E402
from stratascope.extract.run.session import ExtractionSession  # noqa: E402
from stratascope.extract.run.tower_maps import TowerMapRequest  # noqa: E402
from stratascope.extract.run.vision_tower import find_tower, patch_places, tower_blocks  # noqa: E402
from stratascope.store import ActivationStore, copy_store, diff_stores, encode_maps, verify  # noqa: E402
from tests.extract.families import FAMILIES  # noqa: E402
from tests.extract.general import folders as general  # noqa: E402
from tests.extract.general.processors import FILES  # noqa: E402
from tests.extract.general.types import TYPES  # noqa: E402
from tests.extract.saved import save  # noqa: E402
from tests.extract.unpacked import fused_map  # noqa: E402
from tests.tower_network import network  # noqa: E402

TOWERS = [name for name in FAMILIES if name not in ("qwen3_vl", "paligemma2")]
"""Families whose image tokens are made of known patches; PaliGemma 2 has the tower of PaliGemma."""

GENERAL = ["mistral3", "qwen3_5"]
"""Types without a family of their own: Pixtral, and a tower over one list of merged patches."""


@dataclass(frozen=True)
class Towered:
    plan: ExtractionPlan
    store: ActivationStore
    session: ExtractionSession
    path: Path

    @property
    def tower(self) -> Any:
        return find_tower(self.session.model.model)

    @property
    def blocks(self) -> Any:
        return tower_blocks(self.tower)[: self.plan.tower.blocks]

    def features(self, image: Image.Image) -> np.ndarray:
        """(image token, hidden): what the projector makes of an image."""
        features = self.session.model.features(self.session.prepare(image))
        return features.pooled.reshape(-1, features.pooled.shape[-1]).numpy()

    def in_views(self, hidden: torch.Tensor, image: Image.Image) -> np.ndarray:
        """(view, token, hidden) with patches in raster order, of what a block of the tower is given or returns."""
        grid = self.session.prepare(image).tensors.get("image_grid_thw")
        if grid is None:
            return hidden.numpy()
        flat = hidden.reshape(-1, hidden.shape[-1])
        return flat[patch_places(self.tower, grid)][None].numpy()

    def request(self) -> TowerMapRequest:
        return self.session.tower_maps.request(0)


def settings_of(folder: Path, model: Path, **more: Any) -> ExtractionSettings:
    record = ("residual", "attention_maps", "vision_maps")
    options = {"model": str(model), "examples": (folder / "rows.jsonl",), "images": folder, "record": record, "device": "cpu"}
    return ExtractionSettings(**(options | more))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, draw = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    rows = []
    for k, (height, width) in enumerate(((150, 200), (130, 90), (150, 200))):
        Image.fromarray(draw.integers(0, 256, (height, width, 3), np.uint8)).save(folder / f"{k}.png")
        rows.append({"image": f"{k}.png", "caption": "The cat is on the car.", "relation": "on", "label": 1, "split": "test"})
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture(scope="module", params=[*TOWERS, *GENERAL])
def towered(request: pytest.FixtureRequest, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Towered:
    """Three photos of a family, the first two with maps."""
    folder = tmp_path_factory.mktemp(request.param)
    name = request.param
    model = general.save(name, TYPES[name], FILES[name], folder / "model") if name in GENERAL else save(name, folder / "model")
    plan = plan_extraction(settings_of(photos, model, maps=2, block=2))
    plan = dataclasses.replace(plan, has_map=np.array([True, True, False]))
    run_extraction(plan, folder / "s.zarr")
    return Towered(plan, ActivationStore.open(folder / "s.zarr"), ExtractionSession(plan, batch_tokens=1), folder / "s.zarr")


def views_of(plan: ExtractionPlan, k: int) -> tuple[View, ...]:
    return plan.tower.of(*plan.file_size(k))


def parents_of(plan: ExtractionPlan, k: int) -> np.ndarray:
    return plan.tower.parents(plan.layouts[k].ids, plan.tokenizer.image_id, plan.file_size(k))


def photo(found: Towered, k: int = 0) -> Image.Image:
    return open_image(found.plan.settings.images / found.plan.shown[k])


def eager_maps(found: Towered, image: Image.Image) -> list[np.ndarray]:
    """Block -> (view, token, token) float64 in the order of the tower: eager attention of transformers, mean over heads."""
    tower, blocks = found.tower, found.blocks
    owner = sys.modules[type(blocks[0]).__module__]
    real, seen = owner.eager_attention_forward, {}

    def kept(module: Any, *args: Any, **options: Any) -> Any:
        output, weights = real(module, *args, **options)
        seen.setdefault(id(module), []).append(weights.double().mean(1).numpy())
        return output, weights

    configs = [config for module in tower.modules() if (config := getattr(module, "config", None))]
    before = [config._attn_implementation for config in configs]
    owner.eager_attention_forward = kept
    try:
        for config in configs:
            config._attn_implementation = "eager"
        prepared = found.session.prepare(image)
        names = ("pixel_values", "image_grid_thw", "image_sizes", "pixel_attention_mask")
        given = {name: prepared.tensors[name] for name in names if name in prepared.tensors}
        with torch.inference_mode():
            found.session.model.model.get_image_features(**given)
    finally:
        owner.eager_attention_forward = real
        for config, name in zip(configs, before, strict=True):
            config._attn_implementation = name
    maps = []
    for block in blocks:
        parts = next(seen[id(module)] for module in block.modules() if id(module) in seen)
        if len(parts) == 1:
            maps.append(parts[0])
            continue
        whole, start = np.zeros((1, *[sum(part.shape[-1] for part in parts)] * 2)), 0
        for part in parts:  # windows
            stop = start + part.shape[-1]
            whole[0, start:stop, start:stop], start = part[0], stop
        maps.append(whole)
    return maps


def test_maps_are_those_of_eager_attention(towered: Towered, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before they are packed to 1e-5; as stored to the byte but for rounding."""
    plan, fused = towered.plan, []

    def kept(seen: Any, lengths: Any, fusion: str) -> Any:
        fused.append(fused_map(seen, fusion).numpy())
        return packed_map(seen, lengths, fusion)

    monkeypatch.setattr(tower_maps, "packed_map", kept)
    for k in (0, 1):
        image, fused[:] = photo(towered, k), []
        towered.session.model.features(towered.session.prepare(image), maps=towered.session.tower_maps.request(k))
        eager = eager_maps(towered, image)
        assert len(eager) == plan.tower.blocks == plan.store.vision_blocks
        windows = sorted(fused, key=len)
        np.testing.assert_allclose(np.sort(np.concatenate([w[w > 0] for w in windows])), np.sort(_weights(eager)), atol=1e-5)
        if not any(name in plan.source.config["model_type"] for name in ("qwen2_5",)):
            for found, expected in zip(fused, eager, strict=True):
                np.testing.assert_allclose(found, expected, atol=1e-5)
        stored, grid = towered.store.read("vision_maps", examples=k), towered.session.prepare(image).tensors.get("image_grid_thw")
        for block, expected in enumerate(eager):
            if grid is not None:
                order = patch_places(towered.tower, grid)
                expected = expected[:, order][:, :, order]
            views, tokens = expected.shape[:2]
            ours = stored[block, :views, :tokens, :tokens].astype(int)
            assert np.abs(ours - encode_maps(expected, causal=False).astype(int)).max() <= 1
            assert not stored[block, views:].any()
            assert not stored[block, :, tokens:].any()
            assert not stored[block, :, :, tokens:].any()


def _weights(maps: list[np.ndarray]) -> np.ndarray:
    found = np.concatenate([each.ravel() for each in maps])
    return found[found > 0]


def test_each_patch_shows_its_part_of_the_image(towered: Towered) -> None:
    """A small change of the picture changes what enters the first block at the patches of every view that show it, and no others."""
    image = photo(towered)
    for x, y in ((0.05, 0.07), (0.93, 0.9), (0.4, 0.62)):
        before, after = (_entry(towered, each) for each in (image, _painted(towered, x, y)))
        moved = np.abs(after - before).max(-1) > 1e-5
        for k, view in enumerate(views_of(towered.plan, 0)):
            (rows, columns), (x0, y0, x1, y1) = view.grid, view.box
            row, column = int((y - y0) / (y1 - y0) * rows // 1), int((x - x0) / (x1 - x0) * columns // 1)
            inside = 0 <= row < rows and 0 <= column < columns
            places = np.flatnonzero(moved[k, towered.plan.tower.class_tokens :])
            near = [p for p in places if abs(p // columns - row) <= 1 and abs(p % columns - column) <= 1]
            assert len(near) == len(places) <= 4  # the picture is resized smoothly
            if inside:
                assert row * columns + column in places


def _painted(found: Towered, x: float, y: float) -> Image.Image:
    image, (x0, y0, x1, y1) = photo(found).copy(), found.plan.layouts[0].view
    place = round(x0 + x * (x1 - x0)), round(y0 + y * (y1 - y0))
    image.paste((255, 0, 255), (place[0] - 1, place[1] - 1, place[0] + 1, place[1] + 1))
    return image


def _entry(found: Towered, image: Image.Image) -> np.ndarray:
    kept: list[torch.Tensor] = []

    def hook(module: Any, args: Any, kwargs: Any) -> None:
        kept.append((args[0] if args else kwargs["hidden_states"]).clone())

    handle = found.blocks[0].register_forward_pre_hook(hook, with_kwargs=True)
    found.features(image)
    handle.remove()
    return found.in_views(kept[0], image)


@pytest.mark.parametrize("k", [0, 1])
def test_an_image_token_is_made_of_its_own_patches_alone(towered: Towered, k: int) -> None:
    """Every token that leaves the last block is changed in turn: the features that move are those of its prompt token."""
    plan, image = towered.plan, photo(towered, k)
    plain, parents = towered.features(image), parents_of(plan, k)
    positions = np.flatnonzero(plan.layouts[k].ids == plan.tokenizer.image_id)
    assert len(plain) == len(positions)
    grid = towered.session.prepare(image).tensors.get("image_grid_thw")
    order = None if grid is None else patch_places(towered.tower, grid)
    fed = np.zeros(len(positions), int)
    for view, token in _some(parents.shape):
        moved = np.abs(_with_change(towered, image, view, token if order is None else int(order[token])) - plain).max(-1) > 1e-6
        assert positions[moved].tolist() == [parents[view, token]] * int(parents[view, token] >= 0)
        fed += moved
    assert plan.store.vision_views >= len(parents)
    stored = towered.store.read("vision_parent", examples=k)[: len(parents), : parents.shape[1]]
    np.testing.assert_array_equal(stored, parents)
    counts = np.bincount(parents[parents >= 0], minlength=len(plan.layouts[k].ids))[positions]
    newline = counts == 0
    assert len(set(counts[~newline].tolist())) == 1
    assert newline.any() == (plan.source.config["model_type"] == "llava_next")


def _some(shape: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """All tokens of small towers, else every seventh."""
    for number in range(0, shape[0] * shape[1], 1 if shape[0] * shape[1] < 100 else 7):
        yield divmod(number, shape[1])


def _with_change(found: Towered, image: Image.Image, view: int, token: int) -> np.ndarray:
    def change(module: Any, args: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        own = hidden[view] if hidden.ndim == 3 else hidden
        own[token] += torch.linspace(-3, 2, hidden.shape[-1])

    handle = found.blocks[-1].register_forward_hook(change)
    try:
        return found.features(image)
    finally:
        handle.remove()


def test_the_store_holds_the_maps_of_mapped_examples(towered: Towered) -> None:
    plan, store = towered.plan, towered.store
    assert verify(towered.path).ok
    assert store.available("vision_maps").tolist() == [True, True, False]
    with pytest.raises(NotRecordedError, match="have no map: 2"):
        store.read("vision_maps", examples=2)
    for k in (0, 1):
        views = views_of(plan, k)
        assert store.read("vision_grid", examples=k)[: len(views)].tolist() == [list(view.grid) for view in views]
        assert (store.read("vision_grid", examples=k)[len(views) :] == -1).all()
        np.testing.assert_allclose(store.read("vision_box", examples=k)[: len(views)], [view.box for view in views], atol=1e-6)
    np.testing.assert_array_equal(store["vision_parent"][1].values, store.read("vision_parent", examples=1))
    sizes = plan.store.sizes
    line = f"attention maps of 2 examples in {sizes['vision_block']} blocks of the vision tower, at most {sizes['view']} views of"
    assert line in plan_summary(plan)
    estimate = plan.estimate.set_index("array")["estimated_bytes"]
    assert 0.5 < estimate["vision_maps"] / sum(p.stat().st_size for p in (towered.path / "vision_maps").rglob("*") if p.is_file()) < 2


@pytest.mark.slow
@pytest.mark.parametrize("towered", ["llava_next"], indirect=True)
def test_copies_keep_the_maps(towered: Towered, tmp_path: Path) -> None:
    store = towered.store
    copy_store(towered.path, tmp_path / "copy.zarr")
    assert diff_stores(towered.path, tmp_path / "copy.zarr").same
    copy_store(towered.path, tmp_path / "part.zarr", examples=[1], layers=[0])
    np.testing.assert_array_equal(ActivationStore.open(tmp_path / "part.zarr").read("vision_maps"), store.read("vision_maps", examples=[1]))


def composed(found: Towered, k: int) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """(block, token, token) attention of the decoder, (token, view, token of it) which tokens of the tower an image token is made of, and
    (view, token, token) attention of each block of the tower: all of transformers' eager attention, fused over heads."""
    plan, image = found.plan, photo(found, k)
    model = transformers.AutoModelForImageTextToText.from_pretrained(plan.source.folder, dtype=torch.float32, attn_implementation="eager")
    known = set(inspect.signature(model.forward).parameters) - {"labels"}
    inputs = {name: each for name, each in check_prompt(plan, k, [image], load_processor(plan)).items() if name in known}
    with torch.inference_mode():
        attentions = model.eval()(**inputs, output_attentions=True).attentions
    tower, grid = eager_maps(found, image), inputs.get("image_grid_thw")
    if grid is not None:
        order = patch_places(found.tower, grid)
        tower = [each[:, order][:, :, order] for each in tower]
    made = parents_of(plan, k)[None] == np.arange(len(plan.layouts[k].ids))[:, None, None]
    return np.stack([each[0].double().mean(0).numpy() for each in attentions]), made, tower


def test_rollout_runs_through_the_tower_as_the_product_of_all_maps(towered: Towered) -> None:
    """Abnar & Zuidema's equation over the nodes of decoder and tower, as whole matrices; maps in the store are packed to within 2 %."""
    if towered.store.layout.softmax_layers:
        with pytest.raises(NotRecordedError, match="expected softmax attention in all 4 blocks"):
            rollout_examples(towered.store)
        return
    result = rollout_examples(towered.store, form="raw")
    for k in (0, 1):
        decoder, made, tower = composed(towered, k)
        rolled = np.eye(len(decoder[0]))[-1]
        for weights in decoder[::-1]:
            rolled = rolled @ (weights + np.eye(len(weights))) / 2
        tokens = made.reshape(len(rolled), -1)
        shares = tokens / np.maximum(tokens.sum(1, keepdims=True), 1)
        below = (rolled @ shares).reshape(made.shape[1:])
        for weights in tower[::-1]:
            below = np.stack([own @ (each + np.eye(len(each))) / 2 for own, each in zip(below, weights, strict=True)])
        patches = below[:, towered.plan.tower.class_tokens :]
        found = result.patches[k, : len(patches), : patches.shape[1]]
        assert np.abs(found - patches).sum() < 0.02 * patches.sum()
        assert np.isnan(result.patches[k, len(patches) :]).all()
        assert np.isnan(result.patches[k, :, patches.shape[1] :]).all()
        if towered.plan.source.config["model_type"] != "llava_next":  # whose tiles also show padding
            assert result.onto_patches(k).sum() == pytest.approx(np.nansum(result.patches[k]))
    assert rollout_examples(towered.store, tower="decoder").patches is None
    pictures = [ax for ax in result.figure(towered.store).axes if ax.get_title(loc="left")]
    assert len(pictures) == 2 * (1 if towered.plan.layouts[0].grid == NO_GRID else 2)


@pytest.mark.parametrize("towered", ["llava", "qwen2_5_vl"], indirect=True)
def test_flow_runs_through_the_tower_as_networkx_says(towered: Towered) -> None:
    """Over the nodes of decoder and tower with eager attention, as whole numbers."""
    decoder, made, tower = composed(towered, 0)
    parents = np.where(made.any(0), made.argmax(0), -1)
    found, graph = tower_flow(decoder, np.stack(tower), parents), network(decoder, np.stack(tower), parents)
    for token in (towered.plan.tower.class_tokens, parents.shape[1] - 1):
        expected = networkx.maximum_flow_value(
            graph, ("decoder", len(decoder), len(decoder[0]) - 1), ("tower", 0, 0, token), flow_func=dinitz
        )
        assert round(found.value[0, token] * UNIT) == expected
    result = flow_examples(towered.store, [0], tower="vision")
    patches = found.value[:, towered.plan.tower.class_tokens :]
    np.testing.assert_allclose(result.patches[0, : len(patches), : patches.shape[1]], patches, rtol=0.05)
    (rows, columns), cells = views_of(towered.plan, 0)[0].grid, result.onto_patches(0)
    np.testing.assert_array_equal(cells.ravel(), result.patches[0, 0, : rows * columns])
    assert "through the vision tower to the image's patches" in result.summary()
    assert result.figure(towered.store) is not None
    with pytest.raises(InvalidInputError, match="expected a `window` of all blocks for flow through the vision tower"):
        flow_examples(towered.store, [0], tower="vision", window=(1, 3))


def test_what_cannot_be_told_is_refused_by_name(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"found model_type 'qwen3_vl': features of several blocks .* \(deepstack\)"):
        plan_extraction(settings_of(photos, save("qwen3_vl", tmp_path / "qwen3_vl")))
    model = save("llava", tmp_path / "llava")
    with pytest.raises(InvalidInputError, match="expected attention_maps in `record` beside vision_maps"):
        settings_of(photos, model, record=("vision_maps",))
    with pytest.raises(InvalidInputError, match="permuted image tokens"):
        settings_of(photos, model, condition="patch-shuffle")
    config = json.loads((model / "config.json").read_text())
    for name, value, reason in (
        ("vision_feature_layer", [1, 2], r"several blocks of the vision tower, vision_feature_layer \[1, 2\]"),
        ("vision_feature_layer", 0, "before the first block"),
    ):
        (model / "config.json").write_text(json.dumps(config | {name: value}))
        with pytest.raises(InvalidInputError, match=reason):
            plan_extraction(settings_of(photos, model))


def test_another_tower_than_planned_stops_the_extraction(towered: Towered) -> None:
    request, prepared = towered.request(), towered.session.prepare(photo(towered))
    with pytest.raises(CaptureError, match=r"expected .* views of .* tokens in the vision tower, found"):
        towered.session.model.features(prepared, maps=dataclasses.replace(request, grids=((2, 2),)))
    with pytest.raises(CaptureError, match="found another kernel in block"):
        towered.session.model.features(prepared, maps=dataclasses.replace(request, blocks=9))
