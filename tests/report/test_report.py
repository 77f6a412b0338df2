"""A report says what its results hold, number by number, names where each comes from, and takes none of another store."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

pytest.importorskip("torch")

from stratascope.analysis import answer_confidence, attention_share, pointing, principal_components, rollout_examples
from stratascope.cli import all_commands, main
from stratascope.commands.command_line import CommandLines
from stratascope.errors import InvalidInputError, NotRecordedError
from stratascope.extract import plan_extraction, run_extraction
from stratascope.probe import Advantage, LayerCurve
from stratascope.probe.study.probe_run import run_probes
from stratascope.probe.study.request import ProbeRequest
from stratascope.report.attribution_sections import faithfulness_blocks
from stratascope.report.blocks import Missing
from stratascope.report.figure_registry import FIGURES
from stratascope.report.headline import leading_curve
from stratascope.report.report_file import example_cards, write_report
from stratascope.report.reproduction import commands
from stratascope.report.result_set import ResultSet, gather
from stratascope.report.store_report import report_page
from stratascope.results.file import ResultFile
from stratascope.results.registry import load_result, save_result
from stratascope.results.saved_files import save_with_figure
from stratascope.results.stored_result import StoredResult
from stratascope.store import ActivationStore
from tests.completed import completed
from tests.viewer.browser import Browser

COMMAND_LINES = CommandLines(lambda name: all_commands()[name])


@pytest.fixture(scope="module")
def results(settings, store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of the scenes' store, with the blank condition beside it."""
    folder = tmp_path_factory.mktemp("report")
    blank = folder / "blank.zarr"
    run_extraction(plan_extraction(dataclasses.replace(settings, condition="blank", record=("residual",))), blank)
    asked = {"tasks": ("truth", "truth:shuffled"), "positions": ("final", "object"), "settings": {"folds": 4, "seed": 0}}
    probed = run_probes(
        store, ProbeRequest(baselines={"baseline": ActivationStore.open(blank)}, **asked), output=folder / "results" / "layers"
    )
    for name, result in probed.results.items():
        save_with_figure(result, folder / "results", name=name, draw=False)
    save_with_figure(answer_confidence(store), folder / "results")
    save_with_figure(attention_share(store), folder / "results")
    save_with_figure(rollout_examples(store, (0, 1)), folder / "results")
    save_with_figure(pointing(store), folder / "results")
    save_with_figure(principal_components(store), folder / "results")
    return folder / "results"


