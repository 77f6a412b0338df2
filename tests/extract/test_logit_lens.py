"""The logit lens against the model's own norm and head by transformers; the group `lens` in stores, and adding it later."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from sklearn.metrics import accuracy_score
from tokenizers import Tokenizer, models, pre_tokenizers

torch = pytest.importorskip("torch")

from stratascope.analysis import LogitLens, logit_lens  # noqa: E402
from stratascope.cli import main  # noqa: E402
from stratascope.errors import NotRecordedError, ProvenanceMismatchError, StoreError  # noqa: E402
from stratascope.extract.model_files import resolve_model  # noqa: E402
from stratascope.extract.plan.readout_words import relation_tokens  # noqa: E402
from stratascope.extract.run.capture import text_decoder  # noqa: E402
from stratascope.extract.run.loading import load_model  # noqa: E402
from stratascope.extract.run.logits import Unembedding  # noqa: E402
from stratascope.extract.run.readout import add_lens  # noqa: E402
from stratascope.store import ActivationStore, copy_store, diff_stores, stored_readout, verify  # noqa: E402
from tests.extract.families import FAMILIES, build, example, left_padded  # noqa: E402

FAST = ("qwen2_5_vl", "paligemma2")


def words(tokens: list[int]) -> pd.DataFrame:
    return pd.DataFrame({"kind": "form", "name": [str(t) for t in tokens], "token": tokens, "text": [f" t{t}" for t in tokens]})


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in FAMILIES])
def test_every_layer_is_decoded_as_by_the_models_own_norm_and_head(name: str) -> None:
    """At the last layer these are the logits of the model's forward pass, soft cap included."""
    model, tokens, streams = build(name, "eager"), [3, 900, 17], []
    decoder = text_decoder(model)
    readout = Unembedding(model, decoder).readout(words(tokens))

    def keep(_: object, args: tuple[torch.Tensor, ...], kwargs: dict[str, torch.Tensor]) -> None:
        streams.append(args[0] if args else kwargs["hidden_states"])

    hooks = [module.register_forward_pre_hook(keep, with_kwargs=True) for module in (*decoder.layers, decoder.norm)]
    with torch.inference_mode():
        output = model(**left_padded(name, [example(name, model, 6, 1)]), use_cache=False)
        for hook in hooks:
            hook.remove()
        cap = getattr(decoder.config, "final_logit_softcapping", None)
        own = [model.lm_head(decoder.norm(x)) for x in streams]
        own = [torch.tanh(y / cap) * cap if cap else y for y in own]
    assert len(streams) == 5
    torch.testing.assert_close(own[-1], output.logits)
    for x, logits in zip(streams, own, strict=True):
        np.testing.assert_allclose(readout.logits(x.numpy()), logits[..., tokens].numpy(), atol=1e-5 * float(logits.abs().max()))


