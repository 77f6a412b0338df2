"""`EncodingUse`: layers in which a concept is encoded (by the probe), used (by interventions), both, or neither."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stratascope.causal.effects import control_method
from stratascope.causal.intervention import Intervention, event_label
from stratascope.errors import InvalidInputError, NotRecordedError
from stratascope.figures.drawing import metric_name
from stratascope.results.layer_intervals import LayerIntervals
from stratascope.results.result import Result, new_axes, table_field
from stratascope.results.schema import columns
from stratascope.results.stored_result import StoredResult
from stratascope.stats.intervals import INTERVALS
from stratascope.store.format.json_schema import each

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from stratascope.store import ActivationStore

VERDICTS = {
    (True, True): "encoded and used",
    (True, False): "encoded only",
    (False, True): "used only",
    (False, False): "neither detected",
}
"""(encoded, used) -> verdict."""
_METRICS = ("auroc", "balanced_accuracy", "r2")
"""Metrics of a curve's verdict: two classes, more, numbers."""


class EncodingUse(
    Result,
    kind="encoding_use",
    command="causal",
    schema={**each(str, "store condition concept evidence"), **each(list[str], "positions kinds"), **each(float, "level margin")},
):
    """By layer, whether a concept is encoded, used, both, or neither: probe scores joined with interventions on the same layers."""

    table: pd.DataFrame = table_field(
        columns(
            text="position metric verdict",
            ints="layer",
            floats=f"score {' '.join(f'score_{end}' for end in INTERVALS)} chance",
            flags="encoded used",
        )
    )
    """One row per position and layer: score of the probe with intervals and chance, encoded (the simultaneous lower bound exceeds
    chance), used (by the intervention `evidence`), verdict."""
    effects: pd.DataFrame = table_field(
        columns(
            text="position label",
            ints="layer",
            floats=f"value {' '.join(f'value_{end}' for end in INTERVALS)} control",
            flags="used",
        )
    )
    """One row per position, kind of intervention and layer: value (share of flipped answers; of patching the restored share) with
    intervals, control (share flipped by random directions), used."""
    events: pd.DataFrame = table_field(columns(text="position label", ints="used_onset used_offset"))
    """First layer used and first layer after the last one used; -1 for none."""
    attributes: Mapping[str, Any]
    """store, condition, concept, evidence (kind that decides `used`), positions, kinds, level, margin."""

    @property
    def options(self) -> Mapping[str, Any]:
        """Parameters of `encoding_use`."""
        return {"evidence": self.attributes["evidence"]}

    @property
    def name_parts(self) -> tuple[str | None, ...]:
        """The concept."""
        return (str(self.attributes["concept"]),)

    def encoded(self, position: str) -> LayerIntervals:
        """Layers that encode the concept at a `position`."""
        return self._layers(position, "encoded and used", "encoded only")

    def used(self, position: str) -> LayerIntervals:
        """Layers that use the concept at a `position`."""
        return self._layers(position, "encoded and used", "used only")

    def encoded_only(self, position: str) -> LayerIntervals:
        """Layers that encode the concept at a `position`, and in which its use is not detected."""
        return self._layers(position, "encoded only")

    def _layers(self, position: str, *verdicts: str) -> LayerIntervals:
        rows = self.table[self.table["position"] == position]
        return LayerIntervals.of(rows["layer"], rows["verdict"].isin(verdicts))

    def statement(self, position: str) -> str:
        """One sentence: where the concept is encoded at a `position`, and where it is used."""
        encoded, used, unused = self.encoded(position), self.used(position), self.encoded_only(position)
        parts = [f"encoded at {encoded}" if encoded else "not detected by the probe", f"used at {used}" if used else "use not detected"]
        limit = f"; encoded without detected use at {unused}" if used and unused else ""
        return f"{self.attributes['concept']} at {position}: {parts[0]}, {parts[1]} ({self.attributes['evidence']}){limit}"

    def summary(self) -> str:
        """A sentence and a table by layer for each position."""
        lines = []
        for position in self.attributes["positions"]:
            rows = self.table[self.table["position"] == position]
            if rows.empty:
                continue
            lines.append(self.statement(position))
            effects = self.effects[self.effects["position"] == position]
            labels = list(dict.fromkeys(effects["label"]))
            metric = metric_name(str(rows["metric"].iloc[0]))
            width = max(8, len(metric))
            lines.append("  ".join([f"{'layer':>5}", f"{metric:>{width}}", *(f"{label:>15}" for label in labels), "verdict"]))
            for row in rows.to_dict("records"):
                cells = []
                for label in labels:
                    found = effects[(effects["label"] == label) & (effects["layer"] == row["layer"])]
                    value = float(found["value"].iloc[0]) if len(found) else float("nan")
                    text = "-" if np.isnan(value) else f"{value:.2f}" if label.startswith("patch") else f"{value:.1%}"
                    cells.append(f"{text}{'*' if len(found) and found['used'].iloc[0] else ' '}")
                lines.append(
                    "  ".join(
                        [f"{row['layer']:>5}", f"{row['score']:>{width}.3f}", *(f"{cell:>15}" for cell in cells), str(row["verdict"])]
                    )
                )
        lines.append("share of flipped answers (patch: share of the logit difference restored); * used at this layer")
        return "\n".join(lines)

    def to_frame(self) -> pd.DataFrame:
        """The table by position and layer."""
        return self.table

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the effects by layer at the first position."""
        from stratascope.figures.interventions import draw_flips

        position = str(self.attributes["positions"][0])
        return draw_flips(self._drawn(position), new_axes(ax), title=f"{self.attributes['concept']} at {position}")

    def figure(self, store: ActivationStore | None = None) -> Figure | None:
        """Probe score and effects by layer, one row of panels for each position, with the layers that are encoded and used marked."""
        from stratascope.figures.interventions import encoding_use_figure

        panels = {
            str(position): (self.table[self.table["position"] == position], self._drawn(str(position)))
            for position in self.attributes["positions"]
            if (self.table["position"] == position).any()
        }
        return encoding_use_figure(panels, str(self.attributes["concept"]))

    def _drawn(self, position: str) -> dict[str, tuple[pd.DataFrame, pd.DataFrame | None]]:
        rows = self.effects[self.effects["position"] == position]
        found: dict[str, tuple[pd.DataFrame, pd.DataFrame | None]] = {}
        for label, table in rows.groupby("label", sort=False):
            named = {"value": "flipped", **{f"value_{end}": f"flipped_{end}" for end in INTERVALS}}
            random = table[["layer"]].assign(flipped=table["control"])
            found[str(label)] = table.rename(columns=named), None if table["control"].isna().all() else random
        return found


def encoding_use(curves: Sequence[StoredResult], intervention: Intervention, *, evidence: str | None = None) -> EncodingUse:
    """Join layer curves and interventions on one concept.

    Parameters
    ----------
    curves
        Saved layer curves of the store; those of the concept at the positions of the interventions are used.
    intervention
        The interventions.
    evidence
        Kind that decides whether a layer is used: erase, reflect, steer, or patch; by default the first of these that was run. It is
        fixed before looking at the results, so that the family-wise error is that of one kind.

    Raises
    ------
    NotRecordedError
        If there is no curve of the concept at any of the positions.
    InvalidInputError
        If `evidence` was not run.
    """
    events = intervention.events
    kinds = list(dict.fromkeys(events["kind"]))
    chosen = evidence or kinds[0]
    if chosen not in kinds:
        raise InvalidInputError(f"expected `evidence` among {', '.join(kinds)}, which were run, found {chosen!r}")
    concept = str(intervention.attributes["concept"])
    tables, effects, found_events = [], [], []
    for position in dict.fromkeys(intervention.variants["position"]):
        mine = [
            c
            for c in curves
            if c.kind == "layer_curve"
            and (c.task, c.position) == (concept, position)
            and c.attributes.get("array", "residual") == "residual"
            and c.fingerprint == intervention.attributes["store"]
        ]
        found = events[events["position"] == position]
        for event in found.to_dict("records"):
            found_events.append({"position": position, "label": event_label(event), **{k: event[k] for k in ("used_onset", "used_offset")}})
            effects.append(_effect_rows(intervention, event))
        if mine:
            first = found[found["kind"] == chosen].iloc[0]
            tables.append(_layer_rows(mine[0], intervention.use, first))
    if not tables:
        positions = ", ".join(dict.fromkeys(intervention.variants["position"]))
        raise NotRecordedError(
            f"expected a saved layer curve of {concept} at {positions}, found none of the same store; run `stratascope probe` with "
            "this task and position"
        )
    own = intervention.attributes
    attributes = {
        **{name: own[name] for name in ("store", "condition", "concept", "level", "margin")},
        **{name: own[name] for name in ("store_examples", "written_examples") if name in own},
        "evidence": chosen,
        "positions": [str(table["position"].iloc[0]) for table in tables],
        "kinds": kinds,
    }
    return EncodingUse(pd.concat(tables, ignore_index=True), pd.concat(effects, ignore_index=True), pd.DataFrame(found_events), attributes)


def _layer_rows(curve: StoredResult, use: pd.DataFrame, event: pd.Series[Any]) -> pd.DataFrame:
    table = curve.table("table")
    metric = next(name for name in _METRICS if (table["metric"] == name).any())
    rows = curve.rows(metric)
    kept = use
    for name in ("position", "kind", "method", "source"):
        kept = kept[kept[name] == event[name]]
    used = dict(zip(kept["layer"].tolist(), kept["used"].tolist(), strict=True))
    rows = rows[rows["layer"].isin(list(used))].reset_index(drop=True)
    encoded = (rows["low_simultaneous"] > rows["chance"]).to_numpy(bool)
    is_used = np.array([bool(used[layer]) for layer in rows["layer"]])
    return pd.DataFrame(
        {
            "position": event["position"],
            "layer": rows["layer"],
            "metric": metric,
            "score": rows["value"],
            **{f"score_{end}": rows[end] for end in INTERVALS},
            "chance": rows["chance"],
            "encoded": encoded,
            "used": is_used,
            "verdict": [VERDICTS[bool(e), bool(u)] for e, u in zip(encoded, is_used, strict=True)],
        }
    )


def _effect_rows(intervention: Intervention, event: Mapping[Hashable, Any]) -> pd.DataFrame:
    position, kind, method, source = (str(event[name]) for name in ("position", "kind", "method", "source"))
    factor = intervention.control_factor if kind == "steer" else 0.0
    rows = intervention.series(position, kind, method=method, factor=factor, source=source)
    value = "restored" if kind == "patch" else "flipped"
    random = intervention.series(position, kind, method=control_method(kind, method), control="covariance", factor=factor)
    control = random["flipped"].to_numpy() if len(random) else np.full(len(rows), np.nan)
    use = intervention.use
    for name in ("position", "kind", "method", "source"):
        use = use[use[name] == event[name]]
    return pd.DataFrame(
        {
            "position": position,
            "label": event_label(event),
            "layer": rows["layer"],
            "value": rows[value],
            **{f"value_{end}": rows[f"{value}_{end}"] for end in INTERVALS},
            "control": control,
            "used": use.sort_values("layer")["used"].to_numpy(bool),
        }
    )
