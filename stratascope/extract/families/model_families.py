"""Supported model families: sizes, and rules for image tokens. No torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from stratascope.errors import InvalidInputError
from stratascope.extract.families.config_defaults import image_processor_config, model_config, text_config, vision_config
from stratascope.extract.families.image_tokens import (
    AnyResolution,
    CanvasTiles,
    CroppedSquare,
    ImageRule,
    PatchGrid,
    SplitTiles,
    StretchedSquare,
)
from stratascope.extract.model_files import ModelSource


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
    """Blocks of the vision tower; 0 if its residual stream cannot be captured."""
    vision_hidden: int
    dtype: str
    """Precision of the stored weights."""
    vision_whole: tuple[int, ...] = ()
    """Blocks of the vision tower with full attention, counted from 0; the others use windows."""
    attention: tuple[int, ...] | None = None
    """Decoder blocks with softmax attention; None: all."""
    vision_depth: int = 0
    """Blocks of a vision tower whose attention can be captured, but not its residual stream."""


Tower = Literal["merged", "first", "last"]
"""How a vision tower holds the patches of the whole image: `merged`, one list of patches, those of a cell together (Qwen); otherwise one
list for each view, of which the `first` or the `last` is the whole image, in raster order."""


@dataclass(frozen=True)
class Family:
    """Constants of a family."""

    rule: Callable[[ModelSource, Family], ImageRule]
    """Reads the rule for image tokens from the model's files."""
    image_id: int
    """Id of the image token, if config.json omits it."""
    text: str = ""
    """`model_type` of the text model, if config.json omits it."""
    tower: Tower | None = None
    """How the vision tower holds the patches of the whole image; None if it cannot be captured."""
    causal: bool = True
    """Whether attention is causal; otherwise attention flow is undefined and refused."""
    prefix: bool = False
    """Whether the prompt is a prefix without chat turns."""


def _qwen(source: ModelSource, family: Family) -> PatchGrid:
    settings = _image_processor(source)
    size = settings["size"]
    return PatchGrid(
        token=_image_token(source, family),
        patch=int(settings["patch_size"]),
        merge=int(settings["merge_size"]),
        min_pixels=int(settings.get("min_pixels") or size["shortest_edge"]),
        max_pixels=int(settings.get("max_pixels") or size["longest_edge"]),
    )


def _llava(source: ModelSource, family: Family) -> CroppedSquare:
    settings = _image_processor(source)
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
    settings = _image_processor(source)
    size = settings["size"]
    if size.get("shortest_edge", size.get("height")) != side:
        _unfit(source, f"tiles of the vision tower's {side} pixels", f"size {size}")
    given = source.processor_config.get("image_grid_pinpoints") or source.config.get("image_grid_pinpoints")
    pinpoints = given or settings["image_grid_pinpoints"]
    return AnyResolution(_image_token(source, family), side, patch, tuple((int(h), int(w)) for h, w in pinpoints))


def _llava_tower(source: ModelSource) -> tuple[int, int]:
    """Side and patch of the vision tower in pixels."""
    vision = vision_config(source.config, source.config["model_type"])
    kind = vision["model_type"]
    if kind not in ("clip_vision_model", "siglip_vision_model"):
        _unfit(source, "a CLIP or SigLIP vision tower, whose tokens are one grid of patches", f"vision_config.model_type {kind!r}")
    chosen = source.processor_settings.get("vision_feature_select_strategy") or source.config.get("vision_feature_select_strategy")
    if chosen == "full" and kind == "clip_vision_model":
        _unfit(source, "image tokens that are all cells of the image", "vision_feature_select_strategy 'full', which keeps the class token")
    return int(vision["image_size"]), int(vision["patch_size"])


def _idefics3(source: ModelSource, family: Family) -> SplitTiles:
    settings = _image_processor(source)
    side, cells = int(settings["max_image_size"]["longest_edge"]), _square_side(source, "image_seq_len", 169)
    longest = int(settings["size"]["longest_edge"]) if settings.get("do_resize", True) else None
    return SplitTiles(_image_token(source, family), side, cells, longest, bool(settings.get("do_image_splitting", True)))


def _gemma3(source: ModelSource, family: Family) -> StretchedSquare:
    settings, config = _image_processor(source), model_config(source.config, "gemma3")
    if settings.get("do_pan_and_scan"):
        _unfit(source, "one view of the whole image", "do_pan_and_scan true; set it to false in the processor's settings")
    begin, end = (source.token_text(int(config[key])) for key in ("boi_token_index", "eoi_token_index"))
    cells = _square_side(source, "image_seq_length", int(config["mm_tokens_per_image"]))
    token = _image_token(source, family)
    return StretchedSquare(token, _copy_stream(source, settings["size"]), cells, f"\n\n{begin}", f"{end}\n\n", begin)


def _internvl(source: ModelSource, family: Family) -> CanvasTiles:
    settings = _image_processor(source)
    before, after = source.named_token("start_image_token", "<img>"), source.named_token("end_image_token", "</img>")
    return CanvasTiles(
        token=_image_token(source, family),
        side=_copy_stream(source, settings["size"]),
        cells=_square_side(source, "image_seq_length", 256),
        fewest=int(settings["min_patches"]),
        most=int(settings["max_patches"]),
        before=str(before),
        after=str(after),
    )


