"""What the page says when something is missing, damaged, foreign or hostile: what is wrong and what to do, and never a wrong number."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from stratascope.report.viewer import ViewServer, export_page
from stratascope.store import copy_store
from tests.viewer.hosts import hosting
from tests.viewer.viewer_stores import HOSTILE, caption

GOLDEN = Path(__file__).parents[1] / "store" / "golden" / "v1.zarr"


@pytest.fixture
def beside(tmp_path, small):
    """A page on a plain host beside the store, whose host can be told what to do."""
    export_page(tmp_path / "page", "http://nowhere.example/")
    (tmp_path / "page" / "view.json").write_text('{"store": "../small.zarr/"}')
    (tmp_path / "small.zarr").symlink_to(small)
    return tmp_path


def flipped(at):
    """Bytes with one bit of one byte turned."""
    return lambda data: data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]


def metadata(change):
    def changed(data):
        root = json.loads(data)
        change(root)
        return json.dumps(root).encode()

    return changed


def note(browser, link, words):
    """The note over the image says these words; the numbers are not shown."""
    browser.open(link)
    browser.until(lambda: all(word in browser.text(".note") for word in words), f"a note with {words}")
    assert browser.js("return document.querySelector('.note').getAttribute('role')") == "alert"
    return browser.text(".note")


def failure(browser, link, words):
    """The page says these words instead of a store."""
    browser.open(link)
    browser.until(lambda: all(word in browser.text(".page") for word in words), f"a page with {words}")
    assert "Try again" in browser.text(".page")


def test_a_block_that_is_not_written(browser, small_server):
    said = note(browser, f"{small_server.address}#example=70", ["Block 1 (examples 64 to 127) is not written yet", "extract"])
    assert "%" not in said
    assert browser.text(".fact") == ""
    assert "The" in browser.text(".caption")
    assert len(browser.texts(".token")) > 10
    # a block that is not written is no error that a browser should report
    browser.choose(".pair select:nth-child(2)", "wrong")
    browser.until(lambda: "…" not in browser.text(".count") and "comparing" not in browser.text(".count"))
    assert browser.errors() == []


def test_a_page_that_was_put_beside_a_store_knows_what_is_not_written(browser, tmp_path, small):
    (tmp_path / "small.zarr").symlink_to(small)
    export_page(tmp_path / "page", str(tmp_path / "small.zarr"))
    config = json.loads((tmp_path / "page" / "view.json").read_text())
    assert config["unwritten"] == [[1, 2]]
    (tmp_path / "page" / "view.json").write_text(json.dumps({**config, "store": "../small.zarr/"}))
    with hosting(tmp_path) as host:
        note(browser, f"{host.address}page/index.html#example=70&outcome=right", ["Block 1 (examples 64 to 127) is not written yet"])
        browser.until(lambda: "…" not in browser.text(".count") and "comparing" not in browser.text(".count"))
        assert not [path for path, _ in host.asked if path.endswith("written/c/1")]
    assert browser.errors() == []


def test_an_example_that_was_not_recorded(browser, small_server):
    note(browser, f"{small_server.address}#example=5", ["Example 5 was not recorded", "could not be read"])


def test_an_example_without_a_map(browser, small_server):
    note(browser, f"{small_server.address}#example=7&measure=rollout", ["no attention map of this example", "--maps"])


@pytest.mark.slow
def test_arrays_that_a_store_does_not_hold(browser, tmp_path, small):
    copy_store(small, tmp_path / "mean.zarr", arrays=["attention_mean"], examples=range(64))
    with ViewServer(str(tmp_path / "mean.zarr")) as server:
        for measure, name in {
            "norm": "value_norms",
            "attribution": "value_logits",
            "rollout": "attention_maps",
            "flow": "attention_maps",
        }.items():
            note(browser, f"{server.address}#measure={measure}", ["does not hold", name, "--record"])
        note(browser, f"{server.address}#heads=one", ["does not hold attention_rows", "single heads"])
        assert "no rows of single heads" in browser.text(".heads .missing")
        browser.open(server.address)
        assert browser.js("return document.querySelector('.note').hidden")
        assert "No results are given" in browser.text(".probe")
        assert browser.errors() == []


DAMAGE = {
    "a bit of a mean": ("attention_mean/c/0/0/0", flipped(3), "", ["attention_mean", "checksum"]),
    "a bit of an index": ("attention_mean/c/0/0/0", flipped(-9), "", ["attention_mean"]),
    "a bit of the image": ("thumbnail/c/0/0/0/0", flipped(40), "", ["thumbnail", "checksum"]),
    "a bit of rows": ("attention_rows/c/0/0/0/0", flipped(20), "&heads=one&layer=0", ["attention_rows", "checksum"]),
    "a bit of a map": ("attention_maps/c/0/0/0/0", flipped(20), "&measure=rollout", ["attention_maps", "checksum"]),
    "a bit of the tokens": ("token_ids/c/0/0", flipped(9), "", ["token_ids", "checksum"]),
    "a bit of a marker": ("written/c/0", flipped(2), "", ["marker of block 0", "verify"]),
    "no file": ("attention_mean/c/0/0/0", lambda _: None, "", ["attention_mean", "missing", "not copied whole"]),
    "an empty file": ("attention_mean/c/0/0/0", lambda _: b"", "", ["attention_mean"]),
    "a short file": ("attention_mean/c/0/0/0", lambda data: data[:500], "", ["attention_mean"]),
    "a file without its end": ("answer_logits/c/0/0", lambda data: data[:100], "", ["answer_logits", "checksum"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_named_and_gives_no_number(browser, beside, what):
    end, change, link, words = DAMAGE[what]
    with hosting(beside, changed={f"small.zarr/{end}": change}) as host:
        note(browser, f"{host.address}page/index.html#example=0{link}", words)
        if not end.startswith(("thumbnail", "answer_logits")):
            assert browser.text(".fact") == ""


def test_a_damaged_list_says_so(browser, beside):
    with hosting(beside, changed={"examples/caption/c/0": flipped(30)}) as host:
        browser.open(f"{host.address}page/index.html")
        browser.until(lambda: "caption" in browser.text(".count") and "checksum" in browser.text(".count"))
        assert browser.text(".fact")


FOREIGN = {
    "no store": (lambda _: None, ["There is no store here", "zarr.json"]),
    "a web page": (lambda _: b"<!doctype html><p>hello", ["not JSON"]),
    "another Zarr group": (metadata(lambda root: root.update(attributes={})), ["no activation store", "stratascope-activations"]),
    "Zarr v2": (lambda _: b'{"zarr_format": 2}', ["no Zarr v3 group"]),
    "a result": (metadata(lambda root: root["attributes"].update(format="stratascope-result")), ["no activation store", "-result"]),
    "a later version": (metadata(lambda root: root["attributes"].update(format_version=2)), ["version 2", "reads version 1", "upgrade"]),
    "no consolidated metadata": (metadata(lambda root: root.pop("consolidated_metadata")), ["not consolidated"]),
    "a codec of another format": (
        metadata(lambda root: root["consolidated_metadata"]["metadata"]["n_tokens"]["codecs"].append({"name": "gzip"})),
        ["n_tokens", "gzip"],
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("what", FOREIGN)
def test_what_is_no_store_of_this_version(browser, beside, what):
    change, words = FOREIGN[what]
    with hosting(beside, changed={"small.zarr/zarr.json": change}) as host:
        failure(browser, f"{host.address}page/index.html", words)


@pytest.mark.slow
def test_hosts_that_do_not_serve_stores(browser, beside):
    with hosting(beside, ranges=False) as host:
        note(browser, f"{host.address}page/index.html", ["ignores byte ranges", "206"])
    with hosting(beside) as page, hosting(beside) as closed:
        failure(
            browser,
            f"{page.address}page/index.html#store={closed.address}small.zarr",
            ["cannot be read from this page", "CORS", "GET and HEAD"],
        )
    with hosting(beside) as page, hosting(beside, cors=True, status=403) as forbidding:
        failure(browser, f"{page.address}page/index.html#store={forbidding.address}small.zarr", ["403", "permissions"])
    with hosting(beside) as page:
        address = "http://127.0.0.1:9/small.zarr"
        failure(browser, f"{page.address}page/index.html#store={address}", ["cannot be read from this page"])
        (beside / "small.zip").write_bytes(b"PK no zip")
        failure(browser, f"{page.address}page/index.html#store=/small.zip", ["no zip"])


@pytest.mark.slow
def test_without_a_store_the_page_asks_for_one(browser, beside):
    (beside / "page" / "view.json").write_text("{}")
    with hosting(beside) as host:
        browser.driver.get(f"{host.address}page/index.html")
        browser.until(lambda: "Open an activation store" in browser.text(".page"))
        browser.click("input[name=address]")
        browser.keys(f"{host.address}small.zarr", "\ue007")
        browser.until(lambda: browser.text("header h1") == "small.zarr")


@pytest.mark.slow
def test_a_folder_of_this_computer(browser, beside, tmp_path, small):
    shutil.copytree(GOLDEN, tmp_path / "v1.zarr")
    (beside / "page" / "view.json").write_text("{}")
    with hosting(beside) as host:
        browser.driver.get(f"{host.address}page/index.html")
        browser.until(lambda: browser.texts("input[type=file]"))
        browser.driver.find_element("css selector", "input[type=file]").send_keys(str(tmp_path / "v1.zarr"))
        browser.until(lambda: browser.text("header h1") == "v1.zarr")
        browser.until(lambda: browser.text(".caption") == "The cat is above the bed.")


ADDRESSES = [
    "javascript:document.title='taken'",
    "data:application/json,{}",
    "file:///etc/passwd",
    "//",
    "http://[",
    "blob:x",
    "\u0000",
    "s3://bucket/x",
]


@pytest.mark.slow
@pytest.mark.parametrize("address", ADDRESSES)
def test_hostile_addresses_open_nothing(browser, small_server, address):
    browser.open(f"{small_server.address}#store={address.replace('#', '%23')}")
    browser.until(lambda: "cannot be opened" in browser.text(".page") or browser.text("header h1") == "small.zarr")
    assert "taken" not in browser.driver.title


@pytest.mark.slow
def test_hostile_links_change_nothing_but_the_view(browser, small_server):
    pane = "example=1e999&layer=-7&head=99999&measure=__proto__&heads=constructor&b.example=x"
    browser.open(f"{small_server.address}#{pane}&overlay=<b>&palette=x&strength=NaN&grid=%3Cimg%20src=x%3E&query=%3Cscript%3E")
    assert browser.text(".layer-name").startswith("Layer")
    assert browser.js("return [document.scripts.length, document.images.length]") == [1, 0]


@pytest.mark.slow
def test_hostile_texts_are_texts(browser, small_server):
    browser.open(small_server.address)
    browser.until(lambda: "150 of 150" in browser.text(".count"))
    for number in [n for n in range(150) if n % 10 == 3 and (n < 64 or n >= 128)]:
        browser.js("location.hash = `example=${arguments[0]}`", number)
        shown = caption(number).replace("\n", " ").replace("\t", " ")
        browser.until(lambda shown=shown: browser.texts(".caption") == [shown], f"caption {shown!r}")
    assert browser.driver.title == "small.zarr · Stratascope"
    assert browser.js("return [document.scripts.length, document.images.length, document.querySelectorAll('main b, main i').length]")[
        :2
    ] == [1, 0]
    tokens = browser.texts(".token span")
    assert not any("\u202e" in text or "\x00" in text for text in tokens)
    assert any(HOSTILE[0] in text for text in tokens)
    assert "synthetic <b>model</b>" in browser.text("header .about")
    assert "<i>odd</i>" in browser.texts(".pair option")
    assert browser.errors() == []


@pytest.mark.slow
def test_nothing_on_the_page_can_be_made_to_run(browser, small_server):
    browser.open(small_server.address)
    # from a timer: what a driver runs itself is exempt
    acts = "() => { document.body.innerHTML = '<b>' }, () => new Function('1')(), () => eval('1+1'), () => new Worker('other.js')"
    refused = browser.driver.execute_async_script(
        "const done = arguments[0]; const tried = (act) => { try { act(); return 'done' } catch (e) { return e.name } };"
        f"setTimeout(() => done([{acts}].map(tried)))"
    )
    assert "done" not in refused


GARBLED = [
    "%", "%E0%A4%A", "&&&=&=", "#" * 50, "a" * 100_000, "example=" + "9" * 400, "layer=-1e308&head=-0&example=0x10", "query=" + "%00" * 500,
    "__proto__=1&constructor=2&b.__proto__=3", "b.example=&b.layer=", "relation=%3Cscript%3Edocument.title=%27taken%27%3C/script%3E",
    "grid=__proto__&task=constructor&palette=toString", "measure=knockout&mode=__proto__&window=constructor", "store=%20&query=%20",
    "measure=rollout;drop", "strength=-5&smooth=2&boxes=NaN&together=", "outcome=maybe&overlay=%F0%9F%A6%8A",
    "?x=1#y", "b.layer=99&b.heads=one&b.head=-3&active=b&active=a", "measure=hiding",
]  # fmt: skip


@pytest.mark.slow
def test_garbled_links_never_break_the_page(browser, small_server):
    browser.open(f"{small_server.address}?store=javascript:document.title='taken'&%ff#example=2")
    for link in GARBLED:
        browser.js("history.replaceState(null, '', '#'); location.hash = arguments[0]", link)
        browser.until(lambda: browser.text(".caption") and browser.text(".layer-name").startswith("Layer"), link)
    browser.js("location.hash = 'example=3&layer=2'")
    browser.until(lambda: browser.text(".layer-name") == "Layer 2" and browser.text(".fact"))
    assert browser.driver.title == "small.zarr · Stratascope"
    assert browser.js("return [document.scripts.length, document.images.length]") == [1, 0]
    assert browser.errors() == []


@pytest.mark.slow
def test_what_a_link_asks_for_in_vain_is_said(browser, small_server):
    browser.open(f"{small_server.address}#example=2&layer=3")
    assert browser.text(".notice") == ""
    browser.open(f"{small_server.address}#example=99999&layer=77&measure=knokout&%3Cb%3E=1&relation=atop")
    said = browser.text(".notice")
    assert all(f"“{part}”" in said for part in ("example=99999", "layer=77", "measure=knokout", "<b>"))
    assert browser.text(".layer-name") == "Layer 5"
    browser.until(lambda: "atop (not in this store)" in browser.texts(".pair option"))
    browser.click(".notice .button")
    browser.until(lambda: browser.text(".notice") == "")


VIEWS = {
    "desktop": ("", {}),
    "dark": ("measure=attribution", {"dark": True}),
    "phone": ("measure=rollout&example=8", {"width": 390, "height": 844}),
    "compared": ("heads=one&b.example=8&b.layer=1&boxes=1", {}),
    "unwritten": ("example=70", {"dark": True}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", [*VIEWS, "failure", "help"])
def test_axe_finds_nothing(browser, beside, small_server, name):
    link, look = VIEWS.get(name, ("", {}))
    if name == "failure":
        with hosting(beside) as host:
            browser.open(f"{host.address}page/index.html#store=ftp://x", **look)
    else:
        browser.open(f"{small_server.address}#{link}", **look)
        browser.until(lambda: "of 150" in browser.text(".count"))
    if name == "help":
        browser.keys("?")
    assert browser.violations() == []


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 768, 1024, 1440, 2560])
def test_nothing_sticks_out_at_any_width(browser, small_server, width):
    browser.open(f"{small_server.address}#measure=norm&heads=one", width=width, height=844)
    assert browser.js("return document.documentElement.scrollWidth") <= width
