"""The families of models that can be extracted: their sizes, and the rule by which each cuts images. No torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from stratascope.errors import InvalidInputError
from stratascope.extract.families.patch_grid import CroppedSquare, ImageRule, PatchGrid, StretchedSquare
from stratascope.extract.families.tiling import AnyResolution, CanvasTiles, SplitTiles
from stratascope.extract.plan.model_files import ModelSource


@dataclass(frozen=True)
class ModelShape:
    """Sizes of the decoder and the vision tower."""

    layers: int
    hidden: int
    heads: int
    head_dim: int
    context: int
    """Longest sequence in tokens."""
    vision_layers: int
    """Blocks of the vision tower; 0 where the family's tower cannot be recorded."""
    vision_hidden: int
    dtype: str
    """In which the weights are stored."""
    vision_whole: tuple[int, ...] = ()
    """Blocks of the vision tower that see the whole image, counted from 0; the others see windows of it."""


@dataclass(frozen=True)
class Family:
    """What is known of a family beforehand."""

    rule: Callable[[ModelSource, Family], ImageRule]
    """Reads how images are cut from the model's files."""
    image_id: int
    """The image token, where config.json leaves it out."""
    text: str = ""
    """Kind of the text model, where config.json leaves it out."""
    tower: bool = False
    """Whether the vision tower can be recorded."""
    causal: bool = True
    """Whether no token sees what follows it; where it is false, flow through maps has no meaning, and is refused."""
    prefix: bool = False
    """Whether the prompt is a prefix without turns, instead of a chat."""


_SIZES = ("num_hidden_layers", "hidden_size", "num_attention_heads", "head_dim", "max_position_embeddings")
TEXT_DEFAULTS: dict[str, tuple[int, int, int, int | None, int]] = {
    "llama": (32, 4096, 32, None, 2048),
    "mistral": (32, 4096, 32, None, 131072),
    "gemma": (28, 3072, 16, 256, 8192),
    "gemma2": (26, 2304, 8, 256, 8192),
    "gemma3_text": (26, 2304, 8, 256, 131072),
    "qwen2": (32, 4096, 32, None, 32768),
    "qwen3": (32, 4096, 32, 128, 32768),
}
"""Kind of text model -> blocks, width, heads, head width and context that its config.json leaves out where they are these."""


def _qwen(source: ModelSource, family: Family) -> PatchGrid:
    settings = source.processor_config
    size = settings.get("size") or {}
    return PatchGrid(
        token=_image_token(source, family),
        patch=int(settings["patch_size"]),
        merge=int(settings["merge_size"]),
        min_pixels=int(settings.get("min_pixels") or size["shortest_edge"]),
        max_pixels=int(settings.get("max_pixels") or size["longest_edge"]),
    )


def _llava(source: ModelSource, family: Family) -> CroppedSquare:
    settings = source.processor_config
    side, patch = _llava_tower(source)
    size = settings["size"]
    if "shortest_edge" not in size or not settings.get("do_center_crop", True):
        _unfit(source, "an image processor that resizes the shorter side and crops the middle", f"size {size}")
    crop = settings.get("crop_size") or {}
    crop = crop if isinstance(crop, int) else crop.get("height", side)
    if crop != side:
        _unfit(source, f"images cropped to the vision tower's {side} pixels", f"crop_size {settings.get('crop_size')}")
    return CroppedSquare(_image_token(source, family), int(size["shortest_edge"]), side, patch, bool(settings.get("do_pad", False)))


def _llava_next(source: ModelSource, family: Family) -> AnyResolution:
    side, patch = _llava_tower(source)
    size = source.processor_config["size"]
    if size.get("shortest_edge", size.get("height")) != side:
        _unfit(source, f"tiles of the vision tower's {side} pixels", f"size {size}")
    pinpoints = source.processor_config.get("image_grid_pinpoints") or source.config["image_grid_pinpoints"]
    return AnyResolution(_image_token(source, family), side, patch, tuple((int(h), int(w)) for h, w in pinpoints))


