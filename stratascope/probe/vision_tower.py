"""Entanglement: what is linearly readable from an object's own image cells, by block of the vision tower."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stratascope.errors import InvalidInputError, NotRecordedError, TooFewExamplesError
from stratascope.figures.drawing import new_figure
from stratascope.figures.layer_profiles import draw_tower
from stratascope.figures.style import paper_style
from stratascope.probe.curve.layer_curve import LayerCurve
from stratascope.probe.study.study import SCHEDULER, probe_study
from stratascope.results.file import made_from
from stratascope.results.result import Result, new_axes, table_field
from stratascope.results.schema import columns
from stratascope.stats.bootstrap import Bootstrap
from stratascope.stats.intervals import interval_text
from stratascope.stats.mean_ratio import mean_ratio
from stratascope.store import ActivationStore
from stratascope.store.format.json_schema import each

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Floats = NDArray[Any]
PLACES = {"subject_box": ("subject", "object"), "object_box": ("object", "subject")}
"""Position -> whose cells they are, and who the other is."""
FULL_ATTENTION = {("qwen2_5_vl", 32): (7, 15, 23, 31)}
"""Family and blocks of the tower -> its blocks that attend to the whole image, of stores that were written before they said so."""
MERGED = "merged"


class Entanglement(
    Result,
    kind="entanglement",
    command="entanglement",
    schema={
        **each(str, "store condition without_relation"),
        **each(int, "folds seed"),
        **each(float, "level"),
        "full_attention": list[int],
    },
):
    """Probe scores on the image cells of subject and object, by block of the vision tower."""

    table: pd.DataFrame = table_field(
        columns(
            text="position what stage",
            ints="layer",
            floats="value low high chance",
            flags="whole_image",
            keys=["position what stage layer"],
            values={"position": "subject_box object_box", "stage": "tower merged"},
        )
    )
    """position (`subject_box`, `object_box`), what (`own place`, `other's place`: R2 of the box's centre, mean of x and y; `relation`:
    balanced accuracy among the true captions), stage (`tower` or `merged`, as handed to the decoder), layer (blocks passed), whole_image
    (whether the last block passed attends to the whole image), value, low, high, chance."""
    attributes: Mapping[str, Any]
    """store, condition, full_attention (blocks), folds, seed, level, without_relation (why the relation was not asked for, or "")."""

    def rows(self, position: str, what: str) -> pd.DataFrame:
        """Rows of one curve, by layer, the merged one last.

        Parameters
        ----------
        position, what
            As in the table.

        Raises
        ------
        InvalidInputError
            If the table has no such curve.
        """
        found = self.table[(self.table["position"] == position) & (self.table["what"] == what)]
        if found.empty:
            raise InvalidInputError(f"expected a curve of the table, found {position}, {what}")
        return found.reset_index(drop=True)

    @property
    def curves(self) -> dict[tuple[str, str], pd.DataFrame]:
        """(position, what) -> rows of the curve."""
        keys = dict.fromkeys(zip(self.table["position"], self.table["what"], strict=True))
        return {key: self.rows(*key) for key in keys}

    @property
    def options(self) -> Mapping[str, Any]:
        """Parameters of `entanglement`."""
        return {name: self.attributes[name] for name in ("full_attention", "folds", "seed", "level")}

    @property
    def _heading(self) -> str:
        return f"Entanglement: {len(self.curves)} curves over {self.table['layer'].max()} blocks of the vision tower"

    def summary(self) -> str:
        """Each curve before the first block, at its best block and in the merged cells."""
        lines = [_curve_text(position, what, rows) for (position, what), rows in self.curves.items()]
        if self.attributes["without_relation"]:
            lines.append(f"relation not probed: {self.attributes['without_relation']}")
        return "\n".join(lines)

    def to_frame(self) -> pd.DataFrame:
        """The table."""
        return self.table

    def plot(self, ax: Axes | None = None, *, position: str = "") -> Axes:
        """Draw the curves from the cells of one object; blocks that attend to the whole image are marked, unless all do.

        Parameters
        ----------
        ax
            Axes to draw on; a new figure's by default.
        position
            `subject_box` or `object_box`; the first of the table by default.
        """
        position = position or str(self.table["position"].iloc[0])
        marked = self.attributes["full_attention"]
        marked = [] if len(marked) >= self.table["layer"].max() else marked
        curves = {what: rows for (place, what), rows in self.curves.items() if place == position}
        return draw_tower(curves, new_axes(ax), full_attention=marked, title=f"cells of the {PLACES[position][0]}")

    def figure(self, store: ActivationStore | None = None) -> Figure:
        """One panel for the cells of each object."""
        positions = list(dict.fromkeys(self.table["position"]))
        figure, axes = new_figure(len(positions), width=3.3 * len(positions), height=2.7)
        with paper_style():
            for position, ax in zip(positions, axes, strict=True):
                self.plot(ax, position=position)
            figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
        return figure


def _curve_text(position: str, what: str, rows: pd.DataFrame) -> str:
    tower, merged = rows[rows["stage"] == "tower"], rows[rows["stage"] == MERGED]
    best = tower.iloc[int(tower["value"].to_numpy(float).argmax())]
    last = f", merged {merged['value'].iloc[0]:.2f}" if len(merged) else ""
    first, cells = tower["value"].iloc[0], position.replace("_", " ")
    ends = interval_text(best["low"], best["high"], absent="(too few images for an interval)")
    return (
        f"{what:<14} from the {cells}: {first:+.2f} before the first block, highest {best['value']:.2f} {ends} "
        f"after {int(best['layer'])} blocks{last} (chance {best['chance']:.2f}){_rise_text(tower)}"
    )


def _rise_text(tower: pd.DataFrame) -> str:
    """The block at which the score rises most, where the intervals before and after it do not overlap."""
    gains = np.diff(tower["value"].to_numpy(float))
    k = int(gains.argmax()) if len(gains) else 0
    if not len(gains) or not tower["low"].iloc[k + 1] > tower["high"].iloc[k]:
        return ""
    whole = ", which attends to the whole image" if tower["whole_image"].iloc[k + 1] else ""
    return f"; rises most, by {gains[k]:.2f}, at block {int(tower['layer'].iloc[k + 1]) - 1}{whole}"


def entanglement(
    store: ActivationStore,
    *,
    full_attention: Sequence[int] | None = None,
    folds: int = 5,
    seed: int = 0,
    level: float = 0.95,
    scheduler: str | None = SCHEDULER,
    progress: bool = False,
) -> Entanglement:
    """Probe the cells of subject and object after every block of the vision tower, and in the decoder's input.

    If an object's cells encode the location of the *other* object, the image tokens are entangled before the decoder sees them. The
    relation is probed on true captions alone, because the vision tower does not see the caption.

    Parameters
    ----------
    full_attention
        Blocks with attention over the whole image, to be marked; by default those that the store names, none where unknown.
    folds, seed, level
        Fields of `ProbeSettings`.
    scheduler, progress
        As of `probe_study`.

    Raises
    ------
    NotRecordedError
        If the store holds no residual stream of the vision tower, or no boxes.
    TooFewExamplesError
        If too few examples have a box; without enough of them for the relation alone, the result says so.
    """
    layout = store.layout
    if "vision_residual" not in layout.record:
        raise NotRecordedError(
            "expected vision_residual in the store, found none; extract again with --record vision_residual,vision_output"
        )
    positions = [name for name in PLACES if name in layout.vision_positions]
    if not positions:
        raise NotRecordedError("expected cells of the gold boxes in the store, found none; extract with `boxes` (COCO instances)")
    options: dict[str, Any] = {"folds": folds, "seed": seed, "level": level, "scheduler": scheduler, "progress": progress}
    true = np.flatnonzero((store.examples["label"] == 1).to_numpy() & store.available("answer_logits"))
    parts: list[pd.DataFrame] = []
    lacking = ""
    for array, stage in (("vision_residual", "tower"), ("vision_output", MERGED)):
        if array not in layout.record:
            continue
        for position in positions:
            (places,) = probe_study(store, ("geometry",), (position,), array=array, **options)
            own, other = PLACES[position]
            found = {"own place": _place(places, own, level), "other's place": _place(places, other, level)}
            try:
                if not len(true):
                    raise TooFewExamplesError("expected true captions for the relation, found none; label the examples")
                (relation,) = probe_study(store, ("relation",), (position,), array=array, examples=true, **options)
                found["relation"] = relation.rows("balanced_accuracy")[["layer", "value", "low", "high", "chance"]]
            except TooFewExamplesError as error:
                lacking = str(error)
            parts += [rows.assign(position=position, what=what, stage=stage) for what, rows in found.items()]
    table = pd.concat(parts, ignore_index=True)
    table.loc[table["stage"] == MERGED, "layer"] = layout.vision_layers
    marked = full_attention if full_attention is not None else known_blocks(store)
    attributes: dict[str, Any] = {
        **made_from(store),
        "full_attention": [int(k) for k in marked],
        "folds": folds,
        "seed": seed,
        "level": level,
        "without_relation": lacking,
    }
    table["whole_image"] = (table["stage"] == "tower") & (table["layer"] - 1).isin(attributes["full_attention"])
    return Entanglement(table[["position", "what", "stage", "layer", "whole_image", "value", "low", "high", "chance"]], attributes)


def _place(curve: LayerCurve, who: str, level: float) -> pd.DataFrame:
    """R2 of one thing's centre, the mean of x and y, with its interval."""
    targets = [f"{who}_x", f"{who}_y"]
    found = curve.logits[:, [curve.targets.index(target) for target in targets]]
    bootstrap = Bootstrap(curve.examples["group"].to_numpy(), draws=curve.draws["r2"].shape[1])
    noise = curve.folds[curve.folds["target"].isin(targets)].groupby("layer")["noise_share"].mean().to_numpy(np.float64)
    value, low, high = r2_interval(curve.examples[targets].to_numpy().T, found, bootstrap, level, np.nan_to_num(noise, nan=1.0))
    return pd.DataFrame({"layer": curve.rows("r2")["layer"], "value": value, "low": low, "high": high, "chance": 0.0})


