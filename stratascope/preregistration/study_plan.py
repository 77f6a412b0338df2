"""`StudyPlan`: tasks, positions, baselines, margins and the primary outcome of a study, identified by a digest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from typing import Any, Literal

from stratascope.datasets.prompts import PROMPTS
from stratascope.errors import InvalidInputError
from stratascope.store import checked_choice

ALL = "all"
"""Baseline of a primary outcome: every baseline of its curve at once."""
ORIGINAL = "original"
"""Name of the store whose probes the study is about."""
PAIR = "+"
"""Joins the two positions of a pair, such as `subject_box+object_box`."""
METRICS = ("balanced_accuracy", "auroc", "accuracy", "r2")
CONTROLS = ("shuffled", "control")
KINDS = ("erase", "reflect", "steer", "patch")


@dataclass(frozen=True)
class StudyStore:
    """A store of the study: a condition of the images, or untrained weights, and its role."""

    name: str
    """Name of the store in the study's folder, without `.zarr`."""
    role: Literal["original", "baseline", "transfer"] = "baseline"
    """original: the store that is probed; baseline: the same probes on this store must score lower; transfer: the probes of the original
    store are also tested on this store, without a claim."""
    condition: Literal["original", "blank", "mirror", "shuffled-image", "patch-shuffle"] = "original"
    """Change to the images, as `extract --condition`."""
    untrained: int | None = None
    """Seed of random initial weights instead of trained ones."""

    def __post_init__(self) -> None:
        if not self.name or set("/\\") & set(self.name) or self.name.startswith("."):
            raise InvalidInputError(f"expected a store's name without slashes, found {self.name!r}; give one such as blank")
        unchanged = self.condition == ORIGINAL and self.untrained is None
        if (self.role == "original") != unchanged:
            raise InvalidInputError(
                f"store {self.name!r}: expected the role 'original' for the original images and trained weights alone, found {self.role!r} "
                f"with condition {self.condition!r} and untrained {self.untrained}; change the 'role'"
            )
        if self.condition == "mirror" and self.role == "baseline":
            raise InvalidInputError(
                f"store {self.name!r}: expected the role 'transfer' for mirrored images, found 'baseline': probes trained on mirrored "
                "images score as on the originals, since left and right are only exchanged; set role = 'transfer'"
            )


@dataclass(frozen=True)
class ExtractionPart:
    """What every extraction of the study has in common."""

    prompt: str
    """Name of the prompt, as `extract --prompt`."""
    record: tuple[str, ...] = ("residual",)
    """Arrays to save, as `extract --record`."""

    def __post_init__(self) -> None:
        if self.prompt not in PROMPTS:
            raise InvalidInputError(f"expected 'prompt' to be among {', '.join(PROMPTS)}, found {self.prompt!r}")