def _llava_tower(source: ModelSource) -> tuple[int, int]:
    """Side and patch of the vision tower in pixels, where its tokens are a raster and nothing else."""
    vision = source.config.get("vision_config") or {"model_type": "clip_vision_model", "image_size": 336, "patch_size": 14}
    kind = vision.get("model_type", "clip_vision_model")
    if kind not in ("clip_vision_model", "siglip_vision_model"):
        _unfit(source, "a CLIP or SigLIP vision tower, whose tokens are one raster of patches", f"vision_config.model_type {kind!r}")
    chosen = source.processor_settings.get("vision_feature_select_strategy") or source.config.get("vision_feature_select_strategy")
    if chosen == "full" and kind == "clip_vision_model":
        _unfit(source, "image tokens that are all cells of the image", "vision_feature_select_strategy 'full', which keeps the class token")
    return int(vision.get("image_size", 224)), int(vision.get("patch_size", 32 if kind == "clip_vision_model" else 16))


def _idefics3(source: ModelSource, family: Family) -> SplitTiles:
    settings = source.processor_config
    side, cells = int(settings["max_image_size"]["longest_edge"]), _square_side(source, "image_seq_len", 169)
    longest = int(settings["size"]["longest_edge"]) if settings.get("do_resize", True) else None
    return SplitTiles(_image_token(source, family), side, cells, longest, bool(settings.get("do_image_splitting", True)))


def _gemma3(source: ModelSource, family: Family) -> StretchedSquare:
    settings = source.processor_config
    if settings.get("do_pan_and_scan"):
        _unfit(source, "one view of the whole image", "do_pan_and_scan true; set it to false in the processor's settings")
    begin, end = (
        source.token_text(int(source.config.get(key, usual))) for key, usual in (("boi_token_index", 255999), ("eoi_token_index", 256000))
    )
    cells = _square_side(source, "image_seq_length", int(source.config.get("mm_tokens_per_image", 256)))
    token = _image_token(source, family)
    return StretchedSquare(token, _side(source, settings["size"]), cells, f"\n\n{begin}", f"{end}\n\n", begin)


def _internvl(source: ModelSource, family: Family) -> CanvasTiles:
    settings = source.processor_config
    before, after = source.named_token("start_image_token", "<img>"), source.named_token("end_image_token", "</img>")
    return CanvasTiles(
        token=_image_token(source, family),
        side=_side(source, settings["size"]),
        cells=_square_side(source, "image_seq_length", 256),
        fewest=int(settings.get("min_patches") or 1),
        most=int(settings.get("max_patches") or 12),
        before=str(before),
        after=str(after),
    )


