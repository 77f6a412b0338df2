"""The rehearsal: a store of full size with a planted signal, then everything that a user would do with it, measured.

    python benchmarks/rehearsal.py --folder DIR [--examples 10972] [--vsr FOLDER] [--maps 200] [--table TABLE.md]

`pip install '.[cluster]'` is enough for all of it. `--examples 2048 --maps 50` is the small form; `rehearsal_scaling.py` sets several sizes
beside each other. Each step runs as a process of its own, the commands as the README gives them; a step that is done is not done again, so
that the same command goes on where it was stopped. At the end the results are held against what was planted (`rehearsal_verdict`), and a
step's wall time, processor time, peak memory and bytes are printed as a table. Exit code 1 where something planted was not found, or
something was found that was not planted.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rehearsal_store import PlantedStore, Scale, vsr_rows
from rehearsal_verdict import check

from stratascope.probe import layer_curve
from stratascope.store import ActivationStore

HERE = Path(__file__).resolve()
SUBSET = (0, 8, 14, 20, 28)
TRUTH = ("--tasks", "truth,truth:shuffled", "--positions", "final")
PLACE_LAYERS = "0,4,6-10,16,24,28"
PLACE = ("--tasks", "geometry,geometry:shuffled", "--positions", "subject", "--layers", PLACE_LAYERS)
STRATASCOPE = (sys.executable, "-m", "stratascope")


@dataclass(frozen=True)
class Step:
    """One thing a user does: a command, and the files or folders that it makes."""

    name: str
    command: tuple[str, ...]
    makes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Measured:
    """What a step took."""

    name: str
    wall: float
    cpu: float
    """Processor seconds of the process and its children, user and system."""
    peak: int
    """Largest resident memory of one of its processes, in bytes."""
    bytes: int
    """On disk, of what it made."""


def steps(options: argparse.Namespace) -> list[Step]:
    """The rehearsal in order, as commands run within the folder."""
    vsr = ("--vsr", str(options.vsr.resolve())) if options.vsr else ()
    own = (sys.executable, str(HERE), "--folder", ".", "--examples", str(options.examples), "--maps", str(options.maps), *vsr)
    return [
        Step("write the store", (*own, "--only", "write"), ("vsr.zarr",)),
        Step("write the blank store", (*own, "--only", "blank"), ("blank.zarr",)),
        Step("verify", (*STRATASCOPE, "verify", "vsr.zarr")),
        Step("info", (*STRATASCOPE, "info", "vsr.zarr")),
        Step(
            "probe truth and its control, both stores, 29 layers",
            (*STRATASCOPE, "probe", "vsr.zarr", *TRUTH, "--baseline", "blank.zarr", "--out", "results"), ("results",),
        ),
        Step("probe box geometry and its control, 10 layers", (*STRATASCOPE, "probe", "vsr.zarr", *PLACE, "--out", "results")),
        Step("share", (*STRATASCOPE, "share", "vsr.zarr", "--out", "results")),
        Step("rollout, 8 examples", (*STRATASCOPE, "rollout", "vsr.zarr", "--out", "results")),
        Step("flow, 8 examples, blocks 20 to 27", (*STRATASCOPE, "flow", "vsr.zarr", "--window", "20-27", "--out", "results")),
        Step("report", (*STRATASCOPE, "report", "vsr.zarr", "results", "-o", "report.html"), ("report.html",)),
        Step("the viewer's first page", (*own, "--only", "view")),
        Step("a collaborator's subset over HTTP", (*own, "--only", "subset"), ("subset.zarr",)),
        Step("probe of the subset", (*own, "--only", "same")),
        Step("the probe on a cluster of two processes", (*own, "--only", "cluster")),
    ]  # fmt: skip


def measure(step: Step, folder: Path) -> Measured:
    """Run a step within `folder`; CalledProcessError where it fails, after its output was shown."""
    log = folder / "logs" / f"{step.name}.txt"
    log.parent.mkdir(exist_ok=True)
    start = time.perf_counter()
    with log.open("wb") as out:
        process = subprocess.Popen(step.command, cwd=folder, stdout=out, stderr=subprocess.STDOUT)
        _, status, used = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    code = os.waitstatus_to_exitcode(status)
    process.returncode = code
    if code:
        print(log.read_text(errors="replace")[-3000:], file=sys.stderr)
        raise subprocess.CalledProcessError(code, step.command)
    size = sum(f.stat().st_size for made in step.makes for f in _files(folder / made))
    return Measured(step.name, wall, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024, size)


def _files(path: Path) -> Iterator[Path]:
    return (f for f in path.rglob("*") if f.is_file()) if path.is_dir() else iter([path])


@contextmanager
def viewing(store: str) -> Iterator[str]:
    """The address at which `stratascope view` serves a store."""
    process = subprocess.Popen([*STRATASCOPE, "view", store, "--no-browser"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield next(word for line in process.stdout for word in line.split() if word.startswith("http"))
    finally:
        process.terminate()
        process.wait()


def write(options: argparse.Namespace, *, blank: bool) -> None:
    rows = vsr_rows(options.vsr, options.examples, Path("scenes"))
    PlantedStore(rows, Scale(len(rows), options.maps), blank=blank).write(Path("blank.zarr" if blank else "vsr.zarr"))


def view() -> None:
    """Fetch the page and everything it names, as a browser's first view does."""
    import re
    import urllib.parse
    import urllib.request

    with viewing("vsr.zarr") as address:
        page = urllib.request.urlopen(address).read().decode()
        sizes = [len(page)]
        for name in re.findall(r'(?:src|href)="([^"#:]+)"', page):
            sizes.append(len(urllib.request.urlopen(urllib.parse.urljoin(address, name)).read()))
    print(f"{len(sizes)} files, {sum(sizes):,} bytes")


