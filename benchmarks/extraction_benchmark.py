"""Cost of capturing activations: plain forward pass, this package, and common alternatives, in one run.

`python benchmarks/extraction_benchmark.py` prints a markdown table of ratios to the plain forward pass (SDPA, logits of the last token,
nothing captured). All variants of a setting are timed in turn in each round; the table shows the median ratio over rounds. Peak memory is
that of the CPU allocator beyond the model, measured by the profiler in a separate pass.

`--types` measures types of the general family instead (rows + residuals to bare), each with 12 blocks of width 512 of its own architecture.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForImageTextToText, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from stratascope.extract.run.capture import Capture, Pooling, capturing, use_captured_attention
from stratascope.extract.run.gradients import token_gradients
from stratascope.extract.run.logits import directions, logit_parts

VARIANTS = (
    "bare",
    "rows + residuals",
    "+ value norms",
    "+ head outputs",
    "+ logits by head",
    "+ logits by token",
    "+ maps",
    "+ maps of maxima",
    "there and back, one by one",
    "eager, all attentions and hidden states",
)


def build(eager: bool) -> Qwen2_5_VLForConditionalGeneration:
    """12 blocks of width 512, 8 query and 2 key-value heads, random."""
    text = {
        "vocab_size": 1000,
        "hidden_size": 512,
        "intermediate_size": 1408,
        "num_hidden_layers": 12,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "bos_token_id": None,
        "eos_token_id": 1,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [8, 12, 12]},
    }
    vision = {"depth": 2, "hidden_size": 64, "num_heads": 2, "intermediate_size": 128, "out_hidden_size": 512}
    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision)).eval()
    model.set_attn_implementation("eager" if eager else "sdpa")
    return model


def passes(tokens: int, batch: int) -> dict[str, Callable[[], object]]:
    """Variant -> one forward pass."""
    ids = torch.randint(10, 900, (batch, tokens), generator=torch.Generator().manual_seed(1))
    positions = torch.arange(tokens).expand(3, batch, -1)
    bare, ours, eager = build(False), build(False), build(True)
    decoder = use_captured_attention(ours)
    last = torch.full((batch,), tokens - 1)
    pooling = Pooling(last[:, None, None], torch.ones(batch, 1, 1), (1,))

    def captured(*want: str, fusion: str = "mean", parts: bool = False) -> Callable[[], object]:
        def run() -> object:
            toward = directions(ours, decoder, (30, 40)) if "value_logits" in want else {}
            with capturing(decoder, Capture(last, pooling, frozenset(want), fusion, toward=toward)) as capture:
                ours(input_ids=ids, position_ids=positions, use_cache=False, logits_to_keep=1)
            return logit_parts(ours, decoder, capture, (30, 40)) if parts else capture

        return run

    ours.requires_grad_(False)
    head = ours.lm_head.weight

    def there_and_back() -> object:
        def forward() -> object:
            return ours(input_ids=ids[:1], position_ids=positions[:, :1], use_cache=False, logits_to_keep=1)

        return token_gradients(forward, decoder.layers, lambda hidden: decoder.norm(hidden) @ (head[30] - head[40]))

    common = {"input_ids": ids, "position_ids": positions, "use_cache": False, "logits_to_keep": 1}
    return {
        VARIANTS[0]: lambda: bare(**common),
        VARIANTS[1]: captured(),
        VARIANTS[2]: captured("value_norms"),
        VARIANTS[3]: captured("head_outputs"),
        VARIANTS[4]: captured("head_outputs", parts=True),
        VARIANTS[5]: captured("head_outputs", "value_logits", parts=True),
        VARIANTS[6]: captured("maps"),
        VARIANTS[7]: captured("maps", fusion="max"),
        VARIANTS[8]: lambda: [there_and_back() for _ in range(batch)],
        VARIANTS[9]: lambda: eager(**common, output_attentions=True, output_hidden_states=True),
    }


def type_passes(name: str, tokens: int, batch: int) -> dict[str, Callable[[], object]]:
    """Variant -> one forward pass of a type of the general family, without images."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from tests.extract.general import tiny
    from tests.extract.general.types import TYPES

    tiny.SMALL.update(num_hidden_layers=12, hidden_size=512, intermediate_size=1408, num_attention_heads=8, head_dim=64)
    tiny.SMALL.update(sliding_window=256, moe_intermediate_size=704, out_hidden_size=512)
    config = tiny.config_of(name, TYPES[name])
    rope = config.get_text_config().rope_parameters
    if "mrope_section" in rope:
        half = int(64 * rope.get("partial_rotary_factor", 1)) // 2
        rope["mrope_section"] = [half - 2 * (half * 3 // 8), half * 3 // 8, half * 3 // 8]
    bare, ours = (AutoModelForImageTextToText.from_config(config, attn_implementation="sdpa").eval() for _ in range(2))
    ours.load_state_dict(bare.state_dict())
    ids = torch.randint(100, 900, (batch, tokens), generator=torch.Generator().manual_seed(1))
    decoder = use_captured_attention(ours)
    last = torch.full((batch,), tokens - 1)
    pooling = Pooling(last[:, None, None], torch.ones(batch, 1, 1), (1,))
    common = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False, "logits_to_keep": 1}

    def captured() -> object:
        with capturing(decoder, Capture(last, pooling, frozenset(), "mean")) as capture:
            ours(**common)
        return capture

    return {VARIANTS[0]: lambda: bare(**common), VARIANTS[1]: captured}


def peak_bytes(run: Callable[[], object]) -> int:
    """The most that was allocated at once during a pass, beyond what was there before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        kept = run()
    del kept
    level = peak = 0
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        level += event.nbytes()
        peak = max(peak, level)
    return peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[400, 1500])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--types", nargs="+", default=[], help="types of the general family, such as mistral3")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.set_grad_enabled(False)
    names = VARIANTS[:2] if given.types else VARIANTS
    print("| tokens, batch | " + " | ".join(names) + " |")
    print("|---" * (len(names) + 1) + "|")
    for kind in given.types or [""]:
        for tokens in given.tokens:
            for batch in given.batch:
                runs = type_passes(kind, tokens, batch) if kind else passes(tokens, batch)
                ratios = side_by_side(runs, given.rounds)
                peaks = {name: peak_bytes(run) for name, run in runs.items()}
                cells = [f"{statistics.median(ratios[name]):.2f}, {peaks[name] / 1e6:.0f} MB" for name in runs]
                print(f"| {kind} {tokens}, {batch} | ".replace("|  ", "| ") + " | ".join(cells) + " |", flush=True)


def side_by_side(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Variant -> CPU time over that of the bare pass, of each round."""
    for run in runs.values():
        run()
    ratios: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        seconds = {}
        for name, run in runs.items():
            start = time.process_time()
            run()
            seconds[name] = time.process_time() - start
        for name in runs:
            ratios[name].append(seconds[name] / seconds["bare"])
    return ratios


if __name__ == "__main__":
    main()
