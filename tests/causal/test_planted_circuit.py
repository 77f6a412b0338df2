"""A transformer with a planted circuit, through the commands: a concept that is readable from layer 1 on, and used from layer 3 on.

Block 0 copies the truth from the relation's token to dimension READ of the final token, which nothing reads. Block 2 copies it again, to
dimension ANSWER, which the unembedding reads. All else is noise of image and words.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from PIL import Image  # noqa: E402
from sklearn.linear_model import LogisticRegression  # noqa: E402
from sklearn.metrics import roc_auc_score  # noqa: E402
from sklearn.model_selection import StratifiedKFold, cross_val_predict  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import StandardScaler  # noqa: E402

from stratascope.causal import EncodingUse, Intervention, leace, mean_projection, one_hot  # noqa: E402
from stratascope.causal.use import use_table  # noqa: E402
from stratascope.cli import main  # noqa: E402
from stratascope.commands.interventions import saved_labels  # noqa: E402
from stratascope.extract import ExtractionSettings, plan_extraction, run_extraction  # noqa: E402
from stratascope.stats.bootstrap import Bootstrap  # noqa: E402
from stratascope.stats.intervals import band  # noqa: E402
from stratascope.stats.mean_ratio import mean_ratio  # noqa: E402
from stratascope.store import ActivationStore  # noqa: E402
from tests.extract.saved import save  # noqa: E402

SIGN, KEY, LAST, READ, ANSWER = 56, 57, 58, 60, 61
"""Dimensions of the residual stream: truth and marker of the relation's token, marker of the final token, the two copies."""
COUNT = 120
SLOW = 7
"""Dimension of a head whose rotary angle hardly changes over the prompt."""


def examples(folder: Path) -> ExtractionSettings:
    rng = np.random.default_rng(0)
    names = ("cat", "red car", "refrigerator", "potted plant")
    rows = []
    for k in range(COUNT):
        Image.fromarray(rng.integers(0, 256, (56, 56, 3), np.uint8)).save(folder / f"{k}.png")
        subject, thing = rng.choice(names, 2, replace=False)
        relation = "on" if k % 2 else "under"
        rows.append({"image": f"{k}.png", "caption": f"The {subject} is {relation} the {thing}.", "relation": relation, "label": k % 2})
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return ExtractionSettings(
        model=str(save("llava", folder / "model")), examples=(folder / "rows.jsonl",), images=folder, device="cpu", record=("residual",)
    )


