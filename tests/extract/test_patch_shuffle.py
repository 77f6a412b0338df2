"""Condition `patch-shuffle` against the stock model, in which a plain hook permutes the embeddings of the image tokens."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from stratascope.analysis import answer_confidence  # noqa: E402
from stratascope.errors import InvalidInputError  # noqa: E402
from stratascope.extract import plan_extraction, run_extraction  # noqa: E402
from stratascope.extract.plan.images import image_token_order, open_image  # noqa: E402
from stratascope.extract.run.capture import text_decoder  # noqa: E402
from stratascope.extract.run.inputs import forward_inputs  # noqa: E402
from stratascope.extract.run.session import ExtractionSession  # noqa: E402
from stratascope.extract.run.vision_features import feature_inputs, image_features, image_grids  # noqa: E402
from stratascope.store import ActivationStore, verify  # noqa: E402
from tests.extract.families import FAMILIES, IMAGE, build, example  # noqa: E402


def logits_by_hook(model, inputs: dict, order: list[int]):
    """Logits of the stock model when slot k of the image receives the embedding of slot order[k], one by one."""
    slots = [t for t, token in enumerate(inputs["input_ids"][0].tolist()) if token == model.config.image_token_id]

    def permute(module, args, kwargs):
        before, after = kwargs["inputs_embeds"], kwargs["inputs_embeds"].clone()
        for k, source in enumerate(order):
            after[0, slots[k]] = before[0, slots[source]]
        kwargs["inputs_embeds"] = after
        if kwargs.get("deepstack_visual_embeds"):
            kwargs["deepstack_visual_embeds"] = [torch.stack([level[s] for s in order]) for level in kwargs["deepstack_visual_embeds"]]
        return args, kwargs

    hook = text_decoder(model).register_forward_pre_hook(permute, with_kwargs=True)
    try:
        return model(**inputs, use_cache=False).logits
    finally:
        hook.remove()


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
@torch.inference_mode()
def test_every_family_receives_permuted_image_tokens_at_unchanged_positions(name: str) -> None:
    model = build(name, "eager").double()
    one = {key: v.double() if v.is_floating_point() else v for key, v in example(name, model, 9, 0).items()}
    images = {key: v for key, v in one.items() if key != "input_ids"}
    lengths = torch.tensor([one["input_ids"].shape[1]])
    features = image_features(model, images, images)
    order = image_token_order(int((one["input_ids"] == IMAGE).sum()), 3, 5)
    assert features.tokens == len(order)
    given = [features.reordered(order)]
    ours = model(**forward_inputs(model, one["input_ids"], lengths, image_grids(given)), **feature_inputs(given), use_cache=False).logits
    stock = forward_inputs(model, one["input_ids"], lengths, images)
    torch.testing.assert_close(ours, logits_by_hook(model, stock, order.tolist()), atol=1e-9, rtol=1e-9)
    assert (ours - model(**stock, use_cache=False).logits)[0, -1].abs().max() > 1e-3


@pytest.fixture(scope="module")
def shuffled(settings):
    return dataclasses.replace(settings, condition="patch-shuffle", record=("residual", "knockout"), knockouts=2, knockout_window=0)


@pytest.mark.slow
def test_a_store_of_permuted_image_tokens(shuffled, store, tmp_path: Path) -> None:
    """The mean over image tokens is unchanged where they enter, and answers are those of the hook."""
    plan = plan_extraction(shuffled)
    run_extraction(plan, tmp_path / "s.zarr")
    held = ActivationStore.open(tmp_path / "s.zarr")
    assert verify(tmp_path / "s.zarr").ok
    assert held.provenance["condition"] == "patch-shuffle"
    assert held.layout.positions == ("final", "image", "subject", "relation", "object")
    assert not any(name.startswith(("cell_", "subject_box", "object_box")) for name in held.layout.knockout_targets)
    image = store.layout.positions.index("image")
    mine, own = held.read("residual")[:, 1], store.read("residual")[:, image]
    np.testing.assert_allclose(mine[0], own[0], atol=1e-5)
    assert np.abs(mine[-1] - own[-1]).max() > 1e-2
    session = ExtractionSession(plan, 8192)
    prepared = session.prepare(open_image(shuffled.images / plan.shown[7]))
    ids = torch.from_numpy(plan.layouts[7].ids.astype(np.int64))[None]
    order = np.random.default_rng([shuffled.seed, 7]).permutation(36).tolist()
    with torch.inference_mode():
        inputs = forward_inputs(session.model.model, ids, torch.tensor([ids.shape[1]]), prepared.tensors)
        logits = logits_by_hook(session.model.model, inputs, order)[0, -1, list(plan.tokenizer.choice_ids.values())]
    np.testing.assert_allclose(held.read("answer_logits")[7], logits.numpy(), atol=1e-3)
    assert answer_confidence(held).to_frame()["accuracy"].iloc[0] > 0.8


def test_places_in_the_image_are_refused(shuffled) -> None:
    for change in ({"positions": ("final", "subject_box")}, {"positions": ("cells",)}, {"patches": 3}, {"record": ("vision_output",)}):
        with pytest.raises(InvalidInputError, match="patch-shuffle"):
            dataclasses.replace(shuffled, **change)
