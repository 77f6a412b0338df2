"""Finished layers in a folder, so that a study that was cut off goes on where it stood."""

from __future__ import annotations

import hashlib
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from stratascope.errors import StoreError
from stratascope.probe.layer_task import LayerAnswer, LayerTask
from stratascope.probe.out_of_fold import OutOfFold
from stratascope.store import ResultFile, load_result, save_result

KIND = "layer_answer"
_VERSION = 5
"""Of the solution: raise it where the same task would give other numbers."""


class FinishedLayers:
    """Answers by what they depend on: the store's fingerprint, layer, position, labels, folds and the solver's settings."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)

    def path(self, task: LayerTask) -> Path:
        """The file of a task's answer."""
        settings = task.settings
        known = {
            "version": _VERSION,
            "store": task.store.fingerprint(),
            "layer": task.layer,
            "position": task.position,
            "by_head": task.by_head,
            "settings": [settings.array, settings.strengths, settings.tolerance, settings.method],
        }
        digest = hashlib.sha256(json.dumps(known, sort_keys=True, default=str).encode())
        for batch in task.batches:
            digest.update(json.dumps([batch.classes, batch.targets, batch.folds.test]).encode())
            digest.update(np.ascontiguousarray(batch.folds.of, dtype=np.int64).tobytes())
            digest.update(np.ascontiguousarray(batch.labels, dtype=np.float64).tobytes())
        place = "heads" if task.by_head else task.position or "all"
        return self.folder / f"layer-{task.layer:03d}-{place}-{digest.hexdigest()[:16]}.zip"

    def load(self, task: LayerTask) -> LayerAnswer | None:
        """The answer, or None if there is none that can be read."""
        try:
            result = load_result(self.path(task), KIND)
        except StoreError:
            return None
        answers = [
            [OutOfFold(**{f.name: np.asarray(result.arrays[f"{b}.{j}.{f.name}"][1]) for f in fields(OutOfFold)}) for j in range(count)]
            for b, count in enumerate(result.attributes["labellings"])
        ]
        return LayerAnswer(task.layer, task.position, answers, float(result.attributes["seconds"]))

    def save(self, task: LayerTask, answer: LayerAnswer) -> None:
        """Keep an answer."""
        arrays: dict[str, tuple[tuple[str, ...], Any]] = {}
        for b, found in enumerate(answer.answers):
            for j, one in enumerate(found):
                for field in fields(OutOfFold):
                    values = np.asarray(getattr(one, field.name))
                    arrays[f"{b}.{j}.{field.name}"] = (tuple(f"{field.name}_{axis}" for axis in range(values.ndim)), values)
        attributes = {"labellings": [len(found) for found in answer.answers], "seconds": answer.seconds}
        save_result(self.path(task), ResultFile(kind=KIND, arrays=arrays, attributes=attributes))
