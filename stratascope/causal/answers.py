"""Answers of a model with and without edits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[Any]


@dataclass(frozen=True)
class Answers:
    """Difference of the answer logits, and the answers, from logits with and without edits."""

    difference: Floats
    """(example,) logit of the first answer minus that of the second; of the model's own answer minus the largest other for more."""
    change: Floats
    """(variant, example) the same with an edit, minus that without."""
    flipped: Floats
    """(variant, example) 1 where the answer is another, 0 where not, NaN where not measured."""
    answer: NDArray[np.int64]
    """(example,) index of the answer without an edit."""

    @classmethod
    def of(cls, logits: Floats, change: Floats) -> Answers:
        """From logits without an edit, (example, choice), and their changes, (example, variant, choice)."""
        answer = logits.argmax(-1)
        edited = logits[:, None] + change
        if logits.shape[-1] == 2:
            difference, moved = logits[:, 0] - logits[:, 1], change[..., 0] - change[..., 1]
        else:
            difference = _margin(logits, answer)
            moved = _margin(edited, np.broadcast_to(answer[:, None], edited.shape[:2])) - difference[:, None]
        flipped = np.where(np.isfinite(moved), (edited.argmax(-1) != answer[:, None]).astype(float), np.nan)
        return cls(difference, moved.T, flipped.T, answer)

    def source_difference(self, logits: Floats) -> Floats:
        """(example,) difference of the answer logits of sources, (example, choice); of more than two, of the target's own answer."""
        if logits.shape[-1] == 2:
            return np.asarray(logits[:, 0] - logits[:, 1])
        return _margin(logits, self.answer)


def _margin(logits: Floats, answer: NDArray[np.int64]) -> Floats:
    own = np.take_along_axis(logits, answer[..., None], -1)
    others = logits.copy()
    np.put_along_axis(others, answer[..., None], -np.inf, -1)
    return np.asarray(own[..., 0] - others.max(-1))
