"""Provenance of a store: root attributes, comparison and digests."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from stratascope.errors import InvalidInputError, ProvenanceMismatchError, StoreError
from stratascope.store.format.json_schema import each, record_mismatch
from stratascope.store.format.layout import FORMAT, FORMAT_VERSION, StoreLayout
from stratascope.store.format.limits import check_depth, check_pieces

_FILES = "model.files."
_WEIGHTS = (".safetensors", ".bin", ".index.json")
VOLATILE = ("created", "command", "host")
"""Provenance fields that may differ between two runs that write the same store."""

PROVENANCE = {
    "model?": (
        {**each(str | None, "name? revision? family? dtype? quantization?"), "files?": dict[str, str] | None, "untrained?": int | None},
        str,
    ),
    "prompt?": {"name?": str, "answers?": list[str] | None},
    "data?": {"labels?": str, "examples?": Any, "images?": Any},
    "vision?": ({"full_attention?": list[int] | None}, None),
    "answer_logits?": ({"precision?": str, "read_from?": str, "score?": str}, None),
    **each(str | None, "condition? command? created?"),
}
"""Schema of provenance; every field is optional."""
ATTRIBUTES = {"layout": dict[str, Any], "provenance": PROVENANCE, "known": str, "taken": dict[str, Any] | None}
"""Schema of the root attributes besides format, version and digest."""


def store_attributes(layout: StoreLayout, provenance: Mapping[str, Any], known: str, taken: Mapping[str, Any] | None) -> dict[str, Any]:
    """Attributes of the root group, with a digest over all of them.

    `known` is the digest of what was written at creation, `taken` what a copy took of its source (None for an original).
    InvalidInputError for a provenance that readers would refuse.
    """
    if unlike := record_mismatch(provenance, PROVENANCE, "provenance"):
        raise InvalidInputError(unlike)
    attributes: dict[str, Any] = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "layout": layout.to_json(),
        "provenance": plain_json(provenance, "provenance"),
        "known": known,
        "taken": None if taken is None else plain_json(taken, "taken"),
        "coordinates": "relation label",  # CF: xarray then makes them coordinates
    }
    return {**attributes, "digest": digest(attributes)}


def check_attributes(attributes: Mapping[str, Any], name: str) -> StoreLayout:
    """Check the root attributes and return the layout.

    Raises
    ------
    StoreError
        For a group of another kind, another version, or attributes that do not fit their digest.
    """
    check_depth(dict(attributes), f"{name}: zarr.json")
    found = attributes.get("format")
    if found != FORMAT:
        raise StoreError(f"{name}: expected a store of Stratascope (format {FORMAT!r}), found format {found!r}; open it with what wrote it")
    version = attributes.get("format_version")
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise StoreError(
            f"{name}: expected format version {FORMAT_VERSION}, found {version!r}, which was never published; "
            "extract again, or read it with the development version that wrote it"
        )
    if version > FORMAT_VERSION:
        raise StoreError(
            f"{name}: expected format version {FORMAT_VERSION} or lower, found {version}: it was written by a newer Stratascope; "
            "upgrade with `pip install -U stratascope`"
        )
    if digest({k: v for k, v in attributes.items() if k != "digest"}) != attributes.get("digest"):
        raise StoreError(
            f"{name}: expected attributes that fit their digest, found changed ones: layout or provenance was edited or damaged; "
            "fetch the store again"
        )
    try:
        unlike = record_mismatch(attributes, ATTRIBUTES, "attribute")
        json.dumps(attributes["provenance"], ensure_ascii=False).encode()
        layout = StoreLayout.from_json(attributes["layout"])
        check_pieces(layout.arrays())
    except (KeyError, TypeError, ValueError) as error:
        unlike = f"expected a layout of format version {FORMAT_VERSION}, and text in UTF-8, found: {error}"
    if unlike:
        raise StoreError(f"{name}: {unlike}; fetch the store again")
    return layout


def check_agreement(held: Mapping[str, Any], expected: Mapping[str, Any], what: str = "provenance") -> None:
    """Compare two provenances (without VOLATILE) or two layouts.

    Raises
    ------
    ProvenanceMismatchError
        Naming every field that differs, with both values.
    """
    found = differences(held, plain_json(expected, what))
    # a field that was not given and one that older stores do not have are the same
    found = {name: pair for name, pair in found.items() if not all(value in (None, "(absent)") for value in pair)}
    if unknown := _never_recorded(held, found):
        raise ProvenanceMismatchError(
            "expected a store whose provenance holds digests of all of the model's files, found one that Stratascope "
            f"{_version(held)} began, which kept none of {', '.join(unknown)}: whether they are still the same cannot be known; finish the "
            "store with that version, or write another store"
        )
    if found:
        lines = "; ".join(f"{name}: the store has {_told(a)}, now {_told(b)}" for name, (a, b) in found.items())
        raise ProvenanceMismatchError(
            f"expected the {what} of the store, found other values: {lines}; write another store, or use the same settings"
        )


def _never_recorded(held: Mapping[str, Any], found: Mapping[str, tuple[Any, Any]]) -> list[str]:
    """Model files without digests in a store of Stratascope 0.1, if nothing else differs."""
    model = held.get("model")
    files = model.get("files") if isinstance(model, Mapping) else None
    if not isinstance(files, Mapping) or _whole_folder(files):
        return []
    if not all(name.startswith(_FILES) and pair[0] == "(absent)" for name, pair in found.items()):
        return []
    return [name.removeprefix(_FILES) for name in found]


def _version(held: Mapping[str, Any]) -> str:
    libraries = held.get("libraries")
    return str(libraries.get("stratascope")) if isinstance(libraries, Mapping) else "0.1"


def differences(a: Mapping[str, Any], b: Mapping[str, Any], *, ignore: tuple[str, ...] = VOLATILE) -> dict[str, tuple[Any, Any]]:
    """Dotted name -> both values, for every field that differs; "(absent)" where one lacks it."""
    left, right = _flat(a, ignore), _flat(b, ignore)
    names = [*left, *(n for n in right if n not in left)]
    return {n: (left.get(n, "(absent)"), right.get(n, "(absent)")) for n in names if left.get(n, _MISSING) != right.get(n, _MISSING)}


def condition_of(provenance: Mapping[str, Any]) -> str:
    """Condition of a store: `original`, `blank`, ..., `untrained`, or both.

    Parameters
    ----------
    provenance
        Of the store.
    """
    model, condition = provenance.get("model"), str(provenance.get("condition") or "original")
    if not isinstance(model, Mapping) or model.get("untrained") is None:
        return condition
    return "untrained" if condition == "original" else f"untrained, {condition}"


def same_model_files(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether two models (`model` in provenance) were loaded from the same files.

    Weights do not count where one of the two was drawn anew, nor settings where one store is of Stratascope 0.1, which kept no digests
    of them.
    """
    left, right = (dict(model.get("files") or {}) for model in (a, b))
    both = left.keys() & right.keys()
    apart = (left.keys() ^ right.keys()) | {name for name in both if left[name] != right[name]}
    one_drawn = (a.get("untrained") is None) != (b.get("untrained") is None)
    whole = [_whole_folder(files) for files in (left, right)]
    if one_drawn:
        apart = {name for name in apart if not name.endswith(_WEIGHTS)}
    if whole[0] != whole[1] or (one_drawn and not any(whole)):
        apart &= both
    return not apart


