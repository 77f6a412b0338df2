"""Schema of the file of a layer curve."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import pandas as pd

from stratascope.probe.curve.advantage import FAMILY
from stratascope.probe.curve.onset_offset import EVENTS
from stratascope.results.schema import ResultSchema, columns, floats
from stratascope.stats.intervals import INTERVAL
from stratascope.store.format.json_schema import each
from stratascope.store.format.provenance import PROVENANCE


def _labels(attributes: Mapping[str, Any], tables: Mapping[str, pd.DataFrame], _: Collection[str]) -> str | None:
    """Each example has a label: the number of its class, or the value of each target."""
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


SCHEMA = ResultSchema(
    {
        **each(str, "task"),
        **each(str | None, "position"),
        **each(list[str], "classes targets"),
        "settings": {
            **each(str, "array? store? fingerprint? method? pair? groups? leakage_text? metric?"),
            **each(int, "folds? seed? minimum? draws? control_draws? rank?"),
            **each(float, "level? tolerance? leakage? margin? equivalence_margin?"),
            "family?": FAMILY,
            **each(list[str], "split? only? types? numeric? categorical?"),
            "strengths?": list[float] | None,
            **each(bool, "directions? nonlinear?"),
            "provenance?": PROVENANCE,
        },
    },
    {
        "table": columns(
            text="position task metric", ints="layer", floats=f"value {INTERVAL} chance", flags="at_edge", grid="metric layer"
        ),
        "events": replace(EVENTS, kinds={**EVENTS.kinds, "metric": "text"}),
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
        "controls_*?": floats("layer control_draw"),
        "directions": floats("layer output column"),
        "intercepts": floats("layer output"),
    },
    (_labels,),
)