def plant(settings: ExtractionSettings) -> None:
    """Set the weights of the model's folder by hand."""
    plan = plan_extraction(settings)
    answers = plan.tokenizer.choice_ids
    tokens = {plan.examples[k].label: plan.layouts[k].ids[plan.layouts[k].spans["relation"][1] - 1] for k in range(2)}
    last = plan.layouts[0].ids[-1]
    for layout, row in zip(plan.layouts, plan.examples, strict=True):
        assert list(layout.ids).count(tokens[row.label]) == 1
        assert tokens[1 - row.label] not in list(layout.ids)
    model = transformers.AutoModelForImageTextToText.from_pretrained(settings.model, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        decoder = model.model.language_model
        words = decoder.embed_tokens.weight
        words.copy_(torch.randn(words.shape, generator=generator))
        words[:, SIGN:] = 0
        for label, token in tokens.items():
            words[token, SIGN], words[token, KEY] = (8.0 if label else -8.0), 8.0
        words[last, LAST] = 8.0
        model.model.multi_modal_projector.linear_2.weight[SIGN:] = 0
        model.model.multi_modal_projector.linear_2.bias[SIGN:] = 0
        for k, block in enumerate(decoder.layers):
            for weight in block.parameters():
                weight.fill_(1.0) if weight.ndim == 1 else weight.zero_()
            attention = block.self_attn
            if k in (0, 2):  # head 0: the final token attends to the marked token and copies its sign
                attention.q_proj.weight[SLOW, LAST] = 1.0
                attention.k_proj.weight[SLOW, KEY] = 1.0
                attention.v_proj.weight[0, SIGN] = 1.0
                attention.o_proj.weight[READ if k == 0 else ANSWER, 0] = 0.5
            # heads 2 and 3 share keys and values: uniform attention, a mean of words and image patches as noise
            attention.v_proj.weight[16:32, :16].copy_(torch.eye(16))
            attention.o_proj.weight[:48, 32:64].copy_(0.5 * torch.randn(48, 32, generator=generator))
        decoder.norm.weight.fill_(1.0)
        head = model.lm_head.weight
        head.copy_(0.1 * torch.randn(head.shape, generator=generator))
        head[:, SIGN:] = 0
        head[answers["True"]], head[answers["False"]] = 0, 0
        head[answers["True"], ANSWER], head[answers["False"], ANSWER] = 2.0, -2.0
    model.save_pretrained(settings.model)


OPTIONS = ("--factors", "1,2", "--control-kinds", "covariance,isotropic")


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the model, its data, a store and the results of `probe` and `intervene`."""
    folder = tmp_path_factory.mktemp("planted")
    settings = examples(folder)
    plant(settings)
    run_extraction(plan_extraction(settings), folder / "store.zarr")
    run("probe", folder / "store.zarr", "--positions", "final", "-o", folder / "results")
    run("intervene", folder / "store.zarr", folder / "results", *data(folder), *OPTIONS)
    return folder


def data(folder: Path) -> tuple[object, ...]:
    return ("--data", folder / "rows.jsonl", "--images", folder)


def run(*words: object, code: int = 0) -> str:
    result = CliRunner().invoke(main, list(map(str, words)))
    assert result.exit_code == code, result.output
    return result.output


@pytest.mark.slow
def test_a_concept_readable_at_one_layer_and_used_at_a_later_one_is_told_so(planted: Path) -> None:
    results = planted / "results"
    logits = ActivationStore.open(planted / "store.zarr").read("answer_logits")
    assert ((logits[:, 0] > logits[:, 1]) == np.arange(COUNT) % 2).all(), "the circuit answers rightly"
    text = run("causal", results)
    joined = EncodingUse.load(results / "causal-truth.zarr.zip")
    assert joined.encoded("final").layers == (1, 2, 3, 4)
    assert joined.used("final").layers == (3, 4)
    assert "encoded at layers 1-4, used at layers 3-4 (erase); encoded without detected use at layers 1-2" in text
    made = Intervention.load(results / "intervene-truth.zarr.zip")
    assert made.events.set_index(["kind", "method"])["used_onset"].to_dict() == {
        ("erase", "leace"): 3, ("erase", "means"): 3, ("reflect", "means"): 3, ("steer", "means"): 3,
    }  # fmt: skip
    assert (made.events["used_offset"] == -1).all(), "the last layer still is used"
    reflected = made.series("final", "reflect").set_index("layer")["flipped"]
    assert reflected[[1, 2]].max() == 0
    assert reflected[[3, 4]].min() > 0.5
    unchanged = made.series("final", "erase", method="leace", control="isotropic")
    assert unchanged["effect"].max() < 0.02, "erasing a random direction does nothing"


@pytest.mark.slow
@pytest.mark.parametrize("erase", [leace, mean_projection])
def test_after_erasure_a_probe_refitted_on_other_images_is_at_chance(planted: Path, erase) -> None:
    """Erasure fitted on three folds; scikit-learn's probe refitted and tested within the two others, in which it was perfect before."""
    store = ActivationStore.open(planted / "store.zarr")
    labels = saved_labels(store, planted / "results", "truth")
    known, truth = labels.folds < 3, labels.labels
    bootstrap = Bootstrap(labels.groups[~known], draws=1000)
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))

    def refitted(rows: np.ndarray) -> np.ndarray:
        return cross_val_predict(probe, rows, truth[~known], method="decision_function", cv=StratifiedKFold(5))

    after = []
    for layer in (1, 2, 3, 4):
        x = store.read("residual", layer=layer, position="final", examples=labels.examples).astype(float)
        assert roc_auc_score(truth[~known], refitted(x[~known])) > 0.99
        after.append(refitted(erase(x[known], one_hot(truth[known]))(x[~known])))
    values = np.array([roc_auc_score(truth[~known], score) for score in after])
    found = band(values, np.stack([bootstrap.auroc(score, truth[~known] == 1) for score in after], 1))
    assert (found.low_simultaneous <= 0.5).all(), values
    assert (found.high_simultaneous >= 0.5).all(), values
    assert found.low_simultaneous.min() > 0.2, "an interval that holds everything shows nothing"


