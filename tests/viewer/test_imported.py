"""The page of imported activations: what results say of their examples is shown, and what the store lacks is named."""

from __future__ import annotations

import numpy as np
import pytest
from click.testing import CliRunner

from stratascope.analysis import principal_components
from stratascope.cli import main
from stratascope.extract.imports.import_store import import_activations
from stratascope.probe import layer_curve
from stratascope.report.viewer import ViewServer
from stratascope.results.registry import load_result
from stratascope.store import ActivationStore
from tests.viewer.hosts import hosting

pytestmark = pytest.mark.slow

COUNT = 60
LACKING = "the store has no image, prompt, tokens, attention, answers or knockouts of any example"


def imported(folder, layers):
    rng = np.random.default_rng(0)
    for layer in layers:
        values = rng.normal(size=(COUNT, 8)).astype(np.float32)
        values[:, 0] += layer * (np.arange(COUNT) % 2)
        np.save(folder / f"layer_{layer}.npy", values)
    rows = "".join(f"e{k},The cat number {k},{k % 2},{('cat', 'dog')[k // 2 % 2]}\n" for k in range(COUNT))
    (folder / "rows.csv").write_text(f"id,caption,label,animal\n{rows}")
    import_activations(folder, folder / "run.zarr", examples=folder / "rows.csv")
    return folder / "run.zarr"


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """A store of three layers and the folder of its results."""
    store = imported(tmp_path_factory.mktemp("import"), (0, 1, 2))
    results = store.parent / "run-results"
    results.mkdir()
    layer_curve(ActivationStore.open(store), "truth", "activation").save(results / "probe-truth-activation.zarr.zip")
    principal_components(ActivationStore.open(store), position="activation").save(results / "pca-activation.zarr.zip")
    return store, results


def shown(browser, selector):
    return browser.js("return [...document.querySelectorAll(arguments[0])].some((e) => e.checkVisibility())", selector)


def test_probes_components_and_curves_are_shown_from_results(browser, several):
    store, results = several
    with ViewServer(str(store), results=results) as server:
        browser.open(server.address)
        assert browser.view()["page"] == "overview"
        assert browser.text(".drawing h2 small") == f"{COUNT} examples"
        assert browser.texts(".about")[0] == "60 examples · imported from one file per layer · 3 layers"
        assert shown(browser, ".drawing:nth-of-type(2) canvas")
        table = load_result(results / "probe-truth-activation.zarr.zip").tables["table"]
        last = table.query("metric == 'auroc' and layer == 2")["value"].iloc[0]
        label = browser.js("return document.querySelector('.overview .chart').getAttribute('aria-label')")
        assert f"activation ends at {last:.2f}" in label
        browser.open(f"{server.address}#example=3&layer=2")
        browser.until(lambda: shown(browser, ".probe .chart"))
        assert browser.text(".pane .caption") == "The cat number 3"
        assert LACKING in browser.text(".pane .note")
        assert "dog" in browser.text(".fields")
        assert browser.text(".layer-name") == "Layer 2"  # the last layer of an import can be marked, too
        assert not shown(browser, ".tools, .legend, .token-strips, .heads, .shares, .knockouts, .frame canvas")
        assert browser.violations() == []
        assert browser.errors() == []


@pytest.mark.parametrize("layers", [(5,), (0,), (1, 4)])
def test_any_choice_of_layers_opens_without_results(browser, layers, tmp_path):
    with ViewServer(str(imported(tmp_path, layers))) as server:
        browser.open(server.address)
        assert browser.text(".layer-name") in {f"Layer {layer}" for layer in layers}
        assert LACKING in browser.text(".pane .note")
        assert "No results are given" in browser.text(".probe")
        browser.keys("j")
        browser.until(lambda: browser.view_now().get("example") == "1")
        assert browser.errors() == []


def test_the_exported_page_shows_the_same(browser, several):
    store, results = several
    done = CliRunner().invoke(main, ["view", str(store), "--results", str(results), "--export", str(store.parent / "page")])
    assert done.exit_code == 0, done.output
    with hosting(store.parent) as host:
        browser.open(f"{host.address}/page/index.html#example=3")
        assert LACKING in browser.text(".pane .note")
        browser.until(lambda: shown(browser, ".probe .chart"))