def _whole_folder(files: Mapping[str, Any]) -> bool:
    """Whether the digests cover all files of the model's folder; Stratascope 0.1 kept only some."""
    return any(name in files for name in ("processor_config.json", "preprocessor_config.json"))


def digest(value: Any) -> str:
    """SHA-256 of a JSON value, independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()).hexdigest()


def plain_json(value: Any, where: str) -> Any:
    """Convert a value to plain JSON: tuples to lists, NumPy numbers to numbers; InvalidInputError for other types."""
    try:
        return json.loads(json.dumps(value, default=_plain, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"{where}: expected plain JSON values, found: {error}") from error


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, frozenset | set):
        return sorted(value)
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} {value!r}")


_MISSING = object()


def _flat(value: Mapping[str, Any], ignore: tuple[str, ...], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if not prefix and key in ignore:
            continue
        if isinstance(item, Mapping) and item:
            flat.update(_flat(item, ignore, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = item
    return flat


def _told(value: Any) -> str:
    if value in (None, "(absent)"):
        return "none"
    if isinstance(value, str) and re.fullmatch("[0-9a-f]{40,64}", value):
        return f"{value[:12]}..."
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 120 else f"{text[:80]}... ({len(text)} characters)"


def label_kind(provenance: Mapping[str, Any]) -> str:
    """What the labels of a store are: `truth` (of the caption), `choice` (number of the right answer) or `none` (all are -1).

    Parameters
    ----------
    provenance
        Of the store.

    Examples
    --------
    >>> label_kind({"data": {}}), label_kind({"data": {"labels": "none"}})
    ('truth', 'none')
    """
    data = provenance.get("data")
    return str(data.get("labels") or "truth") if isinstance(data, Mapping) else "truth"
