"""Transfer across data sets: trained on one store, tested on other examples in another."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from planted import planted_store
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import accuracy_score, balanced_accuracy_score, r2_score, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from stratascope.cli import main
from stratascope.errors import InvalidInputError
from stratascope.probe import CrossTransfer, cross_transfer, layer_curve
from stratascope.probe.tasks.matched_tasks import shared_images
from stratascope.report.result_set import gather
from stratascope.report.sections import transfer_blocks
from stratascope.store import ActivationStore

QUICK = {"strengths": (1e-2,), "draws": 300, "scheduler": "synchronous"}
OTHER = {"examples": 260, "layers": 2, "onset": 1, "seed": 5, "hashed": True}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """Training on images 0-149; test on images 120-249, of which 30 are shared."""
    folder = tmp_path_factory.mktemp("other")
    own = planted_store(folder / "a.zarr", examples=300, layers=2, onset=1, hashed=True, boxes=True)
    other = planted_store(folder / "b.zarr", images_from=120, boxes=True, **OTHER)
    return ActivationStore.open(own), ActivationStore.open(other)


def both(stores, position, layer=1):
    """Training rows, and test rows of the images from 150 on."""
    _source, _target = stores
    there = [np.flatnonzero(store.available("residual", position)) for store in stores]
    there[1] = there[1][there[1] >= 60]
    x = [
        store.read("residual", layer=layer, position=position, examples=index).astype(float)
        for store, index in zip(stores, there, strict=True)
    ]
    return x, [store.examples.iloc[index] for store, index in zip(stores, there, strict=True)]


def test_scores_are_those_of_scikit_learn_fitted_to_one_store_and_tested_on_the_other(stores):
    found = cross_transfer(*stores, **QUICK, tolerance=1e-12)
    (x, z), (train, test) = both(stores, "final")
    assert (found.attributes["tested"]["examples"], found.attributes["tested"]["images"]) == (200, 100)
    assert found.attributes["shared_images"] == 60
    model = make_pipeline(StandardScaler(), LogisticRegression(C=1e-2, tol=1e-10, max_iter=5000)).fit(x, train["label"])
    assert found.value(1, "auroc") == pytest.approx(roc_auc_score(test["label"], model.decision_function(z)), abs=1e-4)
    assert found.value(1, "accuracy") == pytest.approx(accuracy_score(test["label"], model.predict(z)), abs=1e-4)
    rows = found.rows().set_index("layer")
    assert rows.loc[1, "low_simultaneous"] > 0.75
    assert rows.loc[0, "low_simultaneous"] < 0.5, "nothing is planted at layer 0"
    own = layer_curve(stores[0], **QUICK)
    np.testing.assert_allclose(rows["own_value"], own.rows()["value"])
    assert "left out: 60 examples of b whose image is also in a.zarr" in found.summary()


def test_several_classes_by_name_and_values(stores):
    found = cross_transfer(*stores, "relation", "relation", tolerance=1e-12, **QUICK)
    (x, z), (train, test) = both(stores, "relation")
    model = make_pipeline(StandardScaler(), LogisticRegression(C=1e-2, tol=1e-10, max_iter=5000)).fit(x, train["relation"])
    assert found.value(1) == pytest.approx(balanced_accuracy_score(test["relation"], model.predict(z)), abs=1e-4)
    found = cross_transfer(*stores, "geometry", "final", **QUICK)
    (x, z), (train, test) = both(stores, "final", 2)
    sides = [(table["subject_x0"] + table["subject_x1"]).to_numpy(float) / 2 / 56 for table in (train, test)]
    known = train["object_x0"].notna().to_numpy()
    ridge = make_pipeline(StandardScaler(), Ridge(alpha=100.0)).fit(x[known], sides[0][known])
    assert found.value(2, "r2_subject_x") == pytest.approx(r2_score(sides[1], ridge.predict(z)), abs=1e-4)
    assert found.metric == "r2"


def test_classes_that_one_store_alone_has_are_left_out_and_counted(stores, tmp_path):
    named = planted_store(tmp_path / "c.zarr", images_from=500, relations=("left of", "right of", "near"), **OTHER)
    found = cross_transfer(stores[0], named, "relation", "relation", tolerance=1e-12, **QUICK)
    assert found.attributes["classes"] == ["left of", "right of"]
    relations = [ActivationStore.open(path).examples["relation"].iloc[:-1] for path in (stores[0].name, named)]
    counts = [own.value_counts().to_dict() for own in relations]
    assert found.attributes["unmatched"] == {"near": counts[1]["near"]}
    assert found.attributes["unmatched_trained"] == {"above": counts[0]["above"], "below": counts[0]["below"]}
    assert found.attributes["tested"]["examples"] == 259 - counts[1]["near"]
    assert f"left out: {counts[1]['near']:,} examples of c of classes that only it has: near" in found.summary()
    assert found.value(1) > 0.95
    alone = planted_store(tmp_path / "d.zarr", images_from=500, relations=("left of", "near"), **OTHER)
    with pytest.raises(InvalidInputError, match=r"that d\.zarr also has, found left of; a\.zarr has above, below, left of, right of"):
        cross_transfer(stores[0], alone, "relation", "relation", **QUICK)
    values = {"side": dict.fromkeys(stores[0].examples["id"], "left")}
    with pytest.raises(InvalidInputError, match="task 'side': expected ids that only one of the stores has"):
        cross_transfer(*stores, "side", values=values)


def test_the_matrix_agrees_with_the_curve(stores, tmp_path):
    found = cross_transfer(*stores, matrix=True, name="other", **QUICK)
    same = found.matrix[found.matrix["layer"] == found.matrix["to_layer"]]
    np.testing.assert_allclose(same["value"], found.rows()["value"])
    assert len(found.matrix) == 9
    assert (found.matrix["high_simultaneous"] - found.matrix["low_simultaneous"]).mean() > 0
    found.save(tmp_path / "found.zarr.zip")
    back = CrossTransfer.load(tmp_path / "found.zarr.zip")
    pd.testing.assert_frame_equal(back.matrix, found.matrix)
    assert back.file_name == "test-truth-final-on-other"
    assert back.summary() == found.summary()
    assert len(back.figure().axes) == 3, "curve, matrix and its colour bar"
    worse = replace(found, table=found.table.assign(low_simultaneous=0.1, high_simultaneous=0.2))
    last = int(found.table["layer"].max())
    said = (
        f"not detected (n = 200); AUROC at most 0.53 in every layer; significantly below chance in layers 0-{last} (95% simultaneous band)"
    )
    assert said in worse.summary()
    less = replace(worse, attributes={**found.attributes, "metric": "log_loss"})
    assert f"; above chance in layers 0-{last} (95% simultaneous band)" in less.summary()
    alone = cross_transfer(*stores, **QUICK)
    alone.save(tmp_path / "alone.zarr.zip")
    assert len(CrossTransfer.load(tmp_path / "alone.zarr.zip").matrix) == 0


def test_images_are_compared_by_content_and_without_hashes_by_name(stores, tmp_path):
    assert shared_images(*stores).sum() == 60
    plain = ActivationStore.open(planted_store(tmp_path / "c.zarr", images_from=140, **{**OTHER, "hashed": False}))
    assert shared_images(stores[0], plain).sum() == 20, "images 140-149 by name"
    renamed = ActivationStore.open(planted_store(tmp_path / "d.zarr", twins=True, **{**OTHER, "hashed": False}))
    assert shared_images(stores[0], renamed).all(), "other names, the same content"
    near = planted_store(tmp_path / "e.zarr", near=True, **{**OTHER, "hashed": False})
    # the same perceptual hashes as of e, of other content and under other names
    again = ActivationStore.open(planted_store(tmp_path / "f.zarr", near=True, images_from=700, **{**OTHER, "hashed": False}))
    again.examples["image_sha256"] = [f"{10_000 + i:064x}" for i in range(len(again))]
    assert shared_images(ActivationStore.open(near), again).all(), "near-duplicates"
    again.examples["image_phash"] = ""
    assert not shared_images(ActivationStore.open(near), again).any()


def test_other_models_and_shared_examples_are_refused(stores, tmp_path):
    own, _ = stores
    with pytest.raises(InvalidInputError, match="found all 300 of them shared: for another condition"):
        cross_transfer(own, own)
    deeper = planted_store(tmp_path / "deep.zarr", images_from=500, **{**OTHER, "layers": 3})
    with pytest.raises(InvalidInputError, match=r"expected residual of 2 decoder blocks with 12 numbers as in a\.zarr, found 3 with 12"):
        cross_transfer(own, deeper)
    wider = planted_store(tmp_path / "wide.zarr", images_from=500, hidden=14, **OTHER)
    with pytest.raises(InvalidInputError, match=r"found 2 with 14 in wide\.zarr"):
        cross_transfer(own, wider)
    other = ActivationStore.open(planted_store(tmp_path / "model.zarr", images_from=500, **OTHER))
    other.provenance["model"] = "another"
    with pytest.raises(InvalidInputError, match=r"expected a store of the same model as a\.zarr, found name 'another' in model\.zarr"):
        cross_transfer(own, other)
    for options, message in (({"method": "mlp"}, "expected a linear probe"), ({"metric": "f1"}, "expected `metric` of accuracy")):
        with pytest.raises(InvalidInputError, match=message):
            cross_transfer(*stores, **({**QUICK, **options} if "metric" in options else options))
    with pytest.raises(InvalidInputError, match="expected a task without control"):
        cross_transfer(*stores, "truth:shuffled")


def test_the_command_tests_on_another_store_and_reports_it(stores, tmp_path):
    words = ["--tasks", "truth", "--positions", "final", "--strengths", "0.01", "--transfer", "--out", str(tmp_path / "r")]
    given = ["--test-on", stores[1].name, "--test-on", f"again={stores[1].name}"]
    done = CliRunner().invoke(main, ["probe", stores[0].name, *words, *given])
    assert done.exit_code == 0, done.output
    assert "truth at final, trained on a.zarr (300 examples), tested on b (200 examples, 100 images): " in done.stdout
    assert {"test-truth-final-on-b.png", "test-truth-final-on-again.zarr.zip"} <= {path.name for path in (tmp_path / "r").iterdir()}
    results = gather(stores[0], [tmp_path / "r"])
    assert [block.title for block in transfer_blocks(results)] == ["truth at final, tested on again", "truth at final, tested on b"]
    twice = CliRunner().invoke(
        main, ["probe", stores[0].name, *words, "--test-on", f"x={stores[1].name}", "--test-on", f"x={stores[1].name}"]
    )
    assert (twice.exit_code, "expected a name for each store, found 'x' twice" in twice.stderr) == (2, True)


def test_a_null_result_has_the_minimum_detectable_effect_of_its_examples(stores):
    """Nothing is planted at layer 0. The effect is that of an AUROC over chance: half-width and .84 standard errors at its own size."""
    found = cross_transfer(*stores, layers=0, **QUICK)
    row = found.rows().iloc[0]
    least = row["minimum_detectable_effect"]
    n = found.attributes["tested"]["examples"]
    labels = both(stores, "final")[1][1]["label"]
    many = int(labels.sum())
    error = np.sqrt((n + 1) / (12 * many * (n - many)))  # of an AUROC without signal, for independent examples
    above = 0.5 + least
    shrunk = (above / (2 - above) + 2 * above**2 / (1 + above) - 2 * above**2) / (1 / 12 * 2)  # Hanley & McNeil, equal classes
    assert least == pytest.approx((1.96 + 0.842) * error * np.sqrt(shrunk), rel=0.2)
    assert f"not detected, by {row['value'] - 0.5:+.3f} [" in found.summary()
    assert f"(n = 200; AUROC of at least {0.5 + least:.2f} would have been detected with 80 % power)" in found.summary()
    losses = replace(found, attributes={**found.attributes, "metric": "log_loss"})
    chance = losses.rows()["chance"].iloc[0]
    assert losses.claims.value[0] == pytest.approx(chance - losses.rows()["value"].iloc[0])
    assert losses.claims.bands.low_simultaneous[0] == pytest.approx(chance - losses.rows()["high_simultaneous"].iloc[0])
    assert f"(n = 200); log loss at least {chance - 0.01:.2f} in this layer" in losses.summary(), "the upper bound excludes less than .01"


def test_a_shared_second_image_is_a_shared_image():
    one = pd.DataFrame({"image": ["a", "b"], "image_sha256": ["1", "2"], "image_phash": ["", ""]})
    two = one.assign(image_2=["c", "d"], image_2_sha256=["3", "4"], image_2_phash="")
    other = pd.DataFrame({"image": ["x", "y", "z"], "image_sha256": ["4", "7", "1"], "image_phash": ""})
    both = other.assign(image_2=["u", "v", "w"], image_2_sha256=["8", "3", "9"], image_2_phash="")
    stores = [SimpleNamespace(examples=table) for table in (one, two, other, both)]
    assert shared_images(stores[0], stores[2]).tolist() == [False, False, True]
    assert shared_images(stores[1], stores[2]).tolist() == [True, False, True]
    assert shared_images(stores[1], stores[3]).tolist() == [True, True, True]
    assert shared_images(stores[0], stores[3]).tolist() == [False, False, True]
    unhashed = SimpleNamespace(examples=two.drop(columns=["image_sha256"]).assign(image=["y", "q"]))
    assert shared_images(unhashed, stores[3]).tolist() == [True, True, False]
