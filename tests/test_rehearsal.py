"""The rehearsal's own parts: the planted store has what it says, and growth is read off measurements as it is."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stratascope.analysis import attention_share, flow_examples, rollout_examples
from stratascope.store import ActivationStore
from stratascope.store.format.prompt_parts import PARTS


@pytest.fixture(scope="module")
def parts() -> Iterator[tuple[Any, ...]]:
    """The modules of the rehearsal, which lie outside the package."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
    import rehearsal
    import rehearsal_scaling
    import rehearsal_store
    import rehearsal_verdict

    yield rehearsal, rehearsal_scaling, rehearsal_store, rehearsal_verdict
    sys.path.pop(0)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 2.0])
def test_a_growth_is_found_as_it_was_made(parts: tuple[Any, ...], power: float) -> None:
    sizes = (1024, 2048, 10972)
    assert parts[1].exponent(sizes, [3.0 * n**power for n in sizes]) == pytest.approx(power)


def test_measurements_of_three_sizes_become_one_table(parts: tuple[Any, ...], tmp_path: Path) -> None:
    rehearsal, scaling, *_ = parts
    for n in (100, 200, 800):
        rows = [
            rehearsal.Measured("write", 2.0 * n, 0.1 * n, 500_000_000, n * 1_000_000),
            rehearsal.Measured("info", 0.5, 0.4, 100_000_000, 0),
        ]
        (tmp_path / str(n)).mkdir()
        (tmp_path / str(n) / "measured.json").write_text(json.dumps([dataclasses.asdict(row) for row in rows][: 1 if n == 800 else 2]))
    text = scaling.table(dict(scaling.measurements(f"{n}={tmp_path / str(n)}") for n in (200, 800, 100)))
    assert "| write | 10.0 / 20.0 / 80.0 | 1.0 | 500 / 500 / 500 | 0.0 | 100 / 200 / 800 | 1.0 | 1,600.0 |" in text
    assert "| info | 0.4 / 0.4 / – |  | 100 / 100 / – | 0.0 |  |  | – |" in text


@pytest.mark.slow
def test_a_planted_store_has_what_is_planted_and_says_where_its_shape_differs(parts: tuple[Any, ...], tmp_path: Path) -> None:
    _, _, planting, verdict = parts
    rows = planting.vsr_rows(None, 64, tmp_path / "scenes")
    planted = planting.PlantedStore(rows, planting.Scale(64, 2, layers=26, hidden=192, heads=2))
    planted.write(tmp_path / "vsr.zarr")
    store = ActivationStore.open(tmp_path / "vsr.zarr")
    found = {text: right for right, text in verdict.shape(store)}
    assert [text for text, right in found.items() if not right] == ["26 decoder blocks, hidden size 192, 2 heads"]
    assert {"positions final and subject", "whole attention maps of 2 examples"} <= set(found)
    share = attention_share(store)
    assert share.values[..., PARTS.index("image")].mean() == pytest.approx(planting.SHARES["image"], abs=1e-3)
    routes = verdict.routes(store, rollout_examples(store), flow_examples(store, window=(20, 26)))
    assert [text for right, text in routes if not right] == []
    assert len(routes) == 5
    narrower = verdict.routes(store, rollout_examples(store, window=(1, 26)), flow_examples(store, window=(20, 26)))
    assert not narrower[0][0], "a rollout that leaves a block out is noticed"
    labels = store.examples["label"].to_numpy()

    def apart(layer: int) -> float:
        """Distance along the planted direction between true and false captions, channels scaled as they were before the outliers."""
        x = store.read("residual", layer=layer, position="final") / (planted.gain * np.exp(0.1 * layer)) @ planted.directions[0]
        return float(x[labels == 1].mean() - x[labels == 0].mean())

    planted_layers = [layer for layer in range(27) if layer in planting.TRUTH_LAYERS]
    others = [layer for layer in range(27) if layer not in planting.TRUTH_LAYERS]
    assert np.mean([apart(layer) for layer in planted_layers]) - np.mean([apart(layer) for layer in others]) == pytest.approx(2, abs=0.5)
