"""Activations that other programs saved: the same numbers in the store, from every form; what does not fit is refused."""

from __future__ import annotations

import io
import json
import sqlite3

import numpy as np
import pytest
from click.testing import CliRunner

from stratascope.cli import main
from stratascope.errors import InvalidInputError, NotRecordedError, ProvenanceMismatchError
from stratascope.extract.imports.import_store import import_activations
from stratascope.store import ActivationStore, copy_store, diff_stores, verify

torch = pytest.importorskip("torch")
parquet = pytest.importorskip("pyarrow.parquet")
safetensors = pytest.importorskip("safetensors.torch")

COUNT, LAYERS, HIDDEN = 80, 3, 16
IDS = [f"e{k}" for k in range(COUNT)]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def values():
    """(layer, example, hidden); layer 2 tells the label, values that bfloat16 holds."""
    rng = np.random.default_rng(0)
    found = rng.normal(size=(LAYERS, COUNT, HIDDEN)).astype(np.float32)
    found[2, :, 0] += 6 * (np.arange(COUNT) % 2)
    found.view(np.uint32)[...] &= 0xFFFF0000
    return found


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    path = tmp_path_factory.mktemp("table") / "rows.csv"
    path.write_text(
        "id,label,animal,split\n" + "".join(f"{one},{k % 2},{('cat', 'dog', 'cow')[k % 3]},train\n" for k, one in enumerate(IDS))
    )
    return path


def by_example(folder, values, ending):
    for k, one in enumerate(IDS):
        each = values[:, k]
        if ending == "npy":
            np.save(folder / f"{one}.npy", each)
        elif ending == "pt":
            torch.save(torch.from_numpy(each).bfloat16(), folder / f"{one}.pt")
        elif ending == "hidden_states.pt":  # as transformers returns them
            torch.save(tuple(torch.from_numpy(each)), folder / f"{one}.pt")
        elif ending == "npz":
            np.savez(folder / f"{one}.npz", **{f"layer_{layer}": each[layer] for layer in range(LAYERS)})
        else:
            safetensors.save_file(
                {f"h.{layer}": torch.from_numpy(each[layer]).bfloat16() for layer in range(LAYERS)}, folder / f"{one}.safetensors"
            )
    return folder


def by_layer(folder, values, ending):
    for layer in range(LAYERS):
        if ending == "npy":
            np.save(folder / f"layer_{layer}.npy", values[layer].astype(np.float64))
        elif ending == "pt":
            torch.save(torch.from_numpy(values[layer]), folder / f"layer_{layer}.pt")
        else:
            safetensors.save_file({"x": torch.from_numpy(values[layer])}, folder / f"layer_{layer}.safetensors")
    return folder


def one_file(folder, values, ending):
    named = {f"layer_{layer}": values[layer] for layer in range(LAYERS)}
    if ending == "npz":
        np.savez(folder / "all.npz", **named)
    else:
        torch.save({name: torch.from_numpy(one) for name, one in named.items()}, folder / "all.pt")
    return folder / f"all.{ending}"


def columns(folder, values, nested):
    import pyarrow

    ids = {"id": IDS, "label": [k % 2 for k in range(COUNT)], "animal": [("cat", "dog", "cow")[k % 3] for k in range(COUNT)]}
    if nested:
        held = {"states": [values[:, k].tolist() for k in range(COUNT)]}
    else:
        held = {f"layer_{layer}": values[layer].tolist() for layer in range(LAYERS)}
    parquet.write_table(pyarrow.table({**ids, **held}), folder / "all.parquet", row_group_size=30)
    return folder / "all.parquet"


def shards(folder, values, kind):
    """The same columns in two files, as `datasets` writes them: Parquet by `to_parquet`, Arrow streams by `save_to_disk`."""
    import pyarrow

    table = parquet.read_table(columns(folder, values, nested=True))
    (folder / "all.parquet").unlink()
    names = [f"data-{number:05d}-of-00002.{kind}" for number in range(2)]
    for name, part in zip(names, (table[:50], table[50:]), strict=True):
        if kind == "parquet":
            parquet.write_table(part, folder / name)
        else:
            with pyarrow.OSFile(str(folder / name), "wb") as file, pyarrow.ipc.new_stream(file, part.schema) as stream:
                stream.write_table(part, max_chunksize=20)
    if kind == "arrow":
        (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names], "_split": None}))
    return folder