def r2_interval(values: Floats, found: Floats, bootstrap: Bootstrap, level: float, noise: Floats) -> tuple[Floats, Floats, Floats]:
    """Mean R2 over targets by layer, and the ends of its interval: bootstrap-t of the logarithm of 1 - R2; NaN for fewer than 24 groups.

    1 - R2 is the ratio of two means: squared errors, and squared deviations from the mean, both over the variance.

    Parameters
    ----------
    values, found
        (target, example) values, and (layer, target, example) predictions.
    bootstrap
        Resamples of the examples' groups.
    level
        Of the intervals.
    noise
        (layer,) share of the predictions' variance that is due to the training sample; intervals are widened as draws of scores are.
    """
    values, found = values.astype(np.float64), found.astype(np.float64)
    variance = values.var(axis=1, keepdims=True)
    errors = (np.square(found - values) / variance).mean(axis=1)
    deviations = (np.square(values - values.mean(axis=1, keepdims=True)) / variance).mean(axis=0)
    bottom = np.broadcast_to(deviations, errors.shape)
    rest, _, bands = mean_ratio(errors, bottom, bootstrap, level=level, positive=True, families=np.arange(len(errors)))
    low, high = (1 - rest * (end / rest) ** np.sqrt(1 + noise) for end in (bands.high, bands.low))
    return 1 - rest, low, high


def known_blocks(store: ActivationStore) -> tuple[int, ...]:
    """Blocks of the vision tower that see the whole image, as the store says or its family is known; none where neither is."""
    said = (store.provenance.get("vision") or {}).get("full_attention")
    model = store.provenance.get("model")
    family = model.get("family") if isinstance(model, dict) else None
    usual = FULL_ATTENTION.get((family or "", store.layout.vision_layers), ())
    return usual if said is None else tuple(said)
