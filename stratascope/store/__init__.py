"""The format on disk: activations of one model on many examples, as a plain Zarr v3 group (docs/format.md)."""

from stratascope.store.format.arrays import ArraySpec
from stratascope.store.format.layout import RECORDED, STATUS_CODES, StoreLayout
from stratascope.store.format.packing import decode_maps, encode_maps
from stratascope.store.format.provenance import VOLATILE, condition_of
from stratascope.store.io.create import create_store
from stratascope.store.io.example_filter import checked_choice, choice_of, choice_options, choice_text, chosen_examples, column_texts
from stratascope.store.io.reader import ActivationStore
from stratascope.store.io.writer import BlockWriter
from stratascope.store.maintenance.copy import copy_store
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
    "create_store",
    "decode_maps",
    "diff_stores",
    "encode_maps",
    "repair",
    "verify",
]
