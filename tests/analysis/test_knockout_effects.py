"""Knockout effects of a store with planted effects, against means written out and scipy's bootstrap."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from analysis_stores import WINDOWS, attributed_store, planted_store
from scipy.stats import bootstrap

from stratascope.analysis import KnockoutEffects, knockout_effects
from stratascope.errors import NotRecordedError, TooFewExamplesError
from stratascope.store import ActivationStore


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    return attributed_store(tmp_path_factory.mktemp("effects") / "a.zarr", noise=0.1, measured=80)


def test_effects_are_towards_the_answer_with_intervals_over_images(planted: ActivationStore, tmp_path: Path) -> None:
    found = knockout_effects(planted, draws=4000)
    effects, logits = planted.read("knockout")[:80].astype(float), planted.read("answer_logits")[:80].astype(float)
    targets = planted.read("knockout_target").tolist()
    assert found.examples.tolist() == list(range(80))
    assert set(found.table["target"]) == {name for name in targets if not name.startswith("cell_")}
    for row in found.table.to_dict("records"):
        m, w = ("final", "later").index(row["reader"]), WINDOWS.index(row["window"])
        change = effects[:, m, w, targets.index(row["target"])]
        own = logits.argmax(1)
        masked = logits + np.stack([change / 2, -change / 2], 1)
        pairs = zip(logits, masked, own, strict=True)
        gained = np.array([after[k] - after[1 - k] - (before[k] - before[1 - k]) for before, after, k in pairs])
        assert row["effect"] == pytest.approx(gained.mean(), abs=1e-9)
        assert row["flipped"] == pytest.approx((masked.argmax(1) != own).mean())
        if row["window"] == "1-2" and row["target"] == "image":
            by_image = gained.reshape(-1, 2).mean(1)  # two examples an image
            ends = bootstrap((by_image,), np.mean, method="percentile", n_resamples=4000, rng=np.random.default_rng(0)).confidence_interval
            # Student's t for 40 images, and wider where sizes are unequal
            assert 1 <= (row["high"] - row["low"]) / (ends.high - ends.low) <= 1.6
            assert row["low"] + row["high"] == pytest.approx(ends.low + ends.high, abs=0.2 * (ends.high - ends.low))
            assert row["low_simultaneous"] < row["low"] < row["high"] < row["high_simultaneous"]
    found.save(tmp_path / "k.zarr.zip")
    again = KnockoutEffects.load(tmp_path / "k.zarr.zip")
    assert again.table.equals(found.table)
    assert again.summary() == found.summary()
    assert len(again.figure().axes) == 2


def test_stores_without_knockouts_and_single_images_are_refused(planted: ActivationStore, tmp_path: Path) -> None:
    with pytest.raises(TooFewExamplesError, match="8 images, found 1"):
        knockout_effects(planted, [0, 1])
    with pytest.raises(NotRecordedError, match="knockout"):
        knockout_effects(planted_store(tmp_path / "b.zarr", examples=8))
