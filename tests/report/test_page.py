"""A page is one file that needs nothing else, shows what it is given as text, and is the same each time."""

from __future__ import annotations

import base64
import hashlib
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stratascope.errors import InvalidInputError, StoreError
from stratascope.figures.style import overlay
from stratascope.report import new_figure, paper_style
from stratascope.report.blocks import (
    Beside,
    Card,
    Cards,
    Cited,
    Commands,
    Drawing,
    Fact,
    Facts,
    Folded,
    Interval,
    Missing,
    Picture,
    Prose,
    Remark,
    Section,
    Source,
    Table,
    Tokens,
)
from stratascope.report.inline import overlay_pixels
from stratascope.report.page import Page

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)> & {{ 7 * 7 }} javascript:alert(3)"
CURVE = Source("probe-truth-final.zarr.zip", "table")


def drawing(label: str = "a line") -> Drawing:
    figure, (ax,) = new_figure()
    with paper_style():
        ax.plot([0, 1, 2], [0.5, 0.6, 0.9], label=label)
        ax.imshow(np.eye(3), extent=(0, 1, 0, 1))
        ax.set_title(label)
        ax.legend()
    return Drawing(figure, label, caption=label, sources=[CURVE])


def full_page(text: str = "plain") -> Page:
    """A page with every kind of block, with `text` wherever text goes."""
    cited = Cited("4", 4, CURVE)
    picture = Picture(np.full((6, 8, 3), 200, np.uint8), text, np.eye(3), {text: (0.1, 0.2, 0.5, 0.9), "bed": (0, 0, 1, 1)}, text)
    tokens = Tokens([text, " b"], np.array([0.5, np.nan]), text)
    table = Table([text, "n", "accuracy"], [[text, 3, Interval(0.93, 0.8, 0.97)], ["above", 1.23456, cited]], text, text, [CURVE])
    blocks = [
        Prose([text, cited, text], lead=True),
        Facts([Fact(cited, text, [text, Cited("0.98", 0.98, Source("b.zarr.zip", text))]), Fact(text, text)]),
        Beside([drawing(text), table]),
        Cards([Card(text, [picture, tokens, Prose(text)], text, True), Card(text, [], "wrong", False)]),
        Commands([text, "stratascope demo"], text),
        Missing(text, text),
        Remark([text]),
        Folded(text, [Prose(text)]),
    ]
    return Page(text, [Section(text, blocks, f"part-{k}") for k in range(5)], text, text)


