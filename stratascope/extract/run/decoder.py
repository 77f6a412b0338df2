"""The text decoder of a model by structure: its blocks, final norm, unembedding, and what scales its logits."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from stratascope.errors import CaptureError
from stratascope.extract.run.weights import execution_device

BLOCK = "stratascope_block"
"""Attribute of every module within a decoder block: the block's number."""
SOFTMAX = (
    "attention",
    "full_attention",
    "sliding_attention",
    "chunked_attention",
    "global_attention",
    "local_attention",
    "reference_sliding_attention",
)
"""Kinds of layers, as configurations name them, whose attention weights are a softmax over tokens."""
_LISTS = ("layers", "h", "blocks")
_NORMS = ("norm", "final_layernorm", "final_layer_norm", "embedding_norm", "ln_f", "layer_norm", "final_norm", "norm_f")
_PROJECTIONS = ("o_proj", "out_proj", "dense", "wo", "c_proj", "attn_out", "proj")
_CAPS = ("final_logit_softcapping", "final_logit_softcap", "logits_soft_cap")


@dataclass
class DecoderView:
    """A text decoder whose blocks or final norm have other names than `layers` and `norm`."""

    module: Any
    layers: Any
    norm: Any

    @property
    def config(self) -> Any:
        """Configuration of the text model."""
        return self.module.config

    def modules(self) -> Any:
        """All modules of the decoder."""
        return self.module.modules()

    def register_forward_pre_hook(self, hook: Any, *, with_kwargs: bool = False) -> Any:
        """Register a hook of the decoder."""
        return self.module.register_forward_pre_hook(hook, with_kwargs=with_kwargs)


def find_decoder(model: Any) -> Any:
    """The module that owns the input embedding and a list of blocks: it has `.layers` and `.norm`, or a view of it does.

    Raises
    ------
    CaptureError
        If there is none.
    """
    for owner in _owners(model):
        blocks = next((found for name in _LISTS if isinstance(found := getattr(owner, name, None), nn.ModuleList) and len(found)), None)
        norm = next((found for name in _NORMS if isinstance(found := getattr(owner, name, None), nn.Module)), None)
        if blocks is None or norm is None or isinstance(norm, nn.ModuleList):
            continue
        return (
            owner if getattr(owner, "layers", None) is blocks and getattr(owner, "norm", None) is norm else DecoderView(owner, blocks, norm)
        )
    raise CaptureError(
        f"expected a model whose text decoder has .layers of self-attention blocks and a final .norm, found {type(model).__name__}, which "
        "does not fit; open an issue with the model's name"
    )


def _owners(model: Any) -> list[Any]:
    """Modules that hold the input embedding, then the decoder that the model names."""
    try:
        embedding = model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return []
    owners = [module for module in model.modules() if any(child is embedding for child in module.children())]
    try:
        named = model.get_decoder()
    except (AttributeError, NotImplementedError):
        named = None
    return [*owners, *([] if named is None else [named, getattr(named, "model", named)])]


def attention_blocks(config: Any) -> tuple[int, ...]:
    """Blocks with softmax self-attention, from a text configuration: not those of linear attention, convolution or cross-attention."""
    kinds = getattr(config, "layer_types", None) or ["attention"] * int(config.num_hidden_layers)
    crossed = set(getattr(config, "cross_attention_layers", None) or ())
    return tuple(k for k, kind in enumerate(kinds) if kind in SOFTMAX and k not in crossed)


def complete_outputs(model: Any) -> None:
    """Give the outputs of Llama 4's text model the field `image_outputs`, which its outer model of transformers 5.24 reads."""
    if model.config.model_type == "llama4":
        model.language_model.register_forward_hook(lambda module, args, output: setattr(output, "image_outputs", None))


def takes(model: Any, name: str) -> bool:
    """Whether the forward pass of a model has a parameter."""
    return name in inspect.signature(model.forward).parameters


def kept_logits(model: Any, keep: Any) -> dict[str, Any]:
    """Keyword for the positions whose logits are computed; empty for models that always compute all."""
    return {"logits_to_keep": keep} if takes(model, "logits_to_keep") else {}


