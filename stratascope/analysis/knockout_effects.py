"""`KnockoutEffects`: what the answer loses, by window of blocks, when a group of tokens cannot attend to another one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stratascope.analysis.attention_maps import parse_window
from stratascope.analysis.knockout_targets import kind_of_target
from stratascope.analysis.parallel import held_examples
from stratascope.analysis.weighting import require_recorded
from stratascope.errors import InvalidInputError, TooFewExamplesError
from stratascope.results.file import made_from
from stratascope.results.result import CHOICE, Result, array_field, new_axes, table_field, titled
from stratascope.results.schema import columns
from stratascope.stats.bootstrap import Bootstrap
from stratascope.stats.intervals import INTERVAL, interval_text
from stratascope.stats.mean_ratio import mean_ratio
from stratascope.store import ActivationStore
from stratascope.store.format.json_schema import each
from stratascope.store.io.example_identity import image_groups

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FEWEST_IMAGES = 8
"""Images below which a pair of reader and target is left out."""
READER_LABELS = {"final": "final token", "later": "all later tokens", "caption_rest": "rest of the caption", "system": "system turn"}
"""Mode of a knockout -> the tokens that cannot attend to the target, in words; other groups have their own name."""


class KnockoutEffects(
    Result,
    kind="knockout_effects",
    command="knockouts",
    schema={
        **each(str, "store condition"),
        **each(int, "draws seed"),
        **each(float, "level difference"),
        "choices": list[str],
        **CHOICE,
    },
):
    """Effect on the model's answer of masking a target for a group of reading tokens, by window of blocks."""

    selects_examples: ClassVar[bool] = True

    table: pd.DataFrame = table_field(
        columns(
            "row",
            text="reader target window",
            ints="first last examples images",
            floats=f"effect {INTERVAL} flipped",
            keys=["reader target window"],
        )
    )
    """One row per reader (tokens that cannot attend to the target: `final`, `later`, or a group), target and window: first, last (block),
    effect (mean change of the logit difference towards the model's answer; below 0 where masking weakens it), its intervals (pointwise, and
    simultaneous over the windows of a pair; NaN where too few images decide the effects of the pair, one end where
    they do not show how large effects are), flipped (share of examples whose
    answer becomes the other one), examples, images. The first window of a pair is all blocks."""
    examples: NDArray[np.int64] = array_field("int", "example", name="example")
    """(example,) example numbers."""
    attributes: Mapping[str, Any]
    """store, condition, choices, only, level, draws, seed, difference (mean size of the logit difference without masking)."""

    @property
    def readers(self) -> tuple[str, ...]:
        """Modes of the table, in the order of the store."""
        return tuple(dict.fromkeys(self.table["reader"]))

    @property
    def windowed(self) -> bool:
        """Whether there are windows besides that of all blocks."""
        return self.table["window"].nunique() > 1

    def rows(self, reader: str, *, whole: bool | None = None) -> pd.DataFrame:
        """Rows of one reader.

        Parameters
        ----------
        reader
            As in the table.
        whole
            True: masked in all blocks; False: in the other windows; None: both.

        Raises
        ------
        InvalidInputError
            If the table has no such reader.
        """
        if reader not in self.readers:
            raise InvalidInputError(f"expected `reader` among {', '.join(self.readers)}, found {reader!r}")
        found = self.table[self.table["reader"] == reader]
        in_all = found["window"].to_numpy(str) == str(self.table["window"].iloc[0])
        return found if whole is None else found.loc[in_all == whole]

    @property
    def options(self) -> Mapping[str, Any]:
        """Parameters of `knockout_effects`."""
        return {"only": self.only, **{name: self.attributes[name] for name in ("level", "draws", "seed")}}

    def to_frame(self) -> pd.DataFrame:
        """The table."""
        return self.table

    def summary(self) -> str:
        """For each pair of reader and target: the effect in all blocks, and the window with the largest effect."""
        size, level = float(self.attributes["difference"]), f"{self.attributes['level']:.0%}"
        lines = [
            f"change of the logit difference towards the model's answer (mean size {size:.2f}) when the reader cannot attend to the "
            f"target; {len(self.examples)} examples; {level} simultaneous over the windows of each pair, * where 0 is outside",
            f"{'reader <- target':<34}  {'all blocks':>24}  {'flipped':>7}  largest of the windows",
        ]
        for reader in self.readers:
            for target, rows in self.rows(reader).groupby("target", sort=False):
                whole, others = rows.iloc[0], rows.iloc[1:]
                text = f"{f'{READER_LABELS.get(reader, reader)} <- {target}':<34}  {_effect_text(whole):>24}  {whole['flipped']:>7.1%}"
                if len(others):
                    largest = others.iloc[int(others["effect"].abs().to_numpy().argmax())]
                    text += f"  {_effect_text(largest)} in blocks {largest['window']}"
                lines.append(text)
        return "\n".join(lines)

    def plot(self, ax: Axes | None = None, *, reader: str = "") -> Axes:
        """Draw the effect by the centre of the window, one line per target, with simultaneous bands.

        Parameters
        ----------
        ax
            Axes to draw on; a new figure's by default.
        reader
            As in the table; its first by default.
        """
        from stratascope.figures.layer_profiles import draw_window_effects

        chosen = reader or self.readers[0]
        return draw_window_effects(self.rows(chosen, whole=not self.windowed), new_axes(ax), title=titled(_title(chosen), self.only))

    def figure(self, store: ActivationStore | None = None) -> Figure:
        """One panel per reader, all on one scale."""
        from stratascope.figures.layer_profiles import window_effects_figure

        return window_effects_figure({_title(reader): self.rows(reader, whole=not self.windowed) for reader in self.readers})


