"""One capture mechanism for all families: against eager attention, one example at a time, from a left-padded batch."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from stratascope.errors import CaptureError  # noqa: E402
from stratascope.extract.run.attention_function import BlockAttention  # noqa: E402
from stratascope.extract.run.capture import (  # noqa: E402
    Capture,
    Pooling,
    capturing,
    text_decoder,
    use_captured_attention,
    value_norms,
)
from stratascope.extract.run.logits import check_attributable, directions, logit_parts  # noqa: E402
from tests.extract.families import FAMILIES, build, example, left_padded  # noqa: E402
from tests.extract.unpacked import Unpacked, fused_map  # noqa: E402

WANT = frozenset({"maps", "value_norms", "value_logits", "head_outputs"})
PAIR = (30, 40)
"""Tokens that stand for the two answers."""
ATTRIBUTABLE = [name for name in FAMILIES if name != "paligemma2"]
"""All but the one whose logits are capped."""
WORDS = (9, 4, 13)


def captured(name: str, fusion: str = "mean"):
    """Model, batch and what a padded batch of three left behind."""
    model = build(name, "eager")
    decoder = use_captured_attention(model)
    batch = left_padded(name, [example(name, model, words, seed) for seed, words in enumerate(WORDS)])
    longest = batch["input_ids"].shape[1]
    last = torch.full((3,), longest - 1)
    with torch.inference_mode():
        toward = directions(model, decoder, PAIR)
    capture = Unpacked(last, Pooling(last[:, None, None], torch.ones(3, 1, 1)), WANT, fusion, toward=toward)
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


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "paligemma2"])
def test_residuals_are_exactly_those_of_the_stock_model_on_the_same_batch(name: str) -> None:
    """With stock SDPA, which PaliGemma 2's soft cap rules out: capturing computes beside the forward pass and changes no bit of it."""
    _, _, batch, capture, logits = captured(name)
    stock = build(name, "sdpa")
    inputs: list[torch.Tensor] = []
    for layer in text_decoder(stock).layers:
        layer.register_forward_pre_hook(_keep(inputs), with_kwargs=True)
    with torch.inference_mode():
        output = stock(**batch, use_cache=False, logits_to_keep=1)
    for block, entering in enumerate(inputs):
        np.testing.assert_array_equal(capture.residual[block][:, 0], entering[:, -1])
    np.testing.assert_array_equal(logits, output.logits[:, -1])


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
    capture = Capture(last, Pooling(last[:, None, None], torch.ones(1, 1, 1)), WANT - {"value_logits"})
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


@pytest.mark.parametrize("name", ATTRIBUTABLE)
def test_logits_by_head_and_by_token_add_up_to_the_logit_difference(name: str) -> None:
    """The model's own logits are the oracle; Gemma 3's norm after the heads is folded in."""
    model, decoder, _, capture, logits = captured(name)
    check_attributable(model, decoder)
    with torch.inference_mode():
        parts = logit_parts(model, decoder, capture, PAIR)
    difference = logits[:, PAIR[0]] - logits[:, PAIR[1]]
    np.testing.assert_allclose(parts.total, difference, atol=1e-3)
    rows = torch.stack([capture.rows[block] for block in sorted(capture.rows)])
    np.testing.assert_allclose((rows * parts.tokens).sum(-1), parts.heads, atol=1e-4)
    assert parts.heads.abs().max() > 0.1, "heads that write nothing would show little"


