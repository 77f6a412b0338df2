"""Memory of a model's weights, from the headers of its files. No torch."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

from stratascope.extract.model_files import ModelSource, quantization
from stratascope.extract.plan.published_models import PublishedModel

_ITEM = {"float32": 4, "bfloat16": 2, "float16": 2}
_BYTES = {"4bit": 0.5 + 4 / 64, "8bit": 1.0}
"""Bytes of a quantised weight: NF4 has a float32 scale for 64 weights, 8 bits one for each output."""
_KEPT = ("lm_head", "embed", "output")
"""Modules that bitsandbytes leaves as they are, by part of their name."""


def weight_bytes(source: ModelSource, dtype: str, quantize: str | None = None) -> int | None:
    """Bytes of the weights in memory; None if no header of the files is here.

    Weights that are quantised already stay as they are in the files.

    Parameters
    ----------
    source
        The model.
    dtype
        Precision of the weights that are not quantised.
    quantize
        4bit or 8bit on loading; None: as they are in the files.

    Examples
    --------
    >>> from stratascope.extract.model_files import resolve_model
    >>> demo = resolve_model("demo")
    >>> weight_bytes(demo, "float32") == 2 * weight_bytes(demo, "bfloat16")
    True
    """
    if isinstance(source, PublishedModel):
        return None if quantize else source.parameters * _ITEM[dtype]
    headers = list(_headers(source))
    if not headers:
        return _indexed(source, dtype)
    packed, total = quantization(source) is not None, 0.0
    for name, shape, stored in headers:
        count, linear = math.prod(shape), len(shape) == 2 and name.endswith("weight") and not any(part in name for part in _KEPT)
        if packed:
            total += stored
        elif quantize is not None and linear:
            total += count * _BYTES[quantize] + (4 * shape[0] if quantize == "8bit" else 0)
        else:
            total += count * _ITEM[dtype]
    return round(total)


def _headers(source: ModelSource) -> Iterator[tuple[str, list[int], int]]:
    """Name, shape and bytes of every tensor of the safetensors files."""
    for path in sorted(source.folder.glob("*.safetensors")):
        with path.open("rb") as file:
            header: dict[str, Any] = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        for name, tensor in header.items():
            if name != "__metadata__":
                begin, end = tensor["data_offsets"]
                yield name, tensor["shape"], end - begin


def _indexed(source: ModelSource, dtype: str) -> int | None:
    """Bytes from the index of weights that are not downloaded yet, without quantisation on loading."""
    path = source.folder / "model.safetensors.index.json"
    try:
        stored = int(json.loads(path.read_text(encoding="utf-8"))["metadata"]["total_size"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    kept = _ITEM.get(str(source.config.get("dtype") or source.config.get("torch_dtype")), 2)
    return stored if quantization(source) else stored * _ITEM[dtype] // kept
