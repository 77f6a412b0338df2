"""Types without a family of their own, planned and extracted with their own processor."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from stratascope.analysis.rollout_result import rollout_examples  # noqa: E402
from stratascope.analysis.sinks import PLACES, places_of  # noqa: E402
from stratascope.errors import InvalidInputError, NotRecordedError  # noqa: E402
from stratascope.extract import ExtractionSettings, plan_extraction, run_extraction  # noqa: E402
from stratascope.extract.families.general_family import ONE_IMAGE  # noqa: E402
from stratascope.extract.families.image_tokens import TILES  # noqa: E402
from stratascope.extract.model_files import ModelSource  # noqa: E402
from stratascope.extract.plan.images import open_image  # noqa: E402
from stratascope.extract.plan.intervention_plan import bare_passes, later_cost, reruns_whole_prompts  # noqa: E402
from stratascope.extract.plan.settings import TOP_TOKENS  # noqa: E402
from stratascope.extract.plan.token_layout import PromptTokenizer  # noqa: E402
from stratascope.extract.run.decoder import attention_blocks, complete_outputs, find_decoder  # noqa: E402
from stratascope.extract.run.general_model import AskedProcessor, general_model  # noqa: E402
from stratascope.extract.run.intervention_session import plan_of_store, run_interventions  # noqa: E402
from stratascope.extract.run.whole_pass import WholePass  # noqa: E402
from stratascope.store import ActivationStore, StoreLayout, verify  # noqa: E402
from tests.extract import saved  # noqa: E402
from tests.extract.general.folders import save  # noqa: E402
from tests.extract.general.processors import FILES  # noqa: E402
from tests.extract.general.tiny import photo  # noqa: E402
from tests.extract.general.types import RESIDUALS, TYPES  # noqa: E402
from tests.extract.hooked import DrawnDesign  # noqa: E402

SIZES = [(120, 80), (80, 120), (97, 61), (200, 60)]
CAPTIONS = [
    ("The cat is at the left side of the refrigerator.", "at the left side of"),
    ("The potted plant is below the car.", "below"),
    ("The cat is on the car.", "on"),
    ("The refrigerator is under the potted plant.", "under"),
]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, rows = tmp_path_factory.mktemp("photos"), []
    for k, ((width, height), (caption, relation)) in enumerate(zip(SIZES, CAPTIONS, strict=True)):
        photo(k, width, height).save(folder / f"{k}.png")
        rows.append({"image": f"{k}.png", "caption": caption, "relation": relation, "label": k % 2, "split": "test"})
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


FEW = ("mistral3", "qwen3_5")
"""Without a grid; with one, and with linear attention."""
SOME = {"mllama": 2, "qwen3_5": 1}
"""Types with softmax self-attention in some blocks -> their number."""


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=[] if name in FEW else pytest.mark.slow) for name in sorted(set(FILES) & set(TYPES))]
)
def extracted(request: pytest.FixtureRequest, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Any]:
    """Name, folder and plan of a type whose store is in the folder."""
    name = request.param
    folder = save(name, TYPES[name], FILES[name], tmp_path_factory.mktemp(name))
    plan = plan_extraction(_settings(folder, photos, generate=3))
    report = run_extraction(plan, folder / "store.zarr")  # its first batch is compared with the model's own processor
    assert not report.failed
    return name, folder, plan


def _settings(folder: Path, photos: Path, **more: Any) -> ExtractionSettings:
    return ExtractionSettings(model=str(folder), examples=(photos / "rows.jsonl",), images=photos, device="cpu", **more)


def _official(folder: Path, plan: Any, k: int) -> Any:
    processor = transformers.AutoProcessor.from_pretrained(folder)
    image = open_image(plan.settings.images / plan.shown[k])
    turn = {
        "role": "user",
        "content": [{"type": "image", "image": image}, {"type": "text", "text": plan.prompt.fill(plan.examples[k]).text}],
    }
    return processor.apply_chat_template([turn], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt")


def test_tokens_are_those_of_the_chat_template(extracted: tuple[str, Path, Any]) -> None:
    _, folder, plan = extracted
    for k, layout in enumerate(plan.layouts):
        assert layout.ids.tolist() == _official(folder, plan, k)["input_ids"][0].tolist()
        words = {name: plan.tokenizer.tokenizer.decode(layout.ids[a:b].tolist()).strip() for name, (a, b) in layout.spans.items()}
        assert words["caption"] == plan.examples[k].caption
        assert words["subject"] == plan.examples[k].subject
        start, stop = layout.spans["image"]
        own = np.flatnonzero(layout.ids == plan.tokenizer.image_id)
        assert (own[0], own[-1]) == (start, stop - 1)


def test_a_store_holds_the_residual_stream_and_rows_of_the_plain_model(extracted: tuple[str, Path, Any]) -> None:
    name, folder, plan = extracted
    verify(folder / "store.zarr")
    store = ActivationStore.open(folder / "store.zarr")
    attending = {"qwen3_5": (3,), "mllama": (0, 2)}.get(name, (0, 1, 2, 3))
    assert store.layout.attention_layers == attending
    for k, (residual, rows, logits) in enumerate(_plain(folder, plan)):
        assert len(rows) == len(attending)
        for place, block in enumerate(attending):
            held = store.read("attention_rows", layer=block, examples=[k])[0]
            np.testing.assert_allclose(held[:, : len(plan.layouts[k].ids)], rows[place], atol=6e-4)  # stored as float16
        _compare_residual(store, k, residual, logits, plan)


def _plain(folder: Path, plan: Any) -> Iterator[tuple[np.ndarray, list[np.ndarray], np.ndarray]]:
    """(layer, hidden) residual stream, (head, token) rows of each block with self-attention and logits of the final token, by example."""
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    decoder = find_decoder(model)
    for k in range(len(plan.examples)):
        seen: list[torch.Tensor] = []
        hooks = [
            module.register_forward_pre_hook(
                lambda m, args, kwargs, seen=seen: seen.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
            )
            for module in (*decoder.layers, decoder.norm)
        ]
        complete_outputs(model)
        with torch.inference_mode():
            output = model(**_official(folder, plan, k).to(torch.float32), output_attentions=True)  # Llama 4 has pixels in bfloat16
        for hook in hooks:
            hook.remove()
        weights = [each for each in output.attentions if each is not None]
        if len(weights) == len(decoder.layers):  # with those of cross-attention, over the image
            weights = [weights[block] for block in attention_blocks(decoder.config)]
        yield (
            torch.stack([hidden[0, -1] for hidden in seen]).numpy(),
            [each[0, :, -1].numpy() for each in weights],
            output.logits[0, -1].numpy(),
        )


def _compare_residual(store: ActivationStore, k: int, residual: np.ndarray, logits: np.ndarray, plan: Any) -> None:
    for layer, hidden in enumerate(residual):
        held = store.read("residual", layer=layer, position="final", examples=[k])[0]
        np.testing.assert_allclose(held, hidden, rtol=2e-3, atol=2e-3)
    answers = logits[list(plan.tokenizer.choice_ids.values())]
    np.testing.assert_allclose(store.read("answer_logits", examples=[k])[0], answers, atol=2e-3)


def test_a_model_without_softmax_attention_has_all_but_the_arrays_of_attention(photos: Path, tmp_path: Path) -> None:
    folder = save("mistral_large4", RESIDUALS["mistral_large4"], FILES["mistral_large4"], tmp_path)
    with pytest.raises(
        InvalidInputError, match=r"without attention_rows and attention_maps .* 4 of whose 4 blocks have no softmax attention"
    ):
        plan_extraction(_settings(folder, photos))
    plan = plan_extraction(_settings(folder, photos, record=("residual", "form_logits", "top_tokens")))
    assert not run_extraction(plan, folder / "store.zarr").failed
    verify(folder / "store.zarr")
    store = ActivationStore.open(folder / "store.zarr")
    for k, (residual, _, logits) in enumerate(_plain(folder, plan)):
        _compare_residual(store, k, residual, logits, plan)
        top = np.sort(logits[: plan.tokenizer.tokenizer.get_vocab_size()])[: -TOP_TOKENS - 1 : -1]
        np.testing.assert_allclose(store.read("top_logits", examples=[k])[0], top, atol=2e-3)
    with pytest.raises(NotRecordedError, match="attention_rows"):
        store.read("attention_rows", layer=0)


def test_generated_tokens_are_those_of_transformers(extracted: tuple[str, Path, Any]) -> None:
    """Of linear attention too, whose states would include the padding of a batch."""
    _, folder, plan = extracted
    store = ActivationStore.open(folder / "store.zarr")
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    complete_outputs(model)
    ends = plan.provenance["generation"]["end"]
    for k in range(len(plan.examples)):
        inputs = _official(folder, plan, k).to(torch.float32)
        whole = model.generate(**inputs, do_sample=False, max_new_tokens=3, eos_token_id=ends or None)
        tokens = whole[0, inputs["input_ids"].shape[1] :].tolist()
        assert store.read("generated_tokens", examples=k).tolist() == tokens + [-1] * (3 - len(tokens))


def test_the_grid_is_known_where_one_run_of_tokens_fills_it(extracted: tuple[str, Path, Any]) -> None:
    name, _, plan = extracted
    grids = [layout.grid for layout in plan.layouts]
    if name.startswith("qwen"):
        assert all(
            rows * columns == b - a for (rows, columns), (a, b) in zip(grids, [each.spans["image"] for each in plan.layouts], strict=True)
        )
    else:
        assert set(grids) == {(0, 0)}


@pytest.mark.parametrize(
    ("more", "found"),
    [
        ({"positions": ("default", "cells")}, "`positions` with cells"),
        ({"patches": 2}, "`patches` with 2"),
        ({"record": ("residual", "vision_output")}, "`record` with vision_output"),
        ({"record": ("residual", "head_logits")}, "found head_logits"),
        ({"max_pixels": 10_000}, "no `max_pixels`"),
    ],
)
def test_places_in_the_image_are_refused_by_name_without_a_grid(
    extracted: tuple[str, Path, Any], photos: Path, more: Any, found: str
) -> None:
    name, folder, _ = extracted
    if name.startswith("qwen") and "places" in _reason(more):
        assert plan_extraction(_settings(folder, photos, **more))
        return
    with pytest.raises(InvalidInputError, match=found):
        plan_extraction(_settings(folder, photos, **more))


def _reason(more: dict[str, Any]) -> str:
    return "places" if {"positions", "patches"} & set(more) or more.get("record") == ("residual", "vision_output") else "family"


def test_knockouts_are_refused_for_blocks_without_softmax_attention(extracted: tuple[str, Path, Any], photos: Path) -> None:
    name, folder, _ = extracted
    asked = _settings(folder, photos, record=("residual", "knockout"), knockouts=1)
    if name in SOME:
        with pytest.raises(InvalidInputError, match=f"{4 - SOME[name]} of whose 4 blocks have no softmax attention"):
            plan_extraction(asked)
        return
    if name == "llama4":
        with pytest.raises(InvalidInputError, match=r"without knockout .* whose last tokens cannot run alone"):
            plan_extraction(asked)
        return
    plan = plan_extraction(replace(asked, limit=1))
    run_extraction(plan, folder / "knocked.zarr")
    effects = ActivationStore.open(folder / "knocked.zarr").read("knockout")
    assert np.isfinite(effects).any()
    assert np.abs(effects[np.isfinite(effects)]).max() > 1e-4
    cells = [target for target in plan.store.knockout_targets if target.startswith("cell_")]
    assert bool(cells) == name.startswith("qwen")


@pytest.mark.parametrize(
    "name", [name for name in saved.SPECIAL if name not in ("qwen", "paligemma")] + ["qwen2_5_vl", "qwen3_vl", "llava_next"]
)
def test_families_of_their_own_agree_token_for_token_with_the_general_way(name: str, photos: Path, tmp_path: Path) -> None:
    saved.save_files(name, tmp_path)
    plan = plan_extraction(_settings(tmp_path, photos, untrained=0))
    source = ModelSource(name, tmp_path)
    found = general_model(source, None)
    assert (found.shape.layers, found.shape.hidden, found.shape.heads) == (plan.shape.layers, plan.shape.hidden, plan.shape.heads)
    tokenizer = PromptTokenizer(source, plan.prompt, found.rule)
    for k, layout in enumerate(plan.layouts):
        general = tokenizer.layout(plan.examples[k], plan.file_size(k))
        assert general.ids.tolist() == layout.ids.tolist()
        assert {span: general.spans[span] for span in general.spans if span != "image"} == {
            span: layout.spans[span] for span in layout.spans if span not in ("image", TILES)
        }
        if TILES not in layout.spans:
            assert general.spans["image"] == layout.spans["image"]


def test_a_layout_without_softmax_layers_is_as_earlier_releases_wrote_it() -> None:
    layout = StoreLayout(4, 4, 8, 2, 5, ("final",), ("final",), ("a", "b"))
    assert "softmax_layers" not in layout.to_json()
    mixed = layout.subset(softmax_layers=(1, 3))
    assert StoreLayout.from_json(mixed.to_json()).attention_layers == (1, 3)
    assert mixed.subset(kept_layers=(0, 3, 4)).attention_layers == (3,)
    with pytest.raises(InvalidInputError, match=r"softmax_layers: expected rising numbers within 0\.\.3"):
        layout.subset(softmax_layers=(4,))


def test_interventions_on_a_store_equal_plain_hooks_at_the_planned_cost(
    extracted: tuple[str, Path, Any], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where some block has no softmax attention, or no positions of single tokens, each variant is a whole prompt."""
    name, folder, _ = extracted
    store = ActivationStore.open(folder / "store.zarr")
    plan = plan_of_store(store, folder / "store.zarr", data=(photos / "rows.jsonl",), images=photos, device="cpu")
    assert reruns_whole_prompts(plan) == (name in (*SOME, "llama4"))
    design, rows, inner = DrawnDesign(plan, (2,)), [], WholePass.run

    def counted(self: WholePass, made: Any, *given: Any) -> Any:
        rows.append(made[-1].edited.stop - (name in ONE_IMAGE))
        return inner(self, made, *given)

    monkeypatch.setattr(WholePass, "run", counted)
    measured = run_interventions(plan, store, design, cache=tmp_path / "cache", key="a")
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    complete_outputs(model)
    choices = list(plan.tokenizer.choice_ids.values())
    for row, k in enumerate(design.examples):
        inputs = _official(folder, plan, k).to(torch.float32)
        plain, changed = design.hooked(lambda k, inputs=inputs: inputs, model, k, 1)
        np.testing.assert_allclose(measured.logits[row], plain[0, choices], atol=2e-4)
        np.testing.assert_allclose(measured.change[row], (changed - plain)[:, 0, choices], rtol=1e-4, atol=1e-4)
        assert np.abs(measured.change[row]).max() > 0.05
    planned = bare_passes(plan, design.examples, [(part, first) for part in design.parts for first, _ in design.windows], design.slots)
    if reruns_whole_prompts(plan):
        assert planned == pytest.approx(1 + sum(rows) / len(design.examples))
    assert later_cost(plan, 10, None)


