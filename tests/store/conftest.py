"""Attention maps of a real model, where they are at hand."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope="session")
def shared_maps() -> np.ndarray:
    """(30, 200, 200) head-mean attention of SmolLM2-135M; skipped where STRATASCOPE_DATA does not hold it."""
    folder = Path(os.environ.get("STRATASCOPE_DATA", Path(__file__).parents[3] / "shared" / "data"))
    path = folder / "attention_maps" / "smollm2_135m_t200.npz"
    if not path.exists():
        pytest.skip("needs attention_maps/smollm2_135m_t200.npz in STRATASCOPE_DATA")
    with np.load(path) as stored:
        maps = np.tril(stored["maps"].astype(np.float64))
    return maps / maps.sum(-1, keepdims=True)
