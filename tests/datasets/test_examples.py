import json
from pathlib import Path

import numpy as np
import pytest

from stratascope.datasets import BoxIndex, cells_in_box, load_examples
from stratascope.datasets.examples import describe
from stratascope.errors import InvalidInputError

ROW = {"image": "a.png", "caption": "The cat is under the bed.", "label": 1, "relation": "under"}
SHARED = Path(__file__).parents[3] / "shared" / "data"


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_published_rows_load(tmp_path: Path) -> None:
    published = {
        **ROW,
        "image_link": "http://images.example/a.png",
        "annotator_id": 3,
        "vote_true_validator_id": "[2, 9]",
        "reference_frame": None,
    }
    (example,) = load_examples(write(tmp_path / "test.jsonl", published))
    assert (example.id, example.split, example.subject, example.object, example.label) == ("test-000001", "test", "cat", "bed", True)
    assert example.extra == {"image_link": "http://images.example/a.png", "annotator_id": 3, "vote_true_validator_id": "[2, 9]"}


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("{not json", "JSON object"),
        ("[1]", "JSON object"),
        ({**ROW, "label": 2}, "label 0 or 1"),
        ({**ROW, "label": "1"}, "label 0 or 1"),
        ({**ROW, "caption": ""}, "'caption'"),
        ({"image": "a.png"}, "'caption'"),
        ({**ROW, "relation": "above"}, "SUBJECT above OBJECT"),
        ({**ROW, "image": "../a.png"}, "within the folder"),
        ({**ROW, "image": "/a.png"}, "within the folder"),
    ],
)
def test_bad_rows_are_refused_with_file_line_and_reason(tmp_path: Path, bad: object, reason: str) -> None:
    path = write(tmp_path / "rows.jsonl", ROW, "", bad)
    with pytest.raises(InvalidInputError) as caught:
        load_examples(path)
    assert f"{path}, line 3" in str(caught.value)
    assert reason in str(caught.value)


def test_duplicate_ids_name_both_places(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", {**ROW, "id": "x"}, {**ROW, "id": "x"})
    with pytest.raises(InvalidInputError, match=r"line 2: .*'x' again \(first in .*line 1\)"):
        load_examples(path)


def test_no_rows_and_no_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="at least one row"):
        load_examples(write(tmp_path / "empty.jsonl"))
    with pytest.raises(InvalidInputError, match=r"absent\.jsonl: expected a readable"):
        load_examples(tmp_path / "absent.jsonl")


def coco(tmp_path: Path, *boxes: tuple[int, list[float]]) -> Path:
    data = {
        "images": [{"id": 1, "file_name": "a.png", "width": 100, "height": 50}],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "Bed"}],
        "annotations": [{"id": k, "image_id": 1, "category_id": c, "bbox": box} for k, (c, box) in enumerate(boxes)],
    }
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(data))
    return path


def test_boxes_match_only_where_unique(tmp_path: Path) -> None:
    boxes = BoxIndex.from_coco(coco(tmp_path, (1, [10, 20, 30, 10]), (2, [0, 0, 5, 5]), (2, [50, 0, 5, 5])))
    (example,) = load_examples(write(tmp_path / "rows.jsonl", ROW), boxes)
    assert example.subject_box == (10, 20, 40, 30)
    assert example.object_box is None


def test_a_box_without_area_is_no_box(tmp_path: Path) -> None:
    boxes = BoxIndex.from_coco(coco(tmp_path, (1, [10, 20, 0, 10]), (1, [10, 20, 30, 10])))
    assert boxes.match("a.png", "cat") == (10, 20, 40, 30)


def test_a_box_outside_its_image_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"within a\.png \(100 x 50\), found bbox \[90, 0, 30, 10\] in annotation 0"):
        BoxIndex.from_coco(coco(tmp_path, (1, [90, 0, 30, 10])))


def test_a_minimal_file_of_boxes_is_told_what_it_lacks(tmp_path: Path) -> None:
    path = coco(tmp_path, (1, [10, 20, 30, 10]))
    data = json.loads(path.read_text())
    data["images"].append({"id": 2, "file_name": "b.png"})
    path.write_text(json.dumps(data))
    with pytest.raises(InvalidInputError, match=r"found: images\[1\] lacks width and height \(pixels\)$"):
        BoxIndex.from_coco(path)


def test_cells_are_those_whose_centre_lies_in_the_box() -> None:
    # 100 x 60 pixels, 3 rows x 5 columns: cells of 20 x 20, centres at 10, 30, ...
    assert cells_in_box((0, 0, 40, 20), (100, 60), (3, 5)).tolist() == [0, 1]
    assert cells_in_box((25, 25, 100, 60), (100, 60), (3, 5)).tolist() == [6, 7, 8, 9, 11, 12, 13, 14]
    assert cells_in_box((61, 1, 62, 2), (100, 60), (3, 5)).tolist() == [3], "a box smaller than a cell still has one"
    assert cells_in_box((0, 0, 100, 60), (100, 60), (3, 5)).tolist() == np.arange(15).tolist()


