"""What lies beside the maps: probes and flows from result files, knockouts, next tokens, answers of questions. All equal their sources."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from stratascope.analysis.flow_results import flow_examples
from stratascope.probe import layer_curve
from stratascope.report.viewer import ViewServer, server
from stratascope.results import file as results
from stratascope.results.registry import load_result, save_result
from stratascope.store import ActivationStore, BlockWriter, create_store
from tests.completed import completed
from tests.viewer.numbers import numbers, table, weights
from tests.viewer.viewer_stores import PLACES, block_of, known_of, layout_of


def percent(value: float) -> str:
    """A share as the page's tables write it, to four digits."""
    p = 100 * value
    return "<0.01%" if 0 < p < 0.01 else "100%" if p >= 99.95 else f"{p:#.4g}%".replace(".%", "%")


def probe_table(browser):
    """Layer -> what each probe's column says."""
    script = "return [...document.querySelectorAll('.probe table tr')].map((r) => [...r.cells].map((c) => c.textContent))"
    head, *rows = browser.until(lambda: browser.js(script))
    return head[1:], {int(row[0]): row[1:] for row in rows}


@pytest.mark.slow
def test_the_probe_card_shows_the_result_files_numbers(browser, store, store_path, tmp_path):
    for position in ("final", "subject"):
        layer_curve(store, "truth", position).save(tmp_path / f"probe-truth-{position}.zarr.zip")
    with ViewServer(str(store_path), results=tmp_path) as running:
        for example in (0, 41):
            browser.open(f"{running.address}#example={example}")
            names, shown = probe_table(browser)
            assert sorted(names) == ["final", "subject"]
            for position in names:
                held = load_result(tmp_path / f"probe-truth-{position}.zarr.zip")
                examples = held.tables["examples"]
                k = int(np.flatnonzero(examples["example"] == example)[0])
                second = 1 / (1 + np.exp(-held.arrays["logits"][1][:, 0, k].astype(float)))
                right = second if examples["label"][k] == 1 else 1 - second
                assert [row[names.index(position)] for row in shown.values()] == [percent(p) for p in right]
        browser.click(".probe .chart", (0.1, 0.5))
        assert browser.view()["layer"] == "0"
        assert browser.errors() == []


def test_of_a_task_with_many_classes_only_one_piece_is_read(browser, small, tmp_path, monkeypatch):
    layers, classes, count = 5, 40, 120
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(layers, classes, count)).astype(np.float32)
    monkeypatch.setattr(results, "PIECE_BYTES", layers * classes * 4 * 16)
    names = [f"relation {k}" for k in range(classes)]
    examples = pd.DataFrame({"example": np.arange(count), "label": np.arange(count) % classes})
    told = {"task": "relation", "position": "final", "classes": names, "targets": []}
    arrays = {"logits": (("layer", "output", "example"), logits)}
    tables = {"examples": examples, "table": pd.DataFrame({"layer": np.arange(layers)})}
    path = tmp_path / "probe-relation-final.zarr.zip"
    save_result(path, completed("layer_curve", tables, arrays, told))
    np.testing.assert_array_equal(load_result(path).arrays["logits"][1], logits)
    sent = []
    plain = server._Handler._head

    def head(self, status, length, media, extra):
        if self.path.endswith(path.name):
            sent.append(length)
        plain(self, status, length, media, extra)

    monkeypatch.setattr(server._Handler, "_head", head)
    # as if it were too large to be fetched whole
    monkeypatch.setattr(server, "result_index", lambda folder, shown=None: _enlarged(folder, shown))
    with ViewServer(str(small), results=tmp_path) as running:
        browser.open(f"{running.address}#example=9")
        _, shown = probe_table(browser)
        powers = np.exp(logits[:, :, 9].astype(float))
        wanted = powers[:, 9] / powers.sum(1)
        assert [row[0] for row in shown.values()] == [percent(p) for p in wanted]
        assert 0 < sum(sent) < path.stat().st_size / 2


