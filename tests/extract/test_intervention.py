"""Interventions against plain hooks on the stock model, one variant at a time."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from stratascope.causal import Intervention, InterventionDesign, InterventionSettings, leace  # noqa: E402
from stratascope.causal.patching import pair_sources  # noqa: E402
from stratascope.cli import main  # noqa: E402
from stratascope.commands.interventions import saved_labels, stacked_vectors  # noqa: E402
from stratascope.datasets import write_scenes  # noqa: E402
from stratascope.extract.run.capture import text_decoder, use_captured_attention  # noqa: E402
from stratascope.extract.run.intervention import InterventionRunner, Tracked  # noqa: E402
from stratascope.extract.run.intervention_session import plan_of_store, run_interventions  # noqa: E402
from stratascope.extract.run.knockout import tracing  # noqa: E402
from stratascope.extract.run.logits import Unembedding  # noqa: E402
from stratascope.extract.run.residual_edits import DeviceEdits, Interventions  # noqa: E402
from stratascope.extract.run.session import ExtractionSession  # noqa: E402
from stratascope.extract.run.tail_pass import segments  # noqa: E402
from stratascope.store import ActivationStore  # noqa: E402
from tests.extract.families import FAMILIES, IMAGE, build, example, left_padded  # noqa: E402
from tests.extract.hooked import drawn_edits, hooked_logits, plain_edit  # noqa: E402

PAIR = (30, 40)
PASS = 10_000
"""Tokens of a pass: all variants of a position in one."""
WINDOWS = ((0, 0), (1, 2), (2, 2), (4, 4))
"""The tiny models have four blocks; layer 4 is the output of the last."""
PARTS = (("final",), ("word", "image"))


class Bare:
    """What the runner needs of a `CaptureModel`."""

    def __init__(self, model: torch.nn.Module, decoder: torch.nn.Module) -> None:
        self.model, self.decoder, self.unembedding = model, decoder, Unembedding(model, decoder)


@pytest.mark.parametrize("name", [n if n in ("llava", "qwen3_vl", "gemma3") else pytest.param(n, marks=pytest.mark.slow) for n in FAMILIES])
def test_changes_equal_those_of_plain_hooks(name: str) -> None:
    """Every family: rotary positions, sliding windows, tokens that see later ones, soft caps, features added between blocks."""
    stock, ours = build(name, "eager"), build(name, "eager")
    batch = left_padded(name, [example(name, stock, 9, 0)])
    ids = batch["input_ids"][0].numpy()
    places = {"final": np.array([len(ids) - 1]), "word": np.array([len(ids) - 4]), "image": np.flatnonzero(ids == IMAGE)[:3]}
    d = text_decoder(stock).config.hidden_size
    stacks = {(position, layer): drawn_edits(3, d, layer, 0.3) for position in places for layer in range(5)}
    decoder = use_captured_attention(ours)
    runner = InterventionRunner(Bare(ours, decoder))  # type: ignore[arg-type]
    with torch.inference_mode(), tracing(decoder.layers) as trace:
        ours(**batch, use_cache=False, logits_to_keep=1)
    device = torch.device("cpu")
    rng = np.random.default_rng(5)
    patches = {q: rng.normal(size=(4, 1, len(tokens), d)).astype(np.float32) for q, tokens in places.items()}  # layers 0, 1, 2, 4
    chosen = Interventions(PARTS, WINDOWS, {place: DeviceEdits.of(stack, device) for place, stack in stacks.items()}, sources=1)
    measured = runner.measure(Tracked(trace, None), PAIR, places, chosen, patches, 1e-3, tokens_of_pass=PASS)
    untouched = hooked_logits(stock, batch, {}, {}, (0, -1))
    assert measured.logits == pytest.approx(untouched[list(PAIR)].numpy(), abs=1e-4)
    largest = 0.0
    for p, part in enumerate(PARTS):
        for w, window in enumerate(WINDOWS):
            for slot in range(4):
                edits = {(position, layer): plain_edit(stack, slot) for (position, layer), stack in stacks.items() if slot < 3}
                if slot == 3:
                    for k, layer in enumerate((0, 1, 2, 4)):
                        edits |= {(q, layer): lambda x, rows=patches[q][k, 0]: torch.from_numpy(rows) for q in places}
                logits = hooked_logits(stock, batch, {q: places[q] for q in part}, edits, window)
                expected = (logits - untouched)[list(PAIR)].numpy()
                assert measured.change[p, w, slot] == pytest.approx(expected, abs=1e-4, rel=1e-4), (part, window, slot)
                own, other = torch.log_softmax(untouched.double(), 0), torch.log_softmax(logits.double(), 0)
                assert measured.divergence[p, w, slot] == pytest.approx(float((own.exp() * (own - other)).sum()), abs=1e-4, rel=1e-3)
                largest = max(largest, float(np.abs(expected).max()))
    assert largest > 0.05, "a test in which nothing moves would show little"


def test_patching_an_example_with_itself_changes_no_bit() -> None:
    """In bfloat16, where another order of sums would show; a window of all layers, at a word and at the final token."""
    model = build("qwen2_5_vl", "eager").bfloat16()
    batch = {
        k: v.bfloat16() if v.is_floating_point() else v for k, v in left_padded("qwen2_5_vl", [example("qwen2_5_vl", model, 9, 0)]).items()
    }
    decoder = use_captured_attention(model)
    runner = InterventionRunner(Bare(model, decoder))  # type: ignore[arg-type]
    with torch.inference_mode(), tracing(decoder.layers) as trace:
        model(**batch, use_cache=False, logits_to_keep=1)
    ids = batch["input_ids"][0].numpy()
    places = {"final": np.array([trace.length - 1]), "word": np.array([trace.length - 4]), "image": np.flatnonzero(ids == IMAGE)}
    own = {q: np.stack([trace.inputs[layer][0, t].float().numpy() for layer in range(5)])[:, None] for q, t in places.items()}
    moved = {q: 1.01 * rows for q, rows in own.items()}
    parts = (("final",), ("word", "final"), ("image",))
    windows = tuple((layer, layer) for layer in range(5))
    chosen = Interventions(parts, windows, {}, sources=1)
    same = runner.measure(Tracked(trace, None), PAIR, places, chosen, own, 0.1, tokens_of_pass=PASS)
    for values in (same.change, same.collateral, same.divergence, same.others):
        assert not values.any()
    other = runner.measure(Tracked(trace, None), PAIR, places, chosen, moved, 0.1, tokens_of_pass=PASS)
    assert (np.abs(other.change).max((1, 2, 3)) > 0).all()
    both = {q: np.concatenate([rows * np.nan, moved[q]], 1) for q, rows in own.items()}
    beside = runner.measure(Tracked(trace, None), PAIR, places, replace(chosen, sources=2), both, 0.1, tokens_of_pass=PASS)
    assert np.isnan(beside.change[:, :, 0]).all(), "an example without that source"
    assert beside.change[:, :, 1] == pytest.approx(other.change[:, :, 0], abs=0.1)
    absent = runner.measure(Tracked(trace, None), PAIR, {**places, "word": None}, chosen, own, 0.1, tokens_of_pass=PASS)
    assert np.isnan(absent.change[1]).all()
    assert not np.isnan(absent.change[0]).any()


def test_passes_hold_every_variant_once_and_its_unedited_row() -> None:
    for slots, rows in ((5, 4), (5, 100), (1, 2), (7, 8)):
        made = list(segments([(number, *window) for number, window in enumerate(WINDOWS)], slots, rows))
        taken = [(s.window, k) for batch in made for s in batch for k in range(s.slots.start, s.slots.stop)]
        assert taken == [(w, k) for w in range(len(WINDOWS)) for k in range(slots)]
        assert all(batch[-1].edited.stop <= max(rows, 2) for batch in made)
        for batch in made:
            places = [row for s in batch for row in (s.row, *range(s.edited.start, s.edited.stop))]
            assert places == list(range(len(places)))


def test_the_plan_counts_the_tokens_that_are_computed(plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens times blocks of all reruns of an example with the built-in model, where no variant needs a second pass."""
    from stratascope.extract.plan.intervention_plan import bare_passes
    from stratascope.extract.run.session import ExtractionSession
    from stratascope.extract.run.tail_pass import TailPass

    session, computed = ExtractionSession(plan, batch_tokens=8192), []
    inner = TailPass._block

    def counted(self, block: int, hidden: torch.Tensor) -> torch.Tensor:
        computed.append(hidden.shape[0] * hidden.shape[1])
        return inner(self, block, hidden)

    monkeypatch.setattr(TailPass, "_block", counted)
    parts, windows, length = (("final",), ("object", "final")), ((0, 0), (3, 4), (5, 5)), len(plan.layouts[3].ids)
    stack = DeviceEdits.of(drawn_edits(4, plan.shape.hidden, 0, 0.1), torch.device("cpu"))
    chosen = Interventions(parts, windows, {(name, layer): stack for name in ("final", "object") for layer in range(7)})
    runner = InterventionRunner(session.model)
    image = session.load((3, 0)).prepared
    assert image is not None
    tracked, places = runner.trace(session.batch([3], image.tensors)), {name: plan.position_tokens(3, name) for name in ("final", "object")}
    runner.measure(tracked, session.request.choices, places, chosen, None, 1e-3, tokens_of_pass=PASS)
    assert 1 + sum(computed) / length / plan.shape.layers == pytest.approx(
        bare_passes(plan, [3], [(part, first) for part in parts for first, _ in windows], 4)
    )


