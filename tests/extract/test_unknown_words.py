"""Words that the built-in model never saw are named once, before the model runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from stratascope.extract import ExtractionSettings, plan_extraction
from stratascope.extract.plan.plan_summary import plan_summary
from stratascope.extract.plan.unknown_words import unknown_words, vocabulary_notes


def test_unknown_words_are_named_by_frequency(plan, settings: ExtractionSettings, scenes: Path, tmp_path: Path) -> None:
    assert unknown_words(plan) == []
    assert not vocabulary_notes(plan)
    rows = [json.loads(line) for line in (scenes / "scenes.jsonl").read_text().splitlines()[:3]]
    for row, subject in zip(rows, ("Circle", "circle", "zebra"), strict=True):
        row["caption"] = f"The {subject} is above the cup."
        row["relation"] = "above"
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    mine = plan_extraction(replace(settings, examples=(tmp_path / "mine.jsonl",), boxes=None))
    assert unknown_words(mine) == ["circle", "zebra"]
    assert plan_summary(mine).count("words      'circle', 'zebra' are not in the demo model's vocabulary") == 1
