"""Maps packed on the device: the bytes that NumPy packs from the same floats, and never a whole map of floats."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from stratascope.errors import InvalidInputError  # noqa: E402
from stratascope.extract.run import attention_function  # noqa: E402
from stratascope.extract.run.attention_function import BlockAttention  # noqa: E402
from stratascope.extract.run.map_packing import HostMaps, packed_map  # noqa: E402
from stratascope.extract.run.shard_block import writing_room  # noqa: E402
from stratascope.store import encode_maps  # noqa: E402
from tests.extract.unpacked import fused_map  # noqa: E402

LENGTHS = torch.tensor([50, 37, 1])


def attention(sharpness: float, mask: Any = None, tokens: int = 50, batch: int = 3, heads: int = 4) -> BlockAttention:
    """A block with two key heads."""
    draw = torch.Generator().manual_seed(round(10 * sharpness))
    query, key = (torch.randn(batch, count, tokens, 8, generator=draw) for count in (heads, 2))
    return BlockAttention(0, None, query * sharpness, key, key, mask, 8**-0.5, None, query.transpose(1, 2))


def on_host(*maps: Any) -> HostMaps:
    return HostMaps(tuple({name: each.numpy() for name, each in one.tensors.items()} for one in maps))


@pytest.mark.parametrize("fusion", ["mean", "max", "min"])
@pytest.mark.parametrize("sharpness", [0.0, 1.0, 40.0])
def test_the_bytes_are_those_of_numpy(fusion: str, sharpness: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_function, "QUERY_CHUNK", 16)
    seen = attention(sharpness)
    maps, floats = on_host(packed_map(seen, LENGTHS, fusion)), fused_map(seen, fusion).numpy()
    for row, tokens in enumerate(LENGTHS.tolist()):
        assert maps.check(row, causal=True)
        kept = np.full((1, tokens, tokens), 7, np.uint8)
        maps.copy_into(row, kept)
        np.testing.assert_array_equal(kept, encode_maps(floats[row : row + 1, :tokens, :tokens]))


def test_attention_to_later_tokens_is_packed_where_it_may_be_and_refused_elsewhere() -> None:
    """Tokens 3 to 9 see each other both ways, as image tokens of Gemma 3 do."""
    visible = torch.ones(50, 50).tril().bool()
    visible[3:10, 3:10] = True
    seen = attention(1.0, visible[None, None])
    maps, floats = on_host(packed_map(seen, LENGTHS)), fused_map(seen).numpy()
    assert maps.check(0, causal=False)
    np.testing.assert_array_equal(maps.blocks[0]["weights"][0], encode_maps(floats[:1], causal=False)[0])
    with pytest.raises(InvalidInputError, match=r"expected causal maps .* found 0\.\d+ in block 0"):
        maps.check(0, causal=True)
    assert maps.check(2, causal=True)  # of one token


def test_weights_that_are_not_finite_fail_their_example_alone() -> None:
    seen = attention(1.0)
    seen.query[1, 2, 30] = float("nan")
    maps = on_host(packed_map(attention(1.0), LENGTHS), packed_map(seen, LENGTHS))
    assert [maps.check(row, causal=True) for row in range(3)] == [True, False, True]
    seen.query[1, 2, 30] = 0
    seen.query[1, 2, 40] = float("nan")  # padding
    assert on_host(packed_map(seen, LENGTHS)).check(1, causal=True)


def test_rows_that_lose_weight_to_padding_are_refused() -> None:
    everything = torch.ones(1, 1, 50, 50, dtype=torch.bool)
    maps = on_host(packed_map(attention(0.0, everything), LENGTHS))
    with pytest.raises(InvalidInputError, match=r"expected attention rows that sum to 1, found one in block 0 that is 0\.26 off"):
        maps.check(1, causal=False)


def test_no_tensor_is_larger_than_a_chunk_of_queries() -> None:
    tokens, heads, largest = 900, 4, {"float": 0, "byte": 0}

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            made = func(*args, **(kwargs or {}))
            if isinstance(made, torch.Tensor):
                kind = "float" if made.is_floating_point() else "byte"
                largest[kind] = max(largest[kind], made.numel())
            return made

    seen = attention(1.0, tokens=tokens, batch=1, heads=heads)
    with torch.inference_mode(), Sizes():
        packed_map(seen, torch.tensor([tokens]))
    assert heads * tokens < largest["float"] <= heads * attention_function.QUERY_CHUNK * tokens < tokens**2
    assert largest["byte"] == tokens**2


def test_blocks_of_large_maps_wait_for_the_disk_one_at_a_time(plan) -> None:
    assert writing_room(plan.store, 2) == (2, 1)
    assert writing_room(plan.store.subset(tokens=1_000), 2) == (2, 1)
    assert writing_room(plan.store.subset(tokens=3_000), 2) == (2, 0)  # 6 blocks of 64 maps: 3.5 GB
    assert writing_room(plan.store.subset(tokens=3_000, layers=28), 2) == (1, 0)
