"""The stores that the page is tried on, and the browser."""

from __future__ import annotations

import pytest

from stratascope.report.viewer import ViewServer
from tests.viewer.browser import Browser
from tests.viewer.viewer_stores import layout_of, million_store, question_store, write_store


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    started = Browser(tmp_path_factory.mktemp("downloads"))
    yield started
    started.close()


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """150 examples, 5 x 5 cells; the second of three blocks is not written."""
    return write_store(tmp_path_factory.mktemp("small") / "small.zarr", layout_of(150), 5, 5, blocks=[0, 2])


@pytest.fixture(scope="session")
def seven_billion(tmp_path_factory):
    """VSR's size on a 7B model's shape, with as many different tokens as its captions have."""
    layout = layout_of(10_972, layers=28, heads=28, tokens=430, thumbnail=(112, 112), record=frozenset({"attention_rows"}))
    return write_store(tmp_path_factory.mktemp("7b") / "run.zarr", layout, 17, 23, blocks=[0], words=2500)


@pytest.fixture(scope="session")
def million(tmp_path_factory):
    """A million examples of little."""
    return million_store(tmp_path_factory.mktemp("million") / "million.zarr")


@pytest.fixture(scope="session")
def questions(tmp_path_factory):
    """Questions with four answers; all that can be said about the answer is recorded."""
    return question_store(tmp_path_factory.mktemp("questions") / "questions.zarr")


@pytest.fixture(scope="session")
def small_server(small):
    with ViewServer(str(small)) as server:
        yield server
