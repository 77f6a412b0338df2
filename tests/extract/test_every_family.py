"""Every family planned and extracted: against its own processor and the stock model with eager attention."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from PIL import Image, ImageOps

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from stratascope.analysis.box_cells import box_tokens  # noqa: E402
from stratascope.datasets import Example, Prompt, split_caption  # noqa: E402
from stratascope.errors import CaptureError, InvalidInputError  # noqa: E402
from stratascope.extract import ExtractionSettings, plan_extraction, run_extraction  # noqa: E402
from stratascope.extract.families.image_tokens import TILES, PatchGrid  # noqa: E402
from stratascope.extract.plan.extraction_plan import ExtractionPlan  # noqa: E402
from stratascope.extract.plan.images import open_image  # noqa: E402
from stratascope.extract.plan.plan_summary import plan_summary  # noqa: E402
from stratascope.extract.plan.settings import RECORDS  # noqa: E402
from stratascope.extract.plan.store_contents import store_contents  # noqa: E402
from stratascope.extract.plan.token_layout import PromptTokenizer  # noqa: E402
from stratascope.extract.run.capture import text_decoder  # noqa: E402
from stratascope.extract.run.generation import with_generated_tokens  # noqa: E402
from stratascope.extract.run.inputs import forward_inputs  # noqa: E402
from stratascope.extract.run.self_check import check_prompt  # noqa: E402
from stratascope.extract.run.session import ExtractionSession  # noqa: E402
from stratascope.extract.run.shard_block import fill_blocks  # noqa: E402
from stratascope.store import ActivationStore, verify  # noqa: E402
from stratascope.store.format.prompt_parts import PARTS, token_parts  # noqa: E402
from tests.extract.families import FAMILIES  # noqa: E402
from tests.extract.saved import save  # noqa: E402
from tests.extract.test_knockout import eager_difference  # noqa: E402
from tests.extract.test_selfcheck import Taken  # noqa: E402

SIZES = [(120, 80), (80, 120), (97, 61), (200, 60)]
CAPTIONS = [
    ("The cat is at the left side of the refrigerator.", "at the left side of"),
    ("The potted plant is below the car.", "below"),
    ("The cat is on the car.", "on"),
    ("The refrigerator is under the potted plant.", "under"),
]


@dataclass(frozen=True)
class Planned:
    """A family's model in a folder, and a plan for four photos of differing sizes."""

    name: str
    folder: Path
    plan: ExtractionPlan

    def request(self, k: int) -> tuple[str, Image.Image]:
        """The user's text and the image, resized as qwen_vl_utils does for Qwen."""
        image = open_image(self.plan.settings.images / self.plan.shown[k])
        rule = self.plan.tokenizer.rule
        if isinstance(rule, PatchGrid):
            image = image.resize(rule.resize(*image.size), Image.Resampling.BICUBIC)
        return self.plan.prompt.fill(self.plan.examples[k]).text, image

    def stock_inputs(self, k: int) -> dict[str, torch.Tensor]:
        """What transformers' own processor makes of an example, asked as its documentation says."""
        text, image = self.request(k)
        processor = stock_processor(self.folder)
        if self.name.startswith("paligemma"):
            made = processor(text=f"<image>{text}", images=image, return_tensors="pt")
            return {key: value for key, value in made.items() if key != "labels"}
        turn = {"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": text}]}
        return dict(processor.apply_chat_template([turn], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"))


@cache
def stock_processor(folder: Path) -> Any:
    return transformers.AutoProcessor.from_pretrained(folder)


@cache
def stock_model(folder: Path) -> Any:
    return transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


@pytest.fixture(scope="module", params=FAMILIES)
def planned(request: pytest.FixtureRequest, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Planned:
    folder = save(request.param, tmp_path_factory.mktemp(request.param))
    settings = ExtractionSettings(
        model=str(folder), examples=(photos / "rows.jsonl",), images=photos, boxes=photos / "instances.json", device="cpu"
    )
    return Planned(request.param, folder, plan_extraction(settings))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four photos of noise, their rows and boxes."""
    folder, generator = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    rows, images, annotations = [], [], []
    for k, ((width, height), (caption, relation)) in enumerate(zip(SIZES, CAPTIONS, strict=True)):
        blocks = generator.integers(0, 256, (height // 10 + 1, width // 10 + 1, 3), np.uint8)
        Image.fromarray(blocks).resize((width, height), Image.Resampling.BICUBIC).save(folder / f"{k}.png")
        rows.append({"image": f"{k}.png", "caption": caption, "relation": relation, "label": k % 2, "split": "test"})
        images.append({"id": k, "file_name": f"{k}.png", "width": width, "height": height})
        for category, box in ((k % 2, [5, 5, width / 3, height / 3]), (2 + k % 2, [width / 2, height / 2, width / 3, height / 4])):
            annotations.append({"id": len(annotations), "image_id": k, "category_id": category, "bbox": box})
    names = ["cat", "potted plant", "refrigerator", "car"]
    boxes = {"images": images, "annotations": annotations, "categories": [{"id": k, "name": name} for k, name in enumerate(names)]}
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "instances.json").write_text(json.dumps(boxes))
    return folder


@pytest.mark.slow
def test_planned_tokens_are_the_processors(planned: Planned) -> None:
    for k, layout in enumerate(planned.plan.layouts):
        assert layout.ids.tolist() == planned.stock_inputs(k)["input_ids"][0].tolist()
    assert len({len(layout.ids) for layout in planned.plan.layouts}) > 1


def test_blocks_of_the_tower_that_see_the_whole_image_are_those_without_windows(planned: Planned) -> None:
    tower = getattr(stock_model(planned.folder).model, "visual", None)
    config = getattr(tower, "config", None)
    windowed = getattr(config, "fullatt_block_indexes", None)
    depth = planned.plan.shape.vision_layers
    assert planned.plan.shape.vision_whole == tuple(range(depth) if windowed is None else windowed)


def test_spans_hold_exactly_their_words(planned: Planned) -> None:
    plan = planned.plan
    for k, layout in enumerate(plan.layouts):
        decode = plan.tokenizer.tokenizer.decode
        words = {name: decode(layout.ids[a:b].tolist(), skip_special_tokens=False).strip() for name, (a, b) in layout.spans.items()}
        assert words["subject"] == plan.examples[k].subject
        assert words["relation"] == plan.examples[k].relation
        assert words["object"] == plan.examples[k].object
        assert words["caption"] == plan.examples[k].caption
        assert words["prompt"] == f"True or false: {plan.examples[k].caption} Answer True or False."
        a, b = layout.spans["image"]
        assert set(layout.ids[a:b].tolist()) == {plan.tokenizer.image_id}
        assert b - a == layout.grid[0] * layout.grid[1]
        others = {k for k in np.flatnonzero(layout.ids == plan.tokenizer.image_id).tolist() if not a <= k < b}
        assert others <= set(range(*layout.spans.get(TILES, (0, 0))))


def test_layouts_of_a_plan_are_those_of_each_whole_prompt(planned: Planned) -> None:
    """A plan tokenises texts without what stands around them, where its family's added tokens cut them off."""
    plan = planned.plan
    for k, example in enumerate(plan.examples):
        alone = plan.tokenizer.layout(example, plan.file_size(k))
        np.testing.assert_array_equal(plan.layouts[k].ids, alone.ids)
        assert plan.layouts[k].spans == alone.spans


@pytest.mark.parametrize("subject", ["café au lait", "crème 🙂", "'red-ish' thing", "İstanbul ﬁsh"])
def test_spans_of_words_that_are_cut_into_bytes(planned: Planned, subject: str) -> None:
    caption = f"The {subject} is on the piñata."
    example = Example("x", "x.png", caption, "on", True, "test", split_caption(caption, "on"))
    layout, tokenizer = planned.plan.tokenizer.layout(example, (97, 61)), planned.plan.tokenizer.tokenizer
    for name, expected in (("subject", subject), ("relation", "on"), ("object", "piñata"), ("caption", caption)):
        assert tokenizer.decode(layout.ids[slice(*layout.spans[name])].tolist()).strip() == expected


@pytest.mark.slow
def test_a_padded_batch_equals_stock_eager_single_examples(planned: Planned) -> None:
    plan, members = planned.plan, [0, 1, 2, 3]
    session = ExtractionSession(plan, batch_tokens=100_000)
    images = [planned.request(k)[1] for k in members]
    batch = session._batch(members, images)
    found = session.model.run(batch, session.request)
    model = stock_model(planned.folder)
    blocks = text_decoder(model).layers
    for row in members:
        inputs: list[torch.Tensor] = []
        hooks = [block.register_forward_pre_hook(_keep(inputs), with_kwargs=True) for block in blocks]
        with torch.inference_mode():
            output = model(**planned.stock_inputs(row), output_attentions=True)
        for hook in hooks:
            hook.remove()
        tokens = len(plan.layouts[row].ids)
        for block, attention in enumerate(output.attentions):
            np.testing.assert_allclose(found.rows[block, row, :, :tokens], attention[0, :, -1], atol=1e-5)
            for column, position in enumerate(plan.store.positions):
                tokens_of = plan.position_tokens(row, position)
                if tokens_of is None:
                    continue
                expected = inputs[block][0, tokens_of].mean(0)
                np.testing.assert_allclose(found.residual[block, column, row], expected, rtol=2e-4, atol=2e-4)
        assert abs(found.rows[:, row, :, tokens:]).max(initial=0) == 0
        np.testing.assert_allclose(found.answer_logits[row], output.logits[0, -1, list(session.request.choices)], rtol=2e-4, atol=2e-3)


def _keep(inputs: list[torch.Tensor]) -> Any:
    def hook(module: Any, args: Any, kwargs: Any) -> None:
        inputs.append((args[0] if args else kwargs["hidden_states"]).clone())

    return hook


@pytest.mark.slow
def test_an_example_alone_equals_the_stored(planned: Planned, tmp_path: Path) -> None:
    plan = planned.plan
    run_extraction(plan, tmp_path / "s.zarr")
    store = ActivationStore.open(tmp_path / "s.zarr")
    assert store.complete
    session = ExtractionSession(plan, batch_tokens=1)
    for k in range(4):
        image = open_image(plan.settings.images / plan.shown[k])
        alone = session.model.run(session._batch([k], [image]), session.request)
        tokens = len(plan.layouts[k].ids)
        np.testing.assert_allclose(store.read("attention_rows", examples=[k])[:, 0, :, :tokens], alone.rows[:, 0], atol=1e-3)
        np.testing.assert_allclose(store.read("answer_logits", examples=[k])[0], alone.answer_logits[0], rtol=2e-4, atol=2e-3)
        np.testing.assert_allclose(
            store.read("residual", position="image", examples=[k])[:, 0], alone.residual[:, 1, 0], rtol=2e-4, atol=2e-4
        )
        assert store.grid[k].tolist() == list(plan.layouts[k].grid)
        assert store.spans["image"][k].tolist() == list(plan.layouts[k].spans["image"])
    assert (TILES in store.spans) == (planned.name in ("llava_next", "idefics3", "smolvlm", "internvl"))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_first_batch_in_half_precision_agrees_with_the_model_alone(planned: Planned, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And does not with images that are exchanged, whether they are given as pixels or as features."""
    record = ("residual", "attention_rows", "top_tokens")
    plan = plan_extraction(dataclasses.replace(planned.plan.settings, dtype=dtype, record=record))
    session, keeper = ExtractionSession(plan, batch_tokens=100_000), Taken(4)
    fill_blocks(session, keeper, [0], keeper)
    assert session.checked
    assert np.isfinite(keeper.arrays["answer_logits"]).all()
    session.checked, real = False, ExtractionSession.batch

    def exchanged(self: ExtractionSession, members: Any, images: Any, features: Any = ()) -> Any:
        return real(self, members, images, [*features[1:], *features[:1]])

    monkeypatch.setattr(ExtractionSession, "batch", exchanged)
    if planned.name in ("llava", "gemma3", "paligemma", "paligemma2"):  # whose images all make as many tokens
        with pytest.raises(CaptureError, match=r"residual stream .* apart at layer 0"):
            fill_blocks(session, keeper, [0], keeper)


@pytest.mark.slow
@pytest.mark.parametrize("condition", ["original", "mirror"])
def test_boxes_cover_the_same_cells_for_whoever_reads_the_store(planned: Planned, tmp_path: Path, condition: str) -> None:
    """Boxes in the file's pixels -> cells by the plan; what the store says of sizes and boxes -> cells by the analysis."""
    settings = dataclasses.replace(planned.plan.settings, condition=condition, record=("residual",), thumbnail=(40, 30))
    plan = plan_extraction(settings)
    run_extraction(plan, tmp_path / "s.zarr")
    store = ActivationStore.open(tmp_path / "s.zarr")
    inside = box_tokens(store, np.arange(4))
    for k in range(4):
        for which, name in enumerate(("subject_box", "object_box")):
            tokens = plan.position_tokens(k, name)
            assert np.flatnonzero(inside[k, which]).tolist() == ([] if tokens is None else tokens.tolist())
        image = open_image(plan.settings.images / plan.shown[k])
        seen = (ImageOps.mirror(image) if condition == "mirror" else image).crop(tuple(round(v) for v in plan.layouts[k].view))
        expected = np.asarray(seen.resize((40, 30), Image.Resampling.LANCZOS), int)
        assert np.abs(store.thumbnail(k).astype(int) - expected).mean() < 6  # views may begin within a pixel
        assert store.examples["image_width"][k] == seen.width
        assert store.examples["image_height"][k] == seen.height
    assert ("view_x0" in store.examples) == (planned.name == "llava")


def test_every_image_token_counts_as_image_in_shares(planned: Planned) -> None:
    plan = planned.plan
    made = store_contents(plan)
    spans = {name: made["spans"][:, i] for i, name in enumerate(plan.store.spans)}
    parts = token_parts(spans, plan.token_counts, plan.store.tokens)
    for k, layout in enumerate(plan.layouts):
        assert (parts[k, : len(layout.ids)][layout.ids == plan.tokenizer.image_id] == PARTS.index("image")).all()


def test_tokens_that_are_not_the_processors_stop_an_extraction(planned: Planned, tmp_path: Path) -> None:
    plan = dataclasses.replace(planned.plan, layouts=list(planned.plan.layouts))
    ids = plan.layouts[0].ids.copy()
    at = plan.layouts[0].spans["relation"][0]
    ids[at] = plan.layouts[0].ids[at + 1]
    plan.layouts[0] = dataclasses.replace(plan.layouts[0], ids=ids)
    with pytest.raises(CaptureError, match=rf"tokens of example .* differ at token {at}"):
        check_prompt(plan, 0, [planned.request(0)[1]])


def test_an_answer_of_several_tokens_is_scored(planned: Planned) -> None:
    tokenizer = planned.plan.tokenizer
    found = PromptTokenizer(planned.plan.source, Prompt("x", "{caption}", ("True", "Undoubtedly")), tokenizer.rule)
    assert (found.scored, tokenizer.scored) == (True, False)
    assert tokenizer.tokenizer.decode(list(found.answer_tokens["Undoubtedly"])).strip() == "Undoubtedly"
    assert found.choice_ids["Undoubtedly"] == found.answer_tokens["Undoubtedly"][0]


def test_answers_are_the_tokens_that_follow_the_prompt(planned: Planned) -> None:
    """By the processor: the prompt with the answer as the model's turn has the planned token where the prompt ended."""
    if planned.name.startswith("paligemma"):
        pytest.skip("its prompts have no turns")
    plan, (text, image) = planned.plan, planned.request(0)
    user = {"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": text}]}
    for choice, token in plan.tokenizer.choice_ids.items():
        turns = [user, {"role": "assistant", "content": [{"type": "text", "text": choice}]}]
        ids = stock_processor(planned.folder).apply_chat_template(turns, tokenize=True, return_dict=True)["input_ids"][0]
        assert list(ids[: len(plan.layouts[0].ids) + 1]) == [*plan.layouts[0].ids.tolist(), token]


def test_the_summary_shows_tokens_and_spans(planned: Planned) -> None:
    plan, text = planned.plan, click.unstyle(plan_summary(planned.plan, show=4))
    for k, layout in enumerate(plan.layouts):
        line = next(line for line in text.splitlines() if line.startswith(f"{plan.examples[k].id}: "))
        assert f"[image: {np.prod(layout.grid)} tokens, {layout.grid[0]} rows x {layout.grid[1]} columns]" in line
        for name in ("subject", "relation", "object"):
            shown = line.split(f"[{name}: ")[1].split("]")[0]
            assert shown.replace("|", "") == getattr(plan.examples[k], name)
        assert (f"[{TILES}: " in line) == (TILES in layout.spans)
    assert ("\ntiles  " in text) == any(TILES in layout.spans for layout in plan.layouts)
    assert ("\nview  " in text) == (planned.name == "llava")


@pytest.mark.slow
def test_everything_is_recorded_of_every_family(planned: Planned, tmp_path: Path) -> None:
    """Parts of the logits add up to what is stored; knockouts equal the stock model's, asked with its own processor, its masks edited."""
    towerless, capped = not planned.plan.shape.vision_layers, planned.name == "paligemma2"
    deep = {"vision_maps"} if planned.name == "qwen3_vl" else set()
    left_out = (
        deep | ({"vision_residual", "vision_change"} if towerless else set()) | ({"head_logits", "value_logits"} if capped else set())
    )
    record = tuple(name for name in RECORDS if name not in left_out)
    settings = dataclasses.replace(planned.plan.settings, record=record, limit=1, knockout_window=0)
    plan = plan_extraction(settings)
    run_extraction(plan, tmp_path / "all.zarr")
    store = ActivationStore.open(tmp_path / "all.zarr")
    assert verify(tmp_path / "all.zarr").ok
    answers = store.read("answer_logits")
    if capped:
        with pytest.raises(InvalidInputError, match="soft-capped logits; leave head_logits out"):
            plan_extraction(dataclasses.replace(settings, record=("head_logits",)))
    else:
        heads = store.read("head_logits")
        parts = heads.sum((0, 2)) + store.read("mlp_logits").sum(0) + store.read("embedding_logits")
        np.testing.assert_allclose(parts, answers[:, 0] - answers[:, 1], atol=1e-3)
        by_token = store.read("attention_rows") * store.read("value_logits")
        np.testing.assert_allclose(np.nansum(by_token, -1), heads, atol=2e-3 * max(1, np.abs(heads).max()))
    model = stock_model(planned.folder)
    inputs, pair = planned.stock_inputs(0), tuple(plan.tokenizer.choice_ids.values())
    names, effects = store.read("knockout_target").tolist(), store.read("knockout", examples=0)
    untouched = eager_difference(model, inputs, torch.zeros(0, dtype=torch.long), "later", (0, 0), pair)
    for target in ("image", "subject", "cell_0_0"):
        hidden = torch.from_numpy(plan.masked_tokens(0)[target])
        for m, mode in enumerate(("final", "later")):
            moved = eager_difference(model, inputs, hidden, mode, (0, 3), pair) - untouched
            assert effects[m, 0, names.index(target)] == pytest.approx(moved, abs=2e-3), (target, mode)


@pytest.mark.slow
def test_generated_tokens_and_their_residual_stream_are_those_of_transformers(planned: Planned, tmp_path: Path) -> None:
    plan = plan_extraction(dataclasses.replace(planned.plan.settings, record=("residual",), generate=5))
    run_extraction(plan, tmp_path / "generated.zarr")
    store, model = ActivationStore.open(tmp_path / "generated.zarr"), stock_model(planned.folder)
    ends, blocks = plan.provenance["generation"]["end"], text_decoder(model)
    assert verify(tmp_path / "generated.zarr").ok
    for k in range(4):
        inputs = planned.stock_inputs(k)
        length = inputs["input_ids"].shape[1]
        whole = model.generate(**inputs, do_sample=False, max_new_tokens=5, eos_token_id=ends or None)
        tokens = whole[0, length:].tolist()
        assert store.read("generated_tokens", examples=k).tolist() == tokens + [-1] * (5 - len(tokens))
        own = [token for token in tokens if token not in ends]
        assert store.read("generated_count", examples=k) == len(own)
        entered: list[torch.Tensor] = []
        hooks = [module.register_forward_pre_hook(_keep(entered), with_kwargs=True) for module in (*blocks.layers, blocks.norm)]
        with torch.inference_mode():
            model(**with_generated_tokens(inputs, own, prefix=planned.name.startswith("paligemma")))
        for hook in hooks:
            hook.remove()
        for j in range(5):
            place = store.positions.index(f"answer_{j}")
            assert store.position_present[k, place] == (j < len(own))
            if j < len(own):
                expected = np.stack([each[0, length + j].numpy() for each in entered])
                found = store.read("residual", position=f"answer_{j}", examples=k)
                np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def test_token_texts_keep_their_blanks(planned: Planned) -> None:
    plan = planned.plan
    texts = store_contents(plan)["vocabulary"]
    a, b = plan.layouts[0].spans["caption"]
    assert "".join(texts[int(t)] for t in plan.layouts[0].ids[a:b]).strip() == plan.examples[0].caption


@pytest.mark.slow
def test_each_cell_sees_its_own_part_of_the_image(planned: Planned) -> None:
    """With a vision tower whose patches cannot see each other, a change in the middle of a cell's part changes that token alone."""
    plan = planned.plan
    session = ExtractionSession(plan, batch_tokens=1)
    model = session.model.model
    for name, weight in model.named_parameters():
        if "lang" not in name and "text_model" not in name.split(".")[1:2] and _mixes(name):
            torch.nn.init.zeros_(weight)
    for k in range(4):
        layout, image = plan.layouts[k], open_image(plan.settings.images / plan.shown[k])
        plain = _cells(session, k, image)
        for cell in {0, int(np.prod(layout.grid)) - 1, layout.grid[1], layout.grid[0] * layout.grid[1] // 2 - 1}:
            moved = np.abs(_cells(session, k, _painted(image, layout, cell)) - plain).max(-1)
            assert np.flatnonzero(moved > 1e-5).tolist() == [cell]


def _mixes(name: str) -> bool:
    return any(part in name for part in ("self_attn.out_proj", "attn.proj.", "attention.projection_layer"))


def _cells(session: ExtractionSession, k: int, image: Image.Image) -> np.ndarray:
    """(cell, hidden): what the decoder is given in the places of the image's cells."""
    batch, kept = session._batch([k], [image]), []
    hook = session.model.decoder.layers[0].register_forward_pre_hook(_keep(kept), with_kwargs=True)
    with torch.inference_mode():
        session.model.model(**forward_inputs(session.model.model, batch.input_ids, batch.lengths, batch.images), use_cache=False)
    hook.remove()
    return kept[0][0, slice(*session.plan.layouts[k].spans["image"])].numpy()


def _painted(image: Image.Image, layout: Any, cell: int) -> Image.Image:
    """The image with the middle fifth of a cell's part inverted."""
    (rows, columns), (x0, y0, x1, y1) = layout.grid, layout.view
    row, column = divmod(cell, columns)
    x, y = x0 + (column + 0.5) * (x1 - x0) / columns, y0 + (row + 0.5) * (y1 - y0) / rows
    half = max(1.0, (x1 - x0) / columns / 10), max(1.0, (y1 - y0) / rows / 10)
    box = tuple(round(v) for v in (x - half[0], y - half[1], x + half[0], y + half[1]))
    painted = image.copy()
    painted.paste(Image.eval(image.crop(box), lambda v: 255 - v if abs(v - 128) > 40 else 255), box)
    return painted