@pytest.mark.slow
def test_what_is_said_of_a_file_in_one_great_piece_makes_it_readable(browser, small, tmp_path, monkeypatch):
    layers, classes, count = 4, 40, 95_000
    logits = np.random.default_rng(3).normal(size=(layers, classes, count)).astype(np.float32)
    examples = pd.DataFrame({"example": np.arange(count), "label": np.arange(count) % classes})
    told = {"task": "relation", "position": "final", "classes": [f"relation {k}" for k in range(classes)], "targets": []}
    tables = {"examples": examples, "table": pd.DataFrame({"layer": np.arange(layers)})}
    path = tmp_path / "probe-relation-final.zarr.zip"
    with monkeypatch.context() as earlier:
        earlier.setattr(results, "PIECE_BYTES", 1 << 40)
        save_result(path, completed("layer_curve", tables, {"logits": (("layer", "output", "example"), logits)}, told))
    with ViewServer(str(small), results=tmp_path) as running:
        browser.open(f"{running.address}#example=9")
        browser.until(lambda: "too much for a page" in browser.text(".probe .missing"))
        _, _, script = shlex.split(browser.text(".probe .missing code"))
        subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)
        np.testing.assert_array_equal(load_result(path).arrays["logits"][1], logits)
        browser.open(f"{running.address}#example=9")
        powers = np.exp(logits[:, :, 9].astype(float))
        assert [row[0] for row in probe_table(browser)[1].values()] == [percent(p) for p in powers[:, 9] / powers.sum(1)]


def _enlarged(folder: Path, shown: Collection[str] | None) -> bytes:
    from stratascope.report.viewer.page_files import result_index

    index = json.loads(result_index(folder, shown))
    return json.dumps({"files": [{**entry, "bytes": 1 << 30} for entry in index["files"]]}).encode()


@pytest.mark.slow
def test_exact_flow_on_the_page_is_the_analysis_flow(browser, small, tmp_path):
    store = ActivationStore.open(small)
    whole = flow_examples(store, [8, 9])
    upper = flow_examples(store, [8], window=(4, 6))
    part = flow_examples(store, [8], window=(1, 3))
    for name, result in {"flow": whole, "flow-upper": upper, "flow-part": part}.items():
        result.save(tmp_path / f"{name}.zarr.zip")
    with ViewServer(str(small), results=tmp_path) as running:
        for layer, result in ((0, whole), (4, upper)):
            browser.open(f"{running.address}#example=8&measure=flow&layer={layer}")
            browser.until(lambda: "exact flow" in browser.text(".fact"))
            found = [row for row in table(browser) if row["layer"] == str(layer)]
            np.testing.assert_array_equal(weights(found), result.of(0).value)
        # a flow through some blocks below the last is no flow of this page
        browser.open(f"{running.address}#example=8&measure=flow&layer=1")
        assert "upper bound" in browser.text(".fact")


@pytest.mark.slow
def test_a_store_of_untrained_weights_says_so_and_knows_its_own_results(browser, tmp_path):
    layout = layout_of(9)
    known = known_of(layout, 5, 5)
    known["provenance"]["model"]["untrained"] = 3
    create_store(tmp_path / "drawn.zarr", layout, **known)
    with BlockWriter(tmp_path / "drawn.zarr") as writer:
        writer.write(0, block_of(layout, known, 0))
    store = ActivationStore.open(tmp_path / "drawn.zarr")
    flow_examples(store, [8]).save(tmp_path / "flow.zarr.zip")
    with ViewServer(str(tmp_path / "drawn.zarr"), results=tmp_path) as running:
        browser.open(f"{running.address}#example=8&measure=flow&layer=0")
        assert browser.text("header .departure") == "untrained weights (seed 3)"
        assert "untrained" in browser.driver.title
        browser.until(lambda: "exact flow" in browser.text(".fact"))


@pytest.mark.slow
def test_answers_of_questions_are_called_by_their_names(browser, questions):
    store = ActivationStore.open(questions)
    with ViewServer(str(questions)) as running:
        browser.open(f"{running.address}#example=2")
        browser.until(lambda: "96 of 96" in browser.text(".count"))
        logits = store.read("answer_logits", examples=2)
        chosen, right = PLACES[int(logits.argmax())], PLACES[2]
        chips = browser.texts(".chip")
        assert chips[0] == f"right answer {right}"
        assert chips[1].startswith(f"model {chosen} {'✓' if chosen == right else '✗'}")
        rows = [text for text in browser.texts(".row .about") if "#2 " in text]
        assert rows == [f"#2 · on · id {store.examples['id'][2]}"]
        assert not any("true" in text or "false" in text for text in browser.texts(".row .about"))
        held = store.available("answer_logits")
        correct = store.read("answer_logits", examples=np.flatnonzero(held)).argmax(-1) == store.examples["label"].to_numpy()[held]
        browser.choose(".pair select:nth-child(2)", "right")
        browser.until(lambda: browser.text(".count") == f"{int(correct.sum())} of 96 examples")
        assert browser.errors() == []


