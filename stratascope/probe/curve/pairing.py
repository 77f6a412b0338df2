"""Which layer curves can be paired example by example."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stratascope.errors import InvalidInputError


class Paired(Protocol):
    """Part of a layer curve that decides whether another can be paired with it: layers, examples, and draws and seed of the bootstrap."""

    @property
    def layers(self) -> NDArray[np.intp]: ...

    @property
    def examples(self) -> pd.DataFrame: ...

    @property
    def attributes(self) -> Mapping[str, Any]: ...


def refuse_unpaired(own: Paired, other: Paired) -> None:
    """Check that two curves can be paired example by example.

    Raises
    ------
    InvalidInputError
        The curves are of other layers, groups or seeds, or of examples that differ in image, caption, relation or label.
    """
    if not np.array_equal(own.layers, other.layers):
        raise InvalidInputError(f"expected curves of the same layers, found {own.layers.tolist()} and {other.layers.tolist()}")
    keys = [(c.attributes.get("draws"), c.attributes.get("seed"), c.examples[["id", "group"]].to_numpy().tolist()) for c in (own, other)]
    if keys[0] != keys[1]:
        raise InvalidInputError(
            f"expected curves of the same examples and seed, so that differences are paired, found {len(own.examples)} and "
            f"{len(other.examples)} examples with seeds {keys[0][1]} and {keys[1][1]}; give both the same `examples` and `seed`"
        )
    mine, theirs = (c.examples.get("digest") for c in (own, other))
    if mine is not None and theirs is not None and (unlike := np.flatnonzero(mine.to_numpy() != theirs.to_numpy())).size:
        raise InvalidInputError(
            f"expected curves of the same examples, found {len(unlike)} of {len(mine)} that differ in image, caption, relation or "
            f"label, first at id {str(own.examples['id'].iloc[unlike[0]])!r}; extract the same examples again for the baseline"
        )
