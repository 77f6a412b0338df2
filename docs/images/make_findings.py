"""Draw the figures of docs/findings-demo.md and docs/study.md: `python docs/images/make_findings.py DEMO [FIGURE ...]`.

DEMO is what `stratascope demo --out DEMO` leaves. The pages quote `--scenes 2048`; a smaller demo gives the same figures of fewer
scenes, and of fewer relations: those with 20 true captions.
Stores and results are written to DEMO/findings and used again by the next call.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
SCENES = "--examples {demo}/scenes/scenes.jsonl --images {demo}/scenes/images --boxes {demo}/scenes/instances.json"
EXTRACT = f"extract --model demo {SCENES}"
FIGURES = {
    "findings-truth.png": (
        "probe {demo}/original.zarr --tasks truth --controls shuffled --baseline blank={demo}/blank.zarr -o {work}/truth",
        "figure {work}/truth/probe-truth.png",
    ),
    "findings-heads.png": (
        f"{EXTRACT} --limit 1024 --record head_outputs --out {{work}}/heads.zarr",
        "probe {work}/heads.zarr --tasks truth --array head_outputs -o {work}/heads",
        "figure {work}/heads/heads-truth.png",
    ),
    "findings-relation.png": (
        f"{EXTRACT} --prompt where --record residual --out {{work}}/where.zarr",
        f"{EXTRACT} --prompt where --record residual --condition blank --out {{work}}/where-blank.zarr",
        "probe {work}/where.zarr --tasks relation --only label=1 --positions final,subject,object,image --controls shuffled "
        "--baseline blank={work}/where-blank.zarr -o {work}/relation",
        "figure {work}/relation/probe-relation-label-1.png",
    ),
    "findings-pointing.png": (
        f"{EXTRACT} --limit 512 --record attention_rows,attention_maps,value_norms,head_logits,value_logits,hiding_estimate,"
        "gradient_rollout,knockout --knockouts 512 --out {work}/pointing.zarr",
        "pointing {work}/pointing.zarr --boxes {demo}/scenes/instances.json -o {work}/pointing",
        "figure {work}/pointing/pointing.png",
    ),
    "findings-overlap.png": (
        f"{EXTRACT} --limit 1024 --max-pixels 20000 --record attention_rows --out {{work}}/coarse.zarr",
        "overlap {work}/coarse.zarr -o {work}/overlap",
        "figure {work}/overlap/overlap.png",
    ),
    "study-relation.png": (
        f"{EXTRACT} --for relation --limit 512 --out {{work}}/study",
        "study --preset relation {work}/study",
        "figure {work}/study/results/study.png",
    ),
}
"""Figure -> the commands that make it; the last one names the file, which is copied."""


def main() -> None:
    """Run the commands of each figure and copy it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("demo", type=Path)
    parser.add_argument("figures", nargs="*", metavar="FIGURE", help=f"default: {', '.join(FIGURES)}")
    parser.add_argument("--out", type=Path, default=HERE)
    given = parser.parse_intermixed_args()
    if unknown := set(given.figures) - set(FIGURES):
        parser.error(f"expected figures of {', '.join(FIGURES)}, found {', '.join(sorted(unknown))}")
    work = given.demo / "findings"
    work.mkdir(exist_ok=True)
    for name in given.figures or FIGURES:
        *commands, drawn = (line.format(demo=given.demo, work=work) for line in FIGURES[name])
        for line in commands:
            print(f"stratascope {line}", flush=True)
            subprocess.run([sys.executable, "-m", "stratascope", *line.split()], check=True)
        shutil.copy(drawn.removeprefix("figure "), given.out / name)


if __name__ == "__main__":
    main()
