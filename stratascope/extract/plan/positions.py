"""Positions of the residual stream to save, from the settings and the tokens of all examples. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from stratascope.datasets.examples import Example
from stratascope.errors import InvalidInputError
from stratascope.extract.plan.generated_answers import DEFAULT_ANSWERS
from stratascope.extract.plan.settings import BOX_POSITIONS, GRID_POSITIONS, GROUPS, POSITIONS, TEXT_POSITIONS, ExtractionSettings
from stratascope.extract.plan.token_layout import TokenLayout
from stratascope.store.format.prompt_parts import IMAGE_POSITION, MEANS, ROLES, TOKEN_POSITION, grouped_cells, numbered_images


def saved_positions(settings: ExtractionSettings, examples: Sequence[Example], layouts: Sequence[TokenLayout]) -> tuple[str, ...]:
    """Names of the positions to save: the default ones, means, text tokens by role, groups of image cells, then generated tokens.

    Raises
    ------
    InvalidInputError
        If no example has a position that is asked for.
    """
    asked = set(("default",) if settings.positions is None else settings.positions)
    generated = [(k, f"answer_{k}") for k in range(settings.generate)]
    answers = [name for k, name in generated if asked & {name, "answers"} or ("default" in asked and k < DEFAULT_ANSWERS)]
    return (*_prompt_positions(settings, asked - {"answers", *answers}, examples, layouts), *answers)


def _prompt_positions(
    settings: ExtractionSettings, asked: set[str], examples: Sequence[Example], layouts: Sequence[TokenLayout]
) -> tuple[str, ...]:
    _check_images(asked, _count_of(layouts))
    if asked <= {"default", *POSITIONS, *numbered_images(_count_of(layouts))}:
        return _default_positions(settings, asked, examples, layouts)
    roles = _roles(layouts)
    cells = sorted({name for grid in {layout.grid for layout in layouts} for name in grouped_cells(*grid)}, key=_cell)
    means = [f"{name}_mean" for name in MEANS if any(name in layout.spans for layout in layouts)]
    others = [*means, *roles, *cells]
    absent = sorted(asked - {*POSITIONS, *GROUPS, *numbered_images(_count_of(layouts)), *others})
    if absent:
        raise InvalidInputError(
            f"expected an example with position {absent[0]!r}, found none; the text tokens are {', '.join(roles)}; the groups of image "
            + (f"cells are {cells[0]} to {cells[-1]}" if cells else "cells are none, as the image tokens have no known place")
        )
    kept = {name for name in others if name in asked or _group(name, roles) in asked}
    return (*_default_positions(settings, asked, examples, layouts), *(name for name in others if name in kept))


def _count_of(layouts: Sequence[TokenLayout]) -> int:
    """Number of images of each example."""
    return max(1, sum(IMAGE_POSITION.fullmatch(name) is not None for name in layouts[0].spans))


def _check_images(asked: set[str], count: int) -> None:
    """Refuse positions of images that the examples do not have."""
    numbered = numbered_images(count)
    odd = sorted(name for name in asked if (name == "image" and numbered) or (IMAGE_POSITION.fullmatch(name) and name not in numbered))
    if odd:
        raise InvalidInputError(
            f"expected positions of images among {', '.join(numbered) or 'image'}, as examples have {count} "
            f"image{'s' if numbered else ''}, found {', '.join(odd)}"
        )


def _group(name: str, roles: Mapping[str, bool]) -> str:
    """The group that saves a position: none for text tokens that are the same in every example."""
    if name.startswith("cell_"):
        return "cells"
    return ("tokens" if roles[name] else "") if name in roles else "means"


def _roles(layouts: Sequence[TokenLayout]) -> dict[str, bool]:
    """Role of a text token -> whether it follows the image or is of the prompt in some example, ordered by `ROLES`."""
    found: dict[str, bool] = {}
    for layout in {id(layout): layout for layout in layouts}.values():
        seen = layout.seen
        for role, token in layout.roles.items():
            found[role] = found.get(role, False) or token >= seen
    parts = {role: TOKEN_POSITION.fullmatch(role) for role in found}
    return {role: found[role] for role in sorted(found, key=lambda role: (ROLES.index(parts[role][1]), int(parts[role][2])))}  # type: ignore[index]


def _cell(name: str) -> tuple[int, ...]:
    return tuple(map(int, name.split("_")[1:]))


def _default_positions(
    settings: ExtractionSettings, asked: set[str], examples: Sequence[Example], layouts: Sequence[TokenLayout]
) -> tuple[str, ...]:
    placed, numbered = settings.condition != "patch-shuffle", numbered_images(_count_of(layouts))
    exists: dict[str, Callable[[], bool]] = {
        "final": lambda: True,
        **{name: lambda: True for name in numbered or ("image",)},
        **{name: lambda name=name: any(name in layout.spans for layout in layouts) for name in TEXT_POSITIONS},  # type: ignore[misc]
        "subject_box": lambda: placed and any(example.subject_box for example in examples),
        "object_box": lambda: placed and any(example.object_box for example in examples),
    }
    if "tokens" in asked:
        asked = asked | {"final"}
    for name in asked & exists.keys():
        if not exists[name]():
            why = (
                "no boxes were matched; set `boxes` to a COCO file"
                if name in BOX_POSITIONS
                else f"the prompt {settings.prompt!r} does not name it"
            )
            raise InvalidInputError(f"expected an example with position {name!r}, found none: {why}")
    return tuple(name for name in exists if name in asked or ("default" in asked and exists[name]()))


def vision_positions(positions: Sequence[str]) -> tuple[str, ...]:
    """Positions at which the vision tower is recorded: those that are made of image cells."""
    return ("image", *(name for name in BOX_POSITIONS if name in positions), *GRID_POSITIONS)
