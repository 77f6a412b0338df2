"""Attention within the windows of a vision tower: few calls, and what transformers' loop over windows gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from stratascope.extract.run.window_attention import Windows, windows_in_one_call  # noqa: E402
from tests.extract.families import build  # noqa: E402


def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the queries of all SDPA calls."""
    made: list[tuple[int, ...]] = []
    real = torch.nn.functional.scaled_dot_product_attention

    def counted(query: Any, *rest: Any, **options: Any) -> Any:
        made.append(tuple(query.shape))
        return real(query, *rest, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    return made


@pytest.mark.parametrize("grid", [(34, 46), (8, 8), (2, 2)])
@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl"])
def test_the_tower_gives_what_it_gives_with_a_loop(name: str, grid: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    tower = build(name, "sdpa").model.visual
    width = tower.patch_embed.proj.weight[0].numel()
    pixels = torch.randn(grid[0] * grid[1], width, generator=torch.Generator().manual_seed(0))
    shape = torch.tensor([[1, *grid]])
    with torch.inference_mode():
        made = calls(monkeypatch)
        expected = tower(pixels, grid_thw=shape)
        looped = len(made)
        made.clear()
        with windows_in_one_call(tower):
            found = tower(pixels, grid_thw=shape)
    np.testing.assert_allclose(found.pooler_output, expected.pooler_output, rtol=0, atol=1e-6)
    np.testing.assert_allclose(found.last_hidden_state, expected.last_hidden_state, rtol=0, atol=1e-6)
    assert len(made) <= 4 * len(tower.blocks)
    assert looped == len(tower.blocks) or len(made) < looped
    assert tower.config._attn_implementation == "sdpa"


def test_another_attention_and_other_towers_are_left_alone() -> None:
    tower = build("qwen2_5_vl", "eager").model.visual
    with windows_in_one_call(tower):
        assert tower.config._attn_implementation == "eager"
    with windows_in_one_call(torch.nn.Linear(2, 2)), windows_in_one_call(None):
        pass


def test_every_patch_is_in_one_window() -> None:
    bounds = torch.tensor([0, 4, 8, 10, 10, 14, 15])
    windows = Windows()
    found = windows.by_size(bounds)
    assert sorted(len(each[0]) for each in found) == [1, 2, 4]
    assert sorted(torch.cat([each.flatten() for each in found]).tolist()) == list(range(15))
    assert windows.by_size(bounds) is found
