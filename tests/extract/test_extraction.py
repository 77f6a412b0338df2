"""Extraction into a store: what is stored is what was captured, and stopping at any moment changes nothing."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from stratascope.analysis import answer_confidence
from stratascope.datasets import load_examples
from stratascope.errors import InvalidInputError, MissingExtraError, NotRecordedError, ProvenanceMismatchError
from stratascope.extract import ExtractionSettings, plan_extraction
from stratascope.store import ActivationStore, decode_maps, verify

pytest.importorskip("torch")

from stratascope.extract import run_extraction
from stratascope.extract.plan.images import open_image
from stratascope.extract.plan.plan_summary import plan_summary, unanswered
from stratascope.extract.plan.store_contents import store_contents
from stratascope.extract.run.local_processes import extract_in_processes
from stratascope.scheduling import shared_processes


def packed(captured) -> np.ndarray:
    """(block, query, key) packed maps of the first example of a batch."""
    return np.stack([block["weights"][0] for block in captured.maps.blocks])


def contents(path: Path) -> dict[str, bytes]:
    """Every file of a store but the group's own metadata, which holds the date."""
    return {str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file() and p.parent != path}


@pytest.mark.slow
def test_the_store_holds_what_the_model_gives(plan, store: ActivationStore) -> None:
    from stratascope.extract.run.session import ExtractionSession

    session = ExtractionSession(plan, batch_tokens=8192)
    for k in (0, 40, 95):
        image = open_image(plan.settings.images / plan.examples[k].image)
        alone = session.model.run(session._batch([k], [image]), dataclasses.replace(session.request, arrays=frozenset({"maps"})))
        tokens = int(plan.token_counts[k])
        for column, position in enumerate(plan.store.positions):
            stored = store.read("residual", position=position, examples=[k])[:, 0]
            np.testing.assert_allclose(stored, alone.residual[:, column, 0], atol=1e-5)
        rows = store.read("attention_rows", examples=[k])[:, 0, :, :tokens]
        np.testing.assert_allclose(rows, alone.rows[:, 0, :, :tokens], atol=5e-4)
        np.testing.assert_array_equal(store.read("attention_maps", examples=k)[:, :tokens, :tokens], packed(alone))
        np.testing.assert_allclose(store.read("answer_logits", examples=[k])[0], alone.answer_logits[0], atol=1e-5)


@pytest.mark.slow
def test_several_processes_write_the_bytes_of_one(settings: ExtractionSettings, store_path: Path, tmp_path: Path) -> None:
    with shared_processes(2, ["stratascope.extract.run.shard_block"]):
        extract_in_processes(settings, tmp_path / "s.zarr", 2)
        with pytest.raises(ProvenanceMismatchError, match="the store has"):
            extract_in_processes(dataclasses.replace(settings, condition="blank"), tmp_path / "s.zarr", 2)
    assert contents(tmp_path / "s.zarr") == contents(store_path)


def test_the_tables_describe_the_examples(plan, store: ActivationStore) -> None:
    table = store.examples
    assert table["caption"].tolist() == [example.caption for example in plan.examples]
    assert table["label"].tolist() == [int(example.label) for example in plan.examples]
    assert store.complete
    assert store.provenance["condition"] == "original"
    tokens = store.tokens(3)
    a, b = store.spans["subject"][3]
    assert "".join(tokens[a:b]).strip() == plan.examples[3].subject
    assert store.thumbnail(3).shape == (112, 112, 3)