def test_the_tower_is_recorded_where_the_cells_of_its_patches_are_known(extracted: tuple[str, Path, Any], photos: Path) -> None:
    name, folder, _ = extracted
    asked = _settings(folder, photos, record=("residual", "vision_residual"), limit=1)
    if not name.startswith("qwen"):
        for record in ("vision_residual", "vision_change"):
            with pytest.raises(InvalidInputError, match=f"expected a model with a known vision tower for {record}"):
                plan_extraction(_settings(folder, photos, record=(record,), limit=1))
        return
    plan = plan_extraction(asked)
    run_extraction(plan, folder / "tower.zarr")
    held = ActivationStore.open(folder / "tower.zarr").read("vision_residual", position="image", examples=[0])[:, 0]
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    seen: list[torch.Tensor] = []
    for block in model.model.visual.blocks:
        block.register_forward_pre_hook(lambda m, args, kwargs: seen.append(args[0].mean(0)), with_kwargs=True)
    model.model.visual.blocks[-1].register_forward_hook(lambda m, args, output: seen.append(output.mean(0)))
    with torch.inference_mode():
        model(**_official(folder, plan, 0))
    np.testing.assert_allclose(held, torch.stack(seen).numpy(), atol=1e-4)


def test_analyses_of_a_store_say_what_it_has_no_place_or_softmax_for(extracted: tuple[str, Path, Any]) -> None:
    name, folder, _ = extracted
    store = ActivationStore.open(folder / "store.zarr")
    if name in SOME:
        with pytest.raises(NotRecordedError, match="expected softmax attention in all 4 blocks, found it in"):
            rollout_examples(store)
        return
    found = rollout_examples(store)
    start, stop = store.spans["image"][0]
    np.testing.assert_array_equal(found.onto_image(0).ravel(), found.values[0, 0, start:stop])
    assert (found.figure(store) is None) == (name != "qwen3_vl_moe")
    places = places_of(store, np.arange(len(store)))
    assert (places == PLACES.index("image_edge")).any() == (name == "qwen3_vl_moe")
    assert (places == PLACES.index("image_inside")).any() or name == "qwen3_vl_moe"