def _paligemma(source: ModelSource, family: Family) -> StretchedSquare:
    settings = _image_processor(source)
    side, patch = _copy_stream(source, settings["size"]), int(vision_config(source.config, "paligemma")["patch_size"])
    cells = _square_root(source, "image_seq_length", int(settings.get("image_seq_length") or (side // patch) ** 2))
    return StretchedSquare(_image_token(source, family), side, cells)


FAMILIES: dict[str, Family] = {
    "qwen2_5_vl": Family(_qwen, 151655, tower="merged"),
    "qwen2_vl": Family(_qwen, 151655, tower="merged"),
    "qwen3_vl": Family(_qwen, 151655, tower="merged"),
    "llava": Family(_llava, 32000, "llama", "first"),
    "llava_next": Family(_llava_next, 32000, "llama", "first"),
    "idefics3": Family(_idefics3, 128257, "llama", "last"),
    "smolvlm": Family(_idefics3, 128257, "llama", "last"),
    "gemma3": Family(_gemma3, 262144, "gemma3_text", "first", causal=False),
    "internvl": Family(_internvl, 151667, "qwen2", "last"),
    "paligemma": Family(_paligemma, 256000, "gemma", "first", causal=False, prefix=True),
}
"""`model_type` in config.json -> the family."""


def check_family(source: ModelSource) -> Family:
    """The model's family.

    Raises
    ------
    InvalidInputError
        If it is not one of `FAMILIES`, which are listed.
    """
    found = str(source.config.get("model_type"))
    if found not in FAMILIES:
        raise InvalidInputError(
            f"{source.name}: expected a model of the families {', '.join(FAMILIES)}, found model_type {found!r}; "
            "use one that transformers itself loads (for InternVL those named -hf)"
        )
    return FAMILIES[found]


def model_shape(source: ModelSource) -> ModelShape:
    """Read the model's sizes from config.json, at the top level (older files) or in `text_config`.

    Raises
    ------
    InvalidInputError
        If a size is missing or not a number.
    """
    family, name = check_family(source), str(source.config["model_type"])
    inner: Mapping[str, Any] = source.config.get("text_config") or {}
    try:
        vision, merged = vision_config(source.config, name), family.tower == "merged"
        given = {**(source.config if merged else {}), **inner}
        depth = int(vision["depth"] if merged else vision.get("num_hidden_layers", 0))
        text = text_config(given, str(inner.get("model_type") or family.text or f"{name}_text"))
        return ModelShape(
            layers=int(text["num_hidden_layers"]),
            hidden=int(text["hidden_size"]),
            heads=int(text["num_attention_heads"]),
            head_dim=int(text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"]),
            context=int(text["max_position_embeddings"]),
            vision_layers=depth,
            vision_hidden=int(vision["embed_dim"] if name == "qwen2_vl" else vision["hidden_size"]) if depth else 0,
            dtype=str(source.config.get("dtype") or source.config.get("torch_dtype") or text.get("dtype") or "float32"),
            vision_whole=tuple(map(int, vision["fullatt_block_indexes"])) if name == "qwen2_5_vl" else tuple(range(depth)),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InvalidInputError(
            f"{source.name}: expected the sizes of decoder and vision tower in config.json, missing or wrong: {error}"
        ) from error


def logits_capped(source: ModelSource) -> bool:
    """Whether the model soft-caps its logits (the default of Gemma 2)."""
    inner: Mapping[str, Any] = source.config.get("text_config") or {}
    return bool(inner.get("final_logit_softcapping", inner.get("model_type") == "gemma2"))


def image_rule(source: ModelSource, max_pixels: int | None = None) -> ImageRule:
    """Read the rule for image tokens from the processor's settings; `max_pixels` replaces the processor's limit, if any.

    Raises
    ------
    InvalidInputError
        If the settings are missing, or the image tokens are not one grid over the image.
    """
    family = check_family(source)
    try:
        rule = family.rule(source, family)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, InvalidInputError):
            raise
        raise InvalidInputError(f"{source.name}: expected image settings of model and processor, missing or wrong: {error}") from error
    if max_pixels is None:
        return rule
    if not isinstance(rule, PatchGrid):
        raise InvalidInputError(
            f"expected no `max_pixels` for a model of the family {source.config['model_type']}, whose images have a fixed "
            f"number of tokens, found {max_pixels}; leave it out"
        )
    if max_pixels < rule.min_pixels:
        raise InvalidInputError(
            f"expected at least {rule.min_pixels} pixels (the processor's lower limit), found `max_pixels` {max_pixels}"
        )
    return PatchGrid(rule.token, rule.patch, rule.merge, rule.min_pixels, max_pixels)


def _image_processor(source: ModelSource) -> dict[str, Any]:
    return image_processor_config(source.processor_config, str(source.config["model_type"]))


def _image_token(source: ModelSource, family: Family) -> str:
    config = source.config
    return source.token_text(int(config.get("image_token_id") or config.get("image_token_index") or family.image_id))


def _copy_stream(source: ModelSource, size: Mapping[str, int]) -> int:
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
    raise InvalidInputError(f"{source.name}: expected {expected}, found {found}: the position of its image tokens is unknown")
