"""Image files decoded to upright 8-bit RGB, as a model is shown them; refused where that would need a guess."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from io import BytesIO

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from stratascope.errors import InvalidInputError

FORMATS = (
    "AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PCX", "PNG", "PPM", "QOI", "SGI", "TGA", "TIFF", "WEBP",
)  # fmt: skip
"""Pillow's names of the formats that are read, JPEG with several pictures (MPO) among them; of several frames or pages, the first."""

MOST_PIXELS = 89_478_485
"""Largest image that is decoded, in pixels: where Pillow begins to suspect a decompression bomb."""

MOST_ASPECT = 200
"""Largest ratio of an image's sides; families' processors fail or show nothing beyond it."""

_HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


@dataclass(frozen=True)
class DecodedImage:
    """An image as the model is shown it, and what was done to it."""

    image: Image.Image
    """8-bit RGB, upright."""
    mode: str
    """Pillow's name of the file's pixel format."""
    orientation: int
    """The file's EXIF orientation, 1 to 8."""
    transparent: bool
    """Whether it has transparency, which is laid on white."""


def decode_image(data: bytes) -> DecodedImage:
    """Decode an image file to 8-bit RGB, upright as its EXIF orientation says, transparency laid on white.

    16-bit grey is divided by 256, as Pillow does with 16-bit colour. 32-bit and floating-point pixels have no known range and are
    refused.

    Raises
    ------
    InvalidInputError
        Saying why the image is not read: damaged, of another format or pixel format, too large, or too long for its width.
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
    """Of `FORMATS` those that this version of Pillow knows."""
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
    """Bits of a grey pixel of more than 8; None for the pixel formats that Pillow itself turns into 8-bit RGB."""
    if opened.mode == "F" or (opened.mode == "I" and opened.format != "PPM"):
        kind = "floating-point" if opened.mode == "F" else "32-bit"
        raise InvalidInputError(f"{kind} pixels (mode {opened.mode}) have no known range; save the image with 8 or 16 bits")
    if opened.mode != "I" and not opened.mode.startswith("I;16"):
        return None
    stated = opened.tag_v2.get(258) if opened.format == "TIFF" else None  # type: ignore[attr-defined]
    return int(stated[0]) if stated else 16


def _eight_bits(image: Image.Image, bits: int, inverted: bool) -> Image.Image:
    """Grey of `bits` bits as RGB; the value that is transparent, if any, as white."""
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
