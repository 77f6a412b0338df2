"""The first batch against the model alone: wrong captures stop in every precision, right ones do not."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from stratascope.errors import CaptureError  # noqa: E402
from stratascope.extract import plan_extraction  # noqa: E402
from stratascope.extract.run.capture import Capture, Pooling, capturing, use_captured_attention  # noqa: E402
from stratascope.extract.run.model import CaptureModel, PendingCapture  # noqa: E402
from stratascope.extract.run.reference import Reference, run_reference  # noqa: E402
from stratascope.extract.run.self_check import LIMITS, compare_examples  # noqa: E402
from stratascope.extract.run.session import ExtractionSession  # noqa: E402
from stratascope.extract.run.shard_block import fill_blocks  # noqa: E402
from tests.extract import real_weights  # noqa: E402
from tests.extract.families import FAMILIES, IMAGE, build, example, left_padded  # noqa: E402

DTYPES = ("float32", "bfloat16", "float16")
PAIR = (30, 40)


class Taken:
    """A store that keeps what it is given."""

    def __init__(self, count: int) -> None:
        self.count, self.arrays = count, dict[str, np.ndarray]()

    def block_examples(self, block: int) -> range:
        return range(self.count)

    def write(self, block: int, arrays: dict[str, np.ndarray]) -> None:
        self.arrays = arrays

    def update(self, count: int) -> None: ...


@pytest.fixture(scope="module", params=DTYPES)
def session(request: pytest.FixtureRequest, settings) -> ExtractionSession:
    """Of six scenes whose prompts differ in length, by the built-in model."""
    record = ("residual", "attention_rows", "head_logits", "value_logits", "top_tokens")
    made = ExtractionSession(plan_extraction(dataclasses.replace(settings, limit=6, dtype=request.param, record=record)), 8192)
    assert len(set(made.plan.token_counts)) > 1
    assert len(set(made.plan.shown)) > 2
    return made


def extract(session: ExtractionSession) -> Taken:
    session.checked, keeper = False, Taken(6)
    fill_blocks(session, keeper, [0], keeper)
    return keeper


@pytest.mark.slow
def test_an_honest_run_passes(session: ExtractionSession) -> None:
    assert np.isfinite(extract(session).arrays["answer_logits"]).all()
    assert session.checked
    assert not session.failed


def _features(change: Callable[[list[Any]], list[Any]]) -> Callable[[pytest.MonkeyPatch], None]:
    def spoil(patch: pytest.MonkeyPatch) -> None:
        from stratascope.extract.run import model

        real = model.feature_inputs
        patch.setattr(model, "feature_inputs", lambda features: real(change(list(features))))

    return spoil


def _inputs(change: Callable[[dict[str, torch.Tensor], torch.Tensor], None]) -> Callable[[pytest.MonkeyPatch], None]:
    """Spoils what the captured passes are given; the model alone is given what its processor makes."""

    def spoil(patch: pytest.MonkeyPatch) -> None:
        from stratascope.extract.run import model

        real = model.forward_inputs

        def spoiled(*arguments: Any) -> dict[str, torch.Tensor]:
            made = real(*arguments)
            change(made, arguments[2])
            return made

        patch.setattr(model, "forward_inputs", spoiled)

    return spoil


def _results(**changes: Callable[[np.ndarray], np.ndarray]) -> Callable[[pytest.MonkeyPatch], None]:
    def spoil(patch: pytest.MonkeyPatch) -> None:
        real = PendingCapture.result

        def spoiled(self: PendingCapture) -> Any:
            made = real(self)
            return dataclasses.replace(made, **{name: change(getattr(made, name)) for name, change in changes.items()})

        patch.setattr(PendingCapture, "result", spoiled)

    return spoil


def _exchange(axis: int, one: int, other: int) -> Callable[[np.ndarray], np.ndarray]:
    def change(values: np.ndarray) -> np.ndarray:
        order = np.arange(values.shape[axis])
        order[[one, other]] = other, one
        return values.take(order, axis)

    return change


def _shift_text(made: dict[str, torch.Tensor], lengths: torch.Tensor) -> None:
    """What follows the image is one position further from it."""
    image = made["mm_token_type_ids"] == 1
    made["position_ids"] = made["position_ids"] + (image.cumsum(1) == image.sum(1, keepdim=True)).long() * (~image).long()


def _turn_image(made: dict[str, torch.Tensor], lengths: torch.Tensor) -> None:
    made["position_ids"] = made["position_ids"][[0, 2, 1]]


def _pad_left(made: dict[str, torch.Tensor], lengths: torch.Tensor) -> None:
    """Prompts at the right end, which nobody told the capture of."""
    for name, along in (("input_ids", -1), ("mm_token_type_ids", -1), ("position_ids", -1)):
        for row, length in enumerate(lengths.tolist()):
            part = made[name][..., row, :]
            made[name][..., row, :] = part.roll(part.shape[along] - length, along)


def _pool_beside(patch: pytest.MonkeyPatch) -> None:
    real = Pooling.of
    patch.setattr(Pooling, "of", lambda tokens: real([[None if t is None else t - 1 for t in each] for each in tokens]))


def _end_early(patch: pytest.MonkeyPatch) -> None:
    """The final token is taken to be the one before."""
    real = ExtractionSession.batch

    def spoiled(self: ExtractionSession, *arguments: Any) -> Any:
        made = real(self, *arguments)
        return dataclasses.replace(made, lengths=made.lengths - 1)

    patch.setattr(ExtractionSession, "batch", spoiled)


MUTATIONS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "images of a batch rolled": _features(lambda features: features[1:] + features[:1]),
    "images of a batch reversed": _features(lambda features: features[::-1]),
    "two images exchanged": _features(lambda features: [features[k] for k in (0, 2, 1, *range(3, len(features)))]),
    "features zeroed": _features(lambda features: [dataclasses.replace(each, pooled=torch.zeros_like(each.pooled)) for each in features]),
    "text shifted": _inputs(_shift_text),
    "rows and columns of the image exchanged": _inputs(_turn_image),
    "padded on the other side": _inputs(_pad_left),
    "positions pooled beside": _pool_beside,
    "final token one early": _end_early,
    "layers exchanged": _results(residual=_exchange(0, 3, 4)),
    "layers labelled one too high": _results(residual=lambda values: values[[0, *range(len(values) - 1)]]),
    "rows of blocks exchanged": _results(rows=_exchange(0, 1, 2)),
    "heads exchanged": _results(rows=_exchange(2, 0, 3)),
    "examples exchanged": _results(residual=_exchange(2, 0, 5), rows=_exchange(1, 0, 5)),
    "answers of other examples": _results(answer_logits=_exchange(0, 0, 5)),
}


@pytest.mark.slow
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_mutated_run_stops_before_anything_is_written(session: ExtractionSession, monkeypatch: pytest.MonkeyPatch, mutation: str) -> None:
    MUTATIONS[mutation](monkeypatch)
    with pytest.raises(CaptureError, match=r"^expected .*, found "):
        extract(session)
    assert not session.checked


def test_only_the_final_position_recorded_hides_no_exchanged_images(settings, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_extraction(dataclasses.replace(settings, limit=6, dtype="bfloat16", record=("residual",), positions=("subject",)))
    assert extract(ExtractionSession(plan, 8192)).arrays["residual"].shape[1] == 1
    MUTATIONS["two images exchanged"](monkeypatch)
    with pytest.raises(CaptureError, match="residual stream"):
        extract(ExtractionSession(plan, 8192))


def test_a_pass_without_a_finite_example_stops(settings, monkeypatch: pytest.MonkeyPatch) -> None:
    session = ExtractionSession(plan_extraction(dataclasses.replace(settings, limit=6, dtype="float16", record=("residual",))), 8192)
    _results(final=lambda values: values * np.float32("inf"))(monkeypatch)
    with pytest.raises(CaptureError, match=r"expected finite activations, found none in the first 6 examples in .*set `dtype` to bfloat16"):
        extract(session)


def _tokens(ids: torch.Tensor, offset: int) -> list[np.ndarray]:
    """The final token, the image, and a word behind it; or of text alone, the first half."""
    image = np.flatnonzero(ids.numpy() == IMAGE)
    parts = [image, image[-1:] + 2] if len(image) else [np.arange(1, len(ids) // 2), np.array([len(ids) // 2])]
    return [np.array([len(ids) - 1]) + offset, *(part + offset for part in parts)]


def _captured(model: Any, decoder: Any, batch: dict[str, Any], prompts: list[torch.Tensor], *, left: bool, **given: Any) -> tuple[Any, ...]:
    """(layer, position, example, hidden) residual, each example's rows, and its logits, from a padded batch."""
    width = batch["input_ids"].shape[1]
    begin = [width - len(ids) if left else 0 for ids in prompts]
    last = torch.tensor([start + len(ids) - 1 for start, ids in zip(begin, prompts, strict=True)])
    pooling = Pooling.of([_tokens(ids, start) for start, ids in zip(begin, prompts, strict=True)])
    capture = Capture(last, pooling)
    with torch.inference_mode(), capturing(decoder, capture):
        logits = model(**{**batch, **given}, use_cache=False).logits[torch.arange(len(last)), last][:, list(PAIR)].float().numpy()
    residual = torch.stack([capture.residual[k] for k in sorted(capture.residual)]).transpose(1, 2).numpy()
    rows = torch.stack([capture.rows[k] for k in sorted(capture.rows)]).numpy()
    own = [rows[:, k, :, start : start + len(ids)] for k, (start, ids) in enumerate(zip(begin, prompts, strict=True))]
    return residual, own, logits


