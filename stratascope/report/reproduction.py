"""How to make everything again: the commands, from what the store and the results say of themselves."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from stratascope.report.blocks import Block, Commands, Folded, Prose, Remark, Table
from stratascope.report.probe_reproduction import probe_commands, settings_of_python
from stratascope.results.collection import Findings
from stratascope.results.view import Found
from stratascope.store import ActivationStore, choice_options


def provenance(store: ActivationStore, findings: Findings) -> list[Block]:
    """What made the store and its results, and the commands that make them again."""
    held = store.provenance
    model, prompt, libraries = (dict(held.get(name) or {}) for name in ("model", "prompt", "libraries"))
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
        ("data", _joined(*(f"{name} ({digest[:12]})" for name, digest in (held.get("data", {}).get("examples") or {}).items()))),
        ("libraries", _joined(*(f"{name} {version}" for name, version in libraries.items()))),
    ]
    blocks: list[Block] = [
        Table(["what", "how"], [[name, str(value)] for name, value in facts if value]),
        Prose("In the folder of the store, these commands make the store, its results and this page again:"),
        Commands(commands(store, findings)),
    ]
    notes = [note for curve in findings.of("layer_curve") if (note := settings_of_python(curve))]
    if notes:
        blocks.append(Remark("Some curves were made in Python with settings that the command line does not have: " + "; ".join(notes)))
    files = [[f.name, f.kind, f.condition, str(f.fingerprint)[:12]] for f in (*findings.own, *findings.beside)]
    left = f" {findings.others} files of other stores in the same folder were left out." if findings.others else ""
    blocks.append(Folded(f"{len(files)} results files", [Table(["file", "kind", "condition", "store"], files, caption=left)]))
    return blocks


def commands(store: ActivationStore, findings: Findings) -> list[str]:
    """Shell commands in their order."""
    name = PurePath(store.name).name
    extracted = store.provenance.get("command")
    lines = [extracted or f"# the store does not say which command wrote it; its settings are those that `stratascope info {name}` prints"]
    folder = PurePath(findings.own[0].path).parent.name
    out = f" --out {shlex.quote(folder)}" if folder and folder != f"{PurePath(name).stem}-results" else ""
    lines += [line if line.startswith("#") else f"{line}{out}" for line in _measured(store, findings)]
    given = f" {shlex.quote(folder)}" if out else ""
    return [*lines, f"stratascope report {shlex.quote(name)}{given} -o report.html"]


def _measured(held: ActivationStore, findings: Findings) -> list[str]:
    store, given = shlex.quote(PurePath(held.name).name), held.provenance
    lines = probe_commands(held, findings)
    once = {"answer_confidence": "answers", "attention_share": "share", "box_overlap": "overlap"}
    once |= {"logit_attribution": "attribution", "head_ranking": "heads", "faithfulness": "faithfulness", "entanglement": "entanglement"}
    for kind, command in once.items():
        made = [f for f in findings.own if f.kind == kind]
        lines += dict.fromkeys(f"stratascope {command} {store}{_chosen(f)}" for f in made)
    for found in findings.of("pointing"):
        lines += _pointing(store, found, given)
    for found in (*findings.of("rollout"), *findings.of("flow")):
        numbers = ",".join(str(n) for n in found.table("examples")["example"])
        window = found.attributes.get("window")
        chosen = f" --window {window[0]}-{window[1] - 1}" if window else ""
        form, discard = found.attributes.get("form", "raw"), found.attributes.get("discard", 0)
        chosen += (f" --form {form}" if form != "raw" else "") + (f" --discard {discard:g}" if discard else "")
        lines.append(f"stratascope {found.kind} {store} --examples {numbers}{chosen}")
    return lines


def _pointing(store: str, found: Found, given: Mapping[str, Any]) -> list[str]:
    """The command, with the boxes by their file's name and what tells the file from others of that name."""
    command = f"stratascope pointing {store}{_seed(found)}"
    if not found.attributes["others"]:
        return [command]
    files = found.attributes.get("boxes")
    if not files:
        return ["# BOXES.json: the boxes that were given, of which the result does not say the name", f"{command} --boxes BOXES.json"]
    name, digest = next(iter(files.items()))
    own = (given.get("data") or {}).get("boxes") == files
    if own and str(given.get("command")).startswith("stratascope demo --out . "):
        return [f"{command} --boxes scenes/{shlex.quote(name)}"]
    which = "that the store was made with" if own else f"whose SHA-256 begins {digest[:12]}"
    return [f"# {name}: the file of boxes {which}; say where it lies", f"{command} --boxes {shlex.quote(name)}"]


def _chosen(found: Found) -> str:
    """Options of the command that made a result: what was weighed and measured, and of which examples."""
    measure = found.attributes.get("measure", "lift")
    options = "" if found.weighing == "attention" else f" --weighing {found.weighing}"
    options += "" if measure == "lift" else f" --measure {measure}"
    return options + _seed(found) + choice_options(found.only)


def _seed(found: Found) -> str:
    seed = found.attributes.get("seed", 0)
    return f" --seed {seed}" if seed else ""


def _joined(*parts: object) -> str:
    return ", ".join(str(part) for part in parts if part)
