"""Accuracy and confidence of the model's answers, by relation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stratascope.analysis.parallel import held_examples
from stratascope.errors import InvalidInputError, NotRecordedError
from stratascope.results.file import made_from
from stratascope.results.result import CHOICE, Result, table_field
from stratascope.results.schema import columns
from stratascope.stats.intervals import clustered_wilson
from stratascope.store import ActivationStore
from stratascope.store.format.json_schema import each
from stratascope.store.format.provenance import label_kind
from stratascope.store.io.example_identity import image_groups
from stratascope.store.io.selection import listing


class AnswerConfidence(
    Result,
    kind="answer_confidence",
    command="answers",
    schema={**each(str, "store condition"), **each(float, "level"), **CHOICE, "choices": list[str]},
):
    """Accuracy and confidence of the model's answers, over all examples and by relation (AdaptVis, figure c)."""

    table: pd.DataFrame = table_field(
        columns(
            text="relation",
            ints="examples images",
            shares="accuracy accuracy_low accuracy_high confidence confidence_low confidence_high of_right of_wrong right_choice",
            floats="margin",
            keys=["relation"],
        ),
        name="confidence",
    )
    """relation ("" for all), examples, images, accuracy, confidence, of_right, of_wrong, right_choice, margin; `accuracy` and
    `confidence` with _low and _high. confidence: mean probability of the answer, over the choices; of_right, of_wrong: the same over right
    and wrong answers (NaN without any); right_choice: mean probability of the right choice; margin: mean of its logit minus the largest
    other. Sorted by number of examples."""
    answers: pd.DataFrame = table_field(
        columns(text="id relation answer", ints="example label", shares="confidence", floats="margin", flags="right", keys=["example"])
    )
    """One row per example: example (number), id, relation, label, answer (choice with the highest logit), right, confidence, margin."""
    attributes: Mapping[str, Any]
    """store, condition, choices, only, level."""

    @property
    def options(self) -> Mapping[str, Any]:
        """Parameters of `answer_confidence`."""
        return {"only": self.only, "level": self.attributes["level"]}

    def summary(self) -> str:
        """Accuracy and confidence: all relations, the best and the worst relation."""
        rows = self.table[self.table["relation"] != ""].sort_values("accuracy", kind="stable")
        shown = [self.table.iloc[0]] + ([rows.iloc[-1], rows.iloc[0]] if len(rows) > 1 else [])
        lines = [
            f"{row['relation'] or 'all relations':<16} accuracy {row['accuracy']:6.1%} [{row['accuracy_low']:.1%}, "
            f"{row['accuracy_high']:.1%}], confidence {row['confidence']:.2f}, {row['examples']:,} examples"
            for row in shown
        ]
        if str(self.attributes["condition"]).startswith("untrained"):
            lines.insert(0, "answers of untrained weights, not of the model:")
        return "\n".join(lines)

    @property
    def example_count(self) -> int:
        """Number of answered examples."""
        return len(self.answers)

    def to_frame(self) -> pd.DataFrame:
        """The table by relation."""
        return self.table


def right_choices(store: ActivationStore, examples: NDArray[np.int64]) -> NDArray[np.int64]:
    """(example,) index of the right choice.

    Raises
    ------
    NotRecordedError
        If the labels name no choice, as truth labels with a prompt of several choices.
    InvalidInputError
        If a label is none of the choices.
    """
    if label_kind(store.provenance) == "none":
        raise NotRecordedError(
            "expected labels that name the right choice, found examples without labels; give every row a label and extract again"
        )
    answers = store.provenance.get("prompt", {}).get("answers")
    if not answers or any(answer not in store.layout.choices for answer in answers):
        raise NotRecordedError(
            f"expected labels that name the right choice, found the choices {', '.join(store.layout.choices)} and answers "
            f"{', '.join(answers or ()) or 'of none'}; extract with `prompt` true-false, or examples that are questions with choices"
        )
    by_label = np.array([store.layout.choices.index(answer) for answer in answers])
    labels = store.examples["label"].to_numpy()[examples]
    if not np.isin(labels, np.arange(len(answers))).all():
        raise InvalidInputError(f"expected labels from 0 to {len(answers) - 1}, found {listing(np.unique(labels)[:5].tolist())}")
    return np.asarray(by_label[labels])


def answers_right(store: ActivationStore, examples: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(example,) whether the choice with the highest logit is right; raises as `right_choices`."""
    return np.asarray(store.read("answer_logits", examples=examples).argmax(-1) == right_choices(store, examples))


def answer_confidence(
    store: ActivationStore, examples: Sequence[int] | NDArray[Any] | None = None, *, only: Sequence[str] = (), level: float = 0.95
) -> AnswerConfidence:
    """Accuracy and confidence of the answers, by relation, with intervals clustered by image.

    Parameters
    ----------
    examples
        Example numbers or a mask; all recorded ones by default.
    only
        COLUMN=VALUE: keep the examples with one of the given values of each column; see `store.chosen_examples`.
    level
        Level of the Wilson intervals; NaN for a relation with fewer than two images.

    Raises
    ------
    NotRecordedError
        If labels name no choice, see `right_choices`.
    InvalidInputError
        If no examples are left.
    """
    chosen = held_examples(store, "answer_logits", examples, only)
    if not len(chosen):
        raise InvalidInputError("expected at least one recorded example, found none")
    logits = store.read("answer_logits", examples=chosen).astype(np.float64)
    right, each = right_choices(store, chosen), np.arange(len(chosen))
    shares = np.exp(logits - logits.max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)
    others = logits.copy()
    others[each, right] = -np.inf
    facts = store.examples.iloc[chosen]
    scores = pd.DataFrame(
        {
            "relation": facts["relation"].to_numpy(object),
            "image": image_groups(store.examples).labels[chosen],
            "accuracy": (logits.argmax(-1) == right).astype(float),
            "confidence": shares.max(-1),
            "right_choice": shares[each, right],
            "margin": logits[each, right] - others.max(-1),
        }
    )
    rows = [_summary("", scores, level)]
    by_relation = [_summary(str(name), group, level) for name, group in scores.groupby("relation", sort=True)]
    rows += sorted(by_relation, key=lambda row: -int(row["examples"]))
    attributes = {
        **made_from(store),
        "choices": list(store.layout.choices),
        "only": list(only),
        "level": level,
    }
    answers = pd.DataFrame(
        {
            "example": chosen,
            "id": facts["id"].to_numpy(object),
            "relation": scores["relation"],
            "label": facts["label"].to_numpy(),
            "answer": np.asarray(store.layout.choices, object)[logits.argmax(-1)],
            "right": scores["accuracy"] == 1,
            "confidence": scores["confidence"],
            "margin": scores["margin"],
        }
    )
    return AnswerConfidence(pd.DataFrame(rows), answers, attributes)


def _summary(relation: str, rows: pd.DataFrame, level: float) -> dict[str, Any]:
    images = rows["image"].nunique()
    out: dict[str, Any] = {"relation": relation, "examples": len(rows), "images": images}
    for name in ("accuracy", "confidence"):
        low, high = clustered_wilson(rows[name].to_numpy(), rows["image"].to_numpy(), level)
        out |= {name: float(rows[name].mean()), f"{name}_low": low, f"{name}_high": high}
    right = rows["accuracy"] == 1
    out |= {"of_right": float(rows["confidence"][right].mean()), "of_wrong": float(rows["confidence"][~right].mean())}
    return out | {name: float(rows[name].mean()) for name in ("right_choice", "margin")}
