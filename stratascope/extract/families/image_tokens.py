"""Image tokens of each family from the image size alone. No torch.

A rule gives the prompt text of an image, the image tokens that form one grid of cells, and the part of the image that the grid covers.
Each rule follows the family's own processor, which the tests compare. Families that also show tiles of the image in more detail have the
span `image_tiles` for their tokens.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from stratascope.datasets.boxes import Box
from stratascope.datasets.captions import Interval
from stratascope.errors import InvalidInputError

NO_GRID = (0, 0)
"""Grid of images whose tokens have no known place: of models without a rule, and of several images."""

TILES = "image_tiles"
"""A further span: image tokens outside the grid, with the markers between them."""


@dataclass(frozen=True)
class ImageTokens:
    """Tokens of one image in the prompt."""

    text: str
    """Text that replaces the placeholder of the chat template; each run of image tokens is written as one token."""
    runs: tuple[int, ...]
    """Number of image tokens in each run."""
    cells: Interval
    """Interval of the image tokens, counted over all runs, that are the cells of the grid in reading order."""
    grid: tuple[int, int]
    """(rows, columns) of these cells."""
    view: Box
    """The part of the image that the grid covers, in pixels."""
    cut: tuple[int, ...]
    """Tiling or size that the processor reports, to compare with the plan during extraction."""
    patches: tuple[int, int] | None = None
    """(rows, columns) of patches of the vision tower over the whole image, of types without a rule; None where unknown."""


@dataclass(frozen=True)
class ImageRule(ABC):
    """Rule by which a processor turns images into tokens."""

    token: str
    """The image token, which the model replaces by image features."""
    options: ClassVar[Mapping[str, Any]] = {}
    """Keywords of the family's image processor."""

    @property
    def placeholder(self) -> str:
        """Placeholder of the image in the chat template."""
        return self.token

    @abstractmethod
    def tokens(self, width: int, height: int) -> ImageTokens:
        """Tokens of an image with this size.

        Raises
        ------
        InvalidInputError
            If the model does not accept such an image.
        """

    def settings(self) -> dict[str, Any]:
        """Settings of the rule, for the provenance."""
        return asdict(self)


@dataclass(frozen=True)
class PatchGrid(ImageRule):
    """Qwen: patches of `patch` pixels over the whole image, merged `merge` x `merge` into one cell = one token."""

    patch: int
    merge: int
    min_pixels: int
    max_pixels: int

    _most_aspect: ClassVar[int] = 200

    @property
    def cell(self) -> int:
        """Side of a cell of the resized image in pixels."""
        return self.patch * self.merge

    def resize(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) of the resized image: multiples of a cell, within the limits, aspect ratio nearly kept.

        Raises
        ------
        InvalidInputError
            If one side is more than 200 times the other.
        """
        if max(width, height) > self._most_aspect * min(width, height):
            raise InvalidInputError(f"expected an image of aspect ratio at most {self._most_aspect}, found {width} x {height}")
        cell = self.cell
        new_height, new_width = (max(cell, round(v / cell) * cell) for v in (height, width))
        if new_height * new_width > self.max_pixels:
            shrink = math.sqrt(height * width / self.max_pixels)
            new_height, new_width = (max(cell, math.floor(v / shrink / cell) * cell) for v in (height, width))
        elif new_height * new_width < self.min_pixels:
            grow = math.sqrt(self.min_pixels / (height * width))
            new_height, new_width = (math.ceil(v * grow / cell) * cell for v in (height, width))
        return new_width, new_height

    def tokens(self, width: int, height: int) -> ImageTokens:
        new_width, new_height = self.resize(width, height)
        rows, columns = new_height // self.cell, new_width // self.cell
        return ImageTokens(
            self.token,
            (rows * columns,),
            (0, rows * columns),
            (rows, columns),
            whole(width, height),
            (rows * self.merge, columns * self.merge),
        )


@dataclass(frozen=True)
class StretchedSquare(ImageRule):
    """Gemma 3, PaliGemma: the image is stretched to a square of `side` pixels with `cells` x `cells` tokens."""

    side: int
    cells: int
    before: str = ""
    after: str = ""
    """Text around the image's tokens."""
    written: str = ""
    """Placeholder of the chat template, if it is not the image token."""

    @property
    def placeholder(self) -> str:
        return self.written or self.token

    def tokens(self, width: int, height: int) -> ImageTokens:
        text = f"{self.before}{self.token}{self.after}"
        n = self.cells**2
        return ImageTokens(text, (n,), (0, n), (self.cells, self.cells), whole(width, height), (self.side, self.side))


