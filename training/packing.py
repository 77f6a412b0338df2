"""Pack many questions about one image into one sequence; each attends to the image prefix and itself only.

Positions restart after the prefix, so that a packed question gives the same result as a single one. In early training the
attention of a few heads is guided: the last token of a noun is trained to attend to the cell of its object.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as functional
from transformers import AttentionInterface, PreTrainedTokenizerFast

from stratascope.datasets.scenes import Statement, Thing
from training.batched_vision import CELLS

NAME = "training_packed"
SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
TURN_END = "<|im_end|>\n<|im_start|>assistant\n"


@dataclass
class Guidance:
    """Targets of guided heads: set before a forward pass, read after it."""

    block: int = 1
    heads: int = 2
    active: bool = False
    where: torch.Tensor | None = None
    """(4, names): batch row, question, token within the question, cell of the object."""
    loss: torch.Tensor | None = None
    accuracy: float = 0.0


class Packing:
    """Token ids, positions and the attention function for `questions` segments of at most `segment` tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, questions: int = 8, segment: int = 22) -> None:
        self.tokenizer, self.questions, self.segment = tokenizer, questions, segment
        start = self.encode(SYSTEM + "<|im_start|>user\n<|vision_start|>")
        self.image_start = len(start)
        self.prefix_ids = [*start, *([tokenizer.convert_tokens_to_ids("<|image_pad|>")] * CELLS**2), *self.encode("<|vision_end|>")]
        self.prefix = len(self.prefix_ids)
        positions = [(i, i, i) for i in range(self.image_start)]
        positions += [(self.image_start, self.image_start + i // CELLS, self.image_start + i % CELLS) for i in range(CELLS**2)]
        after = self.image_start + CELLS
        positions += [(after, after, after)]
        for _ in range(questions):
            positions += [(after + 1 + i,) * 3 for i in range(segment)]
        self.positions = torch.tensor(positions).T[:, None]
        self.guidance = Guidance()
        self._ids: dict[str, list[int]] = {}
        AttentionInterface.register(NAME, self._attention)

    def encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def question(self, text: str) -> list[int]:
        if text not in self._ids:
            self._ids[text] = self.encode(text + TURN_END)
            assert len(self._ids[text]) <= self.segment, f"{len(self._ids[text])} tokens: {text}"
        return self._ids[text]

    def _attention(self, module, query, key, value, attention_mask, scaling=None, dropout=0.0, **_):  # type: ignore[no-untyped-def]
        batch, heads, length, width = query.shape
        key = key.repeat_interleave(module.num_key_value_groups, 1)
        value = value.repeat_interleave(module.num_key_value_groups, 1)
        count, segment, prefix = (length - self.prefix) // self.segment, self.segment, self.prefix

        def split(x: torch.Tensor) -> torch.Tensor:
            return x[:, :, prefix:].reshape(batch, heads, count, segment, width)

        def with_prefix(x: torch.Tensor) -> torch.Tensor:
            shared = x[:, :, None, :prefix].expand(batch, heads, count, prefix, width)
            return torch.cat([shared, split(x)], 3).reshape(batch * heads, count, prefix + segment, width)

        mask = torch.cat([torch.ones(segment, prefix, dtype=torch.bool), torch.ones(segment, segment, dtype=torch.bool).tril()], 1)
        head_out = functional.scaled_dot_product_attention(
            query[:, :, :prefix], key[:, :, :prefix], value[:, :, :prefix], is_causal=True, scale=scaling
        )
        tail_out = functional.scaled_dot_product_attention(
            split(query).reshape(batch * heads, count, segment, width), with_prefix(key), with_prefix(value), attn_mask=mask, scale=scaling
        )
        if self.guidance.active and module.layer_idx == self.guidance.block:
            self._guide(split(query), key[:, :, :prefix], split(key), scaling)
        out = torch.cat([head_out, tail_out.reshape(batch, heads, count * segment, width)], 2)
        return out.transpose(1, 2), None

    def _guide(self, query: torch.Tensor, prefix_key: torch.Tensor, own_key: torch.Tensor, scaling: float) -> None:
        guidance = self.guidance
        assert guidance.where is not None
        row, question, token, cell = guidance.where
        chosen = query[:, : guidance.heads][row, :, question, token]
        to_prefix = torch.einsum("nhd,nhcd->nhc", chosen, prefix_key[:, : guidance.heads][row]) * scaling
        to_own = torch.einsum("nhd,nhcd->nhc", chosen, own_key[:, : guidance.heads][row, :, question]) * scaling
        to_own = to_own.masked_fill((torch.arange(self.segment) > token[:, None])[:, None], -1e9)
        scores = torch.cat([to_prefix, to_own], -1)
        target = (cell + self.image_start)[:, None].expand(-1, guidance.heads)
        guidance.loss = functional.cross_entropy(scores.flatten(0, 1), target.flatten())
        guidance.accuracy = (scores.argmax(-1) == target).float().mean().item()


def verdict_question(statement: Statement, things: list[Thing]) -> str:
    """The default prompt of `stratascope.datasets.prompts` for a true/false answer."""
    return f"True or false: {statement.caption(things)} Answer True or False."


def relation_question(subject: Thing, reference: Thing) -> str:
    """The prompt without the relation."""
    return f"Where is the {subject.kind} in relation to the {reference.kind}?"
