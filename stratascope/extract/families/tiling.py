"""Image tokens of families that add tiles to the full image, from the image size alone. No torch.

The grid of cells covers the full image; tokens of the tiles, which show it in more detail, have the span `image_tiles`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from stratascope.extract.families.patch_grid import ImageRule, ImageTokens, whole


@dataclass(frozen=True)
class AnyResolution(ImageRule):
    """LLaVA-NeXT: the image stretched to a square, then tiles of the padded image without the padding, with a token after each row.

    The tokens of the square are the cells of the grid; those of the tiles have the span `image_tiles`.
    """

    side: int
    patch: int
    pinpoints: tuple[tuple[int, int], ...]
    """(height, width) of the possible canvases of tiles."""

    def tokens(self, width: int, height: int) -> ImageTokens:
        cells = self.side // self.patch
        rows, columns = self._tiled(width, height)
        base = cells**2
        runs = (base + rows * (columns + 1),)
        return ImageTokens(self.token, runs, (0, base), (cells, cells), whole(width, height), (height, width))

    def _tiled(self, width: int, height: int) -> tuple[int, int]:
        """Rows and columns of tile patches without padding."""
        best = self._canvas(width, height)
        cells = self.side // self.patch
        rows, columns = (side // self.side * cells for side in best)
        if width / height > columns / rows:
            rows -= 2 * ((rows - int(round(height * (columns / width), 7))) // 2)
        else:
            columns -= 2 * ((columns - int(round(width * (rows / height), 7))) // 2)
        return rows, columns

    def _canvas(self, width: int, height: int) -> tuple[int, int]:
        """The canvas that keeps most pixels, then wastes least."""

        def kept_and_wasted(canvas: tuple[int, int]) -> tuple[int, int]:
            scale = min(canvas[1] / width, canvas[0] / height)
            kept = min(int(width * scale) * int(height * scale), width * height)
            return kept, kept - canvas[0] * canvas[1]

        return max(self.pinpoints, key=kept_and_wasted)


@dataclass(frozen=True)
class SplitTiles(ImageRule):
    """Idefics3, SmolVLM: tiles of `side` pixels with markers, then the full image stretched to one tile.

    The tokens of the last, global tile are the cells of the grid; those of the others are `image_tiles`.
    """

    side: int
    cells: int
    longest: int | None
    """Size to which the longer side is resized first."""
    split: bool
    around: str = "<fake_token_around_image>"
    whole: str = "<global-img>"

    _most_pixels: ClassVar[int] = 4096

    def tiles(self, width: int, height: int) -> tuple[int, int]:
        """Rows and columns of tiles; 0, 0 if the image is not split."""
        if not self.split:
            return 0, 0
        if self.longest is not None:
            width, height = self._bounded(*self._resized(width, height, self.longest))
        aspect = width / height
        if width >= height:
            width = math.ceil(width / self.side) * self.side
            height = math.ceil(int(width / aspect) / self.side) * self.side
        else:
            height = math.ceil(height / self.side) * self.side
            width = math.ceil(int(height * aspect) / self.side) * self.side
        return (height // self.side, width // self.side) if max(width, height) > self.side else (0, 0)

    @staticmethod
    def _resized(width: int, height: int, longest: int) -> tuple[int, int]:
        aspect = width / height
        if width >= height:
            shorter = int(longest / aspect)
            return longest, max(1, shorter + shorter % 2)
        shorter = int(longest * aspect)
        return max(1, shorter + shorter % 2), longest

    def _bounded(self, width: int, height: int) -> tuple[int, int]:
        if max(width, height) <= self._most_pixels:
            return width, height
        aspect = width / height
        if width >= height:
            return self._most_pixels, max(1, int(self._most_pixels / aspect))
        return max(1, int(self._most_pixels * aspect)), self._most_pixels

    def tokens(self, width: int, height: int) -> ImageTokens:
        rows, columns = self.tiles(width, height)
        lines = [
            "".join(f"{self.around}<row_{row + 1}_col_{column + 1}>{self.token}" for column in range(columns)) + "\n" for row in range(rows)
        ]
        text = "".join(lines) + ("\n" if lines else "") + f"{self.around}{self.whole}{self.token}{self.around}"
        n, tiles = self.cells**2, rows * columns
        grid = (self.cells, self.cells)
        return ImageTokens(text, (n,) * (tiles + 1), (n * tiles, n * (tiles + 1)), grid, whole(width, height), (rows, columns))


@dataclass(frozen=True)
class CanvasTiles(ImageRule):
    """InternVL: tiles of the image stretched to a canvas, then the full image stretched to one tile.

    The tokens of the last tile are the cells of the grid; those of the others, if any, are `image_tiles`.
    """

    side: int
    cells: int
    fewest: int
    most: int
    before: str = "<img>"
    after: str = "</img>"
    options: ClassVar[Mapping[str, Any]] = {"crop_to_patches": True}

    def tiles(self, width: int, height: int) -> tuple[int, int]:
        """Rows and columns of tiles: the nearest aspect ratio, with more tiles for a larger image."""
        area, best, nearest = width * height, (1, 1), math.inf
        shapes = [(c, r) for c in range(1, self.most + 1) for r in range(1, self.most + 1) if self.fewest <= c * r <= self.most]
        for columns, rows in sorted(shapes, key=lambda shape: shape[0] * shape[1]):
            apart = abs(width / height - columns / rows)
            if apart < nearest or (apart == nearest and area > 0.5 * self.side**2 * columns * rows):
                best, nearest = (rows, columns), apart
        return best

    def tokens(self, width: int, height: int) -> ImageTokens:
        rows, columns = self.tiles(width, height)
        count = rows * columns + (rows * columns > 1)
        n = self.cells**2
        text = f"{self.before}{self.token}{self.after}"
        return ImageTokens(text, (n * count,), (n * (count - 1), n * count), (self.cells, self.cells), whole(width, height), (count,))
