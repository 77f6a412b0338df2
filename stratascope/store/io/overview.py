"""Contents of a store as text, HTML and JSON: sizes, completeness, provenance."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from zarr.storage import LocalStore, ZipStore

from stratascope.store.format.layout import STATUS_CODES
from stratascope.store.io.recorded_examples import ReadableStore

LENS = "lens"
"""Group of the final norm and some rows of the unembedding."""
LONGEST_VALUE = 100
"""Characters of a value of provenance that are shown."""


def disk_sizes(store: ReadableStore) -> dict[str, int] | None:
    """Array name -> bytes on disk ("" for metadata); None where the files cannot be listed."""
    inner = store.files_of.wrapped
    sizes: Counter[str] = Counter()
    if isinstance(inner, LocalStore):
        root = Path(inner.root)
        for path in root.rglob("*"):
            if path.is_file() and not path.is_symlink():
                parts = path.relative_to(root).parts
                sizes[parts[0] if len(parts) > 1 else ""] += path.stat().st_size
        return dict(sizes)
    if isinstance(inner, ZipStore):
        folder = store.files_of.folder
        for entry in inner._zf.infolist():
            if not entry.filename.startswith(folder) or entry.is_dir():
                continue
            first, _, rest = entry.filename.removeprefix(folder).partition("/")
            sizes[first if rest else ""] += entry.file_size
        return dict(sizes)
    return None


def contents(store: ReadableStore) -> pd.DataFrame:
    """Table of the arrays that are filled by block: array, dimensions, shape, type, raw bytes, bytes on disk (NA where unknown)."""
    sizes = disk_sizes(store)
    rows = [
        (s.name, ", ".join(s.dims), " x ".join(map(str, s.shape)), s.dtype, s.raw_bytes, pd.NA if sizes is None else sizes.get(s.name, 0))
        for s in store.layout.arrays()
        if s.by_block
    ]
    return pd.DataFrame(rows, columns=["array", "dimensions", "shape", "type", "raw_bytes", "disk_bytes"])


def as_text(store: ReadableStore) -> str:
    """Lines of text: name, completeness, failures, arrays."""
    table = contents(store)
    lines = [f"ActivationStore {store.name}", *(f"  {line}" for line in _facts(store))]
    for row in table.itertuples():
        size = "" if row.disk_bytes is pd.NA else f", {bytes_text(row.disk_bytes)} on disk"  # type: ignore[arg-type]
        lines.append(f"  {row.array:<16} ({row.dimensions}) {row.shape} {row.type}{size}")
    if added := (disk_sizes(store) or {}).get(LENS):
        lines.append(f"  {LENS:<16} final norm and unembedding rows, {bytes_text(added)} on disk")
    return "\n".join(lines)


def describe(store: ReadableStore, *, full: bool = False) -> str:
    """Describe a store in lines of text: contents, completeness and provenance, field by field.

    Parameters
    ----------
    store
        The store.
    full
        Whether values longer than LONGEST_VALUE are shown in full.
    """
    lines = [as_text(store), "", "provenance"]
    for name, value in _flat(store.provenance):
        text, label = (str(one).replace("\n", "\\n") for one in (value, name))
        lines.append(f"  {label:<28} {text if full else shortened(text)}")
    return "\n".join(lines)


def as_record(store: ReadableStore) -> dict[str, Any]:
    """What `describe` says, as plain JSON."""
    names = {code: name for name, code in STATUS_CODES.items()}
    arrays = contents(store).astype(object)
    return {
        "name": store.name,
        "examples": store.layout.examples,
        "blocks": store.layout.blocks,
        "written_blocks": int(store.written.sum()),
        "complete": bool(store.written.all()),
        "status": dict(Counter(names[int(s)] for s in store.status)),
        "arrays": arrays.where(arrays.notna(), None).to_dict("records"),
        "layout": store.layout.to_json(),
        "provenance": store.provenance,
    }


def shortened(text: str) -> str:
    """The beginning of a text longer than LONGEST_VALUE, with dots."""
    return text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 3] + "..."


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, inner in value.items():
        if isinstance(inner, dict):
            yield from _flat(inner, f"{prefix}{key}.")
        elif inner is not None:
            yield f"{prefix}{key}", inner


def as_html(store: ReadableStore) -> str:
    """The same as HTML, for notebooks."""
    table = contents(store)
    for column in ("raw_bytes", "disk_bytes"):
        table[column] = ["" if v is pd.NA else bytes_text(int(v)) for v in table[column]]
    facts = "".join(f"<li>{html.escape(line)}</li>" for line in _facts(store))
    return f"<div><b>ActivationStore</b> {html.escape(store.name)}<ul>{facts}</ul>{table.to_html(index=False)}</div>"


def bytes_text(size: int) -> str:
    """A size in bytes as text.

    >>> bytes_text(1_830_000_000)
    '1.83 GB'
    """
    value, units = float(size), ("B", "kB", "MB", "GB", "TB")
    for unit in units:
        if value < 1000 or unit == units[-1]:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.3g} {unit}"
        value /= 1000
    raise AssertionError


def _facts(store: ReadableStore) -> list[str]:
    layout, written = store.layout, store.written
    lines = [
        f"{layout.examples:,} examples in {layout.blocks:,} blocks of {layout.block}, "
        + ("complete" if written.all() else f"{int(written.sum()):,} blocks written"),
        f"{layout.layers} decoder blocks, hidden size {layout.hidden:,}, {layout.heads} heads, up to {layout.tokens} tokens",
        f"positions: {', '.join(layout.positions)}",
    ]
    names = {code: name for name, code in STATUS_CODES.items()}
    failed = Counter(names[int(s)] for s in store.status if names[int(s)] not in ("unwritten", "recorded"))
    if failed:
        lines.append("not recorded: " + ", ".join(f"{n} {name}" for name, n in sorted(failed.items())))
    if layout.softmax_layers:
        lines.append(f"blocks with softmax attention: {', '.join(map(str, layout.softmax_layers))}")
    if layout.kept_layers is not None:
        lines.append(f"layers taken: {', '.join(map(str, layout.kept_layers))}")
    model = store.provenance.get("model")
    if isinstance(model, dict):
        drawn = model.get("untrained")
        facts = [str(model[k]) for k in ("name", "revision", "family", "dtype") if model.get(k)]
        lines.append("model: " + ", ".join([*facts, *([] if drawn is None else [f"untrained: weights drawn with seed {drawn}"])]))
    elif model:
        lines.append(f"model: {model}")
    return lines
