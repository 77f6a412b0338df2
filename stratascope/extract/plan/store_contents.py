"""Contents of a store before the model runs: tokens, spans, and the table of examples with boxes. No torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from stratascope.datasets.boxes import Box
from stratascope.datasets.example import LETTERS
from stratascope.extract.plan.answer_tokens import token_texts
from stratascope.extract.plan.extraction_plan import ExtractionPlan
from stratascope.extract.plan.image_boxes import flipped, is_whole, scaled, view_size
from stratascope.store.format.tables import EXACT_AS_FLOAT
from stratascope.store.io.offered_choices import OPTIONS

_SIDES = ("x0", "y0", "x1", "y1")


def store_contents(plan: ExtractionPlan) -> dict[str, Any]:
    """Keywords of `create_store` for a plan."""
    count, longest, names = len(plan.examples), plan.store.tokens, plan.store.spans
    token_ids = np.full((count, longest), -1, np.int32)
    spans = np.full((count, len(names), 2), -1, np.int32)
    for k, layout in enumerate(plan.layouts):
        token_ids[k, : len(layout.ids)] = layout.ids
        for name, interval in layout.spans.items():
            spans[k, names.index(name)] = interval
    used = None if "top_tokens" in plan.store.record or plan.store.generated else np.unique(token_ids[token_ids >= 0])
    return {
        "examples": example_table(plan),
        "spans": spans,
        "token_ids": token_ids,
        "vocabulary": token_texts(plan.tokenizer.tokenizer, used),
        "n_tokens": plan.token_counts,
        "grid": np.array([layout.grid for layout in plan.layouts], np.int32),
        "position_present": plan.present,
        "has_map": plan.has_map,
        "has_patches": plan.has_patches,
        "provenance": plan.provenance,
    }


def example_table(plan: ExtractionPlan) -> pd.DataFrame:
    """Table with one row per example. Sizes and boxes refer to the part of the image that the cells cover.

    If the model sees only a part of an image (centre crop of LLaVA-1.5) or padding, the columns `view_*` give that part in pixels of the
    file, and `file_width` and `file_height` the size of the file. `exif_orientation` is present if any image is rotated by its EXIF
    orientation. Questions with options have the columns `options` (their number), `right_option` (text), `option_A`, `option_B`, ... (texts
    in the order in which they are shown) and, where this is not the published one, `option_order`. Further plain fields of the examples
    follow as columns. Examples with several images have them in `image`, `image_2`, ..., with the columns `shown_image_2`,
    `image_2_sha256`, `image_2_phash`, `image_2_width` and `image_2_height` for the second, and so on.
    """
    partial = not all(is_whole(layout.view, *plan.file_size(k)) for k, layout in enumerate(plan.layouts))
    turned = any(fact.orientation != 1 for fact in plan.facts.values())
    rows = []
    for k, (example, shown) in enumerate(zip(plan.examples, plan.shown, strict=True)):
        width, height = plan.file_size(k)
        view = plan.layouts[k].view
        size = max(1, round(view_size(view)[0])), max(1, round(view_size(view)[1]))
        row: dict[str, Any] = {
            "id": example.id,
            "image": example.image,
            "shown_image": shown,
            "image_sha256": plan.facts[example.image].sha256,
            "image_phash": plan.facts[example.image].phash,
            "caption": example.caption,
            "relation": example.relation,
            "label": -1 if example.label is None else int(example.label),
            "subject": example.subject,
            "object": example.object,
            "split": example.split,
            "image_width": size[0],
            "image_height": size[1],
        }
        if example.right_option is not None:
            row |= {OPTIONS: len(example.options), "right_option": example.right_option}
            if example.option_order:
                row["option_order"] = example.option_order
            row |= {f"option_{letter}": text for letter, text in zip(LETTERS, example.options, strict=False)}
        for number, (own, seen_one) in enumerate(zip(example.further_images, plan.further[k] if plan.further else (), strict=True), 2):
            fact, other = plan.facts[own], plan.facts[seen_one]
            row |= {f"image_{number}": own, f"shown_image_{number}": seen_one}
            row |= {f"image_{number}_sha256": fact.sha256, f"image_{number}_phash": fact.phash}
            row |= {f"image_{number}_width": other.width, f"image_{number}_height": other.height}
        if turned:
            row["exif_orientation"] = plan.facts[example.image].orientation
        if partial:
            row |= {"file_width": width, "file_height": height}
            row |= dict(zip([f"view_{side}" for side in _SIDES], _unflipped(plan, view, width), strict=True))
        for name, box in zip(("subject", "object"), (example.subject_box, example.object_box), strict=True):
            seen = plan.shown_box(k, name)
            if seen is not None and is_whole(view, width, height):
                seen = box
            elif seen is not None:
                seen = scaled(_unflipped(plan, seen, view_size(view)[0]), view_size(view), size)
            row |= dict(zip([f"{name}_{side}" for side in _SIDES], seen or (np.nan,) * 4, strict=True))
        rows.append(row)
    table = pd.DataFrame(rows)
    names = dict.fromkeys(name for example in plan.examples for name in example.extra if name not in table.columns)
    fields = {name: field_column([example.extra.get(name) for example in plan.examples]) for name in names}
    return pd.concat([table, pd.DataFrame(fields)], axis=1) if fields else table


def field_column(values: Sequence[Any]) -> pd.Series[Any]:
    """A further field as a column: numbers or booleans if all rows have that type, otherwise text; missing values stay missing.

    Numbers that would lose precision become text: integers beyond 64 bits, or beyond 2^53 next to floats or missing values.
    """
    there = [v for v in values if v is not None]
    kinds = {"truth" if isinstance(v, bool) else "text" if isinstance(v, str) else "number" for v in there}
    if kinds == {"truth"} and len(there) == len(values):
        return pd.Series(values, dtype=bool)
    if kinds == {"number"}:
        whole = all(isinstance(v, int) for v in there)
        if whole and len(there) == len(values) and all(-(2**63) <= v < 2**63 for v in there):
            return pd.Series(values, dtype=np.int64)
        if all(isinstance(v, float) or abs(v) <= EXACT_AS_FLOAT for v in there):
            return pd.Series(values, dtype=np.float64)
    return pd.Series([v if v is None or isinstance(v, str) else json.dumps(v) for v in values], dtype=object)


def _unflipped(plan: ExtractionPlan, box: Box, width: float) -> Box:
    """A box before the condition `mirror`, which readers of the store apply again."""
    return flipped(box, width) if plan.settings.condition == "mirror" else box
