"""Generated answers of the built-in model: tokens, end of turn, residual stream, resuming, parsing and accuracy."""

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

from stratascope.analysis.model_answers import answer_confidence  # noqa: E402
from stratascope.errors import CaptureError, InvalidInputError, NotRecordedError  # noqa: E402
from stratascope.extract import ExtractionSettings, plan_extraction, run_extraction  # noqa: E402
from stratascope.extract.model_files import resolve_model  # noqa: E402
from stratascope.extract.plan.generated_answers import end_of_turn, parse_answer  # noqa: E402
from stratascope.extract.plan.intervention_plan import settings_of_store  # noqa: E402
from stratascope.extract.plan.plan_summary import plan_summary  # noqa: E402
from stratascope.extract.run.generation import KeptCache  # noqa: E402
from stratascope.extract.run.session import ExtractionSession  # noqa: E402
from stratascope.store import ActivationStore, copy_store, generated_texts, verify  # noqa: E402

TOKENS, COUNT, END = 4, 20, "True"
ARRAYS = ("residual", "attention_rows", "answer_logits", "generated_tokens", "generated_count", "generated_choice", "generated_text")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in model, whose turn ends with one of its answers, so that examples end at different tokens."""
    folder = tmp_path_factory.mktemp("ending") / "model"
    source = resolve_model("demo")
    shutil.copytree(source.folder, folder)
    settings = json.loads((folder / "generation_config.json").read_text())
    ends = [settings["eos_token_id"], source.tokenizer.token_to_id(END)]
    (folder / "generation_config.json").write_text(json.dumps({**settings, "eos_token_id": ends}))
    return folder


@pytest.fixture(scope="module")
def settings(folder: Path, scenes: Path) -> ExtractionSettings:
    return ExtractionSettings(
        model=str(folder),
        examples=(scenes / "scenes.jsonl",),
        images=scenes / "images",
        record=("residual", "attention_rows"),
        limit=COUNT,
        block=8,
        device="cpu",
        generate=TOKENS,
    )


@pytest.fixture(scope="module")
def stored(settings: ExtractionSettings, tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    path = tmp_path_factory.mktemp("generated") / "s.zarr"
    run_extraction(plan_extraction(settings), path)
    assert verify(path).ok
    return ActivationStore.open(path)


def _stock(folder: Path, plan: Any, k: int) -> tuple[Any, list[int]]:
    """Inputs of an example by its own processor, and what transformers generates."""
    processor = transformers.AutoProcessor.from_pretrained(folder)
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with ExitImage(plan, k) as image:
        text = plan.tokenizer.prompt_format.processor_text(plan.prompt.fill(plan.examples[k]).text)
        made = processor(text=[text], images=[image], return_tensors="pt", add_special_tokens=plan.tokenizer.prompt_format.adds_special)
    whole = model.generate(**made, do_sample=False, max_new_tokens=TOKENS)
    return made, whole[0, made["input_ids"].shape[1] :].tolist()


class ExitImage:
    """The image that an example shows, closed at the end."""

    def __init__(self, plan: Any, k: int) -> None:
        self._path = plan.settings.image_path(plan.shown[k])

    def __enter__(self) -> Any:
        from PIL import Image

        self._image = Image.open(self._path).convert("RGB")
        return self._image

    def __exit__(self, *_: object) -> None:
        self._image.close()


def test_examples_end_at_the_end_of_their_turn(stored: ActivationStore, settings: ExtractionSettings, folder: Path) -> None:
    plan = plan_extraction(settings)
    counts, end = stored.read("generated_count"), plan.tokenizer.tokenizer.token_to_id(END)
    assert plan.provenance["generation"] == stored.provenance["generation"]
    assert len(set(counts.tolist())) > 2
    for k in range(0, COUNT, 3):
        _, tokens = _stock(folder, plan, k)
        assert stored.read("generated_tokens", examples=k).tolist() == tokens + [-1] * (TOKENS - len(tokens))
        assert counts[k] == (tokens.index(end) if end in tokens else TOKENS)
    names = [name for name in stored.positions if name.startswith("answer_")]
    assert names == [f"answer_{k}" for k in range(TOKENS)]
    for k, name in enumerate(names):
        np.testing.assert_array_equal(stored.available("residual", name), counts > k)
    absent = int(np.flatnonzero(counts == 0)[0])
    with pytest.raises(NotRecordedError, match="lack a position"):
        stored.read("residual", position="answer_0", examples=absent)
    assert np.isnan(stored["residual"].sel(position="answer_0").isel(example=absent).compute()).all()


def test_a_batch_equals_single_examples(stored: ActivationStore, settings: ExtractionSettings, tmp_path: Path) -> None:
    run_extraction(plan_extraction(settings), tmp_path / "single.zarr", batch_tokens=1)
    single = ActivationStore.open(tmp_path / "single.zarr")
    for name in ("generated_tokens", "generated_text", "generated_choice"):
        np.testing.assert_array_equal(single.read(name), stored.read(name))
    for name in ("answer_0", f"answer_{TOKENS - 1}"):
        there = stored.available("residual", name)
        expected = stored.read("residual", position=name, examples=there)
        np.testing.assert_allclose(single.read("residual", position=name, examples=there), expected, atol=1e-4 * np.abs(expected).max())


def test_a_resumed_run_is_the_same_to_the_last_bit(
    stored: ActivationStore, settings: ExtractionSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch, count = ExtractionSession.launch, []

    def failing(self: ExtractionSession, batch: Any) -> Any:
        count.append(batch)
        if len(count) == 2:
            raise KeyboardInterrupt
        return launch(self, batch)

    monkeypatch.setattr(ExtractionSession, "launch", failing)
    with pytest.raises(KeyboardInterrupt):
        run_extraction(plan_extraction(settings), tmp_path / "s.zarr")
    monkeypatch.undo()
    assert 0 < ActivationStore.open(tmp_path / "s.zarr").written.sum() < 3
    run_extraction(plan_extraction(settings), tmp_path / "s.zarr")
    resumed = ActivationStore.open(tmp_path / "s.zarr")
    for spec in stored.layout.arrays():
        if spec.by_block:
            for block in range(3):
                files = [(Path(store.name) / spec.key(block)).read_bytes() for store in (stored, resumed)]
                assert files[0] == files[1], spec.name


def test_the_first_batch_is_compared_with_a_pass_without_a_cache(
    settings: ExtractionSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Positions that are off by one, as of a family that counts from 1, stop the run."""
    following = KeptCache.following
    monkeypatch.setattr(KeptCache, "following", lambda self, lengths: following(self, lengths) + 1)
    with pytest.raises(CaptureError, match=r"expected (each generated token|the residual stream at answer_0)"):
        run_extraction(plan_extraction(settings), tmp_path / "s.zarr")