FORMS = {
    **{f"example-{ending}": (by_example, ending) for ending in ("npy", "pt", "hidden_states.pt", "npz", "safetensors")},
    **{f"layer-{ending}": (by_layer, ending) for ending in ("npy", "pt", "safetensors")},
    **{f"file-{ending}": (one_file, ending) for ending in ("npz", "pt")},
    "parquet-columns": (columns, False),
    "parquet-nested": (columns, True),
    **{f"columns-{kind}": (shards, kind) for kind in ("parquet", "arrow")},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_numbers(form, values, table, tmp_path):
    make, how = FORMS[form]
    (tmp_path / "in").mkdir()
    source = make(tmp_path / "in", values, how)
    given = None if form.startswith(("parquet", "columns")) else table
    wanted = tuple(f"layer_{layer}" for layer in range(LAYERS)) if form == "parquet-columns" else ()
    report = import_activations(source, tmp_path / "s.zarr", examples=given, columns=wanted, block=32)
    assert (report.examples, report.layers, report.hidden, report.written_blocks) == (COUNT, (0, 1, 2), HIDDEN, 3)
    store = ActivationStore.open(tmp_path / "s.zarr")
    np.testing.assert_array_equal(store.read("residual", position="activation"), values)
    assert store.examples["id"].tolist() == IDS
    assert store.examples["animal"].tolist()[:3] == ["cat", "dog", "cow"]
    assert store.provenance["imported"]["form"]
    assert "model" not in store.provenance
    assert verify(tmp_path / "s.zarr").ok
    again = import_activations(source, tmp_path / "s.zarr", examples=given, columns=wanted, block=32)
    assert again.written_blocks == 0


def test_several_positions_and_some_layers(tmp_path, table):
    rng = np.random.default_rng(1)
    held = {layer: rng.normal(size=(COUNT, 2, HIDDEN)).astype(np.float32) for layer in (4, 12)}
    (tmp_path / "in").mkdir()
    for layer, array in held.items():
        np.save(tmp_path / "in" / f"model.layers.{layer}.npy", array)
    with pytest.raises(InvalidInputError, match="expected 2 names, one for each position"):
        import_activations(tmp_path / "in", tmp_path / "s.zarr", examples=table)
    import_activations(tmp_path / "in", tmp_path / "s.zarr", examples=table, positions=("final", "image_mean"))
    store = ActivationStore.open(tmp_path / "s.zarr")
    assert store.layers == (4, 12)
    np.testing.assert_array_equal(store.read("residual", layer=12, position="image_mean"), held[12][:, 1])


def lens_database(path, values, *, model="qwen", drop=False):
    with sqlite3.connect(path) as database:
        database.execute(
            "create table tensors (id integer primary key, name text, architecture text, timestamp datetime, image_path text, "
            "image_id integer, prompt text, label text, layer text, pooling_method text, tensor_dim integer, tensor blob)"
        )
        for k in range(COUNT):
            for layer in range(LAYERS):
                if drop and k == 7 and layer == 1:
                    continue
                buffer = io.BytesIO()
                torch.save(torch.from_numpy(values[layer, k][None]), buffer)
                row = (model, "q", f"/data/{k}.png", k, "Where is it?", ("left", "right")[k % 2], f"model.layers.{layer}", "mean", HIDDEN)
                database.execute(
                    "insert into tensors (name, architecture, image_path, image_id, prompt, label, layer, pooling_method, tensor_dim, "
                    "tensor) values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (*row, buffer.getvalue()),
                )
    return path


def test_a_database_of_vlm_lens(values, tmp_path):
    import_activations(lens_database(tmp_path / "a.db", values), tmp_path / "s.zarr")
    store = ActivationStore.open(tmp_path / "s.zarr")
    np.testing.assert_array_equal(store.read("residual", position="activation"), values)
    assert store.provenance["model"] == {"name": "qwen"}
    assert store.examples[["id", "image", "caption", "target"]].iloc[3].tolist() == ["3", "3.png", "Where is it?", "right"]
    with pytest.raises(InvalidInputError, match="expected every layer of each example"):
        import_activations(lens_database(tmp_path / "b.db", values, drop=True), tmp_path / "t.zarr")


def test_what_an_import_is_not(values, table, tmp_path):
    """A store without labels, answers and prompts refuses what would need them."""
    bare = tmp_path / "ids.csv"
    bare.write_text("id,animal\n" + "".join(f"{one},{('cat', 'dog')[k % 2]}\n" for k, one in enumerate(IDS)))
    (tmp_path / "in").mkdir()
    by_layer(tmp_path / "in", values, "npy")
    store = str(tmp_path / "s.zarr")
    import_activations(tmp_path / "in", store, examples=bare)
    with pytest.raises(NotRecordedError, match="found 'answer_logits'"):
        ActivationStore.open(store).read("answer_logits")
    for words, said in (
        (["probe", store, "--tasks", "truth", "--positions", "activation"], "found none with a label"),
        (["answers", store], "answer_logits"),
        (["rollout", store], "attention_maps"),
        (["lens", store], "answer"),
    ):
        result = CliRunner().invoke(main, words)
        assert result.exit_code == 2, (words, result.output)
        assert said in result.stderr, words
        assert len(result.stderr.strip().splitlines()) == 1
    for words in (["info", store], ["verify", store], ["diff", store, store]):
        assert CliRunner().invoke(main, words).exit_code == 0, words
    copy_store(store, tmp_path / "t.zip", layers=2)
    assert verify(tmp_path / "t.zip").ok
    assert diff_stores(store, store).same


@pytest.mark.slow
def test_probes_and_the_report_work_on_it(values, table, tmp_path):
    (tmp_path / "in").mkdir()
    store, out = str(tmp_path / "s.zarr"), str(tmp_path / "out")
    done = CliRunner().invoke(main, ["import", str(by_layer(tmp_path / "in", values, "npy")), "--examples", str(table), "--out", store])
    assert done.exit_code == 0, done.output
    assert "imported 80 examples at 3 layers and 1 position of 16 dimensions from one file per layer" in done.output
    done = CliRunner().invoke(main, ["probe", store, "--tasks", "truth", "--positions", "activation", "--out", out])
    assert done.exit_code == 0, done.output
    from stratascope.probe import LayerCurve

    curve = LayerCurve.load(tmp_path / "out" / "probe-truth-activation.zarr.zip")
    auroc = curve.table.query("metric == 'auroc'").set_index("layer")["value"]
    assert auroc[2] > 0.95 > 0.75 > auroc[0]
    done = CliRunner().invoke(main, ["report", store, out, "-o", str(tmp_path / "r.html")])
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("label\n1\n", "expected rows with a column id"),
        ("id,label\ne0,2\n" + "".join(f"{one},1\n" for one in IDS[1:]), "expected label 0 or 1, found 2"),
        ("id,label\n" + "".join(f"{one},1\n" for one in IDS[1:]), "expected 80 examples, as the source holds, found 79"),
        ("id,label\n" + "".join("e0,1\n" for _ in IDS), "expected unique ids, found 'e0'"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(rows, said, values, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "t.csv").write_text(rows)
    by_layer(tmp_path / "in", values, "npy")
    with pytest.raises(InvalidInputError, match=said):
        import_activations(tmp_path / "in", tmp_path / "s.zarr", examples=tmp_path / "t.csv")
    assert not (tmp_path / "s.zarr").exists()


def test_sources_that_do_not_fit_are_refused(values, table, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    with pytest.raises(InvalidInputError, match="expected files that end in"):
        import_activations(folder, tmp_path / "s.zarr", examples=table)
    by_example(folder, values, "npy")
    (folder / "e5.npy").unlink()
    with pytest.raises(InvalidInputError, match=r"found 79 and none named 'e5'; set `by`"):
        import_activations(folder, tmp_path / "s.zarr", examples=table)
    np.save(folder / "e5.npy", values[:2, 5])
    with pytest.raises(InvalidInputError, match=r"e5\.npy: expected 3 layers, found 2"):
        import_activations(folder, tmp_path / "s.zarr", examples=table)
    np.save(folder / "e5.npy", values[:, 5, :-1])
    with pytest.raises(InvalidInputError, match=r"e5\.npy: expected the shape"):
        import_activations(folder, tmp_path / "t.zarr", examples=table)
    np.save(folder / "e5.npy", np.array(["text"]))
    with pytest.raises(InvalidInputError, match="expected numbers"):
        import_activations(folder, tmp_path / "u.zarr", examples=table)


def test_folders_of_data_sets_that_do_not_fit_are_refused(values, tmp_path):
    folder = shards(tmp_path, values, "arrow")
    second = folder / "data-00001-of-00002.arrow"
    whole = second.read_bytes()
    second.write_bytes(whole[:10])
    with pytest.raises(InvalidInputError, match=r"data-00001-of-00002\.arrow: expected columns in a \.arrow file, found"):
        import_activations(folder, tmp_path / "s.zarr")
    second.unlink()
    with pytest.raises(InvalidInputError, match=r"expected the file data-00001-of-00002\.arrow of the data set, found none"):
        import_activations(folder, tmp_path / "s.zarr")
    (folder / "state.json").write_text("{}")
    with pytest.raises(InvalidInputError, match=r"state\.json: expected the list of a data set's files, found another form"):
        import_activations(folder, tmp_path / "s.zarr")
    (tmp_path / "all" / "train").mkdir(parents=True)
    (tmp_path / "all" / "dataset_dict.json").write_text("{}")
    (tmp_path / "all" / "train" / "state.json").write_text("{}")
    with pytest.raises(InvalidInputError, match="expected one split of a data set, found several: train; give the folder of one"):
        import_activations(tmp_path / "all", tmp_path / "s.zarr")


def test_a_pickle_is_never_run(table, tmp_path):
    class Harm:
        def __reduce__(self):
            return (print, ("ran",))

    folder = tmp_path / "in"
    folder.mkdir()
    torch.save(Harm(), folder / "layer_0.pt")
    with pytest.raises(InvalidInputError, match=r"layer_0\.pt: expected arrays"):
        import_activations(folder, tmp_path / "s.zarr", examples=table)


def test_values_that_are_not_finite_fail_by_name_and_other_files_do_not_continue(values, table, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    odd = values.copy()
    odd[1, 40, 3] = np.nan
    report = import_activations(by_layer(folder, odd, "npy"), tmp_path / "s.zarr", examples=table)
    assert report.not_finite == ("e40",)
    assert "such as e40" in report.summary()
    store = ActivationStore.open(tmp_path / "s.zarr")
    assert np.flatnonzero(~store.available("residual")).tolist() == [40]
    by_layer(folder, values, "npy")
    with pytest.raises(ProvenanceMismatchError, match=r"imported\.files"):
        import_activations(folder, tmp_path / "s.zarr", examples=table)
