"""Probes on single image tokens: planted labels are found where they lie, and numbers are those of scikit-learn."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner
from planted_cells import SIDE, planted_cells
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import r2_score, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from stratascope.cli import main
from stratascope.errors import InvalidInputError, NotRecordedError, StoreError, TooFewExamplesError
from stratascope.probe import PatchProbes, patch_probes
from stratascope.probe.patches import PatchLayer, solve_layer
from stratascope.probe.tasks.geometry import reads_image
from stratascope.probe.tasks.image_cells import DIRECTIONS, CellSample
from stratascope.store import ActivationStore


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> ActivationStore:
    return ActivationStore.open(planted_cells(tmp_path_factory.mktemp("cells") / "c.zarr"))


@pytest.fixture(scope="module")
def sample(cells: ActivationStore) -> CellSample:
    return CellSample(cells, 20, 5, 0)


def test_groups_of_cells_are_image_positions_and_text_after_the_image_is_not() -> None:
    assert reads_image("cell_0_3")
    assert reads_image("subject+cell_0_3")
    assert not reads_image("after_image_0+subject_0")


def test_labels_are_those_of_pixels(cells: ActivationStore, sample: CellSample) -> None:
    assert sample.numbers.tolist() == list(range(58)), "the last two examples have no patches"
    assert np.bincount(sample.examples).tolist() == [20] * 58
    rows, columns = cells.grid[sample.examples].T
    y, x = (sample.first // columns + 0.5) * SIDE / rows, (sample.first % columns + 0.5) * SIDE / columns
    for who in ("subject", "object"):
        box = cells.examples.iloc[sample.examples][[f"{who}_{side}" for side in ("x0", "y0", "x1", "y1")]].to_numpy().T
        expected = np.where(np.isnan(box).any(0), -1, (x >= box[0]) & (x < box[2]) & (y >= box[1]) & (y < box[3]))
        assert sample.task(f"on_{who}").labels.tolist() == expected.tolist()
    assert (sample.task("on_object").folds.of == -1).tolist() == (sample.examples == 0).tolist(), "example 0 has no box of the object"
    np.testing.assert_allclose(sample.task("coordinates").labels, np.stack([y / SIDE, x / SIDE], 1))
    task = sample.task("direction")
    assert (sample.first != sample.other).all()
    down = sample.first // columns - sample.other // columns
    across = sample.first % columns - sample.other % columns
    names = np.array([*DIRECTIONS, ""])[task.labels]
    for name, chosen in (
        ("above", -down > abs(across)),
        ("below", down > abs(across)),
        ("left", -across > abs(down)),
        ("right", across > abs(down)),
    ):
        assert ((names == name) == chosen).all()
    # no image is in two folds
    assert all(len(set(task.folds.of[(sample.examples == k) & (task.labels >= 0)])) == 1 for k in sample.numbers)


@pytest.mark.slow
def test_out_of_fold_answers_are_those_of_scikit_learn(cells: ActivationStore, sample: CellSample) -> None:
    tasks = tuple(sample.task(name) for name in ("on_subject", "coordinates", "direction"))
    found = solve_layer(PatchLayer(cells, 2, sample.examples, tasks))
    whole = cells.read("patch_residual", layer=2, examples=sample.numbers)
    first, other = (whole[sample.examples, chosen].astype(np.float64) for chosen in (sample.first, sample.other))
    inputs = (first, first, first - other)
    for task, answer, x in zip(tasks, found, inputs, strict=True):
        for fold in range(5):
            train, test = (task.folds.of >= 0) & (task.folds.of != fold), task.folds.of == fold
            if task.classes:
                model = make_pipeline(StandardScaler(), LogisticRegression(C=answer.strength[fold], tol=1e-10, max_iter=10_000))
                expected = np.atleast_2d(model.fit(x[train], task.labels[train]).decision_function(x[test]).T)
                own = answer.logits[:, test]
                if len(task.classes) > 2:  # a softmax knows its logits up to a constant
                    expected, own = expected - expected.mean(0), own - own.mean(0)
                np.testing.assert_allclose(own, expected, atol=2e-3)
            else:
                for target in range(2):
                    model = make_pipeline(StandardScaler(), Ridge(alpha=1 / answer.strength.reshape(2, 5)[target, fold]))
                    expected = model.fit(x[train], task.labels[train, target]).predict(x[test])
                    np.testing.assert_allclose(answer.logits[target, test], expected, atol=1e-4)
    scores = patch_probes(cells, tasks=("on_subject", "coordinates"), layers=(2,), cells=20, draws=200)
    folds, label, logit = tasks[0].folds.of, tasks[0].labels, found[0].logits[0]
    pairs = np.array([np.prod(np.bincount(label[folds == f])) for f in range(5)])
    aurocs = np.array([roc_auc_score(label[folds == f], logit[folds == f]) for f in range(5)])
    assert scores.rows("on_subject")["value"].item() == pytest.approx(float((aurocs * pairs).sum() / pairs.sum()), abs=1e-6)
    for target, curve in enumerate(("row", "column")):
        expected = r2_score(tasks[1].labels[:, target], found[1].logits[target])
        assert scores.rows(curve)["value"].item() == pytest.approx(expected, abs=1e-6)
    alone = make_pipeline(StandardScaler(), LogisticRegression(C=0.1)).fit(tasks[0].position, label).decision_function(tasks[0].position)
    assert abs(scores.rows("on_subject")["baseline"].item() - roc_auc_score(label, alone)) < 0.06, "a baseline as good as it can be"


@pytest.mark.slow
def test_planted_layers_are_found_and_no_others(tmp_path: Path) -> None:
    cells = ActivationStore.open(planted_cells(tmp_path / "large.zarr", examples=300))  # coordinates tell little of boxes
    done = CliRunner().invoke(main, ["patches", cells.name, "--cells", "36", "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    found = PatchProbes.load(tmp_path / "patches.zarr.zip")
    subject, thing = found.rows("on_subject"), found.rows("on_object")
    assert (subject["advantage_low"] > 0).tolist() == [False, False, True, False]
    assert subject["low_simultaneous"].iloc[2] > 0.9
    assert subject["baseline"].iloc[0] > 0.6, "boxes tend to the middle"
    # coordinates alone read boxes above chance, and not above the position that the baseline knows
    assert thing["low_simultaneous"].iloc[3] > 0.5
    assert not (thing["advantage_low"] > 0).any()
    for curve in ("row", "column", "direction"):
        rows = found.rows(curve)
        assert (rows["low_simultaneous"] > rows["chance"]).tolist() == [False, True, True, True]
    assert "on_subject AUROC" in done.output
    assert "significantly above position alone in layer 2\n" in done.output
    least = thing["minimum_detectable_effect"].max()
    said = f"not detected above position alone in any layer (an advantage of {least:.2f} would have been detected with 80 % power)\n"
    assert said in done.output
    half = (thing["advantage_high"] - thing["advantage_low"]) / 2
    assert (thing["minimum_detectable_effect"] > half).all()
    assert "above chance (0.25) in layers 1-3\n" in done.output
    assert (tmp_path / "patches.png").exists()
    again = patch_probes(cells, **{**found.options, "layers": (2,), "tasks": ("on_subject",)})
    assert again.rows("on_subject")["value"].item() == subject["value"].iloc[2], "a layer does not depend on the others"


def test_what_cannot_be_probed_is_refused(cells: ActivationStore, store: ActivationStore, tmp_path: Path) -> None:
    with pytest.raises(NotRecordedError, match="expected patch_residual in the store, found none; extract again with --patches N"):
        patch_probes(store)
    with pytest.raises(NotRecordedError, match=r"expected `layers` of patch_residual, found 7; it holds 0\.\.3"):
        patch_probes(cells, layers=(0, 7))
    with pytest.raises(InvalidInputError, match="expected `tasks` of on_subject, on_object, coordinates, direction, found truth"):
        patch_probes(cells, tasks=("truth",))
    few = ActivationStore.open(planted_cells(tmp_path / "few.zarr", examples=15))
    with pytest.raises(TooFewExamplesError, match="expected image tokens of at least 20 images for intervals over images, found 13"):
        patch_probes(few)
    with pytest.raises(TooFewExamplesError, match="task direction: expected cells of the class 'above' in at least 25 images, one a fold"):
        patch_probes(cells, tasks=("direction",), cells=2, folds=25)
    sample = CellSample(cells, 4, 5, 0)
    damaged = SimpleNamespace(layout=cells.layout, patch_counts=cells.patch_counts, read=lambda *_, **__: np.full((36, 10), np.nan))
    with pytest.raises(StoreError, match="expected numbers in the 36 image cells of example 0, found fewer; run `stratascope verify`"):
        solve_layer(PatchLayer(damaged, 0, sample.examples, (sample.task("coordinates"),)))
    found = CliRunner().invoke(main, ["probe", cells.name, "--array", "patch_residual", "--tasks", "label"])
    assert found.exit_code == 2
    assert "stratascope patches" in found.stderr
