"""Provenance of a report: facts on the store, and the commands that reproduce the store, its results and the page."""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any

from stratascope.report.blocks import Block, CommandLine, Commands, Folded, Prose, Remark, Table
from stratascope.report.probe_reproduction import probe_options, python_settings
from stratascope.report.result_set import ResultSet
from stratascope.results.registry import result_class
from stratascope.store import ActivationStore


def provenance(store: ActivationStore, results: ResultSet, command_line: CommandLine | None = None) -> list[Block]:
    """Facts on the store and its results, and the commands that reproduce them."""
    held = store.provenance
    model, prompt, libraries = (_facts(held.get(name)) for name in ("model", "prompt", "libraries"))
    seed = model.get("untrained")
    drawn = None if seed is None else f"untrained, weights drawn with seed {seed}"
    facts = [
        ("store", PurePath(store.name).name),
        ("fingerprint", store.fingerprint()[:16]),
        ("written", f"{held.get('created') or 'date unknown'}; {'complete' if store.complete else 'incomplete'}"),
        ("model", _joined(model.get("name"), model.get("revision"), drawn, model.get("dtype"), model.get("hardware"))),
        ("prompt", _joined(prompt.get("name"), prompt.get("text"))),
        ("condition", str(held.get("condition"))),
        ("examples", f"{store.layout.examples:,} on {store.examples['image'].nunique():,} images"),
        ("data", _joined(*(f"{name} ({digest[:12]})" for name, digest in _facts(_facts(held.get("data")).get("examples")).items()))),
        ("libraries", _joined(*(f"{name} {version}" for name, version in libraries.items()))),
    ]
    blocks: list[Block] = [Table(["item", "value"], [[name, str(value)] for name, value in facts if value])]
    if command_line is not None:
        blocks += [
            Prose("Run in the folder of the store, these commands reproduce the store, its results and this page:"),
            Commands(commands(store, results, command_line)),
        ]
        if notes := python_notes(results, command_line):
            blocks.append(Remark("Python computed some results with settings that the commands lack: " + "; ".join(notes)))
    files = [[f.name, f.kind, f.condition, str(f.fingerprint)[:12]] for f in (*results.own, *results.beside)]
    left = f" Left out: {'; '.join(results.left_out)}." if results.left_out else ""
    blocks.append(Folded(f"{len(files)} results files", [Table(["file", "kind", "condition", "store"], files, caption=left)]))
    return blocks


def _facts(recorded: Any) -> dict[str, Any]:
    """Recorded facts by name; of another writer's plain text, its name."""
    return dict(recorded) if isinstance(recorded, Mapping) else {"name": recorded} if isinstance(recorded, str) else {}


def commands(store: ActivationStore, results: ResultSet, command_line: CommandLine) -> list[str]:
    """Shell commands in their order; lines that begin with # are comments."""
    path = PurePath(store.name)
    extracted = store.provenance.get("command")
    lines = [extracted or f"# the store names no command that wrote it; `stratascope info {path.name}` prints its settings"]
    folder = PurePath(results.own[0].path).parent.name
    named = bool(folder) and folder != f"{path.stem}-results"
    out = {"out": folder} if named else {}
    for options in probe_options(store, results):
        lines.append(command_line("probe", path.name, {**options, **out}))
    for command, options in _computed(results):
        if command == "pointing":
            lines += _boxes_comment(store, options)
        if command == "causal":
            continue  # below, after the interventions
        if command == "intervene":
            sources = list(options.pop("sources", ()))
            lines += [f"# {name}: the store that was patched from; give its path" for name in sources]
            options["out"] = PurePath(folder, options["out"])
            options |= {"results": folder or ".", "sources": [f"{name}={name}.zarr" for name in sources]}
            lines.append(command_line(command, path.name, options))
        elif command == "explain":
            out_of_page = {"out": PurePath(folder if named else "", f"{options.pop('file')}.html")}
            lines.append(command_line(command, path.name, {**options, **out_of_page}))
        else:
            lines.append(command_line(command, path.name, {**options, **out}))
    if any(found.kind == "encoding_use" for found in results.own):
        lines.append(f"stratascope causal {shlex.quote(folder or '.')}")
    given = f" {shlex.quote(folder)}" if named else ""
    return [*lines, f"stratascope report {shlex.quote(path.name)}{given} -o report.html"]


