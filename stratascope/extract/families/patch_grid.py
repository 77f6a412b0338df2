"""Image tokens of each family from the image size alone: rules that show an image once. No torch.

A rule gives the prompt text of an image, the image tokens that form one grid of cells, and the part of the image that the grid covers.
Each rule follows the family's own processor, which the tests compare. Rules with additional tiles are in `tiling`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from stratascope.datasets.boxes import Box
from stratascope.datasets.captions import Interval
from stratascope.errors import InvalidInputError


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
