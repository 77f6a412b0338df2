"""Every control of the page is used as a person would, by mouse or keyboard, and does what it says; none is left out."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from stratascope.report.viewer import ViewServer
from stratascope.results.registry import save_result
from stratascope.store import ActivationStore
from tests.completed import completed
from tests.viewer.hosts import hosting
from tests.viewer.numbers import table
from tests.viewer.watched import Watched

LEFT, UP, RIGHT, DOWN = "\ue012", "\ue013", "\ue014", "\ue015"
ESCAPE, SPACE, HOME, END, PAGE_DOWN, ENTER = "\ue00c", "\ue00d", "\ue011", "\ue010", "\ue00f", "\ue007"
DOWNLOADS = "details.menu:nth-of-type(2)"
NAMES = {"ArrowLeft": "←", "ArrowRight": "→", " ": "space"}


@pytest.fixture
def results(tmp_path):
    """Probes of two tasks on the store of questions."""
    folder = tmp_path / "results"
    folder.mkdir()
    for task, classes in (("relation", ["left", "right", "on", "under"]), ("truth", ["False", "True"])):
        logits = np.random.default_rng(3).normal(size=(7, len(classes) if len(classes) > 2 else 1, 96)).astype(np.float32)
        tables = {
            "examples": pd.DataFrame({"example": np.arange(96), "label": np.arange(96) % len(classes)}),
            "table": pd.DataFrame({"layer": np.arange(7)}),
        }
        told = {"task": task, "position": "final", "classes": classes, "targets": []}
        arrays = {"logits": (("layer", "output", "example"), logits)}
        save_result(folder / f"probe-{task}-final.zarr.zip", completed("layer_curve", tables, arrays, told))
    return folder


def try_the_view(c, store):
    """Map, heads, layers, image and picture of one example."""
    b = c.browser
    b.until(lambda: "96 of 96" in b.text(".count"))
    maps = dict(b.js("return [...document.querySelectorAll('[aria-label=Map] button')].map((e) => [e.dataset.value, e.title])"))
    assert all(maps.values())
    for value in [*[v for v in maps if v != "attention"], "attention"]:
        c.step(lambda value=value: b.click(f"[aria-label=Map] [data-value={value}]"), measure=None if value == "attention" else value)
    for value in ("max", "one", "mean"):
        c.step(lambda value=value: b.click(f"[aria-label=Heads] [data-value={value}]"), heads=None if value == "mean" else value)
    # what max says is the largest over heads
    c.step(lambda: b.keys(RIGHT), heads="max")
    rows = store.read("attention_rows", layer=4, examples=0)[:, : int(store.n_tokens[0])]
    held = [float(row["weight"]) for row in table(b) if row["layer"] == "4"]
    np.testing.assert_array_equal(held, rows.max(0).astype(float))
    c.step(lambda: b.keys("h"), heads="one")
    c.step(lambda: (b.click("input[type=number]"), b.keys(UP, UP, "\t")), head="2")
    b.js("document.activeElement.blur()")
    c.step(lambda: b.keys("]"), head="3")
    c.step(lambda: b.keys("["), head="2")
    c.step(lambda: b.keys("h"), heads=None)
    c.step(lambda: b.keys("m"), measure="norm")
    c.step(lambda: b.keys("M"), measure=None)
    c.step(lambda: b.click("[aria-label='Next layer']"), layer="5")
    c.step(lambda: b.click("[aria-label='Previous layer']"), layer="4")
    c.step(lambda: b.click("[type=range][aria-label=Layer]", (0.01, 0.5)), layer="0")
    c.step(lambda: b.keys(RIGHT), layer="1")
    c.step(lambda: b.keys(END), layer="5")
    c.says(
        lambda: (b.js("document.querySelector('canvas.over').focus()"), b.keys(RIGHT, RIGHT, DOWN)), "[role=status].sr", "row 2, column 2"
    )
    c.step(lambda: b.click("[data-value=attention]"))
    c.step(lambda: b.click(".token button"), token="0")
    c.step(lambda: b.click(".token button"), token=None)


def try_playing(c):
    """Play begins anew at the end, goes through all layers, stops there, and stops when it is asked to."""
    b = c.browser
    b.js("window.layers = []; new MutationObserver(() => layers.push(document.querySelector('.layer-name').textContent))"
         ".observe(document.querySelector('.layer-name'), {characterData: true, childList: true, subtree: true})")  # fmt: skip
    b.click("[aria-label='Play through the layers']")
    b.until(lambda: b.js("return document.querySelector('main.playing') !== null"))
    assert b.js("return document.querySelector('.play').getAttribute('aria-pressed')") == "true"
    b.until(lambda: b.js("return document.querySelector('main.playing') === null"), "play to end")
    assert b.js("return layers") == [f"Layer {k}" for k in range(6)]
    c.step(lambda: None, layer="5")
    b.js("document.activeElement.blur()")
    b.keys(SPACE)
    c.step(lambda: None, layer="1")
    b.keys(ESCAPE)
    assert b.js("return document.querySelector('.play').getAttribute('aria-pressed')") == "false"
    stopped = b.text(".layer-name")
    b.keys(SPACE)
    b.until(lambda: b.text(".layer-name") != stopped)
    b.keys(SPACE)
    assert not b.js("return document.querySelector('main.playing')")


def try_the_display(c):
    """How the map is drawn; every choice changes what is seen."""
    b = c.browser
    looks = [b.js("return document.querySelector('canvas').toDataURL()")]
    b.click("details.menu summary")

    def drawn_anew(act, **wanted):
        c.step(act, **wanted)
        looks.append(b.js("return document.querySelector('canvas').toDataURL()"))
        assert looks[-1] != looks[-2], wanted

    for label, value, wanted in [
        (2, "layer", {"scale": "layer"}), (2, "log", {"scale": "log"}), (3, "cividis", {"palette": "cividis"}),
        (3, "inferno", {"palette": "inferno"}),
        (1, "spotlight", {"overlay": "spotlight"}), (1, "off", {"overlay": "off"}), (1, "heat", {"overlay": None}),
    ]:  # fmt: skip
        drawn_anew(lambda label=label, value=value: b.choose(f"details.menu label:nth-child({label}) select", value), **wanted)
    drawn_anew(lambda: b.click("details.menu input[type=range]", (0.01, 0.5)), strength="0.2")
    drawn_anew(lambda: b.keys(RIGHT), strength="0.25")
    drawn_anew(lambda: b.click("details.menu label:nth-child(5) input"), smooth="1")
    c.step(lambda: b.click("details.menu label:nth-child(6) input"), boxes="1")
    b.until(lambda: b.js("return document.querySelector('canvas').toDataURL()") != looks[-1], "boxes over the image")
    b.keys(ESCAPE)
    assert not b.js("return document.querySelector('details.menu').open")
    c.step(lambda: b.keys("b"), boxes=None)
    c.step(lambda: b.keys("o"), overlay="spotlight")
    c.step(lambda: b.keys("o", "o"), overlay=None)
    c.step(lambda: (b.click("details.menu summary"), b.click("details.menu label:nth-child(5) input")), smooth=None)
    b.click("h1")
    assert not b.js("return document.querySelector('details.menu').open")


def try_the_cards(c):
    """Heads, shares, probes and knockouts beside the image."""
    b = c.browser
    c.step(lambda: b.choose(".heads select", "logit"), grid="logit")
    c.step(lambda: b.choose(".heads select", "subject"), grid="subject")
    c.step(lambda: b.click(".grid-frame canvas", (0.9, 0.05)), layer="5", heads="one", head="3")
    c.step(lambda: b.keys(DOWN, LEFT), layer="4", head="2")
    c.step(lambda: b.click("section:has(table) .chart", (0.1, 0.5)), layer="0")
    c.step(lambda: b.click(".probe .chart", (0.75, 0.5)), layer="5")
    assert b.js("return document.querySelector('.probe select').value") == "truth"
    c.step(lambda: b.choose(".probe select", "relation"), task="relation")
    b.until(lambda: "probability of “left”" in b.text(".probe h2 small"))
    c.step(lambda: b.choose(".knockouts [aria-label='Masked for']", "later"))
    c.step(lambda: b.choose(".knockouts [aria-label='Masked in blocks']", "3-5"))
    c.step(lambda: b.click(".knockouts .button"), measure="knockout", mode="later", window="3-5")
    c.step(lambda: b.click("[data-value=attention]"), measure=None)


def try_the_list(c):
    """Search, filters and steps among the examples."""
    b = c.browser
    c.step(lambda: b.click(".row[data-example='3']"), example="3")
    c.step(lambda: b.keys(DOWN, DOWN, UP), example="4")
    c.step(lambda: b.keys(END), example="95")
    c.step(lambda: b.keys(HOME), example=None)
    b.keys(PAGE_DOWN)
    b.until(lambda: int(b.view().get("example", 0)) > 3)
    b.js("document.activeElement.blur()")
    c.step(
        lambda: (b.keys(HOME), b.click(".row[data-example='2']"), b.js("document.activeElement.blur()"), b.keys("j", "j", "k")), example="3"
    )
    c.step(lambda: b.choose(".pair select:nth-child(1)", "on"), relation="on")
    c.step(lambda: b.choose(".pair select:nth-child(2)", "wrong"), outcome="wrong")
    c.step(lambda: (b.js("document.activeElement.blur()"), b.keys("/"), b.keys("bed")), query="bed")
    b.until(lambda: "…" not in b.text(".count") and "comparing" not in b.text(".count"))
    b.keys(ESCAPE)
    c.step(lambda: (b.choose(".pair select:nth-child(1)", ""), b.choose(".pair select:nth-child(2)", "")), relation=None, outcome=None)


def try_comparing(c):
    """Two views, their layers apart and together."""
    b = c.browser
    now = b.view().get("example", "0")
    c.step(lambda: b.click("button[aria-pressed]"), b_example=now, active="b")
    c.step(lambda: b.keys("x"), active=None)
    c.step(lambda: b.click(".pane:nth-child(2) .caption"), active="b")
    c.step(lambda: b.keys("j"), example=None if now == "0" else now, b_example=str(int(now) + 1))
    before = b.view()
    c.step(lambda: b.click(".pane:nth-child(2) [aria-label='Previous layer']"), b_layer="4", layer=before["layer"])
    c.step(lambda: (b.click("details.menu summary"), b.click("details.menu label:nth-child(7) input"), b.keys(ESCAPE)), together="1")
    c.step(lambda: b.click(".pane:nth-child(2) [aria-label='Previous layer']"), b_layer="3", layer="3")
    c.step(lambda: b.click(".pane:nth-child(1) [aria-label='Next layer']"), b_layer="4", layer="4")
    b.click(".pane:nth-child(2) [aria-label='Play through the layers']")
    b.until(lambda: b.texts(".layer-name") == ["Layer 5", "Layer 5"])
    b.until(lambda: b.js("return document.querySelector('main.playing') === null"))
    c.step(lambda: b.click(".pane:nth-child(2) [data-value=one]"), b_heads="one")
    c.gather()
    c.step(lambda: (b.js("document.activeElement.blur()"), b.keys("c")), b_example=None)


def try_the_overview(c):
    """All examples at once: what is chosen is in the link, Enter opens an example."""
    b = c.browser
    c.step(lambda: b.click("header [title^='All examples']"), page="overview")
    for task in ("truth", "relation"):
        c.step(lambda task=task: b.choose("[aria-label='Task of the probes']", task), task=task)
    c.step(lambda: b.choose("[aria-label='Order of the examples']", "probability"), order="probability")
    c.step(lambda: b.choose("[aria-label='What the map shows']", "right"), shade="right")
    c.step(lambda: (b.click("[aria-label='Position of the probes']"), b.keys(ESCAPE)), page="overview")
    c.step(lambda: b.click("[aria-label='Layer of the residual stream']", (0.01, 0.5)), residual="0")
    c.step(lambda: b.click(".overview .chart", (0.79, 0.5)), residual="6")
    c.step(lambda: (b.js("document.querySelector('.drawing canvas').focus()"), b.keys(LEFT)), residual="5")
    c.step(lambda: b.keys(ENTER), page="example")
    c.step(lambda: b.keys("e"), page="overview")
    c.step(lambda: b.keys("e"), page="example")


def try_what_leaves_the_page(c):
    """Links, pictures and numbers."""
    b = c.browser
    # a browser without a screen has no clipboard
    b.js("navigator.clipboard.writeText = async (text) => void (window.copied = text)")

    def copied(act):
        b.js("window.copied = ''")
        c.says(act, ".copy", "Copied")
        assert b.js("return window.copied") == b.js("return location.href")
        b.until(lambda: b.text(".copy") == "Copy link")

    copied(lambda: b.click(".copy"))
    copied(lambda: b.keys("l"))
    by_key = {"p": "png", "v": "csv"}
    for number, (key, suffix) in enumerate(by_key.items()):
        typed = b.downloaded(lambda key=key: b.keys(key))
        assert typed.suffix == f".{suffix}"
        held = typed.read_bytes()
        item = f"{DOWNLOADS} button:nth-child({number + 1})"
        clicked = b.downloaded(lambda item=item: (b.click(f"{DOWNLOADS} summary"), b.click(item)))
        assert clicked.name.partition(" ")[0] == typed.name
        if suffix == "png":
            with Image.open(clicked) as image:
                assert image.size[0] > 700
        else:
            assert clicked.read_bytes() == held


def try_the_header(c, other):
    """Theme, keys, and another store."""
    b = c.browser
    ground = "return getComputedStyle(document.body).backgroundColor"
    light = b.js(ground)
    for act in (lambda: b.keys("t"), lambda: b.click("[aria-label='Light or dark']")):
        before = b.js(ground)
        act()
        assert b.js(ground) != before
    assert b.js(ground) == light
    b.click("header [aria-label=Keys]")
    told = set(b.texts("dialog kbd"))
    c.gather()
    b.keys("m")  # of the page, not of the dialog
    b.click("dialog .button")
    assert "measure" not in b.view()
    assert not b.texts("dialog")
    b.keys("?")
    b.until(lambda: b.texts("dialog kbd"))
    b.keys(ESCAPE)
    b.until(lambda: not b.texts("dialog"))
    # all that is done by a key is told there: what a key does keeps the browser from doing its own
    does = b.js(
        "const keys = [...Array(95).keys()].map((k) => String.fromCharCode(32 + k)).concat(arguments[0]);"
        "return keys.filter((key) => { const event = new KeyboardEvent('keydown', {key, bubbles: true, cancelable: true});"
        "document.body.dispatchEvent(event); document.querySelector('dialog')?.close(); return event.defaultPrevented; })",
        ["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown"],
    )
    assert {NAMES.get(key, key) for key in does} == told
    c.gather()
    assert told <= {NAMES.get(key, key) for key in c.pressed}
    b.click("header button:nth-last-of-type(3)")
    b.until(lambda: b.texts("dialog input[name=address]"))
    c.gather()
    b.click("dialog input[name=address]")
    b.keys(other)
    b.click("dialog form button")
    b.until(lambda: b.js("return document.documentElement.dataset.ready === 'failure'"))


def try_what_opens_a_store(c, golden, good):
    """The page that says why not, its address field and its folder."""
    b = c.browser
    assert "cannot be opened" in b.text(".page")
    assert not b.texts("dialog")
    b.errors()
    b.js("document.querySelector('.page').dataset.before = 1")
    b.click(".page > section > button")
    b.until(lambda: b.texts(".page:not([data-before]) input[type=file]"), "another try")
    c.gather()
    b.driver.find_element("css selector", "input[type=file]").send_keys(str(golden))
    b.until(lambda: b.text("header h1") == golden.name and b.js("return document.documentElement.dataset.ready === 'first-view'"))
    assert "store" not in b.view(), "a link to a folder would lead to another store"
    b.js("location.hash = 'store=http%3A%2F%2F%5B'")
    b.until(lambda: b.texts(".page input[name=address]"))
    b.js("document.querySelector('.page input').value = ''")
    b.click(".page input[name=address]")
    b.keys(good)
    b.click(".page form button")
    b.until(lambda: b.text("header h1") == "small.zarr")
    c.gather()


@pytest.mark.slow
def test_every_control_of_the_page_does_what_it_says(browser, questions, results, small, seven_billion, tmp_path):
    c = Watched(browser)
    store = ActivationStore.open(questions)
    (tmp_path / "small.zarr").symlink_to(small)
    golden = shutil.copytree(Path(__file__).parents[1] / "store" / "golden" / "v1.zarr", tmp_path / "v1.zarr")
    with ViewServer(str(questions), results=results) as running, hosting(tmp_path, cors=True) as host:
        c.open(f"{running.address}#zoom=3&page=example")
        assert "“zoom”" in browser.text(".notice")
        c.step(lambda: browser.click(".notice button"))
        assert not browser.text(".notice")
        try_the_view(c, store)
        try_playing(c)
        try_the_display(c)
        try_the_cards(c)
        try_the_list(c)
        try_comparing(c)
        try_the_overview(c)
        try_what_leaves_the_page(c)
        assert browser.errors() == []
        try_the_header(c, f"{host.address}none.zarr")
        try_what_opens_a_store(c, golden, f"{host.address}small.zarr")
    with ViewServer(str(seven_billion)) as running:
        c.open(running.address)
        browser.until(lambda: "Read all heads" in browser.text(".ask"))
        browser.click(".ask button")
        browser.until(lambda: "0 to" in browser.text(".heads h2 small"))
        c.gather()
    assert len(c.seen) > 50
    assert sorted(c.seen - c.used) == [], "controls that no step of this test uses"
