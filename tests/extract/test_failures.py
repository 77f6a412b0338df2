"""How an extraction fails, waits and names its model."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from stratascope.errors import InvalidInputError, StoreError
from stratascope.extract import plan_extraction, run_extraction
from stratascope.extract.model_files import resolve_model
from stratascope.store import STATUS_CODES, ActivationStore, verify

pytest.importorskip("torch")

from stratascope.extract.run.session import ExtractionSession
from stratascope.extract.run.shard_block import fill_blocks

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_a_prompt_longer_than_the_models_context_is_refused_with_the_image_that_makes_it_long(settings, tmp_path: Path) -> None:
    folder = tmp_path / "short"
    shutil.copytree(resolve_model("demo").folder, folder)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["max_position_embeddings"] = 40
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        InvalidInputError, match=r"at most 40 tokens \(the model's context\), found \d+, 36 of them for an image of 168 x 168"
    ):
        plan_extraction(dataclasses.replace(settings, model=str(folder)))


@pytest.mark.parametrize("revision", [None, "main", "v1"])
def test_a_hub_models_branch_or_tag_becomes_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, revision: str | None) -> None:
    """In a cache laid out as the Hub's client does, without a network."""
    kept = tmp_path / "models--someone--model"
    shutil.copytree(resolve_model("demo").folder, kept / "snapshots" / COMMIT)
    (kept / "refs").mkdir()
    for name in ("main", "v1"):
        (kept / "refs" / name).write_text(COMMIT)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    source = resolve_model("someone/model", revision=revision)
    assert source.revision == COMMIT
    assert source.folder.name == COMMIT
    assert "model.safetensors" not in source.digests()  # pinned by the commit


class Hub(BaseHTTPRequestHandler):
    """Answers as the Hub does: its code for what is wrong stands in a header of its own."""

    def do_GET(self) -> None:
        kind = self.path.split("/")[4]
        codes = {"nobody": (404, "RepoNotFound"), "gated": (403, "GatedRepo"), "branch": (404, "RevisionNotFound"), "ill": (500, "")}
        status, code = codes[kind]
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("someone/nobody", "found neither; check the name"),
        ("someone/gated", "found a gated one; accept its terms on huggingface.co"),
        ("someone/branch", "for `revision`, found no 'v7'"),
        ("someone/ill", "or the Hub to fetch them from, found none of these .*500 Internal Server Error"),
        ("someone/offline", "files kept in .*, or the Hub .*, found none .*; where there is a network run `hf download someone/offline`"),
    ],
)
def test_why_the_hub_gives_no_model_is_told_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, told: str) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        code = f"from stratascope.extract.model_files import resolve_model; resolve_model({name!r}, revision='v7')"
        known = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HUB_CACHE": str(tmp_path), "HF_HUB_DISABLE_TELEMETRY": "1"}
        offline = {"HF_HUB_OFFLINE": str(int(name.endswith("offline")))}
        done = subprocess.run([sys.executable, "-c", code], env=os.environ | known | offline, capture_output=True, text=True)
        server.shutdown()
    said = done.stderr.strip().splitlines()[-1]
    assert re.search(f"InvalidInputError: {name}: expected .*{told}", said), said


class Slow:
    """A store that takes blocks only when its gate is open."""

    def __init__(self, examples: int, block: int) -> None:
        self.examples, self.size = examples, block
        self.gate, self.taken = threading.Event(), list[int]()

    def block_examples(self, block: int) -> range:
        return range(block * self.size, min((block + 1) * self.size, self.examples))

    def write(self, block: int, arrays: dict[str, np.ndarray]) -> None:
        assert self.gate.wait(60)
        assert np.isfinite(arrays["answer_logits"]).all()
        self.taken.append(block)


class Full(Slow):
    """A store whose disk is full at its second block."""

    def write(self, block: int, arrays: dict[str, np.ndarray]) -> None:
        if block == 1:
            raise StoreError("no space left")
        self.taken.append(block)


class Count:
    """A progress bar that says when so many examples are done."""

    def __init__(self, goal: int) -> None:
        self.done, self.goal, self.reached = 0, goal, threading.Event()

    def update(self, number: int) -> None:
        self.done += number
        if self.done >= self.goal:
            self.reached.set()


