"""One example explained: its tables are those of the methods, its page is one file, and what is missing is named."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from analysis_stores import GRID, IMAGE, TOKENS, attributed_store
from click.testing import CliRunner
from scipy.stats import spearmanr

from stratascope.analysis import ExampleExplanation, explain_example, flow, rollout, weighted_rows
from stratascope.cli import main
from stratascope.errors import InvalidInputError
from stratascope.store import ActivationStore


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    return attributed_store(tmp_path_factory.mktemp("explained") / "a.zarr", examples=12, measured=8)


@pytest.fixture(scope="module")
def found(planted: ActivationStore) -> ExampleExplanation:
    return explain_example(planted, 5)


@pytest.mark.slow
def test_every_method_says_of_each_token_what_it_says_elsewhere(planted: ActivationStore, found: ExampleExplanation) -> None:
    maps = planted.maps(5)
    np.testing.assert_allclose(found.tokens["rollout"], rollout(maps)[0])
    np.testing.assert_allclose(found.tokens["flow_window"], flow(maps, window=(2, 3)).value)
    assert found.tokens["cut"].tolist() == flow(maps).cut.tolist()
    np.testing.assert_allclose(found.tokens["attention"], weighted_rows(planted, np.array([5]))[0].mean((0, 1)), atol=1e-6)
    added = weighted_rows(planted, np.array([5]), "attribution")[0].sum((0, 1))
    np.testing.assert_allclose(found.tokens["attribution"], added, atol=1e-5)
    np.testing.assert_allclose(found.on_image("attribution"), added[slice(*IMAGE)].reshape(GRID), atol=1e-5)
    spans = found.spans.set_index("part")
    assert spans.loc["image", "attribution"] == pytest.approx(added[slice(*IMAGE)].sum(), abs=1e-4)
    assert spans.loc["image", "tokens"] == GRID[0] * GRID[1]
    assert len(found.tokens) == TOKENS


@pytest.mark.slow
def test_components_add_up_to_the_answer(found: ExampleExplanation) -> None:
    assert found.components["value"].sum() == pytest.approx(found.attributes["difference"], abs=1e-4)
    assert found.answers["probability"].sum() == pytest.approx(1)


@pytest.mark.slow
def test_effects_are_laid_over_the_cells_that_were_hidden(planted: ActivationStore, found: ExampleExplanation) -> None:
    effects = planted.read("knockout", examples=5)
    names = list(planted.layout.knockout_targets)
    shown = found.effects_on_image("later")
    for row, column in ((0, 0), (3, 4), (2, 1)):
        assert shown[row, column] == pytest.approx(effects[1, 0, names.index(f"cell_{row}_{column}")])
    cells = found.agreement.query("kind == 'cells' and mode == 'final'").set_index("method")["correlation"]
    expected = spearmanr(np.abs(found.on_image("norm")).ravel(), np.abs(found.effects_on_image("final")).ravel()).statistic
    assert cells["norm"] == pytest.approx(expected)


@pytest.mark.slow
def test_an_explanation_loads_back(found: ExampleExplanation, tmp_path: Path) -> None:
    found.save(tmp_path / "e.zarr.zip")
    again = ExampleExplanation.load(tmp_path / "e.zarr.zip")
    for name in ("tokens", "spans", "components", "knockout", "agreement", "answers"):
        assert getattr(again, name).equals(getattr(found, name)), name
    assert again.attributes == found.attributes


@pytest.mark.slow
def test_the_page_is_one_file_that_shows_all_methods(planted: ActivationStore, tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["explain", planted.name, "e5", "-o", str(tmp_path / "e.html")])
    assert done.exit_code == 0, done.output
    html = (tmp_path / "e.html").read_text()
    assert not re.search(r"<script|https?://(?!www\.w3\.org)", html)
    assert "default-src &#39;none&#39;" in html or "default-src 'none'" in html
    for text in ("rollout, all blocks", "flow, blocks 2 to 2", "token attribution", "masked for all later tokens", "Sum of all"):
        assert text in html
    assert ExampleExplanation.load(tmp_path / "e.zarr.zip").attributes["example"] == 5
    first = (tmp_path / "e.html").read_bytes()
    CliRunner().invoke(main, ["explain", planted.name, "5", "-o", str(tmp_path / "e.html")])
    assert (tmp_path / "e.html").read_bytes() == first


@pytest.mark.slow
def test_what_was_not_recorded_is_named_on_the_page(store, store_path: Path, tmp_path: Path) -> None:
    found = explain_example(store, 3)
    assert found.components.empty
    assert found.knockout.empty
    assert found.attributes["missing"] == {
        "norm": "value_norms",
        "attribution": "value_logits",
        "carried": "head_logits,value_logits",
        "estimate": "hiding_estimate",
        "gradient": "hiding_estimate",
        "gradient_rollout": "gradient_rollout",
    }
    done = CliRunner().invoke(main, ["explain", str(store_path), "3", "-o", str(tmp_path / "e.html")])
    assert done.exit_code == 0, done.output
    html = (tmp_path / "e.html").read_text()
    for record in ("value_norms", "value_logits", "knockout", "head_logits,value_logits"):
        assert f"--record {record}" in html


def test_where_no_effects_were_measured_nothing_is_said_of_them(planted: ActivationStore) -> None:
    found = explain_example(planted, 10)
    assert found.knockout.empty
    assert found.agreement.empty
    assert np.isnan(found.effects_on_image("final")).all()


@pytest.mark.slow
def test_examples_outside_the_store_are_refused(planted: ActivationStore, found: ExampleExplanation, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="from 0 to 11, found 12"):
        explain_example(planted, 12)
    with pytest.raises(InvalidInputError, match="expected a method of attention"):
        found.on_image("chefer")
    for example, message in (("12", "from 0 to 11"), ("nobody", "its ids are like")):
        done = CliRunner().invoke(main, ["explain", planted.name, example, "-o", str(tmp_path / "e.html")])
        assert done.exit_code == 2
        assert message in done.stderr
