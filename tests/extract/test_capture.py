"""What is captured equals eager attention and the model's own hidden states."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from PIL import Image  # noqa: E402
from transformers import AutoModelForImageTextToText, AutoProcessor, Qwen2_5_VLConfig  # noqa: E402

from stratascope.extract.plan.images import apply_condition, open_image  # noqa: E402
from stratascope.extract.run.capture import Capture, Pooling, capturing, use_captured_attention  # noqa: E402
from stratascope.extract.run.session import ExtractionSession  # noqa: E402
from stratascope.store import encode_maps  # noqa: E402
from tests.extract.unpacked import Unpacked  # noqa: E402


@pytest.fixture(scope="module")
def session(plan):
    return ExtractionSession(plan, batch_tokens=8192)


@pytest.fixture(scope="module")
def eager(plan):
    """Model and processor as a user without Stratascope would load them, attention in eager mode."""
    folder = plan.source.folder
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    return model, AutoProcessor.from_pretrained(folder)


def ask_eager(eager, plan, k):
    model, processor = eager
    text = processor.apply_chat_template(
        plan.tokenizer.prompt_format.conversation(plan.prompt.fill(plan.examples[k]).text), add_generation_prompt=True
    )
    image = Image.open(plan.settings.images / plan.examples[k].image)
    with torch.no_grad():
        return model(**processor(text=[text], images=[image], return_tensors="pt"), output_attentions=True, output_hidden_states=True)


@pytest.mark.slow
def test_a_padded_batch_equals_eager_single_examples(plan, session, eager) -> None:
    members = [0, 5, 9, 14, 20, 33]
    assert len({int(plan.token_counts[k]) for k in members}) > 1, "the batch must be padded"
    images = [open_image(plan.settings.images / plan.examples[k].image) for k in members]
    found = session.model.run(session._batch(members, images), dataclasses.replace(session.request, arrays=frozenset({"maps"})))
    positions = plan.store.positions
    for row, k in enumerate(members):
        tokens = int(plan.token_counts[k])
        output = ask_eager(eager, plan, k)
        attention = torch.stack(output.attentions)[:, 0].numpy()
        np.testing.assert_allclose(found.rows[:, row, :, :tokens], attention[:, :, -1], atol=1e-5)
        assert found.rows[:, row, :, tokens:].max(initial=0) == 0
        packed = np.stack([block["weights"][row, :tokens, :tokens] for block in found.maps.blocks])
        assert np.abs(packed.astype(int) - encode_maps(attention.mean(1))).max() <= 1  # a weight on the border of two bytes
        hidden = torch.stack(output.hidden_states)[:-1, 0].numpy()
        for column, position in enumerate(positions):
            expected = hidden[:, plan.position_tokens(k, position)].mean(1)
            np.testing.assert_allclose(found.residual[:-1, column, row], expected, atol=2e-5)
        last = torch.from_numpy(found.residual[-1, :, row])
        normed = eager[0].model.language_model.norm(last)[positions.index("final")]
        np.testing.assert_allclose(normed.detach().numpy(), output.hidden_states[-1][0, -1].numpy(), atol=2e-5)
        np.testing.assert_allclose(found.answer_logits[row], output.logits[0, -1, list(session.request.choices)].numpy(), atol=2e-5)
        own = output.logits[0, -1]
        np.testing.assert_allclose(found.form_logits[row], own[list(plan.forms.values())], atol=2e-5)
        assert found.top_tokens[row].tolist() == own.argsort(descending=True)[:5].tolist()
        np.testing.assert_allclose(found.top_logits[row], own.sort(descending=True).values[:5], atol=2e-5)


def test_box_positions_are_means_over_the_boxes_cells(plan, session) -> None:
    """Against boxes cut by hand: the cell of 28 pixels that holds the box's centre is always among those taken."""
    for k in range(20):
        x0, y0, x1, y1 = plan.examples[k].subject_box
        tokens = plan.position_tokens(k, "subject_box") - plan.layouts[k].spans["image"][0]
        rows, columns = np.divmod(tokens, 6)
        centres_x, centres_y = columns * 28 + 14, rows * 28 + 14
        if len(tokens) > 1:
            assert (centres_x >= x0).all()
            assert (centres_x < x1).all()
            assert (centres_y >= y0).all()
            assert (centres_y < y1).all()
        else:
            assert abs(centres_x[0] - (x0 + x1) / 2) <= 28
            assert abs(centres_y[0] - (y0 + y1) / 2) <= 28


