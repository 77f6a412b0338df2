"""A browser that knows which controls its pages had, and which of them were used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.viewer.browser import Browser

# a control's name: its label as a screen reader says it, or its text
WATCH = """
window.controls = "button, select, input, summary, a[href], [tabindex='0'], .row, svg.chart";
window.places = ["dialog", "details.menu", ".pane", ".examples", ".heads", ".probe", ".knockouts", ".notice", "header"];
window.place = (e) => e.type === "file" ? "page" : places.find((s) => e.closest(s)) ?? "page";
window.said = (e) => e.matches(".row") ? "row" : e.matches(".copy") ? "Copy link" : e.matches("canvas.over") ? "image"
  : e.matches(".chart") ? e.closest("section").querySelector("h2").firstChild.textContent
  : e.getAttribute("aria-label") || e.labels?.[0]?.firstChild.textContent || e.dataset.value || e.textContent.trim();
window.plain = (text) => text.replace(/\\(about.*\\)/, "").replace(/^.*: what does this/s, "what does a").trim();
window.named = (e) => `${place(e)} ${e.matches("[type=number]") ? "number " : ""}${plain(said(e))}`;
window.drawn = (e) => e.matches("[type=file]") || e.checkVisibility({visibilityProperty: true});
window.seen = new Set();
window.used = new Set();
window.pressed = new Set();
window.look = () => document.querySelectorAll(controls).forEach((e) => drawn(e) && seen.add(named(e)));
window.use = (event) => {
  look();
  const e = event.target.closest?.(controls);
  if (e) used.add(named(e));
};
for (const kind of ["click", "input", "change"]) addEventListener(kind, use, true);
addEventListener("keydown", (event) => {
  look();
  pressed.add(event.key);
  if (event.target.matches("[tabindex='0']:not(body)") && !event.target.matches("button, input")) use(event);
}, true);
"""


class Watched:
    """A browser, and which controls were seen and used in all pages that were opened."""

    def __init__(self, browser: Browser) -> None:
        self.browser = browser
        self.seen: set[str] = set()
        self.used: set[str] = set()
        self.pressed: set[str] = set()

    def open(self, address: str) -> None:
        """A page afresh."""
        self.browser.open(address)
        self.watch()

    def watch(self) -> None:
        """Begin to look at what is used."""
        self.browser.js(WATCH)

    def gather(self) -> None:
        """Take note of what was seen and used, before the page is left."""
        seen, used, pressed = self.browser.js("look(); return [[...seen], [...used], [...pressed]]")
        self.seen |= set(seen)
        self.used |= set(used)
        self.pressed |= set(pressed)

    def step(self, act: Callable[[], Any], **wanted: str | None) -> None:
        """Do something; then the address says what is wanted (None: no longer)."""
        act()
        view = {key.replace("b_", "b."): value for key, value in wanted.items()}
        self.browser.until(lambda: {key: self.browser.view_now().get(key) for key in view} == view, f"{view} after {act}")

    def says(self, act: Callable[[], Any], selector: str, words: str) -> None:
        """Do something; then an element says what is wanted."""
        act()
        self.browser.until(lambda: words in self.browser.text(selector), f"{words} in {selector}")
