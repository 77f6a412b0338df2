"""Attribution of logits: everything adds up, against the model's own logits and against sums written out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from analysis_stores import LAYERS, attributed_store

from stratascope.analysis import LogitAttribution, attention_overlap, attention_share, logit_attribution, weighted_rows
from stratascope.errors import InvalidInputError, NotRecordedError
from stratascope.store import ActivationStore
from stratascope.store.format.prompt_parts import PARTS, token_parts


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    return attributed_store(tmp_path_factory.mktemp("attributed") / "a.zarr")


@pytest.fixture(scope="module")
def found(planted: ActivationStore) -> LogitAttribution:
    return logit_attribution(planted)


@pytest.mark.slow
def test_heads_blocks_and_embedding_add_up_to_the_models_difference(planted: ActivationStore, found: LogitAttribution) -> None:
    logits = planted.read("answer_logits")
    np.testing.assert_allclose(found.difference, logits[:, 0] - logits[:, 1])
    assert np.abs(found.remainder).max() < 1e-4
    assert found.carried.sum() + found.carried_by_blocks.sum() + np.cov(found.embedding, found.difference)[0, 1] / found.difference.var(
        ddof=1
    ) == pytest.approx(1, abs=1e-4)


def test_what_a_head_carries_is_the_slope_of_its_regression(found: LogitAttribution) -> None:
    slopes = [np.polyfit(found.difference, found.heads[:, 1, h], 1)[0] for h in range(found.heads.shape[2])]
    np.testing.assert_allclose(found.carried[1], slopes, atol=1e-6)


def test_parts_add_up_to_heads_and_are_sums_over_tokens(planted: ActivationStore, found: LogitAttribution) -> None:
    # rows and value logits are stored in half precision
    np.testing.assert_allclose(found.parts.sum(-1), found.heads, atol=0.02)
    rows = weighted_rows(planted, np.array([5]), "attribution")[0]
    spans = {name: span[[5]] for name, span in planted.spans.items()}
    owner = token_parts(spans, planted.n_tokens[[5]], planted.layout.tokens)[0]
    for k in range(len(PARTS)):
        np.testing.assert_allclose(found.parts[5, ..., k], rows[..., owner == k].sum(-1), atol=1e-5)
    table = found.head_table()
    towards = np.where(found.difference >= 0, 1, -1)
    row = table.query("layer == 2 and head == 1").iloc[0]
    assert row["support"] == pytest.approx((found.heads[:, 2, 1] * towards).mean(), rel=1e-4)
    assert row["support_image"] == pytest.approx((found.parts[:, 2, 1, PARTS.index("image")] * towards).mean(), abs=1e-5)


def test_attribution_loads_back(found: LogitAttribution, tmp_path: Path) -> None:
    found.save(tmp_path / "a.zarr.zip")
    again = LogitAttribution.load(tmp_path / "a.zarr.zip")
    for name in ("heads", "blocks", "embedding", "difference", "parts", "examples"):
        np.testing.assert_array_equal(getattr(again, name), getattr(found, name))
    assert again.attributes == found.attributes


def test_every_scheduler_gives_the_same(planted: ActivationStore, found: LogitAttribution) -> None:
    np.testing.assert_array_equal(logit_attribution(planted, scheduler="threads").parts, found.parts)


def test_norm_based_rows_are_weights_times_norms_and_sum_to_one(planted: ActivationStore) -> None:
    rows, norms = (planted.read(name, examples=[3, 70]) for name in ("attention_rows", "value_norms"))
    expected = np.moveaxis(np.nan_to_num(rows * norms), 0, 1)
    expected = expected / expected.sum(-1, keepdims=True)
    np.testing.assert_allclose(weighted_rows(planted, np.array([3, 70]), "norm"), expected, atol=1e-6)
    share = attention_share(planted, [3, 70], weighing="norm")
    np.testing.assert_allclose(share.values.sum(-1), 1, atol=1e-5)
    assert share.attributes["weighing"] == "norm"
    assert np.abs(share.values - attention_share(planted, [3, 70]).values).max() > 0.01


def test_overlap_of_attributions_is_of_what_speaks_for_the_answer_given(planted: ActivationStore) -> None:
    found = attention_overlap(planted, [0, 1, 2], measure="share", weighing="attribution")
    rows = weighted_rows(planted, np.arange(3), "attribution")
    logits = planted.read("answer_logits", examples=[0, 1, 2])
    for k in range(3):
        start, stop = planted.spans["image"][k]
        towards = 1 if logits[k, 0] >= logits[k, 1] else -1
        cells = np.maximum(towards * rows[k, ..., start:stop], 0)
        assert found.values.shape[:3] == (3, LAYERS, cells.shape[1])
        from stratascope.analysis.box_cells import box_tokens

        inside = box_tokens(planted, np.array([k]))[0, 0, start:stop]
        np.testing.assert_allclose(found.values[k, ..., 0], cells[..., inside].sum(-1) / cells.sum(-1), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("call", "arrays"),
    [
        (lambda s: logit_attribution(s), "head_logits"),
        (lambda s: attention_share(s, weighing="norm"), "value_norms"),
        (lambda s: attention_overlap(s, weighing="attribution"), "value_logits"),
    ],
)
def test_what_is_not_recorded_is_refused_by_name(store, call, arrays: str) -> None:
    with pytest.raises(NotRecordedError, match=f"{arrays} in `record`"):
        call(store)


def test_attributions_have_no_shares(planted: ActivationStore) -> None:
    with pytest.raises(InvalidInputError, match="it is signed"):
        attention_share(planted, weighing="attribution")
    with pytest.raises(InvalidInputError, match="weighting of attention, norm, attribution"):
        weighted_rows(planted, np.array([0]), "size")


@pytest.mark.slow
def test_the_command_says_that_it_adds_up(planted: ActivationStore, tmp_path: Path) -> None:
    from click.testing import CliRunner

    from stratascope.cli import main

    done = CliRunner().invoke(main, ["attribution", planted.name, "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert "equal the difference of the model within" in done.output
    assert {p.name for p in tmp_path.iterdir()} == {"attribution.zarr.zip", "attribution.png"}
