"""Model types without a rule of their own: image tokens as their processor makes them, sizes from their configuration class. No torch.

`extract.run` fills these classes, as it may import transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from stratascope.datasets.captions import Interval
from stratascope.errors import InvalidInputError
from stratascope.extract.families.image_tokens import NO_GRID, ImageRule, ImageTokens
from stratascope.extract.families.model_families import FAMILIES, Family, ModelShape
from stratascope.extract.model_files import ModelSource

RECORDS = (
    "residual",
    "attention_rows",
    "attention_maps",
    "form_logits",
    "top_tokens",
    "knockout",
    "vision_residual",
    "vision_output",
    "vision_maps",
    "vision_change",
)
"""Arrays that can be saved for such types; `vision_residual`, `vision_output` and `vision_change` of those with a grid, `vision_maps` of
`PATCHED`."""

RASTER = frozenset({
    "cohere_compass", "cosmos3_edge", "cosmos3_omni", "ernie4_5_vl_moe", "exaone4_5", "glm46v", "glm4v", "glm4v_moe", "glm_ocr", "glmga",
    "hyperclovax_vision_v2", "minimax_m3_vl", "muse_glimmer", "muse_spark", "paddleocr_vl", "qwen3_5", "qwen3_5_moe", "qwen3_vl_moe",
    "video_llama_3",
})  # fmt: skip
"""Types whose image tokens are the cells of one grid over the whole image, in raster order; `image_grid_thw` of the processor has its size.

`tests/extract/general` changes single cells of an image and looks for the tokens that change. The other types have no grid.
"""

MERGED_TOWERS = RASTER - {"muse_glimmer", "muse_spark", "paddleocr_vl", "video_llama_3"}
"""Types whose vision tower holds one list of patches, those of a cell together, so that its residual stream can be recorded."""

PATCHED = frozenset({
    "cosmos3_edge", "exaone4_5", "glm46v", "glm4v", "glm4v_moe", "glm_ocr", "glmga", "mistral3", "qwen3_5", "qwen3_5_moe",
})  # fmt: skip
"""Types whose image tokens are squares of patches of one view over the whole image, in raster order, and enter the decoder once: attention
maps of their vision tower can be recorded."""

REFUSED = {
    "blip": "its decoder attends to the image by cross-attention in every block",
    "diffusion_gemma": "it denoises blocks of tokens: there is no next token",
    "evolla": "its inputs are proteins",
    "florence2": "it is an encoder-decoder model: the prompt is in the encoder",
    "gemma3n": "it has several residual streams",
    "git": "it has no registered attention function",
    "glm5_next": "it has several residual streams",
    "hy_v4_vl": "it has several residual streams",
    "inkling2": "each block reads a weighted sum of the states before it: there is no single residual stream",
    "inkling2_loop": "each block reads a weighted sum of the states before it: there is no single residual stream",
    "idefics": "its images enter by cross-attention between the blocks",
    "instructblipvideo": "its inputs are videos",
    "mistral4": "it takes no images",
    "pi0": "it predicts actions and has no unembedding",
    "pix2struct": "it is an encoder-decoder model: the prompt is drawn into the image",
    "pp_formulanet": "it is an encoder-decoder model that reads formulas",
    "qwen4_exp": "it has several residual streams",
    "t5gemma2": "it is an encoder-decoder model: the prompt is in the encoder",
    "udop": "it is an encoder-decoder model",
    "vision-encoder-decoder": "it is an encoder-decoder model: it has no prompt",
}
"""Types that cannot be captured -> why."""


BIDIRECTIONAL = frozenset({"gemma4_unified", "molmo2", "shieldgemma2"})
"""Types whose image tokens attend to later image tokens unless their configuration says otherwise, so that maps are not causal."""


WHOLE_RERUNS = frozenset({"blip-2", "llama4", "muse_glimmer", "muse_spark"})
"""Types whose last tokens cannot run alone, as knockouts do: not all of their blocks have rotary embeddings of single tokens."""


ONE_IMAGE = frozenset({"hunyuan_vl", "mllama"})
"""Types without precomputed image features, or that number the images of a batch: a forward pass takes one image."""


class ImageProbe(Protocol):
    """Asks a processor for the tokens of an image with a given size."""

    def __call__(self, width: int, height: int) -> ImageTokens: ...

    def prepare(self, image: Any) -> Any:
        """Inputs of the model that belong to an image."""

    def check_together(self, images: int) -> None:
        """Refuse a processor that writes one of several images in another way than a single one, with InvalidInputError."""


@dataclass(frozen=True)
class ProcessorRule(ImageRule):
    """Image tokens as the model's own processor makes them, asked once for every size of image."""

    written: str
    """Placeholder of the chat template."""
    processor: str
    """Class of the processor."""
    probe: ImageProbe = field(repr=False, compare=False)

    @property
    def placeholder(self) -> str:
        return self.written

    def tokens(self, width: int, height: int) -> ImageTokens:
        """Tokens of an image with this size; InvalidInputError if the processor does not accept it."""
        return self.probe(width, height)

    def settings(self) -> dict[str, Any]:
        """Settings of the rule, for the provenance."""
        return {"token": self.token, "placeholder": self.written, "processor": self.processor}


