"""A real browser, driven as a person would: found on this machine, or the tests that need it are skipped, loudly."""

from __future__ import annotations

import shutil
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-component-update --disable-sync "
    "--disable-quic --disable-dev-shm-usage --hide-scrollbars --force-device-scale-factor=1 --window-size=1440,900"
).split()
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
PATIENCE = 15.0
AXE = Path(__file__).parents[2] / "viewer" / "node_modules" / "axe-core" / "axe.min.js"


class Browser:
    """One window; every test opens pages in it."""

    def __init__(self, downloads: Path) -> None:
        missing = "the viewer was not tried in a browser: install chromium and chromium-driver, and `pip install selenium`"
        program = next((found for name in BROWSERS if (found := shutil.which(name))), None)
        driver = shutil.which("chromedriver")
        try:
            from selenium import webdriver
        except ImportError:
            program = None
        if program is None or driver is None:
            warnings.warn(missing, stacklevel=2)
            pytest.skip(missing)
        options = webdriver.ChromeOptions()
        options.binary_location = program
        for flag in FLAGS:
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver: Any = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
        self.downloads = downloads
        self.driver.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(downloads)})

    def open(self, address: str, *, width: int = 1440, height: int = 900, dark: bool = False) -> None:
        """A page afresh, until its first view or its failure is drawn."""
        self.driver.get("about:blank")
        self.errors()
        screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        self.driver.get(address)
        self.until(lambda: self.js("return document.documentElement.dataset.ready"))

    def js(self, script: str, *arguments: Any) -> Any:
        """What a script returns."""
        return self.driver.execute_script(script, *arguments)

    def violations(self) -> list[str]:
        """What axe-core finds on the page that keeps people out; the test is skipped where it is not installed."""
        if not AXE.exists():
            pytest.skip("axe-core is not installed: run `npm ci` in viewer/ to try pages for accessibility")
        self.js(AXE.read_text(encoding="utf-8"))
        found: list[str] = self.driver.execute_async_script(
            "const done = arguments[0];"
            "const told = (v) => `${v.impact} ${v.id}: ${v.nodes.slice(0, 3).map((n) => n.html.slice(0, 160)).join(' | ')}`;"
            "axe.run(document, {resultTypes: ['violations']}).then((result) => done(result.violations.map(told)))"
        )
        return found

    def until(self, true: Callable[[], Any], what: str = "") -> Any:
        """Wait until something holds; what it is then."""
        end = time.monotonic() + PATIENCE
        while not (found := true()):
            if time.monotonic() > end:
                raise AssertionError(f"waited in vain for {what or true}; the page says: {self.text('body')[:600]}")
            time.sleep(0.03)
        return found

    def text(self, selector: str) -> str:
        """Text of an element as it is seen; empty where there is none."""
        return self.js("return document.querySelector(arguments[0])?.innerText ?? ''", selector)

    def texts(self, selector: str) -> list[str]:
        """Texts of all elements."""
        return self.js("return [...document.querySelectorAll(arguments[0])].map((e) => e.textContent)", selector)

    def click(self, selector: str, at: tuple[float, float] = (0.5, 0.5)) -> None:
        """A real click of the mouse, at shares of the element's width and height."""
        box = self.js(
            "const e = document.querySelector(arguments[0]); e.scrollIntoView({block: 'nearest'}); const b = e.getBoundingClientRect();"
            "return [b.left, b.top, b.width, b.height]",
            selector,
        )
        x, y = box[0] + at[0] * box[2], box[1] + at[1] * box[3]
        for kind in ("mousePressed", "mouseReleased"):
            event = {"type": kind, "x": x, "y": y, "button": "left", "clickCount": 1}
            self.driver.execute_cdp_cmd("Input.dispatchMouseEvent", event)

    def choose(self, selector: str, value: str) -> None:
        """Choose in a list, by clicks."""
        from selenium.webdriver.support.select import Select

        Select(self.driver.find_element("css selector", selector)).select_by_value(value)

    def keys(self, *keys: str) -> None:
        """Type, wherever the focus is."""
        from selenium.webdriver import ActionChains

        chain = ActionChains(self.driver)
        for key in keys:
            chain.send_keys(key)
        chain.perform()

    def view(self) -> dict[str, str]:
        """What the address says behind its #, once all that was done is written there."""
        time.sleep(0.15)
        return self.view_now()

    def view_now(self) -> dict[str, str]:
        """What the address says behind its #."""
        return dict(self.js("return [...new URLSearchParams(location.hash.slice(1))]"))

    def downloaded(self, act: Callable[[], None]) -> Path:
        """The file that an action downloads."""
        for old in self.downloads.iterdir():
            old.unlink()
        act()
        found = self.until(
            lambda: [p for p in self.downloads.iterdir() if p.suffix in (".csv", ".png") and p.stat().st_size],
            "a download",
        )
        return found[0]

    def errors(self) -> list[str]:
        """What the console was told since it was last asked."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def close(self) -> None:
        """End the browser that this object started."""
        self.driver.quit()
