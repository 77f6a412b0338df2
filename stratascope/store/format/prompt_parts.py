"""Parts of the prompt, roles of text tokens, groups of image cells and gold boxes, for positions, attention shares and knockouts."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stratascope.errors import InvalidInputError, NotRecordedError
from stratascope.store.format.layout import StoreLayout

PARTS = ("system", "image", "subject", "relation", "object", "caption_rest", "template")
"""A partition of the tokens: `image` takes in `image_tiles`, the caption without its three parts is `caption_rest`, what is in no span is
`template`."""

JOINED = ("caption", "prompt")
"""Whole spans, which take in several of `PARTS`."""

READERS = (*PARTS, *JOINED)
"""Groups of tokens for which a knockout can mask a target."""

MEANS = ("subject", "relation", "object", "caption", "prompt")
"""Spans whose mean is a position, such as `caption_mean`."""

ROLES = (
    "start", "system", "after_system", "after_image", "prompt", "caption", "subject", "after_subject", "relation", "after_relation",
    "object", "after_object", "after_caption", "after_prompt",
)  # fmt: skip
"""Roles of text tokens in the order in which prompts usually have them; see `token_roles`."""

TOKEN_POSITION = re.compile(rf"({'|'.join(ROLES)})_(\d+)")
"""Name of the position of one text token, such as `subject_0` or `after_caption_2`."""
CELL_POSITION = re.compile(r"cell_(\d+)_(\d+)")
"""Name of the position of a group of image cells, see `grouped_cells`."""

BOX_ROUNDING = 1e-6
"""Share of the image's side by which a box may reach outside."""

IMAGE_POSITION = re.compile(r"image_([1-9]\d*)")
"""Name of the position and the span of one of several images, such as `image_1`; `image` is then the span of all."""

MOST_GROUPS = 6
"""Most rows, and most columns, of groups of image cells."""


def token_parts(spans: Mapping[str, NDArray[Any]], n_tokens: NDArray[Any], longest: int) -> NDArray[np.int8]:
    """Assign each token to one of `PARTS`.

    Parameters
    ----------
    spans
        Name -> (example, 2) half-open intervals, -1 where absent.
    n_tokens
        (example,).
    longest
        Length of the padded token axis.

    Returns
    -------
    numpy.ndarray
        (example, token) int8 index into `PARTS`, -1 beyond an example's own tokens.
    """
    token = np.arange(longest)[None]
    parts = np.full((len(n_tokens), longest), PARTS.index("template"), np.int8)
    for part, span in (
        ("system", "system"),
        ("image", "image"),
        ("image", "image_tiles"),
        ("caption_rest", "caption"),
        *((p, p) for p in ("subject", "relation", "object")),
    ):
        if span in spans:
            inside = (token >= spans[span][:, :1]) & (token < spans[span][:, 1:])
            parts[inside] = PARTS.index(part)
    parts[token >= n_tokens[:, None]] = -1
    return parts


class Prompts(Protocol):
    """The prompts of a store: what `parts_of` needs of an `ActivationStore`."""

    @property
    def layout(self) -> StoreLayout: ...

    @property
    def spans(self) -> Mapping[str, NDArray[np.int32]]: ...

    @property
    def n_tokens(self) -> NDArray[np.int32]: ...


def parts_of(store: Prompts, examples: NDArray[np.int64]) -> NDArray[np.int8]:
    """(example, token) index into `PARTS` of each prompt token of some examples; -1 beyond the prompt."""
    spans = {name: span[examples] for name, span in store.spans.items()}
    return token_parts(spans, store.n_tokens[examples], store.layout.tokens)


