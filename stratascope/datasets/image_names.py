"""Match file names in annotations with the examples' images."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import PurePosixPath

from stratascope.errors import InvalidInputError

_ADVICE = "write file_name with its folder, as in the examples"


class ImageNames:
    """Index of annotated file names, matched with images by path.

    The full path comes first. Otherwise one of the two must end in the other: `val2017/0.png` and `0.png` are the same image,
    `a/0.png` and `b/0.png` are not.
    """

    def __init__(self, files: Iterable[str], source: str) -> None:
        self._source = source
        self._file_of: dict[tuple[str, ...], str] = {}
        self._by_name: dict[str, list[tuple[str, ...]]] = defaultdict(list)
        for file in files:
            parts = path_parts(file)
            if parts in self._file_of:
                continue
            self._file_of[parts] = file
            self._by_name[parts[-1]].append(parts)

    def __len__(self) -> int:
        return len(self._file_of)

    def find(self, image: str) -> str | None:
        """File name that matches `image`; None if there is none.

        Raises
        ------
        InvalidInputError
            If several could.
        """
        parts = path_parts(image)
        if parts in self._file_of:
            return self._file_of[parts]
        ends = [(_common(parts, other), other) for other in self._by_name.get(parts[-1], ())]
        longest = max(ends, default=(0, ()))[0]
        found = [other for length, other in ends if length == longest and length]
        if len(found) > 1:
            raise InvalidInputError(
                f"{self._source}: expected one image that {image} can be, found {len(found)}: "
                f"{', '.join(self._file_of[other] for other in found[:4])}; name the image in the examples with its folder"
            )
        return self._file_of[found[0]] if found else None

    def find_all(self, images: Iterable[str]) -> dict[str, str]:
        """Match images with file names one to one, as image -> file name.

        Raises
        ------
        InvalidInputError
            If a file name could mean several images, or the other way round, or no image has one.
        """
        images = list(dict.fromkeys(images))
        claims: dict[str, list[str]] = defaultdict(list)
        for image in images:
            if (file := self.find(image)) is not None:
                claims[file].append(image)
        found: dict[str, str] = {}
        for file, claiming in claims.items():
            exact = [image for image in claiming if path_parts(image) == path_parts(file)]
            if not exact and len({path_parts(image) for image in claiming}) > 1:
                raise InvalidInputError(
                    f"{self._source}: expected one image that file_name {file} can be, found {len(claiming)}: "
                    f"{', '.join(claiming[:4])}; {_ADVICE}"
                )
            found |= dict.fromkeys(exact or claiming, file)
        if images and not found:
            raise InvalidInputError(
                f"{self._source}: expected annotations of the examples' images, found none of their {len(images):,} images (such as "
                f"{images[0]}) among {len(self):,} file names (such as {next(iter(self._file_of.values()), 'none')}); {_ADVICE}"
            )
        return found


def path_parts(name: str) -> tuple[str, ...]:
    """Folders and file name, from files of Windows too."""
    return PurePosixPath(name.replace("\\", "/")).parts or ("",)


def _common(a: tuple[str, ...], b: tuple[str, ...]) -> int:
    """Number of parts of the shorter path if the longer one ends in it, else 0."""
    short, long = sorted((a, b), key=len)
    return len(short) if long[len(long) - len(short) :] == short else 0
