"""Small files of published benchmarks, in the form of the published ones."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image


def photo(seed: int, form: str = "JPEG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


def held(seed: int, form: str = "JPEG") -> dict[str, Any]:
    """An image as datasets of the Hub hold it."""
    return {"bytes": photo(seed, form), "path": None}


CV_BENCH_2D = [
    {
        "idx": 0, "type": "2D", "task": "Count", "image": held(1, "PNG"), "question": "How many organs are in the image?",
        "choices": ["3", "2", "1", "0"], "answer": "(C)",
        "prompt": "How many organs are in the image? Select from the following choices.\n(A) 3\n(B) 2\n(C) 1\n(D) 0",
        "filename": "img/2D/count/ade20k_10.png", "source": "ADE20K", "source_dataset": "ADE20K Validation Set",
        "source_filename": "ADE_val_00000248.jpg", "target_class": None, "target_size": None, "bbox": None,
    },
    {
        "idx": 1, "type": "2D", "task": "Relation", "image": held(2), "question": "Where is the cup located with respect to the plate?",
        "choices": ["left", "right"], "answer": "(A)",
        "prompt": "Where is the cup located with respect to the plate? Select from the following choices.\n(A) left\n(B) right",
        "filename": "img/2D/relation/coco_1.png", "source": "COCO", "source_dataset": "COCO 2017 Validation Set",
        "source_filename": "000000000139.jpg", "target_class": "cup", "target_size": 7, "bbox": [[1.0, 2.0, 3.0, 4.0]],
    },
]  # fmt: skip
CV_BENCH_3D = [
    {
        **CV_BENCH_2D[1], "type": "3D", "task": "Depth", "image": held(3), "question": "Which object is closer to the camera?",
        "choices": ["chair", "desk"], "answer": "(B)", "source": "Omni3D",
        "prompt": "Which object is closer to the camera? Select from the following choices.\n(A) chair\n(B) desk",
    }
]  # fmt: skip
BLINK = [
    {
        "idx": f"val_Spatial_Relation_{k}", "sub_task": "Spatial_Relation",
        "question": "Is the car beneath the cat?", "image_1": held(10 + k),
        "image_2": None, "image_3": None, "image_4": None, "choices": ["yes", "no"], "answer": "(A)" if k % 2 else "(B)",
        "prompt": "Is the car beneath the cat?\nSelect from the following choices.\n(A) yes\n(B) no", "explanation": None,
    }
    for k in (1, 2, 3)
]  # fmt: skip
EMBSPATIAL = [
    {
        "question_id": f"mp3d_{k}", "question": "How are the chair and the lamp positioned in relation to each other in the image?",
        "data_source": "mp3d", "relation": relation, "image": held(20), "caption": "a room", "subject": "sofa",
        "answer_options": [f"The chair is {text} the lamp." for text in ("left of", "right of", "above", "under")], "answer": k,
    }
    for k, relation in enumerate(("left", "right"))
]  # fmt: skip
SPATIALEVAL = [
    {
        "id": f"spatialmap.vqa.2000.{k}", "image": held(70), "oracle_answer": answer, "oracle_option": option,
        "oracle_full_answer": f"{option}. {answer}",
        "text": "Consider a map with multiple objects.\n\nPlease answer the following multiple-choice question based on the provided "
        f"information. {asked} Available options:\nA. {options[0]}\nB. {options[1]}\nC. {options[2]}\nD. {options[3]}.",
    }
    for k, (asked, options, option, answer) in enumerate((
        ("In which direction is Gale Gifts of Mr. A. Books?", ("Northeast", "Northwest", "Southwest", "Southeast"), "A", "Northeast"),
        ("Which object is Southwest of Gale Gifts?", ("Narwhal's", "Dr. B. Lee", "Oz Oddities", "Mr. A. Books"), "D", "Mr. A. Books"),
        ("How many objects are in the North of Gale Gifts?", ("2", "5", "0", "1"), "B", "5"),
    ))
]  # fmt: skip
POPE = [
    {
        "id": str(k), "question_id": str(1 + k), "question": f"Is there a {thing} in the image?", "answer": answer,
        "image_source": f"COCO_val2014_{310196 + k // 2:012d}", "image": held(30 + k // 2), "category": "adversarial",
    }
    for k, (thing, answer) in enumerate((("snowboard", "yes"), ("backpack", "no"), ("person", "yes")))
]  # fmt: skip


def circular(index: int, qid: str, options: Sequence[str], right: int) -> list[dict[str, str]]:
    """The rotations of a question of 3DSRBench, which VLMEvalKit numbers by a million."""
    rows = []
    for turn in range(len(options)):
        turned = [*options[turn:], *options[:turn]]
        rows.append(
            {
                "index": str(index + 1_000_000 * turn), "qid": qid, "question": "Which is closer to the camera?",
                **{letter: turned[k] if k < len(turned) else "" for k, letter in enumerate("ABCD")},
                "answer": "ABCD"[(right - turn) % len(options)], "category": "location_closer_to_camera",
                "image_source": "coco", "image_url": "http://images.cocodataset.org/train2017/000000000009.jpg",
                "image": base64.b64encode(photo(40 + index)).decode(),
            }
        )  # fmt: skip
    return rows


THREE_D_SR = [*circular(0, "Q7AB", ("cup", "key"), 1), *circular(1, "Q7AB-1", ("cup", "key"), 0), *circular(2, "Z9", tuple("pqrs"), 2)]


SPHERE = [
    {
        "question_id": "1.a", "question": "If you are the man in the image, where is the girl relative to your position?",
        "option": ["left", "right"], "answer": "left",
        "metadata": {"viewpoint": "ego", "format": "pos", "source_dataset": "coco_test2017", "source_img_id": "63"},
    },
    {
        "question_id": "1.1", "question": "How many buses are visible behind the railing?", "option": None, "answer": "0",
        "metadata": {"viewpoint": "allo", "format": "num", "source_dataset": "coco_test2017", "source_img_id": "1"},
    },
    {
        "question_id": "2.b", "question": "From the perspective of the viewer, where is the man relative to the group of people?",
        "option": ["behind", "in front"], "answer": "in front",
        "metadata": {"viewpoint": "allo", "format": "pos", "source_dataset": "coco_test2017", "source_img_id": "69"},
    },
]  # fmt: skip


def parquet(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    import pyarrow as pa
    from pyarrow import parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows)), path, row_group_size=2)
    return path


def tsv(path: Path, rows: Sequence[dict[str, str]]) -> Path:
    pd.DataFrame(rows).to_csv(path, sep="\t", index=False)
    return path