def subset() -> None:
    """What a collaborator needs for the truth curve at five layers, copied out over HTTP."""
    sys.path.insert(0, str(HERE.parents[1]))
    from tests.store.serving import serving

    layers = ",".join(map(str, SUBSET))
    with serving(Path()) as served:
        subprocess.run(
            [
                *STRATASCOPE,
                "copy",
                f"{served.address}/vsr.zarr",
                "subset.zarr",
                "--arrays",
                "residual",
                "--layers",
                layers,
                "--positions",
                "final",
            ],
            check=True,
        )
        print(f"{served.bytes_sent:,} bytes over HTTP in {len(served.requests)} requests")


def same() -> None:
    """The subset's curve and figure beside the full store's, bit for bit."""
    curves = [layer_curve(store, "truth", "final", layers=SUBSET) for store in ("vsr.zarr", "subset.zarr")]
    assert curves[0].table.equals(curves[1].table), "expected the subset to give the same curve"
    assert np.array_equal(curves[0].logits, curves[1].logits), "expected the subset to give the same predictions"
    pictures = []
    for curve in curves:
        curve.plot().figure.savefig(drawn := io.BytesIO(), format="png")
        pictures.append(drawn.getvalue())
    assert pictures[0] == pictures[1], "expected the subset to give the same figure"


def cluster() -> None:
    """The truth curve at five layers through a Dask scheduler with two worker processes, beside this process's own."""
    from distributed import LocalCluster

    own = layer_curve("subset.zarr", "truth", "final")
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as workers:
        theirs = layer_curve("subset.zarr", "truth", "final", scheduler=workers.scheduler_address)
    assert own.table.equals(theirs.table), "expected a cluster to give the same curve"


def table(measured: list[Measured], folder: Path) -> str:
    """Markdown: one row a step."""
    lines = ["| step | wall s | CPU s | peak MB | made MB |", "|---|---|---|---|---|"]
    for m in measured:
        made = f"{m.bytes / 1e6:,.0f}" if m.bytes else ""
        lines.append(f"| {m.name} | {m.wall:,.1f} | {m.cpu:,.1f} | {m.peak / 1e6:,.0f} | {made} |")
    store = ActivationStore.open(folder / "vsr.zarr")
    return f"{store.layout.examples:,} examples\n\n" + "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="about 1 MB an example is written here")
    parser.add_argument("--examples", type=int, default=10_972)
    parser.add_argument("--maps", type=int, default=200, help="examples with whole attention maps")
    parser.add_argument("--vsr", type=Path, help="folder of VSR's files; without it, captions of generated scenes")
    parser.add_argument("--table", type=Path, help="write the table here, too")
    parser.add_argument("--only", choices=["write", "blank", "view", "subset", "same", "cluster"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    parts: dict[str, Callable[[], None]] = {
        "write": lambda: write(options, blank=False), "blank": lambda: write(options, blank=True), "view": view, "subset": subset,
        "same": same, "cluster": cluster,
    }  # fmt: skip
    if options.only:
        parts[options.only]()
        return 0
    if importlib.util.find_spec("distributed") is None:
        parser.error("expected the packages of a cluster, found none for its last step; pip install '.[cluster]'")
    folder = options.folder
    folder.mkdir(parents=True, exist_ok=True)
    done_file = folder / "measured.json"
    done = {m["name"]: Measured(**m) for m in json.loads(done_file.read_text())} if done_file.exists() else {}
    for step in steps(options):
        if step.name not in done:
            if step.name == "a collaborator's subset over HTTP":
                shutil.rmtree(folder / "subset.zarr", ignore_errors=True)
            print(f"{step.name} ...", file=sys.stderr, flush=True)
            done[step.name] = measure(step, folder)
            done_file.write_text(json.dumps([asdict(m) for m in done.values()], indent=1))
    text = table(list(done.values()), folder)
    found = check(folder)
    print(text, *found, sep="\n")
    if options.table:
        options.table.write_text(text + "\n\n" + "\n".join(f"- {line}" for line in found) + "\n")
    return 1 if any(line.startswith("WRONG") for line in found) else 0


if __name__ == "__main__":
    sys.exit(main())