def test_padding_that_is_left_on_the_right_would_be_read(
    settings: ExtractionSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(KeptCache, "left_padded", lambda self, output, lengths: getattr(output, self.name))
    with pytest.raises(CaptureError, match=r"expected (each generated token|the residual stream at answer_0)"):
        run_extraction(plan_extraction(settings), tmp_path / "s.zarr")


@pytest.mark.parametrize(
    ("positions", "kept"),
    [(("final", "answer_2"), ("final", "answer_2")), (("answers",), tuple(f"answer_{k}" for k in range(TOKENS))), (("final",), ("final",))],
)
def test_positions_of_generated_tokens_can_be_chosen(
    stored: ActivationStore, settings: ExtractionSettings, tmp_path: Path, positions: tuple[str, ...], kept: tuple[str, ...]
) -> None:
    run_extraction(plan_extraction(dataclasses.replace(settings, positions=positions)), tmp_path / "s.zarr")
    chosen = ActivationStore.open(tmp_path / "s.zarr")
    assert chosen.positions == kept
    np.testing.assert_array_equal(chosen.read("generated_tokens"), stored.read("generated_tokens"))
    for name in kept:
        there = stored.available("residual", name)
        np.testing.assert_array_equal(
            chosen.read("residual", position=name, examples=there), stored.read("residual", position=name, examples=there)
        )


def test_the_default_positions_are_the_first_few_tokens(settings: ExtractionSettings) -> None:
    plan = plan_extraction(dataclasses.replace(settings, generate=12))
    assert plan.generated_positions == tuple(range(8))
    assert "generate   at most 12 tokens an example until its turn ends: 11 more passes a batch" in plan_summary(plan)
    assert "8 of them" in plan_summary(plan)
    assert "\ngenerate" not in plan_summary(plan_extraction(dataclasses.replace(settings, generate=0)))


def test_copies_keep_what_says_which_tokens_there_are(stored: ActivationStore, tmp_path: Path) -> None:
    copy_store(stored.name, tmp_path / "part.zarr", arrays=["residual"], positions=["final", "answer_1"])
    copy_store(stored.name, tmp_path / "prompt.zarr", arrays=["residual"], positions=["final"])
    part, prompt = (ActivationStore.open(tmp_path / f"{name}.zarr") for name in ("part", "prompt"))
    assert verify(tmp_path / "part.zarr").ok
    np.testing.assert_array_equal(part.available("residual", "answer_1"), stored.available("residual", "answer_1"))
    assert "generated_tokens" not in prompt.arrays
    assert prompt.layout.generated == 0


def test_answers_are_reported_beside_those_of_the_logits(stored: ActivationStore) -> None:
    found = answer_confidence(stored)
    number, logits = stored.read("generated_choice"), stored.read("answer_logits")
    labels = stored.examples["label"].to_numpy()
    right = np.where(labels == 1, stored.layout.choices.index("True"), stored.layout.choices.index("False"))
    whole = found.table.iloc[0]
    assert whole["unparsed"] == np.mean(number < 0)
    assert 0 < whole["unparsed"] < 1
    assert whole["generated_accuracy"] == np.mean(number == right)
    assert whole["agreement"] == np.mean((number == logits.argmax(1))[number >= 0])
    assert found.answers["text"].tolist() == generated_texts(stored, range(COUNT))
    assert found.answers["generated"].tolist() == [(*stored.layout.choices, "")[k] for k in number]
    assert f"generated        accuracy {whole['generated_accuracy']:6.1%}" in found.summary()


def test_texts_are_the_tokens_and_choices_are_what_they_name(stored: ActivationStore) -> None:
    tokenizer, ends = resolve_model("demo").tokenizer, stored.provenance["generation"]["end"]
    for tokens, text, choice in zip(
        stored.read("generated_tokens").tolist(),
        generated_texts(stored, range(COUNT)),
        stored.read("generated_choice").tolist(),
        strict=True,
    ):
        assert text == tokenizer.decode([token for token in tokens if token not in (*ends, -1)])
        assert choice == parse_answer(text, stored.layout.choices)


@pytest.mark.parametrize(
    ("text", "choices", "expected"),
    [
        ("True", "True False", 0),
        ("  **False**, because", "True False", 1),
        ("True or false? I cannot say.", "True False", -1),
        ("The statement is true.", "True False", 0),
        ("The statement is not true.", "True False", -1),
        ("That isn't quite true", "True False", -1),
        ("true, not false", "True False", 0),
        ("Untrue", "True False", -1),
        ("No, the cat is on it.", "Yes No", 1),
        ("I see no reason to doubt it.", "Yes No", -1),
        ("Yes it is", "Yes No", 0),
        ("", "Yes No", -1),
        ("<think>Is it true? Yes.</think>\nFalse", "True False", 1),
        ("<think>It is false, so", "True False", -1),
        ("The answer is (B).", "A B C", 1),
        ("A) the cat is left", "A B C", 0),
        ("A cat is on the mat", "A B C", -1),
        ("b", "A B C", -1),
        ("Answer: A. No, wait. Answer: C", "A B C", 2),
        ("The cat is to the left of the dog", "left right above below", 0),
        ("It is above, to the left", "left right above below", -1),
        ("in front of", "front,in front of", 1),
        ("The dog is IN FRONT  of the cat", "in,in front of", 1),
    ],
)
def test_a_text_names_one_choice_or_is_unparsed(text: str, choices: str, expected: int) -> None:
    assert parse_answer(text, choices.split("," if "," in choices else " ")) == expected


def test_the_end_of_the_turn_is_that_of_the_generation_settings(folder: Path, tmp_path: Path) -> None:
    demo = resolve_model("demo")
    assert end_of_turn(resolve_model(str(folder))) == tuple(sorted((2, demo.tokenizer.token_to_id(END))))
    for name in ("config.json", "generation_config.json"):
        shutil.copy(demo.folder / name, tmp_path / name)
    (tmp_path / "generation_config.json").unlink()
    assert end_of_turn(resolve_model(str(tmp_path))) == (2,)
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(InvalidInputError, match="expected a readable"):
        end_of_turn(resolve_model(str(tmp_path)))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"generate": 2, "positions": ("answer_2",)}, "expected `generate` of at least 3 for the position answer_2, found 2"),
        ({"generate": 0, "positions": ("answers",)}, "expected `generate` of at least 1 for the position answers, found 0"),
        ({"generate": -1}, "expected `generate` to be 0 or more, found -1"),
    ],
)
def test_positions_without_a_token_are_refused(settings: ExtractionSettings, more: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        dataclasses.replace(settings, **more)


def test_a_context_too_short_for_the_tokens_is_refused(settings: ExtractionSettings) -> None:
    with pytest.raises(InvalidInputError, match=r"the model's context\), found \d+ and 100000 to generate"):
        plan_extraction(dataclasses.replace(settings, generate=100_000, positions=("final",)))


def test_interventions_take_the_prompts_positions(stored: ActivationStore, settings: ExtractionSettings) -> None:
    found = settings_of_store(stored, data=settings.examples, images=settings.images)
    assert found.positions == tuple(name for name in stored.positions if not name.startswith("answer_"))