@dataclass(frozen=True)
class GeneralModel:
    """What planning needs to know of a model without a family of its own."""

    shape: ModelShape
    rule: ProcessorRule
    capped: bool
    """Whether the logits are soft-capped."""


GeneralLoader = Callable[[ModelSource, str | None], GeneralModel]
"""(model, system text) -> the model's sizes and rule; reads its processor."""


def is_general(source: ModelSource) -> bool:
    """Whether the model's type has no family of its own.

    Raises
    ------
    InvalidInputError
        If the type cannot be captured, with the reason.
    """
    found = str(source.config.get("model_type"))
    if found in REFUSED:
        raise InvalidInputError(
            f"{source.name}: expected a model with one residual stream that reads image and prompt by self-attention, found model_type "
            f"{found!r}: {REFUSED[found]}; use another model"
        )
    return found not in FAMILIES


def family_of(source: ModelSource) -> Family:
    """The model's family; for a type without one, what planning and running need of it."""
    kind, text = str(source.config.get("model_type")), source.config.get("text_config") or {}
    together = text.get("use_bidirectional_attention", "vision" if kind in BIDIRECTIONAL else None)  # a field of Gemma 4
    return FAMILIES.get(kind) or Family(_no_rule, -1, tower="merged" if kind in MERGED_TOWERS else None, causal=not together)


def reruns_whole(source: ModelSource, shape: ModelShape) -> bool:
    """Whether interventions rerun whole prompts, as the last tokens cannot run alone."""
    mixed = shape.attention is not None and len(shape.attention) < shape.layers
    return mixed or source.config.get("model_type") in WHOLE_RERUNS


def _no_rule(source: ModelSource, family: Family) -> ImageRule:
    raise InvalidInputError(f"{source.name}: expected a family with a rule for image tokens, found {source.config.get('model_type')!r}")


def tokens_in_grid(shape: tuple[int, int] | None, runs: tuple[int, ...]) -> tuple[Interval, tuple[int, int]]:
    """Cells and grid of an image with these runs of tokens: no grid unless one run fills it.

    Parameters
    ----------
    shape
        (rows, columns) of cells; None if unknown.
    runs
        Number of image tokens in each run.

    Examples
    --------
    >>> tokens_in_grid((3, 4), (12,)), tokens_in_grid((3, 4), (4, 4, 4))
    (((0, 12), (3, 4)), ((0, 12), (0, 0)))
    """
    total = sum(runs)
    fits = shape is not None and len(runs) == 1 and shape[0] * shape[1] == total
    return (0, total), shape if shape is not None and fits else NO_GRID


def check_records(source: ModelSource, shape: ModelShape, record: Sequence[str], max_pixels: int | None) -> None:
    """Refuse settings that need a family's own rule.

    Raises
    ------
    InvalidInputError
        Naming them.
    """
    kind = source.config.get("model_type")
    beyond = [name for name in record if name not in RECORDS]
    if beyond:
        raise InvalidInputError(
            f"expected `record` among {', '.join(RECORDS)} for a model of the type {kind}, which has no family of its "
            f"own, found {', '.join(beyond)}; leave {'it' if len(beyond) == 1 else 'them'} out"
        )
    softmax = len(shape.attention or ())
    mixed = [name for name in record if name == "knockout" or (not softmax and name.startswith("attention"))]
    if mixed and softmax < shape.layers:
        raise InvalidInputError(
            f"expected `record` without {' and '.join(mixed)} for a model of the type {kind}, {shape.layers - softmax} of whose "
            f"{shape.layers} blocks have no softmax attention, found it; leave it out"
        )
    if kind in WHOLE_RERUNS and "knockout" in record:
        raise InvalidInputError(
            f"expected `record` without knockout for a model of the type {kind}, whose last tokens cannot run alone, as not all of its "
            "blocks have rotary embeddings, found it; leave it out"
        )
    if max_pixels is not None:
        raise InvalidInputError(
            f"expected no `max_pixels` for a model of the type {kind}, whose processor decides the size of images, found {max_pixels}; set "
            "the limit in its preprocessor_config.json"
        )


def check_cells(source: ModelSource, requests: Mapping[str, Sequence[str]]) -> None:
    """Refuse settings that need the place of each image token, for a model without a grid.

    Parameters
    ----------
    source
        The model.
    requests
        Parameter -> its values that need a grid; empty if it has none.

    Raises
    ------
    InvalidInputError
        Naming the parameters and values.
    """
    for parameter, found in requests.items():
        if found:
            raise InvalidInputError(
                f"expected no places in the image for a model of the type {source.config.get('model_type')}, whose image tokens have no "
                f"known place, found `{parameter}` with {', '.join(found)}; leave {'it' if len(found) == 1 else 'them'} out"
            )
