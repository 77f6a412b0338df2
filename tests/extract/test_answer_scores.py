"""Log-probabilities of answers of several tokens, against transformers' own log-softmax over the full text."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")

from stratascope.analysis import answer_confidence, explain_example  # noqa: E402
from stratascope.errors import CaptureError, InvalidInputError  # noqa: E402
from stratascope.extract import ExtractionSettings, plan_extraction, run_extraction  # noqa: E402
from stratascope.extract.families.image_tokens import PatchGrid  # noqa: E402
from stratascope.extract.model_files import resolve_model  # noqa: E402
from stratascope.extract.plan.extraction_plan import ExtractionPlan  # noqa: E402
from stratascope.extract.plan.images import open_image  # noqa: E402
from stratascope.extract.plan.intervention_plan import later_cost  # noqa: E402
from stratascope.extract.plan.plan_summary import plan_summary  # noqa: E402
from stratascope.extract.run import session  # noqa: E402
from stratascope.extract.run.block_arrays import _fill_generated  # noqa: E402
from stratascope.extract.run.intervention_session import plan_of_store, run_interventions  # noqa: E402
from stratascope.extract.run.logits import Unembedding  # noqa: E402
from stratascope.store import ActivationStore, verify  # noqa: E402
from tests.extract.general.folders import save as save_general  # noqa: E402
from tests.extract.general.processors import FILES  # noqa: E402
from tests.extract.general.types import TYPES  # noqa: E402
from tests.extract.hooked import DrawnDesign  # noqa: E402
from tests.extract.saved import save  # noqa: E402
from tests.extract.test_every_family import photos, stock_model, stock_processor  # noqa: E402, F401

ANSWERS = ("left", "left of the car", "to the right of it", "neither")
RECORD = ("residual",)


def whole(plan: ExtractionPlan, k: int, answer: str) -> tuple[str, Image.Image]:
    """Prompt and answer as one text, and the image as qwen_vl_utils resizes it."""
    image, rule, form = open_image(plan.settings.images / plan.shown[k]), plan.tokenizer.rule, plan.tokenizer.prompt_format
    if isinstance(rule, PatchGrid):
        image = image.resize(rule.resize(*image.size), Image.Resampling.BICUBIC)
    return form.processor_text(plan.prompt.fill(plan.examples[k]).text) + form.answer_gap + answer, image


def own_scores(model: Any, made: dict[str, torch.Tensor], lengths: list[int], counts: list[int]) -> list[float]:
    """Sum of the model's own log-softmax over the last `counts` of the `lengths` tokens of each row, padded on either side."""
    with torch.no_grad():
        logits = model(**made).logits.double().log_softmax(-1)
    found = []
    for row, (length, count) in enumerate(zip(lengths, counts, strict=True)):
        mask = made["attention_mask"][row].nonzero()[:, 0]
        assert len(mask) == length
        tokens = made["input_ids"][row, mask]
        shares = logits[row, mask]
        found.append(sum(float(shares[at - 1, tokens[at]]) for at in range(length - count, length)))
    return found


@pytest.mark.parametrize("side", ["left", "right"])
def test_scores_of_the_built_in_model_are_transformers_own(settings: ExtractionSettings, tmp_path: Path, side: str) -> None:
    """Examples of differing lengths; the same texts in one batch of transformers, padded on either side."""
    rows = [json.loads(line) for line in settings.examples[0].read_text().splitlines()[:4]]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    text = "Is it so that {caption} Say it."
    asked = replace(settings, examples=(tmp_path / "rows.jsonl",), prompt=text, answers=ANSWERS, record=RECORD)
    plan = plan_extraction(asked)
    assert len(plan.tokenizer.answer_tokens["left"]) == 1 < len(plan.tokenizer.answer_tokens["neither"])
    run_extraction(plan, tmp_path / f"{side}.zarr", batch_tokens=150 if side == "left" else 8192)
    store = ActivationStore.open(tmp_path / f"{side}.zarr")
    scores = store.read("answer_logits")
    processor, model = stock_processor(resolve_model("demo").folder), stock_model(resolve_model("demo").folder)
    processor.tokenizer.padding_side = side
    for k in range(len(rows)):
        texts, images = zip(*(whole(plan, k, answer) for answer in ANSWERS), strict=True)
        made = dict(processor(text=list(texts), images=list(images), return_tensors="pt", padding=True, do_resize=False))
        counts = [len(plan.tokenizer.answer_tokens[answer]) for answer in ANSWERS]
        lengths = [len(plan.layouts[k].ids) + count for count in counts]
        np.testing.assert_allclose(scores[k], own_scores(model, made, lengths, counts), atol=1e-4)
    assert verify(tmp_path / f"{side}.zarr").ok
    found = explain_example(store, 0).answers
    np.testing.assert_allclose(found["probability"], np.exp(scores[0]) / np.exp(scores[0]).sum(), rtol=1e-5)
    assert "log-probability" in store.provenance["answer_logits"]["score"]
    assert "scored by summed log-probability" in plan_summary(plan)
    if side == "left":
        _compare_interventions(store, tmp_path / "left.zarr", asked, model, lambda k, answer: _made(plan, k, answer))
    with pytest.raises(InvalidInputError, match="expected answers of one token each for `record` knockout"):
        plan_extraction(replace(asked, record=("residual", "knockout")))


