"""Photograph viewer and report of a demo's folder, and draw its rollout: `python docs/images/make_screens.py DEMO`.

Needs Chromium and selenium.
"""

from __future__ import annotations

import base64
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))  # the browser is that of the tests

from stratascope.analysis import rollout_examples  # noqa: E402
from stratascope.report.viewer import ViewServer  # noqa: E402
from stratascope.store import ActivationStore  # noqa: E402
from tests.viewer.browser import Browser  # noqa: E402

VIEW = "#example=21&layer=1&token=61&boxes=1"
"""The star is inside the flower: what "flower" reads at layer 1."""

EXAMPLES = (0, 1, 2, 3, 17)
"""Of the rollout in README."""


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
        store = ActivationStore.open(demo / "original.zarr")
        figure = rollout_examples(store, examples=EXAMPLES).figure(store)
        assert figure is not None
        figure.savefig(HERE / "rollout.png", dpi=150)
    finally:
        browser.close()


def shoot(browser: Browser, path: Path) -> None:
    path.write_bytes(base64.b64decode(browser.driver.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})["data"]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
