"""Folds keep images together and classes even; controls keep what they should and destroy the rest."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Ridge
from sklearn.preprocessing import OneHotEncoder

from stratascope.errors import InvalidInputError, TooFewExamplesError
from stratascope.probe import Folds, grouped_folds, official_split, split_leakage
from stratascope.probe.tasks.controls import control_labels, recurring_share, shuffled_labels, type_accuracy
from stratascope.probe.tasks.task import Task
from stratascope.probe.validation.fold_design import design_for


@settings(max_examples=30, deadline=None)
@given(st.integers(80, 400), st.integers(2, 5), st.integers(0, 1000))
def test_groups_stay_together_and_classes_are_even(n, folds, seed):
    rng = np.random.default_rng(seed)
    groups = rng.integers(0, max(n // 2, 40), n)
    classes = rng.integers(0, 2, n)
    found = grouped_folds(groups, classes, folds=folds, seed=seed)
    assert found.count == folds
    table = pd.crosstab(groups, found.of)
    assert ((table > 0).sum(axis=1) == 1).all()
    counts = pd.crosstab(found.of, classes).to_numpy()
    assert np.ptp(counts, axis=0).max() <= 8
    again = grouped_folds(groups, classes, folds=folds, seed=seed)
    np.testing.assert_array_equal(found.of, again.of)


def test_seeds_give_other_folds():
    groups = np.arange(200)
    assert (grouped_folds(groups, seed=0).of != grouped_folds(groups, seed=1).of).any()


def test_examples_without_a_class_take_no_part():
    classes = np.where(np.arange(120) % 3 == 2, -1, np.arange(120) % 3)
    assert ((grouped_folds(np.arange(120), classes).of == -1) == (classes == -1)).all()


def test_too_few_examples_are_refused():
    with pytest.raises(TooFewExamplesError, match=r"at least 50 examples.*found 14.*extract more"):
        grouped_folds(np.arange(14), np.arange(14) % 2)
    with pytest.raises(TooFewExamplesError, match=r"at least 5 groups.*found 3"):
        grouped_folds(np.arange(90) % 3, np.arange(90) % 2)
    with pytest.raises(TooFewExamplesError, match=r"rare.*`minimum` 4"):
        grouped_folds(np.arange(90), (np.arange(90) > 86).astype(int), class_names=("common", "rare"))
    with pytest.raises(TooFewExamplesError, match="two classes"):
        grouped_folds(np.arange(90), np.zeros(90, int), class_names=("a", "b"))
    with pytest.raises(InvalidInputError, match="at least 2 folds"):
        grouped_folds(np.arange(90), folds=1)


def test_no_model_that_chooses_has_seen_what_it_chooses_for():
    folds = grouped_folds(np.arange(100), np.arange(100) % 2)
    design = design_for(folds, 8)
    assert len(design.training) == 10 + 5 + 1
    for outer in design.outer:
        assert not design.training[outer.model, outer.block]
        assert len(outer.inner) == 4
        for model, block in outer.inner:
            assert not design.training[model, [block, outer.block]].any()
    with pytest.raises(InvalidInputError, match=r"at least 3 folds.*single strength"):
        design_for(grouped_folds(np.arange(100), folds=2), 8)


def test_shuffling_keeps_folds_and_groups_alike_and_destroys_the_labels():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(300), 3)
    codes = np.repeat(rng.integers(0, 2, 300), 3)
    folds = grouped_folds(groups, codes)
    shuffled, other = shuffled_labels(codes, folds, draws=2, seed=1)
    np.testing.assert_array_equal(shuffled, shuffled_labels(codes, folds, seed=1)[0])
    assert (shuffled != other).any()
    for fold in range(5):
        assert shuffled[folds.of == fold].sum() == codes[folds.of == fold].sum()
    assert (shuffled.reshape(-1, 3).std(axis=1) == 0).all(), "labels of an image stay alike"
    assert abs(np.corrcoef(shuffled, codes)[0, 1]) < 0.2


def typed_examples(count: int = 600, seed: int = 0) -> tuple[pd.DataFrame, np.ndarray, Folds]:
    """Examples of 8 relations and 9 subjects of unequal frequency, labels of 30 % True, and folds."""
    rng = np.random.default_rng(seed)
    subject = rng.choice([f"s{k}" for k in range(9)], count, p=np.arange(1, 10) / 45)
    examples = pd.DataFrame(
        {"relation": rng.choice(list("abcdefgh"), count), "subject": subject, "object": rng.choice(["bed", "box"], count)}
    )
    codes = (rng.random(count) < 0.3).astype(np.intp)
    return examples, codes, grouped_folds(np.arange(count), codes)


def test_a_control_task_gives_every_type_one_label_with_the_base_rates_of_the_task():
    examples, codes, folds = typed_examples()
    for types in (("relation", "subject"), ("relation", "subject", "object")):
        drawn = control_labels(codes, examples, folds, types=types, draws=20, seed=3)
        assert drawn.shape == (20, 600)
        for labels in drawn:
            assert (examples.assign(label=labels).groupby(list(types))["label"].nunique() == 1).all()
        np.testing.assert_allclose(drawn.mean(axis=1), codes.mean(), atol=2 / 600)
        assert len(np.unique(drawn, axis=0)) == 20
        share = np.array([examples.assign(label=drawn.mean(axis=0)).groupby(list(types))["label"].first()])
        assert share.std() < 0.2, "no type has a class of its own over draws"


def test_a_control_task_that_the_caption_predicts_is_refused():
    """One label for each relation is predicted without activations; one for each relation and subject is not."""
    examples, codes, folds = typed_examples()
    with pytest.raises(
        InvalidInputError, match=r"relation alone predict them with accuracy 1.00 \(base rate 0.7.*`types` relation,subject"
    ):
        control_labels(codes, examples, folds, types=("relation",), draws=20)
    labels = control_labels(codes, examples, folds, types=("relation", "subject"), draws=20)
    accuracy, base = type_accuracy(labels, examples[["relation", "subject"]], folds)
    right = []
    for row in labels:  # the same classifier by scikit-learn
        for fold in range(5):
            train, test = folds.of != fold, folds.of == fold
            values = OneHotEncoder().fit(examples[["relation", "subject"]])
            x = values.transform(examples[["relation", "subject"]]).toarray()
            y = row[train] - row[train].mean()
            fitted = Ridge(alpha=1.0, fit_intercept=False).fit(x[train], y)
            right.append((fitted.predict(x[test]) + row[train].mean() > 0.5) == row[test])
    assert accuracy == pytest.approx(np.concatenate(right).mean(), abs=1e-6)
    assert base == pytest.approx(1 - codes.mean(), abs=2 / 600)
    assert accuracy - base < 0.5 * (1 - base)


def test_a_control_task_whose_types_are_groups_is_refused():
    examples = pd.DataFrame({"relation": np.arange(200) // 2, "subject": "cat", "object": "bed"})
    folds = grouped_folds(np.arange(200) // 2, np.arange(200) % 2)
    assert recurring_share(examples["relation"].to_numpy(), folds.of) == 0
    with pytest.raises(InvalidInputError, match=r"selectivity would mean nothing.*`types` relation"):
        control_labels(np.arange(200) % 2, examples, folds)
    with pytest.raises(InvalidInputError, match="colour"):
        control_labels(np.arange(200) % 2, examples, folds, types=("colour",))


def test_official_splits_report_their_leakage():
    split = np.array(["train"] * 150 + ["test"] * 50)
    image = np.concatenate([np.arange(150), np.arange(30), np.arange(1000, 1020)]).astype(str)
    examples = pd.DataFrame({"split": split, "image": image})
    leakage = split_leakage(examples)
    assert (leakage.train, leakage.test, leakage.shared) == (150, 50, 30)
    assert str(leakage) == "30 of 50 test examples (60%) share their image with one of 150 training examples"
    folds = official_split(examples, np.arange(200) % 2)
    assert folds.test == 5
    assert (folds.of[150:] == 5).all()
    assert (folds.of[:150] < 5).all()
    with pytest.raises(TooFewExamplesError, match=r"^training examples, split train: .* found only 'true'"):
        official_split(examples, np.where(examples["split"] == "train", 1, 0), class_names=("false", "true"))
    strict = official_split(examples, np.arange(200) % 2, keep_leaked=False)
    assert (strict.of == 5).sum() == 20
    with pytest.raises(InvalidInputError, match=r"'dev'.*found only test, train"):
        split_leakage(examples, test=("dev",))


def test_classes_that_are_too_few_are_counted_and_the_minimum_named():
    task = Task("mood", np.repeat([0, 1, 2], [30, 5, 9]), ("calm", "grim", "odd"))
    everyone = np.ones(44, bool)
    with pytest.raises(
        TooFewExamplesError, match=r"20 examples.*calm 30, odd 9, grim 5; extract at least 11 more examples of odd, give `minimum` 9"
    ):
        task.among(everyone, 20)
    assert task.among(everyone, 9).classes == ("calm", "odd")
    with pytest.raises(TooFewExamplesError, match=r"found calm 30: a label that never differs; choose another task"):
        task.among(np.arange(44) < 30, 20)
    codes = np.repeat([0, 1], [54, 6])
    images = np.concatenate([np.arange(54), np.full(6, 90)])
    with pytest.raises(TooFewExamplesError, match=r"at least 5 groups.*found grim in 1; leave them out by `minimum` 7"):
        grouped_folds(images, codes, class_names=("calm", "grim"))
