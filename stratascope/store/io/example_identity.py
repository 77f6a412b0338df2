"""Identity of examples and images: by content and perceptual hash, or by name in stores without image hashes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stratascope.errors import InvalidInputError

if TYPE_CHECKING:
    from stratascope.store.io.reader import ActivationStore

IMAGE, IMAGE_HASH, PERCEPTUAL_HASH = "image", "image_sha256", "image_phash"
COMPARED = (IMAGE, IMAGE_HASH, "caption", "relation", "label")
"""Columns that must agree in two stores of the same examples, besides ids and order."""
HASHED_SIDE = 64
"""Pixels of a side of the grey picture that is hashed."""
_FREQUENCIES = 24
HASH_BITS = _FREQUENCIES**2
NEAR_BITS = 36
"""Most bits in which the hashes of near-duplicates differ, of 575."""
_CHUNK = 1024
_FEWEST_GREYS = 2.0
"""Standard deviation of the grey levels below which a picture is too plain to hash."""
_SHOWN = 60
"""Most characters of a value in a message."""


@dataclass(frozen=True)
class ImageGroups:
    """Examples of the same image, by the hash of the image file, and of near-duplicates, by perceptual hash."""

    labels: NDArray[np.str_]
    """(example,) the first name, in sorted order, of all names that hold the example's image or a near-duplicate."""
    names: int
    """Distinct image names."""
    unhashed: int
    """Names without a hash, which are grouped by name."""
    shared: int
    """Images that occur under more than one name."""
    shared_names: int
    """Names of those images."""
    near: int = 0
    """Images, different in content, that have a near-duplicate."""
    near_groups: int = 0
    """Groups that these form."""
    captions: tuple[int, int, int] = (0, 0, 0)
    """Captions that occur with several images, those of them that always have the same label, and examples of the latter."""

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
        if self.near:
            found.append(
                f"near-duplicate images: {self.near:,} images differ from another only by compression, size, brightness or mirroring "
                f"(perceptual hashes differ in at most {NEAR_BITS} of {HASH_BITS - 1} bits); they form {self.near_groups:,} "
                f"group{'s' if self.near_groups > 1 else ''}, each in one fold"
            )
        repeated, alike, examples = self.captions
        if alike:
            found.append(
                f"repeated captions: {repeated:,} captions occur with several images, {alike:,} of them always with the same label "
                f"({examples:,} of {len(self.labels):,} examples), which a probe can learn from the text; group by caption to exclude that"
            )
        if self.unhashed == self.names:
            found.append("images are grouped by name: the store holds no hashes of its images, so that duplicates are not detected")
        elif self.unhashed:
            found.append(f"{self.unhashed:,} of {self.names:,} images are grouped by name: the store holds no hash of them")
        return found


def further_images(examples: pd.DataFrame) -> Iterator[tuple[str, str, str]]:
    """Columns with name, hash and perceptual hash of the second image of an example, then of the third, and so on."""
    number = 2
    while f"image_{number}" in examples.columns and f"image_{number}_sha256" in examples.columns:
        yield f"image_{number}", f"image_{number}_sha256", f"image_{number}_phash"
        number += 1


def hashed_images(examples: pd.DataFrame, data: Any) -> set[tuple[str, str]]:
    """Name and SHA-256 of all images of examples and few-shot turns; without a hash, an empty text.

    Parameters
    ----------
    examples
        The table of examples.
    data
        `data` of the provenance.
    """
    columns, unhashed = [(IMAGE, IMAGE_HASH), *(each[:2] for each in further_images(examples))], [""] * len(examples)
    found = {pair for name, sha256 in columns for pair in zip(examples[name], examples.get(sha256, unhashed), strict=True)}
    return found | (set((data.get("shots") or {}).items()) if isinstance(data, dict) else set())


def image_groups(examples: pd.DataFrame) -> ImageGroups:
    """Group examples by the content of their images; near-duplicates, and all images of an example, are in one group.

    Parameters
    ----------
    examples
        Table with the column `image` and, where the store holds hashes, `image_sha256` and `image_phash`; further images of an example
        are in `image_2`, `image_2_sha256`, `image_2_phash`, and so on.
    """
    columns = [(IMAGE, IMAGE_HASH, PERCEPTUAL_HASH), *further_images(examples)]
    if len(columns) == 1:
        return _groups_of_images(examples)
    names = dict(zip(columns[0], zip(*columns, strict=True), strict=True))
    each = pd.DataFrame({one: np.concatenate([examples[name].to_numpy(object) for name in several]) for one, several in names.items()})
    found = _groups_of_images(each)
    together = pd.Series(_joined(found.labels.reshape(len(columns), -1)), index=examples.index)
    return replace(found, labels=together.to_numpy(dtype=str), captions=_repeated_captions(examples, together))


