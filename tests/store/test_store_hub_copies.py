"""`push` to and `pull` from the Hub: the same bytes, resumed, named errors; at a server that speaks its API as far as it is used."""

from __future__ import annotations

import json

import numpy as np
import pytest
from buckets import files
from click.testing import CliRunner
from hub_server import READ_TOKEN, TOKEN, hub_server, hub_settings
from stores import make_store, small_layout

from stratascope.cli import main
from stratascope.report.dataset_card import with_section
from stratascope.store import ActivationStore, copy_store, diff_stores, verify
from stratascope.store.io import remote
from stratascope.store.maintenance import hub_copies
from stratascope.store.maintenance.hub_copies import HubTarget, pull_store

pytest.importorskip("huggingface_hub")
LAYOUT = small_layout(record={"residual", "attention_rows"})
ADDRESS = "hf://datasets/me/data/run.zarr"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("source") / "run.zarr", LAYOUT)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(remote, "LONGEST_PAUSE", 0.05)
    with hub_server() as found, hub_settings(found, monkeypatch, tmp_path / "home"):
        yield found


def run(*words: object):
    return CliRunner().invoke(main, [str(word) for word in words])


def stored(hub, path: str = "run.zarr") -> dict[str, bytes]:
    """Key -> bytes of a store in the repository."""
    return {key.removeprefix(f"{path}/"): data for key, data in hub.files("me/data").items() if key.startswith(f"{path}/")}


def test_a_store_that_is_pushed_and_pulled_is_the_same_to_the_byte(hub, source, tmp_path):
    pushed = run("push", source, ADDRESS)
    assert pushed.exit_code == 0, pushed.output
    assert stored(hub) == files(source)
    assert hub.repositories["me/data"].private
    assert verify(ADDRESS).ok  # read over ranges, through the redirect
    pulled = run("pull", ADDRESS, tmp_path / "a.zarr")
    assert pulled.exit_code == 0, pulled.output
    assert files(tmp_path / "a.zarr") == files(source)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "home") == ["a.zarr"]
    assert hub.network_authorizations == {None}


def test_the_root_comes_last_and_every_commit_is_readable(hub, source, monkeypatch):
    monkeypatch.setattr(hub_copies, "COMMIT_FILES", 1)  # a commit after each block
    assert run("push", source, ADDRESS).exit_code == 0
    blocks = LAYOUT.blocks
    *before, (_, last) = hub.repositories["me/data"].commits
    assert len(before) == 2 + blocks
    assert all("run.zarr/zarr.json" not in held for _, held in before)
    for _, held in before:  # a marker is never without the files of its block
        for block in range(blocks):
            if f"run.zarr/written/c/{block}" in held:
                assert all(f"run.zarr/{spec.key(block)}" in held for spec in LAYOUT.arrays() if spec.by_block)
    assert not [path for path in last if "claims" in path]


def test_an_interrupted_push_sends_nothing_twice(hub, source, monkeypatch):
    monkeypatch.setattr(hub_copies, "COMMIT_FILES", 1)
    monkeypatch.setattr(remote, "PATIENCE", 0.2)
    third = [False]

    def gone(method, path, count):
        third[0] |= method == "POST" and path.endswith("/commit/main") and count >= 3
        return 503 if third[0] else None

    hub.ill = gone
    failed = run("push", source, ADDRESS)
    assert failed.exit_code == 2
    assert "the server answers 503" in failed.stderr
    assert "run the same command to continue" in failed.stderr
    assert "run.zarr/zarr.json" not in hub.files("me/data")
    hub.ill, before = lambda *_: None, list(hub.uploads)
    assert run("push", source, ADDRESS).exit_code == 0
    assert before
    assert not set(before) & set(hub.uploads[len(before) :])
    assert stored(hub) == files(source)


def test_new_blocks_are_added_to_a_store_that_was_pushed(hub, tmp_path):
    part = make_store(tmp_path / "part" / "run.zarr", LAYOUT, blocks=[0])
    whole = make_store(tmp_path / "whole" / "run.zarr", LAYOUT)
    assert run("push", part, ADDRESS).exit_code == 0
    assert ActivationStore.open(ADDRESS).written.tolist() == [True, False, False]
    again = json.loads(run("push", part, ADDRESS, "--json").stdout)
    assert again["sent_bytes"] == 0
    added = json.loads(run("push", whole, ADDRESS, "--json").stdout)
    assert 0 < added["sent_bytes"] < added["bytes"]
    assert stored(hub) == files(whole)


def test_another_store_is_never_mixed_in(hub, source, tmp_path):
    other = make_store(tmp_path / "other.zarr", small_layout(record={"residual"}, thumbnail=None))
    assert run("push", source, ADDRESS).exit_code == 0
    held = stored(hub)
    refused = run("push", other, ADDRESS)
    assert refused.exit_code == 2
    assert "found another store there" in refused.stderr
    assert stored(hub) == held
    # one that was begun, too
    hub.repositories["me/data"].commit({"run.zarr/written/claims/begun": (b"else", False)}, "begun")
    assert "an unfinished copy of another store" in run("push", source, ADDRESS).stderr
    hub.repositories["me/data"].commit({"run.zarr/notes.txt": (b"mine", False)}, "mine")
    assert "found 1 other files there" in run("push", source, ADDRESS).stderr