def python_notes(results: ResultSet, command_line: CommandLine) -> list[str]:
    """Results with settings that their commands lack, each with those settings."""
    notes = []
    for found in results.own:
        kind = result_class(found.kind)
        if kind is None or not kind.command:
            continue
        accepted = command_line.accepts(kind.command)
        if found.kind == "layer_curve":
            changed = python_settings(found, accepted)
        elif kind.command == "probe":
            continue  # derived from curves
        else:
            usual = _defaults(kind)
            given = {name: value for name, value in found.result.options.items() if name in usual and name not in accepted}
            changed = {name: value for name, value in given.items() if not _same(value, usual[name])}
        if changed:
            notes.append(f"{found.name} with {', '.join(f'{name}={value!r}' for name, value in changed.items())}")
    return notes


def _computed(results: ResultSet) -> Iterator[tuple[str, dict[str, Any]]]:
    """Command and options of every result but those of probes; one for the results that one command makes together."""
    found: dict[tuple[str, tuple[str | None, ...]], dict[str, Any]] = {}
    for stored in results.own:
        kind = result_class(stored.kind)
        if kind is None or kind.command in ("", "probe"):
            continue
        result = stored.result
        options = dict(result.options)
        if stored.kind == "example_explanation":
            options |= {"example": stored.attributes["id"], "file": stored.path.name.partition(".")[0]}
        if stored.kind == "pointing":
            options["others"] = stored.attributes["others"]
        if stored.kind == "intervention":
            options["out"] = stored.path.name
        once = (stored.name,) if stored.kind == "intervention" or (kind.selects_examples and not result.name_parts) else result.name_parts
        found.setdefault((kind.command, tuple(once)), {}).update(options)
    for (command, _), options in found.items():
        yield command, options


def _boxes_comment(store: ActivationStore, options: dict[str, Any]) -> list[str]:
    """A comment that identifies the file of boxes by its digest; replaces `boxes` in the options by a path."""
    files, others = options.pop("boxes", None), options.pop("others")
    if not others:
        return []
    if not files:
        options["boxes"] = "BOXES.json"
        return ["# BOXES.json: the file of boxes, which the result does not name"]
    name, digest = next(iter(files.items()))
    own = (store.provenance.get("data") or {}).get("boxes") == files
    if own and str(store.provenance.get("command")).startswith("stratascope demo --out . "):
        options["boxes"] = f"scenes/{name}"
        return []
    options["boxes"] = name
    which = "of the extraction" if own else f"whose SHA-256 begins with {digest[:12]}"
    return [f"# {name}: the file of boxes {which}; give its path"]


def _defaults(kind: type) -> dict[str, Any]:
    """Defaults of the public function that computes a kind of result: that of its module with the class as return annotation."""
    module = inspect.getmodule(kind)
    for name, function in vars(module).items():
        if inspect.isfunction(function) and not name.startswith("_") and function.__module__ == kind.__module__:
            signature = inspect.signature(function)
            if signature.return_annotation in (kind, kind.__name__):
                return {p.name: p.default for p in signature.parameters.values() if p.default is not p.empty}
    return {}


def _same(value: Any, usual: Any) -> bool:
    """Whether a stored value is a default; lists are tuples in files."""
    return value == usual or (isinstance(value, list) and tuple(value) == usual) or (not value and not usual)


def _joined(*parts: object) -> str:
    return ", ".join(str(part) for part in parts if part)
