"""Explanation of one example: attention, attribution, rollout, flow and knockouts side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stratascope.analysis.attribution import logit_attribution
from stratascope.analysis.flow import flow
from stratascope.analysis.knockout_targets import MODE_LABELS, kind_of_target, target_tokens
from stratascope.analysis.model_answers import right_choices
from stratascope.analysis.relevance import BASELINES, few_blocks, group_scores, methods_of, token_scores
from stratascope.errors import InvalidInputError, NotRecordedError
from stratascope.results.file import made_from
from stratascope.results.result import Result, table_field
from stratascope.results.schema import columns
from stratascope.stats.rank_correlation import rank_correlations
from stratascope.store import ActivationStore, offered_logits
from stratascope.store.format.json_schema import each
from stratascope.store.format.prompt_parts import PARTS, parts_of


class ExampleExplanation(
    Result,
    kind="example_explanation",
    command="explain",
    schema={
        **each(str, "store condition id caption relation subject object answer"),
        **each(int, "example label"),
        **each(float, "difference"),
        **each(tuple[int, int], "image grid few"),
        **each(dict[str, str], "methods missing"),
        "right": bool | None,
        "signed": list[str],
    },
):
    """Scores of all methods for one example."""

    tokens: pd.DataFrame = table_field(columns(text="text part box cut cut_window", ints="token", keys=["token"]))
    """token (number), text, part (of the prompt), box (gold box of an image cell: `subject`, `object`, `both` or ""), one column per
    method, cut and cut_window (minimum cut of the flow through all and through few blocks; "" without maps)."""
    spans: pd.DataFrame = table_field(columns(text="part", ints="tokens", keys=["part"]))
    """part (of the prompt, `subject_box`, `object_box`), tokens (number) and one column per method."""
    components: pd.DataFrame = table_field(columns(text="component", ints="layer head", floats="value", empty=True))
    """Terms of the logit difference: component (`embedding`, `head` or `block`: MLP and biases), layer, head (-1 for others), value; empty
    without logit attribution in the store."""
    knockout: pd.DataFrame = table_field(columns(text="target kind mode window", floats="effect", empty=True))
    """target, kind (cells, spans, boxes), mode, window, effect (change of the logit difference when the target is masked); empty without
    knockouts of the example."""
    agreement: pd.DataFrame = table_field(columns(text="method kind mode", floats="correlation", empty=True))
    """method, kind (cells or spans), mode, correlation (Spearman's, of absolute values, all blocks); empty without knockouts."""
    answers: pd.DataFrame = table_field(columns(text="choice", floats="logit", shares="probability"))
    """choice, logit, probability over the choices."""
    attributes: Mapping[str, Any]
    """store, condition, example, id, caption, relation, label, subject, object, answer, right (None where the label names no choice),
    difference (first choice's logit minus the second's), image (start, stop), grid (rows, columns), few (blocks), missing (method ->
    arrays to record), methods (name -> label), signed (methods with a sign)."""

    @property
    def methods(self) -> tuple[str, ...]:
        """Methods in the tables, without baselines."""
        return tuple(name for name in self.attributes["methods"] if name not in BASELINES)

    def on_image(self, method: str) -> NDArray[np.float64]:
        """(row, column) scores of the image cells by one method.

        Raises
        ------
        InvalidInputError
            For a method that the tables lack, or image tokens whose place is unknown.
        """
        if not self.attributes["grid"][0]:
            raise InvalidInputError("expected a grid of image cells, found image tokens whose place is unknown; read `tokens` instead")
        if method not in self.tokens.columns:
            raise InvalidInputError(f"expected a method of {', '.join(self.methods)}, found {method!r}")
        start, stop = self.attributes["image"]
        return np.asarray(self.tokens[method].to_numpy(float)[start:stop].reshape(self.attributes["grid"]))

    def effects_on_image(self, mode: str) -> NDArray[np.float64]:
        """Knockout effect of the group of each cell, in all blocks.

        Parameters
        ----------
        mode
            `final`: masked for the final token; `later`: masked for all later tokens.

        Returns
        -------
        numpy.ndarray
            (row, column); NaN without a measurement.
        """
        rows, columns = self.attributes["grid"]
        table = self.knockout[(self.knockout["kind"] == "cells") & (self.knockout["mode"] == mode)]
        table = table[table["window"] == table["window"].iloc[0]] if len(table) else table
        out = np.full((rows, columns), np.nan)
        names = [name.split("_")[1:] for name in table["target"]]
        groups = [max((int(name[k]) for name in names), default=0) + 1 for k in range(2)]
        for (row, column), effect in zip(names, table["effect"], strict=True):
            down = np.arange(rows) * groups[0] // rows == int(row)
            out[np.ix_(down, np.arange(columns) * groups[1] // columns == int(column))] = effect
        return out

    @property
    def options(self) -> Mapping[str, Any]:
        """Parameters of `explain_example`."""
        return {"example": self.attributes["example"], "window": self.attributes["few"]}

    def to_frame(self) -> pd.DataFrame:
        """The scores of every method by part of the prompt."""
        return self.spans

    def summary(self) -> str:
        """The example and the answer of the model."""
        own = self.attributes
        return f"example #{own['example']}, id {own['id']}: {own['caption']} The model answers {own['answer']}."


def explain_example(store: ActivationStore, example: int, *, window: Sequence[int] | None = None, seed: int = 0) -> ExampleExplanation:
    """Explain one example by every method that the store allows.

    Parameters
    ----------
    example
        Example number.
    window
        Half-open range of the few blocks of rollout and flow; the top half by default, eight at most.
    seed
        Seed of the random baseline.

    Raises
    ------
    InvalidInputError
        If the example or the window is outside the store.
    NotRecordedError
        If the example is not recorded.
    """
    layout = store.layout
    if not 0 <= example < layout.examples:
        raise InvalidInputError(f"expected an example number from 0 to {layout.examples - 1}, found {example}")
    if not store.available("answer_logits")[example]:
        raise NotRecordedError(f"expected example {example} to be recorded, found it missing; see `stratascope info`")
    few = few_blocks(layout.layers) if window is None else (int(window[0]), int(window[1]))
    methods, missing = methods_of(store)
    mapped = "attention_maps" in layout.record and bool(store.available("attention_maps")[example])
    if not mapped:  # a store may hold the maps of some examples only
        lacking = {m.name: "attention_maps, of this example too" for m in methods if "attention_maps" in m.needs}
        methods, missing = tuple(m for m in methods if m.name not in lacking), missing | lacking
    options: dict[str, Any] = {"window": (0, layout.layers), "few": few, "seed": seed}
    attended = bool(store.layout.attention_layers) and len(methods) > len(BASELINES)
    scores = token_scores(store, example, methods, **options) if attended else {}
    tokens = _token_table(store, example).assign(**scores, cut="", cut_window="")
    if mapped and "flow" in scores:
        maps = store.maps(example)
        tokens["cut"], tokens["cut_window"] = flow(maps).cut.tolist(), flow(maps, window=few).cut.tolist()
    names = (*PARTS, "subject_box", "object_box")
    members = target_tokens(store, example, names)
    spans = pd.DataFrame({"part": names, "tokens": members.sum(1)})
    if attended:
        whole = group_scores(store, example, members, methods, windows=[options["window"]], few=[few], seed=seed)
        spans = spans.assign(**{name: values[0] for name, values in whole.items()})
    knockout = _knockout(store, example)
    logits = offered_logits(store, store.read("answer_logits", examples=[example]), [example])[0].astype(np.float64)
    offered = np.isfinite(logits)
    shares = np.exp(logits[offered] - logits.max())
    named = [choice for choice, there in zip(layout.choices, offered, strict=True) if there]
    answers = pd.DataFrame({"choice": named, "logit": logits[offered], "probability": shares / shares.sum()})
    return ExampleExplanation(
        tokens,
        spans[spans["tokens"] > 0].reset_index(drop=True),
        _components(store, example),
        knockout,
        _agreement(store, example, knockout, methods, few, seed),
        answers,
        _facts(store, example, logits)
        | {
            "few": list(few),
            "missing": missing,
            "methods": {m.name: m.label for m in methods},
            "signed": [m.name for m in methods if m.signed],
        },
    )


def _facts(store: ActivationStore, example: int, logits: NDArray[np.float64]) -> dict[str, Any]:
    row = store.examples.iloc[example]
    choice = int(logits.argmax())
    try:
        right = bool(right_choices(store, np.array([example]))[0] == choice)
    except NotRecordedError:
        right = None
    image = store.spans["image"][example] if "image" in store.spans else np.array([-1, -1])
    text = {name: str(row[name]) for name in ("id", "caption", "relation", "subject", "object")}
    return {
        **made_from(store),
        "example": example,
        **text,
        "label": int(row["label"]),
        "answer": store.layout.choices[choice],
        "right": right,
        "difference": float(logits[0] - logits[1]),
        "image": [int(k) for k in image],
        "grid": [int(k) for k in store.grid[example]],
    }


def _token_table(store: ActivationStore, example: int) -> pd.DataFrame:
    number = np.array([example])
    count = int(store.n_tokens[example])
    parts = parts_of(store, number)[0, :count]
    subject, object_ = target_tokens(store, example, ("subject_box", "object_box"))
    box = np.select([subject & object_, subject, object_], ["both", "subject", "object"], "")
    return pd.DataFrame({"token": range(count), "text": store.tokens(example), "part": [PARTS[k] for k in parts], "box": box})


def _components(store: ActivationStore, example: int) -> pd.DataFrame:
    empty = pd.DataFrame({"component": pd.Series(dtype=str), "layer": pd.Series(dtype=int), "head": pd.Series(dtype=int),
                          "value": pd.Series(dtype=float)})  # fmt: skip
    if "head_logits" not in store.layout.record:
        return empty
    found = logit_attribution(store, [example], by_part=False)
    rows: list[tuple[str, int, int, float]] = []
    if np.isfinite(found.embedding[0]):
        rows.append(("embedding", -1, -1, float(found.embedding[0])))
    for k, layer in enumerate(found.attributes["layers"]):
        rows += [("head", layer, head, float(value)) for head, value in enumerate(found.heads[0, k])]
        if np.isfinite(found.blocks[0, k]):
            rows.append(("block", layer, -1, float(found.blocks[0, k])))
    return pd.DataFrame(rows, columns=empty.columns)


def _knockout(store: ActivationStore, example: int) -> pd.DataFrame:
    layout = store.layout
    columns = ["target", "kind", "mode", "window", "effect"]
    rows: list[tuple[str, str, str, str, float]] = []
    if "knockout" in layout.record:
        effects = store.read("knockout", examples=example)
        for (m, w, t), effect in np.ndenumerate(effects):
            name = layout.knockout_targets[t]
            if np.isfinite(effect) and layout.knockout_modes[m] in MODE_LABELS and kind_of_target(name) != "joined":
                rows.append((name, kind_of_target(name), layout.knockout_modes[m], layout.knockout_windows[w], float(effect)))
    return pd.DataFrame(rows, columns=columns).astype({"effect": float})


def _agreement(
    store: ActivationStore, example: int, knockout: pd.DataFrame, methods: Sequence[Any], few: tuple[int, int], seed: int
) -> pd.DataFrame:
    rows: list[tuple[str, str, str, float]] = []
    whole = knockout[knockout["window"] == knockout["window"].iloc[0]] if len(knockout) else knockout
    for (kind, mode), part in whole[whole["kind"] != "boxes"].groupby(["kind", "mode"], sort=False):
        members = target_tokens(store, example, part["target"].tolist())
        scores = group_scores(store, example, members, methods, windows=[(0, store.layout.layers)], few=[few], seed=seed)
        for method in methods:
            score = scores[method.name] if method.name in BASELINES else np.abs(scores[method.name])
            found = rank_correlations(score, np.abs(part["effect"].to_numpy()[None]))
            rows.append((method.name, str(kind), str(mode), float(found[0])))
    return pd.DataFrame(rows, columns=["method", "kind", "mode", "correlation"]).astype({"correlation": float})