@pytest.mark.parametrize("name", ATTRIBUTABLE)
def test_a_tokens_logit_is_its_value_through_the_models_own_modules(name: str) -> None:
    """One example; every head's part of W_O by itself, the norms' scales taken from what the model computed, one token at a time."""
    model = build(name, "eager")
    decoder = use_captured_attention(model)
    batch = left_padded(name, [example(name, model, 9, 0)])
    last = torch.tensor([batch["input_ids"].shape[1] - 1])
    with torch.inference_mode():
        capture = Capture(last, Pooling(last[:, None, None], torch.ones(1, 1, 1)), WANT, toward=directions(model, decoder, PAIR))
        values, written = [], []
        for layer in decoder.layers:
            layer.self_attn.v_proj.register_forward_hook(lambda module, args, output: values.append(output.clone()))
            layer.self_attn.o_proj.register_forward_hook(lambda module, args, output: written.append(output[0, -1].clone()))
        with capturing(decoder, capture):
            model(**batch, use_cache=False, logits_to_keep=1)
        parts = logit_parts(model, decoder, capture, PAIR)

        def held(norm: torch.nn.Module, x: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
            """What a norm makes of a part of x, its scale held: measured on x itself, entry by entry."""
            return part * norm(x[None])[0] / x

        leaving = capture.final[len(decoder.layers)][0]
        for block, layer in enumerate(decoder.layers):
            heads, width = capture.head_outputs[block].shape[1:]
            value = values[block][0].view(last.item() + 1, -1, width)
            weight = layer.self_attn.o_proj.weight
            for head in range(heads):
                for token in (0, 5, int(last)):
                    own = weight[:, head * width : (head + 1) * width] @ value[token, head // (heads // value.shape[1])]
                    if hasattr(layer, "pre_feedforward_layernorm"):
                        own = held(layer.post_attention_layernorm, written[block], own)
                    logits = model.lm_head.weight @ held(decoder.norm, leaving, own)
                    found = parts.tokens[block, 0, head, token]
                    np.testing.assert_allclose(found, logits[PAIR[0]] - logits[PAIR[1]], rtol=2e-3, atol=2e-5)


def test_a_heads_logit_is_what_its_removal_from_the_residual_takes_away() -> None:
    """With the norm's scale held: the logit difference with and without one head's contribution to the last block."""
    model, decoder, _, capture, _ = captured("qwen2_5_vl")
    with torch.inference_mode():
        parts = logit_parts(model, decoder, capture, PAIR)
        block, head = 3, 2
        z = capture.head_outputs[block][:, head]
        written = z @ decoder.layers[block].self_attn.o_proj.weight[:, head * 16 : (head + 1) * 16].T
        x = capture.final[4]
        scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + decoder.norm.variance_epsilon)
        difference = (written * scale * decoder.norm.weight) @ (model.lm_head.weight[30] - model.lm_head.weight[40])
    np.testing.assert_allclose(parts.heads[block, :, head], difference, rtol=1e-4, atol=1e-6)


def test_a_family_whose_logits_are_capped_is_refused() -> None:
    model = build("paligemma2", "eager")
    with pytest.raises(CaptureError, match="capped ones in PaliGemma"):
        check_attributable(model, text_decoder(model))


@pytest.mark.parametrize("fusion", ["max", "min"])
@pytest.mark.parametrize("name", ["qwen2_5_vl", "gemma3", "paligemma2"])
def test_maps_of_the_largest_and_smallest_weight_equal_eager_ones(name: str, fusion: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In blocks of 16 queries, rows divided by their sums; a sliding window and a soft cap among them."""
    monkeypatch.setattr("stratascope.extract.run.attention_function.QUERY_CHUNK", 16)
    _, _, _, capture, _ = captured(name, fusion)
    eager = build(name, "eager")
    for row in range(3):
        alone = left_padded(name, [example(name, eager, WORDS[row], row)])
        length = alone["input_ids"].shape[1]
        with torch.inference_mode():
            output = eager(**alone, use_cache=False, logits_to_keep=1, output_attentions=True)
        for block, attention in enumerate(output.attentions):
            fused = attention[0].amax(0) if fusion == "max" else attention[0].amin(0)
            np.testing.assert_allclose(capture.fused[block][row, -length:, -length:], fused / fused.sum(-1, keepdim=True), atol=2e-5)


def test_a_row_of_which_no_key_is_seen_by_every_head_is_its_own() -> None:
    """Two heads that look at one key each and nowhere else, as far as float32 can tell."""
    query = torch.zeros(1, 2, 3, 2)
    key = torch.zeros(1, 1, 3, 2)
    query[0, 0, 2, 0] = query[0, 1, 2, 1] = 1e4
    key[0, 0, 0, 0] = key[0, 0, 1, 1] = 1
    seen = BlockAttention(0, None, query, key, key, None, 1.0, None, query.transpose(1, 2))
    np.testing.assert_allclose(fused_map(seen, "min")[0, 2], [0, 0, 1])
    np.testing.assert_allclose(fused_map(seen, "max")[0, 2], [0.5, 0.5, 0])


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
