"""Positions by token role and image cell, and residual streams at every image token, against transformers."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stratascope.errors import CaptureError, InvalidInputError
from stratascope.extract import ExtractionSettings, plan_extraction
from stratascope.extract.plan.answer_tokens import token_texts
from stratascope.store.format.prompt_parts import is_mean, token_roles

SIZES = ((168, 168), (112, 168), (168, 84), (84, 84))


@pytest.fixture(scope="module")
def sized(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> ExtractionSettings:
    """Settings of twelve scenes whose images have four sizes; all positions, and patches of every second example."""
    folder = tmp_path_factory.mktemp("sized")
    rows = [json.loads(line) for line in (scenes / "scenes.jsonl").read_text().splitlines()][:12]
    (folder / "images").mkdir()
    for k, row in enumerate(rows):
        Image.open(scenes / "images" / row["image"]).resize(SIZES[k // 2 % 4]).save(folder / "images" / row["image"])
    (folder / "scenes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ExtractionSettings(
        model="demo",
        examples=(folder / "scenes.jsonl",),
        images=folder / "images",
        positions=("default", "means", "tokens", "cells"),
        record=("residual",),
        patches=6,
        patch_layers=(0, 2, 6),
        device="cpu",
        block=8,
    )


def test_every_text_token_after_the_image_has_one_role(sized: ExtractionSettings) -> None:
    plan = plan_extraction(sized)
    texts = token_texts(plan.tokenizer.tokenizer, None)
    roles = [p for p in plan.store.positions if p not in ("image", "subject", "relation", "object") and not is_mean(p)]
    spelled: dict[str, set[str]] = {}
    for k, layout in enumerate(plan.layouts):
        found = [plan.position_tokens(k, role) for role in roles]
        tokens = sorted(int(t[0]) for t in found if t is not None)
        assert tokens == [*range(layout.spans["image"][1], len(layout.ids))], "each token once, and no image token"
        for role, at in zip(roles, found, strict=True):
            if at is not None:
                spelled.setdefault(role, set()).add(texts[int(layout.ids[at[0]])])
        named = [texts[int(layout.ids[layout.roles[f"object_{n}"]])] for n in range(9) if f"object_{n}" in layout.roles]
        a, b = plan.prompt.fill(plan.examples[k]).intervals["object"]
        assert "".join(named).strip() == plan.prompt.fill(plan.examples[k]).text[a:b]
        for position in plan.store.positions:
            present = plan.position_tokens(k, position) is not None
            assert plan.present[k, plan.store.positions.index(position)] == present
    # the template's tokens are the same in every example; those of the caption's words are not
    assert {role for role, words in spelled.items() if len(words) > 1} <= {
        r for r in roles if r.split("_")[0] in ("subject", "relation", "object")
    } | {"final"}
    assert spelled["after_subject_0"] == {" is"}
    assert spelled["after_object_0"] == {"."}
    assert spelled["prompt_0"] == {"True"}


def test_roles_survive_missing_and_touching_spans() -> None:
    spans = {"image": (0, 4), "prompt": (4, 9), "subject": (5, 7), "object": (7, 8), "final": (9, 10)}
    assert token_roles(spans, 10) == {
        "prompt_0": 4, "subject_0": 5, "subject_1": 6, "object_0": 7, "after_object_0": 8,
    }  # fmt: skip
    tiled = {"image_tiles": (1, 5), "image": (5, 7), "prompt": (8, 10), "final": (10, 11)}
    assert token_roles(tiled, 11) == {"start_0": 0, "after_image_0": 7, "prompt_0": 8, "prompt_1": 9}


def test_positions_and_layers_that_no_example_has_are_refused(sized: ExtractionSettings) -> None:
    for names, found in (
        (("subject_9",), "'subject_9'"),
        (("cell_7_7",), "'cell_7_7'"),
        (("tokens", "after_relation_4"), "'after_relation_4'"),
    ):
        with pytest.raises(InvalidInputError, match=f"expected an example with position {found}, found none; the text tokens are"):
            plan_extraction(dataclasses.replace(sized, positions=names))
    with pytest.raises(InvalidInputError, match="one such as caption_mean, subject_0, after_caption_0 or cell_0_0, found 'image_mean'"):
        dataclasses.replace(sized, positions=("image_mean",))
    with pytest.raises(InvalidInputError, match="expected `patch_layers` within 0 to 6, as the model has 6 decoder blocks, found 7"):
        plan_extraction(dataclasses.replace(sized, patch_layers=(0, 7)))
    with pytest.raises(InvalidInputError, match="found one without the other"):
        dataclasses.replace(sized, patches=0)
    assert plan_extraction(dataclasses.replace(sized, patch_layers=None)).store.patch_layers == (0, 2, 3, 4, 6)
    plain = plan_extraction(dataclasses.replace(sized, positions=None, patches=0, patch_layers=None))
    assert plain.store.positions == ("final", "image", "subject", "relation", "object")
    assert not plain.has_patches.any()
    assert "patches" not in plain.provenance


@pytest.mark.slow
def test_positions_and_patches_are_the_hidden_states_of_transformers(sized: ExtractionSettings, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from stratascope.extract import run_extraction
    from stratascope.extract.run.self_check import check_patches
    from stratascope.extract.run.session import ExtractionSession
    from stratascope.store import ActivationStore, verify

    plan = plan_extraction(sized)
    run_extraction(plan, tmp_path / "store.zarr")
    assert verify(tmp_path / "store.zarr").ok
    store = ActivationStore.open(tmp_path / "store.zarr")
    assert np.flatnonzero(store.patch_counts).tolist() == [0, 2, 4, 6, 8, 10]
    assert set(store.patch_counts[::2].tolist()) == {36, 24, 18, 9}
    model = AutoModelForImageTextToText.from_pretrained(plan.source.folder, dtype=torch.float32, attn_implementation="sdpa").eval()
    processor = AutoProcessor.from_pretrained(plan.source.folder)
    for k, example in enumerate(plan.examples):
        conversation = plan.tokenizer.prompt_format.conversation(plan.prompt.fill(example).text)
        text = processor.apply_chat_template(conversation, add_generation_prompt=True)
        inputs = processor(text=[text], images=[Image.open(sized.images / example.image)], return_tensors="pt")
        with torch.no_grad():
            hidden = torch.stack(model(**inputs, output_hidden_states=True).hidden_states)[:-1, 0].numpy()
        image = inputs["input_ids"][0].numpy() == plan.tokenizer.image_id
        for position in store.positions:
            tokens = plan.position_tokens(k, position)
            if tokens is None:
                assert not store.available("residual", position)[k]
            else:
                found = store.read("residual", layers=range(6), position=position, examples=k)
                np.testing.assert_allclose(found, hidden[:, tokens].mean(1), atol=2e-5)
        if k % 2 == 0:
            cells = int(store.patch_counts[k])
            found = store.read("patch_residual", layers=[0, 2], examples=k)
            np.testing.assert_allclose(found[:, :cells], hidden[[0, 2]][:, image], atol=2e-5)
            assert np.isnan(found[:, cells:]).all()
            whole = store.read("patch_residual", examples=k)[:, :cells].mean(1)
            np.testing.assert_allclose(whole, store.read("residual", layers=[0, 2, 6], position="image", examples=k), atol=1e-5)

    # in the same forward pass they are the hidden states, bit by bit
    session = ExtractionSession(plan, 8192)
    images = [Image.open(sized.images / plan.examples[k].image).convert("RGB") for k in (4, 5, 6)]
    batch = session._batch([4, 5, 6], images)
    captured = session.model.run(batch, session.request)
    with torch.inference_mode():
        states = session.model.model(**session.model.inputs(batch), output_hidden_states=True, use_cache=False).hidden_states
    for row, k in ((0, 4), (2, 6)):
        start, stop = plan.layouts[k].spans["image"]
        np.testing.assert_array_equal(captured.patches[1, row // 2, : stop - start], states[2][row, start:stop].numpy())
    check_patches(plan, (4, 5, 6), captured, session._pooled.index("image"))
    shifted = dataclasses.replace(captured, patches=np.roll(captured.patches, 1, 1))
    with pytest.raises(CaptureError, match=r"expected the image tokens of example .* to have the mean of the position image"):
        check_patches(plan, (4, 5, 6), shifted, session._pooled.index("image"))
