"""Image files as a model is shown them: every pixel format and file format that Pillow opens is read rightly or refused by name."""

from __future__ import annotations

import os
import struct
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stratascope.errors import InvalidInputError
from stratascope.extract.plan.images import FORMATS, MOST_PIXELS, decode_image, inspect_images

REFUSED = {
    "BLP", "BUFR", "CUR", "DCX", "DDS", "EPS", "FITS", "FLI", "FPX", "FTEX", "GBR", "GRIB", "HDF5", "ICNS", "ICO", "IM", "IMT", "IPTC",
    "MCIDAS", "MIC", "MPEG", "MPO", "MSP", "PCD", "PIXAR", "PSD", "SPIDER", "SUN", "WAL", "WMF", "XBM", "XPM", "XVTHUMB",
}  # fmt: skip
"""Formats that Pillow opens and no photo comes in: refused. (MPO is opened as JPEG.)"""

LOSSY = {"JPEG": 14, "WEBP": 14, "AVIF": 14, "JPEG2000": 2, "GIF": 8}
"""Largest difference of a grey value that a format's own compression makes."""

MODES = ("1", "L", "LA", "La", "P", "PA", "I;16", "I;16B", "I;16L", "I;16N", "I", "F",
    "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "LAB")  # fmt: skip


WRITTEN_NOWHERE = {"La", "RGBa", "HSV", "I;16L", "I;16N"}
"""Modes that Pillow writes in no format that is read."""


def picture() -> np.ndarray:
    """(24, 32) uint8: a slope from black to white with a dark and a bright box."""
    grey = np.tile(np.linspace(0, 255, 32).round().astype(np.uint8), (24, 1))
    grey[4:10, 20:28], grey[14:20, 4:12] = 20, 230
    return grey


def in_mode(mode: str) -> Image.Image:
    """The picture with the full range of the mode."""
    grey = picture()
    if mode.startswith("I;16"):
        image = Image.fromarray(grey.astype(np.uint16) * 257)
        return image if image.mode == mode else image.convert("I").convert(mode) if mode == "I;16" else Image.frombytes(
            mode, image.size, (grey.astype(">u2" if mode.endswith("B") else "<u2") * 257).tobytes()
        )  # fmt: skip
    if mode == "I":
        return Image.fromarray(grey.astype(np.int32) * 257)
    if mode == "F":
        return Image.fromarray(grey.astype(np.float32) / 255)
    image = Image.fromarray(grey)
    if mode in ("1", "P"):
        return image.point(lambda v: 255 * (v > 127)).convert("1", dither=Image.Dither.NONE) if mode == "1" else image.convert("P")
    via = {"La": "LA", "RGBa": "RGBA", "PA": "P", "LAB": "RGB", "HSV": "RGB"}.get(mode)
    return (image.convert(via) if via else image).convert(mode)


def as_file(image: Image.Image, kind: str) -> bytes | None:
    """The picture in a file; None where Pillow does not write that mode in that format."""
    data = BytesIO()
    options = {"quality": 95} if kind in ("JPEG", "WEBP", "AVIF") else {}
    try:
        image.save(data, kind, **options)
    except (OSError, KeyError, ValueError, SystemError):
        return None
    return data.getvalue()


def test_every_format_that_pillow_opens_is_read_or_refused_on_purpose() -> None:
    Image.init()
    assert set(Image.OPEN) <= {*FORMATS, *REFUSED}, "decide on the new format, and list it"
    assert not set(FORMATS) & REFUSED


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_in_every_format_gives_the_same_picture_or_is_refused_by_its_mode(mode: str) -> None:
    """The oracle is the array that the files were made of."""
    done = []
    for kind in FORMATS:
        data = as_file(in_mode(mode), kind) if kind in Image.SAVE else None
        if data is None:
            continue
        with Image.open(BytesIO(data)) as opened:
            held, named = opened.mode, opened.format
        if mode[0] in "IF" and held[0] not in "IF":  # the writer has already cut it to 8 bits, in its own way
            continue
        done.append(kind)
        if held == "F" or (held == "I" and named != "PPM"):
            with pytest.raises(InvalidInputError, match=rf"mode {held}\) have no known range; save the image with 8 or 16 bits"):
                decode_image(data)
            continue
        found = np.asarray(decode_image(data).image, int)
        expected = np.where(picture() > 127, 255, 0) if mode == "1" else picture().astype(int)
        tolerance = max(LOSSY.get(kind, 0), 3 if mode in ("LAB", "CMYK", "YCbCr", "HSV") else 1)
        assert np.abs(found - expected[..., None]).max() <= tolerance, kind
    assert done or mode in WRITTEN_NOWHERE


def test_the_same_picture_with_8_and_with_16_bits_is_the_same_to_the_last_bit() -> None:
    eight = np.asarray(decode_image(as_file(in_mode("L"), "PNG")).image)
    for mode, kind in (("I;16", "PNG"), ("I;16", "TIFF"), ("I;16B", "TIFF"), ("I;16", "PPM"), ("RGB", "PNG")):
        assert np.array_equal(np.asarray(decode_image(as_file(in_mode(mode), kind)).image), eight), (mode, kind)


def tiff(values: np.ndarray, bits: int, photometric: int) -> bytes:
    """A TIFF of one strip, written by hand: what Pillow writes has no white-is-zero and no 12 bits."""
    if bits == 12:
        flat = values.reshape(-1, 2)
        strip = np.stack([flat[:, 0] >> 4, (flat[:, 0] & 15) << 4 | flat[:, 1] >> 8, flat[:, 1] & 255], 1).astype(np.uint8).tobytes()
    else:
        strip = values.astype("<u2").tobytes()
    height, width = values.shape
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1), (278, height), (279, len(strip))]
    directory = b"".join(struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, 1, value) for tag, value in tags)
    return struct.pack("<2sHI", b"II", 42, 8 + len(strip)) + strip + struct.pack("<H", len(tags)) + directory + b"\0\0\0\0"


