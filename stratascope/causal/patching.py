"""Sources of activation patching: for each example the example whose residual stream replaces its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stratascope.causal.effects import FEWEST_PAIRS
from stratascope.errors import InvalidInputError, NotRecordedError, TooFewExamplesError
from stratascope.store.format.prompt_parts import CELL_POSITION, IMAGE_POSITION
from stratascope.store.io.offered_choices import offered_logits
from stratascope.store.io.selection import listing

if TYPE_CHECKING:
    from stratascope.store import ActivationStore


@dataclass(frozen=True, eq=False)
class PatchSource:
    """A store whose residual stream is patched into examples of another or the same store."""

    name: str
    target: ActivationStore
    store: ActivationStore
    of: NDArray[np.int64]
    """(example of the target's store,) example number in the source's store, -1 for none."""

    def layers(self, part: Sequence[str]) -> list[int]:
        """Layers at which the store holds each token of all positions of `part`."""
        held = set(self.store.layers)
        if any(map(is_image_position, part)):
            layout = self.store.layout
            held &= set(layout.layers_of("patch_layer") if "patch_residual" in layout.record else ())
        return sorted(held)

    def held(self, part: Sequence[str]) -> NDArray[np.bool_]:
        """(example of the target's store,) whether its source holds each token of all positions of `part`, in as many image tokens."""
        there = np.maximum(self.of, 0)
        held = self.of >= 0
        for position in part:
            if is_image_position(position):
                held &= (self.store.patch_counts[there] > 0) & self.same_grid
                held &= np.asarray(self.target.available("residual", position))
            else:
                held &= np.asarray(self.store.available("residual", position))[there]
        return held

    @cached_property
    def same_grid(self) -> NDArray[np.bool_]:
        """(example of the target's store,) whether its image and that of its source have as many rows and columns of tokens."""
        return np.asarray((self.target.grid == self.store.grid[np.maximum(self.of, 0)]).all(1))

    def vectors(
        self, example: int, tokens: Mapping[str, NDArray[np.integer] | None], layers: Sequence[int]
    ) -> dict[str, NDArray[np.float32]]:
        """Position -> (layer, token, d) residual stream of the source of an example; NaN without a source or where it lacks a position.

        A text position is that of the source, wherever its token is; an image token is that at the same place of the image.

        Parameters
        ----------
        example
            Its number in the target's store.
        tokens
            Position -> indices of its tokens; None where the example lacks it.
        layers
            Of the residual stream.
        """
        found = {}
        for position, mine in tokens.items():
            found[position] = np.full((len(layers), 1 if mine is None else len(mine), self.store.layout.hidden), np.nan, np.float32)
            if mine is None or not self.held((position,))[example]:
                continue
            place = int(self.of[example])
            if is_image_position(position):
                read = self.store.read("patch_residual", layers=list(layers), examples=place)
                found[position][:] = read[:, mine - int(self.target.spans["image"][example, 0])]
            else:
                found[position][:, 0] = self.store.read("residual", layers=list(layers), position=position, examples=place)
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
    return PatchSource(name, target, source, of)


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
        found.append(PatchSource(name, store, store, of))
    if found:
        _refuse_few("pairs", np.max([source.of for source in found], 0), f"examples of {store.name} with a partner in the column pair")
    return found


def is_image_position(position: str) -> bool:
    """Whether a position is made of image tokens: all, those of one of several images, of a box, or of a group of cells."""
    patterned = CELL_POSITION.fullmatch(position) or IMAGE_POSITION.fullmatch(position)
    return position in ("image", "subject_box", "object_box") or patterned is not None


def patch_layers(
    source: PatchSource, parts: Sequence[Sequence[str]], examples: NDArray[np.int64], layers: Sequence[int], asked: Sequence[int] | None
) -> list[int]:
    """Of some layers those that can be patched from a source at all positions.

    Parameters
    ----------
    source
        Where the residual stream comes from.
    parts
        Positions that are changed together.
    examples
        Numbers of the examples of the task.
    layers
        Known ones.
    asked
        Those that were asked for; None: all that can be patched.

    Raises
    ------
    InvalidInputError
        If a position is the mean of text tokens.
    NotRecordedError
        If the source lacks layers that were asked for, or image tokens of enough examples; names the command that records them.
    """
    means = [name for part in parts for name in part if name.endswith("_mean")]
    if means:
        raise InvalidInputError(
            f"expected `positions` of single tokens or of image tokens for patching, found {', '.join(means)}: the store holds the mean "
            "over the text tokens, which cannot replace them; name tokens such as subject, object or subject_0"
        )
    known = list(layers)
    for part in parts:
        held, images = source.layers(part), any(map(is_image_position, part))
        remedy = "copy or extract it with these layers"
        if images:
            wanted = ",".join(map(str, asked or (source.store.layers[0], source.store.layers[-1])))
            remedy = f"extract it again with `--patches N --patch-layers {wanted}`, which saves all image tokens of N examples"
        what = f"source {source.name!r}, {'+'.join(part)}: expected {'all image tokens' if images else 'the residual stream'}"
        if lacking := [layer for layer in asked or () if layer not in held] or (not held and known):
            raise NotRecordedError(f"{what} at layers {listing(lacking)}, found them at {listing(held) or 'none'}; {remedy}")
        if images and (count := int(source.held(part)[examples].sum())) < FEWEST_PAIRS:
            unlike = int((~source.same_grid & (source.of >= 0))[examples].sum())
            other = f", and {unlike} whose images have other numbers of tokens" if unlike else ""
            raise NotRecordedError(f"{what} of at least {FEWEST_PAIRS} examples of the task, found {count}{other}; {remedy}")
        known = [layer for layer in known if layer in held]
    return known


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
