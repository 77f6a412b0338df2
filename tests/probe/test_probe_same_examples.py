"""The same photo, the same example, the same numbers: by content, never by a name that two of them may share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result
from planted import planted_store

from stratascope.cli import main
from stratascope.errors import InvalidInputError
from stratascope.probe import LayerCurve, codelength_by_layer, layer_curve, official_split, split_leakage, transfer_matrix
from stratascope.store import ActivationStore
from stratascope.store.io.example_identity import image_groups, refuse_other_examples

QUICK = ("--tasks", "truth", "--positions", "final", "--layers", "1", "--strengths", "1e-2", "--scheduler", "synchronous")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["probe", *map(str, arguments)])


@pytest.fixture(scope="module")
def twins(tmp_path_factory) -> Path:
    return planted_store(tmp_path_factory.mktemp("twins") / "t.zarr", layers=1, hidden=128, onset=9, twins=True)


@pytest.fixture(scope="module")
def hashed(tmp_path_factory) -> Path:
    return planted_store(tmp_path_factory.mktemp("hashed") / "h.zarr", layers=1, onset=1, examples=200, hashed=True)


@pytest.mark.slow
def test_the_same_photo_under_two_names_is_in_one_fold(twins, tmp_path):
    """Labels tossed for each photo cannot be read from a photo; a probe that has seen the photo under its other name reads them."""
    said = run(twins, *QUICK, "--out", tmp_path)
    assert said.exit_code == 0, said.output
    assert "duplicate images: 200 of 200 images occur under 400 names" in said.stdout
    assert ": not detected" in said.stdout
    assert ": detected" not in said.stdout
    curve = LayerCurve.load(tmp_path / "probe-truth-final.zarr.zip")
    assert (curve.attributes["grouped_by"], curve.attributes["duplicate_images"]) == ("image content", 200)
    assert curve.onset.layer is None
    photo = curve.examples["example"] // 2
    assert curve.examples.groupby(photo)["fold"].nunique().max() == 1
    assert curve.examples["group"].nunique() == 200, "intervals draw photos, not names"
    by_name = layer_curve(twins, layers=(1,), strengths=(1e-2,), draws=200, groups="id")
    assert by_name.value(1) > 0.7 > curve.value(1) + 0.1, "what a leak looks like"


def test_near_duplicates_are_in_one_fold(tmp_path):
    near = planted_store(tmp_path / "n.zarr", layers=1, hidden=128, onset=9, twins=True, near=True)
    said = run(near, *QUICK, "--out", tmp_path)
    assert "near-duplicate images: 400 images differ from another only by" in said.stdout
    assert "they form 200 groups, each in one fold" in said.stdout
    curve = LayerCurve.load(tmp_path / "probe-truth-final.zarr.zip")
    assert curve.examples.groupby(curve.examples["example"] // 2)["fold"].nunique().max() == 1
    assert curve.examples["group"].nunique() == 200
    assert layer_curve(near, layers=(1,), strengths=(1e-2,), draws=200, groups="id").value(1) > 0.7 > curve.value(1) + 0.1


def test_codelengths_send_a_photo_as_a_whole(twins):
    by_content, by_name = (
        codelength_by_layer(twins, layers=(1,), strengths=(1e-2,), draws=100, groups=groups)["value"].item() for groups in ("image", "id")
    )
    assert by_content < by_name


def test_duplicates_are_counted_and_names_say_which_image_it_is():
    table = pd.DataFrame({"image": ["b", "a", "c", "b", "d"], "image_sha256": ["1", "1", "2", "1", "1"]})
    groups = image_groups(table)
    assert groups.labels.tolist() == ["a", "a", "c", "a", "a"]
    assert (groups.shared, groups.shared_names, groups.extra_names, groups.by) == (1, 3, 2, "image content")
    assert groups.lines() == ["duplicate images: 1 of 2 images occur under 3 names; all examples of an image stay in one fold"]


def test_captions_that_always_have_one_label_are_counted():
    table = pd.DataFrame(
        {"image": list("abcdeff"), "caption": ["x", "x", "y", "y", "z", "w", "w"], "label": [1, 1, 0, 1, 0, 1, 0]}
    )  # x twice true, y true and false, w of one image
    assert image_groups(table).captions == (2, 1, 2)
    assert "1 of them always with the same label (2 of 7 examples)" in image_groups(table).lines()[0]


def test_images_without_hashes_are_grouped_by_name_and_it_is_said(tmp_path):
    table = pd.DataFrame({"image": ["b", "a", "b"]})
    assert image_groups(table).labels.tolist() == ["b", "a", "b"]
    assert image_groups(table).by == "image name"
    some = image_groups(table.assign(image_sha256=["1", None, "1"]))
    assert some.labels.tolist() == ["b", "a", "b"]
    assert some.lines() == ["1 of 2 images are grouped by name: the store holds no hash of them"]
    old = planted_store(tmp_path / "old.zarr", layers=1, onset=1, examples=200)
    said = run(old, *QUICK, "--out", tmp_path / "res")
    assert said.exit_code == 0, said.output
    assert "images are grouped by name: the store holds no hashes" in said.stdout


def test_a_split_that_shares_photos_under_other_names_leaks():
    split = np.array(["train"] * 150 + ["test"] * 50)
    names = [f"train/{i}" for i in range(150)] + [f"test/{i}" for i in range(30)] + [f"train/{i}" for i in range(30, 50)]
    photo = [*range(150), *range(10), *range(1000, 1020), *range(30, 50)]
    table = pd.DataFrame({"split": split, "image": names, "image_sha256": [f"{p:064x}" for p in photo]})
    leakage = split_leakage(table)
    assert (leakage.shared, leakage.renamed) == (30, 10)
    assert str(leakage).endswith("one of 150 training examples (10 of them under another file name)")
    strict = official_split(table, np.arange(200) % 2, keep_leaked=False)
    assert np.flatnonzero(strict.of == strict.test).tolist() == list(range(160, 180))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("caption", ["The cat is elsewhere."]),
        ("image_sha256", ["f" * 64]),
        ("image", ["other.png"]),
        ("relation", ["above", "below"]),
        ("label", [0, 1]),
    ],
)
def test_a_baseline_of_other_rows_with_the_same_ids_is_refused(hashed, tmp_path, column, values):
    held = ActivationStore.open(hashed).examples[column].iloc[7]
    value = next(v for v in values if v != held)
    other = planted_store(tmp_path / "o.zarr", layers=1, onset=1, examples=200, hashed=True, condition="blank", changed={column: value})
    refused = run(hashed, *QUICK, "--baseline", other, "--out", tmp_path / "res")
    assert refused.exit_code == 2
    assert f"found another {column} in" in refused.stderr
    assert "first at id 'e00007'" in refused.stderr
    assert not list(tmp_path.glob("res/**/*.zip")), "refused before anything is solved"
    with pytest.raises(InvalidInputError, match=f"another {column} .* first at id 'e00007'"):
        transfer_matrix(hashed, to=other, layers=(1,), strengths=(1e-2,))


@pytest.mark.slow
def test_a_baseline_whose_own_column_differs_is_refused_where_it_is_the_task(hashed, tmp_path):
    other = planted_store(
        tmp_path / "o.zarr", layers=1, onset=1, examples=200, hashed=True, condition="blank", changed={"subject": "horse"}
    )
    refused = run(hashed, *QUICK, "--tasks", "subject", "--baseline", other, "--out", tmp_path / "res")
    assert refused.exit_code == 2
    assert "found another subject in" in refused.stderr
    assert run(hashed, *QUICK, "--baseline", other, "--out", tmp_path / "res").exit_code == 0


def test_curves_of_other_captions_are_not_paired(hashed, tmp_path):
    other = planted_store(tmp_path / "o.zarr", layers=1, onset=1, examples=200, hashed=True, changed={"caption": "Another."})
    quick = {"layers": (1,), "strengths": (1e-2,), "draws": 100}
    own, theirs = layer_curve(hashed, **quick), layer_curve(other, **quick)
    with pytest.raises(InvalidInputError, match=r"1 of 200 that differ in image, caption, relation or label, first at id 'e00007'"):
        own.difference(theirs)


def test_the_same_rows_are_no_other_examples(hashed):
    store = ActivationStore.open(hashed)
    refuse_other_examples(store, store, "a baseline", ("subject", "split"))


@pytest.mark.slow
def test_stores_of_one_provenance_give_each_its_own_numbers(tmp_path):
    """Two stores with equal fingerprints but other activations, probed into one folder."""
    options = {"layers": 1, "onset": 1, "examples": 200, "hashed": True}
    first = planted_store(tmp_path / "a.zarr", numbers=1, **options)
    second = planted_store(tmp_path / "b.zarr", numbers=2, strength=0.0, **options)
    assert ActivationStore.open(first).fingerprint() == ActivationStore.open(second).fingerprint()
    measures = ("--measures", "mdl")
    alone = run(second, *QUICK, *measures, "--out", tmp_path / "alone")
    run(first, *QUICK, *measures, "--out", tmp_path / "shared")
    again = run(second, *QUICK, *measures, "--out", tmp_path / "shared")
    assert alone.exit_code == again.exit_code == 0, again.output
    for name in ("probe-truth-final.zarr.zip", "codelength-truth-final.zarr.zip"):
        assert (tmp_path / "shared" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