@pytest.mark.parametrize(("bits", "photometric"), [(16, 1), (16, 0), (12, 1)])
def test_tiffs_of_12_bits_and_with_white_as_zero(bits: int, photometric: int) -> None:
    most = 2**bits - 1
    values = (picture().astype(np.uint32) * most / 255).round().astype(np.uint32)
    data = tiff(values if photometric else most - values, bits, photometric)
    assert np.abs(np.asarray(decode_image(data).image, int)[..., 0] - picture()).max() <= 1


def test_transparency_is_laid_on_white() -> None:
    """As qwen-vl-utils does; transformers' load_image drops it."""
    clear = np.zeros((20, 30, 4), np.uint8)
    clear[5:10, 5:10] = (10, 20, 30, 255)
    found = decode_image(as_file(Image.fromarray(clear), "PNG"))
    assert found.transparent
    assert (np.asarray(found.image)[0, 0] == 255).all()
    assert np.asarray(found.image)[7, 7].tolist() == [10, 20, 30]
    deep, data = Image.fromarray(np.full((20, 30), 40 * 257, np.uint16)), BytesIO()
    deep.save(data, "PNG", transparency=40 * 257)
    assert (np.asarray(decode_image(data.getvalue()).image) == 255).all()


def broken(reason: str) -> bytes:
    if reason == "HEIC":
        return b"\0\0\0\x18ftypheic" + bytes(40)
    if reason == "pixels":
        data = BytesIO()
        Image.new("1", (13_000, 13_000)).save(data, "PNG")
        return data.getvalue()
    if reason == "bomb":
        data = BytesIO()
        Image.new("1", (30_000, 10_000)).save(data, "PNG")
        return data.getvalue()
    if reason == "aspect":
        return as_file(Image.new("L", (2300, 10)), "PNG") or b""
    if reason == "eps":
        return b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n"
    return (as_file(Image.effect_noise((64, 64), 60), "PNG") or b"")[:900]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("reason", "said"),
    [
        ("HEIC", "HEIC is not read; convert the image to JPEG or PNG"),
        ("pixels", f"13000 x 13000 pixels, more than {MOST_PIXELS:,}"),
        ("bomb", f"more than {MOST_PIXELS:,} pixels"),
        ("aspect", "2300 x 10 pixels, an aspect ratio beyond 200"),
        ("eps", "not an image of a format that is read (AVIF, BMP,"),
        ("cut", "truncated"),
    ],
)
def test_what_is_no_image_is_refused_with_the_reason(reason: str, said: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        decode_image(broken(reason))
    assert said in str(caught.value)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes")
def test_named_pipes_devices_and_huge_files_are_not_read(tmp_path: Path) -> None:
    """A read of any of these would wait for ever, or fill the memory."""
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "device.png").symlink_to("/dev/zero")
    with (tmp_path / "huge.png").open("wb") as file:
        file.truncate(1 << 40)
    found = inspect_images(tmp_path, ["pipe.png", "folder.png", "device.png", "huge.png"], strict=False)
    reasons = {name: fact.problem.removeprefix(f"{tmp_path}{os.sep}") for name, fact in found.items()}
    assert reasons == {
        "pipe.png": "pipe.png is not a regular file but a named pipe",
        "folder.png": "folder.png is not a regular file but a folder",
        "device.png": "device.png is not a regular file but a device",
        "huge.png": "huge.png is larger than 256 MiB, the largest image file that is read",
    }
