"""What each kind of result holds; docs/results.md says what it means."""

from __future__ import annotations

from typing import Literal

from stratascope.results.result import CHOICE
from stratascope.results.schema import ResultSchema, columns, floats, ints
from stratascope.stats.intervals import INTERVAL
from stratascope.store.format.json_schema import Along, each

_ROLLED = columns("example", text="id", ints="example n_tokens image_start image_stop rows columns", keys=["example"])

KINDS = {
    "rollout": ResultSchema(
        {
            **each(str, "store condition fusion"),
            **each(float, "discard"),
            "window": tuple[int, int] | None,
            "form": Literal["raw", "dropped", "conditional"],
            "sinks": str | list[int],
        },
        {"examples": _ROLLED},
        {"rollout": floats("example layer token")},
    ),
    "flow": ResultSchema(
        {**each(str, "store condition fusion"), "window": tuple[int, int] | None, "exact": bool, "cuts": list[str]},
        {
            "examples": _ROLLED,
            "spans": columns(text="span cut", ints="example tokens", floats="value bound", flags="saturated", empty=True),
        },
        {"flow": floats("example token"), "bound": floats("example token"), "cut": ints("example token")},
    ),
    "box_overlap": ResultSchema(
        {
            **each(str, "store condition map measure"),
            **CHOICE,
            "layers": Along("layer", int),
            "heads": Along("head", int),
            "boxes": Along("box", str),
        },
        {},
        {"overlap": floats("example layer head box"), "example": ints("example")},
    ),
    "answer_prediction": ResultSchema(
        {
            **each(str, "store condition map measure box"),
            **CHOICE,
            **each(int, "examples right images seed"),
            **each(float, "level"),
            "baseline": each(float, "auroc low high"),
        },
        {
            "auroc": columns(
                ints="layer head", shares=f"auroc {INTERVAL} undefined", floats="advantage advantage_low advantage_high", grid="layer head"
            )
        },
    ),
    "example_explanation": ResultSchema(
        {
            **each(str, "store condition id caption relation subject object answer"),
            **each(int, "example label"),
            **each(float, "difference"),
            **each(tuple[int, int], "image grid few"),
            **each(dict[str, str], "methods missing"),
            "right": bool | None,
            "signed": list[str],
        },
        {
            "tokens": columns(text="text part box cut cut_window", ints="token", keys=["token"]),
            "spans": columns(text="part", ints="tokens", keys=["part"]),
            "components": columns(text="component", ints="layer head", floats="value", empty=True),
            "knockout": columns(text="target kind mode window", floats="effect", empty=True),
            "agreement": columns(text="method kind mode", floats="correlation", empty=True),
            "answers": columns(text="choice", floats="logit", shares="probability"),
        },
    ),
}
"""ResultSchema -> what `load_result` holds a file of it against."""
