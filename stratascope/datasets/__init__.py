"""Examples: VSR files, COCO boxes, generated scenes, prompts; no torch."""

from stratascope.datasets.boxes import BoxIndex, cells_in_box
from stratascope.datasets.captions import CaptionParts, split_caption
from stratascope.datasets.examples import Example, load_examples
from stratascope.datasets.prompts import PROMPTS, Prompt
from stratascope.datasets.scenes import write_scenes

__all__ = ["PROMPTS", "BoxIndex", "CaptionParts", "Example", "Prompt", "cells_in_box", "load_examples", "split_caption", "write_scenes"]
