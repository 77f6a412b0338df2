"""Gradient rollout, against the paper's equations on the stock model's own attention weights and their gradients."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

torch = pytest.importorskip("torch")

from stratascope.analysis import RolloutResult, rollout_examples  # noqa: E402
from stratascope.analysis.relevance import group_scores, methods_of  # noqa: E402
from stratascope.analysis.rollout import gradient_rollout_packed  # noqa: E402
from stratascope.cli import main  # noqa: E402
from stratascope.errors import InvalidInputError, NotRecordedError  # noqa: E402
from stratascope.extract import plan_extraction, run_extraction  # noqa: E402
from stratascope.extract.plan.plan_summary import plan_summary  # noqa: E402
from stratascope.extract.run.capture import use_captured_attention  # noqa: E402
from stratascope.extract.run.gradients import token_gradients  # noqa: E402
from stratascope.store import ActivationStore, verify  # noqa: E402
from stratascope.store.maintenance.copy import copy_store  # noqa: E402
from tests.extract.families import FAMILIES, build, example, left_padded  # noqa: E402
from tests.extract.test_knockout import PAIR, difference_of  # noqa: E402


def equations(model, batch) -> np.ndarray:
    """(layer + 1, token): for each layer the final row of R, begun there with the identity: R = R + E_h[(dd/dA * A)^+] R.

    Of the difference between the logit of the likelier answer and that of the other.
    """
    output = model(**batch, use_cache=False, logits_to_keep=1, output_attentions=True)
    logits = output.logits[0, -1]
    gradients = torch.autograd.grad((logits[PAIR[0]] - logits[PAIR[1]]).abs(), output.attentions)
    weighted = [(g * a).clamp(min=0)[0].mean(0) for g, a in zip(gradients, output.attentions, strict=True)]
    rows = []
    for begin in range(len(weighted) + 1):
        relevance = torch.eye(batch["input_ids"].shape[1], dtype=weighted[0].dtype)
        for each in weighted[begin:]:
            relevance = relevance + each @ relevance
        rows.append(relevance[-1])
    return torch.stack(rows).detach().numpy()


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_every_familys_gradient_rollout_is_that_of_the_equations(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In chunks of 16 queries."""
    monkeypatch.setattr("stratascope.extract.run.gradients.QUERY_CHUNK", 16)
    eager, ours = build(name, "eager").double(), build(name, "eager").double().requires_grad_(False)
    decoder = use_captured_attention(ours)
    batch = {key: v.double() if v.is_floating_point() else v for key, v in left_padded(name, [example(name, eager, 9, 0)]).items()}
    expected = equations(eager, batch)
    with torch.no_grad():
        found = token_gradients(lambda: ours(**batch, use_cache=False, logits_to_keep=1), decoder.layers, difference_of(ours, decoder))
    assert np.abs(expected[0] - expected[-1]).max() > 1e-6, "gradients that vanish would show little"
    np.testing.assert_allclose(found.rollout, expected, rtol=1e-3, atol=1e-4 * np.abs(expected[0] - expected[-1]).max())
    packed = gradient_rollout_packed(found.maps.numpy(), found.scale.numpy())
    assert np.abs(packed - expected).sum(-1).max() < 0.02 * (expected.sum(-1) - 1).max()


