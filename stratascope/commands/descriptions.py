"""What commands say of stores and data as they are: contents, checks, copies, differences, what was fetched."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from stratascope.store.io.overview import bytes_text

if TYPE_CHECKING:
    import pandas as pd

    from stratascope.datasets.fetch import FetchReport
    from stratascope.store import ActivationStore, StoreDifference, Verification

LONGEST_VALUE = 100


def describe_store(store: ActivationStore) -> str:
    """What a store holds, how complete it is, and its provenance field by field."""
    lines = [repr(store), "", "provenance"]
    for name, value in _flat(store.provenance):
        text, label = (str(one).replace("\n", "\\n") for one in (value, name))
        lines.append(f"  {label:<28} {_short(text)}")
    return "\n".join(lines)


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, inner in value.items():
        if isinstance(inner, dict):
            yield from _flat(inner, f"{prefix}{key}.")
        elif inner is not None:
            yield f"{prefix}{key}", inner


def verification_text(found: Verification) -> str:
    """What a check found: a line an array, then the problems, then the verdict."""
    table, problems = found.table, found.problems
    lines = [
        f"{array:<18} {files:>6} files {bytes_text(int(size)):>9}  {f'{bad} BAD' if bad else 'good'}"
        for array, files, size, bad in zip(table["array"], table["files"], table["bytes"], table["bad"], strict=True)
    ]
    for block, file, problem in zip(problems["block"], problems["file"], problems["problem"], strict=True):
        lines.append(f"block {block}: {file}: {problem}" if block >= 0 else f"{file}: {problem}")
    state = "complete" if found.written == found.blocks else f"{found.written} of {found.blocks} blocks written"
    if found.ok and not found.complete:
        checked = "every number in the written blocks is what was written" if found.written else "there was no number to check"
        verdict = f"incomplete: {checked}; run the extract command again to write the missing blocks"
    elif found.ok:
        verdict = "every written number is what was written"
    elif found.bad_blocks:
        verdict = f"bad blocks: {', '.join(map(str, found.bad_blocks))}; --repair un-marks them, so that extraction fills them again"
    else:
        verdict = "damaged beyond repair: fetch it from where it came, or extract again"
    return "\n".join([*lines, f"{found.name}: {state}; {verdict}"])


def copy_text(target: str, taken: pd.DataFrame) -> str:
    """What a copy holds: a line an array."""
    lines = [
        f"{array:<18} {' x '.join(map(str, shape)):<32} {bytes_text(int(size)):>9}"
        for array, shape, size in zip(taken["array"], taken["shape"], taken["bytes"], strict=True)
    ]
    return "\n".join([*lines, f"{target}: {bytes_text(int(taken['bytes'].sum()))}"])


def difference_text(found: StoreDifference) -> str:
    """In what two stores differ, a line a field or array."""
    lines = [f"a: {found.names[0]}", f"b: {found.names[1]}"]
    for title, table in (("provenance", found.provenance), ("layout", found.layout), ("examples", found.examples)):
        for field, x, y in zip(table["field"], table["a"], table["b"], strict=True):
            lines += _side_by_side(f"{title:<11} {field}:", x, y)
    for row in found.numbers.to_dict("records"):
        what = f"{row['values']:,} values equal"
        if row["different"]:
            what = f"{row['different']:,} of {row['values']:,} values differ, by at most {row['largest']:.3g} at {row['at']}"
        lines.append(f"numbers     {row['array']}: {what}")
    return "\n".join([*lines, "the same" if found.same else "the numbers are the same" if found.same_numbers else "different"])


def _side_by_side(name: str, a: str, b: str) -> list[str]:
    """Two values on a line; where they are long, below each other, and of lists only what one has and the other has not."""
    if len(name) + len(a) + len(b) <= LONGEST_VALUE:
        return [f"{name} {a} | {b}"]
    try:
        left, right = ast.literal_eval(a), ast.literal_eval(b)
    except (ValueError, SyntaxError, MemoryError, RecursionError):  # no list, but text
        left, right = a, b
    if isinstance(left, list | tuple) and isinstance(right, list | tuple):
        a, b = (_only_in(these, those) for these, those in ((left, right), (right, left)))
    return [name, f"{'':<12}a: {_short(a)}", f"{'':<12}b: {_short(b)}"]


def _only_in(these: Sequence[Any], those: Sequence[Any]) -> str:
    """A list in words: how many it has, and those that the other lacks."""
    own = [str(value) for value in these if value not in those]
    if not these:
        return "none"
    return f"{len(these)} values" + (f", of them only here {', '.join(own)}" if own else ", all of them there too")


def _short(text: str) -> str:
    return text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 3] + "..."


def fetched_text(report: FetchReport) -> str:
    """What was fetched, what is missing, and the plan command that fits it."""
    rows = ", ".join(f"{part} {count:,}" for part, count in report.rows.items())
    lines = [f"{report.folder}: rows {rows}"]
    if report.images:
        there = f"{report.present:,} were there, {report.fetched:,} fetched now ({bytes_text(report.bytes)})"
        failed = f", {len(report.failed):,} could not be fetched: run the same command again" if report.failed else ""
        lines.append(f"images     {report.images:,} wanted, {there}{failed}")
    if report.boxed_images is not None:
        lines.append(f"boxes      of {report.boxed_images:,} images in {report.folder / 'instances.json'}")
    files = " ".join(f"--examples {report.folder / f'{part}.jsonl'}" for part in report.rows)
    boxes = f" --boxes {report.folder / 'instances.json'}" if report.boxed_images is not None else ""
    example = f"stratascope plan --model Qwen/Qwen2.5-VL-7B-Instruct {files} --images {report.folder / 'images'}{boxes}"
    return "\n".join([*lines, f"next: {example}"])