@pytest.fixture
def small(settings):
    return plan_extraction(dataclasses.replace(settings, limit=24, block=4, record=("residual",), thumbnail=None))


def test_a_slow_store_stops_the_model_when_its_queue_is_full_and_not_before(small) -> None:
    """One block being written, one waiting, one filled: 12 examples, and no thirteenth until the first is through."""
    keeper, bar = Slow(24, 4), Count(12)
    session = ExtractionSession(small, 8192)
    worker = threading.Thread(target=fill_blocks, args=(session, keeper, range(6), bar))
    worker.start()
    assert bar.reached.wait(60)
    worker.join(0.3)
    assert (bar.done, keeper.taken) == (12, [])
    keeper.gate.set()
    worker.join()
    assert (bar.done, keeper.taken) == (24, list(range(6)))


def test_an_error_of_the_store_ends_the_run_with_its_own_message(small) -> None:
    keeper = Full(24, 4)
    with pytest.raises(StoreError, match=r"^no space left$") as caught:
        fill_blocks(ExtractionSession(small, 8192), keeper, range(6), Count(24))
    assert keeper.taken == [0]
    assert not getattr(caught.value, "__notes__", [])


def _overflowing(name: str):
    """The first example of the batch has value norms beyond float16, maps or rows that are not finite, or a huge value elsewhere."""
    from stratascope.extract.run.model import PendingCapture

    real = PendingCapture.result

    def result(self):
        made = real(self)
        if name == "maps":
            made.maps.blocks[1]["off"][0] = np.nan
            return made
        values = getattr(made, name).copy()
        if name in ("value_norms", "rows"):
            values[2, 0, 1, 3] = 7e4 if name == "value_norms" else np.nan
        else:
            values[1, 0, 0] = np.inf
        return dataclasses.replace(made, **{name: values})

    return PendingCapture, "result", result


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("value_norms", r"value_norms: expected finite numbers, found 70000.0, too large for float16, at .*layer 2, .*head 1"),
        ("head_outputs", r"head_outputs: expected finite numbers, found inf at .*layer 1"),
        ("maps", "the model returned a value that is not finite in float32"),
        ("rows", "the model returned a value that is not finite in float32"),
    ],
)
def test_an_example_that_does_not_fit_the_store_is_recorded_as_failed_and_the_rest_goes_on(
    settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, reason: str
) -> None:
    record = ("residual", "attention_rows", "attention_maps", "value_norms", "head_outputs")
    plan = plan_extraction(dataclasses.replace(settings, limit=6, record=record))
    monkeypatch.setattr(*_overflowing(name))
    report = run_extraction(plan, tmp_path / "s.zarr")
    first = min(range(6), key=lambda k: (plan.token_counts[k], k))
    assert list(report.failed) == [plan.examples[first].id]
    assert re.search(reason, report.failed[plan.examples[first].id]), report.failed
    store = ActivationStore.open(tmp_path / "s.zarr")
    assert store.status.tolist() == [STATUS_CODES["non_finite"] if k == first else 1 for k in range(6)]
    assert np.isfinite(store.read("answer_logits", examples=store.status == 1)).all()
    assert store.maps(int(np.flatnonzero(store.status == 1)[0])).any()
    assert verify(tmp_path / "s.zarr").ok


def test_a_gradient_that_is_not_finite_fails_its_example_alone(settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = ExtractionSession.token_gradients

    def spoiled(self, example, batch):
        made = real(self, example, batch)
        return dataclasses.replace(made, knockout_estimate=made.knockout_estimate * float("nan")) if example == 2 else made

    monkeypatch.setattr(ExtractionSession, "token_gradients", spoiled)
    plan = plan_extraction(dataclasses.replace(settings, limit=4, record=("residual", "hiding_estimate")))
    report = run_extraction(plan, tmp_path / "s.zarr")
    assert list(report.failed) == [plan.examples[2].id]
    assert report.failed[plan.examples[2].id].startswith("hiding_estimate: expected finite numbers, found nan at ")
    assert ActivationStore.open(tmp_path / "s.zarr").status.tolist() == [1, 1, STATUS_CODES["non_finite"], 1]
