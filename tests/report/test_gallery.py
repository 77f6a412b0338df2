"""Pictures side by side: what is tinted how."""

from __future__ import annotations

import numpy as np
import pytest

from stratascope.errors import InvalidInputError
from stratascope.figures.gallery import Tile, draw_gallery, tinted
from stratascope.figures.style import TINT, TINT_BELOW

GROUND = np.full((40, 60, 3), 200, np.uint8)


def test_tint_grows_with_size_and_its_colour_tells_the_sign() -> None:
    colours = tinted(np.array([[0.0, 1.0], [-2.0, -1.0]]))
    assert colours[0, 0, 3] == 0
    assert tuple(colours[0, 1, :3]) == pytest.approx(TINT)
    assert tuple(colours[1, 0, :3]) == pytest.approx(TINT_BELOW)
    assert colours[0, 1, 3] == pytest.approx(colours[1, 1, 3]) == pytest.approx(colours[1, 0, 3] / 2)


def test_a_gallery_has_one_picture_a_tile_and_a_sign_a_mark() -> None:
    marks = np.array([["a", "b"], ["b", "b"]])
    tiles = [Tile(GROUND, np.eye(2), f"tile {k}", {"cat": (0.1, 0.1, 0.5, 0.9)}, marks) for k in range(3)]
    figure = draw_gallery(tiles, columns=2, title="three", marks={"a": "of kind a", "b": "of kind b"})
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["tile 0", "tile 1", "tile 2"]
    signs = figure.axes[0].collections
    assert sorted(len(c.get_offsets()) for c in signs if len(c.get_offsets())) == [1, 3]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["of kind a", "of kind b"]


@pytest.mark.parametrize("cells", [np.array([[np.nan]]), np.zeros(3)])
def test_what_is_no_map_is_refused(cells: np.ndarray) -> None:
    with pytest.raises(InvalidInputError, match="finite map"):
        draw_gallery([Tile(GROUND, cells)])
    with pytest.raises(InvalidInputError, match="at least one"):
        draw_gallery([])