TWO = ("aya_vision", "llama4", "qwen3_vl_moe", *FEW)


@pytest.fixture(scope="module")
def pairs(photos: Path) -> Path:
    """Rows that show two of the photos, beside a prompt with a few-shot turn and its photo."""
    photo(9, 90, 90).save(photos / "shot.png")
    turn = '[[shots]]\nimage = "shot.png"\ncaption = "The dog is on the mat."\nanswer = "True"\n'
    (photos / "few.toml").write_text(f'text = "True or false: {{caption}} Answer True or False."\nanswers = ["True", "False"]\n{turn}')
    shown = [[f"{a}.png", f"{b}.png"] for a, b in ((0, 1), (2, 3), (3, 2))]
    rows = [{"image": names, "caption": CAPTIONS[2][0], "relation": "on", "label": k % 2} for k, names in enumerate(shown)]
    (photos / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return photos / "pairs.jsonl"


@pytest.mark.parametrize("name", [pytest.param(name, marks=[] if name in FEW else pytest.mark.slow) for name in TWO])
def test_two_images_after_a_few_shot_turn_have_the_tokens_of_the_chat_template(
    name: str, photos: Path, pairs: Path, tmp_path: Path
) -> None:
    folder = save(name, TYPES[name], FILES[name], tmp_path)
    asked = _settings(folder, photos, prompt=str(photos / "few.toml"), record=("residual", "attention_rows"))
    plan = plan_extraction(replace(asked, examples=(pairs,)))
    processor = transformers.AutoProcessor.from_pretrained(folder)
    for k, layout in enumerate(plan.layouts):
        first, *images = [{"type": "image", "image": open_image(photos / name)} for name in plan.images_of(k)]
        (shot,), text = plan.prompt.shots, {"type": "text", "text": plan.prompt.fill(plan.examples[k]).text}
        turns = [
            {"role": "user", "content": [first, {"type": "text", "text": shot.text}]},
            {"role": "assistant", "content": [{"type": "text", "text": shot.answer}]},
            {"role": "user", "content": [*images, text]},
        ]
        made = processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=True, return_dict=True)
        assert layout.ids.tolist() == list(made["input_ids"][0])
        own = np.flatnonzero(layout.ids == plan.tokenizer.image_id)
        assert own[0] < layout.spans["image"][0]
        assert own[-1] + 1 == layout.spans["image"][1]
        assert (layout.spans["image_1"][0], layout.spans["image_2"][1]) == layout.spans["image"]
    report = run_extraction(plan, tmp_path / "s.zarr")  # its first batch is compared with the model's own processor
    assert not report.failed


def test_types_that_take_one_image_are_refused(photos: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save("mllama", TYPES["mllama"], FILES["mllama"], tmp_path)
    asked = replace(_settings(folder, photos), examples=(pairs,), record=("residual",))
    with pytest.raises(InvalidInputError, match="several images in a prompt, found the type mllama, which takes one"):
        plan_extraction(asked)
    asked = replace(asked, model=str(save("qwen3_5", TYPES["qwen3_5"], FILES["qwen3_5"], tmp_path / "other")))
    real = AskedProcessor.__call__
    monkeypatch.setattr(
        AskedProcessor, "__call__", lambda self, text, *images, special: real(self, text, *images[:1] * len(images), special=special)
    )
    with pytest.raises(InvalidInputError, match="writes each of 2 images as it writes a single one"):
        plan_extraction(asked)
