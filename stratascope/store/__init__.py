"""The format on disk: activations of one model on many examples, as a plain Zarr v3 group (docs/format.md)."""

from stratascope.store.arrays import ArraySpec
from stratascope.store.choice import checked_choice, choice_of, choice_options, choice_text, chosen_examples, column_texts
from stratascope.store.copying import copy_store
from stratascope.store.create import create_store
from stratascope.store.difference import StoreDifference, diff_stores
from stratascope.store.layout import RECORDED, STATUS_CODES, StoreLayout
from stratascope.store.packing import decode_maps, encode_maps
from stratascope.store.provenance import VOLATILE, condition_of
from stratascope.store.reader import ActivationStore
from stratascope.store.repair import repair
from stratascope.store.results import ResultFile, load_result, save_result
from stratascope.store.verify import Verification, verify
from stratascope.store.writer import BlockWriter

__all__ = [
    "RECORDED",
    "STATUS_CODES",
    "VOLATILE",
    "ActivationStore",
    "ArraySpec",
    "BlockWriter",
    "ResultFile",
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
    "load_result",
    "repair",
    "save_result",
    "verify",
]