class Reader(HTMLParser):
    """Tags with their attributes, and the text between them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.filterwarnings("ignore:constrained_layout not applied")  # so long a text leaves the figure no room
def test_hostile_text_is_shown_and_never_markup() -> None:
    harmless, hostile = Reader(full_page("plain").html()), Reader(full_page(HOSTILE).html())
    assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in harmless.tags]
    assert {name for _, attributes in hostile.tags for name in attributes} == {
        name for _, attributes in harmless.tags for name in attributes
    }
    assert hostile.text.count(HOSTILE) == harmless.text.count("plain")


def test_a_page_needs_no_network_no_script_and_no_inline_style() -> None:
    page = Reader(full_page().html())
    names = {name for _, attributes in page.tags for name in attributes}
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "embed", "base", "form"}
    assert not names & {"style", "srcset"}
    assert not {name for name in names if name.startswith("on")}
    for tag, attributes in page.tags:
        for name in ("src", "href", "xlink:href"):
            if name in attributes:
                assert re.match(r"#|data:image/png;base64,", attributes[name] or ""), (tag, attributes)


def test_the_policy_allows_the_pages_own_style_sheet_alone() -> None:
    html = full_page().html()
    style = re.findall(r"<style>(.*?)</style>", html, re.S)
    assert len(style) == 1
    digest = base64.b64encode(hashlib.sha256(style[0].encode()).digest()).decode()
    policy = next(a["content"] for t, a in Reader(html).tags if t == "meta" and a.get("http-equiv") == "Content-Security-Policy")
    assert policy == f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"


@pytest.mark.slow
def test_the_same_page_gives_the_same_bytes_and_ascii_or_not_stays(tmp_path: Path) -> None:
    for name in ("a.html", "b.html"):
        full_page("größer ≥ 猫").write(tmp_path / "new" / name)
    first = (tmp_path / "new" / "a.html").read_bytes()
    assert first == (tmp_path / "new" / "b.html").read_bytes()
    assert "größer ≥ 猫" in first.decode("utf-8")


def test_every_cited_number_has_its_value_and_a_note_that_names_the_file() -> None:
    page = Reader(full_page().html())
    data = [attributes for tag, attributes in page.tags if tag == "data"]
    assert {d["value"] for d in data} == {"4", "0.98"}
    assert {d["title"] for d in data} == {"probe-truth-final.zarr.zip, table", "b.zarr.zip, plain"}
    anchors = {attributes["id"] for tag, attributes in page.tags if tag == "li" and "id" in attributes}
    links = {a["href"] for t, a in page.tags if t == "a" and (a["href"] or "").startswith("#source")}
    assert links == {f"#{anchor}" for anchor in anchors} == {"#source-1", "#source-2"}


def test_names_within_figures_are_unique_and_all_references_hold() -> None:
    page = Page("two", [Section("s", [drawing("one"), drawing("two")])])
    html = page.html()
    ids = [a["id"] for _, a in Reader(html).tags if "id" in a]
    assert len(ids) == len(set(ids))
    used = set(re.findall(r"url\(#([^)]+)\)", html)) | {h[1:] for _, a in Reader(html).tags if (h := a.get("href") or "").startswith("#")}
    assert used <= set(ids)


def test_text_of_figures_stays_text() -> None:
    html = Page("x", [Section("s", [drawing("words of a figure")])]).html()
    assert re.search(r"<text[^>]*>words of a figure</text>", html)


def test_the_colour_is_clearest_where_the_map_is_largest_and_the_image_is_what_was_given() -> None:
    image = np.random.default_rng(0).integers(0, 255, (6, 8, 3), np.uint8)
    html = Page("x", [Section("s", [Picture(image, "plain"), Picture(image, "map", np.array([[0, 1], [2, 4]]))])]).html()
    plain, _, tint = (
        np.asarray(Image.open(io.BytesIO(base64.b64decode(code)))) for code in re.findall(r'data:image/png;base64,([^"]+)"', html)
    )
    np.testing.assert_array_equal(plain, image)
    np.testing.assert_array_equal(tint, np.round(255 * overlay(np.array([[0, 1], [2, 4]]))))


@pytest.mark.parametrize("cells", [np.array([[np.nan]]), np.array([1.0])])
def test_maps_that_are_none_are_refused(cells: np.ndarray) -> None:
    with pytest.raises(InvalidInputError, match="finite values"):
        Page("x", [Section("s", [Picture(np.zeros((4, 4, 3), np.uint8), "x", cells)])]).html()


def test_what_speaks_against_has_a_colour_of_its_own() -> None:
    pixels = overlay_pixels(np.array([[1.0, -2.0, 0.0]]))[0].astype(int)
    assert pixels[0, 0] > pixels[0, 2]
    assert pixels[1, 2] > pixels[1, 0]
    assert pixels[1, 3] > pixels[0, 3]
    assert pixels[2, 3] == 0
    html = Page("x", [Section("s", [Tokens(["for", "against"], np.array([1.0, -0.5]))])]).html()
    assert '<span class="p10">for</span><span class="n5">against</span>' in html


def test_tokens_need_a_value_each() -> None:
    with pytest.raises(InvalidInputError, match="expected 2 values, one a token"):
        Page("x", [Section("s", [Tokens(["a", "b"], np.ones(3))])]).html()


def test_a_page_is_refused_under_another_ending_or_where_it_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"to end in \.html, found 'x\.txt'"):
        Page("x", []).write(tmp_path / "x.txt")
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="expected to write the page"):
        Page("x", []).write(tmp_path / "file" / "x.html")
