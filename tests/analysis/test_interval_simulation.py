"""Fast versions of benchmarks/interval_simulation.py: how often printed intervals hold the expectation, and are refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from simulated_intervals import Coverage, cells, coverage, heads, means, others, ratios, scores, shares

from stratascope.stats.bootstrap import Bootstrap
from stratascope.stats.mean_ratio import mean_ratio


@pytest.mark.parametrize(
    ("images", "shape", "refused"),
    [
        (32, "log-normal, 1.5", (0, 0.4)),
        (32, "in 0.2 of the images", (0, 0.25)),
        (32, "in 0.05 of the images", (0.95, 1)),
        (64, "in 0.1 of the images", (0, 0.25)),
        (31, "normal", (1, 1)),
    ],
)
def test_means_are_missed_in_few_data_sets_and_refused_where_few_images_decide(
    images: int, shape: str, refused: tuple[float, float]
) -> None:
    """Before, a tenth of 32 images with effects gave simultaneous intervals that covered in 90 % of six rows, and in 3 % of 108."""
    repeats = 60
    for name, found in coverage(means, repeats, images=images, shape=shape).items():
        assert found.missed <= 0.05 + 2.5 * np.sqrt(0.05 * 0.95 / repeats), name
        assert refused[0] <= found.refused <= refused[1], name


def holds(found: dict[str, Coverage], repeats: int) -> None:
    """Whether intervals cover as often as 95 % would in as many data sets, or more often."""
    for name, one in found.items():
        assert one.covered >= 0.95 - 2.5 * np.sqrt(0.05 * 0.95 / repeats), (name, one)


@pytest.mark.parametrize(
    ("simulated", "images", "options"),
    [
        (means, 8, {"shape": "normal", "bounded": True}),
        (ratios, 24, {"skew": 1.0, "beside": 1.0}),
        (ratios, 32, {"skew": 2.0, "beside": 1.0}),
        (means, 48, {"shape": "log-normal, 1"}),
        (shares, 20, {"share": 0.9}),
        (shares, 40, {"share": 0.6}),
        (heads, 40, {"auroc": 0.97}),
        (scores, 40, {"auroc": 0.95}),
        (scores, 40, {"auroc": 0.75, "each": 6}),
        (cells, 20, {"auroc": 0.95, "each": 12}),
        (others, 24, {}),
    ],
)
def test_intervals_of_few_images_cover(simulated: Any, images: int, options: dict[str, Any]) -> None:
    """Before: of 40 images simultaneous ones in 75 % (AUROC .95 of probes); of 20 in 86 % (compression) and 84 % (places)."""
    repeats = 40
    found = coverage(simulated, repeats, images=images, **options)
    holds(found, repeats)
    assert all(one.refused <= 0.1 for one in found.values())


def test_effects_whose_size_few_images_do_not_show_have_an_open_end() -> None:
    """Before, of 32 images with sizes as unequal as log-normal 2 simultaneous intervals covered in 81 % of the data sets that had one."""
    repeats = 200
    for one in coverage(means, repeats, images=32, shape="log-normal, 2").values():
        given = round(repeats * (1 - one.refused))
        assert given >= 80
        assert one.covered >= 0.95 - 2.5 * np.sqrt(0.05 * 0.95 / given)
    values = np.exp(2 * np.random.default_rng(4).standard_normal((6, 40)))
    for sign, lost in ((1, "high"), (-1, "low")):
        ends = mean_ratio(sign * values, np.ones_like(values), Bootstrap(np.arange(40), draws=500))[2].ends
        assert {name: bool(np.isnan(end).all()) for name, end in ends.items()} == {name: name.startswith(lost) for name in ends}


def test_compression_and_places_of_fewer_images_have_no_interval() -> None:
    found = coverage(others, 3, images=23)
    assert {name: one.refused for name, one in found.items()} == {
        name: 0.0 if name == "rank correlation of heads" else 1.0 for name in found
    }
