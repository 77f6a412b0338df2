"""Several images an example, and few-shot turns with images: against each family's own processor and the stock model."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from stratascope.errors import InvalidInputError, ProvenanceMismatchError  # noqa: E402
from stratascope.extract import ExtractionSettings, plan_extraction, run_extraction  # noqa: E402
from stratascope.extract.families.image_tokens import PatchGrid  # noqa: E402
from stratascope.extract.plan.extraction_plan import ExtractionPlan  # noqa: E402
from stratascope.extract.plan.images import open_image  # noqa: E402
from stratascope.extract.plan.intervention_plan import check_same_extraction, settings_of_store  # noqa: E402
from stratascope.extract.plan.plan_summary import plan_summary  # noqa: E402
from stratascope.extract.run.capture import text_decoder  # noqa: E402
from stratascope.store import ActivationStore, verify  # noqa: E402
from stratascope.store.format.prompt_parts import PARTS, parts_of  # noqa: E402
from tests.extract.families import FAMILIES  # noqa: E402
from tests.extract.saved import save  # noqa: E402
from tests.extract.test_knockout import eager_difference  # noqa: E402

SIZES = [(120, 80), (80, 120), (97, 61), (200, 60)]
PAIRS = [(0, 1), (2, 3), (3, 2)]
CAPTION, RELATION = "The cat is at the left side of the car.", "at the left side of"
TOML = """
text = "True or false: {caption} Answer True or False."
answers = ["True", "False"]
[[shots]]
image = ["shot-0.png", "shot-1.png"]
caption = "The cat is at the left side of the car."
answer = "True"
[[shots]]
image = "shot-1.png"
caption = "The cat is on the car."
answer = "False"
"""
RECORD = ("residual", "attention_rows", "knockout")
PREFIX = ("paligemma", "paligemma2")
FEW = ("qwen2_5_vl", "gemma3", "paligemma")
"""Position ids in three axes, attention within images, and no turns."""


def photo(seed: int, width: int, height: int) -> Image.Image:
    blocks = np.random.default_rng(seed).integers(0, 256, (height // 10 + 1, width // 10 + 1, 3), np.uint8)
    return Image.fromarray(blocks).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four photos, rows that show two of them, and two photos and a prompt with few-shot turns."""
    folder = tmp_path_factory.mktemp("photos")
    for k, size in enumerate(SIZES):
        photo(k, *size).save(folder / f"{k}.png")
    for k, size in enumerate([(140, 90), (60, 60)]):
        photo(10 + k, *size).save(folder / f"shot-{k}.png")
    rows = [
        {"image": [f"{a}.png", f"{b}.png"], "caption": CAPTION, "relation": RELATION, "label": k % 2, "id": f"r{k}"}
        for k, (a, b) in enumerate(PAIRS)
    ]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "few.toml").write_text(TOML)
    return folder


def settings_of(model: str, photos: Path, **more: Any) -> ExtractionSettings:
    given = {"examples": (photos / "rows.jsonl",), "images": photos, "device": "cpu", "record": RECORD, "knockout_window": 0}
    return ExtractionSettings(**{"model": model, **given, **more})


