"""What does not fit is refused before anything runs: what was expected, what was found, what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stratascope.datasets import PROMPTS, Example, Shot, split_caption
from stratascope.errors import InvalidInputError
from stratascope.extract import ExtractionSettings, plan_extraction
from stratascope.extract.families.model_families import FAMILIES, image_rule, model_shape
from stratascope.extract.model_files import ModelSource
from stratascope.extract.plan.chat_template import ChatFormat, PrefixFormat
from stratascope.extract.plan.plan_summary import plan_summary
from stratascope.extract.plan.token_layout import PromptTokenizer

transformers = pytest.importorskip("transformers")

from tests.extract.saved import MISTRAL, save_files  # noqa: E402


def changed(folder: Path, name: str, **values: Any) -> ModelSource:
    """The model of a folder, after a file's settings were changed, nested ones by `outer__inner`."""
    settings = json.loads((folder / name).read_text())
    for key, value in values.items():
        inner = settings
        *path, last = key.split("__")
        for step in path:
            inner = inner[step]
        inner[last] = value
    (folder / name).write_text(json.dumps(settings))
    return ModelSource("the model", folder)


def worded(folder: Path, template: str) -> ModelSource:
    (folder / "chat_template.jinja").write_text(template)
    return ModelSource("the model", folder)


def tokenizer(source: ModelSource, system: str | None = None) -> PromptTokenizer:
    return PromptTokenizer(source, PROMPTS["true-false"], image_rule(source), system)


