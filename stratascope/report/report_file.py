"""Report file: gathers results, selects examples, writes one page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import pandas as pd

from stratascope.analysis.example_images import label_text, picture, relative_boxes
from stratascope.report.blocks import Block, Card, Cited, CommandLine, Picture, Prose, Tokens
from stratascope.report.result_set import Progress, ResultSet, gather
from stratascope.report.store_report import report_page
from stratascope.results.stored_result import Source, StoredResult

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stratascope.store import ActivationStore


@dataclass(frozen=True)
class WrittenReport:
    """A report on disk."""

    path: Path
    results: ResultSet

    def summary(self) -> str:
        """Path, number of results files and size."""
        count = len(self.results.own) + len(self.results.beside)
        left = "".join(f"; left out: {line}" for line in self.results.left_out)
        size = f"{self.path.stat().st_size / 1e6:.2f} MB"
        return f"report {self.path}: {count} results files, {size}, one file without external resources{left}"


def write_report(
    store: ActivationStore,
    results: Sequence[str | Path],
    out: Path,
    *,
    where: str | Path,
    title: str = "",
    command_line: CommandLine | None = None,
    progress: Progress = lambda *_: None,
) -> WrittenReport:
    """Write the report of a store.

    Parameters
    ----------
    store
        The store.
    results
        Files and folders; the store's default folders if empty.
    out
        Path of the page.
    where
        Path or address of the store.
    title
        Title of the page; from the model and the first task by default.
    command_line
        Writes the commands that reproduce the results; without it the page lists none.
    progress
        Called with the number of results files read, and of all files.
    """
    found = gather(store, results, where=where, progress=progress)
    cards = example_cards(store, found.whole)
    page = report_page(store, found, command_name=str(where), title=title, cards=cards, command_line=command_line)
    return WrittenReport(page.write(out), found)


def example_cards(store: ActivationStore, results: ResultSet, count: int = 6) -> list[Card]:
    """Cards of correct and wrong answers, half of each where possible; [] where the results hold no answers.

    Of each kind the most and the least confident, and others between them, spread over confidence and relations.
    """
    answers = results.of("answer_confidence")
    if not answers:
        return []
    table = answers[0].table("answers")
    right, wrong = (table[table["right"] == kind] for kind in (True, False))
    of_right = min(len(right), max(count - count // 2, count - len(wrong)))
    chosen = [row for rows, share in ((right, of_right), (wrong, count - of_right)) for _, row in _spread(rows, share).iterrows()]
    block = _block(results, store)
    boxes = relative_boxes(store, [int(row["example"]) for row in chosen])
    return [_card(store, row, shown, block, answers[0]) for row, shown in zip(chosen, boxes, strict=True)]


def _spread(rows: pd.DataFrame, count: int) -> pd.DataFrame:
    """`count` rows from the most to the least confident, near an even spread, preferring relations not yet shown."""
    ordered = rows.sort_values(["confidence", "example"], ascending=[False, True])
    relations = ordered["relation"].tolist()
    if len(ordered) <= count or count < 2:
        return ordered[: max(count, 0)]
    gap = (len(ordered) - 1) / (count - 1)
    shown = {0, len(ordered) - 1}
    for k in range(1, count - 1):
        middle, reach = round(k * gap), int(gap // 2)
        # half a gap at most, so that the spread by confidence stays
        near = sorted(set(range(middle - reach, middle + reach + 1)) - shown, key=lambda place: (abs(place - middle), place))
        seen = {relations[place] for place in shown}
        shown.add(next((place for place in near if relations[place] not in seen), near[0]))
    return ordered.iloc[sorted(shown)]


def _block(results: ResultSet, store: ActivationStore) -> int | None:
    """Decoder block with the largest attention share of the image; the middle one without results."""
    if "attention_mean" not in {spec.name for spec in store.layout.arrays()}:
        return None
    shares = results.of("attention_share")
    if not shares:
        return store.layout.attention_layers[len(store.layout.attention_layers) // 2]
    own = shares[0].attributes
    image = shares[0].means("share").mean(1)[:, own["parts"].index("image")]
    return int(own["layers"][int(image.argmax())])


def image_cells(store: ActivationStore, weights: NDArray[Any], number: int) -> NDArray[Any] | None:
    """(row, column) of an example's image cells in values of its tokens; None where the image's tokens are no grid."""
    start, stop = (int(k) for k in store.spans["image"][number])
    rows, columns = (int(k) for k in store.grid[number])
    return weights[start:stop].reshape(rows, columns) if start >= 0 and 0 < rows * columns == stop - start else None


def _card(
    store: ActivationStore, row: pd.Series[Any], boxes: Mapping[str, Sequence[float]], block: int | None, answers: StoredResult
) -> Card:
    number = int(row["example"])
    facts = store.examples.iloc[number]
    cells: NDArray[Any] | None = None
    blocks: list[Block] = []
    if block is not None and store.available("attention_mean")[number]:
        weights = store.read("attention_mean", layer=block, examples=number)[: int(store.n_tokens[number])]
        start, stop = (int(k) for k in store.spans["image"][number])
        cells = image_cells(store, weights, number)
        first, last = (int(k) for k in store.spans["caption"][number])
        share = float(weights[start:stop].sum()) if start >= 0 else 0.0
        source = Source(PurePath(store.name).name, "attention_mean", f"block {block}, example {number}, tokens of the image")
        words: list[str | Cited] = ["Block ", str(block), ": ", Cited(f"{share:.0%}", share, source), " of the attention on the image"]
        blocks = [Tokens(store.tokens(number)[first:last], weights[first:last], words)] if first >= 0 else [Prose(words)]
    sure = Cited(f"{row['confidence']:.1%}", float(row["confidence"]), answers.source("tables/answers", f"example {number}"))
    shown: list[Block] = [
        Picture(picture(store, number), f"example {number}: {facts['caption']}", cells, boxes),
        Prose([f"Answer: {row['answer']} (confidence ", sure, f"); label: {label_text(store, number)}."]),
        *blocks,
        Prose(f"Example {number}, {facts['id']}"),
    ]
    return Card(str(facts["caption"]), shown, "correct" if row["right"] else "wrong", bool(row["right"]))
