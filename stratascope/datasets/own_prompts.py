"""Prompts of one's own: a text with fields, or a TOML file."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from stratascope.datasets.example import LETTERS
from stratascope.datasets.image_files import image_names
from stratascope.datasets.prompts import FIELD, MOST_OPTIONS, OPTION_KEYS, PROMPTS, Prompt, Shot
from stratascope.errors import InvalidInputError

OWN = "own"
"""Name of a prompt that is given as text."""
LETTERED = "letters"
"""Answers that are the letters of a question's options."""
WORDED = "options"
"""Answers that are a question's own options, in words."""
_KEYS = ("name", "text", "answers", "choices", "spans", "system", "image", "option", "separator", "last", "shots")
_DUPLICATE = "expected the answers of the prompt {}, which has its own, left out, found {}; leave `answers` out"


def find_prompt(prompt: str, answers: Sequence[str] | None = None) -> Prompt:
    """A built-in prompt by name, one from a TOML file, or a text with fields.

    Parameters
    ----------
    prompt
        Name, path that ends in .toml, or text such as "Is it true that {caption} Answer Yes or No.".
    answers
        Answers of a text: the one to a true caption, then that to a false one; more than two are choices, and `letters` or `options` alone
        are the letters of a question's options, or their words.

    Raises
    ------
    InvalidInputError
        If it is none of these, a file cannot be read or has unknown keys, or answers are missing or given twice.

    Examples
    --------
    >>> find_prompt("Is it true that {caption} Answer Yes or No.", ("Yes", "No")).answers
    ('No', 'Yes')
    """
    given = ", ".join(answers or ())
    if prompt in PROMPTS:
        if answers:
            raise InvalidInputError(_DUPLICATE.format(prompt, given))
        return PROMPTS[prompt]
    if prompt.endswith(".toml"):
        if answers:
            raise InvalidInputError(_DUPLICATE.format(prompt, given))
        return _read_prompt(prompt)
    if not FIELD.search(prompt):
        raise InvalidInputError(
            f"expected `prompt` to be among {', '.join(PROMPTS)}, a file that ends in .toml, or a text with a field such as {{caption}}, "
            f"found {prompt!r}"
        )
    if not answers:
        raise InvalidInputError(f"expected `answers` for a prompt of one's own, such as Yes,No, found none for {prompt!r}")
    if tuple(answers) in ((LETTERED,), (WORDED,)):
        return Prompt(OWN, prompt, LETTERS[:MOST_OPTIONS], own_options=answers[0] == WORDED)
    return _with_answers(OWN, prompt, tuple(answers))


def _with_answers(name: str, text: str, answers: tuple[str, ...], **more: Any) -> Prompt:
    return Prompt(name, text, answers, (answers[1], answers[0]) if len(answers) == 2 else None, **more)


