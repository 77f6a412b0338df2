"""Twelve object shapes of generated scenes, in unit coordinates (radius 1, y down)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from PIL import ImageDraw

Colour = tuple[int, int, int]
Point = tuple[float, float]


class Brush:
    """Draw filled outlines, given in unit coordinates, at a centre and radius on a canvas."""

    def __init__(self, draw: ImageDraw.ImageDraw, x: float, y: float, radius: float, colour: Colour) -> None:
        self._draw, self._x, self._y, self._radius, self._colour = draw, x, y, radius, colour

    def polygon(self, points: Sequence[Point]) -> None:
        """Fill an outline."""
        self._draw.polygon([(self._x + self._radius * u, self._y + self._radius * v) for u, v in points], fill=self._colour)

    def disc(self, u: float, v: float, radius: float) -> None:
        """Fill a circle around (u, v)."""
        x, y, r = self._x + self._radius * u, self._y + self._radius * v, self._radius * radius
        self._draw.ellipse((x - r, y - r, x + r, y + r), fill=self._colour)

    def box(self, left: float, top: float, right: float, bottom: float) -> None:
        """Fill a rectangle."""
        self.polygon([(left, top), (right, top), (right, bottom), (left, bottom)])


def _arc(radius: float, start: float, stop: float, steps: int = 24, u: float = 0.0, v: float = 0.0) -> list[Point]:
    """Points on a circle from angle `start` to `stop` (degrees, clockwise from the right)."""
    angles = [math.radians(start + (stop - start) * k / steps) for k in range(steps + 1)]
    return [(u + radius * math.cos(a), v + radius * math.sin(a)) for a in angles]


def _star(brush: Brush) -> None:
    tips = [(1.0 if k % 2 == 0 else 0.45, math.radians(36 * k - 90)) for k in range(10)]
    brush.polygon([(r * math.cos(a), r * math.sin(a)) for r, a in tips])


def _moon(brush: Brush) -> None:
    brush.polygon(_arc(1.0, 55, 305) + _arc(0.85, 290, 70, u=0.42))


def _cup(brush: Brush) -> None:
    brush.polygon([(-0.85, -0.8), (0.45, -0.8), (0.3, 0.85), (-0.7, 0.85)])
    brush.polygon(_arc(0.55, -95, 95, u=0.38, v=-0.1) + _arc(0.28, 95, -95, u=0.38, v=-0.1))


def _leaf(brush: Brush) -> None:
    blade = [(math.sin(math.pi * k / 12) * 0.58, -1.0 + 1.6 * k / 12) for k in range(13)]
    brush.polygon(blade + [(-u, v) for u, v in reversed(blade)])
    brush.box(-0.1, 0.4, 0.1, 1.0)


def _heart(brush: Brush) -> None:
    brush.disc(-0.46, -0.36, 0.5)
    brush.disc(0.46, -0.36, 0.5)
    brush.polygon([(-0.92, -0.16), (0.0, -0.3), (0.92, -0.16), (0.0, 0.98)])


def _key(brush: Brush) -> None:
    brush.polygon(_arc(0.5, 0, 360, v=-0.5) + _arc(0.22, 360, 0, v=-0.5))
    brush.box(-0.14, -0.1, 0.14, 1.0)
    brush.box(0.1, 0.35, 0.5, 0.58)
    brush.box(0.1, 0.77, 0.5, 1.0)


def _fish(brush: Brush) -> None:
    body = [(-0.3 + 0.7 * math.cos(a), 0.55 * math.sin(a)) for a in (math.radians(15 * k) for k in range(24))]
    brush.polygon(body)
    brush.polygon([(0.15, 0.0), (1.0, -0.62), (0.8, 0.0), (1.0, 0.62)])


def _house(brush: Brush) -> None:
    brush.polygon([(0.0, -1.0), (1.0, -0.1), (-1.0, -0.1)])
    brush.polygon([(-0.72, -0.15), (0.72, -0.15), (0.72, 0.9), (0.2, 0.9), (0.2, 0.3), (-0.2, 0.3), (-0.2, 0.9), (-0.72, 0.9)])


def _tree(brush: Brush) -> None:
    brush.polygon([(0.0, -1.0), (0.6, -0.2), (-0.6, -0.2)])
    brush.polygon([(0.0, -0.6), (0.85, 0.55), (-0.85, 0.55)])
    brush.box(-0.16, 0.5, 0.16, 1.0)


def _bell(brush: Brush) -> None:
    brush.polygon([*_arc(0.55, 180, 360, v=-0.4), (0.62, 0.35), (0.95, 0.62), (-0.95, 0.62), (-0.62, 0.35)])
    brush.disc(0.0, 0.75, 0.25)


def _flower(brush: Brush) -> None:
    for k in range(5):
        angle = math.radians(72 * k - 90)
        brush.disc(0.58 * math.cos(angle), 0.58 * math.sin(angle), 0.4)


def _drop(brush: Brush) -> None:
    brush.polygon([(0.0, -1.0), *_arc(0.64, -25, 205, v=0.34)])


SHAPES: dict[str, tuple[Colour, Callable[[Brush], None]]] = {
    "star": ((238, 188, 20), _star),
    "moon": ((40, 48, 120), _moon),
    "cup": ((142, 62, 180), _cup),
    "leaf": ((128, 190, 40), _leaf),
    "heart": ((214, 36, 56), _heart),
    "key": ((38, 38, 42), _key),
    "fish": ((36, 118, 222), _fish),
    "house": ((150, 88, 46), _house),
    "tree": ((16, 112, 66), _tree),
    "bell": ((244, 122, 16), _bell),
    "flower": ((238, 112, 184), _flower),
    "drop": ((52, 196, 214), _drop),
}
"""Object name -> (colour, drawing function)."""

KINDS: tuple[str, ...] = tuple(SHAPES)
