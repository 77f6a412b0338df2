"""`StudyResult`: what a pre-registered study claims, in one sentence with its limits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stratascope.figures.drawing import LAYER_LABELS, metric_name, new_figure
from stratascope.figures.style import paper_style
from stratascope.probe.curve.family import ALL, VERDICTS
from stratascope.results.layer_intervals import LayerIntervals
from stratascope.results.lazy_arrays import Arrays
from stratascope.results.result import Result, new_axes, table_field
from stratascope.results.schema import columns
from stratascope.stats.intervals import POWER
from stratascope.store import ActivationStore

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

EMBEDDINGS = "embeddings"
"""Baseline that is layer 0 of the curve itself."""
CURVE = ["task", "array", "position"]
"""Columns that name a curve."""
_SCHEMA = {
    "title": str,
    "question": str,
    "plan": str,
    "canonical": str,
    "digest": str,
    "metric": str,
    "margin": float,
    "equivalence_margin": float,
    "level": float,
    "family": str,
    "primary": {"task": str, "position": str, "array": str, "baseline": str, "hypothesis": str},
    "deviations": list[str],
    "store": str,
    "fingerprint": str,
    "stores": dict[str, str],
}


def of_curve(table: pd.DataFrame, key: Iterable[str]) -> pd.DataFrame:
    """Rows of a table of one curve: task, array and position."""
    return table[(table[CURVE] == list(key)).all(axis=1)]


def _one_primary(attributes: Mapping[str, Any], tables: Mapping[str, pd.DataFrame], _arrays: Arrays) -> str | None:
    """The claims have one primary row, that of the plan, and the layers have the rows of every claim."""
    claims, layers, plan = tables["claims"], tables["layers"], attributes["primary"]
    chosen = claims[claims["primary"].to_numpy(bool)]
    if len(chosen) != 1 or chosen.iloc[0][[*CURVE, "baseline"]].tolist() != [plan[name] for name in (*CURVE, "baseline")]:
        return f"expected one primary claim, {plan['task']} at {plan['position']} over {plan['baseline']}, found {len(chosen)} or another"
    keys = [set(table[[*CURVE, "baseline"]].itertuples(index=False, name=None)) for table in (claims, layers)]
    if keys[0] != keys[1]:
        return f"expected claims and layers of the same curves and baselines, found {len(keys[0])} and {len(keys[1])}"
    first = [plan[name] for name in CURVE]
    if ALL not in set(of_curve(claims, first)["baseline"]):
        return "expected claims over every baseline, found none"
    return None


class StudyResult(Result, kind="study", prefix="study", schema=_SCHEMA, rules=(_one_primary,)):
    """Claims of a pre-registered study: primary outcome first, every curve and baseline of its family, with the plan and its digest.

    Examples
    --------
    >>> from stratascope.probe import preregistered_study
    >>> result = preregistered_study(study_plan, study_stores).result
    >>> result.primary["detected"], result.deviations
    ('layers 3-5', [])
    """

    claims: pd.DataFrame = table_field(
        columns(
            text=f"{' '.join(CURVE)} baseline detected absent undecided",
            ints="examples images peak_layer",
            floats="peak peak_low peak_high minimum_detectable_effect chance",
            flags="primary",
            keys=[f"{' '.join(CURVE)} baseline"],
        )
    )
    """One row per curve and baseline, and over every baseline at once (`all`); the curve of the primary outcome first. Layers in which the
    advantage is detected, absent and undecided; number of examples and images; largest advantage with its band over the family; the
    advantage that would have been detected with 80 % power in every layer without detection; chance level of the curve."""
    layers: pd.DataFrame = table_field(
        columns(
            text=f"{' '.join(CURVE)} baseline verdict",
            ints="layer",
            floats="value low high low_simultaneous high_simultaneous minimum_detectable_effect",
            keys=[f"{' '.join(CURVE)} baseline layer"],
            values={"verdict": " ".join(VERDICTS)},
        )
    )
    """One row per curve, baseline and layer: the table of `family_table`."""
    transfers: pd.DataFrame = table_field(
        columns(text=f"{' '.join(CURVE)} store metric", ints="layer", floats="value low high chance", empty=True)
    )
    """Scores of probes of the original store on stores with the role `transfer`, by layer; no claim rests on them."""
    attributes: Mapping[str, Any]
    """The plan (text, canonical content, digest), metric, margins, level, family, primary outcome, deviations, stores."""

    @classmethod
    def of(
        cls,
        layers: pd.DataFrame,
        sizes: Mapping[tuple[str, ...], tuple[int, int, float]],
        transfers: pd.DataFrame,
        facts: Mapping[str, Any],
    ) -> StudyResult:
        """Derive the claims from the family's table.

        Parameters
        ----------
        layers
            From `family_table`, of the plan's curves.
        sizes
            Task, array and position -> number of examples and images, and the chance level.
        transfers
            As of the field.
        facts
            The attributes.
        """
        primary = facts["primary"]
        first = (primary["task"], primary["array"], primary["position"])
        every = [tuple(key) for key in layers[CURVE].drop_duplicates().itertuples(index=False, name=None)]
        claims = []
        for key in sorted(every, key=lambda key: key != first):
            mine = of_curve(layers, key)
            for baseline, rows in mine.groupby("baseline", sort=False):
                chosen = key == first and baseline == primary["baseline"]
                claims.append(_claim(key, str(baseline), rows, sizes[key]) | {"primary": chosen})
        table = pd.DataFrame(claims).sort_values("primary", ascending=False, kind="stable").reset_index(drop=True)
        return cls(claims=table, layers=layers, transfers=transfers, attributes=facts)

    @property
    def primary(self) -> pd.Series[Any]:
        """Row of `claims` of the primary outcome."""
        return self.claims[self.claims["primary"]].iloc[0]

    @property
    def digest(self) -> str:
        """SHA-256 of the plan."""
        return str(self.attributes["digest"])

    @property
    def deviations(self) -> list[str]:
        """Differences from the plan; [] for none."""
        return list(self.attributes["deviations"])

    @property
    def baselines(self) -> list[str]:
        """Baselines of the curve of the primary outcome."""
        row = self.primary
        mine = of_curve(self.claims, row[CURVE])
        return [name for name in mine["baseline"] if name != ALL]

    @property
    def sentence(self) -> str:
        """The primary outcome in one sentence, with its limits."""
        row, own = self.primary, self.attributes
        metric = metric_name(own["metric"])
        what = f"{row['task'][:1].upper()}{row['task'][1:]} at {row['position']}"
        size = f"n = {row['examples']:,} examples of {row['images']:,} images"
        over = f"every baseline ({', '.join(self.baselines)})" if row["baseline"] == ALL else f"the baseline {row['baseline']}"
        more = f" by more than {own['margin']:g}" if own["margin"] else ""
        detected = row["detected"] != "no layer"
        least = row["minimum_detectable_effect"]
        power = "" if np.isnan(least) else _power(row)
        limit = "; ".join([size, *([power] if power else [])])
        mine = of_curve(self.layers, row[CURVE]).query("baseline == @row.baseline")
        layers, absent = mine["layer"].to_numpy(), mine["verdict"].to_numpy() == "absent"
        anywhere = "any layer" if len(layers) > 1 else f"layer {layers[0]}"
        words = [
            f"{what} is decodable in {row['detected']} ({size}): its {metric} exceeds {over}{more}"
            if detected
            else f"{what} is not detected in {anywhere} ({limit}): its {metric} is not significantly above {over}{more}",
            f"{'largest ' if len(layers) > 1 else ''}advantage {row['peak']:+.3f} [{row['peak_low']:.3f}, {row['peak_high']:.3f}] at "
            f"layer {row['peak_layer']}",
        ]
        # the advantage of a layer over itself is 0, whatever the data
        itself = (layers == 0) & (EMBEDDINGS in self.baselines and row["baseline"] in (ALL, EMBEDDINGS))
        if excluded := LayerIntervals.of(layers, absent & ~itself):
            words.append(f"an advantage of {own['equivalence_margin']:g} or more is excluded in {excluded}")
        if itself.any():
            words.append("layer 0 is the baseline embeddings itself")
        if row["undecided"] != "no layer":
            more = f" ({power})" if detected and power else ""
            words.append(f"{row['undecided']} cannot be decided with this n{more}")
        return f"{'; '.join([*words, own['family']])}."

    @property
    def limits(self) -> list[str]:
        """What the sentence does not say: secondary curves, transfers, deviations."""
        found = [f"{row['task']} at {_place(row)}: {self._verdict(row)}" for row in self._over_all() if not row["primary"]]
        lines = ["secondary, over every baseline:", *(f"  {line}" for line in found)] if found else []
        for store in dict.fromkeys(self.transfers["store"]):
            lines += [f"probes of the original images tested on {store} (labels unchanged): {text}" for text in self._transferred(store)]
        deviations = [f"  {text}" for text in self.deviations] or ["  none"]
        return [*lines, "deviations from the plan:", *deviations]

    def _verdict(self, row: pd.Series[Any]) -> str:
        """What a secondary curve shows."""
        best = f"{row['peak']:+.3f} [{row['peak_low']:.3f}, {row['peak_high']:.3f}] at layer {row['peak_layer']}"
        if row["detected"] != "no layer":
            return f"detected in {row['detected']}; {best}"
        if row["undecided"] == "no layer":
            excluded = f"an advantage of {self.attributes['equivalence_margin']:g} or more is excluded in {row['absent']}"
            return f"{excluded} (n = {row['examples']:,}); {best}"
        least = row["minimum_detectable_effect"]
        power = "" if np.isnan(least) else f"; {_power(row)}"
        return f"not detected (n = {row['examples']:,}{power}); {best}"

    def summary(self) -> str:
        """The question, the sentence and its limits, and the digest of the plan."""
        return "\n".join([str(self.attributes["question"]), self.sentence, *self.limits, f"plan {self.digest}"])

    @property
    def _heading(self) -> str:
        return f"StudyResult: {self.attributes['title']}"

    @property
    def options(self) -> Mapping[str, Any]:
        """Digest of the plan, metric, margins and level."""
        return {name: self.attributes[name] for name in ("digest", "metric", "margin", "equivalence_margin", "level")}

    def to_frame(self) -> pd.DataFrame:
        """The claims."""
        return self.claims

    def _over_all(self) -> Iterator[pd.Series[Any]]:
        for _, row in self.claims[self.claims["baseline"] == ALL].iterrows():
            yield row

    def _transferred(self, store: str) -> Iterator[str]:
        """Score of the primary curve's probes on a store, at the layer of its largest advantage, beside the score of the original."""
        row, metric = self.primary, str(self.attributes["metric"])
        mine = of_curve(self.transfers, row[CURVE])
        for _, there in mine[(mine["store"] == store) & (mine["layer"] == row["peak_layer"])].iterrows():
            same = of_curve(self.layers, row[CURVE]).query("baseline == 'chance'").set_index("layer")["value"]
            score = row["chance"] + float(same.get(row["peak_layer"], np.nan))
            where = f"{row['task']} at {_place(row)}, layer {row['peak_layer']}"
            ends = f"[{there['low']:.3f}, {there['high']:.3f}]"
            beside = f", on the original {score:.3f}" if there["metric"] == metric else ""
            name = metric_name(there["metric"])
            yield f"{where}: {name} {there['value']:.3f} {ends}{beside}, chance {there['chance']:.3f}"

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the advantage over every baseline: a row per curve, a column per layer, with the verdicts."""
        from stratascope.figures.score_grids import draw_verdicts

        shown = list(self._over_all())
        tasks, arrays = ({row[name] for row in shown} for name in ("task", "array"))
        names = {tuple(row[CURVE]): _place(row) if len(tasks) == 1 else f"{row['task']}, {_place(row)}" for row in shown}
        table = self.layers[self.layers["baseline"] == ALL]
        rows = table.assign(row=[names[key] for key in table[CURVE].itertuples(index=False, name=None)])
        order = {name: number for number, name in enumerate(names.values())}
        rows = rows.sort_values("row", key=lambda column: column.map(order), kind="stable")
        ax = new_axes(ax, height=0.9 + 0.3 * len(names))
        title = "Advantage over every baseline" + (f": {next(iter(tasks))}" if len(tasks) == 1 else "")
        layers = LAYER_LABELS.get(next(iter(arrays)), "Layer") if len(arrays) == 1 else "Layer"
        return draw_verdicts(rows, ax, metric=str(self.attributes["metric"]), title=title, layers=layers)

    def figure(self, store: ActivationStore | None = None) -> Figure:
        """The overview on the page's width."""
        count = int((self.claims["baseline"] == ALL).sum())
        figure, (ax,) = new_figure(1, width=6.6, height=1.1 + 0.3 * count)
        with paper_style():
            self.plot(ax)
        return figure


