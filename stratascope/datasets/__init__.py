"""Examples: VSR files, COCO boxes, generated scenes, prompts, and fetching them; no torch. Names are imported when they are first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stratascope.datasets.benchmark_download import fetch_benchmark
    from stratascope.datasets.benchmarks import BENCHMARKS, Benchmark
    from stratascope.datasets.boxes import BoxIndex, cells_in_box
    from stratascope.datasets.captions import CaptionParts, split_caption
    from stratascope.datasets.conversion import ConversionReport, convert_benchmark
    from stratascope.datasets.example import Example
    from stratascope.datasets.examples import load_examples
    from stratascope.datasets.fetch import FetchChoice, FetchReport, fetch_vsr
    from stratascope.datasets.pairs import PairReport, minimal_pairs
    from stratascope.datasets.prompts import PROMPTS, FilledPrompt, Prompt, Shot
    from stratascope.datasets.relations import RELATIONS, Relation
    from stratascope.datasets.scenes import write_scenes

_MODULES = {
    "BENCHMARKS": "benchmarks",
    "Benchmark": "benchmarks",
    "BoxIndex": "boxes",
    "CaptionParts": "captions",
    "ConversionReport": "conversion",
    "Example": "example",
    "FetchChoice": "fetch",
    "FetchReport": "fetch",
    "FilledPrompt": "prompts",
    "PROMPTS": "prompts",
    "PairReport": "pairs",
    "Prompt": "prompts",
    "Shot": "prompts",
    "RELATIONS": "relations",
    "Relation": "relations",
    "cells_in_box": "boxes",
    "convert_benchmark": "conversion",
    "fetch_benchmark": "benchmark_download",
    "fetch_vsr": "fetch",
    "load_examples": "examples",
    "minimal_pairs": "pairs",
    "split_caption": "captions",
    "write_scenes": "scenes",
}

__all__ = [
    "BENCHMARKS",
    "PROMPTS",
    "RELATIONS",
    "Benchmark",
    "BoxIndex",
    "CaptionParts",
    "ConversionReport",
    "Example",
    "FetchChoice",
    "FetchReport",
    "FilledPrompt",
    "PairReport",
    "Prompt",
    "Relation",
    "Shot",
    "cells_in_box",
    "convert_benchmark",
    "fetch_benchmark",
    "fetch_vsr",
    "load_examples",
    "minimal_pairs",
    "split_caption",
    "write_scenes",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