def data(folder: Path) -> dict[str, Path]:
    return {"data": folder / "pairs" / "pairs.jsonl", "images": folder / "pairs" / "images", "boxes": folder / "pairs" / "instances.json"}


PATCHES = ("--patches", 200, "--patch-layers", "2,4")


@pytest.fixture(scope="module")
def paired(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a store of minimal pairs of 24 scenes by the built-in model, and its probes, all by the commands."""
    folder = tmp_path_factory.mktemp("paired")
    write_scenes(folder / "scenes", 24, seed=7)
    scenes, pairs = folder / "scenes", folder / "pairs"
    given = ("--images", scenes / "images", "--boxes", scenes / "instances.json", "--variants", "swapped,mirrored,inverse")
    run("pairs", scenes / "scenes.jsonl", *given, "--out", pairs)
    given = ("--images", pairs / "images", "--boxes", pairs / "instances.json", "--record", "residual")
    run(
        "extract",
        "--model",
        "demo",
        "--device",
        "cpu",
        "--examples",
        pairs / "pairs.jsonl",
        *given,
        *PATCHES,
        "--out",
        folder / "pairs.zarr",
    )
    run("probe", folder / "pairs.zarr", "--positions", "final", "--tasks", "truth", "-o", folder / "results")
    return folder


def run(*words: object) -> str:
    result = CliRunner().invoke(main, list(map(str, words)))
    assert result.exit_code == 0, result.output
    return result.output


def partner(table: pd.DataFrame, k: int, variant: str) -> int | None:
    """Example number of another variant of the pair of example k."""
    if table["variant"][k] == variant:
        return None
    found = table.index[(table["pair"] == table["pair"][k]) & (table["variant"] == variant)]
    return int(found[0]) if len(found) else None


@pytest.mark.slow
def test_pairs_are_made_extracted_and_patched_by_the_commands(paired: Path) -> None:
    """The last layer's final token decides the answer: patched there, an example answers as its partner, and nothing else is measured."""
    store = ActivationStore.open(paired / "pairs.zarr")
    words = ("--pairs", "--kinds", "patch", "--positions", "final,object", "--examples", 0, "--device", "cpu")
    given = [word for name, path in data(paired).items() for word in (f"--{name}", path)]
    text = run("intervene", paired / "pairs.zarr", paired / "results", *words, *given)
    made = Intervention.load(paired / "results" / "intervene-truth.zarr.zip")
    table, logits = store.examples, store.read("answer_logits").astype(float)
    assert made.attributes["sources"] == ["original", "swapped", "mirrored", "inverse"] == table["variant"].drop_duplicates().tolist()
    places = made.examples["example"].tolist()
    assert places == list(range(len(table)))
    answer = logits[:, 0] - logits[:, 1]
    moved = 0
    for source in made.attributes["sources"]:
        partners = [partner(table, k, source) for k in places]
        has = np.array([p is not None for p in partners])
        gap = np.array([np.nan if p is None else answer[p] - answer[k] for k, p in zip(places, partners, strict=True)])
        for position in ("final", "object"):
            rows = made.variants.query("position == @position and source == @source")
            change = made.change[rows.index]
            assert (np.isnan(change) == ~has).all(), "measured exactly where the pair has that variant"
            if position == "final":
                assert change[rows["layer"] == rows["layer"].max()][0] == pytest.approx(gap, abs=1e-3, nan_ok=True)
                assert np.abs(change[rows["layer"] == 0][0][has]).max() == 0, "the same token is embedded alike"
            else:
                assert np.abs(change[rows["layer"] == rows["layer"].max()][0][has]).max() == 0, "which no token reads"
                moved += int((np.abs(change[0][has]) > 0.1).sum())
        # fewer than 32 images have no interval
        assert f"final, patch from {source}: not decided whether it restores more than 0.1 of the difference (too few" in text
    assert moved > 20
    assert "encoded at layer" in run("causal", paired / "results")


class Stock:
    """The stock model on the examples of a plan."""

    def __init__(self, plan) -> None:
        self.plan, self.session = plan, ExtractionSession(plan, 8192)
        loaded = transformers.AutoModelForImageTextToText
        self.model = loaded.from_pretrained(plan.source.folder, attn_implementation="eager", dtype=torch.float32).eval()
        self.inputs = functools.cache(self._inputs)

    def _inputs(self, k: int):
        return self.session.model.inputs(self.session.batch([k], self.session.load((k, 0)).prepared.tensors))

    def answers(self, k: int, tokens=None, edit=None, layer: int = 0) -> torch.Tensor:
        """Answer logits of example k, untouched or with an edit of some tokens at a layer."""
        given = ({}, {}, (0, -1)) if edit is None else ({"here": tokens}, {("here", layer): edit}, (layer, layer))
        return hooked_logits(self.model, self.inputs(k), *given)[list(self.session.request.choices)]

    def residual(self, k: int, tokens, layer: int) -> torch.Tensor:
        """(token, d) residual stream of example k."""
        kept: list[torch.Tensor] = []
        self.answers(k, tokens, lambda x: kept.append(x.clone()) or x, layer)
        return kept[0]


@pytest.fixture(scope="module")
def stock(paired: Path) -> Stock:
    store = ActivationStore.open(paired / "pairs.zarr")
    return Stock(plan_of_store(store, paired / "pairs.zarr", **{**data(paired), "data": (data(paired)["data"],)}, device="cpu"))


@pytest.mark.slow
def test_changes_of_the_built_in_model_equal_those_of_plain_hooks(paired: Path, stock: Stock, tmp_path: Path) -> None:
    """Edits as defined, from the class means of other folds; patches from a hooked pass over a partner with another number of tokens."""
    store = ActivationStore.open(paired / "pairs.zarr")
    labels, sources = saved_labels(store, paired / "results", "truth"), pair_sources(store)
    positions, kinds = ("final", "object"), ("erase", "reflect", "steer", "patch")
    settings = InterventionSettings(positions=positions, kinds=kinds, factors=(1.0,), controls=0, examples=5)
    design, plan = InterventionDesign(store, labels, settings, sources), stock.plan
    given = {"cache": tmp_path / "cache", "key": "", "source_vectors": functools.partial(stacked_vectors, sources)}
    measured = run_interventions(plan, store, design, **given)
    folds = dict(zip(labels.examples.tolist(), labels.folds.tolist(), strict=True))
    largest, lengths = 0.0, 0
    for row, k in enumerate(measured.examples.tolist()):
        untouched = stock.answers(k)
        for v, variant in enumerate(design.variants.itertuples()):
            tokens = plan.position_tokens(k, variant.position)
            if variant.kind == "patch":
                other = partner(store.examples, k, variant.source)
                if other is None:
                    assert np.isnan(measured.change[row, v]).all()
                    continue
                rows = stock.residual(other, plan.position_tokens(other, variant.position), variant.layer)
                lengths += len(plan.layouts[other].ids) != len(plan.layouts[k].ids)

                def edit(x: torch.Tensor, rows=rows) -> torch.Tensor:
                    return rows
            else:
                training = labels.examples[
                    (labels.folds != folds[k]) & np.isin(labels.examples, np.flatnonzero(store.available("residual", variant.position)))
                ]
                edit = defined_edit(variant, store, labels, training)
            expected = (stock.answers(k, tokens, edit, variant.layer) - untouched).numpy()
            assert measured.change[row, v] == pytest.approx(expected, abs=1e-4), (k, variant)
            largest = max(largest, float(np.abs(expected).max()))
    assert largest > 1
    assert lengths, "no pair differs in its number of tokens"


@pytest.mark.slow
def test_image_tokens_are_replaced_one_by_one_as_by_plain_hooks(paired: Path, stock: Stock, tmp_path: Path) -> None:
    """Those of a hooked pass over the partner at the same places of the image; by default at the layers that hold them all."""
    store = ActivationStore.open(paired / "pairs.zarr")
    labels, sources = (
        saved_labels(store, paired / "results", "truth"),
        [s for s in pair_sources(store) if s.name in ("swapped", "mirrored")],
    )
    positions = ("image", "object_box", "subject_box+final")
    settings = InterventionSettings(positions=positions, kinds=("patch",), examples=6)
    design, plan = InterventionDesign(store, labels, settings, sources), stock.plan
    assert design.windows == [(2, 2), (4, 4)]
    given = {"cache": tmp_path / "cache", "key": "", "source_vectors": functools.partial(stacked_vectors, sources)}
    measured = run_interventions(plan, store, design, **given)
    largest = dict.fromkeys(positions, 0.0)
    for row, k in enumerate(measured.examples.tolist()):
        untouched = stock.answers(k)
        for v, variant in enumerate(design.variants.itertuples()):
            other, names = partner(store.examples, k, variant.source), variant.position.split("+")
            if other is None:
                assert np.isnan(measured.change[row, v]).all()
                continue
            mine = np.concatenate([plan.position_tokens(k, name) for name in names])
            final = len(plan.layouts[k].ids) - 1
            theirs = np.where(mine == final, len(plan.layouts[other].ids) - 1, mine)
            rows = stock.residual(other, theirs, variant.layer)
            expected = (stock.answers(k, mine, lambda x, rows=rows: rows, variant.layer) - untouched).numpy()
            assert measured.change[row, v] == pytest.approx(expected, abs=1e-4), (k, variant)
            if variant.source == "mirrored":
                largest[variant.position] = max(largest[variant.position], float(np.abs(expected).max()))
            elif "final" not in names:
                assert np.abs(expected).max() < 1e-4, "captions come after the image"
    assert min(largest.values()) > 0.1, largest


@pytest.mark.slow
def test_image_tokens_that_a_source_lacks_are_refused_with_the_command_that_saves_them(paired: Path, tmp_path: Path) -> None:
    words = ("intervene", paired / "pairs.zarr", paired / "results", "--kinds", "patch", "--device", "cpu")
    given = [word for name, path in data(paired).items() for word in (f"--{name}", path)]

    def refused(*more: object) -> str:
        result = CliRunner().invoke(main, list(map(str, (*words, *more, *given))))
        assert result.exit_code == 2
        return result.output

    found = refused("--pairs", "--positions", "final,image", "--layers", "2,3")
    assert "source 'original', image: expected all image tokens at layers 3, found them at 2, 4; extract it again with" in found
    assert "--patches N --patch-layers 2,3" in found
    run("copy", paired / "pairs.zarr", tmp_path / "plain.zarr", "--arrays", "residual,answer_logits")
    found = refused("--positions", "object_box", "--source", f"plain={tmp_path / 'plain.zarr'}")
    assert "source 'plain', object_box: expected all image tokens at layers 0..6, found them at none; extract it again" in found


def defined_edit(variant, store: ActivationStore, labels, training: np.ndarray):
    """The edit of a variant from its definition, in float64."""
    x = store.read("residual", layer=variant.layer, position=variant.position, examples=training).astype(np.float64)
    y = labels.labels[np.isin(labels.examples, training)]
    false, true = (x[y == code].mean(0) for code in (0, 1))
    delta, size = true - false, np.linalg.norm(true - false)
    unit = delta / size if np.ptp(x, 0).max() > 0 else 0 * delta
    erase = leace(x, np.eye(2)[y])
    named = {
        "leace": erase,
        "means": lambda v: v - np.outer((v - (false + true) / 2) @ unit, unit),
        "reflect": lambda v: v - 2 * np.outer((v - (false + true) / 2) @ unit, unit),
        "steer": lambda v: v + variant.factor * size * unit,
    }
    chosen = named[variant.method if variant.kind == "erase" else variant.kind]
    return lambda v: torch.from_numpy(chosen(v.double().numpy())).to(v.dtype)
