"""Attribution methods: their scores of tokens and groups of tokens of one prompt.

All methods score the same groups of tokens, so that their scores can be compared. The attention of a group is the sum over its tokens, its
flow the maximum flow into all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from stratascope.analysis.attention_maps import Window
from stratascope.analysis.attribution import carried_back
from stratascope.analysis.flow import flow, span_flow
from stratascope.analysis.rollout import rollout
from stratascope.analysis.weighting import weighted_rows
from stratascope.errors import InvalidInputError, NotRecordedError
from stratascope.store import ActivationStore

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Method:
    """An attribution method: how strongly the final token depends on other tokens."""

    name: str
    label: str
    needs: tuple[str, ...]
    """Arrays that it needs in a store."""
    signed: bool = False
    """Whether scores have a sign: above 0 in favour of the first choice."""
    role: Literal["method", "reference", "baseline"] = "method"
    """A reference estimates the knockout effect itself: its agreement with knockouts is no independent evidence."""
    blocks: Literal["window", "all", "none"] = "window"
    """Blocks that the scores are of: those of a window, all whatever the window, or none."""


_ROWS, _MAPS = ("attention_rows",), ("attention_maps",)
_PARTS = ("value_logits", "mlp_logits", "embedding_logits")
METHODS = (
    Method("attention", "raw attention, mean over heads", _ROWS),
    Method("attention_head", "raw attention, maximum over heads", _ROWS),
    Method("norm", "norm-based attention, mean over heads", (*_ROWS, "value_norms")),
    Method("attribution", "token attribution", (*_ROWS, "value_logits"), signed=True),
    Method("carried", "token attribution with rollout", (*_ROWS, *_PARTS, *_MAPS), signed=True),
    Method("estimate", "estimated knockout effect", ("hiding_estimate",), signed=True, role="reference", blocks="all"),
    Method("gradient", "gradient times input", ("gradient_input",), signed=True, blocks="all"),
    Method("gradient_rollout", "gradient rollout", ("gradient_rollout",), blocks="all"),
    Method("rollout", "rollout, all blocks", _MAPS, blocks="all"),
    Method("rollout_window", "rollout, few blocks", _MAPS),
    Method("flow", "flow, all blocks", _MAPS, blocks="all"),
    Method("flow_window", "flow, few blocks", _MAPS),
    Method("position", "token position, earliest first", (), role="baseline", blocks="none"),
    Method("random", "random scores", (), role="baseline", blocks="none"),
)
"""In the order of a report; the last two are baselines."""
BASELINES = ("position", "random")
RANDOM_DRAWS = 20
"""Draws of the random baseline."""
COMES_WITH = {"mlp_logits": "head_logits", "embedding_logits": "head_logits", "gradient_input": "hiding_estimate"}
"""Array -> array whose name in `--record` also records it."""


def methods_of(store: ActivationStore, names: Sequence[str] | None = None) -> tuple[tuple[Method, ...], dict[str, str]]:
    """Methods that the arrays of a store allow, and for each other method the arrays to record.

    Parameters
    ----------
    names
        Methods to choose; all by default.

    Raises
    ------
    InvalidInputError
        For an unknown name.
    NotRecordedError
        If the store lacks an array of a method in `names`.
    """
    known = {method.name: method for method in METHODS}
    unknown = sorted(set(names or ()) - set(known))
    if unknown:
        raise InvalidInputError(f"expected methods of {', '.join(known)}, found {', '.join(unknown)}")
    held = {spec.name for spec in store.layout.arrays()}
    if store.layout.attention_layers != tuple(range(store.layout.layers)):
        held -= {"attention_maps"}  # rollout and flow need every block
    if 0 not in store.layout.residual_layers:
        held -= {"gradient_rollout"}  # a copy without the relevance of the inputs
    chosen = METHODS if names is None else tuple(known[name] for name in names)
    lacking = {m.name: ",".join(sorted({COMES_WITH.get(a, a) for a in set(m.needs) - held})) for m in chosen if set(m.needs) - held}
    if lacking and names is not None:
        name, arrays = next(iter(lacking.items()))
        raise NotRecordedError(
            f"expected {arrays} in the store for the method {name!r}, found none; extract again with {arrays} in `record`"
        )
    return tuple(m for m in chosen if m.name not in lacking), lacking


def group_scores(
    store: ActivationStore,
    example: int,
    members: NDArray[np.bool_],
    methods: Sequence[Method],
    *,
    windows: Sequence[Window],
    few: Sequence[Window],
    seed: int = 0,
) -> dict[str, Floats]:
    """Score of each group of tokens by each method.

    Parameters
    ----------
    members
        (group, token) over the tokens of the prompt; a group may be empty.
    windows
        Half-open ranges of blocks.
    few
        For each window, the blocks of `rollout_window` and `flow_window`.
    seed
        Seed of the random scores, with the number of the example.

    Returns
    -------
    dict
        Name -> (window, group) float64; NaN for an empty group.
    """
    wanted = {method.name for method in methods}
    groups, tokens = members.shape
    known = members.any(1)
    out: dict[str, Floats] = {}
    inside = members.T.astype(np.float64)
    for weighing, name in (("attention", "attention"), ("norm", "norm"), ("attribution", "attribution")):
        if not wanted & {name, f"{name}_head"}:
            continue
        rows = weighted_rows(store, np.array([example]), weighing)[0, ..., :tokens]
        mass = rows @ inside  # (layer, head, group)
        parts = [mass[slice(*window)] for window in windows]
        if name in wanted:
            # attributions add up over blocks; attention is a mean, comparable between windows
            out[name] = np.stack([part.sum((0, 1)) if name == "attribution" else part.mean((0, 1)) for part in parts])
        if f"{name}_head" in wanted:
            out[f"{name}_head"] = np.stack([part.max((0, 1)) for part in parts])
    for name, array in (("estimate", "hiding_estimate"), ("gradient", "gradient_input")):
        if name in wanted:
            # a knockout removes the contribution of the tokens
            values = store.read(array, examples=example)[:tokens].astype(np.float64) * (-1 if name == "estimate" else 1)
            out[name] = np.broadcast_to(values @ inside, (len(windows), groups))
    if "gradient_rollout" in wanted:
        values = store.read("gradient_rollout", layer=0, examples=example)[:tokens].astype(np.float64)
        out["gradient_rollout"] = np.broadcast_to(values @ inside, (len(windows), groups))
    if wanted & {"carried", "rollout", "rollout_window", "flow", "flow_window"}:
        maps = store.maps(example)
        if "carried" in wanted:
            parts = weighted_rows(store, np.array([example]), "attribution")[0, ..., :tokens].sum(1, dtype=np.float64)
            rest, embedding = (store.read(name, examples=example) for name in _PARTS[1:])
            kept = {window: carried_back(maps, parts, rest, float(embedding), window=window) @ inside for window in dict.fromkeys(windows)}
            out["carried"] = np.stack([kept[window] for window in windows])
        whole = (0, len(maps))
        for name, through in (("rollout", [whole] * len(windows)), ("rollout_window", few)):
            if name in wanted:
                kept = {window: rollout(maps, window=window)[0] @ inside for window in dict.fromkeys(through)}
                out[name] = np.stack([kept[window] for window in through])
        for name, through in (("flow", [whole] * len(windows)), ("flow_window", few)):
            if name in wanted:
                kept = {window: _flows(maps, members, window) for window in dict.fromkeys(through)}
                out[name] = np.stack([kept[window] for window in through])
    shape = (len(windows), groups)
    if "position" in wanted:
        middle = (members * np.arange(tokens)).sum(1) / np.maximum(members.sum(1), 1)
        out["position"] = np.broadcast_to(-middle, shape)
    if "random" in wanted:
        out["random"] = random_scores(shape, example=example, draws=1, seed=seed)[0]
    return {name: np.where(known, out[name], np.nan) for name in (m.name for m in methods)}


def random_scores(shape: tuple[int, ...], *, example: int, draws: int = RANDOM_DRAWS, seed: int = 0) -> Floats:
    """(draw, *shape) uniform random scores of one example; more draws begin with the same ones."""
    return np.random.default_rng([seed, example]).random((draws, *shape))


def token_scores(
    store: ActivationStore, example: int, methods: Sequence[Method], *, window: Window, few: Window, seed: int = 0
) -> dict[str, Floats]:
    """Scores of single tokens, as `group_scores`: name -> (token,)."""
    alone = np.eye(int(store.n_tokens[example]), dtype=bool)
    found = group_scores(store, example, alone, methods, windows=[window], few=[few], seed=seed)
    return {name: values[0] for name, values in found.items()}


def few_blocks(layers: int) -> Window:
    """Window of rollout and flow in figures: the top half of the blocks, eight at most."""
    return layers - min(8, max(1, layers // 2)), layers


def _flows(maps: NDArray[Any], members: NDArray[np.bool_], window: Window) -> Floats:
    """(group,) flow into each group."""
    single = members.sum(1) <= 1
    out = np.zeros(len(members))
    if single.any():
        tokens = members[single].argmax(1)
        out[single] = flow(maps, window=window, tokens=sorted(set(tokens.tolist()))).value[tokens]
    groups = {str(k): np.flatnonzero(members[k]).tolist() for k in np.flatnonzero(~single)}
    out[~single] = span_flow(maps, groups, window=window)["value"].to_numpy()
    return out
