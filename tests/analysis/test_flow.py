"""Flow against networkx and scipy, as whole numbers; its bound, its cuts, and what it says of itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import networkx
import numpy as np
import pytest
from analysis_stores import decoder_maps, random_maps
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from stratascope.analysis import FlowResult, flow, flow_examples, minimum_cut, rollout, span_flow
from stratascope.analysis.flow import UNIT, flow_capacities, group_bounds, token_bounds
from stratascope.errors import InvalidInputError, NotRecordedError

SHARED = Path(__file__).parents[3] / "shared" / "data"
shapes = {
    "layers": st.integers(1, 6),
    "tokens": st.integers(1, 9),
    "seed": st.integers(0, 10_000),
    "shape": st.sampled_from([0.05, 0.3, 2.0]),
}


def network(maps: np.ndarray, targets: list[int]) -> networkx.DiGraph:
    """Abnar & Zuidema's network as it stands, in whole numbers, every node of the top layer but the source left without a way in."""
    layers, tokens = maps.shape[:2]
    graph = networkx.DiGraph()
    graph.add_nodes_from([(layers, tokens - 1), "target"])
    capacities = np.rint(maps * 2.0**49).astype(np.int64) + 2**49 * np.eye(tokens, dtype=np.int64)
    for layer, upper, lower in zip(*np.nonzero(capacities), strict=True):
        graph.add_edge((layer + 1, upper), (layer, lower), capacity=int(capacities[layer, upper, lower]))
    for token in targets:
        graph.add_edge((0, token), "target")
    return graph


def flow_by_networkx(maps: np.ndarray, targets: list[int]) -> int:
    return int(networkx.maximum_flow_value(network(maps, targets), (len(maps), maps.shape[1] - 1), "target"))


@hypothesis_settings(max_examples=60, deadline=None)
@given(**shapes)
def test_flow_to_every_token_is_that_of_networkx(layers: int, tokens: int, seed: int, shape: float) -> None:
    maps = random_maps(layers, tokens, seed, shape)
    found = flow(maps)
    assert [round(v * UNIT) for v in found.value] == [flow_by_networkx(maps, [j]) for j in range(tokens)]
    assert found.exact.all()
    assert (found.value <= found.bound).all()


@hypothesis_settings(max_examples=60, deadline=None)
@given(**shapes, picked=st.integers(1, 2**9 - 1))
def test_flow_into_a_group_is_that_of_networkx_and_its_cut_as_whole_numbers(
    layers: int, tokens: int, seed: int, shape: float, picked: int
) -> None:
    maps = random_maps(layers, tokens, seed, shape)
    group = [j for j in range(tokens) if picked >> j & 1] or [tokens - 1]
    expected = flow_by_networkx(maps, group)
    (row,) = span_flow(maps, {"group": group}).itertuples()
    assert round(row.value * UNIT) == expected <= round(row.bound * UNIT)
    cut = minimum_cut(maps, group)
    assert cut.flow == cut.capacity == expected
    # the edges of the cut, added up from the maps themselves
    capacities = flow_capacities(maps)
    crossing = [
        int(capacities[layer, upper, lower])
        for layer, upper, lower in zip(*np.nonzero(capacities), strict=True)
        if not cut.below[layer + 1, upper] and cut.below[layer, lower]
    ]
    assert sum(crossing) == expected
    assert cut.below[0, group].all()
    assert not cut.below[-1, -1]


def test_flow_of_a_larger_graph_is_that_of_scipy() -> None:
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import maximum_flow

    maps = random_maps(10, 60, 4, 0.1)
    found = flow(maps)
    # scipy holds 32 bits, and overflows without a word
    capacities = np.rint(flow_capacities(maps) / UNIT * 2**30).astype(np.int32)
    layer, upper, lower = np.nonzero(capacities)
    graph = csr_array((capacities[layer, upper, lower], ((layer + 1) * 60 + upper, layer * 60 + lower)), shape=(660, 660))
    for token in (0, 1, 17, 40, 58, 59):
        assert found.value[token] == pytest.approx(maximum_flow(graph, 659, token).flow_value / 2**30, abs=1e-6)


