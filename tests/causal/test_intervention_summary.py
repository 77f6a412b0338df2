"""What summaries of interventions say of null results, few pairs and few random directions."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest

from stratascope.causal import EncodingUse, Intervention, encoding_use
from stratascope.causal.effects import SERIES, effect_table
from stratascope.causal.use import use_events, use_table
from stratascope.stats.bootstrap import Bootstrap
from tests.causal.test_effects import simulated


def intervention(*, pairs: int = 0, draws: int = 20, used: tuple[int, ...] = (), images: int = 40) -> Intervention:
    """Simulated erasures of 80 examples of some images; with `pairs`, patches that restore half of the difference of so many of them."""
    variants, change, difference, _ = simulated(np.random.default_rng(5), used=used)
    kept = variants["draw"].to_numpy() < draws
    variants, change, kinds, sources = variants[kept].reset_index(drop=True), change[kept], ["erase"], {}
    if pairs:
        kinds, layers = ["patch"], sorted(set(variants["layer"]))
        variants = pd.DataFrame(
            [("final", "patch", "source", "", 0.0, "mirror", k, k, -1) for k in layers], columns=[*SERIES, "layer", "last", "draw"]
        )
        sources = {"mirror": np.where(np.arange(80) < pairs, -difference, np.nan)}
        gap = sources["mirror"] - difference
        change = 0.05 * np.random.default_rng(1).standard_normal((len(layers), 80)) * gap
    flipped = np.where(np.isnan(change), np.nan, 0.0)
    arrays = {"change": change, "flipped": flipped, **dict.fromkeys(("collateral", "divergence", "others"), np.zeros_like(change))}
    groups = np.arange(80) * images // 80
    bootstrap = Bootstrap(groups, draws=400, seed=0)
    effects = effect_table(variants, arrays, difference, bootstrap, sources, level=0.95)
    use = use_table(variants, change, effects, difference, bootstrap, level=0.95, margin=0.1, control_factor=1.0)
    examples = {"example": np.arange(80), "id": "a", "group": groups.astype(str), "answer": "True", "fold": 0}
    facts = {"store": "f", "condition": "original", "concept": "truth", "kinds": kinds, "controls": draws, "level": 0.95, "margin": 0.1}
    return Intervention(
        variants=variants, examples=pd.DataFrame({**examples, "difference": difference}), effects=effects, use=use,
        events=use_events(use), attributes={**facts, "control_kinds": ["covariance"], "positions": ["final"]}, **arrays,
    )  # fmt: skip


class Curve:
    """A saved curve of six detected layers, or of none, as `encoding_use` reads it."""

    kind, task, position, fingerprint, attributes = "layer_curve", "truth", "final", "f", {}

    def __init__(self, value: float) -> None:
        from stratascope.probe import Advantage

        self.metric, self.layers, self.examples, self.result = "auroc", np.arange(7), pd.DataFrame({"id": range(300)}), self
        draws = value + np.random.default_rng(0).normal(0, 0.02, (400, 7))
        facts = {"chance": 0.5, "examples": 300}
        given = {"metric": "auroc", "name": "truth", "baseline": "chance", "attributes": facts}
        self.advantage = Advantage.of(self.layers, np.full(7, value), draws, **given)
        self.claims = self.advantage.claims

    def rows(self) -> pd.DataFrame:
        table = self.advantage.table
        ends = {name: 0.5 + table[name] for name in table if "low" in name or "high" in name}
        return pd.DataFrame({"layer": self.layers, "value": 0.5 + table["value"], **ends, "chance": 0.5})


def test_no_use_is_said_with_the_number_and_the_effect_that_would_have_been_detected() -> None:
    made = intervention()
    assert not made.use["used"].any()
    least = made.use["minimum_detectable_effect"].max()
    limits = f"n = 80; a change beyond random directions of {least:.2f} of the mean logit difference would have been detected with at least"
    assert (
        f"final, erase (LEACE): no change of answers beyond random directions detected ({limits} 80 % power); flips 0.0% ["
        in made.summary()
    )
    joined = encoding_use([Curve(0.2)], made)
    assert f"truth at final: encoded at layers 0-6, use not detected (erase; {limits} 80 % power)" in joined.summary()
    none = encoding_use([Curve(0.0)], made)
    said = re.search(
        r"not detected by the probe \(n = 300; AUROC of at least (0\.\d\d) would have been detected with 80 % power\)", none.summary()
    )
    assert said
    assert float(said[1]) == pytest.approx(0.5 + Curve(0.0).claims.detectable, abs=0.006)
    assert (none.table["verdict"] == "neither detected").all()


def test_too_few_random_directions_decide_nothing() -> None:
    made = intervention(draws=10)
    assert "not compared with random directions" in made.summary()
    assert "use not decided (erase; too few random directions)" in encoding_use([Curve(0.2)], made).summary()


def test_too_few_images_decide_nothing() -> None:
    """80 examples of 31 images have no interval."""
    made = intervention(images=31, used=(5,))
    why = "too few images: 32 needed, and 5 that decide the mean"
    assert f"not decided whether it changes answers beyond random directions ({why})" in made.summary()
    assert f"use not decided (erase; {why})" in encoding_use([Curve(0.2)], made).summary()


@pytest.mark.parametrize("pairs", [4, 70])
def test_patching_says_how_many_pairs_it_has_and_never_prints_nan(pairs: int, tmp_path) -> None:
    made = intervention(pairs=pairs)
    assert "nan" not in made.summary()
    joined = encoding_use([Curve(0.2)], made)
    assert "nan" not in joined.summary()
    if pairs == 4:
        why = "too few pairs: n = 4, 10 needed"
        assert (
            f"final, patch from mirror: not decided whether it restores more than 0.1 of the difference ({why}); restores" in made.summary()
        )
        assert f"use not decided (patch; {why})" in joined.summary()
    else:
        least = made.use["minimum_detectable_effect"].max()
        limits = f"n = 70 pairs; a restored share of {least:.2f} would have been detected with at least 80 % power"
        assert f"not detected at any layer that it restores more than 0.1 of the difference ({limits}); restores" in made.summary()
        assert f"use not detected (patch; {limits})" in joined.summary()
        assert 0.1 < least < 0.3
    joined.save(tmp_path / "c.zarr.zip")
    assert EncodingUse.load(tmp_path / "c.zarr.zip").summary() == joined.summary()


def test_the_metric_of_the_study_decides_what_is_encoded() -> None:
    curve = Curve(0.2)
    curve.metric = "accuracy"
    joined = encoding_use([curve], intervention(used=(5,)))
    assert set(joined.table["metric"]) == {"accuracy"}
    assert joined.used("final").layers == (5,)
    assert "encoded at layers 0-6, used at layer 5 (erase); encoded without detected use at layers 0-4 and 6" in joined.summary()
