"""Finished stages of a demo folder: their files, inputs and digests."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import stratascope
from stratascope.errors import InvalidInputError
from stratascope.store.io.durable import write_file

NAME = "demo.json"
"""File with the list of stages, in the demo's folder."""
LAYERS = "layers"
"""Folder with the cache of finished layers; not part of the results."""
PIECES = ("scenes", "original.zarr", "blank.zarr", "results")


class Stages:
    """Finished stages of one folder; a stage is repeated if its files or its inputs changed."""

    def __init__(self, out: Path, settings: Mapping[str, int]) -> None:
        """Read the stages at `out` of a demo with these settings.

        Raises
        ------
        InvalidInputError
            If the folder has other content, or was filled with other settings.
        """
        self.out, self._visited = out, set[str]()
        known: dict[str, Any] = {}
        try:
            known = json.loads((out / NAME).read_text("utf-8"))
            found, held = dict(known["settings"]), {name: _stage(stage) for name, stage in known["stages"].items()}
        except FileNotFoundError:
            found, held = dict(settings), {}
            if there := [name for name in PIECES if (out / name).exists()]:
                raise InvalidInputError(
                    f"{out}: expected a new folder or a demo folder, found {', '.join(there)} without {NAME}; choose another folder, or "
                    "remove them"
                ) from None
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InvalidInputError(f"{out / NAME}: expected the stages of a demo, found other content; remove {out}") from error
        if found != settings:
            asked, was = (", ".join(f"{name} {value}" for name, value in some.items()) for some in (settings, found))
            raise InvalidInputError(f"{out}: expected the settings of this folder ({was}), found {asked}; choose another folder")
        self.settings, self._held = dict(settings), held

    def kept(self, name: str, inputs: Any) -> bool:
        """Whether a stage is finished with the same inputs and version, and its files are unchanged."""
        self._visited.add(name)
        held = self._held.get(name)
        if held is None or held["of"] != _plain(inputs):
            return False
        files = {self.out / file: expected for file, expected in held["files"].items()}
        return all(path.is_file() and digest(path) == expected for path, expected in files.items())

    def make(self, name: str, inputs: Any, folder: Path, make: Callable[[], object]) -> None:
        """Run a stage that writes files to `folder`, unless it is kept.

        Files of its earlier run are removed first.
        """
        if self.kept(name, inputs):
            return
        self._remove(name)
        folder.mkdir(parents=True, exist_ok=True)
        before = _state(folder)
        make()
        made = sorted(path for path, state in _state(folder).items() if before.get(path) != state)
        self._held[name] = {"of": _plain(inputs), "files": {path.relative_to(self.out).as_posix(): digest(path) for path in made}}
        self._write()

    def noted(self, name: str) -> Any:
        """The value of a stage from `note`; None if there is none."""
        return self._held[name]["of"][1] if name in self._held else None

    def note(self, name: str, value: Any) -> None:
        """Keep a value of a finished stage that needs no digests, such as the fingerprint of a store."""
        self._visited.add(name)
        if self.noted(name) != value:
            self._held[name] = {"of": _plain(value), "files": {}}
            self._write()

    def leave(self, folder: Path) -> None:
        """Forget the stages with files in a folder that was moved."""
        inside = f"{folder.relative_to(self.out).as_posix()}/"
        self._held = {name: held for name, held in self._held.items() if not any(file.startswith(inside) for file in held["files"])}
        self._write()

    def finish(self) -> None:
        """Remove the files of stages that this version does not have."""
        for name in [name for name in self._held if name not in self._visited]:
            self._remove(name)
        self._write()

    def _remove(self, name: str) -> None:
        held = self._held.pop(name, None)
        if held is not None:
            for file in held["files"]:
                (self.out / file).unlink(missing_ok=True)
            self._write()

    def _write(self) -> None:
        text = json.dumps({"settings": self.settings, "stages": self._held}, indent=1)
        write_file(self.out / NAME, [text.encode()])


def _stage(held: Mapping[str, Any]) -> dict[str, Any]:
    """Parse a stage of the list; ValueError if a file is outside the folder."""
    files = {str(file): str(expected) for file, expected in held["files"].items()}
    if any(Path(file).is_absolute() or ".." in Path(file).parts for file in files):
        raise ValueError("a file outside the folder")
    version, inputs = held["of"]
    return {"of": [version, inputs], "files": files}


def _plain(inputs: Any) -> list[Any]:
    """Inputs of a stage and the version, as in the list of stages."""
    return [stratascope.__version__, json.loads(json.dumps(inputs))]


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _state(folder: Path) -> dict[Path, tuple[int, int]]:
    """Files of a folder with modification time and inode, which change when a file is rewritten."""
    files = (path for path in folder.rglob("*") if path.is_file() and LAYERS not in path.relative_to(folder).parts)
    return {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in files}
