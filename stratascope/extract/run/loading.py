"""A model's weights: those of its files, or freshly drawn ones in the same architecture."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText
from transformers.utils import logging as hf_logging

from stratascope.errors import InvalidInputError
from stratascope.extract.plan.model_files import ModelSource


def load_model(source: ModelSource, dtype: torch.dtype, untrained: int | None = None) -> Any:
    """The model on the host, in evaluation mode.

    Parameters
    ----------
    source
        Where its files are.
    dtype
        Of its weights.
    untrained
        Seed of freshly drawn weights, as the architecture's own initialisation has them before training; the files' weights are not
        read, and need not be there. None: the files' weights.

    Raises
    ------
    InvalidInputError
        If the weights do not fit the configuration, or there are none.
    """
    with _quiet(), _explained(source):
        if untrained is not None:
            return _freshly_drawn(source, dtype, untrained)
        model, info = AutoModelForImageTextToText.from_pretrained(
            source.folder, dtype=dtype, output_loading_info=True, local_files_only=True
        )
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise InvalidInputError(f"{source.name}: expected all weights, found {len(missing)} missing, the first {missing[0]!r}")
    return model.eval()


def _freshly_drawn(source: ModelSource, dtype: torch.dtype, seed: int) -> Any:
    """Drawn on the host, so that every device gets the same weights; the caller's random state is left as it was."""
    config = AutoConfig.from_pretrained(source.folder, local_files_only=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForImageTextToText.from_config(config, dtype=dtype).eval()


@contextmanager
def _explained(source: ModelSource) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        raise InvalidInputError(f"{source.name}: expected weights that fit its configuration in {source.folder}, found: {error}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the progress bar of loading."""
    bars = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        if bars:
            hf_logging.enable_progress_bar()
