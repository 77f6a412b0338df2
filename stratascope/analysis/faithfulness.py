"""Faithfulness: agreement of attribution methods with attention knockouts (Geva et al. 2023; Jain & Wallace 2019)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stratascope.analysis.attention_maps import parse_window
from stratascope.analysis.faithfulness_table import (
    LEADING_NUMBERS,
    LEADING_TEXTS,
    ROLES,
    SETTING,
    compare,
    highest,
    in_order,
    leading_record,
    with_intervals,
)
from stratascope.analysis.knockout_targets import MODE_LABELS, TARGET_LABELS, setting_text, target_tokens
from stratascope.analysis.parallel import held_examples, over_blocks
from stratascope.analysis.relevance import RANDOM_DRAWS, Method, few_blocks, group_scores, methods_of, random_scores
from stratascope.analysis.weighting import require_recorded
from stratascope.errors import InvalidInputError, NotRecordedError, TooFewExamplesError
from stratascope.figures.correlations import draw_correlations
from stratascope.figures.style import paper_style
from stratascope.results.file import made_from
from stratascope.results.result import Result, array_field, new_axes, table_field
from stratascope.results.schema import columns
from stratascope.store import ActivationStore
from stratascope.store.format.json_schema import each
from stratascope.store.io.example_identity import image_groups

PIECE = 4
REMARKS = {"baseline": " (baseline)", "reference": " (reference, not ranked: first-order estimate of the knockout effect)"}

Floats = NDArray[np.float64]


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LEADING = {**each(str, LEADING_TEXTS), **each(float, LEADING_NUMBERS)}


class Faithfulness(
    Result,
    kind="faithfulness",
    command="faithfulness",
    schema={
        **each(str, "store condition"),
        **each(int, "draws seed random_draws"),
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
            text="targets mode window effect method label role blocks",
            ints="examples images",
            floats="effect_size correlation low high low_simultaneous high_simultaneous behind behind_low behind_high",
            keys=["targets mode window effect method", "targets mode window effect label"],
            values={"role": " ".join(ROLES)},
        ),
        name="methods",
    )
    """targets (cells or spans), mode (masked queries: `final`, the final token, or `later`, every later token), window (of blocks, of the
    knockout), effect, method, label, role (method; baseline; reference: the first-order estimate of the knockout effect, not ranked),
    blocks (those that the scores are of: the window, or all for a method without scores by block; empty for baselines), correlation (mean
    over examples of Spearman's), low, high (bootstrap-t by image; NaN for fewer than eight), low_simultaneous, high_simultaneous (over the
    methods of the setting, so that choosing the highest is allowed for), behind (mean difference of the highest method from this one, in
    the examples of both), behind_low, behind_high (simultaneous over all pairs of the setting), examples, images, effect_size (mean
    absolute knockout effect of one target, in logits; small effects are hard to rank). `effect`: `size` compares absolute values;
    `signed`, for methods with a sign, signed values."""
    correlations: Floats = array_field("float", "row example", name="correlation")
    """(row of the table, example); NaN without a knockout effect, or with too few targets. Of the random baseline: mean over its draws."""
    examples: NDArray[np.int64] = array_field("int", "example", name="example")
    """(example,) example numbers."""
    attributes: Mapping[str, Any]
    """store, condition, choices, level, draws, seed, random_draws, few (blocks of `rollout_window` and `flow_window` by window), missing
    (method -> arrays to record), leading: the highest method in the leading setting, which is fixed beforehand: spans, masked for all later
    tokens in all blocks (targets, mode, window, method, label, correlation; low, high: simultaneous over methods; second, second_label and,
    paired, ahead, ahead_low, ahead_high; the higher baseline: baseline, baseline_label, over_baseline, over_baseline_low,
    over_baseline_high)."""

    @property
    def best(self) -> dict[str, Any]:
        """The most faithful method in the leading setting."""
        return dict(self.attributes["leading"])

    def rows(self, targets: str = "cells", mode: str = "final", window: str | None = None, effect: str = "size") -> pd.DataFrame:
        """Rows of one setting: methods and baselines, highest first, then the reference.

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
        return in_order(found).reset_index(drop=True)

    @property
    def leading_rows(self) -> pd.DataFrame:
        """Rows of the leading setting, most faithful first."""
        return self.rows(self.best["targets"], self.best["mode"], self.best["window"])

    @property
    def by_setting(self) -> pd.DataFrame:
        """One row per setting, the leading one first: the highest method.

        Columns targets, mode, window, effect_size, method, label, correlation, low, high (simultaneous over methods), second_label, ahead,
        ahead_low, ahead_high (of the next; simultaneous over all pairs), reference, reference_low, reference_high (NaN if not compared).
        """
        table = self.table[self.table["effect"] == "size"]
        found = [highest(part) for _, part in table.groupby(SETTING, sort=False)]
        leads = [all(row[name] == self.best[name] for name in SETTING) for row in found]
        return pd.DataFrame([found[k] for k in np.argsort(~np.array(leads), kind="stable")])

    @property
    def options(self) -> Mapping[str, Any]:
        """Parameters of `faithfulness`."""
        return {name: self.attributes[name] for name in ("level", "draws", "seed")}

    def to_frame(self) -> pd.DataFrame:
        """The table."""
        return self.table

    def summary(self) -> str:
        """Methods of the leading setting by correlation, the highest method of every other setting, and arrays that methods lack."""
        best, rows = self.best, self.leading_rows
        lines = [
            f"rank correlation with the knockout effect of {setting_text(best)}; mean effect {rows['effect_size'].iloc[0]:.3f} logits, "
            f"{int(rows['examples'].max())} examples on {int(rows['images'].max())} images"
        ]
        lines += [
            f"  {row['correlation']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}]  {row['label']}{REMARKS.get(row['role'], '')}"
            for row in rows.to_dict("records")
        ]
        sure = f"[{best['low']:+.2f}, {best['high']:+.2f}], {self.attributes['level']:.0%} simultaneous over methods"
        lines.append(f"highest in this setting, which is fixed beforehand: {best['label']} {best['correlation']:+.2f} {sure}")
        for name, other in (("ahead", best.get("second_label")), ("over_baseline", best.get("baseline_label"))):
            if other:
                significant = "" if best[f"{name}_low"] > 0 else " (not significant)"
                ends = f"[{best[f'{name}_low']:+.2f}, {best[f'{name}_high']:+.2f}]"
                lines.append(f"  {best[name]:+.2f} {ends} above {other}{significant}")
        others = self.by_setting.iloc[1:].to_dict("records")
        whole = [row for row in others if row["window"] == best["window"]]
        lines += ["highest in the other settings:"] if whole else []
        for row in whole:
            ends = f"[{row['low']:+.2f}, {row['high']:+.2f}]"
            clear = "" if row["ahead_low"] > 0 else " (not significantly above the next)"
            known = f"; reference {row['reference']:+.2f}" if np.isfinite(row["reference"]) else ""
            lines.append(
                f"  {row['correlation']:+.2f} {ends}  {row['label']}{clear}: {setting_text(row)}, mean effect "
                f"{row['effect_size']:.3f} logits{known}"
            )
        if len(others) > len(whole):
            lines.append(f"{len(others) - len(whole)} settings with knockouts in windows of blocks: in the report and in the results file")
        lines += [f"not available: {name}; record {arrays}" for name, arrays in self.attributes["missing"].items()]
        return "\n".join(lines)

    def plot(self, ax: Axes | None = None, *, targets: str = "", window: str = "") -> Axes:
        """Draw the correlation of each method with its interval, for all modes of the knockout; the reference stands apart, below.

        Parameters
        ----------
        ax
            Axes to draw on; a new figure's by default.
        targets, window
            As in the table; those of the leading setting by default.
        """
        best, table = self.best, self.table
        targets, window = targets or best["targets"], window or best["window"]
        rows = table[(table["targets"] == targets) & (table["window"] == window) & (table["effect"] == "size")]
        modes = {MODE_LABELS.get(mode, mode): rows[rows["mode"] == mode] for mode in dict.fromkeys(rows["mode"])}
        shown = self.leading_rows if window == best["window"] else in_order(rows[rows["mode"] == rows["mode"].iloc[0]])
        apart = shown.loc[shown["role"] == "reference", "label"].tolist()
        return draw_correlations(modes, shown["label"].tolist(), new_axes(ax), title=TARGET_LABELS[targets], apart=apart)

    def figure(self, store: ActivationStore | None = None) -> Figure:
        """One panel for spans and one for groups of image cells, with the knockout in all blocks."""
        kinds = list(dict.fromkeys([self.best["targets"], *self.table["targets"]]))
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
    are over examples, intervals by bootstrap-t over images.

    The leading setting is fixed beforehand, whatever the results: spans, masked for all later tokens, in all blocks. An attribution claims
    how much the answer depends on a token. Masked for all later tokens, a target is cut off on every path, direct or through other tokens,
    and the spans cover the whole prompt. Masked for the final token alone, only the direct path is cut. Where the store lacks one of these,
    cells take the place of spans, and `final` that of `later`. The estimated knockout effect is a reference: it approximates the measured
    quantity itself, and is not ranked. The random baseline is the mean over 20 draws in every example.

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
        If fewer than eight images have a knockout effect.
    """
    require_recorded(store, ("knockout",), "faithfulness")
    layout = store.layout
    modes, windows, targets = layout.knockout_modes, layout.knockout_windows, layout.knockout_targets
    chosen = held_examples(store, "knockout", examples)
    effects = np.asarray(store.read("knockout", examples=chosen), np.float64) if len(chosen) else np.zeros((0, len(modes), 1, 1))
    kept = [m for m, mode in enumerate(modes) if mode in MODE_LABELS]
    if not kept:
        raise NotRecordedError(
            f"expected knockouts in the mode {' or '.join(MODE_LABELS)}, found {', '.join(modes)}; "
            "extract with `knockout_modes` final,later"
        )
    modes, effects = tuple(modes[m] for m in kept), effects[:, kept]
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
    random = np.stack([random_scores(scores.shape[2:], example=int(number), seed=seed) for number in chosen], axis=1)
    rows, correlations = compare(effects, scores, random, allowed, modes, windows, targets)
    images = image_groups(store.examples).labels[chosen]
    table = with_intervals(rows, correlations, images, level, draws, seed)
    attributes = {
        **made_from(store),
        "choices": list(layout.choices[:2]),
        "level": level,
        "draws": draws,
        "seed": seed,
        "random_draws": RANDOM_DRAWS,
        "few": {name: list(window) for name, window in zip(windows, few, strict=True)},
        "missing": missing,
        "leading": leading_record(table),
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
