"""`EncodingUse`: layers in which a concept is encoded (by the probe), used (by interventions), both, or neither."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stratascope.causal.intervention import Intervention
from stratascope.causal.intervention_summary import event_label, null_limits, sample_size, undecided_use
from stratascope.causal.use import control_method
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


class ClaimedCurve(Protocol):
    """What is read of a layer curve."""

    @property
    def metric(self) -> str: ...
    @property
    def layers(self) -> NDArray[np.intp]: ...
    @property
    def examples(self) -> pd.DataFrame: ...
    @property
    def claims(self) -> Any: ...
    def rows(self) -> pd.DataFrame: ...


VERDICTS = {
    (True, True): "encoded and used",
    (True, False): "encoded only",
    (False, True): "used only",
    (False, False): "neither detected",
}
"""(encoded, used) -> verdict."""


class EncodingUse(
    Result,
    kind="encoding_use",
    command="causal",
    schema={**each(str, "store condition concept evidence"), **each(list[str], "positions kinds"), **each(float, "level margin")},
):
    """By layer, whether a concept is encoded, used, both, or neither: probe scores joined with interventions on the same layers."""

    table: pd.DataFrame = table_field(
        columns(
            text="position metric verdict undecided",
            ints="layer examples changed",
            floats=f"score {' '.join(f'score_{end}' for end in INTERVALS)} chance detectable_score detectable_use",
            flags="encoded used",
        )
    )
    """One row per position and layer: score of the probe in its metric with intervals and chance, encoded (the advantage over chance is
    detected), used (by the intervention `evidence`), verdict; examples (of the probe), changed (examples, or pairs, of the
    intervention), detectable_score and detectable_use (what would have been detected with 80 % power; NaN where unknown),
    undecided (why the intervention decides nothing; empty if it does)."""
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

    def undecided(self, position: str) -> bool:
        """Whether the intervention cannot decide on use at a `position`: too few pairs or random directions."""
        return bool((self.table.loc[self.table["position"] == position, "undecided"] != "").any())

    def use_limits(self, position: str) -> str:
        """What limits a null result at a `position`: why it is undecided, or n and the effect that would have been detected."""
        rows = self.table[self.table["position"] == position]
        if self.undecided(position):
            return str(rows["undecided"].iloc[0])
        return null_limits(str(self.attributes["evidence"]), int(rows["changed"].max()), float(rows["detectable_use"].max()))

    def statement(self, position: str) -> str:
        """One sentence: where the concept is encoded at a `position`, and where it is used."""
        encoded, used, unused = self.encoded(position), self.used(position), self.encoded_only(position)
        rows, evidence = self.table[self.table["position"] == position], str(self.attributes["evidence"])
        probe = f"encoded at {encoded}" if encoded else f"not detected by the probe ({_probe_limits(rows)})"
        verdict = "not decided" if self.undecided(position) else "not detected"
        causal = f"used at {used} ({evidence})" if used else f"use {verdict} ({evidence}; {self.use_limits(position)})"
        limit = f"; encoded without detected use at {unused}" if used and unused else ""
        return f"{self.attributes['concept']} at {position}: {probe}, {causal}{limit}"

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
            first = found[found["kind"] == chosen].iloc[0].to_dict()
            tables.append(_layer_rows(mine[0].result, intervention, first))
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


def _layer_rows(curve: ClaimedCurve, made: Intervention, event: Mapping[Hashable, Any]) -> pd.DataFrame:
    kept, claims = made.use_of(event), curve.claims
    rows = curve.rows().assign(encoded=np.isin(curve.layers, claims.detected.layers), least=claims.minimum_detectable_effect)
    rows = rows[rows["layer"].isin(kept["layer"])].reset_index(drop=True)
    use = kept.set_index("layer").loc[rows["layer"]]
    used = use["used"].to_numpy(bool)
    return pd.DataFrame(
        {
            "position": event["position"],
            "layer": rows["layer"],
            "metric": curve.metric,
            "score": rows["value"],
            **{f"score_{end}": rows[end] for end in INTERVALS},
            "chance": rows["chance"],
            "encoded": rows["encoded"],
            "used": used,
            "verdict": [VERDICTS[bool(e), bool(u)] for e, u in zip(rows["encoded"], used, strict=True)],
            "examples": len(curve.examples),
            "changed": sample_size(made, event),
            "detectable_score": rows["least"],
            "detectable_use": use["minimum_detectable_effect"].to_numpy(),
            "undecided": undecided_use(made, event),
        }
    )


def _probe_limits(rows: pd.DataFrame) -> str:
    """Number of examples of a probe, and the score that it would have been detected with in every layer."""
    metric, chance, least = str(rows["metric"].iloc[0]), float(rows["chance"].iloc[0]), float(rows["detectable_score"].max())
    size, best = f"n = {int(rows['examples'].iloc[0]):,}", chance if metric == "log_loss" else 1 - chance
    if np.isnan(least):
        return size
    lower = metric == "log_loss"
    words = f"{'at most' if lower else 'at least'} {chance - least if lower else chance + least:.2f}"
    what = f"{metric_name(metric)} of {words}" if least <= best else f"not even the best possible {metric_name(metric)}"
    return f"{size}; {what} would have been detected with 80 % power"


def _effect_rows(intervention: Intervention, event: Mapping[Hashable, Any]) -> pd.DataFrame:
    position, kind, method, source = (str(event[name]) for name in ("position", "kind", "method", "source"))
    factor = intervention.control_factor if kind == "steer" else 0.0
    rows = intervention.series(position, kind, method=method, factor=factor, source=source)
    value = "restored" if kind == "patch" else "flipped"
    random = intervention.series(position, kind, method=control_method(kind, method), control="covariance", factor=factor)
    control = random["flipped"].to_numpy() if len(random) else np.full(len(rows), np.nan)
    return pd.DataFrame(
        {
            "position": position,
            "label": event_label(event),
            "layer": rows["layer"],
            "value": rows[value],
            **{f"value_{end}": rows[f"{value}_{end}"] for end in INTERVALS},
            "control": control,
            "used": intervention.use_of(event)["used"].to_numpy(bool),
        }
    )
