"""Where in the vision tower a thing's place, the other thing's place and the relation come to be linearly readable from its own cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stratascope.errors import InvalidInputError, NotRecordedError, TooFewExamplesError
from stratascope.probe.curve.layer_curve import LayerCurve
from stratascope.probe.study.study import probe_study
from stratascope.results.file import ResultFile, made_from
from stratascope.results.registry import load_result, save_result
from stratascope.store import ActivationStore

RESULT_KIND = "entanglement"
PLACES = {"subject_box": ("subject", "object"), "object_box": ("object", "subject")}
"""Position -> whose cells they are, and who the other is."""
FULL_ATTENTION = {("qwen2_5_vl", 32): (7, 15, 23, 31)}
"""Family and blocks of the tower -> its blocks that attend to the whole image, of stores that were written before they said so."""
MERGED = "merged"


@dataclass(frozen=True)
class Entanglement:
    """What can be read from the cells of one of the two things, by block of the vision tower."""

    table: pd.DataFrame
    """position (`subject_box`, `object_box`), what (`own place`, `other's place`: R2 of the box's centre, mean of x and y; `relation`:
    balanced accuracy among the true captions), stage (`tower` or `merged`, as handed to the decoder), layer (blocks passed), whole_image
    (whether the last block passed attends to the whole image), value, low, high, chance."""
    attributes: dict[str, Any]
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

    def save(self, path: Path | str) -> None:
        """Write the result to one file."""
        save_result(path, ResultFile(RESULT_KIND, {"table": self.table}, {}, self.attributes))

    @classmethod
    def load(cls, path: Path | str) -> Entanglement:
        """What `save` wrote; StoreError for any other file."""
        file = load_result(path, RESULT_KIND)
        return cls(file.tables["table"], dict(file.attributes))


def entanglement(
    store: ActivationStore,
    *,
    full_attention: Sequence[int] | None = None,
    folds: int = 5,
    seed: int = 0,
    level: float = 0.95,
    scheduler: str | None = None,
) -> Entanglement:
    """Probe the cells of subject and object after every block of the vision tower, and as they are handed to the decoder.

    A thing's own place in its cells is a position; the *other* thing's place in them is entanglement: what the decoder is said to work
    out has then been worked out before it. The tower does not see the caption; of true captions alone does the relation lie in the image.

    Parameters
    ----------
    full_attention
        Blocks that attend to the whole image, to be marked; by default those that the store names, none where they are not known.
    folds, seed, level
        Of the probes and their intervals, as of `probe_study`.
    scheduler
        Where blocks of the tower are worked on, as of `probe_study`.

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
        raise NotRecordedError("expected cells of the gold boxes in the store, found none; extract with --boxes instances.json")
    options: dict[str, Any] = {"folds": folds, "seed": seed, "level": level, "scheduler": scheduler}
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
    """R2 of one thing's centre, the mean of x and y, with the percentiles of the resamples' means."""
    names = [f"r2_{who}_x", f"r2_{who}_y"]
    rows = [curve.rows(name) for name in names]
    value = np.mean([part["value"].to_numpy(float) for part in rows], axis=0)
    drawn = np.mean([np.asarray(curve.draws[name], np.float64) for name in names], axis=0)
    low, high = np.nanquantile(drawn, [0.5 - level / 2, 0.5 + level / 2], axis=1)
    return pd.DataFrame(
        {"layer": rows[0]["layer"], "value": value, "low": np.minimum(low, value), "high": np.maximum(high, value), "chance": 0.0}
    )


def known_blocks(store: ActivationStore) -> tuple[int, ...]:
    """Blocks of the vision tower that see the whole image, as the store says or its family is known; none where neither is."""
    said = (store.provenance.get("vision") or {}).get("full_attention")
    model = store.provenance.get("model")
    family = model.get("family") if isinstance(model, dict) else None
    usual = FULL_ATTENTION.get((family or "", store.layout.vision_layers), ())
    return usual if said is None else tuple(said)
