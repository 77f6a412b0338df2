"""Weights that were drawn anew: the same architecture, prompt and images, and nothing that was learned."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from stratascope.cli import main
from stratascope.errors import InvalidInputError, ProvenanceMismatchError
from stratascope.extract import plan_extraction
from stratascope.results.registry import load_result
from stratascope.store import ActivationStore, condition_of

pytest.importorskip("torch")

import torch

from stratascope.extract import run_extraction
from stratascope.extract.model_files import resolve_model
from stratascope.extract.run.loading import load_model
from tests.extract.saved import save

RESIDUAL = ("residual", "attention_rows")


@pytest.fixture(scope="module")
def untrained(settings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("untrained") / "untrained.zarr"
    run_extraction(plan_extraction(replace(settings, untrained=3, record=RESIDUAL)), path)
    return path


def test_weights_are_drawn_as_the_architecture_draws_them_and_follow_from_the_seed() -> None:
    source = resolve_model("demo")
    before = torch.random.get_rng_state()
    drawn, again, other = (dict(load_model(source, torch.float32, seed).named_parameters()) for seed in (3, 3, 4))
    assert torch.equal(torch.random.get_rng_state(), before), "the caller's random state was touched"
    trained = dict(load_model(source, torch.float32).named_parameters())
    assert {name: each.shape for name, each in drawn.items()} == {name: each.shape for name, each in trained.items()}
    assert all(torch.equal(drawn[name], again[name]) for name in drawn)
    matrices = [name for name, each in drawn.items() if each.dim() > 1]
    assert not any(torch.equal(drawn[name], other[name]) or torch.equal(drawn[name], trained[name]) for name in matrices)
    width = source.config.get("text_config", source.config).get("initializer_range", 0.02)
    queries = drawn["model.language_model.layers.0.self_attn.q_proj.weight"]
    assert float(queries.detach().std()) == pytest.approx(width, rel=0.1)


@pytest.mark.parametrize("name", ["qwen2_5_vl", "llava", "gemma3", "paligemma", "idefics3", "internvl"])
def test_no_family_leaves_weights_that_were_never_drawn(name: str, tmp_path: Path) -> None:
    source = resolve_model(str(save(name, tmp_path / name)))
    for path in source.folder.glob("*.safetensors*"):
        path.unlink()  # they are not needed
    first, second = (load_model(source, torch.float32, 0).state_dict() for _ in range(2))
    assert all(torch.isfinite(each).all() for each in first.values())
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.slow
def test_the_same_tokens_and_positions_are_recorded_and_the_store_says_what_it_is(untrained: Path, store: ActivationStore) -> None:
    drawn = ActivationStore.open(untrained)
    assert drawn.complete
    assert drawn.examples["id"].tolist() == store.examples["id"].tolist()
    assert drawn.layout.positions == store.layout.positions
    np.testing.assert_array_equal(drawn.n_tokens, store.n_tokens)
    assert drawn.provenance["model"]["untrained"] == 3
    assert "untrained" not in store.provenance["model"], "stores of trained weights are as they were"
    assert condition_of(drawn.provenance) == "untrained"
    assert drawn.fingerprint() != store.fingerprint()
    assert "untrained: weights drawn with seed 3" in CliRunner().invoke(main, ["info", str(untrained)]).output
    # of what was drawn nothing tells a true caption from a false one
    assert np.ptp(drawn.read("answer_logits"), axis=0).max() < np.ptp(store.read("answer_logits"), axis=0).min()


@pytest.mark.slow
def test_seeds_and_trained_weights_are_never_mixed_in_one_store(settings, untrained: Path, store_path: Path) -> None:
    trained, other = replace(settings, record=RESIDUAL), replace(settings, record=RESIDUAL, untrained=4)
    for chosen in (trained, other):
        with pytest.raises(ProvenanceMismatchError, match=r"model\.untrained: the store has 3"):
            run_extraction(plan_extraction(chosen), untrained)
    with pytest.raises(ProvenanceMismatchError, match=r"model\.untrained: the store has none, now 3"):
        run_extraction(plan_extraction(replace(settings, untrained=3)), store_path)


def test_a_seed_below_zero_is_refused(settings) -> None:
    with pytest.raises(InvalidInputError, match="expected `untrained` to be 0 or more, found -1"):
        replace(settings, untrained=-1)


def test_plan_says_so_and_the_option_takes_a_seed_or_none(scenes: Path) -> None:
    arguments = ["plan", "--model", "demo", "--examples", str(scenes / "scenes.jsonl"), "--images", str(scenes / "images")]
    for given, seed in (([], 0), (["5"], 5)):
        said = CliRunner().invoke(main, [*arguments, "--untrained", *given, "--condition", "blank"])
        assert f"untrained, weights drawn with seed {seed}" in said.output, said.output
    assert "untrained" not in CliRunner().invoke(main, arguments).output
    assert CliRunner().invoke(main, [*arguments, "--untrained", "-1"]).exit_code == 2


@pytest.mark.slow
def test_answers_of_untrained_weights_are_not_called_the_models(untrained: Path, tmp_path: Path) -> None:
    said = CliRunner().invoke(main, ["answers", str(untrained), "--out", str(tmp_path)])
    assert said.output.startswith("answers of untrained weights, not of the model:"), said.output
    report = CliRunner().invoke(main, ["report", str(untrained), str(tmp_path), "-o", str(tmp_path / "report.html")])
    assert report.exit_code == 0, report.output
    page = (tmp_path / "report.html").read_text()
    assert "with untrained weights" in page
    assert "The model itself answers" not in page


@pytest.mark.slow
def test_probes_draw_it_beside_the_model_as_a_baseline(untrained: Path, store_path: Path, tmp_path: Path) -> None:
    probe = ["probe", str(store_path), "--tasks", "truth", "--positions", "final", "--strengths", "1e-3,1e-2,1e-1"]
    said = CliRunner().invoke(main, [*probe, "--baseline", str(untrained), "--out", str(tmp_path)])
    assert said.exit_code == 0, said.output
    assert any(line.startswith("  above ") and "untrained" in line for line in said.output.splitlines())
    over = load_result(tmp_path / "advantage-truth-final-over-untrained.zarr.zip")
    assert over.attributes["baseline"]["condition"] == "untrained"
    report = CliRunner().invoke(main, ["report", str(store_path), str(tmp_path), "-o", str(tmp_path / "report.html")])
    assert report.exit_code == 0, report.output
    assert "advantage over untrained weights" in (tmp_path / "report.html").read_text()