@pytest.fixture(scope="module")
def recorded(settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    record = ("residual", "attention_maps", "gradient_rollout", "gradient_maps")
    plan = plan_extraction(dataclasses.replace(settings, limit=4, record=record, positions=("final",), maps=2))
    assert "estimates  4 forward and backward passes" in plan_summary(plan)
    path = tmp_path_factory.mktemp("gradients") / "g.zarr"
    run_extraction(plan, path)
    return path


@pytest.mark.slow
def test_a_store_holds_it_to_the_end_of_each_prompt(recorded: Path) -> None:
    assert verify(recorded).ok
    store = ActivationStore.open(recorded)
    found = rollout_examples(store, gradient=True)
    assert found.values.shape == (4, 7, int(store.n_tokens.max()))
    for k, tokens in enumerate(store.n_tokens):
        own, beyond = found.values[k, :, :tokens], found.values[k, :, tokens:]
        np.testing.assert_array_equal(own[-1], np.eye(tokens)[-1])
        assert (np.diff(own, axis=0) <= 1e-6).all(), "relevance only adds up towards the inputs"
        assert own[0].sum() > 1
        assert np.isnan(beyond).all()
    above = rollout_examples(store, [2], window=(3, 6), gradient=True)
    np.testing.assert_array_equal(above.values, found.values[2:3, 3:, : store.n_tokens[2]])
    assert set(np.flatnonzero(store.available("gradient_maps"))) == {0, 2}
    with pytest.raises(NotRecordedError, match="have no map: 1"):
        rollout_examples(store, [1], window=(0, 3), gradient=True)
    shares = found.to_frame()["onto_the_image"]
    assert ((shares > 0) & (shares < 1)).all()


def test_the_result_is_saved_drawn_and_made_again(recorded: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["rollout", str(recorded), "--gradient", "--examples", "1-2", "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert "gradient rollout, blocks 0 to 5, 2 examples: " in done.output
    found = RolloutResult.load(tmp_path / "rollout.zarr.zip")
    assert (found.attributes["form"], found.attributes["fusion"]) == ("gradient", "mean")
    again = rollout_examples(ActivationStore.open(recorded), **found.options)
    np.testing.assert_array_equal(again.values, found.values)
    assert (tmp_path / "rollout.png").exists()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"form": "dropped"}, "`form` beside `gradient`, found dropped"),
        ({"sinks": [0]}, r"`sinks` beside `gradient`, found \[0\]"),
        ({"discard": 0.5}, "`discard` beside `gradient`"),
        ({"tower": "vision"}, "`tower` beside `gradient`"),
    ],
)
def test_what_does_not_apply_is_refused(recorded: Path, options: dict, named: str) -> None:
    with pytest.raises(InvalidInputError, match=named):
        rollout_examples(ActivationStore.open(recorded), gradient=True, **options)


def test_windows_that_end_below_are_rolled_out_from_packed_maps(recorded: Path, tmp_path: Path) -> None:
    """Through all blocks the packed maps give the stored rollout, but for packing; through a window, the product of its own blocks."""
    store = ActivationStore.open(recorded)
    whole = rollout_examples(store, [2], gradient=True)
    packed, scale = (store.read(name, examples=2) for name in ("gradient_maps", "gradient_scale"))
    tokens = int(store.n_tokens[2])
    weights = np.square(packed[:, :tokens, :tokens] / 255) * scale[:, :tokens, None]
    again = gradient_rollout_packed(packed[:, :tokens, :tokens], scale[:, :tokens])
    np.testing.assert_allclose(again, whole.values[0], atol=0.02 * whole.values[0, 0].max())
    relevance = np.eye(tokens)
    for block in (1, 2):
        relevance = relevance + weights[block] @ relevance
    part = rollout_examples(store, [2], window=(1, 3), gradient=True)
    np.testing.assert_allclose(part.values[0, 0], relevance[-1], rtol=1e-6)
    done = CliRunner().invoke(main, ["rollout", str(recorded), "--gradient", "--window", "1-2", "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert "gradient rollout, blocks 1 to 2, 2 examples: " in done.output
    copy_store(recorded, tmp_path / "bare.zarr", arrays=["residual", "gradient_rollout"])
    with pytest.raises(InvalidInputError, match=r"ends with the last block, 5, .* record gradient_maps for other windows"):
        rollout_examples(ActivationStore.open(tmp_path / "bare.zarr"), gradient=True, window=(0, 3))


def test_it_is_a_method_that_scores_groups_by_the_relevance_of_their_tokens(recorded: Path, store: ActivationStore) -> None:
    held = ActivationStore.open(recorded)
    (method,), _ = methods_of(held, ["gradient_rollout"])
    tokens = int(held.n_tokens[1])
    members = np.zeros((2, tokens), bool)
    members[0, 3:9], members[1, tokens - 4 :] = True, True
    scores = group_scores(held, 1, members, [method], windows=[(0, 6), (2, 4)], few=[(3, 6), (3, 4)])["gradient_rollout"]
    onto = rollout_examples(held, [1], gradient=True).values[0, 0]
    expected = [onto[3:9].sum(), onto[tokens - 4 : tokens].sum()]
    np.testing.assert_allclose(scores, [expected, expected], rtol=1e-6)
    assert method in methods_of(held)[0]
    assert methods_of(store)[1]["gradient_rollout"] == "gradient_rollout"
    with pytest.raises(NotRecordedError, match="expected gradient_rollout in the store for the method 'gradient_rollout'"):
        methods_of(store, ["gradient_rollout"])


def test_a_store_without_it_says_what_to_record(recorded: Path, store: ActivationStore, tmp_path: Path) -> None:
    with pytest.raises(NotRecordedError, match="extract again with gradient_rollout"):
        rollout_examples(store, gradient=True)
    copy_store(recorded, tmp_path / "part.zarr", layers=[0, 3])
    with pytest.raises(NotRecordedError, match="found a copy of some"):
        rollout_examples(ActivationStore.open(tmp_path / "part.zarr"), gradient=True)