def mark_blocks(decoder: Any) -> None:
    """Give every module in a block with softmax self-attention the block's number, so that the attention function knows where it runs."""
    for number in attention_blocks(decoder.config):
        for module in decoder.layers[number].modules():
            setattr(module, BLOCK, number)


def block_of(module: nn.Module) -> int | None:
    """Number of the decoder block around a module; None outside the text decoder."""
    return getattr(module, BLOCK, None)


def output_projection(module: nn.Module) -> Any:
    """The projection of an attention module from the heads' outputs to the residual stream.

    Raises
    ------
    CaptureError
        If it has none of a known name.
    """
    for name in _PROJECTIONS:
        if isinstance(found := getattr(module, name, None), nn.Module) and (hasattr(found, "weight") or hasattr(found, "qweight")):
            return found
    raise CaptureError(
        f"expected an output projection ({', '.join(_PROJECTIONS)}) in {type(module).__name__}, found none; leave value_norms, "
        "head_logits and value_logits out of `record`"
    )


def unembedding_of(model: Any) -> Any:
    """The linear layer from the final norm to the logits.

    Raises
    ------
    CaptureError
        If the model has none.
    """
    head = getattr(model, "lm_head", None)
    head = model.get_output_embeddings() if head is None else head
    head = getattr(getattr(model, "language_model", None), "lm_head", None) if head is None else head
    if head is None:
        raise CaptureError(f"expected a model with an unembedding, found {type(model).__name__}, which has none")
    return head


def excluded_tokens(model: Any) -> list[int]:
    """Tokens whose logits the model replaces by the least number, so that it never writes them: the image tokens of Chameleon."""
    return list(model.model.vocabulary_mapping.image_tokens) if model.config.model_type == "chameleon" else []


@dataclass(frozen=True)
class LogitScale:
    """What a model does to the outputs of its unembedding: logits = cap * tanh(factor * output / cap)."""

    factor: float = 1.0
    cap: float | None = None

    def __call__(self, output: torch.Tensor) -> torch.Tensor:
        """Logits of outputs of the unembedding."""
        scaled = output if self.factor == 1 else output * self.factor
        return scaled if self.cap is None else torch.tanh(scaled / self.cap) * self.cap


def logit_scale(model: Any, config: Any) -> LogitScale:
    """The scale of a model's logits: that of its configuration, if the model applies it.

    Cohere multiplies by `logit_scale`, Muse by `output_multiplier`, Granite and Inkling divide, Gemma 2 has a soft cap; models
    that embed such a decoder do this or leave it out. A pass over three tokens decides.

    Raises
    ------
    CaptureError
        If the model's logits are none of these functions of the output of its unembedding.
    """
    factor = 1.0
    for name in ("logit_scale", "output_multiplier"):
        factor *= float(found) if (found := getattr(config, name, None)) is not None else 1.0
    factor /= float(found) if (found := getattr(config, "logits_scaling", None)) is not None else 1.0
    if (width := getattr(config, "logits_mup_width_multiplier", None)) is not None:  # Inkling divides the input of its unembedding
        return LogitScale(factor / float(width))
    cap = next((float(found) for name in _CAPS if (found := getattr(config, name, None))), None)
    if factor == 1 and cap is None:
        return LogitScale()
    written: list[torch.Tensor] = []
    head = unembedding_of(model)
    hook = head.register_forward_hook(lambda module, args, output: written.append(output))
    try:
        with torch.inference_mode():
            ids = torch.tensor([[1, 2, 3]], device=execution_device(model.get_input_embeddings()))
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0, -1].float()
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError):  # a model that needs an image
        return LogitScale(factor, cap)
    finally:
        hook.remove()
    output = written[-1].reshape(-1, logits.shape[-1])[-1].float().to(logits.device)
    for scale in (LogitScale(factor, cap), LogitScale(), LogitScale(factor), LogitScale(cap=cap)):
        if float((scale(output) - logits).abs().max()) <= 0.02 * float(logits.abs().max()):
            return scale
    raise CaptureError(f"expected logits that are the unembedding's output, scaled or capped, found others in {type(model).__name__}")