def _cast(batch: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return {name: each.to(dtype) if each.is_floating_point() else each for name, each in batch.items()}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_passes_padded_left_and_stops_with_exchanged_images(name: str, dtype: str) -> None:
    model = build(name, "eager").to(getattr(torch, dtype))
    decoder = use_captured_attention(model)
    examples = [example(name, model, words, row) for row, words in enumerate((9, 14, 6))]
    prompts = [each["input_ids"][0] for each in examples]
    references = [
        run_reference(model, decoder, _cast(left_padded(name, [each]), model.dtype), _tokens(ids, 0), PAIR)
        for each, ids in zip(examples, prompts, strict=True)
    ]
    batch = _cast(left_padded(name, examples), model.dtype)
    compare_examples(LIMITS[dtype], *_captured(model, decoder, batch, prompts, left=True), references)
    pixels = batch["pixel_values"]
    batch["pixel_values"] = pixels.roll(len(pixels) // 3, 0)
    with pytest.raises(CaptureError, match="residual stream"):
        compare_examples(LIMITS[dtype], *_captured(model, decoder, batch, prompts, left=True), references)


TEXTS = (
    "True or false: The cat is at the left side of the refrigerator. Answer True or False.",
    "Once upon a time there was a little girl who lived in a village near the forest. Whenever she went out, the little girl wore a red",
    "The potted plant is below the car, and the",
)


@pytest.fixture(scope="module", params=DTYPES)
def real(request: pytest.FixtureRequest) -> tuple[str, Any, Any, list[torch.Tensor], dict[str, torch.Tensor], list[Reference]]:
    """SmolLM2-135M, three texts padded on the right, and each alone."""
    if real_weights.ABSENT:
        pytest.skip(real_weights.REASON)
    model = real_weights.smollm2().to(getattr(torch, request.param))
    decoder = use_captured_attention(model)
    prompts = [real_weights.tokenize(text)[0] for text in TEXTS]
    ids = torch.nn.utils.rnn.pad_sequence(prompts, batch_first=True, padding_value=2)
    references = [run_reference(model, decoder, {"input_ids": each[None]}, _tokens(each, 0), PAIR) for each in prompts]
    return request.param, model, decoder, prompts, {"input_ids": ids}, references


@pytest.mark.slow
def test_real_weights_pass_and_continue_a_sentence(real: Any) -> None:
    dtype, model, decoder, prompts, batch, references = real
    compare_examples(LIMITS[dtype], *_captured(model, decoder, batch, prompts, left=False), references)
    with torch.inference_mode():
        ids = real_weights.tokenize("The capital of France is")
        assert int(model(input_ids=ids, use_cache=False).logits[0, -1].argmax()) == int(real_weights.tokenize(" Paris")[0, 0])


@pytest.mark.slow
@pytest.mark.parametrize("shift", [1, -1])
def test_real_weights_stop_with_shifted_positions(real: Any, shift: int) -> None:
    """From the sixth token on; all positions shifted alike would be the same function of a rotary embedding."""
    dtype, model, decoder, prompts, batch, references = real
    positions = torch.arange(batch["input_ids"].shape[1]).expand(len(prompts), -1).clone()
    positions[:, 6:] += shift
    with pytest.raises(CaptureError, match="residual stream"):
        compare_examples(LIMITS[dtype], *_captured(model, decoder, batch, prompts, left=False, position_ids=positions), references)


@pytest.mark.slow
@pytest.mark.parametrize(("what", "axis"), [("residual stream", 0), ("attention rows", 1)])
def test_real_weights_stop_with_any_two_neighbouring_layers_exchanged(real: Any, what: str, axis: int) -> None:
    dtype, model, decoder, prompts, batch, references = real
    residual, rows, logits = _captured(model, decoder, batch, prompts, left=False)
    for layer in range(len(residual) - 2):
        change = _exchange(0, layer, layer + 1)
        spoiled = (change(residual), rows) if axis == 0 else (residual, [change(each) for each in rows])
        with pytest.raises(CaptureError, match=what):
            compare_examples(LIMITS[dtype], *spoiled, logits, references)


def test_layers_closer_than_rounding_are_told_apart() -> None:
    """Blocks that move the stream by 2 % in a precision whose limit is 10 %: the nearest reference says whose it is."""
    generator = np.random.default_rng(0)
    steps = generator.normal(size=(9, 2, 3, 64)) * np.array([1, *[0.02] * 8])[:, None, None, None]
    alone = steps.cumsum(0).astype(np.float32)
    noisy = alone * (1 + 0.004 * generator.normal(size=alone.shape)).astype(np.float32)
    rows = np.full((8, 4, 5), 0.2, np.float32)
    references = [Reference(alone[:, :, k], rows, np.zeros(2, np.float32), 1.0) for k in range(3)]
    compare_examples(LIMITS["bfloat16"], noisy, [rows] * 3, np.zeros((3, 2)), references)
    with pytest.raises(CaptureError, match="found layer 4 nearer to the reference of layer 5"):
        compare_examples(LIMITS["bfloat16"], _exchange(0, 4, 5)(noisy), [rows] * 3, np.zeros((3, 2)), references)


def test_a_model_whose_blocks_do_not_all_run_is_refused() -> None:
    model = build("llava", "eager")
    decoder = use_captured_attention(model)
    del decoder.layers[1].self_attn.stratascope_block
    batch = left_padded("llava", [example("llava", model, 9, 0)])
    with pytest.raises(CaptureError, match="attention weights of 4, found 4 runs and weights of 3"):
        run_reference(model, decoder, batch, [np.array([0])], PAIR)
    assert decoder.config._attn_implementation == "stratascope_rows"


@pytest.mark.slow
def test_the_captured_pass_is_the_same_before_and_after_a_reference(session: ExtractionSession) -> None:
    first = extract(session).arrays["residual"]
    assert isinstance(session.model, CaptureModel)
    np.testing.assert_array_equal(extract(session).arrays["residual"], first)
