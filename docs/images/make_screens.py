"""Photograph viewer and report of a demo's folder: `python docs/images/make_screens.py DEMO`; needs Chromium and selenium."""

from __future__ import annotations

import base64
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))  # the browser is that of the tests

from stratascope.report.viewer import ViewServer  # noqa: E402
from tests.viewer.browser import Browser  # noqa: E402

VIEW = "#example=21&layer=1&token=61&boxes=1"
"""The star is inside the flower: what "flower" reads at layer 1."""


def main(demo: Path) -> None:
    browser = Browser(HERE)
    try:
        with ViewServer(str(demo / "original.zarr"), results=demo / "results") as server:
            browser.open(f"{server.address}{VIEW}", width=1440, height=900)
            shoot(browser, HERE / "viewer.png")
        browser.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride", {"width": 1080, "height": 1200, "deviceScaleFactor": 1, "mobile": False}
        )
        browser.driver.get((demo / "results" / "report.html").resolve().as_uri())
        shoot(browser, HERE / "report.png")
    finally:
        browser.close()


def shoot(browser: Browser, path: Path) -> None:
    path.write_bytes(base64.b64decode(browser.driver.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})["data"]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