def knockout_effects(
    store: ActivationStore,
    examples: Sequence[int] | NDArray[Any] | None = None,
    *,
    only: Sequence[str] = (),
    level: float = 0.95,
    draws: int = 2000,
    seed: int = 0,
) -> KnockoutEffects:
    """Effect of attention knockouts on the model's answer, by reading tokens, target and window of blocks (Geva et al. 2023).

    The sign is that of the answer: with d the logit of the first choice minus that of the second, the effect is sign(d) times the change of
    d. Groups of image cells are left out; `pointing` and the viewer show them. Intervals are by bootstrap-t over images; the simultaneous
    ones hold for all windows of a pair of reader and target together. Pairs with fewer than eight images are left out; those with fewer
    than 32, or with fewer than five images that decide the effects of the pair, have no intervals (docs/benchmarks.md).

    Parameters
    ----------
    store
        With knockouts (`--record knockout`); `--knockout-modes` chooses the reading tokens.
    examples
        Example numbers or a mask; all with knockouts by default.
    only
        COLUMN=VALUE: keep the examples with one of the given values of each column; see `store.chosen_examples`.
    level, draws, seed
        Level of the intervals; draws and seed of the bootstrap.

    Raises
    ------
    NotRecordedError
        If the store holds no knockouts.
    TooFewExamplesError
        If fewer than eight images have a knockout effect.
    """
    require_recorded(store, ("knockout",), "knockouts")
    layout = store.layout
    chosen = held_examples(store, "knockout", examples, only)
    named = [t for t, name in enumerate(layout.knockout_targets) if kind_of_target(name) != "cells"]
    shape = (0, len(layout.knockout_modes), len(layout.knockout_windows), len(layout.knockout_targets))
    effects = np.asarray(store.read("knockout", examples=chosen) if len(chosen) else np.zeros(shape), np.float64)[..., named]
    measured = np.isfinite(effects).any((1, 2, 3))
    chosen, effects = chosen[measured], effects[measured]
    images = image_groups(store.examples).labels[chosen]
    if len(np.unique(images)) < FEWEST_IMAGES:
        raise TooFewExamplesError(
            f"expected measured knockouts in at least {FEWEST_IMAGES} images, found {len(np.unique(images))}; extract with knockout in "
            "`record` and a larger `knockouts`"
        )
    logits = np.asarray(store.read("answer_logits", examples=chosen), np.float64)
    difference = logits[:, 0] - logits[:, 1]
    unmasked = difference[:, None, None, None]
    toward = effects * np.where(unmasked < 0, -1, 1)
    flipped = np.where(np.isfinite(effects), (unmasked + effects < 0) != (unmasked < 0), np.nan)
    rows, values, turned = [], [], []
    for m, reader in enumerate(layout.knockout_modes):
        for t, place in enumerate(named):
            if len(np.unique(images[np.isfinite(toward[:, m, 0, t])])) < FEWEST_IMAGES:
                continue  # absent, or no reading token may see it
            for w, window in enumerate(layout.knockout_windows):
                first, stop = parse_window(window, layout.layers)
                held = np.isfinite(toward[:, m, w, t])
                about = {"reader": reader, "target": layout.knockout_targets[place], "window": window, "first": first, "last": stop - 1}
                rows.append({**about, "examples": int(held.sum()), "images": len(np.unique(images[held]))})
                values.append(toward[:, m, w, t])
                turned.append(float(np.nanmean(flipped[:, m, w, t])))
    if not rows:
        raise TooFewExamplesError(
            f"expected at least {FEWEST_IMAGES} images with a pair of reader and target, found fewer; extract with a larger `knockouts`"
        )
    changes = np.stack(values)
    table = pd.DataFrame(rows)
    pairs = table.groupby(["reader", "target"], sort=False).ngroup().to_numpy()
    bootstrap = Bootstrap(images, draws=draws, seed=seed)
    means, _, bands = mean_ratio(changes, np.ones_like(changes), bootstrap, level=level, families=pairs)
    table = table.assign(effect=means, **bands.ends, flipped=turned)
    attributes = {
        **made_from(store),
        "choices": list(layout.choices[:2]),
        "only": list(only),
        "level": level,
        "draws": draws,
        "seed": seed,
        "difference": float(np.abs(difference).mean()),
    }
    return KnockoutEffects(table, chosen, attributes)


def _title(reader: str) -> str:
    return f"read by: {READER_LABELS.get(reader, reader)}"


def _effect_text(row: Mapping[str, Any] | pd.Series[Any]) -> str:
    low, high = float(row["low_simultaneous"]), float(row["high_simultaneous"])
    return f"{row['effect']:+.2f} {interval_text(low, high, '+.2f')}{'*' if low > 0 or high < 0 else ' '}"