@hypothesis_settings(max_examples=30, deadline=None)
@given(**shapes)
def test_the_bound_is_the_smallest_column_cut_written_out(layers: int, tokens: int, seed: int, shape: float) -> None:
    capacities = flow_capacities(random_maps(layers, tokens, seed, shape))

    def cut(below: np.ndarray) -> int:
        return int((capacities * (~below[1:, :, None] & below[:-1, None, :])).sum())

    source, target = token_bounds(capacities)
    for token in range(tokens):
        sources, targets = [], []
        for depth in range(layers):
            # below: whatever can reach the token, but for the source's column
            below = np.zeros((layers + 1, tokens), bool)
            below[:, token:] = True
            below[0] = np.arange(tokens) == token
            below[layers - depth :, -1] = False
            sources.append(cut(below))
            below = np.zeros((layers + 1, tokens), bool)
            below[: depth + 1, token] = True
            targets.append(cut(below))
        assert (source[token], target[token]) == (min(sources), min(targets))
        assert group_bounds(capacities, np.arange(tokens) == token) == (source[token], target[token])


def test_a_window_is_the_flow_through_its_layers() -> None:
    maps = random_maps(7, 15, 0)
    np.testing.assert_array_equal(flow(maps, window=(2, 5)).value, flow(maps[2:5]).value)


def test_one_layer_lets_through_what_the_final_token_attends_to() -> None:
    maps = random_maps(1, 8, 3)
    expected = 0.5 * maps[0, -1] + 0.5 * (np.arange(8) == 7)
    np.testing.assert_allclose(flow(maps).value, expected, atol=1e-15)


def test_flow_into_a_group_is_no_sum_of_flows() -> None:
    maps = random_maps(6, 20, 2, 2.0)
    group = span_flow(maps, {"half": range(10)})["value"][0]
    assert flow(maps).value[:10].sum() > 2 * group


def test_only_the_tokens_asked_for_are_exact_and_the_rest_says_so() -> None:
    maps = random_maps(3, 30, 1)
    some, every = flow(maps, tokens=[4, 20]), flow(maps)
    assert np.flatnonzero(some.exact).tolist() == [4, 20]
    np.testing.assert_array_equal(some.value[[4, 20]], every.value[[4, 20]])
    np.testing.assert_array_equal(np.delete(some.value, [4, 20]), np.delete(every.bound, [4, 20]))
    assert set(np.delete(some.cut, [4, 20])) == {"unproven"}
    assert set(every.cut) <= {"source", "target", "other"}
    assert (every.certified == (every.cut != "other")).all()


