"""Download published benchmarks from the Hub and unpack them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from stratascope.datasets.benchmarks import benchmark_of
from stratascope.datasets.conversion import ConversionReport, convert_benchmark
from stratascope.datasets.fetch import RECORD, from_hub
from stratascope.errors import InvalidInputError


def fetch_benchmark(
    benchmark: str, folder: Path | str, *, revision: str | None = None, endpoint: str | None = None, progress: bool = False
) -> ConversionReport:
    """Download the files of a benchmark into the Hub's cache and unpack them into `folder`.

    The folder then holds `rows.jsonl`, `images/` and `fetched.json` (which commit of the Hub's repository, hashes of its files). After an
    interruption a second call downloads only what is missing.

    Parameters
    ----------
    benchmark
        Name of one of `BENCHMARKS`.
    folder
        Output folder; created if it does not exist.
    revision
        Branch, tag or commit of the Hub's repository.
    endpoint
        Address of the Hub or a mirror; None: huggingface_hub's default, which HF_ENDPOINT sets.
    progress
        Whether to show a progress bar.

    Raises
    ------
    MissingExtraError
        If huggingface_hub or pyarrow is not installed.
    InvalidInputError
        If there is no such benchmark, its files are not of the published form, or the folder already holds rows or images.
    DownloadError
        If a file cannot be fetched.
    """
    chosen, out = benchmark_of(benchmark), Path(folder)
    if not chosen.files:
        raise InvalidInputError(
            f"expected a benchmark that can be fetched, found {benchmark}: use `convert_benchmark` on its published files"
        )
    if (out / RECORD).exists():
        raise InvalidInputError(f"expected a folder without data, found {out / RECORD} from an earlier fetch; choose another folder")
    record: dict[str, Any] = {"repository": chosen.repository, "revision": None, "files": {}}
    sources = []
    for name in chosen.files:
        sources.append(from_hub(chosen.repository, name, record["revision"] or revision, endpoint))
        # the Hub's cache names its snapshots by commit: snapshots/COMMIT/NAME
        record["revision"] = record["revision"] or sources[-1].parents[name.count("/")].name
        record["files"][name] = hashlib.sha256(sources[-1].read_bytes()).hexdigest()
    report = convert_benchmark(benchmark, sources, out, progress=progress)
    (out / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return report
