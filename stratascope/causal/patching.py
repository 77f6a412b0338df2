"""Sources of activation patching: for each example the example whose residual stream replaces its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stratascope.causal.effects import FEWEST_PAIRS
from stratascope.errors import InvalidInputError, NotRecordedError, TooFewExamplesError
from stratascope.store.io.offered_choices import offered_logits

if TYPE_CHECKING:
    from stratascope.store import ActivationStore

ONE_TOKEN = ("final", "subject", "relation", "object")
"""Positions that are one token; the store holds only the mean over the tokens of the others, which cannot be patched."""


@dataclass(frozen=True, eq=False)
class PatchSource:
    """A store whose residual stream is patched into examples of another or the same store."""

    name: str
    store: ActivationStore
    of: NDArray[np.int64]
    """(example of the target's store,) example number in the source's store, -1 for none."""

    def vectors(self, example: int, positions: Sequence[str], layers: Sequence[int]) -> NDArray[np.float32]:
        """(position, layer, d) residual stream of the source of an example; NaN without a source or where it lacks a position."""
        found = np.full((len(positions), len(layers), self.store.layout.hidden), np.nan, np.float32)
        place = int(self.of[example])
        if place >= 0:
            for k, position in enumerate(positions):
                if self.store.available("residual", position)[place]:
                    found[k] = self.store.read("residual", layers=list(layers), position=position, examples=place)
        return found

    def answer_logits(self, examples: NDArray[np.int64]) -> NDArray[np.float64]:
        """(example, choice) logits of the sources of examples; NaN without a source."""
        places = self.of[examples]
        found = np.full((len(places), len(self.store.layout.choices)), np.nan)
        there = places[places >= 0]
        found[places >= 0] = offered_logits(self.store, self.store.read("answer_logits", examples=there), there)
        return found


def same_ids(name: str, target: ActivationStore, source: ActivationStore) -> PatchSource:
    """Patch from a store of the same examples under another condition, such as mirrored or blank images.

    Parameters
    ----------
    name
        Name of the source.
    target, source
        The stores.

    Raises
    ------
    InvalidInputError
        If model, prompt or answers differ, or too few ids are in both.
    """
    _refuse_unlike(name, target, source)
    places = {example: k for k, example in enumerate(source.examples["id"])}
    usable = np.asarray(source.available("residual")) & np.asarray(source.available("answer_logits"))
    of = np.array([k if usable[k := places.get(example, -1)] or k < 0 else -1 for example in target.examples["id"]], np.int64)
    _refuse_few(name, of, f"ids of {target.name} in {source.name}; extract the same examples with `condition` mirror or blank")
    return PatchSource(name, source, of)


def pair_sources(store: ActivationStore) -> list[PatchSource]:
    """Patch from the other examples of the same pair, one source for each variant.

    Parameters
    ----------
    store
        Its examples have columns `pair` and `variant`, such as the captions with subject and object swapped.

    Raises
    ------
    NotRecordedError
        If the store has no such columns.
    InvalidInputError
        If a variant occurs twice in a pair, or there are too few pairs.
    """
    table = store.examples
    if not {"pair", "variant"} <= set(table.columns):
        raise NotRecordedError(
            f"{store.name}: expected examples with columns pair and variant, found {', '.join(map(str, table.columns))}; make minimal "
            "pairs and extract them, or give a store of the same examples under another condition (`source`)"
        )
    usable = np.asarray(store.available("residual")) & np.asarray(store.available("answer_logits"))
    pair, variant = table["pair"].astype(str).to_numpy(), table["variant"].astype(str).to_numpy()
    found = []
    for name in dict.fromkeys(variant[pair != ""].tolist()):
        numbers = np.flatnonzero((variant == name) & (pair != "") & usable)
        places = dict(zip(pair[numbers].tolist(), numbers.tolist(), strict=True))
        if len(places) < len(numbers):
            twice = next(p for p in pair[numbers] if (pair[numbers] == p).sum() > 1)
            raise InvalidInputError(f"expected one example of each variant in a pair, found several {name!r} in pair {twice!r}")
        of = np.array([-1 if v == name else places.get(p, -1) for p, v in zip(pair, variant, strict=True)], np.int64)
        found.append(PatchSource(name, store, of))
    if found:
        _refuse_few("pairs", np.max([source.of for source in found], 0), f"examples of {store.name} with a partner in the column pair")
    return found


def patch_refusals(positions: Sequence[str]) -> None:
    """Refuse positions that are means over tokens.

    Raises
    ------
    InvalidInputError
        Naming them.
    """
    means = [name for part in positions for name in part.split("+") if name not in ONE_TOKEN]
    if means:
        raise InvalidInputError(
            f"expected `positions` of one token ({', '.join(ONE_TOKEN)}) for patching, found {', '.join(means)}: the store holds their "
            "mean over tokens, which cannot replace the tokens; patch in a run of its own"
        )


def _refuse_unlike(name: str, target: ActivationStore, source: ActivationStore) -> None:
    a, b = target.provenance, source.provenance

    def facts(provenance: Any) -> dict[str, Any]:
        model, prompt = provenance.get("model") or {}, provenance.get("prompt") or {}
        if not isinstance(model, dict):
            model = {"name": model}
        names = ("files", "untrained", "dtype")
        return {**{f"model.{k}": model.get(k) for k in names}, **{f"prompt.{k}": prompt.get(k) for k in ("text", "system", "choices")}}

    unlike = [key for key, value in facts(a).items() if value != facts(b)[key]]
    if unlike:
        raise InvalidInputError(
            f"source {name!r}: expected a store of the same model and prompt as {target.name}, found others ({', '.join(unlike)} differ); "
            "extract the source with the settings of the target"
        )
    if "residual" not in source.layout.record:
        raise NotRecordedError(f"source {name!r}: expected the residual stream, found none; extract with `record` residual")


def _refuse_few(name: str, of: NDArray[np.int64], what: str) -> None:
    if (count := int((of >= 0).sum())) < FEWEST_PAIRS:
        raise TooFewExamplesError(f"source {name!r}: expected at least {FEWEST_PAIRS} pairs, found {count} {what}")
