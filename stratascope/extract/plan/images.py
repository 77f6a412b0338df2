"""Find, decode and check the images of examples, and apply conditions. Ambiguous pixel formats are refused. No torch."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from stratascope.datasets.boxes import Box
from stratascope.datasets.image_files import read_image_file
from stratascope.datasets.progress import progress_bar
from stratascope.errors import InvalidInputError
from stratascope.store.io.example_identity import HASHED_SIDE, perceptual_hash

FORMATS = (
    "AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PCX", "PNG", "PPM", "QOI", "SGI", "TGA", "TIFF", "WEBP",
)  # fmt: skip
"""Supported formats by Pillow's names, including JPEG with several pictures (MPO); only the first frame or page is read."""

MOST_PIXELS = 89_478_485
"""Largest image in pixels: the limit at which Pillow warns of a decompression bomb."""

MOST_ASPECT = 200
"""Largest aspect ratio; processors fail beyond it."""

_HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


@dataclass(frozen=True)
class DecodedImage:
    """A decoded image and properties of its file."""

    image: Image.Image
    """8-bit RGB, upright."""
    mode: str
    """Pillow's name of the file's pixel format."""
    orientation: int
    """The file's EXIF orientation, 1 to 8."""
    transparent: bool
    """Whether it has transparency, which becomes white."""


