"""Commands that are interrupted or meet a full disk: old files stay whole, leftovers go, and worker processes end with their parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from stratascope.cli import RESUMED, all_commands, main
from stratascope.store.io import durable
from stratascope.store.io.durable import PARTIAL, write_output

GOLDEN = Path(__file__).parent / "store" / "golden" / "v1.zarr"
OLD = b"as it was"
LIMITED = """
import resource, sys
from stratascope.cli import main
import stratascope.store.io.durable, stratascope.report.page, stratascope.report.viewer  # nothing is compiled under the limit
sys.dont_write_bytecode = True
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
main(sys.argv[2:])
"""


def limited(size: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command that can write no file of more bytes, as on a full disk: the write fails when it has begun."""
    pytest.importorskip("resource")
    return subprocess.run([sys.executable, "-c", LIMITED, str(size), *arguments], capture_output=True, text=True, timeout=120)


def leftovers(folder: Path) -> list[Path]:
    return sorted(folder.rglob(f"*{PARTIAL}"))


@pytest.mark.slow
def test_an_export_to_a_full_disk_leaves_the_old_page(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_bytes(OLD)
    done = limited(16, "view", str(GOLDEN), "--export", str(tmp_path))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "File too large" in done.stderr
    assert "make room" in done.stderr
    assert (tmp_path / "index.html").read_bytes() == OLD
    assert not leftovers(tmp_path)


FULL = """
import resource, sys
import pandas as pd
from stratascope.errors import StoreError
from stratascope.report import new_figure, save_figure
from stratascope.report.page import Page
from stratascope.results.file import ResultFile
from stratascope.results.registry import save_result
figure, (ax,) = new_figure()
writers = {
    name: lambda path, text: (ax.set_title(text), save_figure(figure, path)) for name in (".png", ".pdf", ".svg")
}
writers[".html"] = lambda path, text: Page(text, ()).write(path)
writers[".zarr.zip"] = lambda path, text: save_result(path, ResultFile("other", {"table": pd.DataFrame({"text": [text]})}))
for suffix, write in writers.items():
    path = sys.argv[1] + suffix
    write(path, "first")
    before = open(path, "rb").read()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))
    try:
        write(path, "second")
        raise SystemExit(f"{suffix} was written")
    except StoreError as error:
        assert "File too large" in str(error), error
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert open(path, "rb").read() == before, suffix
    write(path, "second")
    assert open(path, "rb").read() != before, suffix
"""


@pytest.mark.slow
def test_figures_pages_and_results_on_a_full_disk_stay_as_they_were(tmp_path: Path) -> None:
    pytest.importorskip("resource")
    done = subprocess.run([sys.executable, "-c", FULL, str(tmp_path / "a")], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert not leftovers(tmp_path)


WRITER = """
import sys, time
from pathlib import Path
from stratascope.store.io.durable import write_output
def write(file):
    file.write(b"half")
    file.flush()
    print("begun", flush=True)
    time.sleep(60)
write_output(Path(sys.argv[1]), write)
"""


def test_what_a_killed_writer_left_is_swept_and_that_of_a_living_one_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "result.zarr.zip"
    path.write_bytes(OLD)
    monkeypatch.setattr(durable, "_NEWBORN", -60.0)
    with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"begun\n"
        assert len(leftovers(tmp_path)) == 1
        write_output(path, lambda file: file.write(b"other"))
        assert len(leftovers(tmp_path)) == 1, "its writer lives"
        writer.send_signal(signal.SIGKILL)
    assert path.read_bytes() == b"other"
    assert len(leftovers(tmp_path)) == 1
    strangers = [tmp_path / f"result.zarr.zip{PARTIAL}", tmp_path / f"result.zarr.zip.mine{PARTIAL}"]
    for stranger in strangers:
        stranger.touch()
    write_output(path, lambda file: file.write(b"again"))
    assert leftovers(tmp_path) == sorted(strangers), "only what has the form of a partial file of this one"


def test_a_name_as_long_as_a_file_system_allows_is_written(tmp_path: Path) -> None:
    path = tmp_path / ("é" * 125 + ".html")
    write_output(path, lambda file: file.write(b"whole"))
    assert path.read_bytes() == b"whole"


@pytest.mark.parametrize("name", sorted(all_commands()))
def test_only_commands_that_resume_say_that_they_do(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    command = all_commands()[name]
    monkeypatch.setattr(command, "callback", interrupted)
    monkeypatch.setattr(command, "params", [])
    result = CliRunner().invoke(main, [name])
    assert result.exit_code == 130
    assert ("run the same command to continue" in result.stderr) is (name in RESUMED)


PARENT = """
import os, sys, time
from pathlib import Path
from stratascope.cli import main
from stratascope.scheduling import run_all
import click

def busy(folder):
    Path(folder, f"{os.getpid()}.pid").touch()
    time.sleep(600)

@click.command()
@click.argument("folder")
def work(folder):
    run_all(busy, [folder] * 4, scheduler="processes", workers=2)

if __name__ == "__main__":
    main.add_command(work)
    main()
"""
DEADLINE = 5.0
"""Seconds within which workers are gone."""


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_worker_processes_end_with_their_parent(tmp_path: Path, how: signal.Signals) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    pids = tmp_path / "pids"
    pids.mkdir()
    with subprocess.Popen([sys.executable, script, "work", str(pids)], stderr=subprocess.PIPE, text=True) as parent:
        begun = time.monotonic()
        while len(found := list(pids.glob("*.pid"))) < 2:
            assert parent.poll() is None
            assert time.monotonic() < begun + 60, "the second worker has nothing to do"
            time.sleep(0.05)
        workers = [int(path.stem) for path in found]
        assert all(map(alive, workers))
        parent.send_signal(how)
        end = time.monotonic() + DEADLINE
        said = parent.communicate(timeout=DEADLINE)[1]
        while any(map(alive, workers)):
            assert time.monotonic() < end, "workers stay"
            time.sleep(0.05)
    if how != signal.SIGKILL:
        assert (parent.returncode, said) == (130, "stratascope: interrupted; no results were saved\n")


def test_a_worker_process_that_is_killed_is_named(tmp_path: Path) -> None:
    from stratascope.errors import ClusterLostError
    from stratascope.scheduling import run_all

    with pytest.raises(ClusterLostError, match=r"one of them ended half-way .*workers=2"):
        run_all(os._exit, [9, 9], scheduler="processes", workers=1)
