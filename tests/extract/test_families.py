"""One capture mechanism for all families: against eager attention, one example at a time, from a left-padded batch."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from stratascope.errors import CaptureError  # noqa: E402
from stratascope.extract.attribution import check_attributable, logit_parts  # noqa: E402
from stratascope.extract.capture import (  # noqa: E402
    Capture,
    Pooling,
    capturing,
    text_decoder,
    use_captured_attention,
    value_norms,
)
from tests.extract.families import FAMILIES, build, example, left_padded  # noqa: E402

WANT = frozenset({"maps", "value_norms", "head_outputs"})
WORDS = (9, 4, 13)


def captured(name: str):
    """Model, batch and what a padded batch of three left behind."""
    model = build(name, "eager")
    decoder = use_captured_attention(model)
    batch = left_padded(name, [example(name, model, words, seed) for seed, words in enumerate(WORDS)])
    longest = batch["input_ids"].shape[1]
    last = torch.full((3,), longest - 1)
    capture = Capture(last, Pooling(last[:, None, None], torch.ones(3, 1, 1)), WANT)
    with torch.inference_mode(), capturing(decoder, capture):
        output = model(**batch, use_cache=False, logits_to_keep=1)
    return model, decoder, batch, capture, output.logits[:, -1]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_left_padded_batch_equals_eager_single_examples(name: str) -> None:
    _, _, _, capture, logits = captured(name)
    eager = build(name, "eager")
    blocks = len(capture.rows)
    assert sorted(capture.residual) == list(range(blocks + 1))
    sharpest = 0.0
    for row in range(3):
        alone = left_padded(name, [example(name, eager, WORDS[row], row)])
        length = alone["input_ids"].shape[1]
        inputs: list[torch.Tensor] = []
        hooks = [layer.register_forward_pre_hook(_keep(inputs), with_kwargs=True) for layer in text_decoder(eager).layers]
        with torch.inference_mode():
            output = eager(**alone, use_cache=False, logits_to_keep=1, output_attentions=True)
        for hook in hooks:
            hook.remove()
        for block in range(blocks):
            attention = output.attentions[block][0]
            np.testing.assert_allclose(capture.rows[block][row, :, -length:], attention[:, -1], atol=1e-5)
            assert capture.rows[block][row, :, :-length].abs().max() < 1e-6 if length < capture.rows[block].shape[-1] else True
            np.testing.assert_allclose(capture.fused[block][row, -length:, -length:], attention.mean(0), atol=1e-5)
            np.testing.assert_allclose(capture.residual[block][row, 0], inputs[block][0, -1], rtol=2e-4, atol=2e-4)
            sharpest = max(sharpest, float(attention[:, -1].max()))
        np.testing.assert_allclose(logits[row], output.logits[0, -1], rtol=2e-4, atol=2e-3)
    assert sharpest > 0.2, "a test with flat attention would show little"


def _keep(inputs: list):
    def hook(module, args, kwargs):
        inputs.append((args[0] if args else kwargs["hidden_states"]).clone())

    return hook


@pytest.mark.parametrize("name", FAMILIES)
def test_the_last_residual_through_norm_and_head_gives_the_logits(name: str) -> None:
    model, decoder, _, capture, logits = captured(name)
    with torch.inference_mode():
        own = model.lm_head(decoder.norm(capture.residual[len(capture.rows)][:, 0]))
    cap = getattr(decoder.config, "final_logit_softcapping", None)
    if cap:
        own = torch.tanh(own / cap) * cap
    np.testing.assert_allclose(own, logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_head_outputs_and_value_norms_equal_what_is_written_out(name: str) -> None:
    """z from W_O's own input; norms from the projection of every value vector by itself."""
    model = build(name, "eager")
    decoder = use_captured_attention(model)
    batch = left_padded(name, [example(name, model, 9, 0)])
    last = torch.tensor([batch["input_ids"].shape[1] - 1])
    capture = Capture(last, Pooling(last[:, None, None], torch.ones(1, 1, 1)), WANT)
    inputs, values = [], []
    for layer in decoder.layers:
        layer.self_attn.o_proj.register_forward_pre_hook(lambda module, args: inputs.append(args[0].clone()))
        layer.self_attn.v_proj.register_forward_hook(lambda module, args, output: values.append(output.clone()))
    with torch.inference_mode(), capturing(decoder, capture):
        model(**batch, use_cache=False, logits_to_keep=1)
    for block, layer in enumerate(decoder.layers):
        z = capture.head_outputs[block]
        np.testing.assert_allclose(z.reshape(1, -1), inputs[block][:, -1], atol=1e-6)
        heads, width = z.shape[1:]
        groups = values[block].shape[-1] // width
        value = values[block].view(-1, groups, width)
        weights = layer.self_attn.o_proj.weight.detach()
        for head in range(heads):
            with torch.inference_mode():
                norms = (value[:, head // (heads // groups)] @ weights[:, head * width : (head + 1) * width].T).norm(dim=-1)
            np.testing.assert_allclose(capture.value_norms[block][0, head], norms, rtol=1e-4)


@pytest.mark.parametrize("name", [n for n in FAMILIES if not n.startswith("gemma") and n != "paligemma2"])
def test_head_logits_add_up_to_the_logit_difference(name: str) -> None:
    model, decoder, _, capture, logits = captured(name)
    check_attributable(model, decoder)
    with torch.inference_mode():
        parts = logit_parts(model, decoder, capture, (30, 40))
    total = parts.heads.sum((0, 2)) + parts.rest.sum(0) + parts.embedding + parts.constant
    np.testing.assert_allclose(total, logits[:, 30] - logits[:, 40], atol=1e-3)


def test_a_heads_logit_is_what_its_removal_from_the_residual_takes_away() -> None:
    """With the norm's scale held: the logit difference with and without one head's contribution to the last block."""
    model, decoder, _, capture, _ = captured("qwen2_5_vl")
    with torch.inference_mode():
        parts = logit_parts(model, decoder, capture, (30, 40))
        block, head = 3, 2
        z = capture.head_outputs[block][:, head]
        written = z @ decoder.layers[block].self_attn.o_proj.weight[:, head * 16 : (head + 1) * 16].T
        x = capture.final[4]
        scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + decoder.norm.variance_epsilon)
        difference = (written * scale * decoder.norm.weight) @ (model.lm_head.weight[30] - model.lm_head.weight[40])
    np.testing.assert_allclose(parts.heads[block, :, head], difference, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("name", "reason"), [("gemma3", "a norm after it"), ("paligemma2", "a norm after it")])
def test_families_whose_logits_do_not_decompose_are_refused(name: str, reason: str) -> None:
    model = build(name, "eager")
    with pytest.raises(CaptureError, match=reason):
        check_attributable(model, text_decoder(model))


def test_a_model_that_does_not_fit_is_refused() -> None:
    with pytest.raises(CaptureError, match=r"expected a model whose text decoder has \.layers"):
        text_decoder(torch.nn.Linear(2, 2))


def test_value_norms_of_grouped_heads_share_values_but_not_projections() -> None:
    generator = torch.Generator().manual_seed(0)
    value, weight = torch.randn(2, 2, 7, 5, generator=generator), torch.randn(11, 20, generator=generator)
    norms = value_norms(value, weight, 4)
    for head in range(4):
        by_hand = (value[:, head // 2] @ weight[:, head * 5 : head * 5 + 5].T).norm(dim=-1)
        np.testing.assert_allclose(norms[:, head], by_hand, rtol=1e-5)
