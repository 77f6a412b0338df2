"""Planning a million captions beside the loop a user would write: chat template, tokenizer and spans, row by row.

    python benchmarks/plan_benchmark.py --rows 1000000

Rows are VSR's form; with `--distinct`, the default, nearly every caption occurs once. The loop reads the same rows, renders each
conversation with the tokenizer's own chat template, expands the image token, tokenises with transformers and reads the four spans from
the tokens' character offsets. It is timed on `--loop-rows` and scaled up in proportion; the spans of both are compared on these rows. Times
are processor seconds of the process (user and system, all threads) and wall seconds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import resource
import tempfile
import time
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from stratascope.extract import ExtractionSettings, plan_extraction
from stratascope.extract.model_files import resolve_model
from stratascope.extract.plan.plan_summary import plan_summary

THINGS = (
    "dog cat horse sheep cow bird bear zebra giraffe elephant car bus train truck boat bench chair couch bed table tv laptop mouse "
    "keyboard phone book clock vase scissors toaster oven sink fridge bottle cup fork knife spoon bowl banana apple orange pizza cake "
    "backpack umbrella handbag tie suitcase kite"
).split()
KINDS = (
    "red blue green yellow black white small large old new wooden broken wet dry open closed striped round flat tall short plain shiny "
    "dusty empty full heavy light narrow wide"
).split()
RELATIONS = ("on", "under", "left of", "right of", "in front of", "behind", "next to", "above", "below", "inside")
SPANS = ("caption", "subject", "relation", "object")
IMAGE_SIZE = (168, 112)


def write_rows(path: Path, rows: int, distinct: bool, seed: int = 0) -> None:
    """Rows of captions such as 'The red dog is left of the old bench.'."""
    draw = random.Random(seed)
    things = [" ".join(pair) for pair in itertools.product(KINDS, THINGS)] if distinct else THINGS[:20]
    with path.open("w", encoding="utf-8") as file:
        for k in range(rows):
            relation, (subject, other) = draw.choice(RELATIONS), draw.sample(things, 2)
            caption, image = f"The {subject} is {relation} the {other}.", f"{k % 100_000:012d}.jpg"
            row = {"image": image, "caption": caption, "label": k % 2, "relation": relation, "subj": subject, "obj": other}
            file.write(json.dumps(row) + "\n")


def loop(path: Path, tokenizer: PreTrainedTokenizerBase, question: str, cells: int, rows: int) -> list[list[tuple[int, int]]]:
    """(row, span) token intervals, as a user would compute them."""
    found = []
    with path.open(encoding="utf-8") as file:
        for line in itertools.islice(file, rows):
            row = json.loads(line)
            asked = question.format(caption=row["caption"])
            content = [{"type": "image"}, {"type": "text", "text": asked}]
            text = tokenizer.apply_chat_template([{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True)
            text = text.replace("<|image_pad|>", "<|image_pad|>" * cells)
            encoded = tokenizer(text, return_offsets_mapping=True)
            start = text.index(row["caption"])
            spans = []
            for part in (row["caption"], row["subj"], row["relation"], row["obj"]):
                a = text.index(part, start)
                start = a if part == row["caption"] else a + len(part)
                inside = [k for k, (left, right) in enumerate(encoded["offset_mapping"]) if left < a + len(part) and right > a]
                spans.append((inside[0], inside[-1] + 1))
            found.append(spans)
    return found


def seconds() -> tuple[float, float]:
    """Processor and wall seconds up to now."""
    return time.process_time(), time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--loop-rows", type=int, default=10_000)
    parser.add_argument("--model", default="demo", help="of Qwen's family: the loop writes its image token")
    parser.add_argument("--distinct", action=argparse.BooleanOptionalAction, default=True)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        write_rows(path, given.rows, given.distinct)
        begin = seconds()
        plan = plan_extraction(ExtractionSettings(given.model, (path,), None, image_size=IMAGE_SIZE, device="cpu"))
        planned = seconds()
        summary = plan_summary(plan)
        done = seconds()
        count = min(given.loop_rows, given.rows)
        cells = int(plan.layouts[0].grid[0] * plan.layouts[0].grid[1])
        question = plan.prompt.text
        tokenizer = AutoTokenizer.from_pretrained(resolve_model(given.model).folder)
        loop(path, tokenizer, question, cells, 10)  # first uses are nobody's cost
        started = seconds()
        expected = loop(path, tokenizer, question, cells, count)
        looped = seconds()
    for k, spans in enumerate(expected):
        if [plan.layouts[k].spans[name] for name in SPANS] != spans:
            raise SystemExit(f"row {k}: the plan has {plan.layouts[k].spans}, the loop {dict(zip(SPANS, spans, strict=True))}")
    own = [b - a for a, b in zip(begin, done, strict=True)]
    theirs = [(b - a) * given.rows / count for a, b in zip(started, looped, strict=True)]
    print(next(line for line in summary.splitlines() if line.startswith("tokens")))
    print(f"distinct captions {len({example.caption for example in plan.examples}):,} of {given.rows:,}; spans equal in {count:,} rows")
    print("| | CPU s | wall s |\n|---|---|---|")
    print(f"| plan | {own[0]:.1f} | {own[1]:.1f} |")
    print(f"| of it the summary | {done[0] - planned[0]:.1f} | {done[1] - planned[1]:.1f} |")
    print(f"| loop, scaled from {count:,} rows | {theirs[0]:.1f} | {theirs[1]:.1f} |")
    print(f"| loop / plan | {theirs[0] / own[0]:.2f} | {theirs[1] / own[1]:.2f} |")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB")


if __name__ == "__main__":
    main()
