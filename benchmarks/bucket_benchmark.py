"""Writing a store to a bucket beside raw puts of the same bytes: seconds, megabytes a second, peak memory.

    python benchmarks/bucket_benchmark.py --examples 512 --layers 28 --hidden 3584

Starts an S3 server (moto) in a process of its own, or writes to --url with the credentials of the environment. --rate puts a line of so
many megabytes a second before that server: without it, server and writer compete for the same cores. `raw puts` sends the files of the
finished store with obstore, as many at once as the writer does; the writer also compresses, claims and marks every block, two blocks at
once as an extraction on a GPU does, or one at a time as one on a CPU, and `copy` reads, checks and compresses again. Each row runs in a
process of its own, so that peak memory and CPU time are its own. All rows run once in turn, --repeats times; ratios are to the raw puts of
the same turn: their median, smallest and largest.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from stratascope.store import BlockWriter, StoreLayout, copy_store, create_store
from stratascope.store.io.store_files import FILES_AT_ONCE

BLOCK = 64
WRITERS = {"writer, two blocks at once": 2, "writer, one block": 1}
ROWS = ("raw puts", *WRITERS, "copy")
TOKENS = 8


def layout_of(options: argparse.Namespace) -> StoreLayout:
    return StoreLayout(
        examples=options.examples, layers=options.layers, hidden=options.hidden, heads=2, tokens=TOKENS, positions=("final", "image"),
        spans=("image", "final"), choices=("True", "False"), record=frozenset({"residual"}), block=BLOCK, thumbnail=None,
        computed_dtype="bfloat16",
    )  # fmt: skip


def known_of(layout: StoreLayout) -> dict[str, object]:
    n = layout.examples
    rows = pd.DataFrame(
        {"id": [f"e{i}" for i in range(n)], "relation": "under", "label": np.arange(n) % 2, "image": "a.png", "caption": "c"}
    )
    return {
        "examples": rows, "spans": np.tile([[0, 4], [TOKENS - 1, TOKENS]], (n, 1, 1)), "token_ids": np.ones((n, TOKENS), int),
        "vocabulary": {1: "a"}, "n_tokens": np.full(n, TOKENS), "grid": np.tile([2, 2], (n, 1)),
        "position_present": np.ones((n, 2), bool), "has_map": np.zeros(n, bool), "provenance": {"model": "benchmark"},
    }  # fmt: skip


def block_of(layout: StoreLayout, block: int) -> dict[str, np.ndarray]:
    """Values with the distribution of bfloat16 activations: the low 16 bits of float32 are zero."""
    rng = np.random.default_rng(block)
    n = len(layout.block_examples(block))
    values = rng.standard_t(4, (layout.layers + 1, 2, n, layout.hidden)).astype(np.float32)
    (values.view(np.uint32))[...] &= 0xFFFF0000
    return {"residual": values, "answer_logits": np.zeros((n, 2), np.float32), "status": np.ones(n, np.uint8)}


def write(target: str, options: argparse.Namespace, at_once: int = 2) -> Callable[[], None]:
    layout = layout_of(options)
    blocks = {b: block_of(layout, b) for b in range(min(layout.blocks, 2))}  # drawn before the clock starts, as a model would yield them

    def work() -> None:
        create_store(target, layout, **known_of(layout))
        with BlockWriter(target) as writer, ThreadPoolExecutor(at_once) as pool:
            list(pool.map(lambda block: writer.write(block, blocks[block % len(blocks)]), writer.pending()))

    return work


def raw(source: Path, target: str) -> Callable[[], None]:
    import obstore
    from obstore.store import from_url

    client = from_url(target, client_options={"allow_http": True})
    files = [path for path in sorted(source.rglob("*")) if path.is_file()]

    def put(path: Path) -> None:
        obstore.put(client, path.relative_to(source).as_posix(), path.read_bytes())

    def work() -> None:
        with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
            list(pool.map(put, files))

    return work


def task(name: str, source: Path, target: str, options: argparse.Namespace) -> dict[str, float]:
    if name == "raw puts":
        work = raw(source, target)
    elif name in WRITERS:
        work = write(target, options, WRITERS[name])
    else:
        work = partial(copy_store, source, target)
    begin, used = time.perf_counter(), time.process_time()
    work()
    return {"seconds": time.perf_counter() - begin, "cpu": time.process_time() - used}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=512)
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--hidden", type=int, default=3584)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rate", type=float, help="megabytes a second to the server, of all connections together")
    parser.add_argument("--url", help="prefix in a bucket; default: a server of its own")
    parser.add_argument("--task", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        name, source, target = options.task
        found = task(name, Path(source), target, options)
        print(json.dumps({**found, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))
        return
    server = None
    if options.url is None:
        server, options.url = _server(options.rate)
    try:
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "local.zarr"
            begin = time.perf_counter()
            write(str(source), options)()
            local = time.perf_counter() - begin
            size = sum(path.stat().st_size for path in source.rglob("*") if path.is_file())
            print(f"{size / 1e6:.0f} MB in {sum(1 for p in source.rglob('*') if p.is_file())} files; written to a disk in {local:.1f} s")
            turns = [
                {name: _run(name, source, f"{options.url}/{uuid.uuid4().hex}.zarr", options) for name in ROWS}
                for _ in range(options.repeats)
            ]
            for name in ROWS:
                seconds, cpu, peak = (statistics.median(turn[name][key] for turn in turns) for key in ("seconds", "cpu", "peak"))
                ratios = sorted(turn[name]["seconds"] / turn["raw puts"]["seconds"] for turn in turns)
                spread = f"{statistics.median(ratios):5.2f} x raw puts ({ratios[0]:.2f}-{ratios[-1]:.2f})"
                print(
                    f"{name:<27} {seconds:7.2f} s  CPU {cpu:6.2f} s  {size / 1e6 / seconds:5.1f} MB/s  {spread}  peak {peak / 1e6:5.0f} MB"
                )
    finally:
        if server is not None:
            server.terminate()


def _run(name: str, source: Path, target: str, options: argparse.Namespace) -> dict[str, float]:
    numbers = ["--examples", options.examples, "--layers", options.layers, "--hidden", options.hidden]
    command = [sys.executable, __file__, *map(str, numbers), "--task", name, str(source), target]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


class Line:
    """A line of limited bandwidth to a server: forwards connections, and lets so many bytes a second through to it in all."""

    def __init__(self, port: int, rate: float) -> None:
        self._port, self._rate, self._free, self._lock = port, rate, time.monotonic(), threading.Lock()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            near, _ = self._listening.accept()
            far = socket.create_connection(("127.0.0.1", self._port))
            for source, target, limited in ((near, far, True), (far, near, False)):
                threading.Thread(target=self._pump, args=(source, target, limited), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, limited: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if limited:
                    self._wait(len(data))
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def _wait(self, count: int) -> None:
        with self._lock:
            self._free = max(self._free, time.monotonic()) + count / self._rate
            until = self._free
        time.sleep(max(0.0, until - time.monotonic()))


def _server(rate: float | None) -> tuple[subprocess.Popen[bytes], str]:
    """An S3 server in a process of its own, and the address of its bucket."""
    code = (
        "import logging, time; logging.getLogger('werkzeug').setLevel(logging.ERROR)\n"
        "from moto.server import ThreadedMotoServer\nserver = ThreadedMotoServer(ip_address='127.0.0.1', port=0, verbose=False)\n"
        "server.start(); print(*server.get_host_and_port(), flush=True)\nwhile True: time.sleep(1)"
    )
    server = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert server.stdout is not None
    host, port = server.stdout.readline().decode().split()
    os.environ |= {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_REGION": "us-east-1"}
    os.environ["AWS_ENDPOINT_URL"] = f"http://{host}:{Line(int(port), rate * 1e6).port if rate else port}"
    urllib.request.urlopen(urllib.request.Request(f"http://{host}:{port}/bucket", method="PUT"), timeout=30).close()
    return server, "s3://bucket"


if __name__ == "__main__":
    main()