@pytest.mark.slow
def test_the_bound_alone_needs_no_compiler() -> None:
    code = (
        "import sys, numpy as np; sys.modules['numba'] = None\n"
        "from stratascope.analysis import flow\n"
        "maps = np.tril(np.ones((2, 3, 3))); maps /= maps.sum(-1, keepdims=True)\n"
        "print(flow(maps, tokens=()).bound)\n"
        "try:\n    flow(maps)\nexcept ImportError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "expected the package numba" in done.stdout


@pytest.mark.parametrize(
    ("maps", "options", "message"),
    [
        (np.ones((2, 3, 3)) / 3, {}, "causal"),
        (np.tril(np.ones((2, 3, 3))), {}, "sum to 1"),
        (random_maps(3, 4, 0) * np.array([1, 1, np.nan])[:, None, None], {}, "sum to 1, found nan in layer 2"),
        (random_maps(3, 4, 0), {"window": (3, 3)}, "window"),
        (random_maps(3, 4, 0), {"tokens": [4]}, "0..3"),
    ],
)
def test_what_has_no_flow_is_refused(maps: np.ndarray, options: dict, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        flow(maps, **options)


@pytest.mark.parametrize("span", [[], [-1, -1], [2, 9]])
def test_a_span_outside_the_prompt_is_refused(span: list[int]) -> None:
    with pytest.raises(InvalidInputError, match="span 'box'"):
        span_flow(random_maps(2, 5, 0), {"box": span})


def test_through_a_deep_decoder_rollout_is_the_first_token_and_flow_the_position_and_a_window_needs_the_solver() -> None:
    maps = decoder_maps()
    assert rollout(maps)[0, 0] > 0.99
    deep, window = flow(maps), flow(maps, window=(22, 28))
    assert deep.position_correlation < -0.9
    assert deep.certified.mean() > 0.85
    assert "follows token position" in str(deep.warning)
    assert window.certified.mean() < 0.5
    assert window.exact.all()


@pytest.mark.skipif(not SHARED.exists(), reason="the real model's maps are not at hand")
def test_on_a_real_decoder_deep_flow_is_position_and_the_bound_is_tight_while_a_window_needs_the_solver() -> None:
    maps = np.load(SHARED / "attention_maps" / "smollm2_135m_t200.npz")["maps"].astype(np.float64)
    maps /= maps.sum(-1, keepdims=True)
    deep = flow(maps)
    assert deep.position_correlation < -0.9
    assert deep.certified.mean() > 0.95
    assert "follows token position" in str(deep.warning)
    window = flow(maps, window=(22, 30))
    assert window.certified.mean() < 0.5
    assert window.warning is None


def test_flows_of_a_store_are_those_of_its_maps(store, tmp_path: Path) -> None:
    found = flow_examples(store, [3, 8], window=(1, 4))
    for k, example in enumerate((3, 8)):
        expected = flow(store.maps(example)[1:4])
        one = found.of(k)
        np.testing.assert_array_equal(one.value, expected.value)
        np.testing.assert_array_equal(one.bound, expected.bound)
        assert one.cut.tolist() == expected.cut.tolist()
        assert one.exact.all()
        spans = found.spans[found.spans["example"] == example].set_index("span")
        image = store.spans["image"][example]
        caption = store.spans["caption"][example]
        by_hand = span_flow(store.maps(example)[1:4], {"image": range(*image), "caption": range(*caption)}).set_index("span")
        assert spans.loc[["image", "caption"], "value"].tolist() == by_hand["value"].tolist()
        np.testing.assert_array_equal(found.onto_image(k).ravel(), expected.value[slice(*image)])
    assert {"subject_box", "object_box"} <= set(found.spans["span"])
    found.save(tmp_path / "f.zarr.zip")
    again = FlowResult.load(tmp_path / "f.zarr.zip")
    np.testing.assert_array_equal(again.values, found.values)
    np.testing.assert_array_equal(again.cuts, found.cuts)
    assert again.spans.to_dict() == found.spans.to_dict()
    assert again.examples.to_dict() == found.examples.to_dict()
    assert again.attributes == found.attributes


def test_bounds_of_a_store_take_no_solver(store) -> None:
    found = flow_examples(store, [5], exact=False)
    assert not found.of(0).exact.any()
    assert found.spans.empty


def test_flow_through_the_vision_tower_is_refused_with_the_reason(store) -> None:
    with pytest.raises(NotRecordedError, match="attention maps of the vision tower in the store for flow through it"):
        flow_examples(store, [0], tower="vision")


def test_the_command_says_where_flow_is_limited_and_saturated(store_path: Path, tmp_path: Path) -> None:
    from click.testing import CliRunner

    from stratascope.cli import main

    done = CliRunner().invoke(main, ["flow", str(store_path), "--examples", "0,2", "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert "minimum cut at: source" in done.output
    assert "warning (2 of 2 examples): flow is uninformative" in done.output
    assert "saturated in" in done.output
    assert {p.name for p in tmp_path.iterdir()} == {"flow.zarr.zip", "flow.png"}
    assert FlowResult.load(tmp_path / "flow.zarr.zip").examples["example"].tolist() == [0, 2]
