"""Statistics of interventions: false claims of use, what is found, restored shares."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

from stratascope.causal.answers import Answers
from stratascope.causal.effects import SERIES, flip_shares, relative, restored
from stratascope.causal.use import above_draws, fewest_draws, use_events, use_table
from stratascope.stats.bootstrap import Bootstrap
from stratascope.stats.intervals import INTERVALS, wilson

LAYERS, DRAWS = 7, 20


def simulated(rng: np.random.Generator, *, used: tuple[int, ...] = (), strength: float = 1.0, images: int = 40):
    """Variants of erasure and their changes: random directions differ in effect, layers are dependent, images have two examples.

    The concept's own direction is drawn as the random ones are; at the layers `used` it has an effect of its own.
    """
    rows = [("final", "erase", "leace", "", 0.0, "", layer, layer, -1) for layer in range(LAYERS)]
    rows += [("final", "erase", "leace", "covariance", 0.0, "", layer, layer, d) for d in range(DRAWS) for layer in range(LAYERS)]
    variants = pd.DataFrame(rows, columns=[*SERIES, "layer", "last", "draw"])
    # each direction has a size by layer with heavy tails, common to all examples, and shared between neighbouring layers
    shared = rng.normal(size=(DRAWS + 1, 1)) + 0.7 * rng.normal(size=(DRAWS + 1, LAYERS)).cumsum(1)
    size = 0.1 * np.exp(0.3 * shared) * np.linspace(0.2, 1, LAYERS)
    image = rng.normal(size=images).repeat(2)
    change = np.stack(
        [
            size[draw + 1, layer] * (0.5 + image + rng.normal(size=2 * images))
            for draw, layer in zip(variants["draw"], variants["layer"], strict=True)
        ]
    )
    for layer in used:
        change[layer] += strength * rng.choice([-1, 1], 2 * images)
    difference = rng.choice([-1.0, 1.0], 2 * images)
    return variants, change, difference, Bootstrap(np.arange(images).repeat(2), draws=200, seed=1)


def use(variants, change, difference, bootstrap, margin: float = 0.0) -> pd.DataFrame:
    return use_table(variants, change, pd.DataFrame(), difference, bootstrap, level=0.95, margin=margin, control_factor=1.0)


@pytest.mark.slow
def test_use_is_claimed_falsely_in_at_most_5_percent() -> None:
    """The concept's direction has an effect, as random directions have: 300 studies; the band over images alone would claim it in most."""
    found = alone = 0
    for seed in range(300):
        table = use(*simulated(np.random.default_rng(seed)))
        found += bool(table["used"].any())
        alone += bool((table["excess_low_simultaneous"] > 0).any())
    assert found <= 300 * 0.05 + 1.645 * (300 * 0.05 * 0.95) ** 0.5
    assert alone > 0.2 * 300, "this simulation would else not tell the two rules apart"


def test_layers_used_are_found_and_no_others() -> None:
    rights = []
    for seed in range(40):
        table = use(*simulated(np.random.default_rng(seed), used=(4, 5), strength=1.0))
        rights.append(table["layer"][table["used"]].tolist() == [4, 5])
    assert np.mean(rights) > 0.8
    events = use_events(table)
    assert events[["used_onset", "used_offset"]].to_numpy().tolist() == [[4, 6]]


def test_an_effect_below_the_margin_is_no_use() -> None:
    made = simulated(np.random.default_rng(0), used=(5,), strength=1.0)
    assert use(*made, margin=0.5)["used"].any()
    assert not use(*made, margin=2.0)["used"].any()


@pytest.mark.slow
@pytest.mark.parametrize(("margin", "layer"), [(0.0, 5), (0.4, 2)])
def test_an_effect_of_the_minimum_detectable_size_is_mostly_detected(margin: float, layer: int) -> None:
    """Each study without use gives its size; the same study with an effect of that size has power 80 % or more."""
    hits, sizes, reached = [], [], []
    for seed in range(40):
        none = use(*simulated(np.random.default_rng(seed)), margin=margin).iloc[layer]
        sizes.append(none["minimum_detectable_effect"])
        strength = sizes[-1] + none["control"]
        found = use(*simulated(np.random.default_rng(seed), used=(layer,), strength=strength), margin=margin).iloc[layer]
        reached.append(found["excess"])
        hits.append(found["used"])
    assert np.mean(reached) == pytest.approx(np.mean(sizes), rel=0.1)
    assert np.mean(hits) >= 0.7
    assert margin < np.median(sizes) < 1
    few = simulated(np.random.default_rng(0))
    kept = few[0].index[few[0]["draw"] < 10]
    assert use(few[0].loc[kept].reset_index(drop=True), few[1][kept], *few[2:])["minimum_detectable_effect"].isna().all()


