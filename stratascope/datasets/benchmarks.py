"""Published benchmarks of questions about images: their files, fields and prompts."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from stratascope.datasets.example import LETTERS
from stratascope.datasets.question_rows import FIELDS, pope_question
from stratascope.errors import InvalidInputError

Fields = Mapping[str, Any]
_ONE_LETTER = re.compile(r"\(([A-Z])\)")
_CIRCLE = 1_000_000
"""VLMEvalKit numbers the rotations of a question by this step."""


@dataclass(frozen=True)
class Benchmark:
    """One published benchmark."""

    name: str
    title: str
    prompt: str
    """Name of the prompt with which it is published or scored."""
    repository: str
    """Dataset of the Hub; empty for files from elsewhere."""
    files: tuple[str, ...]
    """Files of the repository that `fetch` downloads."""
    needs: tuple[str, ...]
    """Columns that its files have."""
    read: Callable[[Fields], dict[str, Any] | None]
    """Fields of a published row -> fields of a question, see `question_rows`; None for one whose answer is a number. ValueError where they
    are not of the published form."""
    image: str = "image"
    """Column with the image; empty if the files name images that are published elsewhere."""
    further_images: tuple[str, ...] = ()
    """Columns with the further images of a question, empty for one with fewer."""
    folder: str = "images"
    """Folder of these images, as they are published."""


def _text(fields: Fields, name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"expected text in column {name!r}, found {_shown(value)}")
    return value.strip()


def _texts(fields: Fields, name: str) -> list[str]:
    value = fields.get(name)
    if not isinstance(value, list) or len(value) < 2 or not all(isinstance(text, str) and text.strip() for text in value):
        raise ValueError(f"expected a list of at least two texts in column {name!r}, found {_shown(value)}")
    return [text.strip() for text in value]


def _number(fields: Fields, name: str) -> int:
    value = fields.get(name)
    if isinstance(value, str) and value.strip().isdecimal():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"expected a whole number in column {name!r}, found {_shown(value)}")
    return value


def _answer_in_parentheses(fields: Fields, options: list[str]) -> str:
    answer = _text(fields, "answer")
    letter = _ONE_LETTER.fullmatch(answer)
    if letter is None or LETTERS.index(letter[1]) >= len(options):
        raise ValueError(f"expected an answer such as (A) in column 'answer', one of {len(options)} choices, found {_shown(answer)}")
    return answer


def _plain(fields: Fields, *left_out: str) -> dict[str, Any]:
    """Plain columns whose names have no meaning in rows of captions or questions."""
    taken = {*left_out, *FIELDS, "caption", "text", "label"}
    return {k: v for k, v in fields.items() if isinstance(v, str | int | float | bool) and k not in taken}


def _cv_bench(fields: Fields) -> dict[str, Any]:
    options = _texts(fields, "choices")
    return {
        **_plain(fields, "idx", "prompt"),
        "id": f"{_text(fields, 'type')}-{_number(fields, 'idx')}",
        "question": _text(fields, "question"),
        "options": options,
        "answer": _answer_in_parentheses(fields, options),
        "full_question": _text(fields, "prompt"),
        "relation": _text(fields, "task"),
    }


def _blink(fields: Fields) -> dict[str, Any]:
    options = _texts(fields, "choices")
    return {
        "id": _text(fields, "idx"),
        "question": _text(fields, "question"),
        "options": options,
        "answer": _answer_in_parentheses(fields, options),
        "full_question": _text(fields, "prompt"),
        "relation": _text(fields, "sub_task"),
    }


def _embspatial(fields: Fields) -> dict[str, Any]:
    options, right = _texts(fields, "answer_options"), _number(fields, "answer")
    if not 0 <= right < len(options):
        raise ValueError(f"expected the index of one of {len(options)} options in column 'answer', found {right}")
    return {
        **_plain(fields, "question_id"),
        "id": _text(fields, "question_id"),
        "question": _text(fields, "question"),
        "options": options,
        "answer": f"({LETTERS[right]})",
        "relation": _text(fields, "relation"),
    }


def _pope(fields: Fields) -> dict[str, Any]:
    answer = _text(fields, "answer").lower()
    if answer not in ("yes", "no"):
        raise ValueError(f"expected yes or no in column 'answer', found {_shown(answer)}")
    group = _text(fields, "category")
    asked = pope_question({"image": None, "text": _text(fields, "question"), "label": answer})
    own = {"id": f"{group}-{_text(fields, 'question_id')}", "relation": group, "image_source": _text(fields, "image_source")}
    return {name: value for name, value in {**asked, **own}.items() if name != "image"}


def _three_d_sr(fields: Fields) -> dict[str, Any]:
    there = [letter for letter in "ABCD" if isinstance(fields.get(letter), str) and fields[letter].strip()]
    if len(there) < 2 or there != list("ABCD"[: len(there)]):
        raise ValueError(f"expected options in the columns A, B, ..., found some in {', '.join(there) or 'none'}")
    answer = _text(fields, "answer")
    if answer not in there:
        raise ValueError(f"expected one of {', '.join(there)} in column 'answer', found {_shown(answer)}")
    index, name = _number(fields, "index"), _text(fields, "qid")
    return {
        "id": str(index),
        "question": _text(fields, "question"),
        "options": [fields[letter].strip() for letter in there],
        "answer": f"({answer})",
        "relation": _text(fields, "category"),
        "circle": str(index % _CIRCLE),
        "qid": name,
        "flips": name[:-2] if name[-2:-1] == "-" else name,
    }


def _sphere(fields: Fields) -> dict[str, Any] | None:
    about = fields.get("metadata")
    if not isinstance(about, Mapping):
        raise ValueError(f"expected an object in field 'metadata', found {_shown(about)}")
    if _text(about, "format") == "num":
        return None
    options, answer, source = _texts(fields, "option"), _text(fields, "answer"), _text(about, "source_img_id")
    if options.count(answer) != 1:
        raise ValueError(f"expected the answer among the options once, found {_shown(answer)} and {_shown(options)}")
    if not source.isdecimal():
        raise ValueError(f"expected the number of a COCO photo in 'source_img_id', found {_shown(source)}")
    return {
        "id": _text(fields, "question_id"),
        "image": f"{source.zfill(12)}.jpg",
        "question": _text(fields, "question"),
        "options": options,
        "answer": f"({LETTERS[options.index(answer)]})",
        "viewpoint": _text(about, "viewpoint"),
        "format": _text(about, "format"),
    }


def _spatialeval(fields: Fields) -> dict[str, Any]:
    name, text = _text(fields, "id"), _text(fields, "text")
    question, found, offered = text.rpartition("Available options:")
    lines = [line.strip() for line in offered.strip().splitlines() if line.strip()]
    options = [line[2:].strip() for line, letter in zip(lines, LETTERS, strict=False) if line.startswith(f"{letter}.")]
    if not found or not question.strip() or len(options) < 2 or len(options) != len(lines) or not all(options):
        raise ValueError(f"expected 'Available options:' and lines such as 'A. Northeast' at the end of 'text', found {_shown(text)}")
    options[-1] = options[-1].removesuffix(".")  # of the sentence
    letter, answer = _text(fields, "oracle_option").rstrip("."), _text(fields, "oracle_answer")
    right = dict(zip(LETTERS, options, strict=False)).get(letter)
    if right is None or right.rstrip(".").casefold() != answer.rstrip(".").casefold():
        raise ValueError(f"expected the letter of the option {_shown(answer)} in column 'oracle_option', found {_shown(letter)}")
    task, mode, *_, number = name.split(".")
    return {
        "id": name,
        "question": question.strip(),
        "options": options,
        "answer": f"({letter})",
        "full_question": text,
        "relation": task,
        "mode": mode,
        "question_number": number,
    }


def _shown(value: Any) -> str:
    return "none" if value is None else json.dumps(value, ensure_ascii=False, default=lambda other: type(other).__name__)[:120]


BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark(
            "cv-bench",
            "CV-Bench 2D and 3D (Tong et al. 2024)",
            "cv-bench",
            "nyu-visionx/CV-Bench",
            ("test_2d.parquet", "test_3d.parquet"),
            ("idx", "type", "task", "image", "question", "choices", "answer", "prompt", "source"),
            _cv_bench,
        ),
        Benchmark(
            "blink",
            "BLINK, one sub-task or several with as many images (Fu et al. 2024)",
            "blink",
            "BLINK-Benchmark/BLINK",
            ("Spatial_Relation/val-00000-of-00001.parquet", "Relative_Depth/val-00000-of-00001.parquet"),
            ("idx", "sub_task", "question", "image_1", "image_2", "choices", "answer", "prompt"),
            _blink,
            image="image_1",
            further_images=("image_2", "image_3", "image_4"),
        ),
        Benchmark(
            "embspatial",
            "EmbSpatial-Bench (Du et al. 2024)",
            "embspatial",
            "FlagEval/EmbSpatial-Bench",
            ("data/test-00000-of-00001.parquet",),
            ("question_id", "question", "answer_options", "answer", "relation", "image"),
            _embspatial,
        ),
        Benchmark(
            "pope",
            "POPE with its photos, as lmms-eval has it (Li et al. 2023)",
            "pope",
            "lmms-lab/POPE",
            tuple(f"Full/{group}-00000-of-00001.parquet" for group in ("random", "popular", "adversarial")),
            ("question_id", "question", "answer", "image_source", "image", "category"),
            _pope,
        ),
        Benchmark(
            "3dsrbench",
            "3DSRBench in VLMEvalKit's form (Ma et al. 2025)",
            "vlmevalkit",
            "ccvl/3DSRBench",
            ("3dsrbench_v1_vlmevalkit_circular.tsv",),
            ("index", "qid", "question", "A", "B", "C", "D", "answer", "category", "image"),
            _three_d_sr,
        ),
        Benchmark(
            "spatialeval",
            "SpatialEval, questions about images (Wang et al. 2024)",
            "spatialeval",
            "MilaWang/SpatialEval",
            ("vqa/test-00000-of-00002.parquet", "vqa/test-00001-of-00002.parquet"),
            ("id", "text", "image", "oracle_answer", "oracle_option"),
            _spatialeval,
        ),
        Benchmark(
            "sphere",
            "SPHERE, on photos of COCO test2017 (Zhang et al. 2025)",
            "letters",
            "",
            (),
            ("question_id", "question", "option", "answer", "metadata"),
            _sphere,
            image="",
            folder="test2017",
        ),
    )
}
"""Benchmarks by name, as `convert` takes them, and `fetch` those with a repository."""


def benchmark_of(name: str) -> Benchmark:
    """The benchmark of a name; InvalidInputError lists those there are.

    >>> benchmark_of("blink").prompt
    'blink'
    """
    if name not in BENCHMARKS:
        raise InvalidInputError(f"expected a benchmark among {', '.join(BENCHMARKS)}, found {name!r}")
    return BENCHMARKS[name]
