"""Cost of interventions at the final token, in bare forward passes of an example, beside plain hooks and nnsight.

`python benchmarks/intervention_benchmark.py` prints a markdown table. Variants: 3 kinds x 5 factors and 20 random directions at each
layer, and those of the default settings of `intervene`, whose layer 0 of the final token changes nothing. Plain hooks and nnsight run one
pass a variant; the time of a few is multiplied by their number. The model is the random one of `extraction_benchmark.py`, the prompt has
400 tokens; all are timed in the same run, by processor time.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from extraction_benchmark import build

from stratascope.causal import InterventionSettings
from stratascope.causal.design import EditStack
from stratascope.causal.erasure import Erasure
from stratascope.extract.run.capture import use_captured_attention
from stratascope.extract.run.intervention import InterventionRunner, Tracked, pass_tokens
from stratascope.extract.run.knockout import tracing
from stratascope.extract.run.logits import Unembedding
from stratascope.extract.run.residual_edits import DeviceEdits, Interventions

LENGTH, BLOCKS, KINDS, FACTORS, RANDOM = 400, 12, 3, 5, 20
SLOTS = KINDS * FACTORS + RANDOM
DEFAULT = len(InterventionSettings().slots())
PAIR = (30, 40)
SAMPLE = 6
"""Number of passes timed for plain hooks and for nnsight."""


class Bare:
    """What the runner needs of a `CaptureModel`."""

    def __init__(self, model: Any, decoder: Any) -> None:
        self.model, self.decoder, self.unembedding = model, decoder, Unembedding(model, decoder)


def edits(d: int, slots: int) -> EditStack:
    rng = np.random.default_rng(0)

    def one() -> tuple[Erasure, np.ndarray]:
        write, read = (rng.normal(size=(d, 1)) / d**0.5 for _ in range(2))
        return Erasure(write, read, rng.normal(size=d)), 0.1 * rng.normal(size=d)

    return EditStack.of([one() for _ in range(slots)])


def seconds(run: Callable[[], object], rounds: int) -> float:
    """Median processor time."""
    taken = []
    for _ in range(rounds):
        start = time.process_time()
        run()
        taken.append(time.process_time() - start)
    return statistics.median(taken)


def hooked(model: Any, decoder: Any, inputs: dict[str, Any], stack: DeviceEdits, layer: int) -> torch.Tensor:
    """One variant by a plain hook on a whole pass, with the logits of all tokens of the vocabulary."""

    def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        hidden = (args[0] if args else kwargs["hidden_states"]).clone()
        hidden[:, -1] = stack(hidden[:, -1:], slice(0, 1))[:, 0]
        return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})

    handle = decoder.layers[layer].register_forward_pre_hook(hook, with_kwargs=True)
    try:
        return model(**inputs).logits[:, -1]
    finally:
        handle.remove()


def traced(model: Any, inputs: dict[str, Any], stack: DeviceEdits) -> Callable[[int], object] | None:
    """The same by nnsight; None if it is not installed or does not run this model."""
    try:
        from nnsight import NNsight
    except ImportError as error:
        print(f"nnsight is left out: {error}")
        return None
    wrapped = NNsight(model)

    def run(layer: int) -> object:
        with wrapped.trace(**inputs):
            block = wrapped.model.language_model.layers[layer]
            block.input[:, -1] = stack(block.input[:, -1:], slice(0, 1))[:, 0]
            kept: Any = wrapped.lm_head.output.save()  # the name that nnsight fills
        return kept

    try:
        run(1)
    except Exception as error:  # whatever version is there
        print(f"nnsight is left out: {type(error).__name__} {str(error).splitlines()[-1:]}")
        return None
    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    ids = torch.randint(10, 900, (1, LENGTH), generator=torch.Generator().manual_seed(1))
    inputs = {"input_ids": ids, "position_ids": torch.arange(LENGTH).expand(3, 1, -1), "use_cache": False, "logits_to_keep": 1}
    bare, ours = build(False), build(False)
    decoder = use_captured_attention(ours)
    hidden = decoder.config.hidden_size
    windows = tuple((layer, layer) for layer in range(BLOCKS + 1))
    runner = InterventionRunner(Bare(ours, decoder))  # type: ignore[arg-type]
    stack, default = (DeviceEdits.of(edits(hidden, slots), torch.device("cpu")) for slots in (SLOTS, DEFAULT))
    nothing = DeviceEdits(*(torch.zeros_like(part) for part in (default.write, default.read, default.centre, default.shift)))
    designs = {
        "35 variants a layer": Interventions((("final",),), windows, {("final", first): stack for first, _ in windows}),
        "default settings": Interventions(
            (("final",),), windows, {("final", first): default if first else nothing for first, _ in windows}
        ),
    }

    def all_variants(name: str) -> object:
        with torch.inference_mode(), tracing(decoder.layers) as trace:
            ours(**inputs)
        places, most = {"final": np.array([LENGTH - 1])}, pass_tokens(8192, LENGTH)
        return runner.measure(Tracked(trace, None), PAIR, places, designs[name], None, 1e-2, tokens_of_pass=most)

    plain = seconds(lambda: bare(**inputs), 3 * given.rounds)
    count = SLOTS * len(windows)
    rows = [(f"stratascope, {name}", seconds(lambda name=name: all_variants(name), given.rounds) / plain) for name in designs]
    bare_decoder = bare.model.language_model
    layers = np.linspace(0, BLOCKS - 1, SAMPLE).round().astype(int)
    each = statistics.mean(
        seconds(lambda layer=layer: hooked(bare, bare_decoder, inputs, stack, int(layer)), given.rounds) for layer in layers
    )
    rows.append(("plain hooks", count * each / plain))
    if (run := traced(bare, inputs, stack)) is not None:
        each = statistics.mean(seconds(lambda layer=layer: run(int(layer)), given.rounds) for layer in layers)
        rows.append(("nnsight", count * each / plain))
    planned = [
        1 + (BLOCKS * (BLOCKS + 1) / 2 - still) * (slots + 1) / (LENGTH * BLOCKS) for slots, still in ((SLOTS, 0), (DEFAULT, BLOCKS))
    ]
    print(f"{count} variants of an example, {LENGTH} tokens, {BLOCKS} blocks; by the plan {planned[0]:.1f} bare passes")
    print(f"{DEFAULT * len(windows)} of the default settings; by the plan {planned[1]:.1f}\n")
    print("| | bare passes an example | times the first |\n|---|---|---|")
    for name, passes in rows:
        print(f"| {name} | {passes:.1f} | {passes / rows[0][1]:.0f} |")


if __name__ == "__main__":
    main()
