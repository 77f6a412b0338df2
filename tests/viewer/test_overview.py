"""The overview of all examples: heat map, scatter plot, curves and effects equal the results; what is clicked opens."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from stratascope.analysis import answer_confidence, principal_components
from stratascope.probe import layer_curve
from stratascope.report.viewer import ViewServer
from stratascope.results.registry import load_result, save_result
from tests.completed import completed

pytestmark = pytest.mark.slow

EFFECTS = pd.DataFrame(
    {"position": "final", "label": "erase (LEACE)", "layer": [0, 1, 2], "value": [0.0, 0.25, 0.5], "value_low": 0.0, "value_high": 1.0,
     "value_low_simultaneous": [0.0, 0.125, 0.25], "value_high_simultaneous": [0.125, 0.5, 0.75], "control": [0.0, 0.0625, 0.125],
     "used": [False, False, True]}
)  # fmt: skip
VERDICTS = ["neither detected", "encoded only", "encoded and used"]


@pytest.fixture(scope="module")
def overview(store, store_path, tmp_path_factory):
    """A server of a store with curves, components, answers and effects; the folder of these."""
    folder = tmp_path_factory.mktemp("overview")
    for position in ("final", "subject"):
        layer_curve(store, "truth", position).save(folder / f"probe-truth-{position}.zarr.zip")
    principal_components(store, position="final").save(folder / "pca-final.zarr.zip")
    answer_confidence(store).save(folder / "answers.zarr.zip")
    table = pd.DataFrame({"position": "final", "layer": [0, 1, 2], "verdict": VERDICTS})
    told = {"store": store.fingerprint(), "condition": "original", "concept": "truth", "evidence": "erase", "positions": ["final"]}
    save_result(folder / "causal-truth.zarr.zip", completed("encoding_use", {"table": table, "effects": EFFECTS}, {}, told))
    with ViewServer(str(store_path), results=folder) as running:
        yield running.address, folder


def probabilities(folder):
    """(layer, example) of the true class, and the numbers of the examples."""
    held = load_result(folder / "probe-truth-final.zarr.zip")
    label = held.tables["examples"]["label"].to_numpy()
    second = 1 / (1 + np.exp(-held.arrays["logits"][1][:, 0].astype(float)))
    return np.where(label == 1, second, 1 - second), held.tables["examples"]["example"].to_numpy()


def said(browser):
    return browser.text("[role=status].sr")


def percent(value):
    return "<0.01%" if 0 < value < 1e-4 else "100%" if value >= 0.9995 else f"{100 * value:#.3g}%".replace(".%", "%")


def test_a_page_with_results_begins_with_all_examples(browser, overview):
    address, folder = overview
    browser.open(address)
    found, _ = probabilities(folder)
    assert browser.view()["page"] == "overview"
    assert browser.text(".drawing h2 small") == f"{found.shape[1]} examples"
    assert not browser.js("return document.querySelector('.stage').checkVisibility()")
    browser.keys("e")
    assert browser.view()["page"] == "example"
    assert browser.js("return document.querySelector('.stage').checkVisibility()")
    browser.open(f"{address}#example=3")
    assert not browser.js("return document.querySelector('.overview').checkVisibility()")
    assert browser.errors() == []


@pytest.mark.parametrize("order", ["number", "probability"])
def test_the_heat_map_reads_as_the_result(browser, overview, order):
    address, folder = overview
    found, examples = probabilities(folder)
    layer = found.shape[0] - 2
    rows = np.argsort(examples) if order == "number" else np.argsort(-found[layer].astype(np.float32), kind="stable")
    browser.open(f"{address}#page=overview&order={order}&residual={layer}")
    assert browser.text(".choices output") == str(layer)
    browser.js("document.querySelector('.drawing canvas').focus()")
    down = "\ue015"
    for k in (1, 2, 3):
        browser.keys(down)
        wanted = f"example {examples[rows[k]]}, layer {layer}"
        assert said(browser).startswith(wanted)
        assert f": {percent(np.float32(found[layer, rows[k]]))}, the probe is" in said(browser)
        assert said(browser).endswith("right" if found[layer, rows[k]] > 0.5 else "wrong")
    browser.keys("\ue012")
    assert browser.text(".choices output") == str(layer - 1)
    browser.keys("\ue007")
    view = browser.view()
    assert (view["page"], view.get("example", "0")) == ("example", str(examples[rows[3]]))
    assert browser.errors() == []


def test_a_click_on_the_heat_map_opens_its_example(browser, overview):
    address, folder = overview
    _, examples = probabilities(folder)
    browser.open(f"{address}#page=overview")
    browser.click(".drawing canvas", (0.5, 0.002))
    assert browser.view()["page"] == "example"
    assert browser.view().get("example", "0") == str(examples.min())


def test_the_scatter_plot_places_examples_by_their_components(browser, overview):
    address, folder = overview
    held = load_result(folder / "pca-final.zarr.zip")
    examples, scores = held.tables["examples"]["example"].to_numpy(), held.arrays["scores"][1]
    for layer in (2, scores.shape[0] - 1):
        # the example furthest to the right has no neighbour to be mistaken for
        x, y = scores[layer].astype(float)
        far = int(x.argmax())
        browser.open(f"{address}#page=overview&residual={layer}")
        width, height = browser.js("const c = document.querySelectorAll('.drawing canvas')[1]; return [c.clientWidth, c.clientHeight]")
        (x0, x1), (y0, y1) = ((v.min() - 0.04 * np.ptp(v), v.max() + 0.04 * np.ptp(v)) for v in (x, y))
        at = 46 + (x[far] - x0) / (x1 - x0) * (width - 56), height - 34 - (y[far] - y0) / (y1 - y0) * (height - 42)
        browser.click(".drawing:nth-of-type(2) canvas", (at[0] / width, at[1] / height))
        assert browser.view()["page"] == "example"
        assert browser.view().get("example", "0") == str(examples[far])
    browser.open(f"{address}#page=overview&position=subject")
    assert "stratascope pca STORE --position subject" in browser.text(".drawing:nth-of-type(2) .missing")
    assert browser.errors() == []


def test_curves_and_effects_are_those_of_the_results(browser, overview):
    address, folder = overview
    browser.open(f"{address}#page=overview&residual=2")
    assert browser.js("return [...document.querySelectorAll('.overview .chart')].map((c) => c.querySelectorAll('.band').length)") == [2, 1]
    rows = load_result(folder / "probe-truth-final.zarr.zip").tables["table"].query("metric == 'auroc'").sort_values("layer")
    assert f"AUROC by layer: final ends at {rows['value'].iloc[-1]:.2f}" in browser.js(
        "return document.querySelector('.overview .chart').getAttribute('aria-label')"
    )
    move = """const c = document.querySelectorAll('.overview .chart')[arguments[0]];
    const [x, y] = [c.querySelector('.cursor').getBoundingClientRect().left, c.getBoundingClientRect().top + 20];
    c.dispatchEvent(new PointerEvent('pointermove', {clientX: x, clientY: y})); return document.querySelector('.tip').textContent"""
    row = rows.iloc[2]
    ends = f"[{row['low_simultaneous']:.2f}, {row['high_simultaneous']:.2f}]"
    assert f"layer 2\nfinal: {row['value']:.2f} {ends}" in browser.js(move, 0)
    assert browser.js(move, 1) == "layer 2\nerase (LEACE): 50%, random directions 13%, used"
    assert browser.text(".plots .missing") == "final: encoded and used at layer 2; encoded only at layer 1 (used: erase)."
    assert browser.errors() == []


NESTED = """const own = (e) => e === document.scrollingElement || /auto|scroll/.test(getComputedStyle(e).overflowY);
const all = [...document.querySelectorAll('*')].filter((e) => e.checkVisibility() && e.scrollHeight > e.clientHeight + 1 && own(e));
return all.filter((e) => all.some((o) => o !== e && o.contains(e))).map((e) => e.className)"""
"""Classes of the elements that scroll within another one that scrolls."""


@pytest.mark.parametrize(("width", "height"), [(390, 844), (1024, 768), (1440, 900)])
@pytest.mark.parametrize("dark", [False, True])
def test_the_overview_fits_and_keeps_nobody_out(browser, overview, width, height, dark):
    address, _ = overview
    browser.open(f"{address}#page=overview", width=width, height=height, dark=dark)
    assert browser.violations() == []
    assert browser.js("return document.documentElement.scrollWidth") <= width
    assert browser.js(NESTED) == []
    browser.open(f"{address}#page=example", width=width, height=height, dark=dark)
    assert browser.js(NESTED) == []
    if width < 1440:
        assert not browser.js("return document.querySelector('.examples').checkVisibility()")
        browser.click("header .list-toggle")
        browser.until(lambda: browser.texts(".row .about"))
        assert browser.violations() == []
        browser.click(".row[data-example='2']")
        assert browser.view()["example"] == "2"
        assert not browser.js("return document.querySelector('.examples').checkVisibility()")
