"""Refuse weights that would be read wrongly: quantised ones, adapters, damaged files. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stratascope.errors import InvalidInputError
from stratascope.extract.file_digests import shard_names
from stratascope.extract.model_files import ModelSource

QUANTIZATION_FIELDS = ("quantization_config", "compression_config")
"""Fields of config.json that describe quantisation."""
PLAIN_TYPES = ("F64", "F32", "F16", "BF16")
"""Types of safetensors without quantisation."""
_PARTS = ("text_config", "vision_config")


def quantization(source: ModelSource) -> str | None:
    """Quantisation in config.json, such as `gptq, 4 bits`; None if there is none."""
    for part in (source.config, *(source.config.get(name) for name in _PARTS)):
        for field in QUANTIZATION_FIELDS if isinstance(part, Mapping) else ():
            if found := part.get(field):  # type: ignore[union-attr]
                return _described(found)
    return None


def check_weight_form(source: ModelSource) -> None:
    """Refuse quantised weights and adapters.

    Raises
    ------
    InvalidInputError
        If the weights are quantised, or the folder holds an adapter.
    """
    if method := quantization(source):
        raise InvalidInputError(
            f"{source.name}: expected weights that are not quantised, found quantization_config in config.json ({method}): logits by head "
            "and value norms need plain weights; use the float16 or bfloat16 files of the model"
        )
    if (source.folder / "adapter_config.json").exists():
        raise InvalidInputError(
            f"{source.name}: expected the weights of a complete model, found an adapter (adapter_config.json) in {source.folder}; merge it "
            "into the model with peft's merge_and_unload, save that with save_pretrained, and use the new folder"
        )


def check_weight_files(source: ModelSource) -> None:
    """Refuse damaged, missing or quantised weight files; reads only their headers.

    Raises
    ------
    InvalidInputError
        Naming the file.
    """
    from safetensors import SafetensorError, safe_open

    for index in sorted(source.folder.glob("*.safetensors.index.json")):
        for name in shard_names(index):
            if not (source.folder / name).is_file():
                raise InvalidInputError(
                    f"{source.name}: expected the files that {index.name} names in {source.folder}, found no {name}; download it"
                )
    for path in sorted(source.folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="numpy") as file:
                kinds = {name: str(file.get_slice(name).get_dtype()) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, ValueError) as error:
            raise InvalidInputError(
                f"{path}: expected a complete safetensors file, found {path.stat().st_size:,} bytes that cannot be read "
                f"({error}): damaged or incomplete; download it again"
            ) from error
        _check_types(path, kinds)


def _check_types(path: Path, kinds: Mapping[str, str]) -> None:
    for name, kind in kinds.items():
        if kind not in PLAIN_TYPES and "weight" in name.rpartition(".")[2]:
            raise InvalidInputError(
                f"{path}: expected weights of type {', '.join(PLAIN_TYPES)}, found {name} of type {kind}: quantised weights are not "
                "supported; use the float16 or bfloat16 files of the model"
            )


def _described(found: Any) -> str:
    if not isinstance(found, Mapping):
        return str(found)
    method = str(found.get("quant_method") or found.get("quant_type") or "a method that is not named")
    if found.get("load_in_8bit") or found.get("_load_in_8bit"):
        return f"{method}, 8 bits"
    if found.get("load_in_4bit") or found.get("_load_in_4bit"):
        return f"{method}, 4 bits"
    return f"{method}, {found['bits']} bits" if found.get("bits") else method
