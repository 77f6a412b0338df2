"""Localisation: scores of attribution methods on the named objects, relative to other objects and the background.

A faithful method scores the cells of the two named objects above those of other objects. Scores are signed sums over heads and blocks;
their absolute value is taken per cell at the end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stratascope.analysis.box_cells import box_tokens, other_tokens, photo_alignments
from stratascope.analysis.knockout_targets import MODE_LABELS, cell_groups
from stratascope.analysis.parallel import held_examples, over_blocks
from stratascope.analysis.relevance import RANDOM_DRAWS, Method, few_blocks, methods_of, random_scores, token_scores
from stratascope.datasets.boxes import BoxIndex
from stratascope.errors import InvalidInputError, TooFewExamplesError
from stratascope.figures.attributions import AGAINST, draw_ratios
from stratascope.figures.drawing import new_figure
from stratascope.figures.style import paper_style
from stratascope.results.file import made_from
from stratascope.results.result import Result, array_field, new_axes, table_field
from stratascope.results.schema import columns
from stratascope.stats.bootstrap import Bootstrap, repetition_weights
from stratascope.stats.intervals import interval_text
from stratascope.stats.mean_ratio import mean_ratio
from stratascope.store import ActivationStore
from stratascope.store.format.json_schema import Along, each
from stratascope.store.io.example_identity import image_groups

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PLACES = ("named", "others", "ground")
"""Cells of subject and object; of other objects; of neither."""
MEASURED = {mode: f"knockout effect, {MODE_LABELS[mode]}" for mode in ("later", "final")}
LEFT_OUT = ("position",)
"""Methods without a zero of the score, so without a ratio."""
PIECE = 8
FEWEST_OF_RANDOM = 16
"""Images below which the ratio of random scores, whose mean no few images decide, has no interval."""
LISTED_IMAGES = 5
"""Images with refused boxes that a summary lists."""

Floats = NDArray[np.float64]


class Pointing(
    Result,
    kind="pointing",
    command="pointing",
    schema={
        **each(str, "store condition"),
        **each(int, "draws seed random_draws?"),
        **each(float, "level"),
        "places": Along("place", str),
        "others": bool,
        "boxes?": dict[str, str],
        "few": tuple[int, int],
        "missing": dict[str, str],
    },
):
    """Localisation of each method on the named objects, relative to other objects or the background."""

    selects_examples: ClassVar[bool] = True

    table: pd.DataFrame = table_field(
        columns(
            "row",
            text="method label",
            ints="examples images",
            floats="named others ground over_others over_others_low over_others_high over_ground over_ground_low over_ground_high",
            shares="wins",
            keys=["method"],
        ),
        name="methods",
    )
    """method, label, named, others, ground (mean absolute score per cell, over examples), over_others, over_others_low, over_others_high
    (ratio named / others over the examples with both; interval by bootstrap-t over images, NaN where too few images decide it),
    over_ground with the same ends, wins (share of examples with a larger score on named cells than on others; than on the ground where
    others are unknown), examples, images. Measured knockout effects come first, then methods by decreasing ratio."""
    values: Floats = array_field("float", "row example place")
    """(row of the table, example, place): mean absolute score per cell at each of `PLACES`; NaN without such a cell."""
    examples: NDArray[np.int64] = array_field("int", "example", name="example")
    """(example,) example numbers."""
    attributes: Mapping[str, Any]
    """store, condition, places, others (whether boxes of other objects were given), level, draws, seed, random_draws (of random scores,
    whose row is a mean over draws), few (blocks), missing (method -> arrays to record); box_alignment (number of images with scaled or
    turned boxes, and images with refused boxes with the reason) where boxes were not used as annotated."""

    @property
    def against(self) -> str:
        """Reference of the ratio: `others` where their boxes were given, else `ground`."""
        return "others" if self.attributes["others"] else "ground"

    @property
    def options(self) -> Mapping[str, Any]:
        """Parameters of `pointing`; `boxes` is the digest of the file by its name."""
        return {name: self.attributes.get(name) for name in ("boxes", "level", "draws", "seed")}

    def to_frame(self) -> pd.DataFrame:
        """The table."""
        return self.table

    def summary(self) -> str:
        """Ratio of each method, and the arrays that the missing methods need."""
        against = self.against
        lines = [
            f"mean absolute score per cell, named objects / {AGAINST[against]} ({len(self.examples)} examples); "
            "share of examples with a ratio above 1"
        ]
        for row in self.table.to_dict("records"):
            value, low, high = (row[f"over_{against}{end}"] for end in ("", "_low", "_high"))
            lines.append(f"  {value:6.2f} {interval_text(low, high)}  {row['wins']:4.0%}  {row['label']}")
        lines += _alignment_text(self.attributes.get("box_alignment", {}))
        if against == "ground":
            lines.append("other objects are unknown and count as background; give the boxes of all objects in the images")
        return "\n".join([*lines, *(f"not available: {name}; record {arrays}" for name, arrays in self.attributes["missing"].items())])

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the ratio of each method with its interval on a log axis."""
        return draw_ratios(self.table, self.against, new_axes(ax, height=0.7 + 0.24 * len(self.table)))

    def figure(self, store: ActivationStore | None = None) -> Figure:
        """The ratios, one row per method."""
        figure, (ax,) = new_figure(1, width=5.2, height=0.7 + 0.24 * len(self.table))
        with paper_style():
            self.plot(ax)
        return figure


