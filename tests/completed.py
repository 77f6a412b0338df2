"""Results of which a test names what it is about: the rest of what their kind declares is there, and empty."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin

import numpy as np
import pandas as pd

from stratascope.results.file import ResultFile
from stratascope.results.registry import result_kinds
from stratascope.store.format.json_schema import Along

EMPTY = {"text": "", "int": 0, "float": 0.0, "share": 0.0, "bool": False}


def completed(kind: str, tables: Mapping[str, pd.DataFrame], arrays: Mapping[str, Any], attributes: Mapping[str, Any]) -> ResultFile:
    """A result of a kind: what is given, and of all else that the kind declares zeros and empty texts."""
    declared = result_kinds()[kind].schema()
    sizes: dict[str, int] = {}
    for dims, values in arrays.values():
        sizes |= dict(zip(dims, np.shape(values), strict=True))
    for name, wanted in declared.attributes.items():
        if isinstance(wanted, Along) and name in attributes:
            sizes[wanted.dim] = len(attributes[name])
    sizes |= {wanted.dim: len(tables[name]) for name, wanted in declared.tables.items() if wanted.dim and name in tables}
    whole = {}
    for name, wanted in declared.tables.items():
        given = tables.get(name)
        kept = {column: values.split() for column, values in wanted.values.items() if given is None and column in wanted.keys}
        rows = len(given) if given is not None else max(map(len, kept.values()), default=sizes.get(wanted.dim, 1))
        empty = pd.DataFrame({column: kept.get(column, [EMPTY[of]] * rows) for column, of in wanted.kinds.items()})
        whole[name] = empty if given is None else pd.concat([given, empty.drop(columns=[c for c in empty if c in given])], axis=1)
    return ResultFile(
        kind,
        {**tables, **whole},
        {
            **{
                name.removesuffix("?").replace("*", "accuracy"): (
                    axes.dims,
                    np.zeros([sizes.get(dim, 1) for dim in axes.dims], type(EMPTY[axes.kind])),
                )
                for name, axes in declared.arrays.items()
            },
            **arrays,
        },
        {
            **{name: _empty(of, sizes) for name, of in declared.attributes.items() if not name.endswith("?")},
            **_filled(attributes, declared, sizes),
        },
    )


def _filled(attributes: Mapping[str, Any], declared: Any, sizes: dict[str, int]) -> dict[str, Any]:
    """The attributes given, with what their records lack."""
    records = {name: of for name, of in declared.attributes.items() if isinstance(of, Mapping)}
    return {name: {**_empty(records[name], sizes), **value} if name in records else value for name, value in attributes.items()}


def _empty(of: Any, sizes: dict[str, int]) -> Any:
    if isinstance(of, Mapping):
        return {name: _empty(inner, sizes) for name, inner in of.items() if not name.endswith("?")}
    if isinstance(of, Along):
        return [_empty(of.of, sizes)] * sizes.get(of.dim, 1)
    origin, inner = get_origin(of), get_args(of)
    if origin is Literal:
        return inner[0]
    if origin in (list, dict):
        return origin()
    if origin is tuple:
        return [_empty(one, sizes) for one in inner]
    return _empty(inner[0], sizes) if inner else of()
