"""Add the final norm and unembedding rows of a model to an existing store, for the logit lens."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from stratascope.errors import InvalidInputError, ProvenanceMismatchError, StoreError
from stratascope.extract.plan.readout_words import readout_words
from stratascope.extract.run.extraction import require_extract_extra
from stratascope.store import ActivationStore, Readout
from stratascope.store.format.provenance import same_model_files
from stratascope.store.io.readout import add_readout, read_readout, remove_readout
from stratascope.store.io.shard_reader import byte_source
from stratascope.store.io.store_files import place_of

TOLERANCE = 1e-4
"""Difference of the stored answer logits and those of the readout, relative to the largest: float32 rounding of both."""
CHECKED = 64
"""Examples whose answer logits are compared."""


def add_lens(out: Path | str, *, model: str | None = None) -> Readout:
    """Add the final norm and unembedding rows to an existing store from its model, without running the examples.

    Parameters
    ----------
    out
        Folder of the store, or its address in a bucket.
    model
        Folder or Hub id, if the model lies elsewhere now.

    Returns
    -------
    Readout
        What the store now holds.

    Raises
    ------
    StoreError
        If `out` is not a folder with a store, or cannot be written.
    ProvenanceMismatchError
        If the model is not that of the store, or does not give its answer logits.
    InvalidInputError
        If the provenance does not name the model, or it cannot be loaded.
    """
    place = place_of(out)
    if isinstance(place, Path) and not place.is_dir():
        raise StoreError(f"{out}: expected the folder of a store, found a file or nothing; unpack it, or copy it to a folder first")
    store = ActivationStore.open(place)
    try:
        held = read_readout(byte_source(store.files_of), store.name)
    except StoreError:
        held = None
    if held is not None:
        return held
    require_extract_extra()
    readout = _readout_of(store, model)
    _check_answers(store, readout)
    remove_readout(place)
    add_readout(place, readout)
    return readout


def _readout_of(store: ActivationStore, name: str | None) -> Readout:
    import torch

    from stratascope.extract.model_files import QUANTIZE, on_loading, resolve_model
    from stratascope.extract.run.capture import text_decoder
    from stratascope.extract.run.loading import Arrangement, load_model
    from stratascope.extract.run.logits import Unembedding

    held = store.provenance.get("model")
    choices = (store.provenance.get("prompt") or {}).get("choices")
    if not isinstance(held, dict) or not held.get("name") or not isinstance(choices, dict) or list(choices) != list(store.layout.choices):
        raise InvalidInputError(f"{store.name}: expected a store whose provenance names its model and answer choices, found none")
    if (store.provenance.get("answer_logits") or {}).get("score"):
        raise InvalidInputError(f"{store.name}: expected answers of one token each for the logit lens, found answers of several tokens")
    untrained = held.get("untrained")
    source = resolve_model(name or str(held["name"]), revision=held.get("revision"), weights=untrained is None)
    now = {"name": held["name"], "revision": source.revision, "files": source.digests(weights=untrained is None)}
    if source.revision != held.get("revision") or not same_model_files(held, now):
        raise ProvenanceMismatchError(
            f"expected the model of {store.name}, {held['name']} {held.get('revision') or ''}, found other files in {source.folder}; set "
            "`model` to the folder or Hub id that was extracted"
        )
    quantize = next((bits for bits in QUANTIZE if str(held.get("quantization")) == on_loading(bits)), None)
    loaded = load_model(source, getattr(torch, str(held.get("dtype") or "float32")), untrained, Arrangement(None, quantize))
    relations = () if store.provenance.get("data", {}).get("questions") else store.examples["relation"]
    words = readout_words(source.tokenizer, choices, relations)
    return Unembedding(loaded, text_decoder(loaded)).readout(words)


def _check_answers(store: ActivationStore, readout: Readout) -> None:
    """Refuse a readout that does not give the stored answer logits from the last residual stream, where the store has both."""
    precise = (store.provenance.get("answer_logits") or {}).get("precision") == "float32"
    last = store.layout.layers
    if not precise or "residual" not in store.arrays or "final" not in store.positions or last not in store.layers:
        return
    numbers = np.flatnonzero(store.available("residual", "final"))[:CHECKED]
    if not len(numbers):
        return
    found = readout.logits(
        store.read("residual", layer=last, position="final", examples=numbers), readout.numbers("choice", store.layout.choices)
    )
    stored = store.read("answer_logits", examples=numbers)
    gap = float(np.abs(found - stored).max())
    if not gap <= TOLERANCE * max(1.0, float(np.abs(stored).max())):
        raise ProvenanceMismatchError(
            f"expected the answer logits of {store.name} from its last residual stream, found some {gap:.3g} apart; set `model` to the "
            "model that was extracted"
        )