def test_a_layer_norm_and_a_bias_are_kept_too() -> None:
    model = build("llava", "eager")
    decoder = text_decoder(model)
    decoder.norm = torch.nn.LayerNorm(64)
    torch.nn.init.normal_(decoder.norm.bias)
    torch.nn.init.normal_(decoder.norm.weight)
    model.lm_head.bias = torch.nn.Parameter(torch.linspace(-3, 3, model.lm_head.out_features))
    x = 3 * torch.randn(5, 64, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        own = model.lm_head(decoder.norm(x))[:, [5, 80]]
    np.testing.assert_allclose(Unembedding(model, decoder).readout(words([5, 80])).logits(x.numpy()), own, atol=1e-4)


def test_the_last_layer_gives_the_stored_answers_and_shares_are_those_of_plain_torch(store) -> None:
    readout = stored_readout(store)
    last = store.read("residual", position="final")[-1]
    np.testing.assert_allclose(
        readout.logits(last, readout.numbers("choice", store.layout.choices)), store.read("answer_logits"), atol=1e-4
    )

    weights = load_model(resolve_model("demo"), torch.float32)
    names = readout.words[readout.words["kind"] == "relation"].set_index("name")["token"]
    choices = list(store.provenance["prompt"]["choices"].values())
    found = logit_lens(store, draws=200)
    labels = np.array([store.layout.choices.index(store.provenance["prompt"]["answers"][k]) for k in store.examples["label"]])
    true = store.examples["label"].to_numpy() == 1
    for layer, x in enumerate(store.read("residual", position="final")):
        with torch.inference_mode():
            logits = weights.lm_head(weights.model.language_model.norm(torch.from_numpy(x))).numpy()
        answer, relation = (found.rows("final", measure).iloc[layer] for measure in ("answer", "relation"))
        assert answer["value"] == pytest.approx(accuracy_score(labels, logits[:, choices].argmax(-1)))
        guess = names.index.to_numpy()[logits[true][:, names].argmax(-1)]
        assert relation["value"] == pytest.approx(accuracy_score(store.examples["relation"][true], guess))
        shares = found.words[found.words["layer"] == layer].set_index("relation")["share"]
        pd.testing.assert_series_equal(shares[shares > 0].sort_index(), pd.Series(guess).value_counts(normalize=True).sort_index(),
                                       check_names=False, check_index_type=False)  # fmt: skip
    assert store.layout.layers in found.decoded("final")
    assert 0 not in found.decoded("final")
    table = found.table
    assert (table["low_simultaneous"] <= table["low"] + 1e-9).all()
    assert (table["low"] <= table["value"] + 1e-9).all()


@pytest.mark.slow
def test_results_are_read_back_and_the_command_draws_the_probe_beside_them(store_path: Path, tmp_path: Path) -> None:
    runner = CliRunner()
    assert (
        runner.invoke(main, ["probe", str(store_path), "--positions", "final", "--tasks", "truth", "-o", str(tmp_path), "-q"]).exit_code
        == 0
    )
    done = runner.invoke(main, ["lens", str(store_path), "-o", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert "the probe for truth is furthest ahead" in done.output
    result = LogitLens.load(tmp_path / "lens.zarr.zip")
    assert len(result.probe) == 7
    assert (tmp_path / "lens.png").exists()
    assert result.options["positions"] == ("final",)


def test_a_store_without_it_names_the_command_that_adds_the_same_bytes(store_path: Path, tmp_path: Path) -> None:
    old = tmp_path / "old.zarr"
    shutil.copytree(store_path, old)
    shutil.rmtree(old / "lens")
    opened = ActivationStore.open(old)
    fingerprint = opened.fingerprint()
    with pytest.raises(NotRecordedError, match="extract --add lens"):
        logit_lens(opened)
    assert verify(old).ok
    done = CliRunner().invoke(main, ["extract", "--add", "lens", "-o", str(old)])
    assert done.exit_code == 0, done.output
    files = {p.relative_to(store_path): p.read_bytes() for p in sorted((store_path / "lens").rglob("*")) if p.is_file()}
    assert files == {p.relative_to(old): p.read_bytes() for p in sorted((old / "lens").rglob("*")) if p.is_file()}
    assert ActivationStore.open(old).fingerprint() == fingerprint
    refused = CliRunner().invoke(main, ["extract", "--add", "lens", "-o", str(old), "--limit", "3"])
    assert refused.exit_code == 2
    assert "--limit" in refused.stderr


def test_another_model_is_refused(store_path: Path, tmp_path: Path) -> None:
    old, model = tmp_path / "old.zarr", tmp_path / "model"
    shutil.copytree(store_path, old)
    shutil.rmtree(old / "lens")
    shutil.copytree(resolve_model("demo").folder, model)
    weights = model / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-2] ^= 1
    weights.write_bytes(data)
    with pytest.raises(ProvenanceMismatchError, match="set `model`"):
        add_lens(old, model=str(model))
    assert not (old / "lens").exists()
    with pytest.raises(StoreError, match="folder of a store"):
        add_lens(tmp_path / "none.zarr")


@pytest.mark.slow
def test_copies_keep_it_a_difference_is_counted_and_damage_is_found_and_mended(store_path: Path, tmp_path: Path) -> None:
    copy_store(store_path, tmp_path / "whole.zarr")
    whole = {p.relative_to(store_path): p.read_bytes() for p in store_path.rglob("*") if p.is_file() and "claims" not in p.parts}
    assert whole == {p.relative_to(tmp_path / "whole.zarr"): p.read_bytes() for p in (tmp_path / "whole.zarr").rglob("*") if p.is_file()}
    copy_store(store_path, tmp_path / "some.zip", arrays="residual", layers=[2, 6], positions=["final"], examples=range(20))
    part = ActivationStore.open(tmp_path / "some.zip")
    np.testing.assert_array_equal(stored_readout(part).rows, stored_readout(ActivationStore.open(store_path)).rows)
    assert logit_lens(part, draws=50).rows("final", "answer")["layer"].tolist() == [2, 6]

    numbers = diff_stores(store_path, tmp_path / "whole.zarr").numbers.set_index("array")
    assert numbers.loc["lens", "values"] > 0 == numbers.loc["lens", "different"]
    chunk = tmp_path / "whole.zarr" / "lens" / "gain" / "c" / "0"
    chunk.write_bytes(chunk.read_bytes()[:-1] + b"\0")
    checked = verify(tmp_path / "whole.zarr")
    assert not checked.ok
    assert "lens" in set(checked.problems["array"])
    with pytest.raises(StoreError, match="extract --add lens"):
        stored_readout(ActivationStore.open(tmp_path / "whole.zarr"))
    add_lens(tmp_path / "whole.zarr")
    assert verify(tmp_path / "whole.zarr").ok


def test_relations_are_told_apart_by_a_token_of_their_own() -> None:
    vocabulary = {name: k for k, name in enumerate(["a", "on", "top", "of", "left", "right", "in", "front", "the", "middle", "?"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    found = relation_tokens(
        tokenizer, ["left of", "right of", "on", "on top of", "in", "in front of", "in the middle of", "of", "of the", ""]
    )
    texts = {name: tokenizer.id_to_token(token) for name, token in found.items()}
    assert texts == {
        "left of": "left", "right of": "right", "on": "on", "on top of": "top", "in": "in", "in front of": "front",
        "in the middle of": "middle", "of": "of", "of the": "the",
    }  # fmt: skip
    assert len(set(found.values())) == len(found)
    assert relation_tokens(tokenizer, ["on", "on of", "of", "of on"]).keys() == {"on", "of"}