def test_mirroring_moves_the_box_with_the_image(plan, settings) -> None:
    from stratascope.extract import plan_extraction

    mirrored = plan_extraction(dataclasses.replace(settings, condition="mirror"))
    for k in range(10):
        straight = plan.position_tokens(k, "subject_box") - plan.layouts[k].spans["image"][0]
        flipped = mirrored.position_tokens(k, "subject_box") - plan.layouts[k].spans["image"][0]
        rows, columns = np.divmod(straight, 6)
        assert abs(np.sort(rows * 6 + 5 - columns).mean() - np.sort(flipped).mean()) < 1.01


def test_blank_keeps_nothing_but_the_mean_colour(scenes) -> None:
    image = open_image(scenes / "images" / "scene_000000.png")
    blank = np.asarray(apply_condition(image, "blank"))
    assert len(np.unique(blank.reshape(-1, 3), axis=0)) == 1
    np.testing.assert_allclose(blank[0, 0], np.asarray(image).reshape(-1, 3).mean(0), atol=0.51)


@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (4, 1)], ids=["mha", "gqa", "mqa"])
def test_rows_of_a_random_model_with_sharp_attention(heads: tuple[int, int]) -> None:
    """Rows of a random decoder with large weights, right-padded without a mask, against eager runs one by one."""
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": 64,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 4,
            "num_attention_heads": heads[0],
            "num_key_value_heads": heads[1],
            "bos_token_id": None,
            "eos_token_id": 1,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]},
        },
        vision_config={"depth": 2, "hidden_size": 32, "num_heads": 2, "intermediate_size": 48, "out_hidden_size": 64},
    )
    torch.manual_seed(0)
    ours = AutoModelForImageTextToText.from_config(config, attn_implementation="sdpa").eval()
    use_captured_attention(ours)
    with torch.no_grad():
        for name, weight in ours.named_parameters():
            if weight.ndim == 2 and ".layers." in name:
                weight.mul_(12)
    theirs = AutoModelForImageTextToText.from_config(copy.deepcopy(config), attn_implementation="eager").eval()
    theirs.load_state_dict(ours.state_dict())
    lengths = torch.tensor([9, 30, 17])
    ids = torch.randint(8, 60, (3, 30))
    last = lengths - 1
    capture = Unpacked(last, Pooling(last[:, None, None], torch.ones(3, 1, 1)), frozenset({"maps"}))
    with torch.inference_mode(), capturing(ours.model.language_model, capture):
        ours(input_ids=ids, position_ids=torch.arange(30).expand(3, 3, -1), use_cache=False)
    for row, length in enumerate(lengths.tolist()):
        with torch.inference_mode():
            output = theirs(input_ids=ids[row : row + 1, :length], output_attentions=True, output_hidden_states=True)
        for block in range(4):
            attention = output.attentions[block][0]
            np.testing.assert_allclose(capture.rows[block][row, :, :length], attention[:, -1], atol=1e-5)
            np.testing.assert_allclose(capture.fused[block][row, :length, :length], attention.mean(0), atol=1e-5)
            assert attention[:, -1].max() > 0.5, "the test's attention must be sharp, or it shows little"
        for layer in range(4):
            np.testing.assert_allclose(capture.residual[layer][row, 0], output.hidden_states[layer][0, -1], rtol=1e-4, atol=1e-3)


def test_hooks_are_gone_after_a_failed_pass(session) -> None:
    decoder = session.model.decoder
    capture = Capture(torch.zeros(1, dtype=torch.long), Pooling(torch.zeros(1, 1, 1, dtype=torch.long), torch.ones(1, 1, 1)))
    with pytest.raises(RuntimeError, match="on purpose"), capturing(decoder, capture):
        raise RuntimeError("on purpose")
    assert all(not block._forward_pre_hooks and not block._forward_hooks for block in decoder.layers)