def _alignment_text(alignment: Mapping[str, Any]) -> list[str]:
    """Lines on boxes that were not used as annotated."""
    counts = [f"{case} for {alignment[case]:,} images" for case in ("scaled", "turned") if case in alignment]
    lines = [f"boxes {' and '.join(counts)} to fit their photos"] if counts else []
    refused = list(alignment.get("refused", {}).items())
    if refused:
        more = f"; and {len(refused) - LISTED_IMAGES} more" if len(refused) > LISTED_IMAGES else ""
        named = "; ".join(f"{name}: {reason}" for name, reason in refused[:LISTED_IMAGES])
        lines.append(f"left out: {len(refused):,} images with boxes that do not fit their photo: {named}{more}")
    return lines


def pointing(
    store: ActivationStore,
    boxes: BoxIndex | None = None,
    examples: Sequence[int] | NDArray[Any] | None = None,
    *,
    methods: Sequence[str] | None = None,
    level: float = 0.95,
    draws: int = 1000,
    seed: int = 0,
    scheduler: str | None = None,
    progress: bool = False,
) -> Pointing:
    """Localisation of each method: mean absolute score on cells of the named objects, of other objects and of the ground.

    A cell has the measured knockout effect of its group of cells. The ratio divides means over examples, so that examples with large
    effects weigh more; `wins` counts each example once. Intervals are by bootstrap-t over images of the logarithm of the ratio, those of
    random scores by percentiles; below 24 images (16 of random scores) there are none.

    Parameters
    ----------
    boxes
        Boxes of all objects in the images. With them, examples without other objects are left out; without them, all other cells are
        ground.
    examples
        Example numbers or a mask; by default those with measured knockouts if there are any, else all that are recorded. Only examples
        with both boxes count.
    methods
        Names of `relevance.METHODS`; by default all whose arrays the store holds.
    level, draws, seed
        Level of the intervals; draws and seed of the bootstrap.
    scheduler
        None or `synchronous`, `threads`, `processes`, or the address of a Dask scheduler.
    progress
        Show a progress bar where stderr is a terminal.

    Raises
    ------
    NotRecordedError
        If the store holds no boxes, or lacks an array of a method in `methods`.
    TooFewExamplesError
        If fewer than two images have such cells.
    InvalidInputError
        If the boxes of no image fit its photo.
    """
    layout = store.layout
    if boxes is not None:
        boxes = boxes.of_images(store.examples["image"])
    allowed, missing = methods_of(store, methods)
    allowed = tuple(method for method in allowed if method.name not in LEFT_OUT)
    held = [name for name in ("answer_logits", *(n for m in allowed for n in m.needs)) if name in layout.record or name == "answer_logits"]
    chosen = held_examples(store, "answer_logits", examples)
    modes = layout.knockout_modes if "knockout" in layout.record else ()
    if modes and examples is None and len(chosen):
        chosen = chosen[np.isfinite(store.read("knockout", examples=chosen)).any((1, 2, 3))]
    for name in dict.fromkeys(held):
        chosen = chosen[store.available(name)[chosen]]
    named = box_tokens(store, chosen)[:, 2]
    others = np.zeros_like(named) if boxes is None else other_tokens(store, chosen, boxes)
    alignment = {} if boxes is None else _alignment(store, chosen[named.any(1)], boxes)
    image = store.spans["image"][chosen]
    token = np.arange(named.shape[1])
    ground = (token >= image[:, :1]) & (token < image[:, 1:]) & ~named & ~others
    kept = named.any(1) & (ground.any(1) if boxes is None else others.any(1))
    images = image_groups(store.examples).labels[chosen[kept]]
    if len(set(images)) < 2:
        what = "both boxes known" + ("" if boxes is None else " and another object")
        raise TooFewExamplesError(f"expected recorded examples of at least two images with {what}, found {int(kept.sum())} examples")
    places = np.stack([named, others, ground], 1)[kept]
    few = few_blocks(layout.layers)
    options: dict[str, Any] = {"methods": allowed, "modes": tuple(mode for mode in MEASURED if mode in modes), "few": few, "seed": seed}
    numbers = chosen[kept]
    scores = np.concatenate(
        over_blocks(_scores, store, numbers, at_most=PIECE, scheduler=scheduler, progress=progress, label="pointing", **options)
    )  # (example, row, token)
    values = np.moveaxis(_means(np.abs(scores), places), 1, 0)  # (row, example, place)
    rows = [(f"knockout_{mode}", MEASURED[mode]) for mode in options["modes"]] + [(m.name, m.label) for m in allowed]
    over: dict[str, Any] = {
        "bootstrap": Bootstrap(images, draws=draws, seed=seed),
        "images": images,
        "level": level,
        "others": boxes is not None,
    }
    table = pd.DataFrame(rows, columns=["method", "label"]).join(_summarised(values, **over))
    for row in table.index[table["method"] == "random"]:
        several = _random_means(store, numbers, places, seed)
        values[row] = several.mean(0)
        for name, number in _random_summary(several, seed=seed, **over).items():
            table.loc[row, name] = number
    order = np.lexsort((-table["over_others" if boxes is not None else "over_ground"], ~table["method"].str.startswith("knockout_")))
    attributes = {
        **made_from(store),
        "places": list(PLACES),
        "others": boxes is not None,
        "level": level,
        "draws": draws,
        "seed": seed,
        "random_draws": RANDOM_DRAWS,
        "few": list(few),
        "missing": missing,
        **({"box_alignment": alignment} if alignment else {}),
    }
    return Pointing(table.iloc[order].reset_index(drop=True), values[order], numbers, attributes)