@pytest.mark.slow
def test_erasing_a_random_direction_has_an_effect_of_0_within_its_interval_and_is_not_called_use(planted: Path) -> None:
    """In each of 40 draws in the place of the concept, beside the others of its kind."""
    made = Intervention.load(planted / "results" / "intervene-truth.zarr.zip")
    difference = made.examples["difference"].to_numpy()
    bootstrap = Bootstrap(made.examples["group"].to_numpy(), draws=1000)
    claimed, inside = 0, {}
    for control in ("covariance", "isotropic"):
        kept = made.variants.query("kind == 'erase' and method == 'leace' and control == @control")
        assert sorted(set(kept["draw"])) == list(range(20))
        signed = made.change[kept.index] * np.sign(difference)
        _, _, bands = mean_ratio(signed, np.broadcast_to(np.abs(difference), signed.shape), bootstrap)
        inside[control] = np.mean((bands.low_simultaneous <= 1e-9) & (bands.high_simultaneous >= -1e-9))
        for draw in range(20):
            rows = kept.assign(control=np.where(kept["draw"] == draw, "", "covariance")).reset_index(drop=True)
            given = {"level": 0.95, "margin": 0.0, "control_factor": 1.0}
            table = use_table(rows, made.change[kept.index], pd.DataFrame(), difference, bootstrap, **given)
            assert np.isfinite(table["threshold"]).all()
            claimed += bool(table["used"].any())
    assert inside["isotropic"] == 1
    assert inside["covariance"] >= 0.95, "which vary as the activations do"
    assert claimed <= 4, "of 40: 5 % at most are expected"


@pytest.mark.slow
def test_an_interrupted_run_continues_to_the_same_bytes(planted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stratascope.extract.run import intervention_session as session

    write, calls = session._write, []

    def until_interrupted(path: Path, results: object) -> None:
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(path)
        write(path, results)

    out = planted / "again.zarr.zip"
    words = ("intervene", planted / "store.zarr", planted / "results", *data(planted), "-o", out)
    with monkeypatch.context() as patched:
        patched.setattr(session, "_write", until_interrupted)
        assert "run the same command to continue" in run(*words, *OPTIONS, code=130)
    assert not out.exists()
    assert "expected unfinished interventions of the same store" in run(*words, "--seed", 1, code=2)
    kept = [path.read_bytes() for path in calls]
    run(*words, *OPTIONS)
    assert out.read_bytes() == (planted / "results" / "intervene-truth.zarr.zip").read_bytes()
    assert len(kept) == 3
    assert not (planted / "again-unfinished").exists()


@pytest.mark.slow
def test_what_is_not_the_stores_is_refused(planted: Path, tmp_path: Path) -> None:
    """Other data, another model, results of another store, tasks that were not probed, and means that cannot be patched."""
    store, results = planted / "store.zarr", planted / "results"
    assert "give --data, --images" in run("intervene", store, results, code=2)
    other = tmp_path / "rows.jsonl"
    other.write_text((planted / "rows.jsonl").read_text().replace("cat", "car"))
    said = run("intervene", store, results, "--data", other, "--images", planted, code=2)
    assert "data.examples.rows.jsonl" in said
    said = run("intervene", store, results, *data(planted), "--model", "demo", code=2)
    assert "model.files" in said
    assert "found those of relation, truth; run `stratascope probe STORE --tasks category` first" in run(
        "intervene", store, results, *data(planted), "--task", "category", code=2
    )
    words = ("--source", f"same={store}", "--positions", "image", "--kinds", "patch")
    assert "expected all image tokens at layers 0..4, found them at none; extract it again" in run(
        "intervene", store, results, *data(planted), *words, code=2
    )
    assert "exactly with the kind patch" in run("intervene", store, results, *data(planted), "--kinds", "patch", code=2)
    for kind, words in (("erase", ("--kinds", "erase,delete")), ("20", ("--controls", "1,2"))):
        assert run("intervene", store, results, *words, code=2), kind


@pytest.mark.slow
def test_patching_from_the_store_itself_changes_nothing_at_all(planted: Path) -> None:
    """Every residual stream replaced by its own, as stored in float32."""
    out = planted / "itself.zarr.zip"
    words = ("--source", f"same={planted / 'store.zarr'}", "--kinds", "patch", "--positions", "final,relation", "--examples", 24)
    run("intervene", planted / "store.zarr", planted / "results", *data(planted), *words, "-o", out)
    made = Intervention.load(out)
    for values in (made.change, made.collateral, made.divergence, made.others, made.flipped):
        assert not values.any()
    assert not made.use["used"].any()