@dataclass(frozen=True)
class CroppedSquare(ImageRule):
    """LLaVA-1.5: the shorter side is resized to `shortest`, then the central `side` x `side` pixels are cropped.

    With `pad` the image is first padded to a square.
    """

    shortest: int
    side: int
    patch: int
    pad: bool = False

    def tokens(self, width: int, height: int) -> ImageTokens:
        """Tokens of an image with this size; InvalidInputError if the crop is larger than the image."""
        full_width, full_height = (max(width, height),) * 2 if self.pad else (width, height)
        short, long = min(full_width, full_height), max(full_width, full_height)
        new_long = int(self.shortest * long / short)
        new_width, new_height = (self.shortest, new_long) if full_width <= full_height else (new_long, self.shortest)
        x, x_scale = (new_width - self.side) // 2, full_width / new_width
        y, y_scale = (new_height - self.side) // 2, full_height / new_height
        if min(x, y) < 0:
            raise InvalidInputError(
                f"expected a crop of at most {self.shortest} pixels, the resized image's shorter side, found {self.side}"
            )
        left, top = (full_width - width) // 2, (full_height - height) // 2
        view = (x * x_scale - left, y * y_scale - top, (x + self.side) * x_scale - left, (y + self.side) * y_scale - top)
        cells = self.side // self.patch
        return ImageTokens(self.token, (cells**2,), (0, cells**2), (cells, cells), view, (self.side, self.side))


def whole(width: int, height: int) -> Box:
    """View of a grid that covers the full image."""
    return 0.0, 0.0, float(width), float(height)


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
        rows, columns = self.tiled(width, height)
        base = cells**2
        runs = (base + rows * (columns + 1),)
        return ImageTokens(self.token, runs, (0, base), (cells, cells), whole(width, height), (height, width))

    def tiled(self, width: int, height: int) -> tuple[int, int]:
        """Rows and columns of tile patches without padding."""
        best = self.canvas(width, height)
        cells = self.side // self.patch
        rows, columns = (side // self.side * cells for side in best)
        if width / height > columns / rows:
            rows -= 2 * ((rows - int(round(height * (columns / width), 7))) // 2)
        else:
            columns -= 2 * ((columns - int(round(width * (rows / height), 7))) // 2)
        return rows, columns

    def canvas(self, width: int, height: int) -> tuple[int, int]:
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


def image_spans(runs: Sequence[Interval], images: Sequence[ImageTokens], count: int) -> dict[str, Interval]:
    """Spans of the last `count` images of a prompt, from the `runs` of image tokens of all its images.

    One image has the spans `image` and, where there are tokens outside the grid, `image_tiles`; several have `image`, from the first token
    of all to the last, and `image_1`, `image_2`, ..., which are what `image` is of one.
    """
    own, at = images[-count:], sum(len(image.runs) for image in images[:-count])
    if count == 1:
        return _image_spans(runs[at:], own[0])
    spans = {"image": (runs[at][0], runs[-1][1])}
    for number, image in enumerate(own, 1):
        spans[f"image_{number}"] = _image_spans(runs[at : at + len(image.runs)], image)["image"]
        at += len(image.runs)
    return spans


def _image_spans(runs: Sequence[Interval], image: ImageTokens) -> dict[str, Interval]:
    """Spans of the cells and of the other image tokens, from the `runs` of all image tokens."""
    a, b = image.cells
    if image.grid == NO_GRID:
        return {"image": (runs[0][0], runs[-1][1])}
    assert b - a == image.grid[0] * image.grid[1], "there is one cell for each place of the grid"
    if len(runs) == 1 and (a, b) == (0, runs[0][1] - runs[0][0]):
        return {"image": runs[0]}
    places = [place for first, last in runs for place in range(first, last)]
    cells, others = places[a:b], places[:a] + places[b:]
    assert cells[-1] + 1 - cells[0] == b - a, "cells are adjacent"
    spans = {"image": (cells[0], cells[-1] + 1)}
    if others:
        spans[TILES] = (others[0], others[-1] + 1)
        assert others[-1] < cells[0] or others[0] > cells[-1], "tiles are before or after the cells"
    return spans