def test_fewer_draws_than_the_level_needs_decide_nothing() -> None:
    assert fewest_draws(0.95) == 19
    assert fewest_draws(0.99) == 99
    own, draws = np.full(3, 100.0), np.random.default_rng(0).normal(size=(18, 3))
    assert above_draws(own, draws, level=0.95)[1] == np.inf
    score, threshold = above_draws(own, np.concatenate([draws, draws[:1] + 0.1]), level=0.95)
    assert (score > threshold).all()


def test_bands_of_values_without_a_position_leave_those_out() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(1, 1, size=(3, 200))
    values[1, :50] = np.nan
    values[2] = np.nan
    bootstrap = Bootstrap(np.arange(200), draws=500, seed=0)
    found = relative("effect", values, rng.choice([-1.0, 1.0], 200), bootstrap, level=0.95)
    assert found["effect"][:2] == pytest.approx([values[0].mean(), values[1, 50:].mean()])
    assert np.isnan(found["effect"][2])
    assert np.isnan(found["effect_low"][2])
    # the standard error of a mean, against the normal interval
    assert (found["effect_high"] - found["effect_low"])[:2] == pytest.approx(2 * 1.96 / np.sqrt([200, 150]), rel=0.15)


@pytest.mark.slow
def test_simultaneous_bands_of_few_flipped_answers_cover_their_expectation() -> None:
    """A share of .05 of 256 images at six layers, where standard errors of resamples alone are too small."""
    hits = []
    for seed in range(300):
        flipped = (np.random.default_rng([seed, 7]).random((6, 256)) < 0.05).astype(float)
        found = flip_shares(flipped, Bootstrap(np.arange(256), draws=400, seed=0), level=0.95)
        hits.append(bool(((found["flipped_low_simultaneous"] <= 0.05) & (found["flipped_high_simultaneous"] >= 0.05)).all()))
    assert np.mean(hits) >= 0.95 - 2.5 * np.sqrt(0.05 * 0.95 / 300)


def test_shares_of_few_examples_have_intervals_of_the_resamples_that_hold_some() -> None:
    """Three measured examples: many resamples hold none of them. The floor is that of the images measured, not of all."""
    values = np.full((1, 200), np.nan)
    values[0, :3] = [0.0, 0.0, 1.0]
    found = flip_shares(values, Bootstrap(np.arange(200), draws=2000, seed=0), level=0.95)
    assert found["flipped"] == pytest.approx([1 / 3])
    assert [found["flipped_low"][0], found["flipped_high"][0]] == pytest.approx(wilson(1 / 3, 2), abs=1e-4)
    assert found["flipped_low_simultaneous"][0] == 0
    assert found["flipped_high_simultaneous"][0] >= 1 / 3 + 1.96**2 / (3 + 1.96**2) - 1e-3
    none = flip_shares(np.full((1, 5), np.nan), Bootstrap(np.arange(5), draws=10, seed=0), level=0.95)
    assert np.isnan([none["flipped"], none["flipped_low"], none["flipped_high"]]).all()


@pytest.mark.slow
@pytest.mark.parametrize(("images", "spread"), [(32, 1.0), (32, 1.5), (32, 2.0), (256, 1.0), (256, 1.5)])
def test_pointwise_intervals_of_sizes_of_which_few_are_large_seldom_miss_their_expectation(images: int, spread: float) -> None:
    """At one layer, where no band is wider than the interval; plain bootstrap-t intervals of 32 images miss in 12 % at a spread of 1.5."""
    missed, refused, bootstrap = [], 0, Bootstrap(np.arange(images), draws=1000, seed=0)
    for seed in range(300):
        top = np.exp(spread * np.random.default_rng([seed, 5]).standard_normal((1, images)))
        found = relative("effect", top, np.ones(images), bootstrap, level=0.95)
        low, high = found["effect_low"][0], found["effect_high"][0]
        refused += np.isnan(low)
        assert np.isnan(low) or found["effect_low_simultaneous"][0] <= low
        missed.append(low > np.exp(spread**2 / 2) or np.exp(spread**2 / 2) > high)
    assert np.mean(missed) <= 0.05 + 2.5 * np.sqrt(0.05 * 0.95 / 300)
    assert refused <= (0.2 if spread < 2 else 0.4) * 300


