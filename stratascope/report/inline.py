"""Inline SVG and data URLs for pages."""

from __future__ import annotations

import base64
import hashlib
import io
import re
import warnings
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np
from markupsafe import Markup

from stratascope.errors import InvalidInputError
from stratascope.figures.style import COLOURS, GREY, overlay, paper_style

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

SCALE = 1.7
"""Page pixels per point of a figure: 8 points become 13.6 pixels."""

_SVG = "{http://www.w3.org/2000/svg}"
_LINK = "{http://www.w3.org/1999/xlink}href"
_REFERENCE = re.compile(r"url\(#([^)]+)\)")
_SHORTER = re.compile(r"-?\d+\.\d+")
_THEMED = {
    **{colour.lower(): f"var(--c{k})" for k, colour in enumerate(COLOURS, 1)},
    GREY.lower(): "var(--faint)",
    "#000000": "var(--ink)",
    "#ffffff": "var(--panel)",
}
"""Colours of figures that the style sheet sets for light and dark themes."""


def inline_drawing(figure: Figure, label: str) -> Markup:
    """A figure as an SVG element that obeys a strict content security policy: no style, no script, no reference outwards.

    Style attributes become attributes of their own, the style's colours variables of the page, and names of parts unique to the
    figure. The figure is not changed, and gives the same text each time.
    """
    buffer = io.BytesIO()
    with paper_style(), warnings.catch_warnings():
        # text stays text: the reader's fonts draw what matplotlib's lack
        warnings.filterwarnings("ignore", r"Glyph \d+")
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    text = buffer.getvalue().decode()
    root = ElementTree.fromstring(text)
    prefix = f"f{hashlib.sha256(text.encode() + label.encode()).hexdigest()[:8]}-"
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{_SVG}metadata", f"{_SVG}style") or (child.tag == f"{_SVG}defs" and not len(child)):
                parent.remove(child)
    used = _referenced(root)
    for element in root.iter():
        _flatten(element, prefix, used)
    width, height = (float(value) for value in root.attrib["viewBox"].split()[2:])
    root.attrib = {"viewBox": f"0 0 {width:g} {height:g}", "role": "img", "aria-label": label, "width": f"{width * SCALE:.0f}"}
    ElementTree.register_namespace("", "http://www.w3.org/2000/svg")
    # safe: ElementTree escapes what it writes
    body = ElementTree.tostring(root, encoding="unicode").replace(' xmlns="http://www.w3.org/2000/svg"', "", 1)
    return Markup(re.sub(r">\s+<", "><", body))


def inline_pixels(pixels: NDArray[np.uint8]) -> str:
    """An image (height, width, 3 or 4) as a data address; PNG, so that the same pixels give the same text."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def overlay_pixels(cells: NDArray[Any], signed: bool = False) -> NDArray[np.uint8]:
    """One pixel per cell, as `overlay` colours it.

    Raises
    ------
    InvalidInputError
        If the cells are no map, or a value is not finite.
    """
    values = np.asarray(cells, np.float64)
    if values.ndim != 2 or not np.isfinite(values).all():
        raise InvalidInputError("expected a map (row, column) of finite values")
    return np.round(255 * overlay(values, signed)).astype(np.uint8)


def _referenced(root: ElementTree.Element) -> set[str]:
    """Names of parts that other parts point to; all others need no name."""
    found: set[str] = set()
    for element in root.iter():
        for key, value in element.attrib.items():
            if key in (_LINK, "href") and value.startswith("#"):
                found.add(value[1:])
            found.update(_REFERENCE.findall(value))
    return found


def _flatten(element: ElementTree.Element, prefix: str, used: set[str]) -> None:
    """Style as attributes, colours as variables, names with the figure's prefix."""
    given = dict(element.attrib)
    style = given.pop("style", "")
    plain: dict[str, str] = {}
    for key, value in given.items():
        if key == "id":
            if value in used:
                plain[key] = prefix + value
        elif key in (_LINK, "href"):
            plain["href"] = f"#{prefix}{value[1:]}" if value.startswith("#") else value
        elif not (key == "transform" and value.startswith("rotate(-0 ")):
            plain[key] = _SHORTER.sub(_short, value) if key in ("d", "x", "y") else _REFERENCE.sub(rf"url(#{prefix}\1)", value)
    for rule in filter(None, (part.strip() for part in style.split(";"))):
        key, _, value = (part.strip() for part in rule.partition(":"))
        if key == "font":  # older matplotlib: italic 700 7px 'DejaVu Sans', ...
            before, _, _ = value.partition("px")
            plain["font-size"] = f"{before.split()[-1]}px"
            if re.search(r"\b(bold|[6-9]00)\b", before):
                plain["font-weight"] = "bold"
        elif key in ("fill", "stroke"):
            plain[key] = _THEMED.get(value.lower(), value)
        elif key != "font-family":  # the page's own
            plain[key] = value
    element.attrib.clear()
    element.attrib.update(plain)


def _short(number: re.Match[str]) -> str:
    return f"{float(number.group()):.2f}".rstrip("0").rstrip(".")
