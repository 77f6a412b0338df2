"""Cost of knockouts: reruns from the first block and token that change, against full passes with an edited mask.

`python benchmarks/knockout_benchmark.py` prints a markdown table, in passes of one example (SDPA, nothing captured) timed in the same
run: the reruns of all targets, and the same number of full passes, from the time of one. The model is the random one of
`extraction_benchmark.py`; the prompt has an image of 16 x 20 cells and the spans of a VSR question.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from extraction_benchmark import build

from stratascope.extract.plan.knockout_plan import Knockouts, computed_tokens, layer_windows, masked_tokens
from stratascope.extract.plan.token_layout import TokenLayout
from stratascope.extract.run.capture import use_captured_attention
from stratascope.extract.run.knockout import Trace, knockout_effects, tracing

ROWS, COLUMNS, BEFORE, AFTER, BLOCKS = 16, 20, 15, 65, 12


def prompt() -> tuple[TokenLayout, dict[str, np.ndarray]]:
    """Layout of a prompt of 400 tokens, and its targets."""
    length, image = BEFORE + ROWS * COLUMNS + AFTER, (BEFORE, BEFORE + ROWS * COLUMNS)
    words = image[1] + 10
    spans = {"system": (3, 10), "image": image, "caption": (words, words + 12)}
    spans |= {"subject": (words + 1, words + 3), "relation": (words + 4, words + 8), "object": (words + 9, words + 11)}
    layout = TokenLayout(np.zeros(length, np.int32), spans, (ROWS, COLUMNS), (0, 0, COLUMNS, ROWS), ())
    boxes = {"subject_box": BEFORE + np.arange(60, 64), "object_box": BEFORE + np.arange(200, 206)}
    return layout, masked_tokens(layout, boxes)


def seconds(run: Callable[[], object], rounds: int) -> float:
    """Median processor time."""
    taken = []
    for _ in range(rounds):
        start = time.process_time()
        run()
        taken.append(time.process_time() - start)
    return statistics.median(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-tokens", type=int, default=8192)
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    layout, targets = prompt()
    length = len(layout.ids)
    ids = torch.randint(10, 900, (1, length), generator=torch.Generator().manual_seed(1))
    inputs = {"input_ids": ids, "position_ids": torch.arange(length).expand(3, 1, -1), "use_cache": False, "logits_to_keep": 1}
    bare, ours = build(False), build(False)
    decoder = use_captured_attention(ours)

    def difference(hidden: torch.Tensor) -> torch.Tensor:
        logits = ours.lm_head(decoder.norm(hidden))
        return logits[:, 30] - logits[:, 40]

    def measured(knockouts: Knockouts) -> Callable[[], object]:
        def run() -> object:
            with tracing(decoder.layers) as trace:
                ours(**inputs)
            assert isinstance(trace, Trace)
            return knockout_effects(decoder.layers, trace, targets, knockouts, difference, given.batch_tokens)

        return run

    plain = seconds(lambda: bare(**inputs), 3 * given.rounds)
    print("| mode | windows | variants | passes, measured | passes, by the plan | passes of whole prompts |\n|---|---|---|---|---|---|")
    for modes, width in ((("final",), 0), (("final",), None), (("later",), 0), (("later",), None)):
        knockouts = Knockouts(np.ones(1, bool), modes, layer_windows(BLOCKS, width), tuple(targets))
        variants = len(modes) * len(knockouts.windows) * len(targets)
        planned = computed_tokens(knockouts, BLOCKS, length, targets) / length / BLOCKS
        found = seconds(measured(knockouts), given.rounds) / plain
        print(f"| {modes[0]} | {len(knockouts.windows)} | {variants} | {found:.1f} | {planned:.1f} | {variants + 1} |", flush=True)


if __name__ == "__main__":
    main()
