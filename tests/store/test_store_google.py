"""Stores written to Google Cloud Storage, at a server of these tests that speaks the XML API as Google documents it.

There is no emulator of Google's on the registries that speaks this API: the server here holds objects with generations, conditions on them
(`x-goog-if-generation-match`), pages of listings and uploads in parts. It proves the requests, not the service.
"""

from __future__ import annotations

import datetime
import hashlib
import re
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from xml.sax.saxutils import escape

import pytest
from buckets import check_writing, files, objects, without_cloud
from local_server import LocalHandler, serving_locally
from stores import make_store, small_layout

from stratascope.store import ActivationStore, copy_store, diff_stores, verify
from stratascope.store.io import bucket as bucket_module
from stratascope.store.io.bucket import Bucket
from stratascope.store.io.remote_errors import UnreachableError

LAYOUT = small_layout()
PAGE = 7
"""Keys in a page of a listing."""


@contextmanager
def google_server() -> Iterator[tuple[str, list[str]]]:
    """Address of a server with an empty bucket named `bucket`, and the methods and paths that were asked."""
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
                self.answer(*self.done(path, query, body))

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_any

        def done(self, path: str, query: dict[str, str], body: bytes) -> tuple[int, bytes, dict[str, str]]:
            bucket, _, key = path.partition("/")
            if bucket != "bucket":
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


@pytest.fixture
def asked(monkeypatch):
    without_cloud(monkeypatch)
    with google_server() as (address, requests):
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