def test_a_row_with_extreme_distances_does_not_widen_the_band_of_the_others_without_limit() -> None:
    """Beside a row of one large value other rows reach little further than their own most extreme resample, and it no further than 12."""
    from stratascope.stats.mean_ratio import LONGEST, mean_ratio

    rng = np.random.default_rng(0)
    calm = rng.normal(1, 1, (4, 40))
    wild = np.where(np.arange(40) == 0, 1.0, 1e-3 * rng.standard_normal(40))
    bootstrap = Bootstrap(np.arange(40), draws=2000, seed=0)
    value, error, beside = mean_ratio(np.concatenate([calm, wild[None]]), np.ones((5, 40)), bootstrap)
    reach = np.stack([value - beside.low_simultaneous, beside.high_simultaneous - value]) / error
    assert reach[:, 4].max() == pytest.approx(LONGEST)
    assert beside.low[4] > value[4] - (LONGEST + 1e-9) * error[4]
    assert reach[:, :4].max() < 9
    alone = mean_ratio(calm, np.ones_like(calm), bootstrap)[2]
    assert (alone.low_simultaneous < alone.low).all()
    assert (alone.high_simultaneous > alone.high).all()


def test_means_that_few_images_decide_have_no_interval() -> None:
    """At two of three layers, four of 40 images have an effect; with six such images, or 31 images with effects alike, all is decided."""
    rng = np.random.default_rng(0)
    for images, affected, interval in ((40, 4, False), (40, 6, True), (31, 31, False), (32, 32, True)):
        sizes = 0.01 * np.abs(rng.standard_normal((3, images)))
        sizes[:2, :affected] += 3 + rng.standard_normal((2, affected))
        found = relative("effect", sizes, np.ones(images), Bootstrap(np.arange(images), draws=200, seed=0), level=0.95)
        ends = np.stack([found[f"effect_{end}"] for end in INTERVALS if end.startswith("low")])
        assert np.isfinite(ends).all() == np.isfinite(ends).any() == interval
        assert found["effect"] == pytest.approx(sizes.mean(1))


def test_a_layer_without_effects_has_the_width_of_an_effect_that_the_sample_may_miss() -> None:
    """Rule of three: 40 images without an effect leave up to z^2 / (n + z^2) = 8.8 % of images with one as large as at other layers."""
    values = np.random.default_rng(0).normal(5, 1, (4, 40))
    values[3] = 1e-6 * np.random.default_rng(1).standard_normal(40)
    found = relative("effect", values, np.ones(40), Bootstrap(np.arange(40), draws=800, seed=0), level=0.95)
    large = np.quantile(np.abs(values - values.mean(1, keepdims=True)), 0.95)
    reach = norm.ppf(0.975) ** 2 / (40 + norm.ppf(0.975) ** 2)
    assert found["effect_high"][3] == pytest.approx(large * reach, rel=1e-3)
    assert found["effect_low"][3] == pytest.approx(-large * reach, rel=1e-3)
    assert found["effect_high_simultaneous"][3] > 1.5 * found["effect_high"][3]


def test_very_unequal_sizes_of_few_images_have_no_upper_end() -> None:
    """What a sample lacks has no limit; the excess over random directions is judged by the sizes of the changes."""
    every = np.exp(1.5 * np.random.default_rng(0).standard_normal((1, 200)))
    for count, given in ((60, False), (200, True)):
        sizes, bootstrap = every[:, :count], Bootstrap(np.arange(count), draws=200, seed=0)
        for values in (sizes, sizes - sizes.mean()):
            found = relative("effect", values, np.ones(count), bootstrap, level=0.95, sizes=sizes)
            assert np.isfinite(found["effect_low_simultaneous"]).all()
            assert np.isfinite(found["effect_high"]).all() == np.isfinite(found["effect_high_simultaneous"]).all() == given


@pytest.mark.parametrize(("images", "each", "ratio"), [(60, 1, False), (40, 3, False), (60, 2, True)])
def test_intervals_of_skewed_means_and_ratios_cover_their_expectation(images: int, each: int, ratio: bool) -> None:
    """Log-normal sizes, alike within an image; the larger run is in benchmarks/."""
    hits = []
    for seed in range(120):
        rng = np.random.default_rng([seed, images])
        image, shared = rng.standard_normal(images).repeat(each), rng.standard_normal(images * each)
        top = np.exp(np.sqrt(0.5) * image + np.sqrt(0.5) * rng.standard_normal((3, images * each)) + 0.3 * shared)
        bottom = np.exp(0.6 * shared) if ratio else np.ones(images * each)
        truth = np.exp((1 + 0.09 - (0.36 if ratio else 0)) / 2)
        found = relative("effect", top, bottom, Bootstrap(np.arange(images).repeat(each), draws=400, seed=0), level=0.95)
        low, high = found["effect_low_simultaneous"], found["effect_high_simultaneous"]
        hits.append(bool(((low <= truth) & ~(high < truth)).all()))
    assert np.mean(hits) >= 0.95 - 2.5 * np.sqrt(0.05 * 0.95 / 120)