def test_two_first_pushes_at_once_do_not_both_begin(hub, source):
    def other_first(method, path, count):
        if method == "POST" and path.endswith("/commit/main"):
            hub.repositories["me/data"].commit(hub.repositories["me/data"].commits[-1][1], "another program")
            hub.ill = lambda *_: None

    hub.ill = other_first
    result = run("push", source, ADDRESS)
    assert result.exit_code == 2
    assert "another program changed the repository meanwhile: run the same command again" in result.stderr
    assert run("push", source, ADDRESS).exit_code == 0


def test_a_part_without_thumbnails_shows_no_image(hub, source, tmp_path):
    assert run("push", source, "hf://datasets/me/data", "--arrays", "residual", "--layers", "0,2").exit_code == 0
    held = hub.files("me/data")
    assert {"README.md", "run.zarr/zarr.json"} <= held.keys()
    assert "run.zarr.png" not in held
    assert not [path for path in held if "thumbnail" in path]
    copy_store(source, tmp_path / "b.zarr", arrays="residual", layers=[0, 2])
    assert stored(hub) == files(tmp_path / "b.zarr")


def test_the_card_says_what_the_store_is(hub, source):
    assert run("push", source, ADDRESS, "--licence", "cc-by-4.0").exit_code == 0
    held = hub.files("me/data")
    card = held["README.md"].decode()
    assert card.startswith("---\nlicense: cc-by-4.0\n")
    assert "| Model | tiny |" in card
    assert f"| Examples | {LAYOUT.examples} |" in card
    assert ActivationStore.open(source).fingerprint() in card
    assert f'ActivationStore.open("{ADDRESS}")' in card
    assert "| residual | layer, position, example, hidden |" in card
    assert "![Examples, coloured by the final token's attention](run.zarr.png)" in card
    assert held["run.zarr.png"].startswith(b"\x89PNG")
    assert "zq" not in card


def test_a_card_that_people_wrote_is_kept(hub, source):
    assert run("push", source, ADDRESS).exit_code == 0
    repository = hub.repositories["me/data"]
    held = dict(repository.commits[-1][1])
    held["README.md"] = (held["README.md"][0].replace(b"license: unknown", b"license: mit") + b"\n## Thanks\n", False)
    repository.commit(held, "by hand")
    assert run("push", source, "hf://datasets/me/data/second.zarr").exit_code == 0
    card = hub.files("me/data")["README.md"].decode()
    assert "license: mit" in card
    assert "## Thanks" in card
    assert card.count("<!-- stratascope: run.zarr -->") == card.count("<!-- stratascope: second.zarr -->") == 1
    assert with_section(with_section("x", "a", "1"), "a", "2") == "x\n\n<!-- stratascope: a -->\n2\n<!-- /stratascope: a -->\n"


@pytest.mark.parametrize(
    ("token", "words", "said"),
    [
        ("", ("push", "STORE", ADDRESS), "expected a token of the Hub, found none; set HF_TOKEN"),
        ("hf_zq_wrong", ("push", "STORE", ADDRESS), "the server answers 401; the token is missing or not accepted"),
        (READ_TOKEN, ("push", "STORE", ADDRESS), "the server answers 403; the token may not write there"),
        ("", ("pull", ADDRESS, "OUT"), "for a private repository set HF_TOKEN|the token is missing or not accepted"),
        (TOKEN, ("push", "STORE", "hf://me/model"), "expected the repository of a data set"),
        (TOKEN, ("push", "STORE", "s3://bucket/a.zarr"), "expected an address on the Hub"),
        (TOKEN, ("push", "STORE", "hf://datasets/me"), "expected an address such as hf://datasets/USER/NAME"),
        (TOKEN, ("push", "STORE", "hf://datasets/me/data/../up"), "expected an address such as hf://datasets/USER/NAME"),
        (TOKEN, ("push", "STORE", "hf://datasets/me/data@nothing"), "the server answers 404; check the name and the revision"),
        (TOKEN, ("push", "STORE", ADDRESS, "--licence", "a\nb: c"), "expected an identifier of the Hub such as cc-by-4.0"),
        (TOKEN, ("pull", "hf://datasets/me/nothing", "OUT"), "the server answers 404"),
        (TOKEN, ("copy", "STORE", ADDRESS), "stratascope push"),
    ],
)
def test_what_is_missing_is_named_in_a_line(hub, source, tmp_path, monkeypatch, token, words, said):
    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setattr(remote, "PATIENCE", 0.2)
    places = {"STORE": source, "OUT": tmp_path / "out.zarr"}
    result = run(*(places.get(word, word) for word in words))
    assert result.exit_code == 2
    assert any(text in result.stderr for text in said.split("|")), result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert "zq" not in result.stderr
    assert not (tmp_path / "out.zarr").exists()