def _joined(labels: NDArray[np.str_]) -> NDArray[np.str_]:
    """(example,) first label of each set of examples that share one of their labels (image, example), directly or through others."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    known, number = np.unique(labels, return_inverse=True)  # sorted
    number = number.reshape(labels.shape)
    first, others = np.broadcast_to(number[:1], number[1:].shape).ravel(), number[1:].ravel()
    graph = coo_array((np.ones(len(first)), (first, others)), (len(known), len(known)))
    group = connected_components(graph, directed=False)[1]
    lowest = np.full(group.max() + 1, len(known))
    np.minimum.at(lowest, group, np.arange(len(known)))
    return np.asarray(known[lowest[group[number[0]]]])


def _groups_of_images(examples: pd.DataFrame) -> ImageGroups:
    """Groups of examples of one image each."""
    names = examples[IMAGE].astype(str)
    hashes, perceptual = (
        examples[column].fillna("").astype(str) if column in examples.columns else pd.Series("", index=examples.index)
        for column in (IMAGE_HASH, PERCEPTUAL_HASH)
    )
    # no hash contains a slash, so that a name never coincides with one
    content = hashes.where(hashes != "", "name/" + names)
    by_content = names.groupby(content, sort=False)
    counts = by_content.nunique()
    labels = by_content.transform("min")
    images = pd.DataFrame({"label": labels, "phash": perceptual}).drop_duplicates("label")
    group = pd.Series(near_duplicates(tuple(images["phash"])), index=images["label"])
    sizes = group.value_counts()
    together = labels.groupby(labels.map(group), sort=False).transform("min")
    return ImageGroups(
        labels=together.to_numpy(dtype=str),
        names=names.nunique(),
        unhashed=names[hashes == ""].nunique(),
        shared=int((counts > 1).sum()),
        shared_names=int(counts[counts > 1].sum()),
        near=int(sizes[sizes > 1].sum()),
        near_groups=int((sizes > 1).sum()),
        captions=_repeated_captions(examples, together),
    )


def _repeated_captions(examples: pd.DataFrame, images: pd.Series[str]) -> tuple[int, int, int]:
    if not {"caption", "label"} <= set(examples.columns) or (examples["label"] < 0).all():
        return 0, 0, 0
    by_caption = pd.DataFrame({"image": images, "label": examples["label"]}).groupby(examples["caption"].astype(str))
    several = by_caption["image"].nunique() > 1
    alike = several & (by_caption["label"].nunique() == 1)
    return int(several.sum()), int(alike.sum()), int(by_caption.size()[alike].sum())


def perceptual_hash(grey: NDArray[Any]) -> str:
    """Signs of the lowest frequencies of a picture's discrete cosine transform, as 144 hexadecimal digits; empty for a plain picture.

    Copies of an image that differ in compression, size, brightness or slight noise have nearly the same hash; the hash of a mirrored
    copy has the bits of odd horizontal frequencies inverted. A crop changes it.

    Parameters
    ----------
    grey
        (64, 64) grey levels from 0 to 255 of the picture, stretched to a square.
    """
    if np.std(grey) < _FEWEST_GREYS:
        return ""
    basis = _cosines()
    return np.packbits((basis @ np.asarray(grey, np.float64) @ basis.T > 0).ravel()).tobytes().hex()


@cache
def _cosines() -> NDArray[np.float64]:
    """(frequency, pixel) type II, without scale."""
    return np.cos(np.pi / HASHED_SIDE * np.outer(np.arange(_FREQUENCIES), np.arange(HASHED_SIDE) + 0.5))


@lru_cache(maxsize=8)
def near_duplicates(hashes: tuple[str, ...]) -> tuple[int, ...]:
    """Group number of each image: images whose perceptual hashes, or one's and that of the other's mirror image, are close.

    A third of the bits is compared first: two hashes that differ in more than `NEAR_BITS` of these do so in all.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    known = np.array([k for k, text in enumerate(hashes) if len(text) == HASH_BITS // 4], np.intp)
    pairs = [np.zeros((0, 2), np.intp)]
    if len(known):
        packed = np.frombuffer(bytes.fromhex("".join(hashes[k] for k in known)), np.uint8).reshape(len(known), -1)
        signs = np.unpackbits(packed, axis=1)[:, 1:] * np.float32(2) - 1  # without the mean
        mirrored = signs * np.where(np.arange(1, HASH_BITS) % _FREQUENCIES % 2, -1, 1).astype(np.float32)
        some = slice(None, None, 3)
        width = signs[:, some].shape[1]
        for start in range(0, len(known), _CHUNK):
            part = signs[start : start + _CHUNK]
            for other in (signs[start:], mirrored[start:]):
                first, second = np.nonzero(part[:, some] @ other[:, some].T >= width - 2 * NEAR_BITS)
                first, second = first[first < second], second[first < second]
                for at in range(0, len(first), _CHUNK):
                    here = slice(at, at + _CHUNK)
                    close = (part[first[here]] * other[second[here]]).sum(1) >= HASH_BITS - 1 - 2 * NEAR_BITS
                    pairs.append(start + np.stack([first[here], second[here]], 1)[close])
    found = known[np.concatenate(pairs)]
    graph = coo_array((np.ones(len(found)), (found[:, 0], found[:, 1])), (len(hashes), len(hashes)))
    return tuple(connected_components(graph, directed=False)[1].tolist())


def group_labels(examples: pd.DataFrame, column: str = IMAGE) -> NDArray[np.str_]:
    """(example,) group of each example: its image by content for the column `image`, else the value of the column."""
    return image_groups(examples).labels if column == IMAGE else examples[column].to_numpy(dtype=str)


def _further_compared(examples: pd.DataFrame) -> list[str]:
    """Columns of further images that must agree in two stores of the same examples."""
    return [name for columns in further_images(examples) for name in columns[:2]]


def example_digests(examples: pd.DataFrame) -> NDArray[np.str_]:
    """(example,) 16 hexadecimal digits over image, caption, relation and label of each example."""
    table = examples.reindex(columns=[*COMPARED, *_further_compared(examples)]).astype(object)
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
    for column in dict.fromkeys((*COMPARED, *_further_compared(own.examples), *_further_compared(other.examples), *also)):
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
