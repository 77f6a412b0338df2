"""What each kind of result holds; docs/results.md says what it means."""

from __future__ import annotations

from typing import Any, Literal

from stratascope.store.declared import Along, Kind, columns, each, floats, ints

_INTERVAL = "low high low_simultaneous high_simultaneous"
_MADE = {
    "model?": ({"name?": str | None, "revision?": str | None, "files?": dict[str, str] | None}, str),
    "data?": {"examples?": Any},
    "condition?": str | None,
}
"""What readers ask of a store's provenance."""
_CHOICE = {"only?": list[str]}
"""Which examples a result is of: COLUMN=VALUE."""
_PROBED = {**each(str, "task"), **each(str | None, "position fingerprint")}
_BASELINE = {**each(str, "task?"), **each(str | None, "store? fingerprint? condition?"), **each(int, "layer?")}
_EVENTS = columns(text="kind candidates", flags="found", ints="layer low high", floats="margin level")
_LEADING = {
    **each(str, "targets mode window method label second? second_label?"),
    **each(float, "correlation low high ahead? ahead_low? ahead_high?"),
}
_ROLLED = columns("example", text="id", ints="example n_tokens image_start image_stop rows columns")

KINDS = {
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
                "provenance?": _MADE,
            },
        },
        {
            "table": columns(text="position task metric", ints="layer", floats=f"value {_INTERVAL} chance", flags="at_edge"),
            "events": _EVENTS,
            "folds": columns(text="target absent_classes", ints="layer fold iterations", floats="strength certificate", flags="at_edge"),
            "examples": columns("example", text="id group", ints="example fold"),
        },
        {
            "logits": floats("layer output example"),
            "draws_*": floats("layer draw"),
            "directions": floats("layer output column"),
            "intercepts": floats("layer output"),
        },
    ),
    "advantage": Kind(
        {**_PROBED, "level": float, "baseline?": {**_BASELINE, "of?": list[Any]}},
        {"table": columns("layer", text="metric name baseline", ints="layer", floats=f"value {_INTERVAL}"), "events": _EVENTS},
        {"draws": floats("draw layer")},
    ),
    "accuracy_by": Kind({**_PROBED, "by": str}, {"table": columns(text="by", ints="layer examples groups", floats="value low high")}),
    "score_grid": Kind(
        {
            **each(str, "task metric"),
            **each(str | None, "array? fingerprint store"),
            **each(float, "level critical"),
            **_CHOICE,
            "provenance?": (_MADE, None),
        },
        {"table": columns(text="row metric", ints="layer", floats=f"value {_INTERVAL} chance", flags="found")},
    ),
    "codelength": Kind(
        _PROBED,
        {"table": columns(text="position task metric store", ints="layer examples", floats="value low high bits uniform_bits")},
    ),
    "calibration": Kind(_PROBED, {"table": columns(ints="layer bin examples", floats="confidence accuracy error")}),
    "confusion": Kind({**_PROBED, "layer": int, "grouped": str}, {"table": columns(text="label predicted", ints="count")}),
    "transfer": Kind(
        {**_PROBED, "to?": str | None},
        {"table": columns(text="metric", ints="layer to_layer", floats=f"value {_INTERVAL} chance")},
    ),
    "layer_answer": Kind({"labellings": list[int], "seconds": float}),
    "layer_codes": Kind({"classes": list[list[int]]}),
    "attention_share": Kind(
        {
            **each(str, "store condition weighing"),
            **each(float, "times"),
            **_CHOICE,
            "layers": Along("layer", int),
            "parts": Along("part", str),
            "places": Along("place", str),
        },
        {},
        {
            "share": floats("example layer head part"),
            "token_share": floats("example part"),
            "entropy": floats("example layer head"),
            "sinks": floats("example layer head place"),
            "sink_counts": ints("example place"),
            "first_part": ints("example"),
            "example": ints("example"),
        },
    ),
    "rollout": Kind(
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
    "flow": Kind(
        {**each(str, "store condition fusion"), "window": tuple[int, int] | None, "exact": bool, "cuts": list[str]},
        {
            "examples": _ROLLED,
            "spans": columns(text="span cut", ints="example tokens", floats="value bound", flags="saturated"),
        },
        {"flow": floats("example token"), "bound": floats("example token"), "cut": ints("example token")},
    ),
    "box_overlap": Kind(
        {
            **each(str, "store condition map measure"),
            **_CHOICE,
            "layers": Along("layer", int),
            "heads": Along("head", int),
            "boxes": Along("box", str),
        },
        {},
        {"overlap": floats("example layer head box"), "example": ints("example")},
    ),
    "answer_prediction": Kind(
        {
            **each(str, "store condition map measure box"),
            **_CHOICE,
            **each(int, "examples right images seed"),
            **each(float, "level"),
            "baseline": each(float, "auroc low high"),
        },
        {"auroc": columns(ints="layer head", floats=f"auroc {_INTERVAL} undefined advantage advantage_low advantage_high")},
    ),
    "answer_confidence": Kind(
        {**each(str, "store condition"), **each(float, "level"), **_CHOICE, "choices": list[str]},
        {
            "confidence": columns(
                text="relation",
                ints="examples images",
                floats="accuracy accuracy_low accuracy_high confidence confidence_low confidence_high "
                "of_right of_wrong right_choice margin",
            ),
            "answers": columns(text="id relation answer", ints="example label", floats="confidence margin", flags="right"),
        },
    ),
    "logit_attribution": Kind(
        {
            **each(str, "store condition"),
            **_CHOICE,
            "choices": tuple[str, str],
            "layers": Along("layer", int),
            "parts": Along("part", str),
        },
        {"heads": columns(ints="layer head", floats="mean support carried"), "blocks": columns("layer", ints="layer", floats="carried")},
        {
            "heads": floats("example layer head"),
            "blocks": floats("example layer"),
            "embedding": floats("example"),
            "difference": floats("example"),
            "parts": floats("attributed_example layer head part"),
            "example": ints("example"),
        },
    ),
    "head_ranking": Kind(
        {
            **each(str | None, "store condition"),
            **each(int, "heads"),
            **each(float, "level"),
            **_CHOICE,
            "layers": list[int],
            "scores": dict[str, str],
        },
        {
            "heads": columns(ints="layer head", floats="mean_rank"),
            "agreement": columns(text="first second", ints="heads", floats="spearman low high shared_tenth"),
        },
    ),
    "faithfulness": Kind(
        {
            **each(str, "store condition"),
            **each(int, "draws seed"),
            **each(float, "level"),
            "choices": list[str],
            "few": dict[str, tuple[int, int]],
            "missing": dict[str, str],
            "leading": _LEADING,
        },
        {
            "methods": columns(
                "row",
                text="targets mode window effect method label",
                ints="examples images",
                floats="effect_size correlation low high behind behind_low behind_high",
            )
        },
        {"correlation": floats("row example"), "example": ints("example")},
    ),
    "pointing": Kind(
        {
            **each(str, "store condition"),
            **each(int, "draws seed"),
            **each(float, "level"),
            "places": Along("place", str),
            "others": bool,
            "few": tuple[int, int],
            "missing": dict[str, str],
        },
        {
            "methods": columns(
                "row",
                text="method label",
                ints="examples images",
                floats="named others ground over_others over_others_low over_others_high over_ground over_ground_low over_ground_high wins",
            )
        },
        {"values": floats("row example place"), "example": ints("example")},
    ),
    "example_explanation": Kind(
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
            "tokens": columns(text="text part box cut cut_window", ints="token"),
            "spans": columns(text="part", ints="tokens"),
            "components": columns(text="component", ints="layer head", floats="value"),
            "knockout": columns(text="target kind mode window", floats="effect"),
            "agreement": columns(text="method kind mode", floats="correlation"),
            "answers": columns(text="choice", floats="logit probability"),
        },
    ),
    "entanglement": Kind(
        {
            **each(str, "store condition without_relation"),
            **each(int, "folds seed"),
            **each(float, "level"),
            "full_attention": list[int],
        },
        {"table": columns(text="position what stage", ints="layer", floats="value low high chance", flags="whole_image")},
    ),
}
"""Kind -> what `load_result` holds a file of it against."""