def token_roles(spans: Mapping[str, Sequence[int]], length: int) -> dict[str, int]:
    """Role -> index of each text token but the final one, which is the position `final`.

    A token of subject, relation or object is `subject_0`, `subject_1`, ... from the start of the span. Any other token is named after what
    ends or begins before it: `after_image_0` is the first token after the image, `prompt_0` and `caption_0` the first of prompt and
    caption, `after_subject_0` the first after the subject; `start_0` is the first of all if no span begins there. Tokens with the same role
    stand in the same place of the template in every example. Image tokens have no role.

    Parameters
    ----------
    spans
        Name -> [start, stop) of the spans that the prompt has.
    length
        Number of tokens of the prompt.

    Examples
    --------
    >>> token_roles({"image": (1, 5), "prompt": (6, 10), "caption": (7, 10), "subject": (8, 9), "final": (11, 12)}, 12)
    {'start_0': 0, 'after_image_0': 5, 'prompt_0': 6, 'caption_0': 7, 'subject_0': 8, 'after_subject_0': 9, 'after_prompt_0': 10}
    """
    image = [spans[name] for name in ("image", "image_tiles") if name in spans]
    known = {name: spans[name] for name in ("system", "prompt", "caption", "subject", "relation", "object") if name in spans}
    begins = dict.fromkeys(range(length), "")
    # later assignments win: the end of an outer span over that of an inner one, a beginning over an end, an inner beginning over an outer
    for name in ("subject", "relation", "object", "caption", "prompt", "system"):
        if name in known:
            begins[known[name][1]] = f"after_{name}"
    if image:
        begins[max(stop for _, stop in image)] = "after_image"
    for name in ("system", "prompt", "caption"):
        if name in known:
            begins[known[name][0]] = name
    inside = {t: name for name in ("subject", "relation", "object") if name in known for t in range(*known[name])}
    roles: dict[str, int] = {}
    counts: Counter[str] = Counter()
    here = "start"
    for t in range(length - 1):
        here = begins[t] or here
        if any(start <= t < stop for start, stop in image):
            continue
        role = inside.get(t, here)
        roles[f"{role}_{counts[role]}"] = t
        counts[role] += 1
    return roles


def is_mean(position: str) -> bool:
    """Whether a position is a mean over several tokens."""
    whole = position in ("image", "subject_box", "object_box") or IMAGE_POSITION.fullmatch(position)
    return bool(whole) or position.endswith("_mean") or position.startswith("cell_")


@lru_cache(maxsize=256)
def grouped_cells(rows: int, columns: int) -> Mapping[str, NDArray[np.intp]]:
    """`cell_ROW_COLUMN` -> raster indices of the cells of each group, row by row.

    Row r of an image of R rows belongs to group r * groups // R, groups being the smaller of R and `MOST_GROUPS`; columns likewise.
    """
    row, column = np.divmod(np.arange(rows * columns), columns)
    down, across = min(rows, MOST_GROUPS), min(columns, MOST_GROUPS)
    group = row * down // rows * across + column * across // columns
    return {f"cell_{k // across}_{k % across}": np.flatnonzero(group == k) for k in range(down * across)}


def numbered_images(count: int) -> tuple[str, ...]:
    """Names of the positions of several images of an example; none for a single one.

    >>> numbered_images(2), numbered_images(1)
    (('image_1', 'image_2'), ())
    """
    return tuple(f"image_{number}" for number in range(1, count + 1)) if count > 1 else ()


class BoxedExamples(Protocol):
    """The examples of a store: what `shown_boxes` needs of an `ActivationStore`."""

    provenance: dict[str, Any]

    @property
    def examples(self) -> pd.DataFrame: ...


def shown_boxes(store: BoxedExamples) -> NDArray[np.float64]:
    """(example, subject or object, side) gold boxes as shares of width and height; NaN where unknown.

    With the condition `mirror` boxes are flipped like the image.

    Raises
    ------
    NotRecordedError
        If the store holds no boxes.
    InvalidInputError
        If a box reaches outside its image, as with annotations of another image size; names the example.
    """
    table = store.examples
    needed = [f"{who}_{side}" for who in ("subject", "object") for side in ("x0", "y0", "x1", "y1")]
    absent = [name for name in needed if name not in table.columns]
    if absent or not np.isfinite(numbers := _numbers(table, needed)).any():
        raise NotRecordedError("expected gold boxes of subject and object in the store, found none; extract with `boxes` (COCO instances)")
    size = _numbers(table, ["image_width", "image_height", "image_width", "image_height"])
    boxes = numbers.reshape(-1, 2, 4) / size[:, None]
    beyond = np.flatnonzero(((boxes < -BOX_ROUNDING) | (boxes > 1 + BOX_ROUNDING)).any((1, 2)))
    if len(beyond):
        row = table.iloc[beyond[0]]
        raise InvalidInputError(
            f"expected boxes within their images, found {len(beyond):,} examples with a box outside, first {row['id']} with "
            f"{row['image']} of {size[beyond[0], 0]:g} x {size[beyond[0], 1]:g} pixels: boxes were annotated on images of another size; "
            "extract again"
        )
    if store.provenance.get("condition") == "mirror":
        boxes = np.stack([1 - boxes[..., 2], boxes[..., 1], 1 - boxes[..., 0], boxes[..., 3]], -1)
    return np.asarray(boxes)


def _numbers(table: pd.DataFrame, columns: list[str]) -> NDArray[np.float64]:
    return np.stack([pd.to_numeric(table[name], errors="coerce").to_numpy(float) for name in columns], -1)
