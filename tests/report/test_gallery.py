"""Pictures side by side: what is coloured how."""

from __future__ import annotations

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure

from stratascope.errors import InvalidInputError
from stratascope.figures.gallery import Tile, draw_gallery, draw_tile
from stratascope.figures.style import OPACITY, overlay

GROUND = np.full((40, 60, 3), 200, np.uint8)


def test_colours_are_those_of_matplotlibs_maps_and_the_larger_the_less_transparent() -> None:
    plain, signed = overlay(np.array([[0.0, 1.0, 4.0]])), overlay(np.array([[0.0, 1.0], [-2.0, -1.0]]))
    for share, colour in zip((0.0, 0.25, 1.0), plain[0], strict=True):
        assert tuple(colour[:3]) == matplotlib.colormaps["viridis"](share)[:3]
    for share, colour in zip((0.5, 0.75, 0.0, 0.25), signed.reshape(4, 4), strict=True):
        assert tuple(colour[:3]) == matplotlib.colormaps["PuOr_r"](share)[:3]
    for colours in (plain[0], signed.reshape(4, 4)[[0, 1, 2]]):
        assert colours[0, 3] == 0
        assert colours[0, 3] < colours[1, 3] < colours[2, 3] == pytest.approx(OPACITY)
    assert tuple(overlay(np.ones(1), signed=True)[0, :3]) == matplotlib.colormaps["PuOr_r"](1.0)[:3]


@pytest.mark.parametrize(("others", "place"), [([], (0.2, "bottom")), ([(0.1, 0.0, 0.5, 0.25)], (0.6, "top"))])
def test_a_name_stands_where_it_hides_no_other_object(others: list, place: tuple) -> None:
    tile = Tile(GROUND, np.eye(2), boxes={"cat": (0.2, 0.2, 0.5, 0.6), **{f"other {k}": box for k, box in enumerate(others)}})
    draw_tile(tile, ax := Figure().subplots())
    name = next(text for text in ax.texts if text.get_text() == "cat")
    assert (name.xy[1] / GROUND.shape[0], name.get_va()) == (pytest.approx(place[0]), place[1])


def test_a_gallery_has_one_picture_a_tile_and_a_sign_a_mark() -> None:
    marks = np.array([["a", "b"], ["b", "b"]])
    tiles = [Tile(GROUND, np.eye(2), f"tile {k}", {"cat": (0.1, 0.1, 0.5, 0.9)}, marks) for k in range(3)]
    figure = draw_gallery(tiles, columns=2, title="three", marks={"a": "of kind a", "b": "of kind b"})
    assert [ax.get_title(loc="left") for ax in figure.axes[:3]] == ["tile 0", "tile 1", "tile 2"]
    signs = figure.axes[0].collections
    assert sorted(len(c.get_offsets()) for c in signs if len(c.get_offsets())) == [1, 3]
    assert [text.get_text() for text in figure.axes[3].get_xticklabels()] == ["0", "largest cell of the image"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["of kind a", "of kind b"]


@pytest.mark.parametrize("cells", [np.array([[np.nan]]), np.zeros(3)])
def test_what_is_no_map_is_refused(cells: np.ndarray) -> None:
    with pytest.raises(InvalidInputError, match="finite map"):
        draw_gallery([Tile(GROUND, cells)])
    with pytest.raises(InvalidInputError, match="at least one"):
        draw_gallery([])