def annotated(tmp_path: Path, files: list[str], **changes: object) -> Path:
    """One cat an image, its box as wide as the image's number says."""
    data: dict[str, object] = {
        "images": [{"id": k, "file_name": name, "width": 100, "height": 50} for k, name in enumerate(files)],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [{"id": k, "image_id": k, "category_id": 1, "bbox": [0, 0, 10 + k, 10]} for k in range(len(files))],
    }
    path = tmp_path / "instances.json"
    path.write_text(json.dumps({**data, **changes}))
    return path


def widths(tmp_path: Path, boxes: Path, *images: str) -> list[float | None]:
    """Width of the subject's box in each image, as examples get it."""
    rows = write(tmp_path / "rows.jsonl", *({**ROW, "image": image} for image in images))
    return [e.subject_box and e.subject_box[2] - e.subject_box[0] for e in load_examples(rows, BoxIndex.from_coco(boxes))]


@pytest.mark.parametrize(
    ("files", "images", "expected"),
    [
        (["a/0.png"], ["a/0.png", "b/0.png"], [10, None]),
        (["a/0.png", "b/0.png"], ["b/0.png", "a/0.png"], [11, 10]),
        (["val2017/0.png"], ["0.png", "1.png"], [10, None]),
        (["0.png"], ["val2017/0.png", "val2017/1.png"], [10, None]),
        (["a/0.png", "0.png"], ["a/0.png", "0.png"], [10, 11]),
        (["/data/a/0.png", "/data/b/0.png"], ["b/0.png", "a/0.png"], [11, 10]),
        (["a\\0.png", "b\\0.png"], ["b/0.png", "a/0.png"], [11, 10]),
        (["0.png", "x/0.png"], ["a/x/0.png", "1.png"], [11, None]),
    ],
)
def test_boxes_are_those_of_the_image_of_that_path(tmp_path: Path, files: list[str], images: list[str], expected: list[int | None]) -> None:
    assert widths(tmp_path, annotated(tmp_path, files), *images) == expected


@pytest.mark.parametrize(
    ("files", "images", "message"),
    [
        (["0.png"], ["a/0.png", "b/0.png"], r"expected one image that file_name 0\.png can be, found 2: a/0\.png, b/0\.png; write"),
        (["a/0.png", "b/0.png"], ["0.png"], r"expected one image that 0\.png can be, found 2: a/0\.png, b/0\.png; name"),
        (["a/0.png", "a/1.png"], ["b/0.png"], r"none of their 1 images \(such as b/0\.png\) among 2 file names \(such as a/0\.png\)"),
        (["0.png", "0.png"], ["0.png"], r"a file name for each image, found 0\.png for the images 0 and 1"),
        (["0.png", "./0.png"], ["0.png"], r"a file name for each image, found \./0\.png for the images 0 and 1"),
    ],
)
def test_boxes_that_could_be_of_another_image_are_refused(tmp_path: Path, files: list[str], images: list[str], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        widths(tmp_path, annotated(tmp_path, files), *images)


def test_the_description_says_how_many_images_the_boxes_are_of(tmp_path: Path) -> None:
    rows = write(tmp_path / "rows.jsonl", ROW, {**ROW, "image": "b.png"})
    text = describe(load_examples(rows, BoxIndex.from_coco(coco(tmp_path, (1, [10, 20, 30, 10])))))
    assert "the file of boxes lists 1 of 2 images" in text
    assert "subject: one such thing in the image 1, several 0, none 0" in text


IMAGE = {"id": 1, "file_name": "a.png", "width": 100, "height": 50}
CAT = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 20, 30, 10], "iscrowd": 0}