@pytest.fixture(scope="module")
def page(store, results: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("page") / "report.html"
    write_report(store, [results], out, where="scenes.zarr", command_line=COMMAND_LINES)
    return out.read_text("utf-8")


class Numbers(HTMLParser):
    """Cited numbers as (section, value, where from), and the text of each section."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.section = ""
        self.found: list[tuple[str, str, str]] = []
        self.text: dict[str, str] = {}
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "section":
            self.section = given.get("id") or ""
        if tag == "data":
            self.found.append((self.section, given["value"] or "", given["title"] or ""))

    def handle_data(self, data: str) -> None:
        self.text[self.section] = self.text.get(self.section, "") + data


@pytest.mark.slow
def test_every_number_of_the_headline_stands_in_the_table_it_names(page: str, results: Path) -> None:
    cited = [(value, source.split(", ")) for section, value, source in Numbers(page).found if section == "found"]
    assert len(cited) > 15
    for value, (file, table, *_) in cited:
        held = load_result(results / file).tables[table.removeprefix("tables/")]
        numbers = np.concatenate([held[name].to_numpy(float) for name in held if held[name].dtype.kind in "if"])
        assert (numbers == float(value)).any(), (value, file, table)


@pytest.mark.slow
def test_the_headline_is_what_the_curves_say(store, page: str, results: Path) -> None:
    said = Numbers(page)
    lead = leading_curve(gather(store, [results]))
    curve = LayerCurve.load(results / lead.name)
    best = curve.rows().sort_values("value", ascending=False, kind="stable").iloc[0]
    values = {float(v) for section, v, source in said.found if section == "found" and lead.name in source}
    assert {best["value"], best["low_simultaneous"], best["high_simultaneous"], best["chance"], best["layer"]} <= values
    every = Advantage.load(results / f"advantage-truth-{curve.position}-over-all.zarr.zip")
    words = " ".join(said.text["found"].split())
    assert ("is detected" in words) == bool(every.detected)
    assert ("is not detected" in words) != bool(every.detected)
    over = Advantage.load(results / f"advantage-truth-{curve.position}-over-baseline.zarr.zip").table.set_index("layer").loc[best["layer"]]
    assert f"{over['value']:+.2f}".replace("-", "−") in said.text["found"]
    assert "blank images" in said.text["found"]
    assert "shuffled labels" in said.text["found"]


@pytest.mark.slow
def test_the_same_results_give_the_same_bytes(page: str, store, results: Path, tmp_path: Path) -> None:
    write_report(store, [results], tmp_path / "again.html", where="scenes.zarr", command_line=COMMAND_LINES)
    assert (tmp_path / "again.html").read_text("utf-8") == page


@pytest.mark.slow
def test_it_is_small_and_holds_no_path_of_this_machine(page: str, results: Path) -> None:
    without_images = re.sub(r"data:image/png;base64,[^\"]+", "", page)
    assert len(without_images) < 1_000_000
    assert str(results.parent) not in page


def answered(table, right) -> ResultSet:
    """The results of a store whose answers are right where `right` says so."""
    held = ResultFile("answer_confidence", {"answers": table.assign(right=right)}, {}, {})
    return ResultSet([StoredResult(Path("answers.zarr.zip"), held)])


@pytest.mark.slow
@pytest.mark.parametrize(("wrong", "shown"), [(0, (6, 0)), (1, (5, 1)), (2, (4, 2)), (3, (3, 3)), (-3, (3, 3)), (-2, (2, 4)), (-1, (1, 5))])
def test_six_cards_from_the_surest_to_the_least_sure_however_few_answers_are_wrong(store, results: Path, wrong: int, shown) -> None:
    table = load_result(results / "answers.zarr.zip").tables["answers"]
    right = np.arange(len(table)) >= wrong if wrong >= 0 else np.arange(len(table)) < -wrong
    cards = example_cards(store, answered(table, right))
    assert (sum(card.good is True for card in cards), sum(card.good is False for card in cards)) == shown
    for good, number in zip((True, False), shown, strict=True):
        rows = table[right == good].sort_values("confidence", ascending=False)
        titles = [card.title for card in cards if card.good is good]
        assert len(titles) == number
        if number:
            assert titles[0] == store.examples["caption"][rows["example"].iloc[0]]
        if number > 1:
            assert titles[-1] == store.examples["caption"][rows["example"].iloc[-1]]


@pytest.mark.slow
def test_the_cards_between_the_surest_and_the_least_sure_are_of_other_relations_and_evenly_spread(store, results: Path) -> None:
    table = load_result(results / "answers.zarr.zip").tables["answers"]
    table = table.assign(confidence=np.linspace(0.99, 0.51, len(table)))
    cards = example_cards(store, answered(table, np.ones(len(table), dtype=bool)))
    numbers = [int(re.search(r"^Example (\d+)", card.blocks[-1].words).group(1)) for card in cards]
    assert numbers == sorted(numbers)
    gap = (len(table) - 1) / 5
    assert all(abs(number - k * gap) <= gap / 2 + 1 for k, number in enumerate(numbers))
    relations = store.examples["relation"].iloc[numbers]
    assert relations.nunique() >= 5  # as the ends are given, and may be of one relation


@pytest.mark.slow
def test_a_store_with_few_examples_shows_all_of_them_once(store, results: Path) -> None:
    table = load_result(results / "answers.zarr.zip").tables["answers"].iloc[:4]
    cards = example_cards(store, answered(table, [True, False, True, True]))
    assert sorted(card.title for card in cards) == sorted(store.examples["caption"][table["example"]])


@pytest.mark.slow
@pytest.mark.slow
def test_principal_components_are_drawn_with_their_shares_of_the_variance(store, page: str) -> None:
    section = page.partition('<section id="components">')[2].partition("</section>")[0]
    x = store.read("residual", layer=6, position="final").astype(np.float64)
    sizes = np.linalg.svd(x - x.mean(0), compute_uv=False) ** 2
    first, second = sizes[:2] / sizes.sum()
    assert f">PC 1 ({first:.0%})<" in section
    assert f">PC 2 ({second:.0%})<" in section
    assert section.count("<use ") >= 4 * len(x), "a dot for each example in each of four layers"


def test_absent_results_name_the_command_that_makes_them(store, results: Path, tmp_path: Path) -> None:
    shutil.copy(results / "rollout.zarr.zip", tmp_path)
    html = report_page(store, gather(store, [tmp_path]), command_name="my.zarr").html()
    for command in ("probe my.zarr", "share my.zarr", "answers my.zarr"):
        assert f"stratascope {command}" in html
    said = re.findall(r'class="missing">(.*?)</p>', html, re.S)
    assert len(said) > 5
    for words in said:  # reads on into its command, in print too
        assert re.fullmatch(r"[^<]+ (with|then) <code>stratascope [^<]+</code>", words), words


def test_an_absent_result_asks_for_an_extraction_only_where_the_store_lacks_what_it_needs() -> None:
    nothing = ResultSet([])
    (lacking,) = faithfulness_blocks(nothing, "a.zarr", {"attention_rows"})
    assert isinstance(lacking, Missing)
    assert "extract with --record attention_rows,attention_maps,knockout" in lacking.what
    (there,) = faithfulness_blocks(nothing, "a.zarr", {"attention_rows", "attention_maps", "knockout"})
    assert isinstance(there, Missing)
    assert "extract" not in there.what
    assert there.command == "stratascope faithfulness a.zarr"


@pytest.mark.slow
def test_results_of_another_store_are_refused_by_name_unless_the_folder_is_shared(store, results: Path, tmp_path: Path) -> None:
    other = load_result(results / "share.zarr.zip")
    foreign = ResultFile(other.kind, other.tables, other.arrays, {**other.attributes, "store": "0" * 64})
    save_result(tmp_path / "results" / "share.zarr.zip", foreign)
    with pytest.raises(
        InvalidInputError, match=r"share\.zarr\.zip: expected results of .*scenes\.zarr as it is now, found those of another"
    ):
        gather(store, [tmp_path / "results"])
    with pytest.raises(NotRecordedError, match="found none \\(1 of other stores\\); make some with `stratascope probe"):
        gather(store, where=tmp_path / "a.zarr")
    shutil.copy(results / "answers.zarr.zip", tmp_path / "results")
    assert gather(store, where=tmp_path / "a.zarr").others == 1
    with pytest.raises(NotRecordedError, match="found no such folder"):
        gather(store, where=tmp_path / "nowhere" / "a.zarr")


@pytest.mark.slow
def test_a_result_made_twice_counts_once(store, results: Path, tmp_path: Path) -> None:
    (tmp_path / "again").mkdir()
    for name in ("probe-truth-final", "advantage-truth-final-over-baseline"):
        shutil.copy(results / f"{name}.zarr.zip", tmp_path / "again" / f"{name}-again.zarr.zip")
    assert len(gather(store, [results, tmp_path / "again"]).own) == len(gather(store, [results]).own)


@pytest.mark.slow
def test_curves_of_the_same_examples_under_another_condition_stand_beside(store, results: Path) -> None:
    findings = gather(store, [results])
    assert {f.condition for f in findings.beside} == {"blank"}
    assert [f.name for f in findings.baselines_of(findings.curves[0])] == ["probe-truth-final-baseline.zarr.zip"]
    assert {f.task for f in findings.curves} == {"truth"}


@pytest.mark.slow
def test_the_boxes_that_a_result_was_made_with_are_named_and_told_from_others(store, scenes: Path, tmp_path: Path) -> None:
    other = tmp_path / "all boxes.json"
    other.write_bytes((scenes / "instances.json").read_bytes() + b"\n")
    said = {}
    for boxes in (scenes / "instances.json", other, None):
        assert run("pointing", store.name, *(["--boxes", str(boxes)] if boxes else []), "--out", str(tmp_path / "results")).exit_code == 0
        lines = commands(store, gather(store, [tmp_path / "results"]), COMMAND_LINES)
        said[boxes] = [line for line in lines if "pointing" in line or line[0] == "#"][1:]
    digest = hashlib.sha256(other.read_bytes()).hexdigest()
    assert said[scenes / "instances.json"] == [
        "# instances.json: the file of boxes of the extraction; give its path",
        "stratascope pointing scenes.zarr --boxes instances.json --out results",
    ]
    assert said[other] == [
        f"# all boxes.json: the file of boxes whose SHA-256 begins with {digest[:12]}; give its path",
        "stratascope pointing scenes.zarr --boxes 'all boxes.json' --out results",
    ]
    assert said[None] == ["stratascope pointing scenes.zarr --out results"]
    held = load_result(tmp_path / "results" / "pointing.zarr.zip")
    without = StoredResult(Path("r/p.zarr.zip"), dataclasses.replace(held, attributes={**held.attributes, "others": True}))
    assert "stratascope pointing scenes.zarr --boxes BOXES.json --out r" in commands(
        store, ResultSet([without]), COMMAND_LINES
    )  # an older file
    seeded = StoredResult(without.path, dataclasses.replace(held, attributes={**held.attributes, "seed": 3}))
    assert "stratascope pointing scenes.zarr --seed 3 --out r" in commands(store, ResultSet([seeded]), COMMAND_LINES)


def run(*arguments: str):
    return CliRunner().invoke(main, list(arguments))


@pytest.mark.slow
def test_every_figure_is_drawn_from_its_results_or_says_what_makes_them(results: Path, tmp_path: Path) -> None:
    listed = run("figure", "--list").output
    for name, figure in FIGURES.items():
        assert re.search(rf"^{name} ", listed, re.M)
        result = run("figure", name, str(results), "-o", str(tmp_path / f"{name}.svg"))
        if result.exit_code:
            assert figure.command in result.stderr
        else:
            assert (tmp_path / f"{name}.svg").stat().st_size > 3000
    drawn = {path.stem for path in tmp_path.iterdir()}
    assert {"curves", "positions", "advantage", "relations", "answers", "share", "parts", "heads", "pointing"} <= drawn


def test_results_that_their_command_left_out_are_not_asked_of_it_again(tmp_path: Path) -> None:
    prediction = FIGURES["prediction"]
    with pytest.raises(NotRecordedError, match="none; make it with `stratascope overlap STORE`"):
        prediction.figure(ResultSet([]))
    overlap = StoredResult(tmp_path / "overlap.zarr.zip", ResultFile("box_overlap"))
    with pytest.raises(NotRecordedError, match="ran and left it out: it needs at least 20 right and 20 wrong"):
        prediction.figure(ResultSet([overlap]))


@pytest.mark.slow
def test_a_figure_is_a_columns_width_and_the_same_each_time(results: Path, tmp_path: Path) -> None:
    for name in ("a.pdf", "b.pdf"):
        assert run("figure", "curves", str(results), "-o", str(tmp_path / name)).exit_code == 0
    assert (tmp_path / "a.pdf").read_bytes() == (tmp_path / "b.pdf").read_bytes()
    box = re.search(rb"/MediaBox \[ 0 0 ([\d.]+)", (tmp_path / "a.pdf").read_bytes())
    assert box is not None
    assert float(box.group(1)) == pytest.approx(3.4 * 72, abs=1)


@pytest.mark.slow
def test_a_figure_is_also_named_as_the_file_of_its_command(store_path: Path, results: Path, tmp_path: Path) -> None:
    for name in (
        "truth",
        "truth.png",
        "probe-truth",
        "probe-truth-final",
        "probe-truth-final-by-relation",
        "advantage-truth-final-over-baseline",
        "answers",
        "rollout",
    ):
        assert run("figure", name, str(store_path), str(results), "-o", str(tmp_path / f"{name}.png")).exit_code == 0, name
        assert (tmp_path / f"{name}.png").stat().st_size > 3000
    without = run("figure", "rollout", str(results), "-o", str(tmp_path / "x.png"))
    assert without.exit_code == 2
    assert "name the store before them: stratascope figure rollout STORE RESULTS" in without.stderr


@pytest.mark.slow
def test_the_commands_print_json_or_nothing(store_path: Path, results: Path, tmp_path: Path) -> None:
    for command, key in ((("figure", "share", str(results)), "figure"), (("report", str(store_path), str(results)), "page")):
        out = tmp_path / f"{key}.{'html' if key == 'page' else 'svg'}"
        assert json.loads(run(*command, "-o", str(out), "--json").stdout)[key] == str(out)
        assert run(*command, "-o", str(out), "-q").stdout == ""
    assert "results file" in run("report", str(store_path), str(results), "-o", str(tmp_path / "r.html"), "-v").stdout


@pytest.mark.slow
def test_the_options_of_every_result_that_differ_from_the_defaults_are_written(store, tmp_path: Path) -> None:
    run(
        "rollout",
        store.name,
        "--examples",
        "1,3",
        "--window",
        "2-4",
        "--form",
        "dropped",
        "--discard",
        "0.25",
        "--out",
        str(tmp_path / "r"),
    )
    run("flow", store.name, "--examples", "1", "--window", "2-4", "--out", str(tmp_path / "r"))
    run("overlap", store.name, "--measure", "share", "--seed", "4", "--only", "label=1", "--out", str(tmp_path / "r"))
    run("explain", store.name, "3", "-o", str(tmp_path / "r" / "third.html"))
    lines = commands(store, gather(store, [tmp_path / "r"]), COMMAND_LINES)
    assert "stratascope rollout scenes.zarr --examples 1,3 --window 2-4 --form dropped --discard 0.25 --out r" in lines
    assert "stratascope flow scenes.zarr --examples 1 --window 2-4 --out r" in lines
    assert any(re.fullmatch(r"stratascope overlap scenes.zarr --measure share --only label=1( --seed 4)? --out r", line) for line in lines)
    assert any(re.fullmatch(r"stratascope explain scenes.zarr \S+ -+o\w* r/third.html --window \d-\d", line) for line in lines), lines


@pytest.mark.slow
def test_an_unknown_figure_or_task_is_refused_with_what_there_is(results: Path, tmp_path: Path) -> None:
    for arguments, message in (
        (("figur", str(results)), "expected a figure of curves, positions"),
        (("curve", str(results)), "did you mean curves"),
        (("curves", str(results), "--task", "colour"), "expected a layer curve of colour at any position .* found truth at final"),
        (("curves",), "expected the name of a figure and a store"),
        (("curves", str(results), "--width", "0.1"), "width and height of 1 to 20 inches"),
    ):
        result = run("figure", *arguments, "-o", str(tmp_path / "x.pdf"))
        assert result.exit_code == 2
        assert re.search(message, result.stderr)


@pytest.mark.slow
def test_the_command_writes_the_page_beside_the_store(store_path: Path, results: Path, tmp_path: Path) -> None:
    result = run("report", str(store_path), str(results), "-o", str(tmp_path / "r.html"), "--title", "A <b>title</b>")
    assert result.exit_code == 0, result.output
    assert "<h1>A &lt;b&gt;title&lt;/b&gt;</h1>" in (tmp_path / "r.html").read_text("utf-8")
    assert run("report", str(store_path), str(tmp_path / "none")).exit_code == 2


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="NO CHROMIUM HERE: that the report opens without errors was NOT checked")
def test_it_opens_in_a_browser_without_errors(page: str, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text(page, encoding="utf-8")
    quiet = ["--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-quic"]
    command = ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu", *quiet, f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--enable-logging=stderr", "--v=0", f"--screenshot={tmp_path / 'page.png'}", (tmp_path / "report.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert not [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert (tmp_path / "page.png").stat().st_size > 20_000


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(page: str, tmp_path: Path, scheme: str) -> None:
    (tmp_path / "report.html").write_text(page, encoding="utf-8")
    browser = Browser(tmp_path)
    try:
        see = browser.driver.execute_cdp_cmd
        see("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})
        for width in (1200, 390):
            see("Emulation.setDeviceMetricsOverride", {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False})
            browser.driver.get((tmp_path / "report.html").as_uri())
            browser.js("for (const folded of document.querySelectorAll('details')) folded.open = true")
            assert browser.violations() == []
    finally:
        browser.close()


@pytest.mark.slow
def test_it_prints_on_a4_with_nothing_beyond_the_margin(page: str, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text(page, encoding="utf-8")
    browser = Browser(tmp_path)
    try:
        wide = (210 - 2 * 14) / 25.4 * 96  # a page less its margins, in CSS pixels
        screen = {"width": round(wide), "height": 1000, "deviceScaleFactor": 1, "mobile": False}
        browser.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
        browser.driver.get((tmp_path / "report.html").as_uri())
        beyond = "[...document.querySelectorAll('main *')].filter((e) => e.getBoundingClientRect().right > innerWidth + 1)"
        assert browser.js(f"return {beyond}.map((e) => e.outerHTML)") == []
        assert (
            max(browser.js("return [...document.querySelectorAll('figure svg')].map((e) => e.getBoundingClientRect().height)"))
            <= 170 / 25.4 * 96 + 1
        )
        sizes = "return [...document.querySelectorAll('TAG')].map((e) => parseFloat(getComputedStyle(e).fontSize))"
        assert max(browser.js(sizes.replace("TAG", "figcaption"))) < min(browser.js(sizes.replace("TAG", "section > p:not([class])")))
        drawn = "return [...document.querySelectorAll('main > section > figure svg text')].map((e) => e.getBoundingClientRect().height)"
        assert min(browser.js(drawn)) > 6
        assert browser.js("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        printed = base64.b64decode(browser.driver.execute_cdp_cmd("Page.printToPDF", {"preferCSSPageSize": True})["data"])
    finally:
        browser.close()
    sizes = re.findall(rb"/MediaBox \[0 0 ([\d.]+) ([\d.]+)\]", printed)
    assert {(round(float(w)), round(float(h))) for w, h in sizes} <= {(595, 842), (596, 842)}
    assert 5 <= len(sizes) <= 10


@pytest.mark.slow
def test_the_method_to_believe_leads_and_all_are_listed(store, results: Path, tmp_path: Path) -> None:
    import pandas as pd

    rows = [
        ("norm", "norm-based attention", 0.4, 0.3, 0.5, 0.0, "method"),
        ("random", "drawn at random", 0.01, -0.1, 0.1, 0.39, "baseline"),
        ("estimate", "estimated knockout effect", 0.9, 0.8, 0.95, np.nan, "reference"),
    ]
    table = pd.DataFrame(rows, columns=["method", "label", "correlation", "low", "high", "behind", "role"])
    table = table.assign(
        targets="cells", mode="final", window="0-5", effect="size", behind_low=0.3, behind_high=0.45, examples=96, images=96
    )
    leading = {"targets": "cells", "mode": "final", "window": "0-5", "method": "norm", "label": "norm-based attention"}
    leading |= {"correlation": 0.4, "low": 0.3, "high": 0.5, "baseline_label": "drawn at random", "over_baseline": 0.39}
    leading |= {"over_baseline_low": 0.3}
    facts = {"store": store.fingerprint(), "leading": leading, "missing": {"flow": "attention_maps"}}
    save_result(tmp_path / "faithfulness.zarr.zip", completed("faithfulness", {"methods": table}, {}, facts))
    heads = pd.DataFrame(
        {"layer": [0, 0, 1, 1], "head": [0, 1, 0, 1], "support": 0.5, "carried": [0.1, -0.2, 0.3, 0.0], "support_image": 0.2}
    )
    facts = {"store": store.fingerprint(), "choices": ["True", "False"], "layers": [0, 1]}
    tables = {"heads": heads, "blocks": pd.DataFrame({"layer": [0, 1], "carried": [0.5, 0.3]})}
    save_result(tmp_path / "attribution.zarr.zip", completed("logit_attribution", tables, {}, facts))
    said = Numbers(report_page(store, gather(store, [tmp_path]), command_name="my.zarr").html())
    sentence = "norm-based attention agrees best with attention knockouts of groups of image cells masked for the final token in blocks "
    sentence += "0-5, the setting fixed beforehand: rank correlation 0.40"
    assert f"{sentence} [0.30, 0.50]" in said.text["found"].replace("\n", " ")
    for label in (
        "norm-based attention",
        "drawn at random",
        "estimated knockout effect (reference)",
        "not ranked",
        "Not compared: flow; record attention_maps",
    ):
        assert label in said.text["faithfulness"]
    assert said.text["attribution"].index("block 1, head 0") < said.text["attribution"].index("block 0, head 1")
    for name in ("faithfulness", "carried", "writers"):
        assert run("figure", name, str(tmp_path), "-o", str(tmp_path / f"{name}.pdf")).exit_code == 0
