"""Spatial relations: what exchanging subject and object, or mirroring the image, does to the truth of a caption."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Swap = Literal["symmetric", "asymmetric", "undetermined"]


@dataclass(frozen=True)
class Relation:
    """A spatial relation R between a subject A and an object B."""

    swap: Swap
    """symmetric: "A R B" and "B R A" are equally true; asymmetric: they are never both true; undetermined: neither holds in general."""
    inverse: str = ""
    """The relation that B has to A exactly when A has R to B; empty where no word of the list means that."""
    lateral: bool = False
    """Whether it tells left from right, so that it becomes its inverse in a mirrored image."""
    viewer: bool = False
    """Whether its properties presume the viewer's frame of reference; two people can be in front of one another, each in his own."""


_SYMMETRIC = (
    "adjacent to, alongside, attached to, connected to, detached from, touching, parallel to, perpendicular to, across from, opposite to, "
    "beside, next to, by, close to, near, far from, far away from, congruent"
)
_UNDETERMINED = (
    "at the side of, at the back of, ahead of, against, at the edge of, off, past, toward, down, deep down, up, away from, along, around, "
    "from, to, across, down from, facing, facing away from, at, with, among, out of, between, outside, beyond, after"
)
"""Such as `at the edge of` (two tables side by side), `outside` (of a closed room, or merely apart) and `facing`."""
_ASYMMETRIC = {
    "above": "below",
    "below": "above",
    "over": "under",
    "under": "over",
    "on top of": "",
    "beneath": "",
    "on": "",
    "in the middle of": "",
    "inside": "contains",
    "contains": "inside",
    "in": "contains",
    "within": "contains",
    "into": "",
    "through": "",
    "surrounding": "inside",
    "enclosed by": "surrounding",
    "part of": "has as a part",
    "has as a part": "part of",
    "consists of": "",
}
_FRONT = {"in front of": "behind", "behind": "in front of"}
_SIDES = {
    "left of": "right of",
    "right of": "left of",
    "at the left side of": "at the right side of",
    "at the right side of": "at the left side of",
    "to the left of": "to the right of",
    "to the right of": "to the left of",
    "on the left of": "on the right of",
    "on the right of": "on the left of",
}

RELATIONS: dict[str, Relation] = {
    **{name: Relation("symmetric", name) for name in _SYMMETRIC.split(", ")},
    **{name: Relation("undetermined") for name in _UNDETERMINED.split(", ")},
    **{name: Relation("asymmetric", inverse) for name, inverse in _ASYMMETRIC.items()},
    **{name: Relation("asymmetric", inverse, viewer=True) for name, inverse in _FRONT.items()},
    **{name: Relation("asymmetric", inverse, lateral=True, viewer=True) for name, inverse in _SIDES.items()},
}
"""The relations of VSR (Liu et al. 2023) and of What's Up (Kamath et al. 2023), by their meaning."""


def relation_of(name: str) -> Relation | None:
    """Properties of a relation; None if the list lacks it.

    Examples
    --------
    >>> relation_of("left of").inverse, relation_of("near").swap, relation_of("juggling")
    ('right of', 'symmetric', None)
    """
    return RELATIONS.get(" ".join(name.lower().split()))
