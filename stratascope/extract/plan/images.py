"""Images of examples: found, checked, conditioned (no torch)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm.auto import tqdm

from stratascope.datasets.boxes import Box
from stratascope.errors import InvalidInputError

CONDITIONS = ("original", "blank", "mirror", "shuffled-image")
"""What may be done to an image before extraction: nothing; replaced by its mean colour; flipped left-right; exchanged."""

UNDECODABLE = (OSError, UnidentifiedImageError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)
"""What decoding a damaged or foreign file raises."""

STAND_IN = (56, 56)
"""Width and height that an image which cannot be decoded is planned with; its examples are recorded as failed."""

_SHOWN = 5


@dataclass(frozen=True)
class ImageFacts:
    """Size in pixels and hash of an image file."""

    width: int
    height: int
    sha256: str
    problem: str = ""
    """Why it cannot be decoded; its size is then a stand-in."""


def open_image(path: Path) -> Image.Image:
    """The whole image in RGB, upright as its EXIF orientation says, transparency laid on white."""
    return _decode(path.read_bytes())


def _decode(data: bytes) -> Image.Image:
    with Image.open(BytesIO(data)) as opened:
        upright = ImageOps.exif_transpose(opened)
        if upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info:
            rgba = upright.convert("RGBA")
            ground = Image.new("RGBA", rgba.size, "white")
            return Image.alpha_composite(ground, rgba).convert("RGB")
        return upright.convert("RGB")


def inspect_images(folder: Path, names: Iterable[str], *, strict: bool = True, progress: bool = False) -> dict[str, ImageFacts]:
    """Decode every image once: its size and hash by name.

    An image that is there but cannot be decoded has its reason in `problem`, unless `strict`.

    Raises
    ------
    InvalidInputError
        Naming the images that are missing (or, if `strict`, cannot be decoded), all at once.
    """
    unique = list(dict.fromkeys(names))
    if not folder.is_dir():
        raise InvalidInputError(f"expected a folder of images, found none at {folder}; pass --images DIR")
    problems: list[str] = []
    facts: dict[str, ImageFacts] = {}

    def inspect(name: str) -> ImageFacts | str:
        path = folder / name
        try:
            data = path.read_bytes()
        except OSError as error:
            return f"{path} is missing" if isinstance(error, FileNotFoundError) else f"{path} cannot be read ({error})"
        try:
            image = _decode(data)
        except UNDECODABLE as error:
            reason = f"{path} cannot be decoded ({error})"
            return reason if strict else ImageFacts(*STAND_IN, hashlib.sha256(data).hexdigest(), reason)
        return ImageFacts(image.width, image.height, hashlib.sha256(data).hexdigest())

    with ThreadPoolExecutor(4) as pool:
        found = pool.map(inspect, unique)
        for name, fact in zip(unique, tqdm(found, "images", len(unique), disable=not progress, unit="image", leave=False), strict=True):
            if isinstance(fact, str):
                problems.append(fact)
            else:
                facts[name] = fact
    if problems:
        more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise InvalidInputError(
            f"expected {len(unique)} readable images, found {len(problems)} that are not: " + "; ".join(problems[:_SHOWN]) + more
        )
    return facts


def stated_images(names: Iterable[str], width: int, height: int) -> dict[str, ImageFacts]:
    """Facts for images that are absent, all of one stated size, so that a plan can be made before they are fetched."""
    return {name: ImageFacts(width, height, "") for name in names}


def images_digest(facts: Mapping[str, ImageFacts]) -> str:
    """One hash over all names and file hashes, for provenance."""
    digest = hashlib.sha256()
    for name in sorted(facts):
        digest.update(f"{name}\0{facts[name].sha256}\n".encode())
    return digest.hexdigest()


def shown_images(names: Sequence[str], condition: str, seed: int) -> list[str]:
    """The image that each example is shown: its own, or, for `shuffled-image`, that of another image's examples.

    Images are exchanged along one random cycle through all of them, so that none keeps its own and all captions of an image
    are shown the same other one.

    Raises
    ------
    InvalidInputError
        If there is only one image to exchange.
    """
    if condition != "shuffled-image":
        return list(names)
    unique = sorted(set(names))
    if len(unique) < 2:
        raise InvalidInputError("expected at least two images for --condition shuffled-image, found one")
    order = np.random.default_rng(seed).permutation(len(unique))
    following = {unique[a]: unique[b] for a, b in zip(order, np.roll(order, -1), strict=True)}
    return [following[name] for name in names]


def apply_condition(image: Image.Image, condition: str) -> Image.Image:
    """The image as the model is shown it; InvalidInputError where there is no such condition."""
    if condition in ("original", "shuffled-image"):  # the exchange was made when the image was chosen
        return image
    if condition == "mirror":
        return ImageOps.mirror(image)
    if condition == "blank":
        mean = np.asarray(image, np.float64).reshape(-1, 3).mean(0).round().astype(int)
        return Image.new("RGB", image.size, tuple(int(v) for v in mean))
    raise InvalidInputError(f"expected a condition of {', '.join(CONDITIONS)}, found {condition!r}")


def thumbnail(image: Image.Image, size: tuple[int, int], view: Box | None = None) -> np.ndarray:
    """(height, width, 3) uint8: what lies in `view` (None: the image) stretched to `size`, (height, width); viewers restore its shape."""
    shape = (size[1], size[0])
    if view is not None and (min(view[:2]) < 0 or view[2] > image.width or view[3] > image.height):
        x0, y0, x1, y1 = (round(v) for v in view)
        image, view = image.crop((x0, y0, x1, y1)), None  # black beyond the image
    return np.asarray(image.resize(shape, Image.Resampling.LANCZOS, box=view), np.uint8)