def test_without_a_server_or_online_mode_nothing_is_waited_for(hub, source, monkeypatch):
    monkeypatch.setattr(remote, "FIRST_PATIENCE", 0.1)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert "found: no server answers (http://127.0.0.1:9)" in run("push", source, ADDRESS).stderr
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "found HF_HUB_OFFLINE set" in run("push", source, ADDRESS).stderr


def test_a_lost_answer_and_an_overloaded_hub_are_waited_for(hub, source):
    hub.ill = lambda method, path, count: {0: 503, 1: "reset"}.get(count) if "/api/" in path else None
    assert run("push", source, ADDRESS).exit_code == 0


@pytest.mark.parametrize("lost", [0, 1, 2, 3, 4])
def test_a_commit_whose_answer_is_lost_is_made_once(hub, source, monkeypatch, lost):
    """The first, which names its parent, those of blocks, and the last, which removes a file."""
    monkeypatch.setattr(hub_copies, "COMMIT_FILES", 1)
    assert run("push", source, ADDRESS).exit_code == 0
    messages = hub.repositories.pop("me/data").messages
    assert len(messages) == 3 + LAYOUT.blocks
    sent = []

    def ill(method, path, count):
        if method == "POST" and "/commit/" in path:
            sent.append(path)
            return "lost" if len(sent) == lost + 1 else None
        return None

    hub.ill = ill
    result = run("push", source, ADDRESS)
    assert result.exit_code == 0, result.output
    assert stored(hub) == files(source)
    assert hub.repositories["me/data"].messages == messages
    assert len(sent) == len(messages) - 1  # the repository's own first commit is none of the command


def test_a_lost_answer_does_not_hide_another_program(hub, source):
    """The first commit does not land, and another program changes the repository before it is sent again."""

    def ill(method, path, count):
        if method == "POST" and path.endswith("/commit/main"):
            if not count:
                hub.repositories["me/data"].commit(hub.repositories["me/data"].commits[-1][1], "another program")
            return None if count else "reset"
        return None

    hub.ill = ill
    result = run("push", source, ADDRESS)
    assert result.exit_code == 2
    assert "another program changed the repository meanwhile" in result.stderr


def test_pull_goes_on_finds_the_only_store_and_refuses_damage(hub, source, tmp_path, monkeypatch):
    assert run("push", source, ADDRESS).exit_code == 0
    monkeypatch.setattr(remote, "PATIENCE", 0.2)
    late = LAYOUT.array("residual").key(2)
    hub.ill = lambda method, path, count: 503 if path.endswith(late) else None
    failed = run("pull", ADDRESS, tmp_path / "a.zarr")
    assert failed.exit_code == 2
    assert not (tmp_path / "a.zarr").exists()
    hub.ill = lambda *_: None
    before = len(hub.asked)
    assert pull_store("hf://datasets/me/data", tmp_path / "a.zarr") == tmp_path / "a.zarr"
    again = [path for method, path in hub.asked[before:] if method == "GET" and "/resolve/" in path]
    assert len(again) < len(files(source)) / 2
    assert diff_stores(tmp_path / "a.zarr", source).same
    assert "found an existing one" in run("pull", ADDRESS, tmp_path / "a.zarr").stderr
    repository = hub.repositories["me/data"]
    held = dict(repository.commits[-1][1])
    data = bytearray(held[f"run.zarr/{late}"][0])
    data[len(data) // 2] ^= 1
    held[f"run.zarr/{late}"] = (bytes(data), False)
    repository.commit(held, "damage")
    damaged = run("pull", ADDRESS, tmp_path / "b.zarr")
    assert damaged.exit_code == 2
    assert "found it damaged on the Hub" in damaged.stderr
    assert late in damaged.stderr
    assert not (tmp_path / "b.zarr").exists()
    assert run("push", source, "hf://datasets/me/data/second.zarr").exit_code == 0
    assert "found 2: run.zarr, second.zarr" in run("pull", "hf://datasets/me/data", tmp_path / "c.zarr").stderr


def test_a_store_from_a_zip_or_address_is_pushed_as_it_is(hub, source, tmp_path):
    copy_store(source, tmp_path / "run.zip")
    assert run("push", tmp_path / "run.zip", "hf://datasets/me/data").exit_code == 0
    assert stored(hub) == files(source)
    copy_store(ADDRESS, HubTarget("hf://datasets/me/other/run.zarr", lambda _: {}, public=True))
    assert not hub.repositories["me/other"].private
    other = ActivationStore.open("hf://datasets/me/other/run.zarr")
    np.testing.assert_array_equal(
        other.read("residual", layer=1, examples=[2]), ActivationStore.open(source).read("residual", layer=1, examples=[2])
    )