@dataclass(frozen=True)
class Extracted:
    """A family's model in a folder, and the plan and the store of its extraction, in one batch."""

    folder: Path
    plan: ExtractionPlan
    store: ActivationStore

    def stock_inputs(self, k: int) -> dict[str, torch.Tensor]:
        """What transformers' own processor makes of an example's images and turns."""
        processor, plan = transformers.AutoProcessor.from_pretrained(self.folder), self.plan
        images = [open_image(plan.settings.images / name) for name in plan.images_of(k)]
        rule = plan.tokenizer.rule
        if isinstance(rule, PatchGrid):
            images = [image.resize(rule.resize(*image.size), Image.Resampling.BICUBIC) for image in images]
        asked = plan.prompt.fill(plan.examples[k]).text
        if not plan.prompt.shots:
            made = processor(text=f"{'<image>' * len(images)}{asked}", images=[images], return_tensors="pt")
            return {key: value for key, value in made.items() if key != "labels"}
        turns: list[dict[str, Any]] = []
        rest = iter(images)
        for shot in plan.prompt.shots:
            turns.append(_user([next(rest) for _ in shot.images], shot.text))
            turns.append({"role": "assistant", "content": [{"type": "text", "text": shot.answer}]})
        turns.append(_user(list(rest), asked))
        return dict(processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"))


def _user(images: list[Image.Image], text: str) -> dict[str, Any]:
    return {"role": "user", "content": [*({"type": "image", "image": image} for image in images), {"type": "text", "text": text}]}


@pytest.fixture(scope="module", params=[pytest.param(name, marks=[] if name in FEW else pytest.mark.slow) for name in FAMILIES])
def extracted(request: pytest.FixtureRequest, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Extracted:
    folder = save(request.param, tmp_path_factory.mktemp(request.param))
    prompt = {} if request.param in PREFIX else {"prompt": str(photos / "few.toml")}
    plan = plan_extraction(settings_of(str(folder), photos, **prompt))
    report = run_extraction(plan, folder / "s.zarr")  # compares the first batch with the processor
    assert not report.failed
    assert verify(folder / "s.zarr").ok
    return Extracted(folder, plan, ActivationStore.open(folder / "s.zarr"))


def test_tokens_and_spans_are_those_of_the_processor(extracted: Extracted) -> None:
    plan, shots = extracted.plan, len(extracted.plan.shots)
    for k, layout in enumerate(plan.layouts):
        assert layout.ids.tolist() == extracted.stock_inputs(k)["input_ids"][0].tolist()
        words = {name: plan.tokenizer.tokenizer.decode(layout.ids[a:b].tolist()).strip() for name, (a, b) in layout.spans.items()}
        assert [words[name] for name in ("subject", "relation", "object", "caption")] == ["cat", RELATION, "car", CAPTION]
        image, first, second = (layout.spans[name] for name in ("image", "image_1", "image_2"))
        assert image[0] <= first[0] < first[1] <= second[0] < second[1] <= image[1] <= layout.spans["prompt"][0]
        of_image = layout.ids == plan.tokenizer.image_id
        assert of_image[slice(*first)].all()
        assert of_image[slice(*second)].all()
        earlier = {name for name, (start, _) in layout.spans.items() if start < np.flatnonzero(of_image)[0]} - {"system"}
        assert not earlier
        assert of_image[: image[0]].any() == bool(shots), "few-shot images come before the example's"
    part = parts_of(extracted.store, np.arange(3))
    for k, layout in enumerate(plan.layouts):
        own = np.zeros(len(layout.ids), bool)
        own[slice(*layout.spans["image"])] = True
        assert ((part[k, : len(own)] == PARTS.index("image")) == own).all()
        assert layout.grid == (0, 0)


def test_a_batch_holds_what_the_stock_eager_model_has_of_each_example(extracted: Extracted) -> None:
    plan, store = extracted.plan, extracted.store
    assert store.positions == ("final", "image_1", "image_2", "subject", "relation", "object")
    model = transformers.AutoModelForImageTextToText.from_pretrained(
        extracted.folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    blocks, pair = text_decoder(model).layers, tuple(plan.tokenizer.choice_ids.values())
    for k, layout in enumerate(plan.layouts):
        inputs: list[torch.Tensor] = []
        hooks = [
            block.register_forward_pre_hook(
                lambda module, args, kwargs, inputs=inputs: inputs.append((args[0] if args else kwargs["hidden_states"]).clone()),
                with_kwargs=True,
            )
            for block in blocks
        ]
        given = extracted.stock_inputs(k)
        with torch.inference_mode():
            output = model(**given, output_attentions=True)
        for hook in hooks:
            hook.remove()
        for block, attention in enumerate(output.attentions):
            held = store.read("attention_rows", layer=block, examples=[k])[0][:, : len(layout.ids)]
            np.testing.assert_allclose(held, attention[0, :, -1], atol=6e-4)  # stored as float16
            for position in store.positions:
                span = layout.spans[position]
                tokens = slice(*span) if position.startswith("image") else slice(span[1] - 1, span[1])
                found = store.read("residual", position=position, layer=block, examples=[k])[0]
                np.testing.assert_allclose(found, inputs[block][0, tokens].mean(0), rtol=2e-4, atol=2e-4)
        np.testing.assert_allclose(store.read("answer_logits", examples=[k])[0], output.logits[0, -1, list(pair)], rtol=2e-4, atol=2e-3)
    names, effects = store.read("knockout_target").tolist(), store.read("knockout", examples=2)
    untouched = eager_difference(model, given, torch.zeros(0, dtype=torch.long), "later", (0, 0), pair)
    for target in ("image", "image_1", "image_2"):
        hidden = torch.from_numpy(plan.masked_tokens(2)[target])
        for m, mode in enumerate(("final", "later")):
            moved = eager_difference(model, given, hidden, mode, (0, len(blocks) - 1), pair) - untouched
            assert effects[m, 0, names.index(target)] == pytest.approx(moved, abs=2e-3), (target, mode)


def test_a_left_padded_batch_of_the_stock_model_has_the_same_rows_and_answers(photos: Path, tmp_path: Path) -> None:
    folder = save("qwen2_5_vl", tmp_path)
    plan = plan_extraction(settings_of(str(folder), photos, record=("residual", "attention_rows")))
    run_extraction(plan, tmp_path / "s.zarr")
    store, rule, processor = (
        ActivationStore.open(tmp_path / "s.zarr"),
        plan.tokenizer.rule,
        transformers.AutoProcessor.from_pretrained(folder),
    )
    assert isinstance(rule, PatchGrid)
    assert len(set(plan.token_counts.tolist())) > 1
    images = [[open_image(photos / name) for name in plan.images_of(k)] for k in range(3)]
    sized = [[image.resize(rule.resize(*image.size), Image.Resampling.BICUBIC) for image in each] for each in images]
    texts = [plan.tokenizer.prompt_format.render(plan.prompt.fill(example).text) for example in plan.examples]
    given = processor(text=texts, images=sized, padding=True, padding_side="left", return_tensors="pt")
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.inference_mode():
        output = model(**given, output_attentions=True)
    for k, count in enumerate(plan.token_counts.tolist()):
        for block, attention in enumerate(output.attentions):
            held = store.read("attention_rows", layer=block, examples=[k])[0][:, :count]
            np.testing.assert_allclose(held, attention[k, :, -1, -count:], atol=6e-4)
        expected = output.logits[k, -1, list(plan.tokenizer.choice_ids.values())]
        np.testing.assert_allclose(store.read("answer_logits", examples=[k])[0], expected, rtol=2e-4, atol=2e-3)


def test_a_store_names_every_image_and_shows_them_side_by_side(photos: Path, tmp_path: Path) -> None:
    plan = plan_extraction(settings_of("demo", photos, condition="mirror", record=("residual",), thumbnail=(41, 30)))
    run_extraction(plan, tmp_path / "s.zarr")
    store = ActivationStore.open(tmp_path / "s.zarr")
    table = store.examples
    assert table[["image", "image_2", "shown_image_2"]].to_numpy().tolist() == [[f"{a}.png", f"{b}.png", f"{b}.png"] for a, b in PAIRS]
    assert table[["image_width", "image_height", "image_2_width", "image_2_height"]].iloc[0].tolist() == [120, 80, 80, 120]
    mirrored = [np.asarray(open_image(photos / f"{k}.png").transpose(Image.Transpose.FLIP_LEFT_RIGHT).resize((20, 30))) for k in (0, 1)]
    small = store.thumbnail(0)
    assert small.shape == (30, 41, 3)
    for start, expected in ((0, mirrored[0]), (21, mirrored[1])):
        found = small[:, start : start + 20]
        own, other = (np.abs(found.astype(int) - each).mean() for each in (expected, expected[:, ::-1]))
        assert own < other / 2
    assert verify(tmp_path / "s.zarr", images=photos).ok
    text = plan_summary(plan)
    assert "[image_1: 12 tokens]" in text
    assert "[image_2: 12 tokens]" in text


def test_few_shot_images_keep_their_pixels_and_are_part_of_the_provenance(photos: Path, tmp_path: Path) -> None:
    asked = settings_of("demo", photos, prompt=str(photos / "few.toml"), record=("residual",), condition="blank")
    plan = plan_extraction(asked)
    run_extraction(plan, tmp_path / "s.zarr")
    store = ActivationStore.open(tmp_path / "s.zarr")
    assert "shots      2 with 3 images" in plan_summary(plan)
    held = store.provenance
    assert held["prompt"]["shots"][1] == {
        "images": ["shot-1.png"],
        "text": "True or false: The cat is on the car. Answer True or False.",
        "answer": "False",
    }
    assert held["data"]["shots"] == {name: plan.facts[name].sha256 for name in ("shot-0.png", "shot-1.png")}
    again = settings_of_store(store, data=asked.examples, images=photos, device="cpu")
    assert again.asked.shots == asked.asked.shots
    check_same_extraction(plan_extraction(again), store)
    moved = tmp_path / "moved"
    moved.mkdir()
    for path in photos.glob("*.png"):
        (moved / path.name).write_bytes(path.read_bytes())
    photo(77, 60, 60).save(moved / "shot-1.png")
    other = dataclasses.replace(again, images=moved)
    with pytest.raises(ProvenanceMismatchError, match=r"data\.shots"):
        check_same_extraction(plan_extraction(other), store)
    run_extraction(plan_extraction(dataclasses.replace(asked, images=moved)), tmp_path / "other.zarr")
    other_store = ActivationStore.open(tmp_path / "other.zarr")
    apart = np.abs(store.read("residual", position="final", layer=4) - other_store.read("residual", position="final", layer=4)).max(-1)
    assert (apart > 1e-4).all(), "blank images of the examples, but not those of the shots"
    photo(0, *SIZES[0]).save(moved / "shot-1.png")
    with pytest.raises(InvalidInputError, match=r"example r0: expected another image than those of the prompt's shots, found 0.png, which"):
        plan_extraction(other)


def test_few_shot_turns_do_not_change_what_the_tower_gives_of_the_image(settings: ExtractionSettings, tmp_path: Path) -> None:
    """Cells, boxes, image tokens and the vision tower are those of the example's own image, wherever it stands in the prompt."""
    rows = [json.loads(line) for line in settings.examples[0].read_text().splitlines()]
    (tmp_path / "few.toml").write_text(TOML.replace("shot-0.png", rows[-1]["image"]).replace("shot-1.png", rows[-2]["image"]))
    record = ("residual", "vision_residual", "vision_output", "vision_change")
    asked = dataclasses.replace(settings, limit=6, record=record, positions=("default", "cells"), patches=2, patch_layers=(0,))
    stores = []
    for name, more in (("few", {"prompt": str(tmp_path / "few.toml")}), ("bare", {})):
        plan = plan_extraction(dataclasses.replace(asked, **more))
        run_extraction(plan, tmp_path / f"{name}.zarr")
        stores.append(ActivationStore.open(tmp_path / f"{name}.zarr"))
    few, bare = stores
    assert (few.n_tokens > bare.n_tokens + 100).all()
    assert few.spans["image"][:, 0].min() > bare.spans["image"][:, 0].max()
    assert few.positions == bare.positions
    for array in ("vision_residual", "vision_output", "vision_change", "patch_residual"):
        examples = np.flatnonzero(few.available(array))
        assert len(examples) == (2 if array == "patch_residual" else 6)
        np.testing.assert_array_equal(few.read(array, examples=examples), bare.read(array, examples=examples))
    placed = [name for name in few.positions if name == "image" or name.endswith("_box") or name.startswith("cell_")]
    assert len(placed) > 20
    for position in placed:
        np.testing.assert_array_equal(*(store.read("residual", layer=0, position=position) for store in stores))
    assert np.isfinite(few.read("residual", layer=0, position="subject_box")).any()


def test_generated_tokens_and_long_answers_follow_several_images(photos: Path, tmp_path: Path) -> None:
    """The first batch is compared with passes over prompt and tokens of the processor's own inputs."""
    (tmp_path / "long.toml").write_text(TOML.replace('"True"', '"Certainly true"').replace('"False"', '"Certainly false"'))
    plan = plan_extraction(settings_of("demo", photos, prompt=str(tmp_path / "long.toml"), record=("residual",), generate=3))
    assert plan.tokenizer.scored
    report = run_extraction(plan, tmp_path / "s.zarr")
    assert not report.failed
    assert (ActivationStore.open(tmp_path / "s.zarr").read("generated_tokens")[:, 0] >= 0).all()


def test_what_needs_a_single_image_is_refused(photos: Path) -> None:
    images, categories = [{"id": 0, "file_name": "0.png", "width": 120, "height": 80}], [{"id": 0, "name": "cat"}]
    box = {"id": 0, "image_id": 0, "category_id": 0, "bbox": [5, 5, 9, 9]}
    (photos / "boxes.json").write_text(json.dumps({"images": images, "annotations": [box], "categories": categories}))
    for more, message in (
        ({"positions": ("image",)}, "expected positions of images among image_1, image_2, as examples have 2 images, found image"),
        ({"positions": ("image_3",)}, "among image_1, image_2, as examples have 2 images, found image_3"),
        ({"positions": ("final", "cells")}, "expected one image an example for `positions` cells, found 2"),
        ({"record": ("residual", "vision_output")}, "expected one image an example for `record` vision_output"),
        ({"record": ("attention_maps", "vision_maps")}, "expected one image an example for `record` vision_maps"),
        ({"record": ("vision_change",)}, "expected one image an example for `record` vision_change"),
        ({"patches": 2}, "expected one image an example for `patches` 2"),
        ({"condition": "patch-shuffle"}, "expected one image an example for `condition` patch-shuffle"),
        ({"boxes": photos / "boxes.json"}, "expected one image an example for `boxes`, found 2"),
        ({"images": photos / "none"}, "expected a folder of images"),
        ({"prompt": "In {image_2} {caption}", "answers": ("a", "b")}, r"before or after the text, found the field \{image_2\}"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            plan_extraction(settings_of("demo", photos, **more))
    one = photos / "one.jsonl"
    one.write_text(json.dumps({"image": "0.png", "caption": CAPTION, "relation": RELATION, "label": 1}))
    with pytest.raises(InvalidInputError, match="expected positions of images among image, as examples have 1 image, found image_1"):
        plan_extraction(settings_of("demo", photos, examples=(one,), positions=("image_1",)))
    few = settings_of("demo", photos, examples=(one,), prompt=str(photos / "few.toml"), condition="patch-shuffle")
    with pytest.raises(InvalidInputError, match="expected a prompt without few-shot images for `condition` patch-shuffle"):
        plan_extraction(few)


def test_a_second_image_that_is_missing_or_damaged_is_named(photos: Path, tmp_path: Path) -> None:
    rows = [{"image": ["0.png", name], "caption": CAPTION, "relation": RELATION, "label": 1} for name in ("1.png", "lost.png")]
    file = photos / "lost.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    asked = settings_of("demo", photos, examples=(file,), record=("residual",))
    with pytest.raises(InvalidInputError, match=r"lost\.png is missing"):
        plan_extraction(asked)
    (photos / "lost.png").write_bytes(b"no image")
    plan = plan_extraction(asked)
    assert list(plan.failed) == [1]
    report = run_extraction(plan, tmp_path / "s.zarr")
    assert report.failed
    store = ActivationStore.open(tmp_path / "s.zarr")
    assert store.available("residual").tolist() == [True, False]
    (photos / "lost.png").unlink()
    (photos / "lost.toml").write_text(TOML.replace("shot-1.png", "lost.png"))
    with pytest.raises(InvalidInputError, match=r"lost\.png is missing"):
        plan_extraction(settings_of("demo", photos, prompt=str(photos / "lost.toml")))


def test_prompts_without_turns_take_no_shots(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"expected no shots in the prompt for .* a prefix without turns"):
        plan_extraction(settings_of(str(save("paligemma", tmp_path)), photos, prompt=str(photos / "few.toml")))