def _claim(key: Sequence[str], baseline: str, rows: pd.DataFrame, size: tuple[int, int, float]) -> dict[str, Any]:
    """Row of `claims` of one curve and baseline."""
    layers = rows["layer"].to_numpy()
    best = rows.iloc[int(rows["value"].to_numpy().argmax())]
    found = {verdict: str(LayerIntervals.of(layers, rows["verdict"].to_numpy() == verdict)) for verdict in VERDICTS}
    least = rows["minimum_detectable_effect"].to_numpy(float)
    known = least[np.isfinite(least) & (rows["verdict"].to_numpy() != "detected")]
    examples, images, chance = size
    return {
        **dict(zip(CURVE, key, strict=True)),
        "baseline": baseline,
        **found,
        "examples": examples,
        "images": images,
        "peak_layer": int(best["layer"]),
        "peak": float(best["value"]),
        "peak_low": float(best["low_simultaneous"]),
        "peak_high": float(best["high_simultaneous"]),
        "minimum_detectable_effect": float(known.max()) if len(known) else float("nan"),
        "chance": chance,
    }


def _power(row: pd.Series[Any]) -> str:
    """The minimum detectable effect of a claim, or that not even the largest advantage over chance would have been detected."""
    least, most = float(row["minimum_detectable_effect"]), 1 - float(row["chance"])
    with_power = f"have been detected with {100 * POWER:g} % power"
    if row["baseline"] in (ALL, "chance") and least > most:
        return f"not even the largest possible advantage, {most:.2f}, would {with_power}"
    return f"an advantage of {least:.2f} would {with_power}"


def _place(row: pd.Series[Any]) -> str:
    return str(row["position"]) if row["array"] == "residual" else f"{row['position']} of {row['array']}"
