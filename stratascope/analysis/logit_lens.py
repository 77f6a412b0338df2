"""Logit lens: the model's own readout of the residual stream at every layer, beside what a probe reads there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stratascope.analysis.model_answers import right_choices
from stratascope.analysis.parallel import held_examples
from stratascope.errors import InvalidInputError, NotRecordedError
from stratascope.results.file import made_from
from stratascope.results.layer_intervals import LayerIntervals
from stratascope.results.lazy_arrays import Arrays
from stratascope.results.result import CHOICE, Result, array_field, new_axes, table_field, titled
from stratascope.results.schema import columns
from stratascope.results.stored_result import StoredResult
from stratascope.stats.bootstrap import Bootstrap
from stratascope.stats.intervals import minimum_detectable_effect, share_band, standard_error
from stratascope.store import ActivationStore, Readout, label_kind, offered_logits, stored_readout
from stratascope.store.format.json_schema import each as attributes_of
from stratascope.store.io.example_identity import image_groups

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MEASURES = {"answer": "right answer", "relation": "true relation's word"}
"""What the readout gets right -> how a legend names it."""
ANSWER_TASKS = ("truth", "choice")
"""Tasks of probes whose labels are the right answers."""
MOST_WORDS = 12
"""Rows of the heat map of words."""


def _named_positions(attributes: Mapping[str, Any], _: Mapping[str, pd.DataFrame], __: Arrays) -> str | None:
    return None if attributes["positions"] else "expected at least one position, found none"


class LogitLens(
    Result,
    kind="logit_lens",
    command="lens",
    schema={
        **attributes_of(str, "store condition"),
        **attributes_of(float, "level"),
        **CHOICE,
        **attributes_of(int, "draws seed"),
        "positions": list[str],
        "choices": list[str],
        "relations": list[str],
        "without_word": list[str],
        "cap": float | None,
    },
    rules=(_named_positions,),
):
    """Share of examples that the model's own final norm and unembedding decode rightly at each layer and position."""

    table: pd.DataFrame = table_field(
        columns(
            text="position measure",
            ints="layer examples images",
            shares="value low high baseline",
            floats="low_simultaneous high_simultaneous",
            keys=["position measure layer"],
        )
    )
    """One row per position, measure and layer: examples, images, value with low, high (pointwise interval), low_simultaneous,
    high_simultaneous (band over layers), and baseline. measure `answer`: share of examples whose answer choice with the highest logit is
    the right one; `relation`: share of the examples with a true caption whose relation word with the highest logit is that of their
    relation. baseline: share of the most frequent right answer or relation."""
    words: pd.DataFrame = table_field(columns(text="position relation", ints="layer", shares="share true", empty=True))
    """One row per position, layer and relation: `share` of the examples of the measure `relation` for which the relation's word is the
    likeliest, and `true`, the share of the examples that have this relation."""
    probe: pd.DataFrame = table_field(columns(text="position task metric", ints="layer", shares="value low high", empty=True))
    """Scores of saved probes for the right answer, one row per position and layer; empty without any."""
    examples: NDArray[np.int64] = array_field("int", "example", name="example")
    """(example,) example numbers, of all positions together."""
    attributes: Mapping[str, Any]
    """store, condition, only, positions, choices, relations (with a word), without_word (relations that have no token of their own), cap,
    level, draws, seed."""

    @property
    def options(self) -> Mapping[str, Any]:
        """Parameters of `logit_lens`, without the probes."""
        own = self.attributes
        return {"positions": tuple(own["positions"]), "only": self.only, **{name: own[name] for name in ("level", "draws", "seed")}}

    def rows(self, position: str, measure: str) -> pd.DataFrame:
        """Rows of a position and measure (`answer`, `relation`) by layer; none where the measure does not apply."""
        table = self.table
        return table[(table["position"] == position) & (table["measure"] == measure)].sort_values("layer").reset_index(drop=True)

    def decoded(self, position: str, measure: str = "answer") -> list[int]:
        """Layers at which the share is significantly above the baseline: the simultaneous band excludes it.

        Parameters
        ----------
        position, measure
            As of `rows`.
        """
        rows = self.rows(position, measure)
        return [int(k) for k in rows["layer"][rows["low_simultaneous"] > rows["baseline"]]]

    def to_frame(self) -> pd.DataFrame:
        """The table by position, measure and layer."""
        return self.table

    def summary(self) -> str:
        """Shares of each position and measure at the first significant and the last layer, and the largest distance from the probe."""
        lines = []
        for position in self.attributes["positions"]:
            for measure, name in MEASURES.items():
                rows = self.rows(position, measure)
                if len(rows):
                    lines.append(f"{position}: {name} {self._layers_text(rows, self.decoded(position, measure))}")
            lines += self._beside_probe(position)
        if self.attributes["without_word"]:
            lines.append(f"relations without a token of their own, left out: {', '.join(self.attributes['without_word'])}")
        return "\n".join(lines)

    def _layers_text(self, rows: pd.DataFrame, decoded: Sequence[int]) -> str:
        last = rows.iloc[-1]
        frequent = f"the most frequent one {last['baseline']:.1%}, {last['examples']:,} examples"
        if not decoded:
            best, error = rows.iloc[int(rows["value"].argmax())], standard_error(rows["low"], rows["high"], self.attributes["level"])
            least = rows["baseline"] + minimum_detectable_effect((rows["value"] - rows["low_simultaneous"]).to_numpy(), error)
            power = f"{min(least.max(), 1):.1%} would have been detected with 80 % power"
            return f"at no layer significantly above the baseline, at most {_share(best)} ({frequent}; {power})"
        first, found = rows[rows["layer"] == decoded[0]].iloc[0], LayerIntervals.of(rows["layer"], rows["layer"].isin(decoded))
        ends = f"{_share(first)} at layer {decoded[0]}, {_share(last)} at layer {last['layer']}"
        return f"significantly above the baseline in {found}; {ends} ({frequent})"

    def _beside_probe(self, position: str) -> list[str]:
        probe = self.probe[self.probe["position"] == position]
        both = self.rows(position, "answer").merge(probe, on="layer", suffixes=("", "_probe"))
        if not len(both):
            return []
        row = both.iloc[int((both["value_probe"] - both["value"]).argmax())]
        return [
            f"{position}: the probe for {row['task']} is furthest ahead at layer {row['layer']}: {row['metric'].replace('_', ' ')} "
            f"{row['value_probe']:.1%}, readout {row['value']:.1%}"
        ]

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the shares by layer with simultaneous bands, the baselines dotted, the accuracy of probes dashed."""
        from stratascope.figures.layer_profiles import draw_lens

        several = len(self.attributes["positions"]) > 1
        series, probes = {}, {}
        for position in self.attributes["positions"]:
            for measure, name in MEASURES.items():
                series[f"{name}, {position}" if several else name] = self.rows(position, measure)
            probes[f"probe, {position}" if several else "probe"] = self.probe[self.probe["position"] == position]
        kept, beside = ({name: rows for name, rows in each.items() if len(rows)} for each in (series, probes))
        return draw_lens(kept, beside, new_axes(ax), title=titled("logit lens", self.only))

    def word_grid(self, position: str) -> pd.DataFrame:
        """Relation (rows) by layer: share of examples at a `position` whose likeliest word it is; at most `MOST_WORDS` relations."""
        grid = self.words[self.words["position"] == position].pivot(index="relation", columns="layer", values="share")
        return grid.loc[grid.max(axis=1).sort_values(ascending=False, kind="stable").index[:MOST_WORDS]]

    def figure(self, store: ActivationStore | None = None) -> Figure:
        """Shares by layer, and the likeliest relation words by layer of the first position."""
        from stratascope.figures.layer_profiles import draw_lens_and_words

        position = self.attributes["positions"][0]
        return draw_lens_and_words(self.plot, self.word_grid(position), title=f"likeliest relation word, {position}")


def logit_lens(
    store: ActivationStore,
    examples: Sequence[int] | NDArray[Any] | None = None,
    *,
    positions: Sequence[str] = (),
    only: Sequence[str] = (),
    probes: Sequence[StoredResult] = (),
    draws: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> LogitLens:
    """Decode the residual stream of every layer by the model's own final norm and unembedding (logit lens; nostalgebraist 2020).

    logits = norm(x_k) W_U for the residual stream x_k after k decoder blocks; at the last layer and the final token these are the
    model's answer logits. What a probe reads and this readout does not is in another basis than the model's output.

    Parameters
    ----------
    store
        With `residual` and the group `lens`.
    examples
        Example numbers or a mask; all recorded ones by default.
    positions
        Positions of the residual stream; `final` by default, where the store has it, otherwise the first.
    only
        COLUMN=VALUE: keep the examples with one of the given values of each column; see `store.chosen_examples`.
    probes
        Saved layer curves; those of the same store, of the right answer (tasks truth, choice), are shown beside the readout.
    draws, seed
        Bootstrap over images.
    level
        Level of the intervals.

    Returns
    -------
    LogitLens
        Shares of examples by position, measure and layer, with intervals.

    Raises
    ------
    NotRecordedError
        If the store lacks the residual stream or the group `lens`; the message names the command that adds it.
    InvalidInputError
        If a position is unknown, no examples are left, or there is nothing to compare the readout with: the labels name no choice and no
        caption is true.
    """
    readout = stored_readout(store)
    if "residual" not in store.arrays:
        raise NotRecordedError(f"{store.name}: expected the residual stream, found none; extract with `record` residual")
    chosen = tuple(positions) or (("final",) if "final" in store.positions else store.positions[:1])
    decoder = _Decoder(store, readout)
    rows: list[pd.DataFrame] = []
    words: list[pd.DataFrame] = []
    used: list[NDArray[np.int64]] = []
    groups = image_groups(store.examples).labels
    for position in chosen:
        numbers = held_examples(store, "residual", examples, only)
        numbers = numbers[store.available("residual", position)[numbers]]
        if not len(numbers):
            raise InvalidInputError(f"expected at least one recorded example with the position {position}, found none")
        measures, likeliest = decoder.decode(position, numbers)
        used.append(numbers)
        for measure, (of, correct, baseline) in measures.items():
            frame = _intervals(correct, Bootstrap(groups[of], draws=draws, seed=seed), level)
            frame.insert(0, "layer", list(store.layers))
            rows.append(frame.assign(position=position, measure=measure, examples=len(of), baseline=baseline))
        words.append(likeliest.assign(position=position))
    if not rows:
        raise InvalidInputError(
            f"{store.name}: expected labels that name the right choice, or true captions with relations, found neither; nothing can be "
            "compared with the readout"
        )
    questions = store.provenance.get("data", {}).get("questions")
    relations = [] if questions else sorted({name for name in store.examples["relation"] if name.strip()})
    attributes = {
        **made_from(store),
        "positions": list(chosen),
        "choices": list(store.layout.choices),
        "relations": decoder.relations,
        "without_word": [name for name in relations if name not in decoder.relations],
        "cap": readout.cap,
        "only": list(only),
        "level": level,
        "draws": draws,
        "seed": seed,
    }
    return LogitLens(
        pd.concat(rows, ignore_index=True),
        pd.concat(words, ignore_index=True),
        _probe_rows(store, probes, chosen),
        np.unique(np.concatenate(used)),
        attributes,
    )


class _Decoder:
    """The readout of a store with the right answers and the true relations of its examples."""

    def __init__(self, store: ActivationStore, readout: Readout) -> None:
        self._store, self._readout = store, readout
        self.relations: list[str] = readout.words["name"][readout.words["kind"] == "relation"].tolist()
        """Relations with a word."""
        self._choices = readout.numbers("choice", store.layout.choices)
        self._names = readout.numbers("relation")
        place = {name: k for k, name in enumerate(self.relations)}
        table = store.examples
        true = np.ones(len(table), bool) if label_kind(store.provenance) == "choice" else table["label"].to_numpy() == 1
        found = np.array([place.get(name, -1) for name in table["relation"]], np.int64)
        self._relation = np.where(true, found, -1)
        """(example,) index of the relation that is true of the image; -1 where unknown or without a word."""

    def decode(
        self, position: str, numbers: NDArray[np.int64]
    ) -> tuple[dict[str, tuple[NDArray[np.int64], NDArray[np.bool_], float]], pd.DataFrame]:
        """Measure -> its examples, (layer, example) whether the readout is right, and the baseline; the table of likeliest words."""
        store = self._store
        right = self._right(numbers)
        related = np.flatnonzero(self._relation[numbers] >= 0) if len(self.relations) > 1 else np.zeros(0, np.int64)
        target = self._relation[numbers[related]]
        answers, guesses = [], []
        for layer in store.layers:
            x = store.read("residual", layer=layer, position=position, examples=numbers)
            if right is not None:
                answers.append(offered_logits(store, self._readout.logits(x, self._choices), numbers).argmax(-1) == right)
            if len(related):
                guesses.append(self._readout.logits(x[related], self._names).argmax(-1))
        found: dict[str, tuple[NDArray[np.int64], NDArray[np.bool_], float]] = {}
        if right is not None:
            found["answer"] = numbers, np.stack(answers), float(np.bincount(right).max() / len(right))
        words = pd.DataFrame({"layer": pd.Series(dtype=np.int64), "relation": "", "share": 0.0, "true": 0.0})
        if len(related):
            top = np.stack(guesses)
            found["relation"] = numbers[related], top == target, float(np.bincount(target).max() / len(target))
            true = np.bincount(target, minlength=len(self.relations)) / len(target)
            shares = [np.bincount(row, minlength=len(self.relations)) / len(target) for row in top]
            pieces = [
                {"layer": k, "relation": self.relations, "share": share, "true": true}
                for k, share in zip(store.layers, shares, strict=True)
            ]
            words = pd.concat([pd.DataFrame(piece) for piece in pieces], ignore_index=True)
        return found, words

    def _right(self, numbers: NDArray[np.int64]) -> NDArray[np.int64] | None:
        """(example,) index of the right choice; None where the labels name none."""
        try:
            return right_choices(self._store, numbers)
        except NotRecordedError:
            return None


def _intervals(correct: NDArray[np.bool_], bootstrap: Bootstrap, level: float) -> pd.DataFrame:
    """value, images and intervals by layer of (layer, example) truth values."""
    values = correct.astype(np.float64)
    bands = share_band(values, bootstrap, level=level)
    return pd.DataFrame({"value": values.mean(1), **bands.ends, "images": bootstrap.count})


def _probe_rows(store: ActivationStore, probes: Sequence[StoredResult], positions: Sequence[str]) -> pd.DataFrame:
    """Accuracies of the saved probes of a store for the right answer; one curve for each position."""
    names, fingerprint, found = ["position", "task", "metric", "layer", "value", "low", "high"], store.fingerprint(), []
    for position in positions:
        for one in probes:
            mine = one.kind == "layer_curve" and one.fingerprint == fingerprint and one.position == position
            if mine and one.task in ANSWER_TASKS and one.attributes.get("array", "residual") == "residual":
                metrics = set(one.table("table")["metric"])
                metric = next((name for name in ("accuracy", "balanced_accuracy") if name in metrics), None)
                if metric is not None:
                    found.append(one.rows(metric).assign(position=position, task=one.task, metric=metric)[names])
                    break
    if found:
        return pd.concat(found, ignore_index=True)
    empty = pd.DataFrame({name: pd.Series(dtype=object if name in names[:3] else np.float64) for name in names})
    return empty.astype({"layer": np.int64})


def _share(row: pd.Series[Any]) -> str:
    return f"{row['value']:.1%} [{row['low']:.1%}, {row['high']:.1%}]"
