"""One pass back through the decoder, against the stock model in eager mode asked twice with something moved a little."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from stratascope.extract import plan_extraction, run_extraction  # noqa: E402
from stratascope.extract.plan.plan_summary import plan_summary  # noqa: E402
from stratascope.extract.run.capture import text_decoder, use_captured_attention  # noqa: E402
from stratascope.extract.run.gradients import token_gradients  # noqa: E402
from stratascope.store import ActivationStore, verify  # noqa: E402
from tests.extract.families import FAMILIES, build, example, left_padded  # noqa: E402
from tests.extract.test_knockout import PAIR, difference_of  # noqa: E402


def stock_gradients(model, batch):
    """(token,) gradient of the logits' difference by a factor of each token's stream where it enters the first block; and, by block,
    the gradient by a number added to each head's scores, with the weights: (1, head, query, key)."""
    layers = text_decoder(model).layers
    heads, length = text_decoder(model).config.num_attention_heads, batch["input_ids"].shape[1]
    scale = torch.ones(length, dtype=torch.float64, requires_grad=True)
    added = [torch.zeros(1, heads, length, length, dtype=torch.float64, requires_grad=True) for _ in layers]
    weights: dict[int, torch.Tensor] = {}

    def scaled(module, args, kwargs):
        if args:
            return (args[0] * scale[None, :, None], *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": kwargs["hidden_states"] * scale[None, :, None]}

    hooks = [layers[0].register_forward_pre_hook(scaled, with_kwargs=True)]
    for k, layer in enumerate(layers):

        def edited(module, args, kwargs, k=k):
            return args, {**kwargs, "attention_mask": kwargs["attention_mask"] + added[k]}

        hooks.append(layer.self_attn.register_forward_pre_hook(edited, with_kwargs=True))
        hooks.append(layer.self_attn.register_forward_hook(lambda m, a, out, k=k: weights.__setitem__(k, out[1].detach())))
    logits = model(**batch, use_cache=False, logits_to_keep=1).logits[0, -1]
    by_scale, *by_score = torch.autograd.grad(logits[PAIR[0]] - logits[PAIR[1]], [scale, *added])
    for hook in hooks:
        hook.remove()
    return by_scale, by_score, [weights[k] for k in sorted(weights)]


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_answers_as_the_stock_models_own_graph_does(name: str) -> None:
    eager, ours = build(name, "eager").double(), build(name, "eager").double().requires_grad_(False)
    decoder = use_captured_attention(ours)
    batch = {key: v.double() if v.is_floating_point() else v for key, v in left_padded(name, [example(name, eager, 9, 0)]).items()}
    with torch.no_grad():
        found = token_gradients(lambda: ours(**batch, use_cache=False, logits_to_keep=1), decoder.layers, difference_of(ours, decoder))
    by_scale, by_score, weights = stock_gradients(eager, batch)
    torch.testing.assert_close(found.inputs.double(), by_scale, rtol=1e-3, atol=1e-4)
    hiding = torch.zeros_like(by_scale)
    for slope, weight in zip(by_score, weights, strict=True):
        # a weight falls by the share t of itself, and the others rise to fill its place, where its score falls by t / (1 - weight)
        falls = -slope / (1 - weight.double()).clamp_min(1e-3)
        hiding += falls.sum((0, 1, 2)) - falls[0].diagonal(dim1=1, dim2=2).sum(0)
    torch.testing.assert_close(found.knockout_estimate.double(), hiding, rtol=1e-2, atol=2e-3 * float(hiding.abs().max()))


@pytest.mark.slow
def test_the_estimate_ranks_cells_as_hiding_them_does_and_gradients_times_inputs_do_not(settings, tmp_path) -> None:
    record = ("hiding_estimate", "knockout")
    asked = dataclasses.replace(settings, limit=16, record=record, knockout_modes=("later",), knockout_window=0)
    plan = plan_extraction(asked)
    assert "estimates  16 forward and backward passes" in plan_summary(plan)
    run_extraction(plan, tmp_path / "g.zarr")
    assert verify(tmp_path / "g.zarr").ok
    store = ActivationStore.open(tmp_path / "g.zarr")
    names = store.layout.knockout_targets
    cells = [names.index(f"cell_{r}_{c}") for r in range(6) for c in range(6)]
    measured = np.abs(store.read("knockout")[:, 0, 0, cells])
    agreement = {}
    for name in ("hiding_estimate", "gradient_input"):
        values = store.read(name)
        for k, count in enumerate(store.n_tokens):
            assert np.isfinite(values[k, :count]).all()
            assert np.isnan(values[k, count:]).all()
        of_image = np.stack([row[start : start + 36] for row, start in zip(values, store.spans["image"][:, 0], strict=True)])
        ranks = [np.abs(part).argsort(-1).argsort(-1) for part in (of_image, measured)]
        agreement[name] = np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(*ranks, strict=True)])
    # on 512 scenes: .96 and .24
    assert agreement["hiding_estimate"] > 0.85
    assert agreement["gradient_input"] < 0.6