def _made(plan: ExtractionPlan, k: int, answer: str) -> dict[str, torch.Tensor]:
    text, image = whole(plan, k, answer)
    return dict(stock_processor(resolve_model("demo").folder)(text=[text], images=[image], return_tensors="pt", do_resize=False))


def _compare_interventions(store: ActivationStore, path: Path, asked: ExtractionSettings, model: Any, made: Any) -> None:
    """Changes of summed log-probabilities by edits of prompt tokens, against plain hooks on the stock model over prompt and answer."""
    plan = plan_of_store(store, path, data=asked.examples, images=asked.images, boxes=asked.boxes, device="cpu")
    design = DrawnDesign(plan, (3,), (("final",), ("image", "final")))
    measured = run_interventions(plan, store, design, cache=path.with_suffix(".cache"), key="a")
    for row, k in enumerate(design.examples):
        assert measured.logits[row] == pytest.approx(store.read("answer_logits", examples=k), abs=1e-4)
        options = plan.examples[k].options or ANSWERS
        for column, (answer, tokens) in enumerate(zip(options, plan.tokenizer.answers(plan.examples[k]), strict=True)):
            found = design.hooked(lambda k, answer=answer: made(k, answer), model, k, len(tokens) + 1)
            sums = [each[..., :-1, :].double().log_softmax(-1)[..., range(len(tokens)), tokens].sum(-1) for each in found]
            np.testing.assert_allclose(measured.change[row, :, column], sums[1] - sums[0], rtol=1e-4, atol=1e-4)
        assert not measured.change[row, :, len(options) :].any(), "choices that are not offered"
        assert np.abs(measured.change[row]).max() > 0.1
    assert later_cost(plan, 1, None)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen2_5_vl", "llava_next", "gemma3", "paligemma2", "qwen3_5", "mistral3"])
def test_scores_of_other_families_are_transformers_own(name: str, photos: Path, tmp_path: Path) -> None:  # noqa: F811
    """Soft-capped logits, tiles, image tokens that attend to each other, prompts read in both directions, linear attention."""
    folder = save_general(name, TYPES[name], FILES[name], tmp_path) if name in FILES else save(name, tmp_path / "model")
    settings = ExtractionSettings(
        str(folder), (photos / "rows.jsonl",), photos, prompt="Where is {caption}", answers=ANSWERS, record=RECORD, device="cpu"
    )
    plan = plan_extraction(settings)
    run_extraction(plan, tmp_path / "out.zarr")
    scores, processor, model = (
        ActivationStore.open(tmp_path / "out.zarr").read("answer_logits"),
        stock_processor(folder),
        stock_model(folder),
    )
    for k in range(2):
        for column, answer in enumerate(ANSWERS):
            tokens = plan.tokenizer.answer_tokens[answer]
            text, image = whole(plan, k, "" if name == "paligemma2" else answer)
            options = {"suffix": answer} if name == "paligemma2" else {"add_special_tokens": plan.tokenizer.prompt_format.adds_special}
            if name == "qwen2_5_vl":
                options["do_resize"] = False
            made = dict(processor(text=[text], images=[image], return_tensors="pt", **options))
            made.pop("labels", None)
            start = len(plan.layouts[k].ids)
            assert made["input_ids"][0, :start].tolist() == plan.layouts[k].ids.tolist()
            assert made["input_ids"][0, start : start + len(tokens)].tolist() == list(tokens)
            with torch.no_grad():
                shares = model(**made).logits[0].double().log_softmax(-1)
            expected = sum(float(shares[start - 1 + at, token]) for at, token in enumerate(tokens))
            assert scores[k, column] == pytest.approx(expected, rel=1e-6, abs=1e-4)  # random weights: some are -200


