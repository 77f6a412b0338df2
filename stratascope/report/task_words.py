"""Tasks and positions in the words of the report's sentences."""

from __future__ import annotations

TASK_WORDS = {
    "truth": "the truth of the caption",
    "relation": "the relation in the caption",
    "answer": "the answer of the model",
    "category": "the category of the relation",
    "geometry": "the boxes of subject and object",
}
"""Task -> what its probe decodes."""
POSITION_WORDS = {
    "final": "at the final token",
    "subject": "at the last token of the subject",
    "relation": "at the last token of the relation",
    "object": "at the last token of the object",
    "image": "in the mean over the image tokens",
    "subject_box": "in the image tokens within the subject box",
    "object_box": "in the image tokens within the object box",
}


def task_words(task: str) -> str:
    """What a probe for a task decodes; the selection of examples follows in parentheses."""
    name, _, chosen = task.partition(" (")
    words = TASK_WORDS.get(name, f"the value of “{name}”")
    return f"{words} (only {chosen.removesuffix(')')})" if chosen else words
