"""Export a finished run as the built-in model: `python -m training.export_model RUN FOLDER`.

Saves float16 weights, configuration, tokenizer and processor for `from_pretrained`, then measures the saved model with
stock transformers on unseen scenes: original, with blank images, and with images exchanged between scenes. Measurements, log and curve are
written to the folder of this file.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig

from stratascope.datasets.scenes import render, sample_scene, sample_statement
from stratascope.extract.plan.images import apply_condition
from stratascope.figures.style import COLOURS, GREY
from stratascope.report import new_figure, paper_style, save_figure
from training.batched_vision import BatchedVision, patchify
from training.packing import verdict_question
from training.tiny_model import build_model, build_processor, build_tokenizer

SEED = 20_000
"""Seed of the test scenes; training uses other seeds."""


def save(checkpoint: Path, folder: Path) -> None:
    tokenizer = build_tokenizer()
    model = build_model(tokenizer)
    model.load_state_dict(torch.load(checkpoint, weights_only=True)["model"])
    model.generation_config = GenerationConfig(
        max_new_tokens=1, do_sample=False, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    check_batched_vision(model)
    model.half().save_pretrained(folder)
    build_processor(tokenizer).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["window_size"] = model.config.vision_config.window_size  # written even where it is a version's default
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


@torch.no_grad()
def check_batched_vision(model: torch.nn.Module) -> None:
    """Check that the trained forward pass equals that of stock transformers."""
    rng = np.random.default_rng(0)
    images = np.stack([render(sample_scene(rng), rng) for _ in range(4)])
    vision = BatchedVision(model.model.visual)
    patches = torch.from_numpy(patchify(images))
    single = (patches.float() - vision.mean) * vision.scale
    doubled = single.reshape(-1, 3, 1, 196).expand(-1, 3, 2, 196).reshape(-1, 1176)
    stock = model.model.visual(doubled, torch.tensor([[1, 12, 12]] * 4)).pooler_output
    gap = (stock.reshape(4, 36, -1) - vision(patches)).abs().max().item()
    if gap > 1e-4:
        raise SystemExit(f"expected the batched vision tower to equal the stock one, found them {gap:.2g} apart")


@torch.no_grad()
def measure(folder: Path, count: int = 2000) -> dict[str, float]:
    """Accuracy of the saved model: True against False at the final token."""
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    words = [processor.tokenizer.encode(w, add_special_tokens=False)[0] for w in ("False", "True")]
    rng = np.random.default_rng(SEED)
    scenes = [sample_scene(rng) for _ in range(count)]
    images = [Image.fromarray(render(things, rng)) for things in scenes]
    asked = [sample_statement(things, rng) for things in scenes]
    right: dict[str, list[bool]] = defaultdict(list)
    for start in range(0, count, 50):
        part = range(start, min(start + 50, count))
        texts = [
            processor.apply_chat_template(
                [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": verdict_question(asked[k], scenes[k])}]}],
                add_generation_prompt=True,
            )
            for k in part
        ]
        shown = {
            "verdict": [images[k] for k in part],
            "blank": [apply_condition(images[k], "blank") for k in part],
            "exchanged": [images[(k + 1) % count] for k in part],
        }
        for name, pictures in shown.items():
            inputs = processor(text=texts, images=pictures, padding=True, padding_side="left", return_tensors="pt")
            answers = model(**inputs, logits_to_keep=1).logits[:, -1, words].argmax(-1).tolist()
            for k, answer in zip(part, answers, strict=True):
                right[name].append(bool(answer) == asked[k].label)
                if name == "verdict":
                    right[asked[k].relation].append(right[name][-1])
    return {name: round(float(np.mean(values)), 4) for name, values in right.items()}


def draw_curve(log: list[dict[str, Any]], path: Path) -> None:
    """Plot accuracy on unseen scenes against processor time, by stage."""
    figure, (ax,) = new_figure(1, width=5.0, height=2.8)
    with paper_style():
        series = {
            "kind of thing in its cell": [(r["cpu_s"], r["kind"]) for r in log if "kind" in r],
            "where is it? (relation named)": [(r["cpu_s"], r["unseen"]["where"]) for r in log if "unseen" in r],
            "true or false?": [(r["cpu_s"], r["unseen"]["verdict"]) for r in log if "unseen" in r],
        }
        for k, (name, points) in enumerate(series.items()):
            seconds, accuracy = zip(*points, strict=True)
            ax.plot(np.array(seconds) / 60, accuracy, color=COLOURS[k], label=name)
        for stage in (1, 2):
            start = min(r["cpu_s"] for r in log if r["stage"] == stage) / 60
            ax.axvline(start, color=GREY, linewidth=0.6, linestyle=":")
            ax.annotate(("decoder", "joint")[stage - 1], (start, 0.42), xytext=(2, 0), textcoords="offset points", fontsize=6.5, color=GREY)
        ax.annotate("vision", (0, 0.42), xytext=(2, 0), textcoords="offset points", fontsize=6.5, color=GREY)
        ax.set_ylim(0.4, 1.0)
        ax.set_xlabel("processor time in minutes, one core")
        ax.set_ylabel("accuracy on unseen scenes")
        ax.set_title("Training of the built-in model")
        ax.legend(loc="lower right")
    save_figure(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of `training.train --out`")
    parser.add_argument("folder", type=Path, help="where the model goes")
    given = parser.parse_args()
    torch.set_num_threads(1)
    save(given.run / "checkpoint.pt", given.folder)
    figures = measure(given.folder)
    print(json.dumps(figures, indent=2))
    here = Path(__file__).parent
    (here / "measured.json").write_text(json.dumps(figures, indent=2) + "\n")
    log = (given.run / "log.jsonl").read_text()
    (here / "log.jsonl").write_text(log)
    draw_curve([json.loads(line) for line in log.splitlines()], here / "curve.png")


if __name__ == "__main__":
    main()