def test_studentised_intervals_are_those_of_scipy() -> None:
    """Of a symmetric mean of many independent values: Student's t."""
    from scipy.stats import ttest_1samp

    from stratascope.stats.mean_ratio import FEWEST_GROUPS, mean_ratio

    values = np.random.default_rng(3).normal(2, 1, 50)
    mean, _, bands = mean_ratio(values[None], np.ones((1, 50)), Bootstrap(np.arange(50), draws=20_000, seed=0), bounded=True)
    wanted = ttest_1samp(values, 0).confidence_interval(0.95)
    assert [bands.low[0], bands.high[0]] == pytest.approx([wanted.low, wanted.high], abs=0.03)
    assert [bands.low_simultaneous[0], bands.high_simultaneous[0]] == pytest.approx([bands.low[0], bands.high[0]], abs=1e-4)
    same, _, bands = mean_ratio(np.full((1, 50), 2.0), np.ones((1, 50)), Bootstrap(np.arange(50), draws=50, seed=0))
    assert [same[0], bands.low[0], bands.high[0]] == [2, 2, 2]
    few = FEWEST_GROUPS - 1
    mean, _, bands = mean_ratio(values[None, :few], np.ones((1, few)), Bootstrap(np.arange(few), draws=50, seed=0))
    assert mean[0] == pytest.approx(values[:few].mean())
    assert np.isnan([*bands.ends.values()]).all()


def test_few_pairs_have_a_restored_share_without_interval() -> None:
    rng = np.random.default_rng(0)
    difference = rng.choice([-4.0, 4.0], 60)
    for pairs, interval in ((31, False), (32, True)):
        source = np.where(np.arange(60) < pairs, -difference, np.nan)
        change = (0.5 + 0.1 * rng.standard_normal((2, 60))) * (source - difference)
        found = restored(change, difference, source, Bootstrap(np.arange(60), draws=400, seed=0), level=0.95)
        assert found["pairs"] == pairs
        assert np.isfinite(found["restored"]).all()
        assert np.isfinite(found["restored_low_simultaneous"]).all() == interval
        assert np.isfinite(found["restored_high"]).all() == interval


def test_the_restored_share_is_the_ratio_of_means_over_pairs_that_differ() -> None:
    """Both directions of a pair count; pairs whose source hardly differs are excluded and counted."""
    rng = np.random.default_rng(0)
    difference = rng.choice([-4.0, 4.0], 300)
    source = np.where(np.arange(300) < 200, -difference, difference + 0.1)
    source[:20] = np.nan
    gap = source - difference
    change = np.stack([0.0 * gap, 0.5 * gap, gap])
    found = restored(
        change + rng.normal(0, 0.01, change.shape), difference, source, Bootstrap(np.arange(300), draws=300, seed=0), level=0.95
    )
    assert (found["pairs"], found["excluded"]) == (180, 100)
    assert found["restored"] == pytest.approx([0, 0.5, 1], abs=1e-2)
    assert found["restored_median"] == pytest.approx([0, 0.5, 1], abs=1e-2)
    assert (found["restored_low"] <= found["restored"]).all()
    assert (found["restored_high"] - found["restored_low"]).max() < 0.01
    none = restored(change, difference, None, Bootstrap(np.arange(300), draws=10, seed=0), level=0.95)
    assert np.isnan(none["restored"]).all()


def test_answers_flip_where_another_choice_becomes_the_largest() -> None:
    logits = np.array([[2.0, 1.0], [0.0, 3.0]])
    change = np.array([[[-2.0, 0.0], [1.0, 1.0]], [[0.0, -2.0], [np.nan, np.nan]]])
    found = Answers.of(logits, change)
    assert found.difference.tolist() == [1.0, -3.0]
    assert found.change[:, 0].tolist() == [-2.0, 0.0]
    assert found.flipped[:, 0].tolist() == [1.0, 0.0]
    assert found.flipped[0, 1] == 0
    assert np.isnan(found.flipped[1, 1])
    several = Answers.of(np.array([[5.0, 1.0, 3.0]]), np.array([[[-1.0, 4.0, 0.0], [0.0, 0.0, 1.0]]]))
    assert several.difference.tolist() == [2.0]
    assert several.change[:, 0].tolist() == [-3.0, -1.0]
    assert several.flipped[:, 0].tolist() == [1.0, 0.0]