def test_each_question_is_answered_by_its_own_options(settings: ExtractionSettings, tmp_path: Path) -> None:
    """Options in words, of differing number and length, shuffled: the answer is the likeliest text, and absent options never are."""
    rows = [json.loads(line) for line in settings.examples[0].read_text().splitlines()[:6]]
    texts = ["left of the star", "right of the star", "above it", "neither"]
    asked = [
        {"image": row["image"], "question": "Where is it?", "options": texts[: 2 + k % 3], "answer": texts[k % 2], "id": f"q{k}"}
        for k, row in enumerate(rows)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, asked)))
    file = tmp_path / "own.toml"
    file.write_text('text = "{question} {options}?"\nchoices = "options"\noption = "{text}"\nseparator = ", "\nlast = ["neither"]\n')
    chosen = replace(settings, examples=(tmp_path / "rows.jsonl",), boxes=None, prompt=str(file), record=RECORD, shuffle_options=2)
    plan = plan_extraction(chosen)
    run_extraction(plan, tmp_path / "own.zarr")
    store = ActivationStore.open(tmp_path / "own.zarr")
    assert store.layout.choices == ("A", "B", "C", "D")
    scores, processor, model = (
        store.read("answer_logits"),
        stock_processor(resolve_model("demo").folder),
        stock_model(resolve_model("demo").folder),
    )
    best = []
    for k, example in enumerate(plan.examples):
        expected = []
        for option in example.options:
            text, image = whole(plan, k, option)
            made = dict(processor(text=[text], images=[image], return_tensors="pt", do_resize=False))
            count = made["input_ids"].shape[1] - len(plan.layouts[k].ids)
            expected += own_scores(model, made, [made["input_ids"].shape[1]], [count])
        np.testing.assert_allclose(scores[k, : len(expected)], expected, atol=1e-4)
        assert (scores[k, len(expected) :] < -1e38).all()
        best.append(example.options[int(np.argmax(expected))])
    _compare_interventions(store, tmp_path / "own.zarr", chosen, model, lambda k, answer: _made(plan, k, answer))
    result = answer_confidence(store)
    said = [store.examples[f"option_{letter}"][k] for k, letter in enumerate(result.answers["answer"])]
    assert said == best
    assert result.answers["right"].tolist() == [text == row["answer"] for text, row in zip(best, asked, strict=True)]
    assert np.isfinite(result.answers["margin"]).all()
    texts = [f"The answer is {'a' if k else 'A'} place {example.options[1]}." for k, example in enumerate(plan.examples)]
    tokens = [plan.tokenizer.tokenizer.encode(text).ids for text in texts]
    made = np.full((len(texts), max(map(len, tokens))), -1, np.int32)
    for row, ids in zip(made, tokens, strict=True):
        row[: len(ids)] = ids
    written = {"generated_tokens": made.copy(), "generated_text": np.zeros((len(texts), 99), np.uint8)}
    written |= {name: np.zeros(len(texts), np.int64) for name in ("generated_count", "generated_choice")}
    told = replace(plan, provenance={**plan.provenance, "generation": {"end": []}})
    _fill_generated(told, range(len(texts)), SimpleNamespace(generated=made), np.arange(len(texts)), written)
    assert (written["generated_choice"] == 1).all(), "a letter in a sentence is no answer to options in words"


def test_wrong_logits_of_answers_stop_an_extraction(settings: ExtractionSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_extraction(replace(settings, prompt="{caption}", answers=ANSWERS, record=RECORD, limit=2))
    right = Unembedding.all_logits
    monkeypatch.setattr(Unembedding, "all_logits", lambda self, residual: right(self, residual.roll(1, 0)))
    with pytest.raises(CaptureError, match="expected the logits of an answer's tokens in a batch to be the model's own"):
        run_extraction(plan, tmp_path / "x.zarr")


def test_memory_that_runs_out_while_answers_are_scored_halves_their_batches(
    settings: ExtractionSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_extraction(replace(settings, prompt="{caption}", answers=ANSWERS, record=RECORD, limit=3))
    run_extraction(plan, tmp_path / "whole.zarr")
    right = session.answer_scores

    def scarce(*arguments: Any) -> np.ndarray:
        if arguments[5] > 200:
            raise RuntimeError("CUDA out of memory. Tried to allocate")
        return right(*arguments)

    monkeypatch.setattr(session, "answer_scores", scarce)
    report = run_extraction(plan, tmp_path / "halved.zarr")
    assert report.halvings > 0
    found = [ActivationStore.open(tmp_path / f"{name}.zarr").read("answer_logits") for name in ("whole", "halved")]
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)
