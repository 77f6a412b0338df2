"""Train the built-in model: `python -m training.train --out FOLDER`; resumable, seeded, one thread, no GPU.

Three stages (see training/README.md): the vision tower on targets of each cell; the decoder on cached image features, with guided
attention and auxiliary probes that fade out; both together on the answers only.
"""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path

import torch

from training.packing import Packing
from training.question_stage import question_stage
from training.run import Run, Settings
from training.vision_stage import align, train_vision


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of checkpoint, log and, in the end, the weights")
    for field in fields(Settings):
        parser.add_argument("--" + field.name.replace("_", "-"), type=type(field.default), default=field.default)
    given = vars(parser.parse_args())
    out = given.pop("out")
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    run = Run(out, Settings(**given))
    packing = Packing(run.tokenizer)
    if run.stage == 0:
        train_vision(run)
    if run.stage == 1:
        if run.step == 0:
            align(run)
        question_stage(run, packing, joint=False)
    if run.stage == 2:
        question_stage(run, packing, joint=True)


if __name__ == "__main__":
    main()
