"""Summary of an `Intervention`: what was tested at each position and kind, and what was found."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any, Protocol

import numpy as np
import pandas as pd

from stratascope.causal.directions import MATCHED
from stratascope.causal.effects import FEWEST_PAIRS
from stratascope.causal.refitted_probe import completeness
from stratascope.causal.use import control_method, fewest_draws
from stratascope.results.layer_intervals import LayerIntervals
from stratascope.stats.mean_ratio import FEWEST_DECIDING, FEWEST_GROUPS

Event = Mapping[Hashable, Any]
_IMAGES = f"{FEWEST_GROUPS} needed, and {FEWEST_DECIDING} that decide the mean"


class Interventions(Protocol):
    """What a summary reads of an `Intervention`."""

    @property
    def variants(self) -> pd.DataFrame: ...

    @property
    def examples(self) -> pd.DataFrame: ...

    @property
    def effects(self) -> pd.DataFrame: ...

    @property
    def events(self) -> pd.DataFrame: ...

    @property
    def attributes(self) -> Mapping[str, Any]: ...

    @property
    def control_factor(self) -> float: ...

    def use_of(self, event: Event) -> pd.DataFrame: ...

    def series(
        self, position: str, kind: str, *, method: str = "", control: str = "", factor: float = 0.0, source: str = ""
    ) -> pd.DataFrame: ...


def event_label(event: Event) -> str:
    """Kind of a row of `events` or `use`, with its method or source."""
    kind = str(event["kind"])
    if kind == "patch":
        return f"patch from {event['source']}"
    return f"erase ({'LEACE' if event['method'] == 'leace' else event['method']})" if kind == "erase" else kind


def summary_of(made: Interventions) -> str:
    """Examples and images; for each position and kind the layers at which answers change, and the largest share of flipped answers."""
    facts = made.attributes
    sizes = f"{len(made.examples):,} examples of {made.examples['group'].nunique():,} images"
    lines = [f"{facts['concept']}: {len(made.variants):,} variants of each of {sizes}, directions from other folds"]
    for event in made.events.to_dict("records"):
        found = _restored(made, event) if event["kind"] == "patch" else _flips(made, event)
        lines.append(f"{event['position']}, {event_label(event)}: {_layers_of_change(made, event)}; {found}")
        if said := completeness(made.use_of(event)):
            lines[-1] += f"; {said}"
    matched = int(facts["controls"]) * len(set(MATCHED) & set(facts["control_kinds"]))
    level = float(facts["level"])
    if set(facts["kinds"]) - {"patch"} and matched < fewest_draws(level):
        lines.append(
            f"changes cannot be compared with {matched} random directions of the kinds {' and '.join(MATCHED)}; a family-wise error "
            f"of {1 - level:.2g} needs at least {fewest_draws(level)}"
        )
    return "\n".join(lines)


def too_few_pairs(made: Interventions, event: Event) -> str:
    """Why patching decides nothing, if there are too few pairs or images; else empty."""
    rows = made.series(str(event["position"]), "patch", source=str(event["source"]))
    pairs = int(rows["pairs"].max()) if len(rows) else 0
    if pairs < FEWEST_PAIRS:
        return f"too few pairs: n = {pairs}, {FEWEST_PAIRS} needed"
    return f"too few images of pairs: {_IMAGES}" if rows["restored_low_simultaneous"].isna().all() else ""


def undecided_use(made: Interventions, event: Event) -> str:
    """Why an event decides nothing: too few pairs, random directions or images; else empty."""
    if event["kind"] == "patch":
        return too_few_pairs(made, event)
    use = made.use_of(event)
    if np.isinf(use["threshold"]).all():
        return "too few random directions"
    return f"too few images: {_IMAGES}" if use["excess_low_simultaneous"].isna().all() else ""


def sample_size(made: Interventions, event: Event) -> int:
    """Number of examples of an event that were measured; of patching, of pairs."""
    position, kind, source = (str(event[name]) for name in ("position", "kind", "source"))
    rows = made.effects[(made.effects["position"] == position) & (made.effects["kind"] == kind) & (made.effects["source"] == source)]
    return int(rows["pairs" if kind == "patch" else "examples"].max())


def null_limits(kind: str, size: int, least: float) -> str:
    """Limits of a null result: the number of examples, or pairs, and the effect that would have been detected; NaN where unknown."""
    what = "restored share" if kind == "patch" else "change beyond random directions"
    unit = "" if kind == "patch" else " of the mean logit difference"
    words = f"n = {size:,}{' pairs' if kind == 'patch' else ''}"
    return words if np.isnan(least) else f"{words}; a {what} of {least:.2f}{unit} would have been detected with at least 80 % power"


def detectable_use(made: Interventions, event: Event) -> str:
    """Limits of an event in which no use is detected: of the layer at which the largest effect would have been missed."""
    least = float(made.use_of(event)["minimum_detectable_effect"].max())
    return null_limits(str(event["kind"]), sample_size(made, event), least)


def _layers_of_change(made: Interventions, event: Event) -> str:
    """What was tested of an event: whether the concept is used, `EncodingUse` says, which knows where it is encoded."""
    rows = made.use_of(event)
    layers = LayerIntervals.of(rows["layer"], rows["used"])
    if event["kind"] == "patch":
        moved = f"restores more than {made.attributes['margin']:g} of the difference"
        if few := too_few_pairs(made, event):
            return f"not decided whether it {moved} ({few})"
        return f"{moved} at {layers}" if layers else f"not detected at any layer that it {moved} ({detectable_use(made, event)})"
    if np.isinf(rows["threshold"]).all():
        return "not compared with random directions"
    if few := undecided_use(made, event):
        return f"not decided whether it changes answers beyond random directions ({few})"
    if layers:
        return f"changes answers beyond random directions at {layers}"
    return f"no change of answers beyond random directions detected ({detectable_use(made, event)})"


def _restored(made: Interventions, event: Event) -> str:
    """The largest share of the logit difference that a patch restores."""
    rows = made.series(str(event["position"]), "patch", source=str(event["source"]))
    if rows.empty or not rows["pairs"].max():
        return f"no pair differs ({int(rows['excluded'].max()) if len(rows) else 0} excluded)"
    best = rows.iloc[int(np.nan_to_num(rows["restored"].to_numpy(), nan=-np.inf).argmax())]
    low, high = best["restored_low_simultaneous"], best["restored_high_simultaneous"]
    interval = "" if np.isnan(low) or np.isnan(high) else f" [{low:.2f}, {high:.2f}]"
    return (
        f"restores {best['restored']:.2f}{interval} at layer {int(best['layer'])} ({int(best['pairs'])} pairs, "
        f"{int(best['excluded'])} excluded for a small difference)"
    )


def _flips(made: Interventions, event: Event) -> str:
    """The largest share of answers that an edit flips, beside that of random directions."""
    position, kind = str(event["position"]), str(event["kind"])
    factor = made.control_factor if kind == "steer" else 0.0
    rows = made.series(position, kind, method=str(event["method"]), factor=factor)
    if rows["flipped"].isna().all():
        return "flipped answers not measured"
    best = rows.iloc[int(np.nan_to_num(rows["flipped"].to_numpy(), nan=-1).argmax())]
    interval = f"[{best['flipped_low_simultaneous']:.1%}, {best['flipped_high_simultaneous']:.1%}]"
    method = control_method(kind, str(event["method"]))
    random = made.series(position, kind, method=method, control="covariance", factor=factor)
    beside = random[random["layer"] == best["layer"]]
    text = f"flips {best['flipped']:.1%} {interval} of the answers at layer {int(best['layer'])}"
    return f"{text} (random directions {float(beside['flipped'].iloc[0]):.1%})" if len(beside) else text