def _paligemma(source: ModelSource, family: Family) -> StretchedSquare:
    settings = source.processor_config
    side, patch = _side(source, settings["size"]), int((source.config.get("vision_config") or {}).get("patch_size", 14))
    cells = _square_root(source, "image_seq_length", int(settings.get("image_seq_length") or (side // patch) ** 2))
    return StretchedSquare(_image_token(source, family), side, cells)


FAMILIES: dict[str, Family] = {
    "qwen2_5_vl": Family(_qwen, 151655, tower=True),
    "qwen2_vl": Family(_qwen, 151655, tower=True),
    "qwen3_vl": Family(_qwen, 151655, tower=True),
    "llava": Family(_llava, 32000, "llama"),
    "llava_next": Family(_llava_next, 32000, "llama"),
    "idefics3": Family(_idefics3, 128257, "llama"),
    "smolvlm": Family(_idefics3, 128257, "llama"),
    "gemma3": Family(_gemma3, 262144, "gemma3_text", causal=False),
    "internvl": Family(_internvl, 151667, "qwen2"),
    "paligemma": Family(_paligemma, 256000, "gemma", causal=False, prefix=True),
}
"""`model_type` in config.json -> what is known of the family."""


def check_family(source: ModelSource) -> Family:
    """The model's family.

    Raises
    ------
    InvalidInputError
        If it is none of `FAMILIES`; they are listed.
    """
    found = str(source.config.get("model_type"))
    if found not in FAMILIES:
        raise InvalidInputError(
            f"{source.name}: expected a model of one of the families {', '.join(FAMILIES)}, found model_type {found!r}; "
            "take a model of one of them, in the form that transformers itself loads (of InternVL the ones named -hf)"
        )
    return FAMILIES[found]


def model_shape(source: ModelSource) -> ModelShape:
    """Read the model's sizes from config.json, whether they stand at its top (older files) or in `text_config`.

    Raises
    ------
    InvalidInputError
        If a size is missing or no number.
    """
    family = check_family(source)
    vision = source.config.get("vision_config") or {}
    inner: Mapping[str, Any] = source.config.get("text_config") or {}
    usual = TEXT_DEFAULTS.get(str(inner.get("model_type") or family.text))
    text = {**(dict(zip(_SIZES, usual, strict=True)) if usual else {}), **(source.config if family.tower else {}), **inner}
    try:
        return ModelShape(
            layers=int(text["num_hidden_layers"]),
            hidden=int(text["hidden_size"]),
            heads=int(text["num_attention_heads"]),
            head_dim=int(text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"]),
            context=int(text["max_position_embeddings"]),
            vision_layers=int(vision["depth"]) if family.tower else 0,
            vision_hidden=int(vision["embed_dim"] if "embed_dim" in vision else vision["hidden_size"]) if family.tower else 0,
            dtype=str(source.config.get("dtype") or source.config.get("torch_dtype") or text.get("dtype") or "float32"),
            vision_whole=_whole_image_blocks(source, vision) if family.tower else (),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidInputError(
            f"{source.name}: expected the sizes of decoder and vision tower in config.json, missing or wrong: {error}"
        ) from error


def _whole_image_blocks(source: ModelSource, vision: Mapping[str, Any]) -> tuple[int, ...]:
    """Of Qwen2.5-VL those that its settings name; Qwen2-VL and Qwen3-VL know no windows."""
    if source.config["model_type"] != "qwen2_5_vl":
        return tuple(range(int(vision["depth"])))
    return tuple(int(k) for k in vision.get("fullatt_block_indexes", (7, 15, 23, 31)))


def logits_capped(source: ModelSource) -> bool:
    """Whether the model squeezes its logits (Gemma 2 does unless its config.json says otherwise)."""
    inner: Mapping[str, Any] = source.config.get("text_config") or {}
    return bool(inner.get("final_logit_softcapping", inner.get("model_type") == "gemma2"))


def image_rule(source: ModelSource, max_pixels: int | None = None) -> ImageRule:
    """Read how images are cut from the processor's settings; `max_pixels` replaces the processor's own limit, where it has one.

    Raises
    ------
    InvalidInputError
        If the settings are missing, or do not make image tokens that are one raster over the image.
    """
    family = check_family(source)
    try:
        rule = family.rule(source, family)
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, InvalidInputError):
            raise
        raise InvalidInputError(
            f"{source.name}: expected how images are cut in the settings of model and processor, missing or wrong: {error}"
        ) from error
    if max_pixels is None:
        return rule
    if not isinstance(rule, PatchGrid):
        raise InvalidInputError(
            f"expected no --max-pixels for a model of the family {source.config['model_type']}, whose images always make tokens "
            f"of the same size, found {max_pixels}; leave it out"
        )
    if max_pixels < rule.min_pixels:
        raise InvalidInputError(
            f"expected at least {rule.min_pixels} pixels (the processor's lower limit), found --max-pixels {max_pixels}"
        )
    return PatchGrid(rule.token, rule.patch, rule.merge, rule.min_pixels, max_pixels)


def _image_token(source: ModelSource, family: Family) -> str:
    config = source.config
    return source.token_text(int(config.get("image_token_id") or config.get("image_token_index") or family.image_id))


def _side(source: ModelSource, size: Mapping[str, int]) -> int:
    if size["height"] != size["width"]:
        _unfit(source, "an image processor that makes squares", f"size {dict(size)}")
    return int(size["height"])


def _square_side(source: ModelSource, name: str, usual: int) -> int:
    return _square_root(source, name, int(source.processor_settings.get(name, usual)))


def _square_root(source: ModelSource, name: str, tokens: int) -> int:
    side = math.isqrt(tokens)
    if side * side != tokens:
        _unfit(source, "a square number of tokens for an image", f"{name} {tokens}")
    return side


def _unfit(source: ModelSource, expected: str, found: str) -> None:
    raise InvalidInputError(f"{source.name}: expected {expected}, found {found}: where its image tokens lie cannot be told")
