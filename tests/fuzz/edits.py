"""What may have been done to files: places of a JSON value changed, zips packed again with the digest that they then have."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result
from hypothesis import settings
from hypothesis import strategies as st

from stratascope.cli import FAULT, main


def some(examples: int) -> settings:
    """So many examples, the same ones each time; STRATASCOPE_FUZZ=20 draws 20 times as many, new ones, for a campaign."""
    times = int(os.environ.get("STRATASCOPE_FUZZ", "0"))
    return settings(max_examples=examples * max(times, 1), derandomize=not times, deadline=None)


def result_of(*words: str) -> Result:
    """Run a command: it ends with 0, 1 or 2; with 2 it says why in one line and shows no fault of its own."""
    found = CliRunner().invoke(main, list(words))
    said = (words, found.output[-600:], found.exception)
    assert found.exit_code in (0, 1, 2), said
    assert found.exception is None or isinstance(found.exception, SystemExit), said
    assert FAULT not in found.stderr, said
    if found.exit_code == 2:
        assert len(found.stderr.strip().splitlines()) == 1, said
    return found


ODD = (None, -1, 0, 7, 2**70, "x", "", [], {}, [1, 2], True, 1e300, float("nan"), "\ud800", "a" * 3000, {"a": {"b": []}})


def changed_json(value: Any, data: st.DataObject) -> Any:
    """One place of a JSON value removed or replaced by something odd."""
    odd = data.draw(st.sampled_from(ODD))
    if isinstance(value, dict) and value and data.draw(st.integers(0, 5)):
        key = data.draw(st.sampled_from(sorted(value)))
        if data.draw(st.integers(0, 4)) == 0:
            return {k: v for k, v in value.items() if k != key}
        return {**value, key: changed_json(value[key], data)}
    if isinstance(value, list) and value and data.draw(st.integers(0, 3)):
        k = data.draw(st.integers(0, len(value) - 1))
        return [*value[:k], changed_json(value[k], data), *value[k + 1 :]]
    return odd


def unpacked(path: Path) -> dict[str, bytes]:
    """The files of a zip."""
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def rezipped(files: dict[str, bytes], path: Path, how: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", how) as archive:
        for key, content in files.items():
            archive.writestr(key, content)
    return path


def digested(files: dict[str, bytes]) -> dict[str, bytes]:
    """The files of a result with the digest that docs/format.md says, as another program would write them."""
    root = json.loads(files["zarr.json"])
    held = root["attributes"]
    total = hashlib.sha256(json.dumps([held.get("kind"), held.get("attributes")], sort_keys=True).encode())
    for name in sorted(set(files) - {"zarr.json"}):
        total.update(name.encode() + b"\0" + hashlib.sha256(files[name]).digest())
    held["digest"] = total.hexdigest()
    return files | {"zarr.json": json.dumps(root).encode()}