@pytest.mark.parametrize("found", ["bert", "internvl_chat", "llava_onevision", "None"])
def test_another_family(tmp_path: Path, found: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": found}))
    with pytest.raises(InvalidInputError, match=rf"families qwen2_5_vl, .*paligemma, found model_type '{found}'; use one"):
        model_shape(ModelSource("the model", tmp_path))


@pytest.mark.parametrize(
    ("name", "file", "values", "message"),
    [
        ("llava", "config.json", {"vision_config__model_type": "pixtral"}, "CLIP or SigLIP vision tower.*'pixtral'"),
        ("llava", "processor_config.json", {"vision_feature_select_strategy": "full"}, "keeps the class token"),
        ("llava", "processor_config.json", {"image_processor__crop_size": {"height": 42, "width": 42}}, "56 pixels, found crop_size"),
        ("llava", "processor_config.json", {"image_processor__size": {"height": 56, "width": 56}}, "resizes the shorter side"),
        ("llava_next", "processor_config.json", {"image_processor__size": {"shortest_edge": 112}}, "tiles of the vision tower's 56 pixels"),
        ("gemma3", "processor_config.json", {"image_processor__do_pan_and_scan": True}, "one view of the whole image.*set it to false"),
        ("gemma3", "processor_config.json", {"image_seq_length": 5}, "a square number of tokens.*image_seq_length 5"),
        ("internvl", "processor_config.json", {"image_processor__size": {"height": 56, "width": 28}}, "makes squares"),
        (
            "qwen2_vl",
            "processor_config.json",
            {"image_processor__merge_size": "two"},
            "image settings of.*missing or wrong: invalid literal.*'two'",
        ),
    ],
)
def test_image_tokens_that_are_no_raster(tmp_path: Path, name: str, file: str, values: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=f"the model: expected .*{message}"):
        image_rule(changed(save_files(name, tmp_path), file, **values))


def test_a_pixel_limit_where_there_is_none(tmp_path: Path) -> None:
    source = ModelSource("the model", save_files("gemma3", tmp_path))
    with pytest.raises(InvalidInputError, match=r"no `max_pixels` for a model of the family gemma3.*found 1000; leave it out"):
        image_rule(source, max_pixels=1000)


def test_no_chat_template(tmp_path: Path) -> None:
    source = ModelSource("the model", save_files("smolvlm", tmp_path))
    (tmp_path / "chat_template.jinja").unlink()
    with pytest.raises(InvalidInputError, match=r"expected a chat template .* found none; use an instruction-tuned model"):
        tokenizer(source)


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for p in m.content %}{{ p.text if p.type == 'text' else '<IMG_CONTEXT>' }}"
        "{% endfor %}<|im_end|>\n{% endfor %}",
        "{% for m in messages %}{% for p in m.content %}{{ p.text or '<IMG_CONTEXT>' }}{% endfor %}\n{% endfor %}",
    ],
    ids=["turns are closed", "no turns"],
)
def test_no_final_chat_turn(tmp_path: Path, template: str) -> None:
    with pytest.raises(InvalidInputError, match=r"open the model's turn after the user's.*final model turn.*instruction-tuned"):
        tokenizer(worded(save_files("internvl", tmp_path), template))


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('no images, please') }}", "refuses one user turn with an image: no images, please"),
        ("{% for m in messages %}", "a chat template in Jinja"),
        (MISTRAL.replace("<image>", ""), "place one <image>, found 0"),
    ],
)
def test_a_template_that_does_not_fit(tmp_path: Path, template: str, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        tokenizer(worded(save_files("llava_next", tmp_path), template))


def test_a_template_for_one_image_or_one_turn_refuses_more(tmp_path: Path) -> None:
    text = "{% for p in m.content %}{{ p.text }}{% endfor %}"
    once = f"{{% for m in messages %}}<s>{{{{ '<image>' if m.role == 'user' }}}}{text}</s>{{% endfor %}}<s>"
    folder = save_files("llava_next", tmp_path)
    source = worded(folder, once)
    with pytest.raises(InvalidInputError, match="expected its chat template to place 2 <image>, found 1 in"):
        ChatFormat(source, "<image>", None, images=2).render("x")
    asked = ChatFormat(source, "<image>", None, shots=[Shot(("a.png",), "a", "b")]).render("x")
    assert asked == "<s><image>a</s><s>b</s><s><image>x</s><s>"
    few = worded(folder, once + "{{ raise_exception('too many') if messages | length > 2 }}")
    with pytest.raises(InvalidInputError, match="its chat template refuses the few-shot turns: too many"):
        ChatFormat(few, "<image>", None, shots=[Shot((), "a", "b")])


def test_a_turn_that_is_opened_without_being_asked_for_is_one(tmp_path: Path) -> None:
    """Mistral's templates close the user's turn with [/INST], whether a generation prompt is wanted or not."""
    made = ChatFormat(worded(save_files("llava_next", tmp_path), MISTRAL), "<image>", None)
    assert made.answer_gap == " "
    assert made.render("Is it?").endswith("Is it? [/INST]")


THINKING = """{% for m in messages %}<|im_start|>{{ m.role }}
{% for p in m.content %}{{ p.text if p.type == 'text' else '<IMG_CONTEXT>' }}{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
"""


@pytest.mark.parametrize("opens", ["<think>\n", "<think>\n\n</think>\n<think>", "[THINK]", "<|begin_of_thought|>"])
def test_a_prompt_that_ends_inside_reasoning_is_refused(tmp_path: Path, opens: str) -> None:
    with pytest.raises(InvalidInputError, match=r"found one that ends inside .*would start reasoning, not the answer; use"):
        tokenizer(worded(save_files("internvl", tmp_path), THINKING + opens + "{% endif %}"))


@pytest.mark.parametrize("option", ["enable_thinking", "thinking"])
@pytest.mark.parametrize("usual", ["<think>\n", ""], ids=["opens it", "leaves it to the model"])
def test_reasoning_is_closed_where_the_template_has_an_option(tmp_path: Path, option: str, usual: str) -> None:
    chosen = f"{{% if {option} is defined and not {option} %}}<think>\n\n</think>\n\n{{% else %}}{usual}{{% endif %}}{{% endif %}}"
    made = tokenizer(worded(save_files("internvl", tmp_path), THINKING + chosen))
    assert made.prompt_format.template_options == {option: False}
    assert made.prompt_format.render("Is it?").endswith("assistant\n<think>\n\n</think>\n\n")


def test_an_option_that_does_not_close_reasoning_is_named(tmp_path: Path) -> None:
    template = THINKING + "<think>{% if enable_thinking %}deeply{% endif %}{% endif %}"
    with pytest.raises(InvalidInputError, match=r"ends inside <think> even with enable_thinking=False"):
        tokenizer(worded(save_files("internvl", tmp_path), template))


def test_templates_without_reasoning_are_given_nothing(tmp_path: Path) -> None:
    source = ModelSource("the model", save_files("internvl", tmp_path))
    assert tokenizer(source, "Think in <think> and </think>, then <think>.").prompt_format.template_options == {}


def test_the_date_that_a_template_writes_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store is then never continued with the prompt of another day: the date is part of its provenance."""
    import datetime

    from stratascope.extract.plan import chat_template as chat

    class Day(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2026, 7, 4)

    monkeypatch.setattr(chat, "datetime", Day)
    template = "{{ strftime_now('%d %b %Y') }} " + THINKING + "{% endif %}"
    source = worded(save_files("internvl", tmp_path), template)
    made = tokenizer(source)
    assert made.prompt_format.dates == {"04 Jul 2026"}
    assert made.prompt_format.render("Is it?").startswith("04 Jul 2026 ")
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"image": "x.png", "caption": "The cat is on the car.", "relation": "on", "label": 1}\n')
    settings = ExtractionSettings(model=str(tmp_path), examples=(rows,), images=None, image_size=(60, 60), device="cpu")
    assert plan_extraction(settings).provenance["prompt"]["dates"] == ["04 Jul 2026"]


def test_options_of_a_template_are_in_the_provenance_and_the_plan(tmp_path: Path) -> None:
    template = THINKING + "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
    worded(save_files("internvl", tmp_path), template)
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"image": "x.png", "caption": "The cat is on the car.", "relation": "on", "label": 1}\n')
    plan = plan_extraction(ExtractionSettings(model=str(tmp_path), examples=(rows,), images=None, image_size=(60, 60), device="cpu"))
    assert plan.provenance["prompt"]["template_options"] == {"enable_thinking": False}
    assert "chat template with enable_thinking=False: the answer follows the prompt" in plan_summary(plan)


def test_a_system_turn_for_a_prefix(tmp_path: Path) -> None:
    source = ModelSource("the model", save_files("paligemma", tmp_path))
    with pytest.raises(InvalidInputError, match="no `system` for the model, whose prompts are a prefix"):
        PrefixFormat(source, "<image>", "Be brief.")
    assert PrefixFormat(source, "<image>", "").render("x") == "<image><bos>x\n"


@pytest.mark.parametrize("name", ["qwen2_5_vl", "internvl"])
def test_the_system_turn_of_a_template_can_be_left_out_or_replaced(tmp_path: Path, name: str) -> None:
    source = ModelSource("the model", save_files(name, tmp_path))
    caption = "The cat is on the car."
    example = Example("x", "x.png", caption, "on", True, "test", split_caption(caption, "on"))
    texts = {}
    for system in (None, "", "Answer briefly."):
        made = tokenizer(source, system)
        layout = made.layout(example, (100, 80))
        texts[system] = made.tokenizer.decode(layout.ids.tolist(), skip_special_tokens=False)
        if system == "":
            assert "system" not in layout.spans
        else:
            held = layout.ids[slice(*layout.spans["system"])].tolist()
            assert made.tokenizer.decode(held) == (system or "You are a helpful assistant.")
    assert texts[""].startswith("<|im_start|>user")
    assert texts[None].endswith(texts[""])
    assert texts["Answer briefly."].endswith(texts[""])


@pytest.mark.parametrize("name", ["gemma3", "llava_next", "smolvlm"])
def test_a_system_text_has_its_span_wherever_the_template_puts_it(tmp_path: Path, name: str) -> None:
    made = tokenizer(ModelSource("the model", save_files(name, tmp_path)), "Answer briefly.")
    caption = "The cat is on the car."
    layout = made.layout(Example("x", "x.png", caption, "on", True, "test", split_caption(caption, "on")), (100, 80))
    assert made.tokenizer.decode(layout.ids[slice(*layout.spans["system"])].tolist()).strip() == "Answer briefly."


@pytest.mark.parametrize(
    ("family", "config", "layers", "hidden", "heads", "head_dim"),
    [
        ("llava", {"model_type": "llama", "max_position_embeddings": 4096}, 32, 4096, 32, 128),
        ("llava_next", {"model_type": "mistral"}, 32, 4096, 32, 128),
        ("gemma3", {"model_type": "gemma3_text", "hidden_size": 2560, "num_hidden_layers": 34}, 34, 2560, 8, 256),
        ("paligemma", {"hidden_size": 2048, "num_hidden_layers": 18, "num_attention_heads": 8}, 18, 2048, 8, 256),
    ],
)
def test_sizes_of_published_configs_that_leave_some_out(tmp_path, family, config, layers, hidden, heads, head_dim) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family, "hidden_size": 2048, "text_config": config}))
    shape = model_shape(ModelSource("the model", tmp_path))
    assert (shape.layers, shape.hidden, shape.heads, shape.head_dim) == (layers, hidden, heads, head_dim)


def test_every_family_is_known_to_transformers() -> None:
    assert set(FAMILIES) <= set(transformers.models.auto.modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)