@pytest.mark.parametrize(
    "changes",
    [
        {"images": [{**IMAGE, "id": "1"}]},
        {"images": [{**IMAGE, "id": "x7"}], "annotations": [{**CAT, "image_id": "x7"}]},
        {"images": [{**IMAGE, "width": "100", "height": 50.0}]},
        {"images": [IMAGE, IMAGE]},
        {"annotations": [CAT, CAT]},
        {"annotations": [{**CAT, "iscrowd": "0"}]},
        {"annotations": [{**CAT, "iscrowd": "False"}]},
        {"annotations": [{**CAT, "iscrowd": None}]},
        {"annotations": [{**CAT, "bbox": ["10", "20", "30.0", "10"]}]},
        {"annotations": [CAT, {**CAT, "id": 2, "iscrowd": "1"}]},
        {"annotations": [CAT, {**CAT, "id": 2, "iscrowd": True}]},
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_other_spellings_of_ids_numbers_and_flags_give_the_same_box(tmp_path: Path, changes: dict[str, object], encoding: str) -> None:
    data = {"images": [IMAGE], "categories": [{"id": 1, "name": "cat"}], "annotations": [CAT], **changes}
    (tmp_path / "instances.json").write_text(json.dumps(data), encoding=encoding)
    assert BoxIndex.from_coco(tmp_path / "instances.json").instances("a.png", "cat") == [(10, 20, 40, 30)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": [IMAGE, {**IMAGE, "file_name": "b.png"}]}, "image id 1 twice"),
        ({"images": [IMAGE, {**IMAGE, "width": 60}]}, "image id 1 twice"),
        ({"images": [{**IMAGE, "id": 1.5}]}, "an id is a whole number or a text, not '1.5'"),
        ({"images": [{**IMAGE, "width": "1_0"}]}, "found: image a.png with width 1_0"),
        ({"images": [{**IMAGE, "width": float("nan")}]}, "found: image a.png with width nan"),
        ({"categories": [{"id": 1, "name": "cat"}, {"id": 1, "name": "dog"}]}, "category id 1 twice, for cat and dog"),
        ({"annotations": [CAT, {**CAT, "bbox": [0, 0, 5, 5]}]}, "expected an id of its own for each annotation, found id 1"),
        ({"annotations": [{**CAT, "image_id": "01"}]}, "expected the image_id of an image"),
        ({"annotations": [{**CAT, "bbox": "1234"}]}, "expected a list of numbers, found '1234'"),
        ({"annotations": [{**CAT, "iscrowd": "no"}]}, "expected 0 or 1, found 'no'"),
    ],
)
def test_ids_and_numbers_with_two_meanings_are_refused(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    data = {"images": [IMAGE], "categories": [{"id": 1, "name": "cat"}], "annotations": [CAT], **changes}
    (tmp_path / "instances.json").write_text(json.dumps(data))
    with pytest.raises(InvalidInputError, match=message):
        BoxIndex.from_coco(tmp_path / "instances.json")


@pytest.mark.skipif(not SHARED.exists(), reason="the published VSR files are not at hand")
def test_all_published_vsr_rows_load() -> None:
    rows = load_examples([SHARED / "vsr" / "random" / f"{split}.jsonl" for split in ("train", "dev", "test")])
    assert len(rows) == 10_972
    assert len({row.image for row in rows}) == 6_259
    assert len({row.relation for row in rows}) == 66
    assert round(np.mean([row.label for row in rows]), 3) == 0.512


def test_rows_with_several_images(tmp_path: Path) -> None:
    asked = {"question": "Which is nearer?", "options": ["cup", "key"], "answer": "key"}
    for name, row, choices in (
        ("list.jsonl", {**ROW, "image": ["a.png", "b/c.png"], "image_1": "kept"}, None),
        ("numbered.jsonl", {**{key: ROW[key] for key in ROW if key != "image"}, "image_1": "a.png", "image_2": "b/c.png"}, None),
        ("question.jsonl", {**asked, "image": ["a.png", "b/c.png"]}, ("A", "B")),
        ("asked.jsonl", {**asked, "image_1": "a.png", "image_2": "b/c.png"}, ("A", "B")),
    ):
        (example,) = load_examples(write(tmp_path / name, row), choices=choices)
        assert example.images == ("a.png", "b/c.png")
        assert example.extra == ({"image_1": "kept"} if name == "list.jsonl" else {})
    table = tmp_path / "rows.csv"
    table.write_text(f"image_1,image_2,caption,relation,label\n1,02,{ROW['caption']},under,1\n3,4,{ROW['caption']},under,0\n")
    assert [example.images for example in load_examples(table)] == [("1", "02"), ("3", "4")]
    table.write_text("image_1,image_2,question,options,answer,A,B\n1,02,Which is nearer?,,B,cup,key\n")
    assert [example.images for example in load_examples(table, choices=("A", "B"))] == [("1", "02")]
    plain = write(tmp_path / "plain.jsonl", {**ROW, "image_1": "x", "image_2": "y"})
    assert load_examples(plain)[0].extra == {"image_1": "x", "image_2": "y"}, "with a column image, they are like any other"
    assert "2 images" in describe(load_examples(write(tmp_path / "list.jsonl", {**ROW, "image": ["a.png", "b.png"]})))


@pytest.mark.parametrize(
    ("images", "reason"),
    [
        ({"image": []}, "expected text in field 'image', found []; several images are a list of texts"),
        ({"image": ["a.png", 3]}, "expected text in field 'image', found [\"a.png\", 3]"),
        ({"image": ["a.png", "../b.png"]}, "within the folder of images, found '../b.png'"),
        (
            {"image_1": "a.png", "image_3": "b.png"},
            "fields image_1, image_2, ... without a gap, found image_1, image_3",
        ),
        ({"image": ["a.png"] * 17}, "expected at most 16 images, found 17"),
        ({"image": ["a.png", "b.png", "c.png"]}, "expected as many images as in the first row, 2, found 3"),
        ({"image": "a.png"}, "expected as many images as in the first row, 2, found 1"),
    ],
)
def test_images_that_do_not_fit_are_refused(tmp_path: Path, images: dict[str, object], reason: str) -> None:
    rest = {key: ROW[key] for key in ROW if key != "image"}
    for more in (rest, {"question": "Is it?", "answer": "yes"}):
        path = write(tmp_path / "rows.jsonl", {**more, "image": ["a.png", "b.png"]}, {**more, **images})
        with pytest.raises(InvalidInputError) as caught:
            load_examples(path)
        assert f"{path}, line 2" in str(caught.value)
        assert reason in str(caught.value)
