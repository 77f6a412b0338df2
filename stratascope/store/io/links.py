"""Symbolic links in a store's folder: never followed by writers, refused by readers unless allowed."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from stratascope.errors import UnreadError

FOLLOW_VARIABLE = "STRATASCOPE_FOLLOW_LINKS"
"""Environment variable that lets readers follow symbolic links when it is 1."""


class LinkError(UnreadError):
    """A symbolic link, named pipe or device in a store's folder."""


class StoreFolder:
    """Paths in the folder of a store, checked for symbolic links before they are used.

    The folder itself may be reached through a link.

    Parameters
    ----------
    root
        Folder of the store.
    follow
        Whether links are followed; by default only if the environment variable STRATASCOPE_FOLLOW_LINKS is 1.
    """

    def __init__(self, root: Path, *, follow: bool | None = None) -> None:
        self.root = root
        self._follow = os.environ.get(FOLLOW_VARIABLE) == "1" if follow is None else follow
        self._checked: set[str] = {""}

    def path(self, key: str) -> Path:
        """Path of a file to read.

        Raises
        ------
        LinkError
            If the file or a folder above it is a symbolic link, or the file is neither a regular file nor a folder.
        """
        path = self.root / key
        folder = key.rpartition("/")[0]
        if not self._follow and folder not in self._checked:
            _check_folders(self.root, folder, "read")
            self._checked.add(folder)
        try:
            mode = (path.stat if self._follow else path.lstat)().st_mode
        except (OSError, ValueError):  # reading says what is wrong, or that there is no such file
            return path
        if stat.S_ISLNK(mode):
            raise _link(self.root, key, "read")
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise LinkError(f"{self.root}: expected a regular file, found a named pipe or a device: {key}; remove it, or fetch it again")
        return path


def own_path(root: Path, key: str) -> Path:
    """Path of a file to write, lock or remove.

    Raises
    ------
    LinkError
        If the file or a folder above it is a symbolic link.
    """
    _check_folders(root, key, "write")
    return root / key


def check_no_links(root: Path) -> None:
    """Refuse a store's folder that contains a symbolic link; LinkError names the first."""
    for folder, folders, files in os.walk(root):
        for name in sorted((*folders, *files)):
            path = Path(folder, name)
            if path.is_symlink():
                raise _link(root, path.relative_to(root).as_posix(), "write")


def _check_folders(root: Path, key: str, purpose: str) -> None:
    path = root
    for i, part in enumerate(parts := [p for p in key.split("/") if p]):
        path = path / part
        if path.is_symlink():
            raise _link(root, "/".join(parts[: i + 1]), purpose)


def _link(root: Path, key: str, purpose: str) -> LinkError:
    advice = f"; to read it where it leads, set {FOLLOW_VARIABLE}=1" if purpose == "read" else "; nothing was changed"
    return LinkError(
        f"{root}: expected files and folders of the store's own, found a symbolic link: {key}{advice}; "
        "a copy made with `cp -rL` holds files instead of links"
    )
