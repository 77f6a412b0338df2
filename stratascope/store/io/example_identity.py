"""Identity of examples and images: by content, or by name in stores without image hashes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stratascope.errors import InvalidInputError

if TYPE_CHECKING:
    from stratascope.store.io.reader import ActivationStore

IMAGE, IMAGE_HASH = "image", "image_sha256"
COMPARED = (IMAGE, IMAGE_HASH, "caption", "relation", "label")
"""Columns that must agree in two stores of the same examples, besides ids and order."""
_SHOWN = 60
"""Most characters of a value in a message."""


@dataclass(frozen=True)
class ImageGroups:
    """Examples of the same image, by the hash of the image file."""

    labels: NDArray[np.str_]
    """(example,) the first name, in sorted order, of all names that hold the example's image."""
    names: int
    """Distinct image names."""
    unhashed: int
    """Names without a hash, which are grouped by name."""
    shared: int
    """Images that occur under more than one name."""
    shared_names: int
    """Names of those images."""

    @property
    def extra_names(self) -> int:
        """Number of duplicate names."""
        return self.shared_names - self.shared

    @property
    def by(self) -> str:
        """`image content`, or `image name` if some image has no hash."""
        return "image name" if self.unhashed else "image content"

    def lines(self) -> list[str]:
        """Sentences about duplicate images and images without hashes; empty if there are none."""
        found = []
        if self.shared:
            found.append(
                f"duplicate images: {self.shared:,} of {self.names - self.extra_names:,} images occur under {self.shared_names:,} names; "
                "all examples of an image stay in one fold"
            )
        if self.unhashed == self.names:
            found.append("images are grouped by name: the store holds no hashes of its images, so that duplicates are not detected")
        elif self.unhashed:
            found.append(f"{self.unhashed:,} of {self.names:,} images are grouped by name: the store holds no hash of them")
        return found


def image_groups(examples: pd.DataFrame) -> ImageGroups:
    """Group examples by the content of their images.

    Parameters
    ----------
    examples
        Table with the column `image` and, where the store holds hashes, `image_sha256`.
    """
    names = examples[IMAGE].astype(str)
    hashes = examples[IMAGE_HASH].fillna("").astype(str) if IMAGE_HASH in examples.columns else pd.Series("", index=examples.index)
    # no hash contains a slash, so that a name never coincides with one
    content = hashes.where(hashes != "", "name/" + names)
    by_content = names.groupby(content, sort=False)
    counts = by_content.nunique()
    return ImageGroups(
        labels=by_content.transform("min").to_numpy(dtype=str),
        names=names.nunique(),
        unhashed=names[hashes == ""].nunique(),
        shared=int((counts > 1).sum()),
        shared_names=int(counts[counts > 1].sum()),
    )


def group_labels(examples: pd.DataFrame, column: str = IMAGE) -> NDArray[np.str_]:
    """(example,) group of each example: its image by content for the column `image`, else the value of the column."""
    return image_groups(examples).labels if column == IMAGE else examples[column].to_numpy(dtype=str)


def example_digests(examples: pd.DataFrame) -> NDArray[np.str_]:
    """(example,) 16 hexadecimal digits over image, caption, relation and label of each example."""
    table = examples.reindex(columns=list(COMPARED)).astype(object)
    rows = table.where(table.notna(), None).to_numpy().tolist()
    return np.array([hashlib.sha256(json.dumps(row, default=str).encode()).hexdigest()[:16] for row in rows], dtype=str)


def refuse_other_examples(own: ActivationStore, other: ActivationStore, called: str, also: Sequence[str] = ()) -> None:
    """Refuse a second store with other examples, or in another order.

    Parameters
    ----------
    own, other
        The two stores.
    called
        What the message calls the second store.
    also
        Columns to compare besides `COMPARED`, where both stores hold them.

    Raises
    ------
    InvalidInputError
        The ids differ, or an example differs in its image, caption, relation, label or another column; the first such id is named.
    """
    ids, theirs = (store.examples["id"].to_numpy(dtype=str) for store in (own, other))
    again = "extract the same examples again, with blank images or untrained weights"
    if not np.array_equal(ids, theirs):
        shared = len(np.intersect1d(theirs, ids))
        order = ", in another order" if shared == len(ids) == len(theirs) else ""
        raise InvalidInputError(
            f"expected {called} of the {len(ids):,} examples of {own.name}, found {len(theirs):,} in {other.name}, "
            f"{shared:,} of them the same{order}; {again}"
        )
    for column in dict.fromkeys((*COMPARED, *also)):
        if column not in own.examples.columns or column not in other.examples.columns:
            continue
        mine, there = own.examples[column], other.examples[column]
        unlike = np.flatnonzero(~((mine == there) | (mine.isna() & there.isna())).to_numpy(dtype=bool))
        if len(unlike):
            first = unlike[0]
            raise InvalidInputError(
                f"expected {called} of the same examples as {own.name}, found another {column} in {other.name} for {len(unlike):,} of "
                f"{len(ids):,} ids, first at id {str(ids[first])!r}: {_shown(mine.iloc[first])} in {own.name}, "
                f"{_shown(there.iloc[first])} in {other.name}; {again}"
            )


def _shown(value: Any) -> str:
    text = repr(value.item() if isinstance(value, np.generic) else value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
