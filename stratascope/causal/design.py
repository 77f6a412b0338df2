"""Design of interventions: which variants of an example are run, and the edits of the residual stream, fitted without its fold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stratascope.causal.directions import (
    RandomConcepts,
    class_mean_difference,
    concept_values,
    haufe_pattern,
    logistic_direction,
)
from stratascope.causal.erasure import Erasure, Whitening, mean_projection, orthonormal
from stratascope.causal.intervention_settings import InterventionSettings
from stratascope.causal.labels import FoldLabels
from stratascope.causal.patching import PatchSource, patch_layers
from stratascope.errors import InvalidInputError, NotRecordedError, TooFewExamplesError
from stratascope.store.format.generated_positions import generated_number

if TYPE_CHECKING:
    from stratascope.store import ActivationStore

Floats = NDArray[Any]


@dataclass(frozen=True, eq=False)
class EditStack:
    """Edits of one position and layer, one for each slot: x -> x + shift - write (read (x - centre))."""

    write: NDArray[np.float32]
    """(slot, d, k)"""
    read: NDArray[np.float32]
    """(slot, d, k)"""
    centre: NDArray[np.float32]
    """(slot, d)"""
    shift: NDArray[np.float32]
    """(slot, d)"""

    @classmethod
    def of(cls, edits: Sequence[tuple[Erasure, Floats | None]]) -> EditStack:
        """From erasures and shifts, padded to the largest rank."""
        d, rank = len(edits[0][0].centre), max(1, *(erasure.rank for erasure, _ in edits))
        made = cls(*(np.zeros((len(edits), *shape), np.float32) for shape in ((d, rank), (d, rank), (d,), (d,))))
        for k, (erasure, shift) in enumerate(edits):
            made.write[k, :, : erasure.rank] = erasure.write
            made.read[k, :, : erasure.rank] = erasure.read
            made.centre[k] = erasure.centre
            if shift is not None:
                made.shift[k] = shift
        return made


class InterventionDesign:
    """All variants of an example, and the edits that make them.

    Parameters
    ----------
    store
        Store of the residual stream from which directions are fitted.
    labels
        Folds and labels of the task.
    settings
        Which interventions to run.
    patches
        Sources of patching. Image tokens are patched one by one, at the layers of the sources' `patch_residual`: by default at these alone.

    Raises
    ------
    InvalidInputError
        If kind and task do not go together, or a layer or position is not in the store.
    NotRecordedError
        If the store lacks the residual stream, or a source what is patched.
    TooFewExamplesError
        If there are fewer than two folds.
    """

    def __init__(
        self, store: ActivationStore, labels: FoldLabels, settings: InterventionSettings, patches: Sequence[PatchSource] = ()
    ) -> None:
        self.store, self.labels, self.settings, self.patches = store, labels, settings, tuple(patches)
        self.sources = tuple(source.name for source in patches)
        if "residual" not in store.layout.record:
            raise NotRecordedError(f"{store.name}: expected the residual stream, found none; extract with `record` residual")
        binary = len(labels.classes) == 2
        if not binary and (unfit := [kind for kind in settings.kinds if kind in ("steer", "reflect")]):
            raise InvalidInputError(
                f"expected a task of two classes for {' and '.join(unfit)}, found {labels.task!r} with "
                f"{len(labels.classes) or 'numbers instead of'} classes; leave them out of `kinds`, or select two classes when probing"
            )
        if not binary and (unfit := [m for m in settings.methods if m in ("pattern", "logistic")]):
            raise InvalidInputError(
                f"expected a task of two classes for {' and '.join(unfit)}, found {labels.task!r}; leave them out of `methods`"
            )
        if ("patch" in settings.kinds) != bool(patches):
            raise InvalidInputError(
                "expected `source` or `pairs` exactly with the kind patch, found "
                + ("none" if "patch" in settings.kinds else "some without it; add patch to `kinds`")
            )
        if len(np.unique(labels.folds[labels.folds >= 0])) < 2:
            raise TooFewExamplesError(f"expected at least two folds in the saved curve of {labels.task}, found fewer; probe again")
        self.parts = tuple(tuple(name.split("+")) for name in settings.positions)
        unknown = [name for part in self.parts for name in part if name not in store.layout.positions]
        if unknown:
            raise InvalidInputError(
                f"expected `positions` among {', '.join(store.layout.positions)}, found {', '.join(unknown)}; A+B changes both"
            )
        if written := [name for part in self.parts for name in part if generated_number(name) is not None]:
            raise InvalidInputError(
                f"expected `positions` of the prompt, found {', '.join(written)}: generated tokens come after the answer"
            )
        known = list(store.layers)
        if outside := [layer for layer in settings.layers or () if layer not in known]:
            raise InvalidInputError(f"expected `layers` among {known}, found {outside}; a copied store may hold fewer")
        for source in patches:
            known = patch_layers(source, self.parts, labels.examples, known, settings.layers)
        layers = known if settings.layers is None else list(settings.layers)
        wide = [(layer, layer + settings.window - 1) for layer in sorted(layers)]
        self.windows = [window for window in wide if set(range(window[0], window[1] + 1)) <= set(known)]
        """First and last layer of each window, ascending."""
        if not self.windows:
            raise InvalidInputError(f"expected `window` of at most {len(known)} successive layers of the store, found {settings.window}")

    @cached_property
    def slots(self) -> pd.DataFrame:
        """One row for each variant of a position and window, as of `InterventionSettings.slots`."""
        return self.settings.slots(self.sources)

    @property
    def edited(self) -> int:
        """Number of slots before the patches."""
        return int((self.slots["kind"] != "patch").sum())

    @cached_property
    def variants(self) -> pd.DataFrame:
        """One row for each variant of an example: position, layer, last (of the window) and the columns of `slots`."""
        parts = [
            self.slots.assign(position=position, layer=first, last=last)
            for position in self.settings.positions
            for first, last in self.windows
        ]
        columns = ["position", "layer", "last", *self.slots.columns]
        return pd.concat(parts, ignore_index=True)[columns]

    @cached_property
    def tested(self) -> NDArray[np.intp]:
        """(n tested,) places in `labels` of the examples that are changed: evenly spaced, with at least one of the positions.

        Raises
        ------
        TooFewExamplesError
            If no example of the task has one of the positions.
        """
        present = self.store.position_present
        names = list(self.store.layout.positions)
        has = np.stack([present[:, [names.index(name) for name in part]].all(1) for part in self.parts]).any(0)
        has &= np.asarray(self.store.available("residual"))
        if self.settings.kinds == ("patch",):
            has &= np.stack([source.held(part) for source in self.patches for part in self.parts]).any(0)
        places = np.flatnonzero((self.labels.folds >= 0) & has[self.labels.examples])
        wanted = self.settings.examples
        if not len(places):
            raise TooFewExamplesError(f"expected examples of {self.labels.task} with the positions, found none")
        if wanted is not None and wanted < len(places):
            places = places[(np.arange(wanted) * len(places)) // wanted]
        return places

    @cached_property
    def reruns(self) -> list[tuple[tuple[str, ...], int]]:
        """Positions and first layer of each position and window that is rerun: not those at which no edit changes anything.

        Such is layer 0 of the final token, which is the same token in all examples.
        """
        return [(part, first) for part in self.parts for first, last in self.windows if last or self.sources or not self._same_token(part)]

    def _same_token(self, part: Sequence[str]) -> bool:
        """Whether all examples enter the first block with the same residual stream at some positions."""
        for name in part:
            present = self.store.available("residual", name)[self.labels.examples] & (self.labels.folds >= 0)
            x = self.store.read("residual", layer=0, position=name, examples=self.labels.examples[present])
            if len(x) > 1 and not Whitening(x).constant:
                return False
        return True

    def folds(self) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """Each fold with the (n,) numbers of its tested examples."""
        for fold in np.unique(self.labels.folds[self.tested]):
            mine = self.tested[self.labels.folds[self.tested] == fold]
            yield int(fold), self.labels.examples[mine]

    def stacks(self, fold: int) -> dict[tuple[str, int], EditStack]:
        """(position, layer) -> edits fitted on all folds but `fold`."""
        if not self.edited:
            return {}
        layers = sorted({layer for first, last in self.windows for layer in range(first, last + 1)})
        return {
            (name, layer): self.fit(name, layer, fold)
            for name in dict.fromkeys(name for part in self.parts for name in part)
            for layer in layers
        }

    def fit(self, position: str, layer: int, fold: int) -> EditStack:
        """Edits of a position and layer, fitted on the examples that have the position and are not in `fold`."""
        labels, chosen = self.labels, self.settings
        present = np.asarray(self.store.available("residual", position))[labels.examples]
        training = (labels.folds >= 0) & (labels.folds != fold) & present
        x = self.store.read("residual", layer=layer, position=position, examples=labels.examples[training]).astype(np.float64)
        z = self._values[training]
        whitening = Whitening(x)
        nothing = whitening.nothing()
        if whitening.constant:  # rows differ by rounding alone, and so would random directions
            return EditStack.of([(nothing, None)] * self.edited)
        own = whitening.covariance_with(z)
        drawn = {
            control: self._concepts.covariances(control, whitening, training, own, layer)
            for control in dict.fromkeys((*chosen.control_kinds, "covariance"))
        }
        edits: dict[tuple[str, str, str, int], Erasure] = {}
        if "erase" in chosen.kinds:
            keys = [("erase", "leace", control, draw) for control in chosen.control_kinds for draw in range(chosen.controls)]
            found = whitening.erasures([own, *(drawn[control][draw] for _, _, control, draw in keys)])
            edits |= dict(zip([("erase", "leace", "", -1), *keys], found, strict=True))
            edits["erase", "means", "", -1] = mean_projection(x, z)
            for draw in range(chosen.controls):
                basis = orthonormal(drawn["covariance"][draw])
                edits["erase", "projection", "covariance", draw] = Erasure(basis, basis, whitening.centre)
        delta = np.zeros(x.shape[1])
        if len(labels.classes) == 2:
            codes = labels.labels[training]
            delta = class_mean_difference(x, codes)
            for method in {"pattern", "logistic"} & set(chosen.methods):
                weights = logistic_direction(x, codes)
                along = weights if method == "logistic" else haufe_pattern(x, weights)
                edits["erase", method, "", -1] = _projection(along, whitening.centre)
            middle = np.mean([x[codes == code].mean(0) for code in np.unique(codes)], axis=0)
            for draw in range(-1, chosen.controls):
                along, centre = (delta, middle) if draw < 0 else (drawn["covariance"][draw][:, 0], whitening.centre)
                edits["reflect", "means", "" if draw < 0 else "covariance", draw] = _reflection(along, centre)
        made = []
        for kind, method, control, factor, draw, _ in self.slots.itertuples(index=False):
            if kind == "steer":
                along = delta if draw < 0 else _scaled(drawn[control][draw][:, 0], float(np.linalg.norm(delta)))
                made.append((nothing, factor * along))
            elif kind != "patch":
                made.append((edits[kind, method, control, draw], None))
        return EditStack.of(made)

    @cached_property
    def _values(self) -> Floats:
        return concept_values(self.labels.labels, self.labels.numeric)

    @cached_property
    def _concepts(self) -> RandomConcepts:
        groups = np.unique(self.labels.groups, return_inverse=True)[1]
        return RandomConcepts(self._values, self.labels.folds, groups, draws=self.settings.controls, seed=self.settings.seed)


def _scaled(vector: Floats, norm: float) -> Floats:
    size = float(np.linalg.norm(vector))
    return vector * (norm / size) if size > 0 else np.zeros_like(vector)


def _projection(along: Floats, centre: Floats) -> Erasure:
    unit = _scaled(along, 1.0)[:, None]
    return Erasure(unit, unit, centre)


def _reflection(along: Floats, centre: Floats) -> Erasure:
    """x + 2 (t - p(x)) a, with the unit vector a, the projection p on it, and t that of the centre."""
    unit = _scaled(along, 1.0)[:, None]
    return Erasure(2 * unit, unit, centre)
