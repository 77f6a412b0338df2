"""Faithfulness: agreement of attribution methods with attention knockouts (Geva et al. 2023; Jain & Wallace 2019)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stratascope.analysis.attention_maps import parse_window
from stratascope.analysis.knockout_targets import MODE_LABELS, TARGET_LABELS, kind_of_target, target_tokens
from stratascope.analysis.parallel import held_examples, over_blocks
from stratascope.analysis.relevance import BASELINES, Method, few_blocks, group_scores, methods_of
from stratascope.analysis.weighting import require_recorded
from stratascope.errors import InvalidInputError, TooFewExamplesError
from stratascope.figures.correlations import draw_correlations
from stratascope.figures.style import paper_style
from stratascope.results.file import made_from
from stratascope.results.result import Result, array_field, new_axes, table_field
from stratascope.results.schema import columns
from stratascope.stats.bootstrap import Bootstrap
from stratascope.stats.intervals import percentiles
from stratascope.stats.rank_correlation import FEWEST_TARGETS, rank_correlations
from stratascope.store import ActivationStore
from stratascope.store.format.json_schema import each
from stratascope.store.io.example_identity import image_groups

PIECE = 4
TARGETS = ("cells", "spans")
SETTING = ["targets", "mode", "window"]

Floats = NDArray[np.float64]


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LEADING = {
    **each(str, "targets mode window method label second? second_label?"),
    **each(float, "correlation low high ahead? ahead_low? ahead_high?"),
}


class Faithfulness(
    Result,
    kind="faithfulness",
    command="faithfulness",
    schema={
        **each(str, "store condition"),
        **each(int, "draws seed"),
        **each(float, "level"),
        "choices": list[str],
        "few": dict[str, tuple[int, int]],
        "missing": dict[str, str],
        "leading": _LEADING,
    },
):
    """Rank correlation of each method with the knockout effect, by example and on average."""

    selects_examples: ClassVar[bool] = True

    table: pd.DataFrame = table_field(
        columns(
            "row",
            text="targets mode window effect method label",
            ints="examples images",
            floats="effect_size correlation low high behind behind_low behind_high",
            keys=["targets mode window effect method", "targets mode window effect label"],
        ),
        name="methods",
    )
    """targets (cells or spans), mode (masked queries: `final`, the final token, or `later`, every later token), window (of blocks),
    effect, method, label, correlation (mean over examples of Spearman's), low, high (cluster bootstrap by image), behind (mean of the
    best method minus this one's), behind_low, behind_high (paired), examples, images, effect_size (mean absolute knockout effect of one
    target, in logits; small effects are hard to rank). `effect`: `size` compares absolute values; `signed`, for methods with a sign,
    signed values."""
    correlations: Floats = array_field("float", "row example", name="correlation")
    """(row of the table, example); NaN without a knockout effect, or with too few targets."""
    examples: NDArray[np.int64] = array_field("int", "example", name="example")
    """(example,) example numbers."""
    attributes: Mapping[str, Any]
    """store, condition, choices, level, draws, seed, few (blocks of `rollout_window` and `flow_window` by window), missing (method ->
    arrays to record), leading (best method in the main setting, the mode with the largest effect of masking cells in all blocks: targets,
    mode, window, method, label, correlation, low, high; second, second_label and, paired, ahead, ahead_low, ahead_high)."""

    @property
    def best(self) -> dict[str, Any]:
        """The most faithful method in the main setting."""
        return dict(self.attributes["leading"])

    def rows(self, targets: str = "cells", mode: str = "final", window: str | None = None, effect: str = "size") -> pd.DataFrame:
        """Rows of one setting, best first.

        Parameters
        ----------
        targets, mode, effect
            As in the table.
        window
            All blocks by default.

        Raises
        ------
        InvalidInputError
            If the table has no such setting.
        """
        table = self.table
        window = window or str(table["window"].iloc[0])
        found = table[(table["targets"] == targets) & (table["mode"] == mode) & (table["window"] == window) & (table["effect"] == effect)]
        if found.empty:
            raise InvalidInputError(f"expected a setting of the table, found {targets}, {mode}, {window}, {effect}")
        return found.sort_values("correlation", ascending=False, kind="stable").reset_index(drop=True)

    @property
    def leading_rows(self) -> pd.DataFrame:
        """Rows of the main setting, most faithful first."""
        return self.rows(self.best["targets"], self.best["mode"], self.best["window"])

    @property
    def options(self) -> Mapping[str, Any]:
        """Parameters of `faithfulness`."""
        return {name: self.attributes[name] for name in ("level", "draws", "seed")}

    def to_frame(self) -> pd.DataFrame:
        """The table."""
        return self.table

    def summary(self) -> str:
        """Methods of every setting by correlation, the most faithful one, and the arrays that the missing methods need."""
        best = self.best
        lines = []
        modes = [best["mode"], *(m for m in dict.fromkeys(self.table["mode"]) if m != best["mode"])]
        for targets in dict.fromkeys([best["targets"], *self.table["targets"]]):
            for mode in modes:
                rows = self.rows(targets, mode, best["window"])
                lines.append(
                    f"rank correlation with the knockout effect of {TARGET_LABELS[targets]} {MODE_LABELS.get(mode, mode)} in blocks "
                    f"{best['window']}; mean effect {rows['effect_size'].iloc[0]:.3f} logits, {int(rows['examples'].max())} examples on "
                    f"{int(rows['images'].max())} images"
                )
                lines += [
                    f"  {row['correlation']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}]  {row['label']}"
                    for row in rows.to_dict("records")
                ]
        if "second" in best:
            about = f"{TARGET_LABELS[best['targets']]} {MODE_LABELS.get(best['mode'], best['mode'])}"
            significant = "" if best["ahead_low"] > 0 else " (not significant)"
            ahead = f"{best['ahead']:.2f} [{best['ahead_low']:.2f}, {best['ahead_high']:.2f}] ahead of the next{significant}"
            lines.append(f"best for {about}: {best['label']}, {ahead}")
        lines += [f"not available: {name}; record {arrays}" for name, arrays in self.attributes["missing"].items()]
        return "\n".join(lines)

    def plot(self, ax: Axes | None = None, *, targets: str = "", window: str = "") -> Axes:
        """Draw the correlation of each method with its interval, for all modes of the knockout.

        Parameters
        ----------
        ax
            Axes to draw on; a new figure's by default.
        targets, window
            As in the table; those of the main setting by default.
        """
        best, table = self.best, self.table
        targets, window = targets or best["targets"], window or best["window"]
        rows = table[(table["targets"] == targets) & (table["window"] == window) & (table["effect"] == "size")]
        modes = {MODE_LABELS.get(mode, mode): rows[rows["mode"] == mode] for mode in dict.fromkeys(rows["mode"])}
        return draw_correlations(modes, self.leading_rows["label"].tolist(), new_axes(ax), title=TARGET_LABELS[targets])

    def figure(self, store: ActivationStore | None = None) -> Figure:
        """One panel for groups of image cells and one for spans, with the knockout in all blocks."""
        kinds = list(dict.fromkeys(self.table["targets"]))
        window = str(self.table["window"].iloc[0])
        from matplotlib.figure import Figure

        with paper_style():
            figure = Figure(figsize=(2.6 + 2.3 * len(kinds), 0.6 + 0.27 * len(self.leading_rows)))
            axes = figure.subplots(1, len(kinds), squeeze=False, sharey=True)[0]
            for kind, ax in zip(kinds, axes, strict=True):
                self.plot(ax, targets=kind, window=window)
            handles, labels = axes[0].get_legend_handles_labels()
            figure.legend(handles, labels, loc="outside lower right", ncols=len(labels))
        return figure


def faithfulness(
    store: ActivationStore,
    examples: Sequence[int] | NDArray[Any] | None = None,
    *,
    methods: Sequence[str] | None = None,
    level: float = 0.95,
    draws: int = 1000,
    seed: int = 0,
    scheduler: str | None = None,
    progress: bool = False,
) -> Faithfulness:
    """Spearman correlation of each method's scores with the knockout effect, over groups of image cells and over spans.

    The knockout effect is the change of the logit difference when a target is masked. Within an example, targets are ranked by the
    absolute effect and by the absolute score of the same tokens in the same blocks; signed methods are also ranked with their sign. Means
    are over examples, intervals by cluster bootstrap over images.

    Parameters
    ----------
    examples
        Example numbers or a mask; all with knockouts by default.
    methods
        Names of `relevance.METHODS`; by default all whose arrays the store holds.
    level, draws, seed
        Level of the intervals; draws and seed of the bootstrap. The seed is also that of the random baseline.
    scheduler
        None or `synchronous`, `threads`, `processes`, or the address of a Dask scheduler.
    progress
        Show a progress bar where stderr is a terminal.

    Raises
    ------
    NotRecordedError
        If the store holds no knockouts, or lacks an array of a method in `methods`.
    TooFewExamplesError
        If fewer than two images have a knockout effect.
    """
    require_recorded(store, ("knockout",), "faithfulness")
    layout = store.layout
    modes, windows, targets = layout.knockout_modes, layout.knockout_windows, layout.knockout_targets
    chosen = held_examples(store, "knockout", examples)
    effects = np.asarray(store.read("knockout", examples=chosen), np.float64) if len(chosen) else np.zeros((0, 1, 1, 1))
    measured = np.isfinite(effects).any((1, 2, 3))
    if not measured.any():
        raise TooFewExamplesError("expected examples with measured knockouts, found none; extract with --record knockout --knockouts N")
    chosen, effects = chosen[measured], effects[measured]
    allowed, missing = methods_of(store, methods)
    blocks = [parse_window(name, layout.layers) for name in windows]
    few = [few_blocks(layout.layers) if window == (0, layout.layers) else window for window in blocks]
    options: dict[str, Any] = {"targets": targets, "methods": allowed, "windows": blocks, "few": few, "seed": seed}
    parts = over_blocks(_scores, store, chosen, at_most=PIECE, scheduler=scheduler, progress=progress, label="faithfulness", **options)
    scores = np.concatenate(parts)
    rows, correlations = _compare(effects, scores, allowed, modes, windows, targets)
    images = image_groups(store.examples).labels[chosen]
    table = _summarised(pd.DataFrame(rows), correlations, images, level, draws, seed)
    attributes = {
        **made_from(store),
        "choices": list(layout.choices[:2]),
        "level": level,
        "draws": draws,
        "seed": seed,
        "few": {name: list(window) for name, window in zip(windows, few, strict=True)},
        "missing": missing,
        "leading": _leading(table, correlations, images, level, draws, seed),
    }
    return Faithfulness(table, correlations, chosen, attributes)


def _scores(
    store: ActivationStore, numbers: NDArray[np.int64], *, targets: Sequence[str], methods: Sequence[Method], **options: Any
) -> Floats:
    """(example, method, window, target)."""
    out = []
    for number in numbers:
        found = group_scores(store, int(number), target_tokens(store, int(number), targets), methods, **options)
        out.append(np.stack([found[method.name] for method in methods]))
    return np.stack(out)


def _compare(
    effects: Floats, scores: Floats, methods: Sequence[Method], modes: Sequence[str], windows: Sequence[str], targets: Sequence[str]
) -> tuple[list[dict[str, Any]], Floats]:
    kinds = np.array([kind_of_target(name) for name in targets])
    rows, correlations = [], []
    for kind in (k for k in TARGETS if (kinds == k).sum() >= FEWEST_TARGETS):
        for m, mode in enumerate(modes):
            for w, window in enumerate(windows):
                effect = effects[:, m, w][:, kinds == kind]
                setting = {"targets": kind, "mode": mode, "window": window, "effect_size": _mean_size(effect)}
                for k, method in enumerate(methods):
                    score = scores[:, k, w][:, kinds == kind]
                    about = {"method": method.name, "label": method.label}
                    plain = method.name in BASELINES
                    rows.append({**setting, "effect": "size", **about})
                    correlations.append(rank_correlations(score if plain else np.abs(score), np.abs(effect)))
                    if method.signed:
                        # a knockout removes the contribution of the tokens
                        rows.append({**setting, "effect": "signed", **about})
                        correlations.append(rank_correlations(score, -effect))
    if not rows:
        raise TooFewExamplesError(f"expected at least {FEWEST_TARGETS} targets of a kind, found {', '.join(targets)}")
    return rows, np.stack(correlations)


def _mean_size(effects: Floats) -> float:
    known = np.isfinite(effects)
    return float(np.abs(effects[known]).mean()) if known.any() else float("nan")


def _summarised(rows: pd.DataFrame, correlations: Floats, images: NDArray[Any], level: float, draws: int, seed: int) -> pd.DataFrame:
    known = np.isfinite(correlations)
    if not known.any() or len(np.unique(images[known.any(0)])) < 2:
        raise TooFewExamplesError("expected knockout effects in at least two images, found fewer; measure more examples")
    count = known.sum(1)
    rows["correlation"] = np.where(count > 0, np.where(known, correlations, 0).sum(1) / np.maximum(count, 1), np.nan)
    drawn = Bootstrap(images, draws=draws, seed=seed).mean_of_known(correlations)
    rows["low"], rows["high"] = percentiles(drawn, level)
    behind = np.full((len(rows), 3), np.nan)
    for _, part in rows.groupby([*SETTING, "effect"], sort=False):
        places = part.index.to_numpy()
        best = places[int(np.nan_to_num(part["correlation"].to_numpy(), nan=-2).argmax())]
        low, high = percentiles(drawn[best] - drawn[places], level)
        behind[places] = np.stack([part["correlation"].loc[best] - part["correlation"].to_numpy(), low, high], 1)
    rows["behind"], rows["behind_low"], rows["behind_high"] = behind.T
    rows["examples"] = count
    rows["images"] = [len(np.unique(images[row])) for row in known]
    return rows


def _leading(table: pd.DataFrame, correlations: Floats, images: NDArray[Any], level: float, draws: int, seed: int) -> dict[str, Any]:
    """Best method for image cells (spans without cells) masked in all blocks, in the mode with the largest effect."""
    sized = table[(table["effect"] == "size") & (table["window"] == table["window"].iloc[0])]
    wanted = sized[sized["targets"] == "cells"]
    wanted = wanted if len(wanted) else sized
    first = wanted.loc[wanted["effect_size"].idxmax()]
    same = np.logical_and.reduce([sized[name].to_numpy() == first[name] for name in SETTING])
    rows = sized.iloc[np.flatnonzero(same)].sort_values("correlation", ascending=False, kind="stable")
    best = rows.iloc[0]
    found = {
        **{name: str(best[name]) for name in (*SETTING, "method", "label")},
        **{n: float(best[n]) for n in ("correlation", "low", "high")},
    }
    if len(rows) > 1:
        second = rows.iloc[1]
        found |= {"second": str(second["method"]), "second_label": str(second["label"])}
        found |= {f"ahead{end}": float(second[f"behind{end}"]) for end in ("", "_low", "_high")}
    return found
