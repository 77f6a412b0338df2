"""The demo on a fresh and on a used machine: seconds until its first result, until all is done, and of a second run.

    python benchmarks/demo_benchmark.py --scenes 512

cold: no compiled Python files, no cache of numba or matplotlib, and with --drop nothing in the page cache of the whole machine, where the
system lets this process empty it. warm: the same caches again, a new folder. again: the same folder. Times are wall seconds, and processor
seconds (user and system) of the demo and all its processes, which other load on the machine changes less.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from threading import Thread

FIRST_RESULT = "figure: "
"""A line that begins with this names the first figure."""
PERIOD = 0.1
"""Seconds between two looks at the processor seconds of running processes, which the system forgets when the last of them ends."""


def processor_seconds(pid: int) -> float:
    """Seconds of a running process and of all that it started."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii").split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK") + sum(processor_seconds(int(child)) for child in children)


def watch(pid: int, used: list[float]) -> None:
    """Keep the largest number of processor seconds seen until a process ends."""
    while Path(f"/proc/{pid}").exists():
        used[0] = max(used[0], processor_seconds(pid))
        time.sleep(PERIOD)


def drop_page_cache() -> bool:
    """Empty the page cache; whether the system allowed it."""
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3", "ascii")
    except OSError:
        return False
    return True


def run(scenes: int, out: Path, caches: Path) -> dict[str, float]:
    """Run the demo; seconds at each step, at the first result, and at the end."""
    places = {"PYTHONPYCACHEPREFIX": "python", "NUMBA_CACHE_DIR": "numba", "MPLCONFIGDIR": "matplotlib"}
    environment = {**os.environ, **{name: str(caches / place) for name, place in places.items()}, "PYTHONUNBUFFERED": "1"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    command = [sys.executable, "-m", "stratascope", "demo", "--scenes", str(scenes), "--out", str(out)]
    start, found, used = time.perf_counter(), dict[str, float](), [0.0]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment) as process:
        assert process.stdout is not None
        Thread(target=watch, args=(process.pid, used), daemon=True).start()
        for line in process.stdout:
            name = "first result" if line.startswith(FIRST_RESULT) else line[:3] if line[1:2] == "/" else None
            if name:
                found[name] = round(time.perf_counter() - start, 1)
                found[f"{name}, processor"] = round(max(used[0], processor_seconds(process.pid)), 1)
    if process.returncode:
        raise SystemExit(f"the demo failed with exit code {process.returncode}")
    return {**found, "all": round(time.perf_counter() - start, 1), "all, processor": round(used[0], 1)}


def main() -> None:
    """Print the times of each run as a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=512)
    parser.add_argument("--drop", action="store_true", help="Empty the page cache before the cold run.")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        dropped = options.drop and drop_page_cache()
        print(json.dumps({"scenes": options.scenes, "cores": os.cpu_count(), "page cache dropped": dropped}), flush=True)
        for name, place in {"cold": "cold", "warm": "warm", "again": "warm"}.items():
            times = run(options.scenes, root / place, root / "caches")
            print(json.dumps({name: times, "load": round(os.getloadavg()[0], 1)}), flush=True)


if __name__ == "__main__":
    main()
