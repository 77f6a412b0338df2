"""Weights of modules as the model applies them: dequantised, and loaded from where accelerate keeps them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from stratascope.errors import CaptureError

PLAIN = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
"""Types of weights without quantisation."""


def execution_device(module: Any) -> torch.device:
    """Device on which a module computes: that of its weights, or where accelerate loads them to."""
    found = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
    if found is None:
        first: torch.Tensor = next(module.parameters())
        return first.device
    return torch.device("cuda", found) if isinstance(found, int) else torch.device(str(found))


@contextmanager
def loaded(module: Any) -> Iterator[None]:
    """While open, the weights of a module that accelerate keeps on the host or on disk are on the device where it computes."""
    if not hasattr(module, "_hf_hook"):
        yield
        return
    from accelerate.utils import align_module_device

    with align_module_device(module):
        yield


def is_plain(module: Any, inputs: int) -> bool:
    """Whether a linear module holds (output, input) floats rather than packed or scaled numbers."""
    weight = getattr(module, "weight", None)
    scaled = any(name.startswith(("weight_scale", "scales", "qweight", "weight_packed")) for name, _ in module.named_parameters())
    return weight is not None and weight.dtype in PLAIN and weight.ndim == 2 and weight.shape[1] == inputs and not scaled


@torch.no_grad()
def linear_weight(module: Any, inputs: int) -> torch.Tensor:
    """(output, input) weight that a linear module applies, dequantised whatever the method: its output for the unit vectors.

    A unit vector is exact in 8 bits with a scale of its own, so that methods which also quantise activations give their weights.

    Parameters
    ----------
    module
        A linear module, plain or quantised.
    inputs
        Its number of inputs.

    Raises
    ------
    CaptureError
        If it is no linear module of that many inputs.
    """
    with loaded(module):
        if is_plain(module, inputs):
            weight: torch.Tensor = module.weight
            return weight.clone() if hasattr(module, "_hf_hook") else weight
    device, bias = execution_device(module), getattr(module, "bias", None)
    dtype = next((each.dtype for each in (bias, *module.buffers(), *module.parameters()) if each is not None and each.dtype in PLAIN), None)
    try:
        units = torch.eye(inputs, device=device, dtype=dtype or torch.get_default_dtype())
        found: torch.Tensor = module(units).float()
        with loaded(module):
            return (found if bias is None else found - module.bias.float()).T.contiguous()
    except (RuntimeError, ValueError, AttributeError) as error:
        raise CaptureError(
            f"expected a quantised linear module of {inputs} inputs whose weights can be read, found {type(module).__name__} ({error}); "
            "leave value_norms, head_logits and value_logits out of `record`"
        ) from error


def unembedding_weight(head: Any, device: torch.device, rows: list[int] | None = None) -> torch.Tensor:
    """(vocabulary, hidden) weight of the unembedding, or some of its rows, on a device.

    Parameters
    ----------
    head
        The unembedding.
    device
        Where the logits are computed.
    rows
        Token ids; None: all.

    Raises
    ------
    CaptureError
        If it is quantised: logits of single tokens would not be the model's.
    """
    with loaded(head):
        weight = getattr(head, "weight", None)
        if weight is None or not is_plain(head, weight.shape[-1]):
            raise CaptureError(
                f"expected an unembedding that is not quantised, found {type(head).__name__} with weights of type "
                f"{None if weight is None else weight.dtype}; use a checkpoint whose lm_head is kept in float16 or bfloat16"
            )
        chosen: torch.Tensor = weight.detach() if rows is None else weight.detach()[rows]
        return chosen.to(device)


def plain_copy(module: Any) -> Any:
    """A copy of a module without what accelerate hung on it."""
    with loaded(module):
        hooks = {name: module.__dict__.pop(name) for name in ("_hf_hook", "_old_forward", "forward") if name in module.__dict__}
        try:
            return copy.deepcopy(module)
        finally:
            module.__dict__.update(hooks)