def _read_prompt(path: str) -> Prompt:
    try:
        found = tomllib.loads(Path(path).expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidInputError(f"{path}: expected a readable prompt in TOML, found: {error}") from error
    unknown = sorted(set(found) - set(_KEYS))
    if unknown:
        raise InvalidInputError(f"{path}: expected the keys {', '.join(_KEYS)}, found {', '.join(unknown)}")
    kinds = {"answers": list, "choices": list, "spans": dict, "last": list, "own_options": bool}
    if found.get("choices") in (LETTERED, WORDED):
        found |= {"own_options": found["choices"] == WORDED, "choices": list(LETTERS[:MOST_OPTIONS])}
    shots = found.pop("shots", [])
    for key, value in found.items():
        kind = kinds.get(key, str)
        if not isinstance(value, kind) or (isinstance(value, list) and not all(isinstance(each, str) for each in value)):
            raise InvalidInputError(f"{path}: expected {key} to be {_KINDS[kind]}, found {value!r}")
    if "text" not in found or not {"answers", "choices"} & found.keys():
        raise InvalidInputError(f"{path}: expected text, and answers (to a true and a false caption) or choices, found others")
    if "answers" in found and len(found["answers"]) != 2:
        raise InvalidInputError(f"{path}: expected two answers, to a true and to a false caption, found {found['answers']}; use choices")
    if not set(found.get("answers", ())) <= set(found.get("choices", found.get("answers", ()))):
        raise InvalidInputError(f"{path}: expected answers that are among the choices, found {found['answers']} and {found['choices']}")
    if found.get("image", "before") not in ("before", "after"):
        raise InvalidInputError(f"{path}: expected image to be before or after (the text), found {found['image']!r}")
    more = {
        "spans": found.get("spans", {}),
        "system": found.get("system"),
        "image_after": found.get("image") == "after",
        **_option_form(found),
    }
    name = found.get("name", Path(path).stem)
    if name in PROMPTS:
        raise InvalidInputError(f"{path}: expected a name that is not one of the built-in prompts, found {name!r}; set name in the file")
    try:
        pair = tuple(found.get("answers", ())[::-1])
        made = Prompt(name, found["text"], tuple(found.get("choices", pair[::-1])), pair or None, **more)
        return replace(made, shots=_shots(made, shots))
    except InvalidInputError as error:
        raise InvalidInputError(f"{path}: {error}") from error


def _shots(prompt: Prompt, tables: Any) -> tuple[Shot, ...]:
    """The few-shot turns of a file: the prompt's text with the fields of each table."""
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise InvalidInputError(f"expected shots to be tables, each after [[shots]], found {tables!r}")
    found = []
    for number, table in enumerate(tables, 1):
        fields, answer = dict(table), table.get("answer")
        if isinstance(options := fields.get("options"), list) and all(isinstance(text, str) for text in options):
            fields = {"letters": ", ".join(LETTERS[: len(options)]), **fields, "options": prompt.shown_options(options)}
        if not isinstance(answer, str) or not (prompt.own_options or answer in prompt.choices):
            raise InvalidInputError(f"expected shot {number} to have an answer among {', '.join(prompt.choices)}, found {answer!r}")
        lacking = [name for name in prompt.columns if not isinstance(fields.get(name), str)]
        unknown = sorted(fields.keys() - {*prompt.columns, "image", "answer", *({"options", "letters"} if options else {})})
        if lacking or unknown:
            raise InvalidInputError(
                f"expected shot {number} to have a text for {', '.join(prompt.columns)}, the fields of the prompt, with image and answer "
                f"besides, found {'none for ' + ', '.join(lacking) if lacking else ', '.join(unknown)}"
            )
        images = image_names(fields) if "image" in fields else ()
        text = FIELD.sub(lambda match, own=fields: own[match[1]], prompt.text)  # type: ignore[misc]
        found.append(Shot(images, text, answer))
    return tuple(found)


def _option_form(found: Mapping[str, Any]) -> dict[str, Any]:
    """How the prompt shows options, as keywords of `Prompt`."""
    return {key: tuple(found[key]) if isinstance(found[key], list) else found[key] for key in OPTION_KEYS if key in found}


_KINDS = {bool: "true or false", str: "a text", list: "a list of texts", dict: "a table"}


def stored_prompt(held: Mapping[str, Any]) -> Prompt | None:
    """The prompt of a store from `prompt` of its provenance, if it is not one of the built-in ones.

    Examples
    --------
    >>> stored_prompt({"name": "yes-no"}) is None
    True
    """
    name, text, choices, answers = (held.get(key) for key in ("name", "text", "choices", "answers"))
    if name in PROMPTS or not isinstance(text, str) or not choices:
        return None
    pair = None
    if isinstance(answers, list) and len(answers) == 2 and list(choices) != answers:  # otherwise they are two choices
        pair = (str(answers[0]), str(answers[1]))
    shots = tuple(Shot(tuple(shot["images"]), shot["text"], shot["answer"]) for shot in held.get("shots") or ())
    more = {"spans": held.get("spans") or {}, "image_after": held.get("image") == "after", "shots": shots, **_option_form(held)}
    return Prompt(str(name), text, tuple(choices), pair, **more)