@pytest.mark.slow
def test_other_fields_of_the_row_are_shown_as_they_are(browser, questions, small_server):
    with ViewServer(str(questions)) as running:
        for example, wanted in {9: ["<i>hard</i>", "1.28571", "yes", "9"], 10: ["–", "1.42857", "no", "10"]}.items():
            browser.open(f"{running.address}#example={example}")
            browser.until(lambda wanted=wanted: browser.texts(".fields dd") == wanted, f"{wanted}")
        assert browser.texts(".fields dt") == ["difficulty", "seconds", "indoors", "count"]
        assert browser.errors() == []
    browser.open(small_server.address)
    assert browser.js("return document.querySelector('section:has(.fields)').hidden")


@pytest.mark.slow
def test_knockouts_are_the_stores(browser, questions):
    store = ActivationStore.open(questions)
    layout = store.layout
    held = store.read("knockout", examples=8)
    with ViewServer(str(questions)) as running:
        browser.open(f"{running.address}#example=8")
        browser.until(lambda: "box of subject" in browser.text(".bars"))
        shown = dict(zip(browser.texts(".bars th"), browser.texts(".bars td.num"), strict=True))
        k = layout.knockout_targets.index("relation")
        assert float(shown["relation"].replace("−", "-")) == pytest.approx(held[0, 0, k], rel=5e-3)
        browser.choose(".knockouts select[aria-label='Masked for']", "later")
        browser.choose(".knockouts select[aria-label='Masked in blocks']", "3-5")
        browser.click(".knockouts .button")
        browser.until(lambda: browser.view().get("measure") == "knockout")
        assert (browser.view()["mode"], browser.view()["window"]) == ("later", "3-5")
        found = table(browser)
        effects = dict(zip(layout.knockout_targets, held[1, 2], strict=True))
        for row in found:
            wanted = effects[f"cell_{int(row['row']) * 2 // 5}_{int(row['column']) * 3 // 5}"] if row["row"] else effects[row["part"]]
            assert float(row["weight"]) == wanted
        browser.open(f"{running.address}#example=9&measure=knockout")
        browser.until(lambda: "No knockout effects of this example" in browser.text(".note"))
        assert "No knockout effects" in browser.text(".knockouts")
        assert browser.errors() == []


@pytest.mark.slow
def test_estimates_by_token_and_next_tokens_are_the_stores(browser, questions):
    store = ActivationStore.open(questions)
    tokens = int(store.n_tokens[10])
    with ViewServer(str(questions)) as running:
        for measure, name in {"hiding": "hiding_estimate", "gradient": "gradient_input"}.items():
            browser.open(f"{running.address}#example=10&measure={measure}")
            np.testing.assert_array_equal(weights(table(browser)), store.read(name, examples=10)[:tokens])
        browser.until(lambda: browser.texts(".next .num"))
        texts = browser.texts(".next .token")
        assert texts[0] == "<|image_pad|>"
        assert texts[2:4] == ["·w1200", "·w2499"]
        assert [float(t) for t in browser.texts(".next .num")] == pytest.approx(store.read("top_logits", examples=10), abs=0.005)
        assert browser.errors() == []


@pytest.mark.slow
def test_a_store_without_them_shows_none_of_these_cards(browser, small_server):
    browser.open(f"{small_server.address}#example=8")
    assert browser.js("return [...document.querySelectorAll('.knockouts, section:has(.next)')].map((e) => e.hidden)") == [True, True]
    assert browser.texts(".pane .segmented button")[:6] == ["Attention", "Norm-based", "Attribution", "Rollout", "Flow", "Mean"]
    assert numbers(browser)