def _alignment(store: ActivationStore, numbers: NDArray[np.int64], boxes: BoxIndex) -> dict[str, Any]:
    """Numbers of images with scaled and turned boxes, and refused images by name; InvalidInputError where all are refused."""
    alignments = photo_alignments(store, numbers, boxes)
    cases = [alignment.case for alignment in alignments.values()]
    refused = {name: alignment.reason for name, alignment in alignments.items() if alignment.case == "refused"}
    if refused and len(refused) == len(alignments):
        name, reason = next(iter(refused.items()))
        raise InvalidInputError(f"expected boxes that fit the photos, found none in {len(refused):,} images: {name}: {reason}")
    counted: dict[str, Any] = {case: cases.count(case) for case in ("scaled", "turned") if case in cases}
    return {**counted, **({"refused": refused} if refused else {})}


def _scores(
    store: ActivationStore, numbers: NDArray[np.int64], *, methods: Sequence[Method], modes: Sequence[str], few: tuple[int, int], seed: int
) -> Floats:
    """(example, row, token): measured effects, then methods; NaN after the prompt and without a measurement."""
    layout = store.layout
    out = np.full((len(numbers), len(modes) + len(methods), layout.tokens), np.nan)
    effects = store.read("knockout", examples=numbers) if modes else None
    for k, number in enumerate(numbers):
        if effects is not None:
            for name, members in cell_groups(store, int(number)).items():
                if name in layout.knockout_targets:
                    target = layout.knockout_targets.index(name)
                    for row, mode in enumerate(modes):
                        out[k, row, : len(members)][members] = effects[k, layout.knockout_modes.index(mode), 0, target]
        found = token_scores(store, int(number), methods, window=(0, layout.layers), few=few, seed=seed)
        for row, method in enumerate(methods):
            score = found[method.name]
            out[k, len(modes) + row, : len(score)] = score
    return out


