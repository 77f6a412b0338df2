"""Logits from the stored residual stream in float32, against the model's own head."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from stratascope.extract import plan_extraction, run_extraction  # noqa: E402
from stratascope.extract.run.capture import text_decoder, use_captured_attention  # noqa: E402
from stratascope.extract.run.loading import load_model  # noqa: E402
from stratascope.extract.run.logits import Unembedding  # noqa: E402
from stratascope.extract.run.session import ExtractionSession  # noqa: E402
from stratascope.extract.run.shard_block import fill_blocks  # noqa: E402
from stratascope.store import ActivationStore  # noqa: E402
from tests.extract import real_weights  # noqa: E402
from tests.extract.families import FAMILIES, build  # noqa: E402
from tests.extract.test_selfcheck import TEXTS, Taken  # noqa: E402

DTYPES = ("float32", "bfloat16", "float16")


def own_head(model: torch.nn.Module, residual: torch.Tensor) -> torch.Tensor:
    """(n, vocabulary): the model's modules one after another."""
    decoder = text_decoder(model)
    logits = model.lm_head(decoder.norm(residual))
    cap = getattr(decoder.config, "final_logit_softcapping", None)
    return torch.tanh(logits / cap) * cap if cap else logits


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FAMILIES)
def test_logits_of_every_family_are_those_of_its_own_head_in_float64(name: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The soft cap of PaliGemma 2 among them; the vocabulary ranked in pieces."""
    monkeypatch.setattr("stratascope.extract.run.logits.ROWS", 300)
    model = build(name, "eager").to(getattr(torch, dtype))
    unembedding = Unembedding(model, text_decoder(model))
    residual = 5 * torch.randn(7, 64, generator=torch.Generator().manual_seed(1)).to(model.dtype)
    with torch.inference_mode():
        found = unembedding.logits(residual, [3, 900, 17])
        best, ids = unembedding.most_likely(residual, 5, 1000)
        apart = unembedding.difference(residual, (3, 17))
        again = torch.stack([unembedding.logits(one[None], tokens)[0] for one, tokens in zip(residual, ids.tolist(), strict=True)])
        wide = own_head(model.double(), residual.double())
    assert found.dtype == best.dtype == apart.dtype == torch.float32
    np.testing.assert_allclose(found, wide[:, [3, 900, 17]], atol=2e-6 * float(wide.abs().max()))
    assert ids.tolist() == wide[:, :1000].argsort(descending=True)[:, :5].tolist()
    torch.testing.assert_close(best, again, rtol=0, atol=0)  # a token's logit is the same among whichever others
    torch.testing.assert_close(apart, found[:, 0] - found[:, 2], rtol=0, atol=0)


def test_a_head_with_a_bias_adds_it() -> None:
    model = build("llava", "eager")
    model.lm_head.bias = torch.nn.Parameter(torch.linspace(-3, 3, model.lm_head.out_features))
    unembedding, residual = Unembedding(model, text_decoder(model)), torch.randn(4, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        own = own_head(model, residual)
        np.testing.assert_allclose(unembedding.logits(residual, [1, 700]), own[:, [1, 700]], atol=1e-5)
        best, ids = unembedding.most_likely(residual, 3)
        np.testing.assert_allclose(best, own.gather(1, ids), atol=1e-5)
        assert ids.tolist() == own.argsort(descending=True)[:, :3].tolist()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_answers_follow_from_the_stored_residual_and_all_that_is_compared_with_them_too(settings, tmp_path: Path, dtype: str) -> None:
    record = ("residual", "attention_rows", "head_logits", "form_logits", "top_tokens", "knockout", "hiding_estimate")
    asked = dataclasses.replace(settings, limit=8, dtype=dtype, record=record, knockouts=2, knockout_window=0, knockout_modes=("final",))
    plan = plan_extraction(asked)
    run_extraction(plan, tmp_path / "s.zarr")
    store = ActivationStore.open(tmp_path / "s.zarr")
    assert store.provenance["answer_logits"]["precision"] == "float32"
    weights = load_model(plan.source, getattr(torch, dtype)).double()
    last = torch.from_numpy(store.read("residual", position="final")[-1]).double()
    with torch.inference_mode():
        own = own_head(weights, last)
    answers = store.read("answer_logits")
    np.testing.assert_allclose(answers, own[:, list(plan.tokenizer.choice_ids.values())], atol=1e-5)
    np.testing.assert_allclose(store.read("form_logits"), own[:, list(plan.forms.values())], atol=1e-5)
    np.testing.assert_allclose(store.read("top_logits")[:, 0], answers.max(-1), atol=0)
    parts = store.read("head_logits").sum((0, 2)) + store.read("mlp_logits").sum(0) + store.read("embedding_logits")
    np.testing.assert_allclose(parts, answers[:, 0] - answers[:, 1], atol=1e-4)


@pytest.mark.slow
def test_half_precision_answers_lie_on_no_grid_and_nearer_to_those_of_float32(settings) -> None:
    """The built-in model on 64 scenes: the mean error of the logit difference falls from .022 to .012."""
    differences, own = {}, {}
    for dtype in ("float32", "bfloat16"):
        session = ExtractionSession(plan_extraction(dataclasses.replace(settings, limit=64, dtype=dtype, record=("residual",))), 8192)
        keeper, logits = Taken(64), {}
        real = session.model.launch

        def launch(batch, wanted, real=real, logits=logits):
            coming = real(batch, dataclasses.replace(wanted, model_logits=True))
            logits.update(zip(batch.members, coming.result().model_logits, strict=True))
            return coming

        session.model.launch = launch
        fill_blocks(session, keeper, [0], keeper)
        answers, theirs = keeper.arrays["answer_logits"], np.stack([logits[k] for k in range(64)])
        differences[dtype], own[dtype] = answers[:, 0] - answers[:, 1], theirs[:, 0] - theirs[:, 1]
    np.testing.assert_allclose(differences["float32"], own["float32"], atol=2e-5)
    assert len(np.unique(differences["bfloat16"])) == 64
    before, after = (np.abs(each["bfloat16"] - differences["float32"]).mean() for each in (own, differences))
    assert after < 0.75 * before


@pytest.mark.slow
@pytest.mark.skipif(bool(real_weights.ABSENT), reason=real_weights.REASON)
def test_logits_of_real_weights_in_bfloat16_take_as_many_values_as_there_are_prompts() -> None:
    words = " ".join(TEXTS).split()
    ids = torch.cat([real_weights.tokenize(" ".join(words[start : start + 12]))[:, :12] for start in range(30)])
    pair = tuple(int(real_weights.tokenize(word)[0, 0]) for word in (" the", " a"))
    model, found = real_weights.smollm2(), {}
    for dtype in (torch.float32, torch.bfloat16):
        decoder, kept = use_captured_attention(model.to(dtype)), []
        hook = decoder.norm.register_forward_pre_hook(lambda module, args, kept=kept: kept.append(args[0][:, -1]))
        with torch.inference_mode():
            own = model(input_ids=ids, use_cache=False, logits_to_keep=1).logits[:, 0, list(pair)].float()
            hook.remove()
            found[dtype] = own[:, 0] - own[:, 1], Unembedding(model, decoder).difference(kept[0], pair)
    exact = found[torch.float32][0]
    np.testing.assert_allclose(found[torch.float32][1], exact, atol=1e-4)
    own, ours = found[torch.bfloat16]
    assert len(own.unique()) < len(ours.unique()) == len(exact.unique()) == 30
    assert (ours - exact).abs().mean() < (own - exact).abs().mean()