@dataclass(frozen=True)
class StudyTask:
    """A task of the probes and the examples that it is about."""

    task: str
    """As `probe --tasks`: relation, truth, geometry, or a column of the examples."""
    only: tuple[str, ...] = ()
    """COLUMN=VALUE: only examples with one of the values of each column; label=1 for true captions."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "only", checked_choice(self.only))
        if ":" in self.task or not self.task:
            raise InvalidInputError(f"expected a task without a control, found {self.task!r}; list controls under 'controls'")


@dataclass(frozen=True)
class ProbedArray:
    """Positions and layers of one array that are probed."""

    positions: tuple[str, ...]
    """Single positions, pairs such as `subject_box+object_box`, and the groups `cells` and `tokens`."""
    array: str = "residual"
    layers: tuple[int, ...] | None = None
    """All recorded ones by default."""

    def __post_init__(self) -> None:
        for position in self.positions:
            parts = position.split(PAIR)
            if len(parts) > 2 or not all(parts) or len(set(parts)) < len(parts):
                raise InvalidInputError(
                    f"expected a position or a pair of two positions such as subject_box+object_box, found {position!r}"
                )
        if self.layers is not None and (not self.layers or min(self.layers) < 0 or len(set(self.layers)) < len(self.layers)):
            found = ", ".join(map(str, self.layers)) or "none"
            raise InvalidInputError(f"expected layers from 0, each once, found {found}; correct 'layers', or leave it out for all")
        if not self.positions or len(set(self.positions)) < len(self.positions):
            raise InvalidInputError(f"expected positions, each once, found {', '.join(self.positions) or 'none'}; correct 'positions'")

    @property
    def single_positions(self) -> tuple[str, ...]:
        """The positions, and those of the pairs."""
        return tuple(dict.fromkeys(part for position in self.positions for part in position.split(PAIR)))


@dataclass(frozen=True)
class PrimaryOutcome:
    """The one curve that decides the study, fixed beforehand."""

    task: str
    position: str
    baseline: str = ALL
    """Name of a baseline (a store, a control, chance, embeddings, ...); all: every baseline of the curve at once."""
    array: str = "residual"
    hypothesis: str = ""


@dataclass(frozen=True)
class CausalPart:
    """Interventions that are planned beside the probes."""

    task: str
    positions: tuple[str, ...]
    kinds: tuple[str, ...] = ("erase",)
    """erase, reflect, steer or patch."""
    layers: tuple[int, ...] | None = None
    factors: tuple[float, ...] = (1.0,)
    """Of steering, in distances of the class means."""
    controls: int = 20
    """Random directions."""
    examples: int = 128

    def __post_init__(self) -> None:
        for kind in self.kinds:
            if kind not in KINDS:
                raise InvalidInputError(f"expected 'kinds' among {', '.join(KINDS)}, found {kind!r}{nearest(kind, KINDS)}")
        if self.controls < 20:
            raise InvalidInputError(f"expected at least 20 'controls' (random directions), found {self.controls}")
        if self.examples < 1 or not self.positions or not self.kinds:
            raise InvalidInputError("expected at least one example, position and kind of intervention in [causal], found none")


@dataclass(frozen=True)
class StudyPlan:
    """A pre-registered study, validated at construction.

    Examples
    --------
    >>> from stratascope.preregistration import read_plan
    >>> plan = read_plan("relation")
    >>> plan.extraction.prompt, [store.name for store in plan.stores]
    ('where', ['original', 'blank', 'mirror', 'untrained'])
    >>> len(plan.digest)
    64
    """

    title: str
    question: str
    metric: str
    """Of every comparison: balanced_accuracy, auroc, accuracy or r2."""
    extraction: ExtractionPart
    stores: tuple[StudyStore, ...]
    tasks: tuple[StudyTask, ...]
    probes: tuple[ProbedArray, ...]
    primary: PrimaryOutcome
    equivalence_margin: float
    """A layer counts as without the information where the upper bound of the advantage lies below it."""
    margin: float = 0.0
    """A layer counts as detected where the lower bound of the advantage over every baseline exceeds it."""
    level: float = 0.95
    """Of the simultaneous band over all curves of the study."""
    seed: int = 0
    """Of folds, controls and resamples."""
    controls: tuple[str, ...] = ("shuffled",)
    control_draws: int = 20
    """Labellings of each control."""
    folds: int = 5
    minimum: int = 5
    """Classes with fewer examples are excluded."""
    draws: int = 2000
    """Resamples of the bootstrap."""
    causal: CausalPart | None = None
    text: str = field(default="", compare=False)
    """The file's text."""

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise InvalidInputError(f"expected 'metric' among {', '.join(METRICS)}, found {self.metric!r}{nearest(self.metric, METRICS)}")
        if not self.title.strip() or not self.question.strip():
            raise InvalidInputError("expected a 'title' and a 'question', found an empty text")
        if not (0 <= self.margin < 1 and 0 < self.equivalence_margin < 1 and 0.5 <= self.level < 1):
            raise InvalidInputError(
                "expected a 'margin' from 0, an 'equivalence_margin' above 0 and a 'level' from 0.5, each below 1, found "
                f"{self.margin}, {self.equivalence_margin} and {self.level}"
            )
        if self.margin > self.equivalence_margin:
            raise InvalidInputError(
                f"expected an 'equivalence_margin' of at least the 'margin', found {self.equivalence_margin} and {self.margin}: an "
                "advantage between them would be neither detected nor absent"
            )
        for name, least in (("control_draws", 2), ("folds", 2), ("minimum", 1), ("draws", 100), ("seed", 0)):
            if getattr(self, name) < least:
                raise InvalidInputError(f"expected '{name}' of at least {least}, found {getattr(self, name)}")
        for control in self.controls:
            if control not in CONTROLS:
                raise InvalidInputError(f"expected 'controls' among {', '.join(CONTROLS)}, found {control!r}{nearest(control, CONTROLS)}")
        _expect_once("stores", [store.name for store in self.stores])
        _expect_once("tasks", [f"{task.task} {' '.join(task.only)}" for task in self.tasks])
        _expect_once("probes", [probed.array for probed in self.probes])
        if [store.role for store in self.stores].count("original") != 1:
            raise InvalidInputError("expected exactly one [[stores]] with role = 'original', found another number")
        self._check_prompt()
        self._check_primary()

    def _check_prompt(self) -> None:
        text = PROMPTS[self.extraction.prompt].text
        named = {part for part in ("subject", "relation", "object") if f"{{{part}}}" in text or "{caption}" in text}
        for probed in self.probes:
            if probed.array not in self.extraction.record:
                raise InvalidInputError(
                    f"expected 'record' to hold every probed array, found {', '.join(self.extraction.record)} without {probed.array!r}"
                )
            for position in probed.single_positions:
                if position in ("subject", "relation", "object") and position not in named:
                    raise InvalidInputError(
                        f"expected positions that the prompt {self.extraction.prompt!r} has, found {position!r}, which {text!r} does not "
                        "name; leave it out of 'positions' or change the 'prompt'"
                    )

    def _check_primary(self) -> None:
        own = self.primary
        positions = {probed.array: probed.positions for probed in self.probes}
        for name, value, known in (
            ("task", own.task, [task.task for task in self.tasks]),
            ("array", own.array, list(positions)),
            ("position", own.position, list(positions.get(own.array, ()))),
        ):
            if value not in known:
                raise InvalidInputError(f"expected the primary {name} among {', '.join(known)}, found {value!r}{nearest(value, known)}")
        named = [task.task for task in self.tasks]
        if self.causal is not None and self.causal.task not in named:
            raise InvalidInputError(f"expected the causal task among {', '.join(named)}, found {self.causal.task!r}; correct [causal]")
        if named.count(own.task) > 1:
            raise InvalidInputError(f"expected one selection of examples for the primary task, found several of {own.task!r}")
        transfers = [store.name for store in self.stores if store.role == "transfer"]
        if own.baseline in transfers:
            raise InvalidInputError(f"expected a baseline in [primary], found {own.baseline!r}, a store with the role 'transfer'")

    @property
    def canonical(self) -> str:
        """The content as JSON with sorted keys, defaults included; comments and order of the file do not count."""
        content = {name: value for name, value in asdict(self).items() if name != "text"}
        return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)

    @property
    def digest(self) -> str:
        """SHA-256 of `canonical`, in hexadecimal."""
        return hashlib.sha256(self.canonical.encode()).hexdigest()

    @property
    def original(self) -> StudyStore:
        """The store that is probed."""
        return next(store for store in self.stores if store.role == "original")

    @property
    def token_positions(self) -> tuple[str, ...]:
        """Single positions of all probes, as an extraction saves them; cells of the vision tower need no entry."""
        found = dict.fromkeys(position for probed in self.probes for position in probed.single_positions)
        return tuple(position for position in found if not position.startswith("grid_"))

    @property
    def curves(self) -> Iterator[tuple[StudyTask, str, str]]:
        """Task, array and position of every curve, the primary one first, then in the order of the plan."""
        every = [(task, probed.array, position) for task in self.tasks for probed in self.probes for position in probed.positions]
        first = (self.primary.task, self.primary.array, self.primary.position)
        return iter(sorted(every, key=lambda curve: (curve[0].task, *curve[1:]) != first))

    def extraction_options(self, store: StudyStore) -> dict[str, Any]:
        """Fields of `ExtractionSettings` that the plan fixes for one of its stores."""
        own = self.extraction
        return {
            "prompt": own.prompt,
            "record": own.record,
            "positions": self.token_positions,
            "condition": store.condition,
            "untrained": store.untrained,
        }


def nearest(value: str, known: Iterable[str]) -> str:
    """A question after a message, naming the known name that is close to a value; empty where none is."""
    close = get_close_matches(value, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _expect_once(name: str, given: list[str]) -> None:
    if not given or len(set(given)) < len(given):
        raise InvalidInputError(f"expected entries of '{name}', each once, found {', '.join(given) or 'none'}")
