"""Which answer choices an example offers, where questions have different numbers of options; texts of generated answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from stratascope.store.io.reader import ActivationStore

OPTIONS = "options"
"""Column with the number of an example's options: the first so many choices; its provenance says that the store has it."""


def offered_logits(store: ActivationStore, logits: NDArray[Any], examples: Sequence[int] | NDArray[np.int64]) -> NDArray[Any]:
    """Logits of the answer choices, -inf for choices that the example does not offer.

    Parameters
    ----------
    store
        The store of the examples.
    logits
        (example, choice), such as `answer_logits`; further axes may stand before these.
    examples
        (example,) numbers.
    """
    if not store.provenance.get("data", {}).get(OPTIONS):
        return logits
    offered = np.arange(logits.shape[-1]) < store.examples[OPTIONS].to_numpy()[np.asarray(examples)][:, None]
    return np.where(offered, logits, -np.inf)


def generated_texts(store: ActivationStore, examples: Sequence[int] | NDArray[np.int64]) -> list[str]:
    """Texts that the model generated, without the end of the turn.

    Parameters
    ----------
    store
        A store with generated tokens.
    examples
        (example,) numbers.

    Raises
    ------
    NotRecordedError
        If the store has none.
    """
    return [row[row > 0].tobytes().decode("utf-8", "replace") for row in store.read("generated_text", examples=examples)]
