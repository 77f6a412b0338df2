"""Activation stores: format, reading, writing and maintenance (docs/format.md)."""

import warnings
from importlib import import_module
from typing import Any

from stratascope.store.format.arrays import ArraySpec
from stratascope.store.format.layout import RECORDED, STATUS_CODES, StoreLayout
from stratascope.store.format.packing import decode_maps, encode_maps
from stratascope.store.format.provenance import VOLATILE, condition_of, label_kind
from stratascope.store.format.size_estimate import estimate_sizes
from stratascope.store.io.create import create_store
from stratascope.store.io.example_filter import checked_choice, choice_of, choice_options, choice_text, chosen_examples, column_texts
from stratascope.store.io.offered_choices import generated_texts, offered_logits
from stratascope.store.io.overview import describe
from stratascope.store.io.reader import ActivationStore
from stratascope.store.io.readout import Readout, stored_readout
from stratascope.store.io.writer import BlockWriter
from stratascope.store.maintenance.copy import copy_store, copy_summary
from stratascope.store.maintenance.difference import StoreDifference, diff_stores
from stratascope.store.maintenance.repair import repair
from stratascope.store.maintenance.verify import Verification, verify

__all__ = [
    "RECORDED",
    "STATUS_CODES",
    "VOLATILE",
    "ActivationStore",
    "ArraySpec",
    "BlockWriter",
    "Readout",
    "StoreDifference",
    "StoreLayout",
    "Verification",
    "checked_choice",
    "choice_of",
    "choice_options",
    "choice_text",
    "chosen_examples",
    "column_texts",
    "condition_of",
    "copy_store",
    "copy_summary",
    "create_store",
    "decode_maps",
    "describe",
    "diff_stores",
    "encode_maps",
    "estimate_sizes",
    "generated_texts",
    "label_kind",
    "offered_logits",
    "repair",
    "stored_readout",
    "verify",
]

_MOVED = {
    "ResultFile": "stratascope.results.file",
    "load_result": "stratascope.results.registry",
    "save_result": "stratascope.results.registry",
}


def __getattr__(name: str) -> Any:
    if name not in _MOVED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(f"stratascope.store.{name} is now {_MOVED[name]}.{name}", DeprecationWarning, stacklevel=2)
    return getattr(import_module(_MOVED[name]), name)
