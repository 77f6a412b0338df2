"""What each kind of result of probes holds; docs/results.md says what it means."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import pandas as pd

from stratascope.results.schema import Axes, Kind, columns, each, floats
from stratascope.store.format.provenance import PROVENANCE

INTERVAL = "low high low_simultaneous high_simultaneous"
CHOICE = {"only?": list[str]}
"""Which examples a result is of: COLUMN=VALUE."""
_PROBED = {**each(str, "task"), **each(str | None, "position fingerprint")}
_BASELINE = {**each(str, "task?"), **each(str | None, "store? fingerprint? condition?"), **each(int, "layer?")}
_EVENTS = columns(
    text="kind candidates", flags="found", ints="layer low high", floats="margin level", keys=["kind"], values={"kind": "onset peak offset"}
)


def _own_task(attributes: Mapping[str, Any], tables: Mapping[str, pd.DataFrame], _: Collection[str]) -> str | None:
    """Baselines and controls stand beside a curve of the task itself."""
    table, task = tables["table"], attributes["task"]
    if ((table["store"] == "") & (table["task"] == task)).any():
        return None
    return f"expected rows of task {task!r} without a store in table 'table', found {', '.join(sorted(set(table['task'])))}"


def _labels(attributes: Mapping[str, Any], tables: Mapping[str, pd.DataFrame], _: Collection[str]) -> str | None:
    """A curve holds what each example's answer is: the number of its class, or the value of each target."""
    table = tables["examples"]
    for column in attributes["targets"] or ["label"]:
        if column not in table:
            return f"expected a column {column!r} in table 'examples', found {', '.join(map(str, table.columns))}"
        if table[column].dtype.kind not in ("fiu" if attributes["targets"] else "iu"):
            return f"expected numbers in column {column!r} of table 'examples', found {table[column].dtype}"
    if not attributes["targets"] and not table["label"].between(0, len(attributes["classes"]) - 1).all():
        least, most = table["label"].min(), table["label"].max()
        return f"expected 0 to {len(attributes['classes']) - 1} in column 'label' of table 'examples', found {least} to {most}"
    return None


def _own(kind: str, **dimensions: int) -> dict[str, Axes]:
    """Arrays of one labelling, by their numbers of dimensions, which are named after the array itself."""
    return {name: Axes(kind, tuple(f"{name}_{axis}*" for axis in range(count))) for name, count in dimensions.items()}


ANSWER = {
    **_own("float", logits=2, strength=1, inner_loss=2, gap=1, certificate=1, noise_share=1, decision_share=1),
    **_own("float", fold_directions=3, fold_intercepts=2, direction=2, intercept=1, direction_strength=1),
    **_own("int", iterations=1),
    **_own("bool", absent=2, at_edge=1),
}
"""What a finished layer keeps of each labelling: the fields of `OutOfFold`."""


def _every_labelling(attributes: Mapping[str, Any], _: Mapping[str, pd.DataFrame], arrays: Collection[str]) -> str | None:
    wanted = (f"{b}.{j}.{name}" for b, count in enumerate(attributes["labellings"]) for j in range(count) for name in ANSWER)
    return next((f"expected an array {name!r}, found none" for name in wanted if name not in arrays), None)


def _every_code(attributes: Mapping[str, Any], _: Mapping[str, pd.DataFrame], arrays: Collection[str]) -> str | None:
    wanted = (f"{b}.{j}" for b, codes in enumerate(attributes["classes"]) for j in range(len(codes)))
    return next((f"expected an array {name!r}, found none" for name in wanted if name not in arrays), None)


PROBE_KINDS = {
    "layer_curve": Kind(
        {
            **each(str, "task"),
            **each(str | None, "position"),
            **each(list[str], "classes targets"),
            "settings": {
                **each(str, "array? store? fingerprint? method? groups? leakage_text?"),
                **each(int, "folds? seed? minimum? draws?"),
                **each(float, "level? tolerance? leakage?"),
                **each(list[str], "split? only? types?"),
                "strengths?": list[float] | None,
                "directions?": bool,
                "provenance?": PROVENANCE,
            },
        },
        {
            "table": columns(
                text="position task metric", ints="layer", floats=f"value {INTERVAL} chance", flags="at_edge", grid="metric layer"
            ),
            "events": replace(_EVENTS, kinds={**_EVENTS.kinds, "metric": "text"}),
            "folds": columns(
                text="target absent_classes",
                ints="layer fold iterations",
                floats="strength certificate inner_loss accuracy gap noise_share",
                flags="at_edge",
            ),
            "examples": columns("example", text="id group", ints="example fold", keys=["example"]),
        },
        {
            "logits": floats("layer output example"),
            "draws_*": floats("layer draw"),
            "directions": floats("layer output column"),
            "intercepts": floats("layer output"),
        },
        (_labels,),
    ),
    "advantage": Kind(
        {**_PROBED, "level": float, "baseline?": {**_BASELINE, "of?": list[Any]}},
        {
            "table": columns("layer", text="metric name baseline", ints="layer", floats=f"value {INTERVAL}", keys=["layer"]),
            "events": _EVENTS,
        },
        {"draws": floats("draw layer")},
    ),
    "accuracy_by": Kind(
        {**_PROBED, "by": str}, {"table": columns(text="by", ints="layer examples groups", shares="value low high", grid="by layer")}
    ),
    "score_grid": Kind(
        {
            **each(str, "task metric"),
            **each(str | None, "array? fingerprint store"),
            **each(float, "level critical"),
            **CHOICE,
            "provenance?": (PROVENANCE, None),
        },
        {"table": columns(text="row metric", ints="layer", floats=f"value {INTERVAL} chance", flags="found", grid="metric row layer")},
    ),
    "codelength": Kind(
        _PROBED,
        {
            "table": columns(
                text="position task metric store",
                ints="layer examples",
                floats="value low high bits uniform_bits",
                keys=["store task layer"],
            )
        },
        rules=(_own_task,),
    ),
    "calibration": Kind(_PROBED, {"table": columns(ints="layer bin examples", shares="confidence accuracy error", keys=["layer bin"])}),
    "confusion": Kind(
        {**_PROBED, "layer": int, "grouped": str}, {"table": columns(text="label predicted", ints="count", grid="label predicted")}
    ),
    "transfer": Kind(
        {**_PROBED, "to?": str | None},
        {"table": columns(text="metric", ints="layer to_layer", floats=f"value {INTERVAL} chance", grid="metric layer to_layer")},
    ),
    "layer_answer": Kind(
        {"labellings": list[int], "seconds": float}, {}, {f"*.{name}": of for name, of in ANSWER.items()}, rules=(_every_labelling,)
    ),
    "layer_codes": Kind({"classes": list[list[int]]}, {}, {"*.*": floats("example_*")}, rules=(_every_code,)),
    "entanglement": Kind(
        {
            **each(str, "store condition without_relation"),
            **each(int, "folds seed"),
            **each(float, "level"),
            "full_attention": list[int],
        },
        {
            "table": columns(
                text="position what stage",
                ints="layer",
                floats="value low high chance",
                flags="whole_image",
                keys=["position what stage layer"],
                values={"position": "subject_box object_box", "stage": "tower merged"},
            )
        },
    ),
}
"""Kind -> what a file of it holds."""