def decode_image(data: bytes) -> DecodedImage:
    """Decode an image file to 8-bit RGB, rotated by its EXIF orientation, with a white background.

    16-bit grey is divided by 256, like 16-bit colour in Pillow. 32-bit and floating-point pixels have no defined range and are refused.

    Raises
    ------
    InvalidInputError
        If the image is damaged, too large, too elongated, or of an unsupported format or pixel format.
    """
    try:
        with Image.open(BytesIO(data), formats=_known_formats()) as opened:
            return _decode(opened)
    except (InvalidInputError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise InvalidInputError(f"more than {MOST_PIXELS:,} pixels") from error
    except UnidentifiedImageError as error:
        raise InvalidInputError(_unknown_format(data)) from error
    except Exception as error:  # decoders of damaged files fail in many ways
        raise InvalidInputError(str(error) or type(error).__name__) from error


@cache
def _known_formats() -> tuple[str, ...]:
    """Those of `FORMATS` that this version of Pillow supports."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _decode(opened: Image.Image) -> DecodedImage:
    width, height = opened.size
    if width * height > MOST_PIXELS:
        raise InvalidInputError(f"{width} x {height} pixels, more than {MOST_PIXELS:,}")
    if max(width, height) > MOST_ASPECT * min(width, height):
        raise InvalidInputError(f"{width} x {height} pixels, an aspect ratio beyond {MOST_ASPECT}")
    mode, bits = opened.mode, _grey_bits(opened)
    inverted = opened.format == "TIFF" and bits is not None and opened.tag_v2.get(262) == 0  # type: ignore[attr-defined]
    orientation = opened.getexif().get(ExifTags.Base.Orientation, 1)
    upright = ImageOps.exif_transpose(opened)
    transparent = upright.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in upright.info
    if bits is not None:
        image = _eight_bits(upright, bits, inverted)
    elif transparent:
        rgba = upright.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    else:
        image = upright.convert("RGB")
    return DecodedImage(image, mode, orientation if orientation in range(1, 9) else 1, transparent)


def _grey_bits(opened: Image.Image) -> int | None:
    """Bits of a grey pixel with more than 8 bits; None for formats that Pillow converts to 8-bit RGB."""
    if opened.mode == "F" or (opened.mode == "I" and opened.format != "PPM"):
        kind = "floating-point" if opened.mode == "F" else "32-bit"
        raise InvalidInputError(f"{kind} pixels (mode {opened.mode}) have no known range; save the image with 8 or 16 bits")
    if opened.mode != "I" and not opened.mode.startswith("I;16"):
        return None
    stated = opened.tag_v2.get(258) if opened.format == "TIFF" else None  # type: ignore[attr-defined]
    return int(stated[0]) if stated else 16


def _eight_bits(image: Image.Image, bits: int, inverted: bool) -> Image.Image:
    """Convert grey with `bits` bits to RGB; a transparent value becomes white."""
    values = np.asarray(image)
    grey = np.clip(values >> (bits - 8), 0, 255).astype(np.uint8)
    if inverted:
        grey = 255 - grey
    if isinstance(clear := image.info.get("transparency"), int):
        grey = np.where(values == clear, np.uint8(255), grey)
    return Image.fromarray(grey).convert("RGB")


def _unknown_format(data: bytes) -> str:
    if data[4:8] == b"ftyp" and data[8:12] in _HEIC:
        return "HEIC is not read; convert the image to JPEG or PNG"
    return f"not an image of a format that is read ({', '.join(FORMATS)})"


CONDITIONS = ("original", "blank", "mirror", "shuffled-image", "patch-shuffle")
"""Changes to images: none, mean colour, flipped left-right, exchanged between examples, image tokens permuted before the decoder."""

PLACEHOLDER_SIZE = (56, 56)
"""Assumed width and height of an unreadable image, whose examples are saved as failed."""

_SHOWN = 5


@dataclass(frozen=True)
class ImageFacts:
    """Size in pixels and hash of an image file."""

    width: int
    height: int
    sha256: str
    problem: str = ""
    """Why it is unusable; its size is then `PLACEHOLDER_SIZE`."""
    orientation: int = 1
    """EXIF orientation of the file, 1 to 8; width and height are those of the upright image."""
    mode: str = "RGB"
    """Pillow's name of the file's pixel format."""
    transparent: bool = False
    """Whether it has transparency, which becomes white."""
    phash: str = ""
    """Perceptual hash, see `example_identity.perceptual_hash`."""


class ImageChangedError(InvalidInputError):
    """An image file changed after planning."""


class UndecodableImageError(InvalidInputError):
    """An image file exists and cannot be decoded."""

    def __init__(self, message: str, sha256: str) -> None:
        super().__init__(message)
        self.sha256 = sha256


def open_image(path: Path) -> Image.Image:
    """Open an image in RGB, rotated by its EXIF orientation, with a white background.

    Raises
    ------
    InvalidInputError
        If it cannot be decoded or is not a regular file.
    """
    return decoded_file(path)[1].image


def decoded_file(path: Path, sha256: str | None = None) -> tuple[str, DecodedImage]:
    """SHA-256 of an image file, and the image decoded from the same bytes.

    Parameters
    ----------
    path
        The file.
    sha256
        Expected hash; None: any.

    Raises
    ------
    ImageChangedError
        If the hash differs.
    InvalidInputError
        If the file cannot be decoded or is not a regular file.
    OSError
        If it is missing or cannot be read.
    """
    data = read_image_file(path)
    found = hashlib.sha256(data).hexdigest()
    if sha256 is not None and sha256 != found:
        raise ImageChangedError(
            f"{path} was replaced after planning: expected the file with SHA-256 {sha256[:12]}, found {found[:12]}; restore the planned "
            "image, or extract into a new store"
        )
    try:
        return found, decode_image(data)
    except InvalidInputError as error:
        raise UndecodableImageError(f"{path} cannot be decoded: {error}", found) from error


def inspect_images(folder: Path, names: Iterable[str], *, strict: bool = True, progress: bool = False) -> dict[str, ImageFacts]:
    """Decode every image once; returns size, hash and orientation by name.

    An unreadable image has the reason in `problem`, unless `strict`.

    Raises
    ------
    InvalidInputError
        Naming all missing images (and, if `strict`, all unreadable ones).
    """
    unique = list(dict.fromkeys(names))
    if not folder.is_dir():
        raise InvalidInputError(f"expected a folder of images, found none at {folder}; set `images`")
    problems: list[str] = []
    facts: dict[str, ImageFacts] = {}

    def inspect(name: str) -> ImageFacts | str:
        path = folder / name
        try:
            sha256, found = decoded_file(path)
        except FileNotFoundError:
            return f"{path} is missing"
        except OSError as error:
            return f"{path} cannot be read ({error})"
        except InvalidInputError as error:
            known = error.sha256 if isinstance(error, UndecodableImageError) else ""
            return str(error) if strict else ImageFacts(*PLACEHOLDER_SIZE, known, str(error))
        grey = found.image.convert("L").resize((HASHED_SIDE, HASHED_SIDE), Image.Resampling.LANCZOS)
        phash = perceptual_hash(np.asarray(grey))
        return ImageFacts(*found.image.size, sha256, "", found.orientation, found.mode, found.transparent, phash)

    with warnings.catch_warnings(), ThreadPoolExecutor(4) as pool:
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # larger images are refused by name
        found = pool.map(inspect, unique)
        for name, fact in zip(unique, progress_bar(found, "images", len(unique), unit="image", show=progress), strict=True):
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
    """Facts of images with a stated size, for a plan before they are downloaded."""
    return dict.fromkeys(names, ImageFacts(width, height, ""))


def images_digest(facts: Mapping[str, ImageFacts]) -> str:
    """One hash of all names and file hashes, for the provenance."""
    digest = hashlib.sha256()
    for name in sorted(facts):
        digest.update(f"{name}\0{facts[name].sha256}\n".encode())
    return digest.hexdigest()


def shown_images(names: Sequence[str], condition: str, seed: int) -> list[str]:
    """The image of each example: its own, or another one for `shuffled-image`.

    Images are exchanged along one random cycle, so that every image changes and all captions of an image get the same other image.

    Raises
    ------
    InvalidInputError
        If there is only one image.
    """
    if condition != "shuffled-image":
        return list(names)
    unique = sorted(set(names))
    if len(unique) < 2:
        raise InvalidInputError("expected at least two images for `condition` shuffled-image, found one")
    order = np.random.default_rng(seed).permutation(len(unique))
    following = {unique[a]: unique[b] for a, b in zip(order, np.roll(order, -1), strict=True)}
    return [following[name] for name in names]


def image_token_order(count: int, seed: int, example: int) -> np.ndarray:
    """(count,) order in which the decoder receives the image tokens of an example under `patch-shuffle`.

    Slot k receives token `order[k]`; the order is uniform, and depends on the seed and the number of the example alone.

    Examples
    --------
    >>> image_token_order(6, seed=0, example=3).tolist()
    [1, 3, 0, 5, 2, 4]
    """
    return np.random.default_rng([seed, example]).permutation(count)


def apply_condition(image: Image.Image, condition: str) -> Image.Image:
    """The image as the model sees it; InvalidInputError for an unknown condition."""
    if condition in ("original", "shuffled-image", "patch-shuffle"):  # exchanged by `shown_images`, or permuted after the vision tower
        return image
    if condition == "mirror":
        return ImageOps.mirror(image)
    if condition == "blank":
        mean = np.asarray(image).reshape(-1, 3).mean(0, dtype=np.float64).round().astype(int)
        return Image.new("RGB", image.size, tuple(int(v) for v in mean))
    raise InvalidInputError(f"expected a condition of {', '.join(CONDITIONS)}, found {condition!r}")


def thumbnail(image: Image.Image, size: tuple[int, int], view: Box | None = None) -> np.ndarray:
    """(height, width, 3) uint8: the part `view` of the image (None: all) stretched to `size`, (height, width)."""
    shape = (size[1], size[0])
    if view is not None and (min(view[:2]) < 0 or view[2] > image.width or view[3] > image.height):
        x0, y0, x1, y1 = (round(v) for v in view)
        image, view = image.crop((x0, y0, x1, y1)), None  # black beyond the image
    return np.asarray(image.resize(shape, Image.Resampling.LANCZOS, box=view), np.uint8)