@pytest.mark.slow
def test_interrupted_and_resumed_equals_uninterrupted(plan, store_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stratascope.extract.run.shard_block import ShardBlock

    real, calls = ShardBlock.run, []

    def stop_in_the_second(self, members):
        calls.append(members)
        if len(calls) == 2:
            raise KeyboardInterrupt
        real(self, members)

    path = tmp_path / "stopped.zarr"
    monkeypatch.setattr(ShardBlock, "run", stop_in_the_second)
    with pytest.raises(KeyboardInterrupt):
        run_extraction(plan, path)
    assert ActivationStore.open(path).written.tolist() == [True, False]
    monkeypatch.undo()
    assert run_extraction(plan, path).written_blocks == 1
    assert contents(path) == contents(store_path)
    assert run_extraction(plan, path).written_blocks == 0


@pytest.mark.slow
def test_killed_at_any_moment_and_resumed_equals_uninterrupted(scenes: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "stratascope", "extract", "--model", "demo", "--examples", str(scenes / "scenes.jsonl")]
    command += ["--images", str(scenes / "images"), "--device", "cpu", "--record", "residual"]
    whole = tmp_path / "whole.zarr"
    subprocess.run([*command, "--out", str(whole)], check=True, capture_output=True)
    killed = tmp_path / "killed.zarr"
    for wait in (3.0, 4.5, 6.0):
        process = subprocess.Popen([*command, "--out", str(killed)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run([*command, "--out", str(killed)], check=True, capture_output=True)
    assert contents(killed) == contents(whole)


@pytest.mark.slow
def test_two_shards_make_one_store(plan, store_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "sharded.zarr"
    for rank in (1, 0):
        run_extraction(plan, path, rank=rank, of=2)
    assert contents(path) == contents(store_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"condition": "blank"}, "condition"),
        ({"max_pixels": 112 * 112}, "processor.max_pixels"),
        ({"fusion": "max"}, "fusion"),
        ({"positions": ("final",)}, "layout.*positions"),
        ({"record": ("residual",)}, "layout.*record"),
        ({"record": ("residual", "knockout"), "knockouts": 2}, "knockouts"),
    ],
)
def test_a_store_of_other_provenance_is_refused(settings, store_path: Path, change: dict, named: str) -> None:
    other = plan_extraction(dataclasses.replace(settings, **change))
    with pytest.raises(ProvenanceMismatchError, match=named):
        run_extraction(other, store_path)


@pytest.mark.slow
def test_small_batches_give_the_same_numbers(plan, store: ActivationStore, tmp_path: Path) -> None:
    path = tmp_path / "single.zarr"
    run_extraction(plan, path, batch_tokens=1)
    alone = ActivationStore.open(path)
    np.testing.assert_allclose(alone.read("answer_logits"), store.read("answer_logits"), atol=1e-4)
    np.testing.assert_allclose(alone.read("residual", position="final"), store.read("residual", position="final"), atol=2e-4)


def test_the_prompt_that_does_not_name_the_relation(settings, tmp_path: Path) -> None:
    plan = plan_extraction(dataclasses.replace(settings, prompt="where", limit=8, record=("residual",)))
    assert plan.store.positions == ("final", "image", "subject", "object", "subject_box", "object_box")
    run_extraction(plan, tmp_path / "where.zarr")
    store = ActivationStore.open(tmp_path / "where.zarr")
    assert store.read("answer_logits").shape == (8, 5)
    # what its answers are refused for afterwards, the plan says beforehand
    with pytest.raises(NotRecordedError, match="expected labels that name the right choice"):
        answer_confidence(store)
    assert "the labels give no correct answer to 'where'" in plan_summary(plan)
    assert unanswered(plan_extraction(dataclasses.replace(settings, prompt="yes-no", limit=8))) == ""


def test_the_plan_writes_nothing_and_needs_no_torch(scenes: Path, tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None; sys.modules['transformers'] = None\n"
        "from stratascope.cli import main\n"
        f"main(['plan', '--model', 'demo', '--examples', {str(scenes / 'scenes.jsonl')!r}, '--images', {str(scenes / 'images')!r}])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "residual" in done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_probe_rollout_and_share_need_no_torch(store_path: Path, tmp_path: Path) -> None:
    code = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
from stratascope.cli import main
main(sys.argv[1:])
"""
    for command in (["probe", "--tasks", "truth", "--positions", "final"], ["rollout", "--examples", "1"], ["share"], ["info"]):
        where = [] if command == ["info"] else ["--out", str(tmp_path)]
        done = subprocess.run([sys.executable, "-c", code, *command, str(store_path), *where], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_without_the_extra_the_pip_command_is_named(scenes: Path, tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from stratascope.cli import main\n"
        f"main(['extract', '--model', 'demo', '--examples', 'x', '--images', 'y', '--out', {str(tmp_path / 's.zarr')!r}])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert "pip install 'stratascope[extract]', or in a checkout pip install '.[extract]'" in done.stderr
    assert issubclass(MissingExtraError, ImportError)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("slip", "told"),
    [
        (("--examples", "nowhere.jsonl"), "nowhere.jsonl: expected a readable"),
        (("--images", "nowhere"), "expected a folder of images, found none at nowhere"),
        (("--record", "resid"), "expected --record to be among"),
        (("--positions", "finl"), "expected --positions to be among"),
        (("--prompt", "what"), "expected --prompt to be among"),
        (("--model", "a/b/c"), "expected 'demo', a folder or a Hub id"),
        (("--system", "Hello", "--no-system"), "expected either --system or --no-system"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_slips_are_told_without_waiting_for_torch(scenes: Path, tmp_path: Path, slip: tuple[str, ...], told: str) -> None:
    right = {"--model": "demo", "--examples": str(scenes / "scenes.jsonl"), "--images": str(scenes / "images")}
    kept = [word for name, value in right.items() if name != slip[0] for word in (name, value)]
    code = (
        "import sys\nfrom stratascope.cli import main\ntry:\n    main(sys.argv[1:])\n"
        "except SystemExit as end:\n    print(end.code, sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    asked = ["extract", *kept, *slip, "--out", str(tmp_path / "s.zarr")]
    done = subprocess.run([sys.executable, "-c", code, *asked], capture_output=True, text=True)
    assert told in done.stderr
    assert done.stdout.strip() == "2 []"
    assert not (tmp_path / "s.zarr").exists()


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda folder: (folder / "images" / "scene_000002.png").unlink(), r"scene_000002\.png is missing"),
        (lambda folder: (folder / "images" / "scene_000001.png").write_bytes(b"not an image"), r"scene_000001\.png cannot be decoded"),
        (lambda folder: os.truncate(folder / "images" / "scene_000001.png", 900), r"scene_000001\.png cannot be decoded"),
    ],
    ids=["missing", "foreign", "truncated"],
)
def test_bad_images_are_named_before_the_model_is_loaded(tmp_path: Path, spoil, reason: str) -> None:
    from stratascope.datasets import write_scenes

    rows = write_scenes(tmp_path, 4, seed=0)
    spoil(tmp_path)
    with pytest.raises(InvalidInputError, match=reason):
        plan_extraction(ExtractionSettings(model="demo", examples=(rows,), images=tmp_path / "images", strict=True))


def test_an_undecodable_image_is_recorded_as_failed_and_the_rest_goes_on(tmp_path: Path) -> None:
    from stratascope.datasets import write_scenes
    from stratascope.store import STATUS_CODES

    rows = write_scenes(tmp_path, 6, seed=0)
    os.truncate(tmp_path / "images" / "scene_000002.png", 900)
    plan = plan_extraction(ExtractionSettings(model="demo", examples=(rows,), images=tmp_path / "images"))
    assert list(plan.failed) == [2]
    report = run_extraction(plan, tmp_path / "s.zarr")
    assert list(report.failed) == ["scenes-000003"]
    assert "scene_000002.png cannot be decoded" in report.failed["scenes-000003"]
    store = ActivationStore.open(tmp_path / "s.zarr")
    assert store.status.tolist() == [1, 1, STATUS_CODES["unreadable_image"], 1, 1, 1]
    assert "1 unreadable_image" in repr(store)
    with pytest.raises(NotRecordedError):
        store.read("residual", position="final")
    assert store.read("residual", position="final", examples=store.available("residual", "final")).shape == (7, 5, 96)


def test_shuffled_images_are_those_of_other_examples(settings, plan) -> None:
    shuffled = plan_extraction(dataclasses.replace(settings, condition="shuffled-image"))
    assert all(shown != example.image for shown, example in zip(shuffled.shown, shuffled.examples, strict=True))
    assert sorted(set(shuffled.shown)) == sorted({example.image for example in plan.examples})
    assert shuffled.position_tokens(0, "subject_box") is None
    assert store_contents(shuffled)["examples"]["subject_x0"].isna().all()
    assert shuffled.shown == plan_extraction(dataclasses.replace(settings, condition="shuffled-image")).shown


@pytest.mark.slow
def test_a_full_gpu_halves_the_batch_and_goes_on(plan, store: ActivationStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from stratascope.extract.run.model import CaptureModel

    real = CaptureModel.launch

    def small(self, batch, *rest):
        if len(batch.members) > 20:
            raise torch.OutOfMemoryError("on purpose")
        return real(self, batch, *rest)

    monkeypatch.setattr(CaptureModel, "launch", small)
    report = run_extraction(plan, tmp_path / "small.zarr")
    assert 1 <= report.halvings <= 3  # halved for good, not in every block
    halved = ActivationStore.open(tmp_path / "small.zarr")
    np.testing.assert_allclose(halved.read("answer_logits"), store.read("answer_logits"), atol=1e-4)


def test_a_plan_that_does_not_fit_the_disk_is_refused_before_the_model_is_loaded(plan, tmp_path: Path, monkeypatch) -> None:
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("stratascope.extract.run.output_store.shutil.disk_usage", lambda path: usage(10, 9, 1000))
    with pytest.raises(InvalidInputError, match=r"expected [\d.]+ MB free at .*, found 1 kB"):
        run_extraction(plan, tmp_path / "never.zarr")
    assert not (tmp_path / "never.zarr").exists()


@pytest.mark.slow
def test_everything_that_can_be_recorded(settings, plan, tmp_path: Path) -> None:
    from stratascope.extract.plan.settings import RECORDS
    from stratascope.extract.run.session import ExtractionSession

    everything = plan_extraction(dataclasses.replace(settings, limit=10, record=RECORDS))
    run_extraction(everything, tmp_path / "all.zarr")
    full = ActivationStore.open(tmp_path / "all.zarr")
    session = ExtractionSession(plan, batch_tokens=8192)
    image = open_image(plan.settings.images / plan.examples[4].image)
    arrays = frozenset({"value_norms", "value_logits", "head_outputs", "head_logits"})
    alone = session.model.run(session._batch([4], [image]), dataclasses.replace(session.request, arrays=arrays))
    tokens = int(plan.token_counts[4])
    np.testing.assert_allclose(full.read("value_norms", examples=[4])[:, 0, :, :tokens], alone.value_norms[:, 0], rtol=2e-3, atol=1e-3)
    np.testing.assert_allclose(full.read("value_logits", examples=[4])[:, 0, :, :tokens], alone.parts.tokens[:, 0], rtol=2e-3, atol=1e-3)
    np.testing.assert_allclose(full.read("head_outputs", examples=[4]), alone.head_outputs, atol=1e-4)
    np.testing.assert_allclose(full.read("head_logits", examples=[4]), alone.parts.heads, atol=1e-3)
    assert verify(tmp_path / "all.zarr").ok


@pytest.mark.slow
def test_what_is_stored_of_the_answers_logits_adds_up(settings, tmp_path: Path) -> None:
    record = ("attention_rows", "head_logits", "value_logits", "form_logits", "top_tokens")
    run_extraction(plan_extraction(dataclasses.replace(settings, limit=12, record=record)), tmp_path / "logits.zarr")
    store = ActivationStore.open(tmp_path / "logits.zarr")
    heads, answers = store.read("head_logits"), store.read("answer_logits")
    parts = heads.sum((0, 2)) + store.read("mlp_logits").sum(0) + store.read("embedding_logits")
    np.testing.assert_allclose(parts, answers[:, 0] - answers[:, 1], atol=1e-3)
    by_token = store.read("attention_rows") * store.read("value_logits")
    np.testing.assert_allclose(np.nansum(by_token, -1), heads, atol=5e-3)
    forms = store.read("answer_form").tolist()
    assert forms == ["True", " True", "False", " False", "Yes", " Yes", "No", " No"]
    logits = store.read("form_logits")
    np.testing.assert_allclose(logits[:, [forms.index("True"), forms.index("False")]], answers, atol=1e-6)
    likeliest = [[store.vocabulary[int(token)] for token in row] for row in store.read("top_tokens")]
    assert {row[0] for row in likeliest} <= {"True", "False"}, "the demo's model knows how to answer"
    np.testing.assert_allclose(store.read("top_logits")[:, 0], answers.max(-1), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("fusion", ["max", "min"])
def test_maps_of_the_largest_or_smallest_weight_are_stored_with_rows_that_sum_to_1(settings, tmp_path: Path, fusion: str) -> None:
    from stratascope.extract.run.session import ExtractionSession

    plan = plan_extraction(dataclasses.replace(settings, limit=3, record=("attention_maps",), fusion=fusion))
    run_extraction(plan, tmp_path / "maps.zarr")
    store = ActivationStore.open(tmp_path / "maps.zarr")
    assert store.layout.fusion == store.provenance["fusion"] == fusion
    session = ExtractionSession(plan, batch_tokens=8192)
    alone = session.model.run(
        session._batch([1], [open_image(plan.settings.images / plan.examples[1].image)]),
        dataclasses.replace(session.request, arrays=frozenset({"maps"})),
    )
    np.testing.assert_allclose(store.maps(1), decode_maps(packed(alone)), atol=4e-3)
    np.testing.assert_allclose(store.maps(1).sum(-1), 1)


def test_a_position_that_no_example_has_is_refused(scenes: Path) -> None:
    with pytest.raises(InvalidInputError, match="set `boxes`"):
        plan_extraction(
            ExtractionSettings(model="demo", examples=(scenes / "scenes.jsonl",), images=scenes / "images", positions=("subject_box",))
        )


@pytest.mark.parametrize(
    ("change", "parameter"),
    [
        ({"condition": "upside-down"}, "`condition`"),
        ({"prompt": "poem"}, "`prompt`"),
        ({"record": ("everything",)}, "`record`"),
        ({"positions": ("verb",)}, "`positions`"),
        ({"limit": 0}, "`limit`"),
        ({"maps": -1}, "`maps`"),
        ({"fusion": "median"}, "`fusion`"),
        ({"dtype": "int8"}, "`dtype`"),
    ],
)
def test_wrong_choices_are_refused_with_what_there_is(settings, change: dict, parameter: str) -> None:
    with pytest.raises(InvalidInputError, match=parameter):
        dataclasses.replace(settings, **change)


@pytest.mark.parametrize(("size", "shape"), [((60, 40), (40, 60, 3)), (None, None)])
def test_thumbnails_are_of_the_size_that_was_chosen_or_absent(settings, tmp_path: Path, size, shape) -> None:
    run_extraction(plan_extraction(dataclasses.replace(settings, limit=2, record=("residual",), thumbnail=size)), tmp_path / "t.zarr")
    store = ActivationStore.open(tmp_path / "t.zarr")
    if shape is None:
        assert store.layout.thumbnail is None
    else:
        assert store.thumbnail(1).shape == shape


def test_maps_of_only_some_examples(settings, tmp_path: Path) -> None:
    plan = plan_extraction(dataclasses.replace(settings, limit=10, maps=3))
    run_extraction(plan, tmp_path / "few.zarr")
    store = ActivationStore.open(tmp_path / "few.zarr")
    assert np.flatnonzero(store.available("attention_maps")).tolist() == [0, 3, 6]


def test_a_model_of_another_family_is_refused(tmp_path: Path, scenes: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(InvalidInputError, match=r"families qwen2_5_vl.*found model_type 'bert'"):
        plan_extraction(ExtractionSettings(model=str(tmp_path), examples=(scenes / "scenes.jsonl",), images=scenes / "images"))


def test_a_capture_that_does_not_agree_with_the_model_stops(plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stratascope.errors import CaptureError
    from stratascope.extract.run.model import CaptureModel

    real = CaptureModel.readout
    monkeypatch.setattr(CaptureModel, "readout", lambda self, residual, ids: real(self, 1.5 * residual + 0.1, ids))
    with pytest.raises(CaptureError, match="last captured residual"):
        run_extraction(plan, tmp_path / "never.zarr")
    assert not (tmp_path / "never.zarr").exists()


SHARED = Path(__file__).parents[3] / "shared" / "data"


@pytest.mark.skipif(not SHARED.exists(), reason="the COCO photos are not at hand")
def test_real_vsr_rows_with_photos_and_boxes(tmp_path: Path) -> None:
    photos = SHARED / "vsr_photos"
    settings = ExtractionSettings(
        model="demo", examples=(photos / "vsr.jsonl",), images=photos / "images", boxes=photos / "instances.json", device="cpu"
    )
    plan = plan_extraction(settings)
    assert len(plan.examples) == len(load_examples(photos / "vsr.jsonl")) == 14
    assert {layout.grid for layout in plan.layouts} == {(5, 6), (6, 5), (4, 7)}
    run_extraction(plan, tmp_path / "vsr.zarr")
    store = ActivationStore.open(tmp_path / "vsr.zarr")
    assert store.complete
    assert store.available("residual", "subject_box").all()
    np.testing.assert_allclose(store.maps(0).sum(-1), 1)
