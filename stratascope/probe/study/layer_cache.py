"""Cache of finished layers in a folder: an interrupted study resumes from it."""

from __future__ import annotations

import glob
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, MutableMapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import numpy as np
import pandas as pd

from stratascope.errors import StoreError
from stratascope.probe.study.layer_task import LayerAnswer, LayerTask, content_digest
from stratascope.probe.study.positions import is_pair
from stratascope.probe.validation.estimators import method_text
from stratascope.probe.validation.out_of_fold import OutOfFold
from stratascope.results.file import ResultFile, read_file, write_file
from stratascope.results.schema import ArraySchema, ResultSchema
from stratascope.scheduling import run_all


class Digested(Protocol):
    """An answer with the digest of its input."""

    @property
    def content(self) -> str:
        """Digest of the activations."""
        ...


Answer = TypeVar("Answer", bound=Digested)
SOLVER_VERSION = 9
"""Version of the solver; raise it when its numbers change, so that older cached answers are ignored."""


class Finished(ABC, Generic[Answer]):
    """Cache of the answers to layer tasks.

    The key covers solver version, fingerprint of the store, layer, position, labels, folds and settings. The file name also has a digest
    of the activations, because stores of the same provenance may hold different numbers.
    """

    kind: ClassVar[str]
    """Kind of the file."""
    name: ClassVar[str]
    """Prefix of file names."""
    schema: ClassVar[ResultSchema]
    """Schema of a file."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)

    @abstractmethod
    def write(self, answer: Answer) -> ResultFile:
        """The file content of an answer."""

    @abstractmethod
    def read(self, task: LayerTask, file: ResultFile) -> Answer:
        """The answer of a file."""

    def key(self, task: LayerTask) -> str:
        """Prefix of the file names of a task, without the digest of activations."""
        settings = task.settings
        known = {
            "version": SOLVER_VERSION,
            "kind": self.kind,
            "store": task.store.fingerprint(),
            "layer": task.layer,
            "position": task.position,
            "by_head": task.by_head,
            "settings": [
                settings.array,
                settings.strengths,
                settings.tolerance,
                method_text(settings.method),
                settings.groups,
                settings.seed,
            ],
            "pair": [settings.pair, settings.rank if settings.pair == "bilinear" else 0] if is_pair(task.position) else [],
        }
        digest = hashlib.sha256(json.dumps(known, sort_keys=True, default=str).encode())
        for batch in task.batches:
            digest.update(json.dumps([batch.classes, [*batch.targets, *batch.metrics] if batch.targets else [], batch.folds.test]).encode())
            digest.update(np.ascontiguousarray(batch.folds.of, dtype=np.int64).tobytes())
            digest.update(np.ascontiguousarray(batch.folds.groups, dtype=np.int64).tobytes())
            digest.update(np.ascontiguousarray(batch.labels, dtype=np.float64).tobytes())
        place = "heads" if task.by_head else task.position or "all"
        return f"{self.name}-{task.layer:03d}-{place}-{digest.hexdigest()[:16]}"

    def path(self, task: LayerTask, content: str) -> Path:
        """File of the answer to a task for activations of a digest."""
        return self.folder / f"{self.key(task)}-{content[:16]}.zip"

    def candidates(self, task: LayerTask) -> bool:
        """Whether the folder holds answers to the task, for any activations."""
        return any(self.folder.glob(f"{glob.escape(self.key(task))}-*.zip"))

    def load(self, task: LayerTask, content: str) -> Answer | None:
        """The answer for activations of a digest; None without a readable file."""
        try:
            return self.read(task, read_file(self.path(task, content), self.schema, self.kind))
        except StoreError:
            return None

    def save(self, task: LayerTask, answer: Answer) -> None:
        """Save an answer."""
        write_file(self.path(task, answer.content), self.write(answer))


def _own(kind: str, **dimensions: int) -> dict[str, ArraySchema]:
    """Arrays of one labelling by number of dimensions; dimensions are named after the array."""
    return {name: ArraySchema(kind, tuple(f"{name}_{axis}*" for axis in range(count))) for name, count in dimensions.items()}


_LABELLING = {
    **_own("float", logits=2, strength=1, inner_loss=2, gap=1, certificate=1, noise_share=1, decision_share=1),
    **_own("float", control_values=2, control_influence=2),
    **_own("float", fold_directions=3, fold_intercepts=2, direction=2, intercept=1, direction_strength=1),
    **_own("int", iterations=1),
    **_own("bool", absent=2, at_edge=1),
}
"""Schema of the fields of `OutOfFold` for each labelling."""


def _every_labelling(attributes: Mapping[str, Any], _: Mapping[str, pd.DataFrame], arrays: Collection[str]) -> str | None:
    wanted = (f"{b}.{j}.{name}" for b, count in enumerate(attributes["labellings"]) for j in range(count) for name in _LABELLING)
    return next((f"expected an array {name!r}, found none" for name in wanted if name not in arrays), None)


class FinishedLayers(Finished[LayerAnswer]):
    """Out-of-fold answers of layers."""

    kind = "layer_answer"
    name = "layer"
    schema = ResultSchema(
        {"labellings": list[int], "seconds": float}, {}, {f"*.{name}": of for name, of in _LABELLING.items()}, rules=(_every_labelling,)
    )

    def write(self, answer: LayerAnswer) -> ResultFile:
        arrays: dict[str, tuple[tuple[str, ...], Any]] = {}
        for b, found in enumerate(answer.answers):
            for j, one in enumerate(found):
                for field in fields(OutOfFold):
                    values = np.asarray(getattr(one, field.name))
                    # labellings differ in their sizes, and a dimension has one length
                    arrays[f"{b}.{j}.{field.name}"] = (tuple(f"{field.name}_{axis}_{b}_{j}" for axis in range(values.ndim)), values)
        attributes = {"labellings": [len(found) for found in answer.answers], "seconds": answer.seconds}
        return ResultFile(kind=self.kind, arrays=arrays, attributes=attributes)

    def read(self, task: LayerTask, file: ResultFile) -> LayerAnswer:
        answers = [
            [OutOfFold(**{f.name: np.asarray(file.arrays[f"{b}.{j}.{f.name}"][1]) for f in fields(OutOfFold)}) for j in range(count)]
            for b, count in enumerate(file.attributes["labellings"])
        ]
        return LayerAnswer(task.layer, task.position, answers, float(file.attributes["seconds"]))


def run_unfinished(
    function: Callable[[LayerTask], Answer],
    work: Sequence[LayerTask],
    finished: Finished[Answer] | None,
    contents: MutableMapping[str, str] | None = None,
    *,
    scheduler: str | None = None,
    workers: int | None = None,
    progress: bool = False,
    label: str = "layers",
) -> list[Answer]:
    """Answers to all tasks in order; finished ones are loaded, others are computed and saved one by one.

    A finished answer is loaded only if it was computed from the activations that the store holds now.

    Parameters
    ----------
    contents
        Digests of activations read before in this process, by `Finished.key`; new ones are added.
    scheduler, workers, progress, label
        As of `run_all`.
    """
    run: dict[str, Any] = {"scheduler": scheduler, "workers": workers, "progress": progress}
    if finished is None:
        return run_all(function, work, label=label, **run)
    contents = {} if contents is None else contents
    keys = [finished.key(task) for task in work]
    unread = [number for number, task in enumerate(work) if keys[number] not in contents and finished.candidates(task)]
    if unread:
        digests = run_all(content_digest, [work[n] for n in unread], label="checking finished layers", **run)
        contents.update(zip([keys[n] for n in unread], digests, strict=True))
    known = {number: contents[key] for number, key in enumerate(keys) if key in contents}
    kept = {number: answer for number, content in known.items() if (answer := finished.load(work[number], content)) is not None}
    open_numbers = [number for number in range(len(work)) if number not in kept]

    def keep(place: int, answer: Answer) -> None:
        contents[keys[open_numbers[place]]] = answer.content
        finished.save(work[open_numbers[place]], answer)

    fresh = run_all(function, [work[n] for n in open_numbers], finished=keep, label=label, **run)
    kept |= dict(zip(open_numbers, fresh, strict=True))
    return [kept[number] for number in range(len(work))]
