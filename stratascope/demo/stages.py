"""What a demo's folder holds already: the files of each finished stage, what they were made of, and that they are as they were made."""

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
"""The list of stages, in the demo's folder."""
LAYERS = "layers"
"""Folder of finished layers, by which probing goes on; whether they are there afterwards is nobody's concern."""
PIECES = ("scenes", "original.zarr", "blank.zarr", "results")


class Stages:
    """The finished stages of one folder; each is made once, and again where it, or what it was made of, has changed."""

    def __init__(self, out: Path, settings: Mapping[str, int]) -> None:
        """The stages at `out`, of a demo with these settings.

        Raises
        ------
        InvalidInputError
            If the folder was filled with other settings, or by something else.
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
                    f"{out}: expected a new folder or one that this demo filled, found {', '.join(there)} without {NAME}; "
                    "give another folder (--out), or remove them"
                ) from None
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InvalidInputError(f"{out / NAME}: expected the stages of a demo, found something else; remove {out}") from error
        if found != settings:
            asked, was = (", ".join(f"{name} {value}" for name, value in some.items()) for some in (settings, found))
            raise InvalidInputError(f"{out}: expected what this folder was filled with ({was}), found {asked}; give another folder (--out)")
        self._settings, self._held = dict(settings), held

    def kept(self, name: str, made_of: Any) -> bool:
        """Whether a stage is as it was made, of the same and by this version, so that `make` would leave it."""
        self._visited.add(name)
        held = self._held.get(name)
        if held is None or held["of"] != _plain(made_of):
            return False
        files = {self.out / file: expected for file, expected in held["files"].items()}
        return all(path.is_file() and digest(path) == expected for path, expected in files.items())

    def make(self, name: str, made_of: Any, folder: Path, make: Callable[[], object]) -> None:
        """Make a stage whose files lie in `folder`, unless it is kept.

        What it left the last time is removed first, so that nothing stays which does not belong to what is there now.
        """
        if self.kept(name, made_of):
            return
        self._remove(name)
        folder.mkdir(parents=True, exist_ok=True)
        before = _state(folder)
        make()
        made = sorted(path for path, state in _state(folder).items() if before.get(path) != state)
        self._held[name] = {"of": _plain(made_of), "files": {path.relative_to(self.out).as_posix(): digest(path) for path in made}}
        self._write()

    def noted(self, name: str) -> Any:
        """What `note` was told of a stage; None where it was not."""
        return self._held[name]["of"][1] if name in self._held else None

    def note(self, name: str, value: Any) -> None:
        """Note of a finished stage, whose files tell themselves whether they are whole, what they are."""
        self._visited.add(name)
        if self.noted(name) != value:
            self._held[name] = {"of": _plain(value), "files": {}}
            self._write()

    def leave(self, folder: Path) -> None:
        """Forget the stages whose files lie in a folder, which was moved."""
        inside = f"{folder.relative_to(self.out).as_posix()}/"
        self._held = {name: held for name, held in self._held.items() if not any(file.startswith(inside) for file in held["files"])}
        self._write()

    def finish(self) -> None:
        """Remove what stages left that this version does not have."""
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
        text = json.dumps({"settings": self._settings, "stages": self._held}, indent=1)
        write_file(self.out / NAME, [text.encode()])


def _stage(held: Mapping[str, Any]) -> dict[str, Any]:
    """A stage as the list holds it; ValueError where a file of it is none of this folder's."""
    files = {str(file): str(told) for file, told in held["files"].items()}
    if any(Path(file).is_absolute() or ".." in Path(file).parts for file in files):
        raise ValueError("a file outside the folder")
    version, made_of = held["of"]
    return {"of": [version, made_of], "files": files}


def _plain(made_of: Any) -> list[Any]:
    """What a stage was made of as the list of stages holds it, with the version that made it."""
    return [stratascope.__version__, json.loads(json.dumps(made_of))]


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _state(folder: Path) -> dict[Path, tuple[int, int]]:
    """The files of a folder, and by what a file is told that was written anew."""
    files = (path for path in folder.rglob("*") if path.is_file() and LAYERS not in path.relative_to(folder).parts)
    return {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in files}
