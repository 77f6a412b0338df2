"""What a single token reads, and what follows the chosen map and head; examples opened by their number."""

from __future__ import annotations

import numpy as np
import pytest

from stratascope.store import ActivationStore
from tests.viewer.numbers import numbers, weights

ENTER = "\ue007"


def share(text: str) -> float:
    return float(text.strip().rstrip("%")) / 100


@pytest.mark.slow
def test_a_click_on_a_token_shows_what_it_reads(browser, small, small_server):
    store = ActivationStore.open(small)
    tokens = int(store.n_tokens[8])
    maps = store.maps(8)
    browser.open(f"{small_server.address}#example=8&layer=2")
    first = int(store.spans["image"][8][1])  # of the words after the image
    chip = f".token-strips li:nth-child({int(store.spans['image'][8][0]) + 2}) button"
    browser.until(lambda: browser.js("return document.querySelector(arguments[0]) !== null", chip))
    browser.click(chip)
    view = browser.view()
    assert view["token"] == str(first)
    browser.until(lambda: f"read by token {first}" in browser.text(".tokens small"))
    assert browser.js("return document.querySelector(arguments[0]).getAttribute('aria-pressed')", chip) == "true"
    (start, stop), (_, columns) = (int(k) for k in store.spans["image"][8]), (int(k) for k in store.grid[8])
    row = maps[2][first, :tokens].astype(float)
    names = [
        f"image row {(k - start) // columns + 1}, column {(k - start) % columns + 1}" if start <= k < stop else word.replace("Ġ", "·")
        for k, word in enumerate(store.tokens(8)[:tokens])
    ]
    told = [f"most: {names[row.argmax()]}, "]
    row[start:stop] = -1
    told += [f"{names[row.argmax()]}, "]
    assert [part for part in told if part not in browser.text(".tokens small")] == [], browser.text(".tokens small")
    found = numbers(browser)
    assert sorted(found) == list(range(6))
    for layer, rows in found.items():
        np.testing.assert_allclose(weights(rows), maps[layer][first, :tokens], rtol=1e-12, atol=1e-16)
    assert f"attention of token {first}" in browser.text(".side .card:nth-child(2) h2")

    # the link shows the same again, and a second click the final token
    browser.open(f"{small_server.address}#example=8&layer=2&token={first}")
    np.testing.assert_allclose(weights(numbers(browser)[3]), maps[3][first, :tokens], rtol=1e-12, atol=1e-16)
    browser.click(chip)
    assert "token" not in browser.view()
    browser.until(lambda: "read by" not in browser.text(".tokens small"))
    np.testing.assert_array_equal(
        weights(numbers(browser)[2]).astype(np.float32), store.read("attention_mean", examples=8)[2, :tokens].astype(np.float32)
    )
    # a single head has no map of every token
    browser.click(chip)
    browser.click("[aria-label=Heads] [data-value=one]")
    view = browser.view()
    assert view["heads"] == "one"
    assert "token" not in view
    assert browser.errors() == []


@pytest.mark.slow
def test_the_shares_and_the_grid_follow_the_map_and_the_head(browser, small, small_server):
    store = ActivationStore.open(small)
    rows = store.read("attention_rows", examples=2).astype(np.float64)[..., : int(store.n_tokens[2])]
    norms = store.read("value_norms", examples=2).astype(np.float64)[..., : int(store.n_tokens[2])]
    image = slice(*store.spans["image"][2])
    browser.open(f"{small_server.address}#example=2&layer=1&heads=one&head=3")
    card = ".side .card:nth-child(2)"
    browser.until(lambda: "attention, head 3" in browser.text(f"{card} h2"))
    header = browser.js("return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent)", f"{card} tr:first-of-type th")
    column = header.index("image") + 1
    cells = f"{card} tr:not(:first-of-type) td:nth-child({column})"
    told = browser.js("return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent)", cells)
    np.testing.assert_allclose([share(text) for text in told], rows[:, 3, image].sum(-1), atol=2e-3)
    browser.open(f"{small_server.address}#example=2&layer=1&measure=norm")
    top = (rows * norms)[:, :, image].sum(-1).max()
    browser.until(lambda: "norm-based, 0 to" in browser.text(".heads h2 small"))
    browser.until(lambda: float(browser.text(".heads h2 small").rpartition("to")[2]) == pytest.approx(top, rel=0.06))


@pytest.mark.slow
def test_enter_opens_an_example_by_its_number_or_the_first_one_found(browser, small, small_server):
    browser.open(small_server.address)
    browser.click("input[type=search]")
    browser.keys("#77", ENTER)
    browser.until(lambda: browser.view_now().get("example") == "77")
    browser.until(lambda: browser.text(".count").startswith("1 of 150"))
    wanted = next(i for i, text in enumerate(ActivationStore.open(small).examples["caption"]) if "cat" in text and "under" in text)
    browser.js("const e = document.querySelector('input[type=search]'); e.value = ''; e.dispatchEvent(new Event('input'))")
    browser.click("input[type=search]")
    browser.keys("cat under", ENTER)
    browser.until(lambda: int(browser.view_now().get("example", "0")) == wanted)


@pytest.mark.slow
def test_one_colour_scale_holds_for_all_layers_unless_it_is_of_each(browser, small, small_server):
    def top() -> float:
        return share(browser.text(".legend .num:nth-of-type(2)").replace("≥", ""))

    browser.open(f"{small_server.address}#example=2&layer=0")
    together = {}
    for layer in range(6):
        browser.open(f"{small_server.address}#example=2&layer={layer}")
        together[layer] = top()
    assert len(set(together.values())) == 1
    browser.open(f"{small_server.address}#example=2&layer=0&scale=layer")
    assert top() < together[0] * 1.001
    # other layers of a single head are not read for its colours
    browser.open(f"{small_server.address}#example=2&layer=0&heads=one")
    browser.until(lambda: "colours of this layer" in browser.text(".fact"))
