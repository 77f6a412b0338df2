"""Recognise that a device ran out of memory, whichever library reports it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

from stratascope.errors import StratascopeError

Made = TypeVar("Made")

SIGNS = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_NOT_INITIALIZED",
    "ALLOCATION_FAILED",
    "CUSOLVER_STATUS_ALLOC_FAILED",
    "CUSPARSE_STATUS_ALLOC_FAILED",
    "cudaErrorMemoryAllocation",
)
"""Parts of the messages of a RuntimeError that mean it.

CUDA reports exhausted pinned host memory as "CUDA error: out of memory"; cuBLAS and cuDNN are not initialised where no memory is left for
their workspace; host memory is "can't allocate memory" or "not enough memory"."""


@dataclass(frozen=True)
class OutOfMemory:
    """Work that memory did not suffice for."""

    reason: str
    """First line of the error."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that a device or the host ran out of memory.

    Examples
    --------
    >>> is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    True
    >>> is_out_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered"))
    False
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if isinstance(error, StratascopeError):
        return False
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS)


def attempt(work: Callable[[], Made]) -> Made | OutOfMemory:
    """The result of `work`, or why memory did not suffice; on return the tensors of a failed attempt are freed."""
    try:
        return work()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return OutOfMemory(next(iter(str(error).splitlines()), type(error).__name__))
