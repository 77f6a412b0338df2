"""Decode image files to upright 8-bit RGB; ambiguous pixel formats are refused."""

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