def _means(sizes: Floats, places: NDArray[np.bool_]) -> Floats:
    """(example, row, place) mean of (example, row, token) over the tokens of each place; NaN without tokens."""
    members = places.astype(np.float64).swapaxes(1, 2)  # (example, token, place)
    known = np.isfinite(sizes)
    sums, counts = np.where(known, sizes, 0) @ members, known.astype(np.float64) @ members
    return np.asarray(np.where(counts > 0, sums / np.maximum(counts, 1), np.nan))


def _summarised(values: Floats, *, bootstrap: Bootstrap, images: NDArray[Any], level: float, others: bool) -> pd.DataFrame:
    """The columns of the table from (row, example, place) means."""
    columns = _ratios(values, others)
    for k, place in enumerate(PLACES[1:], start=1):
        bands = mean_ratio(values[..., 0], values[..., k], bootstrap, level=level, positive=True, families=np.arange(len(values)))[2]
        columns[f"over_{place}_low"], columns[f"over_{place}_high"] = bands.low, bands.high
    both = np.isfinite(values[..., 0]) & np.isfinite(values[..., 1 if others else 2])
    columns |= {"examples": both.sum(1), "images": [len(set(images[row])) for row in both]}
    if not others:
        columns |= dict.fromkeys(("others", "over_others", "over_others_low", "over_others_high"), np.nan)
    return pd.DataFrame(columns)


def _ratios(values: Floats, others: bool) -> dict[str, Any]:
    """Means at the places, their ratios over the examples with both, and wins, (row,) each."""
    known = np.isfinite(values)
    columns: dict[str, Any] = {place: _mean_known(values[..., k], known[..., k]) for k, place in enumerate(PLACES)}
    for k, place in enumerate(PLACES[1:], start=1):
        both = known[..., 0] & known[..., k]
        with np.errstate(divide="ignore", invalid="ignore"):
            columns[f"over_{place}"] = _mean_known(values[..., 0], both) / _mean_known(values[..., k], both)
    against = values[..., 1 if others else 2]
    both = known[..., 0] & np.isfinite(against)
    won = np.where(values[..., 0] == against, 0.5, values[..., 0] > against)
    columns["wins"] = np.where(both, won, 0).sum(1) / np.maximum(both.sum(1), 1)
    return columns


def _mean_known(values: Floats, known: NDArray[np.bool_]) -> Floats:
    """(row,) means over the known examples; NaN without."""
    return np.where(known.any(1), np.where(known, values, 0).sum(1) / np.maximum(known.sum(1), 1), np.nan)


def _random_means(store: ActivationStore, numbers: NDArray[np.int64], places: NDArray[np.bool_], seed: int) -> Floats:
    """(draw, example, place) means of random scores; the first draw is that of `token_scores`."""
    scores = np.full((len(numbers), RANDOM_DRAWS, places.shape[2]), np.nan)
    for k, number in enumerate(numbers):
        tokens = int(store.n_tokens[number])
        scores[k, :, :tokens] = random_scores((1, tokens), example=int(number), seed=seed)[:, 0]
    return np.moveaxis(_means(scores, places), 1, 0)


def _random_summary(
    values: Floats, *, bootstrap: Bootstrap, images: NDArray[Any], level: float, others: bool, seed: int
) -> dict[str, float]:
    """Means over draws of their ratios and wins; intervals include the variance between draws over their number."""
    columns = _ratios(values, others)
    weights = repetition_weights(len(values), len(bootstrap.weights), [seed, len(values)])
    found = {"wins": float(columns["wins"].mean())}
    for k, place in enumerate(PLACES[1:], start=1):
        ratios, ends = columns[f"over_{place}"], np.full(2, np.nan)
        both = np.isfinite(values[..., 0]) & np.isfinite(values[..., k])
        if len(set(images[both.all(0)])) >= FEWEST_OF_RANDOM:
            top, bottom = (bootstrap.mean_of_known(np.where(both, values[..., side], np.nan)) for side in (0, k))
            ends = np.nanquantile((top / bottom).mean(0) + weights @ ratios, [0.5 - level / 2, 0.5 + level / 2])
        found |= {f"over_{place}": float(ratios.mean()), f"over_{place}_low": float(ends[0]), f"over_{place}_high": float(ends[1])}
    return found
