"""Layout of an activation store: all settings that determine the shapes of its arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from stratascope.errors import InvalidInputError, NotRecordedError
from stratascope.store.format.arrays import GENERATED, RECORDABLE, TABLE, ArrayKind, ArraySpec
from stratascope.store.format.generated_positions import generated_number
from stratascope.store.format.limits import MOST_SIDE, check_layout_sizes

FORMAT = "stratascope-activations"
FORMAT_VERSION = 1

STATUS_CODES = {"unwritten": 0, "recorded": 1, "unreadable_image": 2, "image_mismatch": 3, "non_finite": 4, "too_long": 5}
"""Name -> code in the array `status`; all but the first two are reasons why an example failed."""
TOKEN_BYTES = 16
"""Bytes that `generated_text` has for a token; longer texts are cut, their tokens are not."""
RECORDED = STATUS_CODES["recorded"]
"""Code of an example whose activations are in the store."""

CHANGED = ("subject", "object")
"""Whose box is painted over, along the axis `changed`."""

KNOCKOUT_AXES = ("knockout_modes", "knockout_windows", "knockout_targets")
_NEEDED: dict[str, tuple[str, ...]] = {
    "head_outputs": ("head_dim",),
    "vision_residual": ("vision_layers", "vision_hidden", "vision_positions"),
    "vision_output": ("vision_positions",),
    "form_logits": ("answer_forms",),
    "top_tokens": ("ranks",),
    "top_logits": ("ranks",),
    "knockout": KNOCKOUT_AXES,
    "patch_residual": ("patches", "patch_layers"),
    "vision_maps": ("vision_blocks", "vision_views", "vision_tokens"),
    "vision_parent": ("vision_views", "vision_tokens"),
    "vision_grid": ("vision_views",),
    "vision_box": ("vision_views",),
    "vision_change": ("change_blocks", "change_cells"),
}
"""Array -> fields that it requires."""
_VIEWS = ("vision_blocks", "vision_views", "vision_tokens", "vision_class_tokens")
_CHANGES = ("change_blocks", "change_cells")
_UNSAID = ("patches", "patch_layers", "softmax_layers", "generated", *_VIEWS, *_CHANGES)
"""Fields of later releases, which a layout leaves out where they are empty: earlier ones refuse unknown fields."""


@dataclass(frozen=True)
class StoreLayout:
    """Settings that determine the shapes of a store's arrays.

    Raises
    ------
    InvalidInputError
        Naming the field, what was expected and what was found.
    """

    examples: int
    layers: int
    """Decoder blocks L: `residual` has L + 1 layers, attention has L."""
    hidden: int
    heads: int
    tokens: int
    """Length of the longest prompt: the padded token axis."""
    positions: tuple[str, ...]
    """Names along the axis `position` of `residual`."""
    spans: tuple[str, ...]
    """Names of token intervals."""
    choices: tuple[str, ...]
    """Answer choices whose logits `answer_logits` holds; () for a store without it, as of imported activations."""
    record: frozenset[str] = frozenset({"residual", "attention_rows"})
    """Optional arrays in the store; `attention_rows` implies `attention_mean`, which is alone only in copies."""
    fusion: str = "mean"
    """How attention_maps are aggregated over heads."""
    block: int = 64
    """Examples per shard block, the unit of writing and of resuming."""
    thumbnail: tuple[int, int] | None = (112, 112)
    """Height and width of thumbnails in pixels; None for no thumbnails."""
    computed_dtype: str = "float32"
    """Dtype in which the model computed; float32 residuals compress accordingly."""
    head_dim: int = 0
    """Dimension of one head's output; required for `head_outputs`."""
    vision_layers: int = 0
    """Blocks of the vision tower; required, with the next two, for `vision_residual`."""
    vision_hidden: int = 0
    vision_positions: tuple[str, ...] = ()
    answer_forms: tuple[str, ...] = ()
    """Answer tokens whose logits `form_logits` holds."""
    ranks: int = 0
    """Number of top next tokens."""
    knockout_modes: tuple[str, ...] = ()
    """Queries that knockouts mask: `final`, `later`."""
    knockout_windows: tuple[str, ...] = ()
    """Windows of decoder blocks as "first-last"; the first one covers all blocks."""
    knockout_targets: tuple[str, ...] = ()
    patches: int = 0
    """Most image tokens of an example in `patch_residual`: its padded axis `patch`."""
    patch_layers: tuple[int, ...] = ()
    """Layers of `patch_residual`."""
    kept_layers: tuple[int, ...] | None = None
    """Layers in a copy of some layers; None for all."""
    softmax_layers: tuple[int, ...] = ()
    """Blocks with softmax attention, whose rows and maps the store holds; empty for all."""
    generated: int = 0
    """Generated tokens of an example, at most; 0: none."""
    vision_blocks: int = 0
    """Blocks of the vision tower whose attention `vision_maps` holds: those before the image tokens are made."""
    vision_views: int = 0
    """Most views of an image in the vision tower: tiles, and the whole image."""
    vision_tokens: int = 0
    """Most tokens of a view."""
    vision_class_tokens: int = 0
    """Tokens of a view before its patches."""
    change_blocks: int = 0
    """Blocks of the vision tower whose changes `vision_change` holds."""
    change_cells: int = 0
    """Most image cells of an example in `vision_change`."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "record", frozenset(self.record))
        for name in ("positions", "spans", "choices", "vision_positions", "answer_forms", *KNOCKOUT_AXES):
            object.__setattr__(self, name, _distinct_names(name, getattr(self, name)))
        for name in ("positions", "spans"):
            if not getattr(self, name):
                raise InvalidInputError(f"{name}: expected at least one name, found none")
        for name in ("examples", "layers", "hidden", "heads", "tokens", "block"):
            _at_least(name, getattr(self, name), 1)
        for name in ("head_dim", "vision_layers", "vision_hidden", "ranks", "patches", "generated", *_VIEWS, *_CHANGES):
            _at_least(name, getattr(self, name), 0)
        check_layout_sizes(vars(self), self.blocks)
        unknown = self.record - set(RECORDABLE)
        if unknown:
            raise InvalidInputError(f"record: expected names among {', '.join(RECORDABLE)}, found {', '.join(sorted(unknown))}")
        for array, names in _NEEDED.items():
            missing = [n for n in names if array in self.record and not getattr(self, n)]
            if missing:
                raise InvalidInputError(f"{' and '.join(missing)}: expected a value because {array} is recorded, found none; set it")
        if self.computed_dtype not in ("float32", "bfloat16", "float16"):
            raise InvalidInputError(f"computed_dtype: expected float32, bfloat16 or float16, found {self.computed_dtype!r}")
        if self.thumbnail is not None:
            object.__setattr__(self, "thumbnail", tuple(self.thumbnail))
            if len(self.thumbnail) != 2 or min(self.thumbnail) < 1 or max(self.thumbnail) > MOST_SIDE:
                raise InvalidInputError(f"thumbnail: expected height and width in pixels, or None, found {self.thumbnail}")
        object.__setattr__(self, "patch_layers", _rising("patch_layers", self.patch_layers, self.layers))
        object.__setattr__(self, "softmax_layers", _rising("softmax_layers", self.softmax_layers, self.layers - 1))
        beyond = [name for name in self.positions if (generated_number(name) or 0) >= self.generated and generated_number(name) is not None]
        if beyond and "residual" in self.record:
            raise InvalidInputError(f"positions: expected at most {self.generated} generated tokens (`generated`), found {beyond[0]}")
        if self.kept_layers is not None:
            object.__setattr__(self, "kept_layers", _rising("kept_layers", self.kept_layers, self.layers, least=1))

    @property
    def blocks(self) -> int:
        """Number of shard blocks."""
        return -(-self.examples // self.block)

    @property
    def residual_layers(self) -> tuple[int, ...]:
        """Layers of `residual`: 0..L, or those in a partial copy."""
        return tuple(range(self.layers + 1)) if self.kept_layers is None else self.kept_layers

    @property
    def attention_layers(self) -> tuple[int, ...]:
        """Layers of attention: 0..L-1, or those in a partial copy, of the blocks with softmax attention."""
        softmax = self.softmax_layers or range(self.layers)
        return tuple(k for k in self.residual_layers if k in softmax)

    def layers_of(self, dim: str) -> tuple[int, ...]:
        """Layer numbers along `dim`, one of LAYER_DIMS."""
        vision = tuple(range(self.vision_layers + 1))
        patches = tuple(k for k in self.patch_layers if k in self.residual_layers)
        return {
            "layer": self.residual_layers, "attention_layer": self.attention_layers, "vision_layer": vision, "patch_layer": patches,
            "vision_block": tuple(range(self.vision_blocks)),
        }[dim]  # fmt: skip

    def positions_of(self, dim: str) -> tuple[str, ...]:
        """Position names along `dim`, one of POSITION_DIMS."""
        return self.positions if dim == "position" else self.vision_positions

    def names_of(self, dim: str) -> tuple[str, ...] | None:
        """Names along the dimension `dim`; None if it has none."""
        return {
            "position": self.positions, "vision_position": self.vision_positions, "span": self.spans, "choice": self.choices,
            "answer_form": self.answer_forms, "knockout_mode": self.knockout_modes, "knockout_window": self.knockout_windows,
            "knockout_target": self.knockout_targets, "bound": ("start", "stop"), "grid_axis": ("rows", "columns"),
            "side": ("left", "top", "right", "bottom"), "changed": CHANGED,
        }.get(dim)  # fmt: skip

    @property
    def sizes(self) -> dict[str, int]:
        """Length of every dimension."""
        height, width = self.thumbnail or (0, 0)
        return {
            "example": self.examples, "block": self.blocks, "layer": len(self.residual_layers),
            "attention_layer": len(self.attention_layers), "position": len(self.positions), "hidden": self.hidden,
            "head": self.heads, "head_dim": self.head_dim, "token": self.tokens, "query": self.tokens, "key": self.tokens,
            "span": len(self.spans), "bound": 2, "grid_axis": 2, "choice": len(self.choices),
            "height": height, "width": width, "rgb": 3, "vision_layer": self.vision_layers + 1,
            "vision_position": len(self.vision_positions), "vision_hidden": self.vision_hidden,
            "answer_form": len(self.answer_forms), "rank": self.ranks, "knockout_mode": len(self.knockout_modes),
            "knockout_window": len(self.knockout_windows), "knockout_target": len(self.knockout_targets),
            "patch": self.patches, "patch_layer": len(self.layers_of("patch_layer")),
            "generated": self.generated, "byte": self.generated * TOKEN_BYTES,
            "vision_block": self.vision_blocks, "view": self.vision_views, "vision_token": self.vision_tokens,
            "vision_query": self.vision_tokens, "vision_key": self.vision_tokens, "side": 4,
            "changed": len(CHANGED), "change_layer": self.change_blocks + 2, "cell": self.change_cells,
        }  # fmt: skip

    def arrays(self) -> tuple[ArraySpec, ...]:
        """Every array of the store, in the order of `arrays.TABLE`."""
        sizes = self.sizes
        return tuple(row.shaped(sizes, self.block) for row in TABLE if self._holds(row))

    def array(self, name: str) -> ArraySpec:
        """The array with a name; NotRecordedError lists the arrays of the store."""
        specs = {s.name: s for s in self.arrays()}
        if name not in specs:
            held = ", ".join(n for n, s in specs.items() if s.by_block)
            raise NotRecordedError(f"expected an array of this store, found {name!r}; it holds {held}")
        return specs[name]

    def block_examples(self, block: int) -> range:
        """Numbers of the examples in a shard block; InvalidInputError if there is no such block."""
        if not 0 <= block < self.blocks:
            raise InvalidInputError(f"expected a block within 0..{self.blocks - 1}, found {block}")
        return range(block * self.block, min((block + 1) * self.block, self.examples))

    def place_text(self, array: str, at: Sequence[int] | NDArray[np.integer], examples: Sequence[Any] | NDArray[Any]) -> str:
        """Describe where a value stands in an array: `layer 12, example 3, head 0`.

        Parameters
        ----------
        array
            Name of the array.
        at
            (axis,) index along every axis of the array; along `example`, the index into `examples`.
        examples
            Numbers or ids of the examples.
        """
        spec = self.array(array)
        words = []
        for dim, k in zip(spec.dims, at, strict=True):
            if dim == "example":
                words.append(f"example {examples[k]}")
            elif dim == spec.layer_dim:
                words.append(f"layer {self.layers_of(dim)[k]}")
            elif dim == spec.position_dim:
                words.append(f"position {self.positions_of(dim)[k]}")
            else:
                words.append(f"{dim} {k}")
        return ", ".join(words)

    def to_json(self) -> dict[str, Any]:
        """All fields as plain JSON; `from_json` reads it."""
        values = asdict(self)
        values["record"] = sorted(self.record)
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items() if v or k not in _UNSAID}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> StoreLayout:
        """Read a layout that `to_json` wrote; absent fields get their defaults.

        Parameters
        ----------
        values
            Fields by name.

        Raises
        ------
        InvalidInputError
            If there are fields that this version does not know, or some are missing, or no store can be so.
        """
        unknown = sorted(set(values) - {f.name for f in fields(cls)})
        if unknown:
            raise InvalidInputError(f"layout: expected fields that this version knows, found {', '.join(unknown)}; upgrade stratascope")
        missing = [f.name for f in fields(cls) if f.default is MISSING and f.name not in values]
        if missing:
            raise InvalidInputError(f"layout: expected {', '.join(missing)}, found no such fields")
        plain = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**cast("dict[str, Any]", plain))

    def subset(self, **changes: Any) -> StoreLayout:
        """A validated copy with some fields changed."""
        return replace(self, **changes)

    def _holds(self, row: ArrayKind) -> bool:
        if row.name == "thumbnail":
            return self.thumbnail is not None
        if row.name in ("answer_logits", "choice") and not self.choices:
            return False
        if row.name in GENERATED:
            return self.generated > 0
        derived = row.name == "attention_mean" and "attention_rows" in self.record
        if row.optional and row.name not in self.record and not derived:
            return False
        if "attention_layer" in row.dims and not self.attention_layers:
            return False
        if ("patch_layer" in row.dims or "patch_residual" in row.beside) and not self.layers_of("patch_layer"):
            return False
        return not row.beside or bool(self.record.intersection(row.beside))


def _distinct_names(field: str, names: Sequence[str]) -> tuple[str, ...]:
    found = tuple(names)
    if isinstance(names, str) or len(set(found)) != len(found) or not all(isinstance(n, str) and n for n in found):
        raise InvalidInputError(f"{field}: expected distinct, non-empty names, found {names!r}")
    return found


def _rising(field: str, numbers: Sequence[int], most: int, least: int = 0) -> tuple[int, ...]:
    """Layer numbers within 0..most, ascending, at least `least` of them."""
    found = tuple(numbers)
    if any(isinstance(k, bool) or not isinstance(k, int | np.integer) for k in found):
        raise InvalidInputError(f"{field}: expected whole numbers, found {found}")
    found = tuple(int(k) for k in found)
    if list(found) != sorted(set(found)) or len(found) < least or (found and (found[0] < 0 or found[-1] > most)):
        raise InvalidInputError(f"{field}: expected rising numbers within 0..{most}, found {found}")
    return found


def _at_least(field: str, value: object, low: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < low:
        raise InvalidInputError(f"{field}: expected a whole number of at least {low}, found {value!r}")
