"""Stores written to Azure Blob Storage, with Microsoft's emulator Azurite: the same bytes, the same conditions as of S3."""

from __future__ import annotations

import base64
import datetime
import hashlib
import hmac
import os
import shutil
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest
from buckets import check_faults, check_writing, files, objects, without_cloud
from faulty_proxy import faulty_proxy
from stores import make_store, small_layout

from stratascope.errors import StoreError
from stratascope.store import ActivationStore, copy_store, diff_stores, verify
from stratascope.store.io import bucket as bucket_module
from stratascope.store.io.bucket import Bucket
from stratascope.store.io.remote_errors import UnreachableError

ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""Of the emulator, published by Microsoft."""
PLACES = (os.environ.get("STRATASCOPE_AZURITE", ""), shutil.which("azurite-blob") or "", ".venv/azurite/node_modules/.bin/azurite-blob")
LAYOUT = small_layout()


def make_container(port: int, name: str) -> None:
    """By a request signed here: no client of Azure is needed."""
    date = datetime.datetime.now(datetime.UTC).strftime("%a, %d %b %Y %H:%M:%S GMT")
    signed = f"PUT{chr(10) * 12}x-ms-date:{date}\nx-ms-version:2021-08-06\n/{ACCOUNT}/{ACCOUNT}/{name}\nrestype:container"
    signature = base64.b64encode(hmac.new(base64.b64decode(KEY), signed.encode(), hashlib.sha256).digest()).decode()
    headers = {
        "x-ms-date": date, "x-ms-version": "2021-08-06", "Authorization": f"SharedKey {ACCOUNT}:{signature}", "Content-Length": "0",
    }  # fmt: skip
    request = urllib.request.Request(f"http://127.0.0.1:{port}/{ACCOUNT}/{name}?restype=container", method="PUT", headers=headers)
    urllib.request.urlopen(request, timeout=30).close()


@pytest.fixture(scope="module")
def port():
    program = next((place for place in PLACES if place and Path(place).exists()), None)
    if program is None:
        pytest.skip("AZURITE IS NOT HERE: writing to Azure was NOT checked; npm install --prefix .venv/azurite azurite")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number = free.getsockname()[1]
    options = ["--inMemoryPersistence", "--blobPort", str(number), "--silent", "--skipApiVersionCheck", "--disableTelemetry"]
    with subprocess.Popen([program, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            for _ in range(600):
                with socket.socket() as asked:
                    if asked.connect_ex(("127.0.0.1", number)) == 0:
                        break
                time.sleep(0.1)
            make_container(number, "bucket")
            yield number
        finally:
            server.terminate()


@pytest.fixture
def credentials(port, monkeypatch):
    without_cloud(monkeypatch)
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", ACCOUNT)
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", KEY)
    monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", f"http://127.0.0.1:{port}/{ACCOUNT}")


@pytest.mark.slow
@pytest.mark.usefixtures("credentials")
def test_a_store_in_azure_has_the_bytes_of_one_on_a_disk(tmp_path):
    local = make_store(tmp_path / "a.zarr", LAYOUT)
    make_store("az://bucket/made/a.zarr", LAYOUT)
    copy_store(local, "az://bucket/copied/a.zarr")
    for url in ("az://bucket/made/a.zarr", "az://bucket/copied/a.zarr"):
        assert objects(url) == files(local)
        assert verify(url).ok
    with pytest.raises(StoreError, match=r"az://bucket/none\.zarr: expected a store, found no zarr\.json there"):
        ActivationStore.open("az://bucket/none.zarr")
    copy_store("az://bucket/made/a.zarr", tmp_path / "b.zarr")
    assert files(tmp_path / "b.zarr") == files(local)
    assert diff_stores("az://bucket/made/a.zarr", local).same


@pytest.mark.slow
@pytest.mark.usefixtures("credentials")
def test_conditions_and_parts_are_those_of_azure(monkeypatch):
    monkeypatch.setattr(bucket_module, "PART_BYTES", 1 << 20)
    bucket = Bucket("az://bucket/conditions")
    check_writing(bucket)
    bucket.remove(["k", "large", "absent"])
    assert bucket.keys() == {}
    with pytest.raises(UnreachableError, match="expected a bucket to write into, found none of that name"):
        Bucket("az://nowhere/a.zarr").put("k", lambda: [b"1"])


@pytest.mark.slow
@pytest.mark.usefixtures("credentials")
def test_faults_before_azure_have_the_outcome_of_those_before_s3(port, tmp_path, monkeypatch):
    with faulty_proxy(f"http://127.0.0.1:{port}") as proxy:
        monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", f"{proxy.address}/{ACCOUNT}")
        check_faults(proxy, "az://bucket/faults", tmp_path, monkeypatch)
