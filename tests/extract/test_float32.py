"""float32 is full float32 on CUDA: no pass of the model runs with TF32, and the caller's settings are as they were."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from stratascope.extract import plan_extraction  # noqa: E402
from stratascope.extract.plan.images import open_image  # noqa: E402
from stratascope.extract.run.extraction import run_provenance  # noqa: E402
from stratascope.extract.run.float32 import full_float32  # noqa: E402
from stratascope.extract.run.intervention import InterventionRunner  # noqa: E402
from stratascope.extract.run.session import ExtractionSession  # noqa: E402


def state() -> dict[str, Any]:
    """All settings that decide about TF32, None where they contradict each other."""
    backends: Any = torch.backends
    operations = {
        "matmul": backends.cuda.matmul,
        "convolution": backends.cudnn.conv,
        "rnn": backends.cudnn.rnn,
        "cpu": backends.mkldnn.matmul,
    }
    found: dict[str, Any] = {name: each.fp32_precision for name, each in operations.items()}
    asked: dict[str, Callable[[], Any]] = {
        "legacy": torch.get_float32_matmul_precision,
        "legacy matmul": lambda: backends.cuda.matmul.allow_tf32,
        "legacy cudnn": lambda: backends.cudnn.allow_tf32,
    }
    for name, ask in asked.items():
        found[name] = None
        with suppress(RuntimeError):
            found[name] = ask()
    return found


def legacy_on() -> None:
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True


def everywhere() -> None:
    torch.backends.fp32_precision = "tf32"


def contradictory() -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cuda.matmul.fp32_precision = "tf32"


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    backends: Any = torch.backends
    each = [backends, backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn, backends.mkldnn.matmul]
    before = [one.fp32_precision for one in each]
    yield
    backends.fp32_precision = before[0]
    torch.set_float32_matmul_precision("highest")
    backends.cudnn.allow_tf32 = True
    for one, precision in zip(each, before, strict=True):
        one.fp32_precision = precision


SETTINGS = [lambda: None, legacy_on, lambda: torch.set_float32_matmul_precision("medium"), everywhere, contradictory]


@pytest.mark.parametrize("prepare", SETTINGS, ids=["PyTorch's own", "legacy", "medium", "everywhere", "contradictory"])
def test_tf32_is_off_inside_and_the_settings_come_back(prepare: Callable[[], None]) -> None:
    prepare()
    before = state()
    inside: dict[str, Any] = {}

    def failing() -> None:
        with full_float32():
            inside.update(state())
            raise KeyError

    with pytest.raises(KeyError):
        failing()
    off = {"matmul": "ieee", "convolution": "ieee", "rnn": "ieee", "cpu": "ieee", "legacy": "highest"}
    assert inside == off | {"legacy matmul": False, "legacy cudnn": False}
    assert state() == before


@pytest.mark.slow
def test_no_pass_of_the_model_runs_with_tf32(settings, monkeypatch: pytest.MonkeyPatch) -> None:
    record = ("residual", "attention_maps", "hiding_estimate", "knockout")
    few = dataclasses.replace(settings, limit=2, record=record, knockout_modes=("final",), knockout_window=0)
    plan = plan_extraction(few)
    session = ExtractionSession(plan, 8192)
    legacy_on()
    before, seen = state(), []
    for part in (session.model.decoder.layers[0], session.model.model.model.visual.patch_embed.proj):
        part.register_forward_pre_hook(lambda *_: seen.append(state()))
    batch = session._batch([0], [open_image(few.image_path(plan.shown[0]))])

    def passes(run: Callable[[], Any]) -> None:
        seen.clear()
        run()
        assert seen
        assert {each["convolution"] for each in seen} == {each["matmul"] for each in seen} == {"ieee"}
        assert state() == before

    passes(lambda: session.launch(batch))
    passes(lambda: session.compute_features(0, session.prepare(open_image(few.image_path(plan.shown[0]))), plan.shown[0]))
    passes(lambda: session.token_gradients(0, lambda: batch))
    passes(lambda: session.knock_out(0, lambda: batch, 0, 0))
    passes(lambda: InterventionRunner(session.model).trace(batch))


def test_the_provenance_says_so_where_there_would_be_tf32(plan) -> None:
    cuda = dataclasses.replace(plan, settings=dataclasses.replace(plan.settings, device="cuda:0"))
    assert run_provenance(cuda, None)["model"]["tf32"] is False
    assert "tf32" not in run_provenance(plan, None)["model"]
