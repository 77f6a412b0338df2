"""Load a model: trained weights from its files, or random initial weights."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageTextToText, BitsAndBytesConfig
from transformers.utils import logging as hf_logging

from stratascope.errors import InvalidInputError, MissingExtraError, StratascopeError
from stratascope.extract.model_files import ModelSource, check_weight_files, quantization
from stratascope.extract.run.device_memory import OutOfMemory, attempt

HOST = torch.device("cpu")
LONGEST_TEXT = 400
"""Longest text of a library's error that is shown."""


@dataclass(frozen=True)
class Arrangement:
    """On which devices the weights of a model lie, and how they are quantised on loading."""

    device_map: str | None = None
    """`auto`: over all GPUs, then the host's memory, then the disk; None: on one device."""
    quantize: str | None = None
    """`4bit` or `8bit` of bitsandbytes; None: as they are in the files."""


WHOLE = Arrangement()
"""All weights on one device, as they are in the files."""


def load_model(
    source: ModelSource,
    dtype: torch.dtype,
    untrained: int | None = None,
    arrangement: Arrangement = WHOLE,
    device: torch.device = HOST,
) -> Any:
    """Load a model in evaluation mode: on the host, or where its arrangement puts it.

    Parameters
    ----------
    source
        The model files.
    dtype
        Precision of the weights.
    untrained
        Seed of random initial weights from the architecture's own initialisation; weight files are not read and need not exist.
        None: trained weights.
    arrangement
        On which devices the weights lie, and how they are quantised.
    device
        Where a quantised model goes that is not spread over devices.

    Raises
    ------
    InvalidInputError
        If the weights do not fit the configuration, a file is damaged or missing, or the memory does not hold them.
    MissingExtraError
        If transformers needs a package that is not installed.
    """
    if untrained is None:
        check_weight_files(source)
    with _quiet(), explained(source):
        if untrained is not None:
            return _random_weights(source, dtype, untrained)
        options: dict[str, Any] = {"dtype": dtype, "output_loading_info": True, "local_files_only": True}
        options |= _arranged(source, dtype, arrangement, device)
        made = attempt(lambda: AutoModelForImageTextToText.from_pretrained(source.folder, **options))
    if isinstance(made, OutOfMemory):
        raise InvalidInputError(
            f"{source.name}: expected memory for the model's weights, found too little ({made.reason}); set `quantize` or `device_map`"
        )
    model, info = made
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise InvalidInputError(f"{source.name}: expected all weights, found {len(missing)} missing, the first {missing[0]!r}")
    return model.eval()


def is_arranged(model: Any) -> bool:
    """Whether a model is where its weights belong already: it is spread over devices, or quantised."""
    return hasattr(model, "hf_device_map") or getattr(model, "hf_quantizer", None) is not None


def _arranged(source: ModelSource, dtype: torch.dtype, arrangement: Arrangement, device: torch.device) -> dict[str, Any]:
    """Arguments of `from_pretrained`."""
    made: dict[str, Any] = {}
    if arrangement.device_map is not None:
        limits = memory_limits()
        made |= {"device_map": arrangement.device_map, **({"max_memory": limits} if limits else {})}
        made["offload_folder"] = tempfile.mkdtemp(prefix="stratascope-offload-")
        atexit.register(shutil.rmtree, made["offload_folder"], ignore_errors=True)
    elif arrangement.quantize is not None or quantization(source) is not None:
        made["device_map"] = {"": str(device)}
    if arrangement.quantize is not None:
        four = arrangement.quantize == "4bit"
        more = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype} if four else {}
        made["quantization_config"] = BitsAndBytesConfig(load_in_4bit=four, load_in_8bit=not four, **more)
    return made


def memory_limits() -> dict[int | str, int | str] | None:
    """Memory of each device that weights may take, for `device_map`; None: all that is free."""
    return None


def load_image_processor(source: ModelSource) -> Any:
    """The image processor of a model, with its settings.

    Raises
    ------
    InvalidInputError
        If the settings are missing or cannot be read.
    MissingExtraError
        If transformers needs a package that is not installed.
    """
    with explained(source, "its image processor"):
        return AutoImageProcessor.from_pretrained(source.folder, local_files_only=True)


def usable_device(name: str) -> torch.device:
    """The device with this name, such as `cpu` or `cuda:1`.

    Raises
    ------
    InvalidInputError
        If there is no such device.
    """
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:  # running out of memory and unsupported devices are RuntimeErrors
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if name.startswith("cuda") and int(name.partition(":")[2] or 0) >= count:
            found = f"{count} here" if count else "none"
            raise InvalidInputError(f"expected a CUDA device for `device` {name}, found {found}; set `device` to cpu") from error
        raise InvalidInputError(f"expected a device that can be used for `device` {name}, found: {one_line(error)}") from error
    return device


def on_device(model: Any, device: torch.device) -> Any:
    """Move a model to a device.

    Raises
    ------
    InvalidInputError
        If memory does not suffice.
    """
    moved = attempt(lambda: model.to(device))
    if isinstance(moved, OutOfMemory):
        raise InvalidInputError(
            f"expected memory for the model's weights on {device}, found too little ({moved.reason}); free it, take a larger GPU or "
            "`dtype` bfloat16"
        )
    return moved


def _random_weights(source: ModelSource, dtype: torch.dtype, seed: int) -> Any:
    """Random initial weights, drawn on the host so that they are the same for every device; keeps the caller's random state."""
    config = AutoConfig.from_pretrained(source.folder, local_files_only=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForImageTextToText.from_config(config, dtype=dtype).eval()


@contextmanager
def explained(source: ModelSource, what: str = "weights that fit its configuration") -> Iterator[None]:
    """Turn errors of transformers into one line that names the model.

    Raises
    ------
    InvalidInputError
        For an error within, with `what` was expected.
    MissingExtraError
        If transformers needs a package that is not installed.
    """
    try:
        yield
    except (StratascopeError, MemoryError, torch.OutOfMemoryError):
        raise
    except ImportError as error:
        raise MissingExtraError(
            f"{source.name}: expected all packages that transformers needs for this model to be installed, found: {one_line(error)}"
        ) from error
    except Exception as error:  # unpickling, safetensors, configuration classes: they share no narrower base
        if damaged := _unreadable_pickle(source):
            raise damaged from error
        raise InvalidInputError(f"{source.name}: expected {what} in {source.folder}, found: {one_line(error)}") from error


def _unreadable_pickle(source: ModelSource) -> InvalidInputError | None:
    """The error for the first unreadable `pytorch_model*.bin`; None if all are readable."""
    for path in sorted(source.folder.glob("pytorch_model*.bin")):
        try:
            torch.load(path, map_location="meta", weights_only=True)
        except MemoryError:
            raise
        except Exception as error:  # the unpickler may raise anything
            return InvalidInputError(
                f"{path}: expected weights that PyTorch reads with weights_only=True, found {path.stat().st_size:,} bytes that it cannot "
                f"({one_line(error)}); fetch the file again, or take the model's safetensors"
            )
    return None


def one_line(error: Exception) -> str:
    """Text of an error in one line of bounded length."""
    text = " ".join(str(error).split())
    text = text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}..."
    return (
        text if isinstance(error, OSError | ValueError | RuntimeError | ImportError) and text else f"{type(error).__name__} {text}".rstrip()
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the progress bar of loading."""
    bars = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        if bars:
            hf_logging.enable_progress_bar()
