"""`Intervention`: what edits of the residual stream did to a model's answers, with controls and bands."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stratascope.causal.answers import Answers
from stratascope.causal.design import InterventionDesign
from stratascope.causal.effects import effect_table
from stratascope.causal.intervention_settings import KINDS
from stratascope.causal.intervention_summary import event_label, summary_of
from stratascope.causal.patching import PatchSource
from stratascope.causal.refitted_probe import with_refitted_probes
from stratascope.causal.use import control_method, use_events, use_table
from stratascope.results.file import made_from
from stratascope.results.result import Result, array_field, new_axes, table_field
from stratascope.results.schema import columns
from stratascope.stats.bootstrap import Bootstrap
from stratascope.stats.intervals import INTERVALS
from stratascope.store.format.json_schema import each
from stratascope.store.io.offered_choices import offered_logits

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from stratascope.store import ActivationStore

Floats = NDArray[Any]
MARGIN = 0.1
"""An effect counts as use if it exceeds that of random directions by this share of the mean size of the logit difference."""


def _bands(*names: str) -> str:
    return " ".join(f"{name} {' '.join(f'{name}_{end}' for end in INTERVALS)}" for name in names)


def _measured_events(attributes: Mapping[str, Any], tables: Mapping[str, pd.DataFrame], arrays: Any) -> str | None:
    """Each event has rows in `use`, in `effects` and in `variants`, and each position has events."""
    event_names = ["position", "kind", "method", "source"]
    events = set(tables["events"][event_names].itertuples(index=False, name=None))
    for name in ("use", "effects", "variants"):
        held = set(tables[name][event_names].itertuples(index=False, name=None))
        if lacking := sorted(map(str, events - held)):
            return f"expected rows of table {name!r} for every one of the events, found none for {lacking[0]}"
    if lacking := sorted(set(attributes["positions"]) - set(tables["events"]["position"])):
        return f"expected events at every one of the positions, found none at {lacking[0]}"
    return None


_KINDS = {"kind": " ".join(KINDS)}


class Intervention(
    Result,
    kind="intervention",
    command="intervene",
    rules=(_measured_events,),
    schema={
        **each(str, "store condition concept"),
        **each(list[str], "classes choices positions kinds methods control_kinds sources"),
        "factors": list[float],
        "layers": list[int],
        **each(int, "window controls draws seed"),
        **each(float, "level margin"),
    },
):
    """Changes of the answers by edits of the residual stream: erasure, reflection, steering, patching, and random controls."""

    variants: pd.DataFrame = table_field(
        columns("variant", text="position kind method control source", ints="layer last draw", floats="factor", values=_KINDS)
    )
    """One row per variant: position, layer and last (of the window), kind, method, control (empty for the concept itself), factor
    (signed, of steering), draw (-1 for the concept), source (of patching)."""
    examples: pd.DataFrame = table_field(
        columns("example", text="id group answer", ints="example fold", floats="difference", keys=["example"])
    )
    """One row per example: example, id, group (image), fold (whose examples its directions were not fitted on), answer and difference
    of the answer logits without an edit; difference_NAME of each source of patching."""
    change: Floats = array_field("float", "variant example")
    """Difference of the answer logits with an edit, minus that without; NaN where not measured."""
    flipped: Floats = array_field("share", "variant example")
    """1 where the answer is another than without an edit."""
    collateral: Floats = array_field("float", "variant example")
    """Norm of the edit relative to that of the residual stream."""
    divergence: Floats = array_field("float", "variant example")
    """KL divergence of the next-token distribution from that without an edit, in nats."""
    others: Floats = array_field("float", "variant example")
    """The same among all tokens but the answers: damage to what is not asked for."""
    effects: pd.DataFrame = table_field(
        columns(
            text="position kind method control source",
            ints="layer last examples pairs excluded",
            floats=f"factor {_bands('flipped', 'effect', 'restored')} effect_error restored_error restored_median change collateral "
            "divergence others",
            values=_KINDS,
        )
    )
    """One row per series and layer, means over examples and draws: flipped (share of answers), effect (mean size of the change in units
    of the mean size of the logit difference), change (signed), restored (of patching), with intervals; effect_error, restored_error
    (standard errors)."""
    use: pd.DataFrame = table_field(
        columns(
            text="position kind method source",
            ints="layer last",
            floats=f"effect control {_bands('excess')} excess_error score threshold minimum_detectable_effect",
            flags="used",
            values=_KINDS,
        )
    )
    """One row per kind and layer: excess (effect minus that of matched random directions), score and threshold of `use.above_draws`,
    minimum_detectable_effect (the excess that would have been called used with 80 % power), used; refitted (with intervals, of erasures of
    two classes; not in files of before): AUROC of a linear probe refitted on other images after the erasure."""
    events: pd.DataFrame = table_field(columns(text="position kind method source", ints="used_onset used_offset", values=_KINDS))
    """First layer used and first layer after the last one used, of each position and kind; -1 for none."""
    attributes: Mapping[str, Any]
    """store, condition, concept (task), classes, choices, settings of the design, level, draws, margin."""

    @classmethod
    def of(
        cls,
        design: InterventionDesign,
        examples: NDArray[np.int64],
        logits: Floats,
        change: Floats,
        *,
        collateral: Floats,
        divergence: Floats,
        others: Floats,
        sources: Sequence[PatchSource] = (),
        level: float = 0.95,
        draws: int = 2000,
        margin: float = MARGIN,
    ) -> Intervention:
        """From what running a design measured.

        Parameters
        ----------
        design
            Its variants.
        examples
            (example,) numbers, ascending.
        logits
            (example, choice) without an edit.
        change
            (example, variant, choice) logits minus those without an edit; NaN where not measured.
        collateral, divergence, others
            (example, variant)
        sources
            Of patching.
        level, draws
            Of the intervals.
        margin
            What an effect must exceed to count as use, as a share of the mean size of the logit difference.
        """
        store, labels, settings = design.store, design.labels, design.settings
        offered = offered_logits(store, np.asarray(logits, np.float64), examples)
        answers = Answers.of(offered, np.asarray(change, np.float64))
        place = np.searchsorted(labels.examples, examples)
        groups = labels.groups[place]
        bootstrap = Bootstrap(groups, draws=draws, seed=settings.seed)
        of_sources = {source.name: answers.source_difference(source.answer_logits(examples)) for source in sources}
        table = pd.DataFrame(
            {
                "example": examples,
                "id": store.examples["id"].to_numpy(object)[examples],
                "group": groups.astype(object),
                "fold": labels.folds[place],
                "answer": np.asarray(store.layout.choices, object)[answers.answer],
                "difference": answers.difference,
                **{f"difference_{name}": values for name, values in of_sources.items()},
            }
        )
        arrays = {
            "change": answers.change,
            "flipped": answers.flipped,
            "collateral": np.asarray(collateral, np.float64).T,
            "divergence": np.asarray(divergence, np.float64).T,
            "others": np.asarray(others, np.float64).T,
        }
        effects = effect_table(design.variants, arrays, answers.difference, bootstrap, of_sources, level=level)
        use = use_table(
            design.variants, answers.change, effects, answers.difference, bootstrap,
            level=level, margin=margin, control_factor=settings.control_factor,
        )  # fmt: skip
        use = with_refitted_probes(use, design, level)
        given = asdict(settings)
        names = ("positions", "kinds", "methods", "control_kinds", "factors", "window", "controls", "seed")
        attributes = {
            **made_from(store),
            "concept": labels.task,
            "classes": list(labels.classes),
            "choices": list(store.layout.choices),
            **{name: list(given[name]) if isinstance(given[name], tuple) else given[name] for name in names},
            "layers": [first for first, _ in design.windows],
            "sources": [source.name for source in sources],
            "level": level,
            "draws": draws,
            "margin": margin,
        }
        single = {name: values.astype(np.float32) for name, values in arrays.items()}
        return cls(
            variants=design.variants, examples=table, effects=effects, use=use, events=use_events(use), attributes=attributes, **single
        )

    @property
    def options(self) -> Mapping[str, Any]:
        """Parameters of the design, and the names of the sources of patching."""
        names = ("positions", "layers", "kinds", "methods", "control_kinds", "factors", "window", "controls", "seed", "margin", "sources")
        return {"task": self.attributes["concept"], "examples": len(self.examples), **{name: self.attributes[name] for name in names}}

    @property
    def name_parts(self) -> tuple[str | None, ...]:
        """The task, and the window if it is wider than a layer."""
        return self.name_parts_of(str(self.attributes["concept"]), int(self.attributes["window"]))

    @staticmethod
    def name_parts_of(task: str, window: int) -> tuple[str | None, ...]:
        """`name_parts` of interventions on a `task` in a `window` of layers, before they are run."""
        return (task, f"window-{window}" if window > 1 else None)

    @property
    def example_count(self) -> int:
        """Number of examples that were changed."""
        return len(self.examples)

    def series(
        self, position: str, kind: str, *, method: str = "", control: str = "", factor: float = 0.0, source: str = ""
    ) -> pd.DataFrame:
        """Rows of `effects` of one series, by layer; empty if it was not run.

        Parameters
        ----------
        position, kind
            Such as final and erase.
        method, control, factor, source
            As in `variants`; the first method by default.
        """
        table = self.effects
        rows = table[(table["position"] == position) & (table["kind"] == kind) & (table["control"] == control)]
        rows = rows[(rows["factor"] == factor) & ((rows["source"] == source) | (source == ""))]
        if len(rows) and kind != "patch":
            rows = rows[rows["method"] == (method or rows["method"].iloc[0])]
        return rows.sort_values("layer").reset_index(drop=True)

    @property
    def control_factor(self) -> float:
        """Factor of the random directions of steering; NaN without steering."""
        steered = self.variants[(self.variants["kind"] == "steer") & (self.variants["control"] != "")]
        factors = steered["factor"] if len(steered) else self.variants["factor"][self.variants["kind"] == "steer"].abs()
        return float(factors.min()) if len(factors) else float("nan")

    def use_of(self, event: Mapping[Hashable, Any]) -> pd.DataFrame:
        """Rows of `use` of an `event`, a row of `events`, by layer."""
        rows = self.use
        for name in ("position", "kind", "method", "source"):
            rows = rows[rows[name] == event[name]]
        return rows.sort_values("layer")

    def summary(self) -> str:
        """Examples and images; for each position and kind the layers at which answers change, and the largest share of flipped answers."""
        return summary_of(self)

    def to_frame(self) -> pd.DataFrame:
        """The table of effects."""
        return self.effects

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the share of flipped answers by layer at the first position, with bands and random directions; of patching its heat map."""
        from stratascope.figures.interventions import draw_flips, draw_patches

        position, patches = str(self.attributes["positions"][0]), self.patch_grids()
        if patches and set(self.attributes["kinds"]) == {"patch"}:
            source, grid = next(iter(patches.items()))
            return draw_patches(grid, new_axes(ax), title=f"{self.attributes['concept']}, patch from {source}")
        return draw_flips(self.flip_series(position), new_axes(ax), title=f"{self.attributes['concept']} at {position}")

    def flip_series(self, position: str) -> dict[str, tuple[pd.DataFrame, pd.DataFrame | None]]:
        """Label -> rows of `effects` of each kind at a position, and those of the random directions that it is compared with."""
        found: dict[str, tuple[pd.DataFrame, pd.DataFrame | None]] = {}
        for event in self.events[self.events["position"] == position].to_dict("records"):
            kind, method, source = str(event["kind"]), str(event["method"]), str(event["source"])
            factor = self.control_factor if kind == "steer" else 0.0
            random = self.series(position, kind, method=control_method(kind, method), control="covariance", factor=factor)
            rows = self.series(position, kind, method=method, factor=factor, source=source)
            found[event_label(event)] = rows, random if len(random) else None
        return found

    def figure(self, store: ActivationStore | None = None) -> Figure | None:
        """Flipped answers by layer, dose-response of steering, and the heat map of patching, for those that were run."""
        from stratascope.figures.interventions import intervention_figure

        position = str(self.attributes["positions"][0])
        return intervention_figure(
            self.flip_series(position), self.dose_response(position), self.patch_grids(), f"{self.attributes['concept']} at {position}"
        )

    def dose_response(self, position: str) -> pd.DataFrame:
        """Mean signed change of steering at a `position` by layer (rows) and signed factor (columns); 1 is the mean logit difference."""
        table = self.effects[(self.effects["position"] == position) & (self.effects["kind"] == "steer") & (self.effects["control"] == "")]
        scale = float(self.examples["difference"].abs().mean())
        return table.pivot_table(index="layer", columns="factor", values="change", sort=True) / scale

    def patch_grids(self) -> dict[str, pd.DataFrame]:
        """Source -> share of the logit difference that patching restores, position (rows) by layer (columns)."""
        table = self.effects[self.effects["kind"] == "patch"]
        return {
            str(source): rows.pivot(index="position", columns="layer", values="restored").loc[list(dict.fromkeys(rows["position"]))]
            for source, rows in table.groupby("source", sort=False)
            if rows["restored"].notna().any()
        }
