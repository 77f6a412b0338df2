"""The page in a real browser: its numbers are the store's, its controls do what they say, and it asks for little."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import time
from contextlib import contextmanager
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image

from stratascope.analysis import rollout_examples, rollout_packed
from stratascope.analysis.flow import flow
from stratascope.report.viewer import ViewServer, export_page, server
from stratascope.store import ActivationStore, decode_maps
from stratascope.store.io.hub import HubAddress
from tests.store.buckets import files
from tests.store.hub_server import Repository, hub_server, hub_settings
from tests.viewer.hosts import hosting
from tests.viewer.numbers import numbers, weights
from tests.viewer.viewer_stores import layout_of, write_store


@contextmanager
def counted(monkeypatch):
    """Bytes and requests of store data that servers send."""
    sent = []
    plain = server._Handler._head

    def head(self, status, length, media, extra):
        if "/store/" in self.path:
            sent.append((self.path.split("/store/", 1)[1], length))
        plain(self, status, length, media, extra)

    with monkeypatch.context() as patch:
        patch.setattr(server._Handler, "_head", head)
        yield sent


def settled(sent):
    """How much was sent once nothing more comes."""
    count = -1
    while count != len(sent):
        count = len(sent)
        time.sleep(0.4)
    return count


@pytest.mark.slow
@pytest.mark.parametrize("example", [0, 34, 149])
def test_attention_on_the_page_is_the_stores(browser, small, small_server, example):
    store = ActivationStore.open(small)
    browser.open(f"{small_server.address}#example={example}")
    tokens = int(store.n_tokens[example])
    browser.until(lambda: json.loads(numbers(browser)[0][0]["id"]) != "")
    found = numbers(browser)
    wanted = store.read("attention_mean", examples=example)[:, :tokens]
    assert sorted(found) == list(range(6))
    for layer, rows in found.items():
        np.testing.assert_array_equal(weights(rows).astype(np.float32), wanted[layer].astype(np.float32))
        assert [json.loads(row["text"]) for row in rows] == store.tokens(example)
        assert json.loads(rows[0]["id"]) == store.examples["id"][example]
    cells = [(int(row["row"]), int(row["column"])) for row in found[0] if row["row"]]
    assert cells == [(r, c) for r in range(5) for c in range(5)]
    assert browser.errors() == []


MEASURES = {
    "heads=one&head=2": lambda rows, norms, logits: rows[2],
    "heads=max": lambda rows, norms, logits: rows.max(0),
    "measure=norm": lambda rows, norms, logits: (rows * norms).mean(0),
    "measure=norm&heads=one&head=3": lambda rows, norms, logits: rows[3] * norms[3],
    "measure=attribution": lambda rows, norms, logits: (rows * logits).sum(0),
    "measure=attribution&heads=one&head=1": lambda rows, norms, logits: rows[1] * logits[1],
}


@pytest.mark.slow
@pytest.mark.parametrize("link", MEASURES)
def test_maps_of_heads_are_those_of_the_store(browser, small, small_server, link):
    store = ActivationStore.open(small)
    browser.open(f"{small_server.address}#example=130&layer=3&{link}")
    held = [store.read(name, layer=3, examples=130).astype(np.float64)[:, : int(store.n_tokens[130])] for name in
            ("attention_rows", "value_norms", "value_logits")]  # fmt: skip
    found = numbers(browser)
    np.testing.assert_allclose(weights(found[3]), MEASURES[link](*held), rtol=1e-12, atol=1e-15)


@pytest.mark.slow
def test_rollout_and_the_bound_of_flow_are_those_of_the_analysis(browser, small, small_server):
    store = ActivationStore.open(small)
    tokens = int(store.n_tokens[8])
    packed = store.read("attention_maps", examples=8)[:, :tokens, :tokens]
    maps = decode_maps(packed)
    browser.open(f"{small_server.address}#example=8&measure=rollout")
    rolled = numbers(browser)
    browser.open(f"{small_server.address}#example=8&measure=flow")
    bounds = numbers(browser)
    for layer in range(6):
        np.testing.assert_allclose(weights(rolled[layer]), rollout_packed(packed)[layer], rtol=1e-12, atol=1e-16)
        np.testing.assert_allclose(weights(bounds[layer]), flow(maps, window=(layer, 6), tokens=()).bound, rtol=1e-9, atol=1e-13)
    assert "upper bound" in browser.text(".fact")


@pytest.mark.slow
def test_rollout_to_patches_and_gradient_rollout_are_those_of_the_analysis(browser, tmp_path):
    arrays = ("attention_maps", "gradient_rollout", "vision_maps", "vision_parent", "vision_grid", "vision_box")
    views = {"vision_blocks": 2, "vision_views": 3, "vision_tokens": 10, "vision_class_tokens": 1}
    layout = layout_of(6, tokens=32, record={"attention_rows", *arrays}, **views)
    store = ActivationStore.open(write_store(tmp_path / "towered.zarr", layout, 3, 3, blocks=[0]))
    patches, relevance = rollout_examples(store, [2]), rollout_examples(store, [2], gradient=True)
    with ViewServer(str(tmp_path / "towered.zarr")) as server:
        browser.open(f"{server.address}#example=2&measure=patches")
        browser.until(lambda: "most: row" in browser.text(".fact"))
        picture = patches.onto_patches(0)
        row, column = np.unravel_index(picture.argmax(), picture.shape)
        assert f"most: row {row + 1}, column {column + 1}, {100 * picture.max():.3g}" in browser.text(".fact")
        assert "over 3 by 6 image cells" in browser.js("return document.querySelector('canvas[aria-label]').ariaLabel")
        (rows,) = numbers(browser, layered=False).values()
        np.testing.assert_allclose(weights(rows), patches.values[0, 0, : len(rows)], rtol=1e-12)
        browser.open(f"{server.address}#example=2&measure=relevance")
        for layer, rows in numbers(browser).items():
            expected = relevance.values[0, layer, : len(rows)]
            np.testing.assert_allclose(weights(rows), expected / expected.sum(), rtol=1e-6)
    assert browser.errors() == []


@pytest.mark.slow
def test_the_grid_of_heads_holds_shares_of_the_rows(browser, small, small_server):
    store = ActivationStore.open(small)
    browser.open(f"{small_server.address}#example=2")
    rows = store.read("attention_rows", examples=2).astype(np.float64)
    image = slice(*store.spans["image"][2])
    top = pytest.approx(100 * rows[:, :, image].sum(-1).max(), rel=0.01)
    # layers are drawn as they come
    browser.until(lambda: float(browser.text(".heads h2 small").rpartition("to")[2].strip().rstrip("%") or "nan") == top)
    browser.click(".grid-frame canvas", (0.9, 0.05))
    view = browser.view()
    assert (view["layer"], view["heads"], view["head"]) == ("5", "one", "3")
    np.testing.assert_array_equal(weights(numbers(browser)[5]), rows[5, 3][: int(store.n_tokens[2])])


@pytest.mark.slow
def test_search_and_filters_find_what_the_table_holds(browser, small, small_server):
    store = ActivationStore.open(small)
    table = store.examples
    browser.open(f"{small_server.address}#query=cat%20under")
    wanted = [i for i, text in enumerate(table["caption"]) if "cat" in text.lower() and "under" in text.lower()]
    browser.until(lambda: browser.text(".count").startswith(f"{len(wanted)} of 150"))
    browser.open(f"{small_server.address}#relation=on&outcome=right")
    right = np.zeros(150, bool)
    there = store.available("answer_logits")
    right[there] = store.read("answer_logits", examples=np.flatnonzero(there)).argmax(-1) == 1 - table["label"].to_numpy()[there]
    count = int((right & (table["relation"] == "on").to_numpy()).sum())
    browser.until(lambda: browser.text(".count") == f"{count} of 150 examples")
    browser.open(f"{small_server.address}#query=%2377")
    browser.until(lambda: browser.text(".count").startswith("1 of 150"))
    assert "#77" in browser.text(".row")


@pytest.mark.slow
def test_a_link_shows_the_same_again(browser, small_server):
    second = "b.example=9&b.layer=1&b.measure=norm&b.heads=one&b.head=3"
    link = f"example=130&layer=2&measure=rollout&{second}&overlay=spotlight&palette=inferno&query=the"
    browser.open(f"{small_server.address}#{link}")
    seen = [browser.texts(".caption"), browser.texts(".fact"), browser.texts(".tokens small"), browser.view()]
    assert [browser.view()[key] for key in ("b.measure", "b.head", "overlay", "query")] == ["norm", "3", "spotlight", "the"]
    again = browser.js("return location.href")
    browser.open(again)
    browser.until(lambda: [browser.texts(".caption"), browser.texts(".fact"), browser.texts(".tokens small"), browser.view()] == seen)
    browser.js("location.hash = 'example=7&layer=5'")
    browser.until(lambda: browser.texts(".layer-name") == ["Layer 5"])


@pytest.mark.slow
def test_a_picture_is_saved(browser, small_server):
    browser.open(f"{small_server.address}#example=8&b.example=9&b.layer=1")
    with Image.open(browser.downloaded(lambda: browser.keys("p"))) as image:
        assert image.format == "PNG"
        assert image.size[0] > 1500


@pytest.mark.slow
def test_a_layer_step_and_a_second_look_ask_for_nothing(browser, small, monkeypatch):
    with ViewServer(str(small)) as running, counted(monkeypatch) as sent:
        browser.open(f"{running.address}#example=20&layer=0")
        browser.until(lambda: "0 to" in browser.text(".heads h2 small"))
        before = settled(sent)
        browser.keys(*["\ue014"] * 5)
        browser.until(lambda: browser.text(".layer-name") == "Layer 5")
        assert sent[before:] == []


@pytest.mark.slow
def test_the_first_view_of_a_7b_store_asks_for_little(browser, tmp_path, seven_billion):
    (tmp_path / "run.zarr").symlink_to(seven_billion)
    export_page(tmp_path / "page", str(tmp_path / "run.zarr"))
    (tmp_path / "page" / "view.json").write_text('{"store": "../run.zarr/"}')
    # a plain host: nothing is compressed on the way
    with hosting(tmp_path) as host:
        browser.open(f"{host.address}page/index.html")
        browser.until(lambda: browser.js("return document.querySelectorAll('.row .text').length") > 8)
        # the later pieces are the rest of the list, which is read once the view is drawn
        rest = re.compile(r"(example|relation|label|caption)/c/[1-9]\d*$")
        asked = [(path.removeprefix("/run.zarr/"), sent) for path, sent in list(host.asked) if path.startswith("/run.zarr/")]
        first = [one for one in asked if not rest.search(one[0])]
        assert len(first) < 30
        assert sum(sent for _, sent in first) < 100_000, first
        assert browser.text(".caption").startswith("The cat is under the bed")
        assert "Read all heads" in browser.text(".ask")
        browser.until(lambda: browser.text(".count") == "10,972 of 10,972 examples")
        before = settled(host.asked)
        browser.keys(*["\ue014"] * 9)
        browser.until(lambda: browser.text(".layer-name") == "Layer 27")
        assert host.asked[before:] == []
        browser.click(".segmented button[data-value=one]")
        browser.until(lambda: "head 0" in browser.text(".tokens small"))
        heads = host.asked[before:]
        assert {path.split("/")[2] for path, _ in heads} == {"attention_rows"}
        assert len(heads) == 2
    assert browser.errors() == []


@pytest.mark.slow
def test_a_million_examples_do_not_freeze_it(browser, million):
    with ViewServer(str(million)) as running:
        browser.open(running.address)
        browser.js("window.longest = 0; let last = performance.now(); const tick = () => { const now = performance.now();"
                   "window.longest = Math.max(window.longest, now - last); last = now; requestAnimationFrame(tick); }; tick()")  # fmt: skip
        seen = browser.until(
            lambda: browser.js("const t = document.querySelector('.count').innerText; return t.includes('reading') ? t : ''")
        )
        assert "reading the list" in seen
        browser.keys("\ue012")
        assert browser.view()["layer"] == "0"
        for _ in range(4):
            try:
                browser.until(lambda: browser.text(".count") == "1,000,000 of 1,000,000 examples")
                break
            except AssertionError:
                continue
        browser.keys("/")
        browser.keys("999999")
        browser.until(lambda: browser.text(".count") == "1 of 1,000,000 examples")
        browser.click(".row")
        assert browser.view()["example"] == "999999"
        browser.keys("/")
        browser.keys(*["\ue003"] * 6)
        browser.until(lambda: browser.text(".count") == "1,000,000 of 1,000,000 examples")
        browser.js("document.querySelector('.rows').scrollTop = 1e9")
        browser.until(lambda: "#999999" in browser.texts(".row")[-1])
        # far below what a person calls frozen, on a machine that does other things beside
        assert browser.js("return window.longest") < 1500


def test_the_page_beside_the_store_on_a_plain_host(browser, tmp_path, small):
    (tmp_path / "small.zarr").symlink_to(small)
    export_page(tmp_path / "page", str(tmp_path / "small.zarr"))
    (tmp_path / "page" / "view.json").write_text('{"store": "../small.zarr/"}')
    with hosting(tmp_path) as host:
        browser.open(f"{host.address}page/index.html#example=8")
        browser.until(lambda: "150 of 150" in browser.text(".count"))
        store = ActivationStore.open(small)
        np.testing.assert_array_equal(
            weights(numbers(browser)[4]), store.read("attention_mean", layer=4, examples=8)[: int(store.n_tokens[8])]
        )
        assert browser.errors() == []


@pytest.mark.slow
@pytest.mark.parametrize("zipped", [False, True])
def test_a_store_at_another_host_that_allows_it(browser, tmp_path, small, small_server, zipped):
    from stratascope.store import copy_store

    if zipped:
        copy_store(small, tmp_path / "small.zip", examples=range(64))
    else:
        (tmp_path / "small.zarr").symlink_to(small)
    with hosting(tmp_path, cors=True) as host, ViewServer(f"{host.address}small.{'zip' if zipped else 'zarr'}") as running:
        browser.open(f"{running.address}#example=8")
        store = ActivationStore.open(small)
        np.testing.assert_array_equal(
            weights(numbers(browser)[2]), store.read("attention_mean", layer=2, examples=8)[: int(store.n_tokens[8])]
        )
        assert browser.errors() == []


@pytest.mark.slow
def test_a_store_on_the_hub(browser, tmp_path, small, small_server, monkeypatch):
    """Its host redirects to another, as the Hub does: `view hf://...`, and a page anywhere that is given the web address in a link."""
    with hub_server() as hub, hub_settings(hub, monkeypatch, tmp_path / "home"):
        repository = hub.repositories.setdefault("me/data", Repository(private=False))
        held = {f"small.zarr/{key}": (data, not key.endswith(".json")) for key, data in files(small).items()}
        hub.content.update({hashlib.sha256(data).hexdigest(): data for data, outside in held.values() if outside})
        repository.commit(held, "all")
        web = HubAddress.parse("hf://datasets/me/data/small.zarr").web()
        store = ActivationStore.open(small)
        expected = store.read("attention_mean", layer=2, examples=8)[: int(store.n_tokens[8])]
        export_page(tmp_path / "space", web)
        with ViewServer(web) as running, hosting(tmp_path) as host:
            for address in (
                f"{running.address}#",
                f"{host.address}space/index.html#",
                f"{small_server.address}#store={quote(web, safe='')}&",
            ):
                browser.open(f"{address}example=8")
                np.testing.assert_array_equal(weights(numbers(browser)[2]), expected)
                assert browser.errors() == []
    assert any(path.startswith("/") and "X-Signature" in path for _, path in hub.asked)  # it came from the content network


@pytest.mark.slow
def test_the_demos_own_store(browser, store_path):
    store = ActivationStore.open(store_path)
    with ViewServer(str(store_path)) as running:
        browser.open(f"{running.address}#example=5")
        browser.until(lambda: browser.text(".caption") == store.examples["caption"][5])
        tokens = int(store.n_tokens[5])
        np.testing.assert_array_equal(weights(numbers(browser)[3]), store.read("attention_mean", layer=3, examples=5)[:tokens])
        browser.keys("m", "m", "m")
        packed = store.read("attention_maps", examples=5)[:, :tokens, :tokens]
        browser.until(lambda: "rollout" in browser.text(".tokens small"))
        np.testing.assert_allclose(weights(numbers(browser)[0]), rollout_packed(packed)[0], rtol=1e-12)
        assert browser.errors() == []


def upright_edges(browser, address):
    """Where upright lines of the boxes stand, as shares of the image's width: what the picture is with boxes, less what it is without."""

    def pixels():
        found = browser.js(
            "const c = document.querySelector('canvas'); const d = c.getContext('2d').getImageData(0, 0, c.width, c.height);"
            "return [c.height, c.width, btoa(Array.from(d.data, (b) => String.fromCharCode(b)).join(''))]"
        )
        return np.frombuffer(base64.b64decode(found[2]), np.uint8).reshape(found[0], found[1], 4)

    def upright():
        changed = (pixels() != plain).any(-1).mean(0)
        return (np.flatnonzero(changed > 0.3) / len(changed)).tolist()

    browser.open(f"{address}#example=0")
    plain = pixels()
    browser.keys("b")
    found = browser.until(upright, "boxes over the image")
    return found[0], found[-1]


@pytest.mark.slow
def test_boxes_lie_where_the_image_that_the_model_was_shown_has_them(browser, small, small_server, tmp_path):
    """The store's boxes are those of the image as it was; under the condition `mirror` it was shown flipped."""
    np.testing.assert_allclose(upright_edges(browser, small_server.address), (0.2, 0.5), atol=0.02)
    mirrored = shutil.copytree(small, tmp_path / "mirror.zarr")
    about = mirrored / "zarr.json"
    about.write_text(re.sub(r'"condition":\s*"original"', '"condition":"mirror"', about.read_text()))
    with ViewServer(str(mirrored)) as server:
        np.testing.assert_allclose(upright_edges(browser, server.address), (0.5, 0.8), atol=0.02)
