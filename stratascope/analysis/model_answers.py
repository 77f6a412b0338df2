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
from stratascope.store import ActivationStore, column_texts, generated_texts, offered_logits
from stratascope.store.format.json_schema import each
from stratascope.store.format.provenance import label_kind
from stratascope.store.io.example_identity import image_groups
from stratascope.store.io.selection import listing


class AnswerConfidence(
    Result,
    kind="answer_confidence",
    command="answers",
    schema={**each(str, "store condition"), **each(float, "level"), **CHOICE, "choices": list[str], "together?": str},
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
    other. Sorted by number of examples. For questions answered by yes or no also precision, recall and f1 of yes, and said_yes: share of
    these answers; NaN where undefined. For questions with answers of one token whose likeliest next tokens are recorded, first_token:
    share of examples whose likeliest next token is the answer, so that the text that the model generates begins with it. With generated
    tokens also generated_accuracy with _low and _high: share of examples whose generated text names the right choice; unparsed: share
    whose text names none, or several, which count as wrong; agreement: share of the others whose choice is the answer. With `together`:
    groups, their number, and all_right, the share of groups whose answers are all right."""
    answers: pd.DataFrame = table_field(
        columns(text="id relation answer", ints="example label", shares="confidence", floats="margin", flags="right", keys=["example"])
    )
    """One row per example: example (number), id, relation, label, answer (choice with the highest logit), right, confidence, margin;
    with generated tokens also generated (choice, "" where unparsed), generated_right and text."""
    attributes: Mapping[str, Any]
    """store, condition, choices, only, level; together: the column of the groups, if any."""

    @property
    def options(self) -> Mapping[str, Any]:
        """Parameters of `answer_confidence`."""
        together = self.attributes.get("together")
        return {"only": self.only, "level": self.attributes["level"], **({"together": together} if together else {})}

    @property
    def name_parts(self) -> tuple[str | None, ...]:
        """The selection of examples, and the column of groups."""
        together = self.attributes.get("together")
        return (*super().name_parts, *(("together", together) if together else ()))

    def summary(self) -> str:
        """Accuracy and confidence: all relations, the best and the worst relation."""
        rows = self.table[self.table["relation"] != ""].sort_values("accuracy", kind="stable")
        shown = [self.table.iloc[0]] + ([rows.iloc[-1], rows.iloc[0]] if len(rows) > 1 else [])
        lines = [
            f"{row['relation'] or 'all relations':<16} accuracy {row['accuracy']:6.1%} [{row['accuracy_low']:.1%}, "
            f"{row['accuracy_high']:.1%}], confidence {row['confidence']:.2f}, {row['examples']:,} examples"
            for row in shown
        ]
        whole = self.table.iloc[0]
        if "f1" in self.table:
            lines.append(
                f"{'yes':<16} precision {whole['precision']:6.1%}, recall {whole['recall']:.1%}, F1 {whole['f1']:.1%}, "
                f"{whole['said_yes']:.1%} of the answers"
            )
        if "first_token" in self.table:
            lines.append(f"{'next token':<16} the likeliest one is the answer in {whole['first_token']:.1%} of the examples")
        if "unparsed" in self.table:
            lines.append(
                f"{'generated':<16} accuracy {whole['generated_accuracy']:6.1%} [{whole['generated_accuracy_low']:.1%}, "
                f"{whole['generated_accuracy_high']:.1%}], {whole['unparsed']:.1%} name no single choice and count as wrong, "
                f"{whole['agreement']:.1%} of the others are the answer by logits"
            )
        if "all_right" in self.table:
            name = self.attributes["together"]
            lines.append(f"{'all right':<16} {whole['all_right']:6.1%} of {int(whole['groups']):,} groups with the same {name}")
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
    logits = offered_logits(store, store.read("answer_logits", examples=examples), examples)
    return np.asarray(logits.argmax(-1) == right_choices(store, examples))


def answer_confidence(
    store: ActivationStore,
    examples: Sequence[int] | NDArray[Any] | None = None,
    *,
    only: Sequence[str] = (),
    together: str | None = None,
    level: float = 0.95,
) -> AnswerConfidence:
    """Accuracy and confidence of the answers, by relation, with intervals clustered by image.

    Parameters
    ----------
    examples
        Example numbers or a mask; all recorded ones by default.
    only
        COLUMN=VALUE: keep the examples with one of the given values of each column; see `store.chosen_examples`.
    together
        Column whose equal values group examples that count as one: a group is right if all its answers are, such as a question that is
        asked with its options in every order.
    level
        Level of the Wilson intervals; NaN for a relation with fewer than two images.

    Raises
    ------
    NotRecordedError
        If labels name no choice, see `right_choices`.
    InvalidInputError
        If no examples are left, or `together` is no column or has no value for one of them.
    """
    chosen = held_examples(store, "answer_logits", examples, only)
    if not len(chosen):
        raise InvalidInputError("expected at least one recorded example, found none")
    logits = offered_logits(store, store.read("answer_logits", examples=chosen).astype(np.float64), chosen)
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
    if store.provenance.get("data", {}).get("questions"):
        scores = scores.assign(**_question_scores(store, chosen, logits.argmax(-1)))
    written = pd.DataFrame()
    if store.layout.generated:
        number = store.read("generated_choice", examples=chosen)
        names = np.asarray([*store.layout.choices, ""], object)[number]
        written = pd.DataFrame({"generated": names, "generated_right": number == right, "text": generated_texts(store, chosen)})
        parsed = np.where(number >= 0, number == logits.argmax(-1), np.nan)
        scores = scores.assign(generated_accuracy=(number == right).astype(float), unparsed=(number < 0).astype(float), agreement=parsed)
    if together is not None:
        groups = column_texts(store, together).iloc[chosen]
        if groups.isna().any():
            missing = facts["id"].iloc[int(groups.isna().to_numpy().argmax())]
            raise InvalidInputError(f"expected a value of {together} (`together`) for each example, found none for {missing!r}")
        scores = scores.assign(group=groups.to_numpy(object))
    rows = [_summary("", scores, level)]
    by_relation = [_summary(str(name), group, level) for name, group in scores.groupby("relation", sort=True)]
    rows += sorted(by_relation, key=lambda row: -int(row["examples"]))
    attributes = {
        **made_from(store),
        "choices": list(store.layout.choices),
        "only": list(only),
        "level": level,
        **({"together": together} if together is not None else {}),
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
    return AnswerConfidence(pd.DataFrame(rows), pd.concat([answers, written], axis=1), attributes)


def _summary(relation: str, rows: pd.DataFrame, level: float) -> dict[str, Any]:
    images = rows["image"].nunique()
    out: dict[str, Any] = {"relation": relation, "examples": len(rows), "images": images}
    for name in ("accuracy", "confidence", *(["generated_accuracy"] if "unparsed" in rows else [])):
        low, high = clustered_wilson(rows[name].to_numpy(), rows["image"].to_numpy(), level)
        out |= {name: float(rows[name].mean()), f"{name}_low": low, f"{name}_high": high}
    right = rows["accuracy"] == 1
    out |= {"of_right": float(rows["confidence"][right].mean()), "of_wrong": float(rows["confidence"][~right].mean())}
    out |= {name: float(rows[name].mean()) for name in ("right_choice", "margin")}
    if "yes" in rows:
        said, true = rows["said_yes"].to_numpy(), rows["yes"].to_numpy()
        hits, errors = int((said & true).sum()), int((said != true).sum())
        found = {"precision": (hits, said.sum()), "recall": (hits, true.sum()), "f1": (2 * hits, 2 * hits + errors)}
        out |= {name: float(part / whole) if whole else np.nan for name, (part, whole) in found.items()}
        out["said_yes"] = float(said.mean())
    if "first_token" in rows:
        out["first_token"] = float(rows["first_token"].mean())
    if "unparsed" in rows:
        out |= {name: float(rows[name].mean()) for name in ("unparsed", "agreement")}
    if "group" in rows:
        all_right = rows.groupby("group")["accuracy"].min()
        out |= {"groups": len(all_right), "all_right": float(all_right.mean())}
    return out


def _question_scores(store: ActivationStore, examples: NDArray[np.int64], answers: NDArray[np.int64]) -> dict[str, NDArray[np.bool_]]:
    """By example: whether yes is right and whether it is the answer; whether the likeliest next token is the answer."""
    found: dict[str, NDArray[np.bool_]] = {}
    if label_kind(store.provenance) != "choice":
        yes = store.layout.choices.index(store.provenance["prompt"]["answers"][1])
        found = {"yes": store.examples["label"].to_numpy()[examples] == 1, "said_yes": answers == yes}
    if "top_tokens" in store.arrays and not (store.provenance.get("answer_logits") or {}).get("score"):
        words = [store.vocabulary[int(token)].strip().casefold() for token in store.read("top_tokens", examples=examples)[:, 0]]
        wanted = [store.layout.choices[k].strip().casefold() for k in answers]
        found["first_token"] = np.array(words) == np.array(wanted)
    return found
