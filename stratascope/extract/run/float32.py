"""Full float32 precision on CUDA: no TF32, whose mantissa of 10 bits PyTorch allows in convolutions unless told otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch

FULL = "ieee"


@contextmanager
def full_float32() -> Iterator[None]:
    """While open, matrix products and convolutions of float32 on CUDA use all of its bits; the caller's settings are restored.

    PyTorch has two sets of settings and refuses to answer where they contradict each other, so both are set and both restored.

    Examples
    --------
    >>> import torch
    >>> with full_float32():
    ...     torch.backends.cudnn.conv.fp32_precision
    'ieee'
    """
    legacy = None
    with suppress(RuntimeError):  # the caller's two sets of settings contradict each other
        legacy = torch.get_float32_matmul_precision()
    operations = _operations()
    found = [each.fp32_precision for each in operations]
    allowed = found[1] == "tf32"
    try:
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        for each in operations:
            each.fp32_precision = FULL
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = allowed
        if legacy is not None:
            torch.set_float32_matmul_precision(legacy)
        for each, precision in zip(operations, found, strict=True):
            each.fp32_precision = precision


def _operations() -> tuple[Any, ...]:
    backends: Any = torch.backends
    return backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn, backends.mkldnn.matmul
