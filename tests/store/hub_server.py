"""A server on this machine that speaks the API of the Hugging Face Hub as far as stores use it, and its content network."""

from __future__ import annotations

import base64
import hashlib
import json
import socket
import struct
import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from tests.store.local_server import LocalHandler, serving_locally

TOKEN, READ_TOKEN = "hf_zq_write", "hf_zq_read"
PART = 1 << 16
"""Bytes of a part of an upload in parts; smaller content is sent in one request."""


@dataclass
class Repository:
    """Commits of a data set's repository."""

    private: bool
    commits: list[tuple[str, dict[str, tuple[bytes, bool]]]] = field(default_factory=list)
    """Commit and its files: path -> content, and whether it lies outside git (LFS)."""
    messages: list[str] = field(default_factory=list)

    def commit(self, files: dict[str, tuple[bytes, bool]], message: str) -> str:
        said = json.dumps([len(self.commits), message, sorted(files)])
        self.commits.append((hashlib.sha1(said.encode()).hexdigest(), files))
        self.messages.append(message)
        return self.commits[-1][0]

    def at(self, revision: str) -> dict[str, tuple[bytes, bool]] | None:
        """Files at `main` or a commit."""
        return dict(self.commits).get(self.commits[-1][0] if revision == "main" else revision)


@dataclass
class Hub:
    """What the server holds and was asked."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    content: dict[str, bytes] = field(default_factory=dict)
    """SHA-256 -> bytes of files outside git."""
    ill: Callable[[str, str, int], object] = lambda _method, _path, _count: None
    """(method, path, how often before) -> None, a status, "reset", or "lost" (done, and the answer lost)."""
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    asked: list[tuple[str, str]] = field(default_factory=list)
    uploads: list[str] = field(default_factory=list)
    """SHA-256 of content that was sent."""
    network_authorizations: set[str | None] = field(default_factory=set)
    """What was shown to the content network: never a token."""
    address: str = ""
    network: str = ""
    stop: threading.Event = field(default_factory=threading.Event)

    def files(self, name: str) -> dict[str, bytes]:
        """Path -> content at main."""
        found = self.repositories[name].at("main")
        assert found is not None
        return {path: data for path, (data, _) in found.items()}


def blob_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


@contextmanager
def hub_server() -> Iterator[Hub]:
    """Serve until the context ends."""
    hub = Hub()
    parts: dict[tuple[str, int], bytes] = {}

    class Content(LocalHandler):
        """Files outside git, as their signed addresses name them; any page may read them."""

        def do_GET(self) -> None:
            hub.network_authorizations.add(self.headers.get("Authorization"))
            hub.asked.append((self.command, self.path))
            data = hub.content.get(urllib.parse.urlsplit(self.path).path.lstrip("/"))
            send(self, 404 if data is None else 200, data or b"")

        do_HEAD = do_GET

        def do_PUT(self) -> None:
            data = self.rfile.read(int(self.headers["Content-Length"]))
            parsed = urllib.parse.urlsplit(self.path)
            oid, part = parsed.path.lstrip("/"), parsed.query.partition("part=")[2].partition("&")[0]
            if what := fault(self):
                answer_fault(self, what)
                return
            if part:
                parts[oid, int(part)] = data
            elif hashlib.sha256(data).hexdigest() == oid:
                hub.content[oid] = data
                hub.uploads.append(oid)
            else:
                send(self, 400, b"")
                return
            send(self, 200, b"", {"ETag": f'"{part or oid}"'})

        def do_POST(self) -> None:
            record = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            oid = record["oid"]
            data = b"".join(parts.pop((oid, part["partNumber"])) for part in record["parts"])
            hub.content[oid] = data
            hub.uploads.append(oid)
            send(self, 200 if hashlib.sha256(data).hexdigest() == oid else 400, b"{}")

    class Api(LocalHandler):
        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            what = fault(self)
            if what == "lost":
                self.dispatch(body, silent=True)
            if what:
                answer_fault(self, what)
                return
            self.dispatch(body)

        do_GET = do_HEAD = do_POST = handle_any

        def dispatch(self, body: bytes, *, silent: bool = False) -> None:
            parsed = urllib.parse.urlsplit(self.path)
            path = urllib.parse.unquote(parsed.path)
            token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
            status, told, headers = answer(self.command, path, dict(urllib.parse.parse_qsl(parsed.query)), body, token)
            if silent:
                return
            data = told if isinstance(told, bytes) else json.dumps(told).encode()
            send(self, status, data, {"Content-Type": "application/json", **headers})

    def fault(handler: LocalHandler) -> object:
        path = urllib.parse.unquote(urllib.parse.urlsplit(handler.path).path)
        hub.asked.append((handler.command, path))
        what = hub.ill(handler.command, path, hub.counts[handler.command, path])
        hub.counts[handler.command, path] += 1
        return what

    def answer_fault(handler: LocalHandler, what: object) -> None:
        if isinstance(what, int):
            send(handler, what, b'{"error": "zq-internal"}')
            return
        handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        handler.close_connection = True
        handler.connection.close()

    def send(handler: LocalHandler, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        part, asked = None, handler.headers.get("Range")
        if status == 200 and asked and handler.command in ("GET", "HEAD"):
            first, last = asked.removeprefix("bytes=").split("-")
            start = max(0, len(data) - int(last)) if not first else int(first)
            stop = min(int(last) + 1, len(data)) if first and last else len(data)
            status, part, data = (206, f"bytes {start}-{stop - 1}/{len(data)}", data[start:stop]) if start < len(data) else (416, None, b"")
        handler.send_response(status)
        exposed = "X-Repo-Commit, ETag, Link, Accept-Ranges, Content-Range, X-Linked-Size, X-Linked-ETag"
        cors = {"Access-Control-Allow-Origin": "*", "Access-Control-Expose-Headers": exposed}
        for name, value in {**cors, "Accept-Ranges": "bytes", **(headers or {})}.items():
            handler.send_header(name, value)
        if part:
            handler.send_header("Content-Range", part)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        if handler.command != "HEAD":
            handler.wfile.write(data)

    def answer(method: str, path: str, query: dict[str, str], body: bytes, token: str) -> tuple[int, Any, dict[str, str]]:
        if token and token not in (TOKEN, READ_TOKEN):
            return 401, {"error": "Invalid credentials in Authorization header"}, {}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}, {}
        if path == "/api/repos/create":
            record = json.loads(body)
            name = f"{record['organization']}/{record['name']}"
            if token != TOKEN:
                return 403, {"error": "no"}, {}
            if name in hub.repositories:
                return 409, {"error": "exists", "url": f"{hub.address}/datasets/{name}"}, {}
            hub.repositories[name] = Repository(record.get("visibility") == "private" or bool(record.get("private")))
            hub.repositories[name].commit({".gitattributes": (b"*.zarr filter=lfs\n", False)}, "initial commit")
            return 200, {"url": f"{hub.address}/datasets/{name}"}, {}
        words = path.strip("/").split("/")
        words = words[1:] if words[0] == "api" else words
        name = "/".join(words[1:3]).removesuffix(".git")
        found = hub.repositories.get(name)
        if words[0] != "datasets" or found is None or (found.private and not token):
            missing = {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}
            return (404 if token else 401), {"error": "Repository not found"}, missing
        verb, revision, rest = words[3] if len(words) > 3 else "", words[4] if len(words) > 4 else "main", "/".join(words[5:])
        if verb == "info":
            return batch(json.loads(body))
        files = found.at(revision)
        if files is None:
            return 404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"}
        commit = found.commits[-1][0] if revision == "main" else revision
        if verb in ("", "revision"):
            return 200, {"id": name, "sha": commit, "private": found.private, "siblings": [], "tags": []}, {}
        if verb == "tree":
            return tree(files, rest, query.get("recursive", "").lower() in ("true", "1"))
        if verb == "resolve":
            return resolve(files, rest, commit)
        if token != TOKEN:
            return 403, {"error": "no"}, {}
        if verb == "preupload":
            asked = json.loads(body)["files"]
            return 200, {"files": [preuploaded(files, file) for file in asked]}, {}
        assert verb == "commit", path
        return committed(name, files, commit, body)

    def preuploaded(files: dict[str, tuple[bytes, bool]], file: dict[str, Any]) -> dict[str, Any]:
        sample = base64.b64decode(file["sample"])
        binary = b"\0" in sample or any(byte >= 0xF5 for byte in sample) or file["size"] > 10 << 20
        held = files.get(file["path"])
        oid = None if held is None else hashlib.sha256(held[0]).hexdigest() if held[1] else blob_id(held[0])
        return {"path": file["path"], "uploadMode": "lfs" if binary else "regular", "shouldIgnore": False, "oid": oid}

    def batch(record: dict[str, Any]) -> tuple[int, Any, dict[str, str]]:
        objects = []
        for entry in record["objects"]:
            oid, size = entry["oid"], entry["size"]
            told: dict[str, Any] = {"oid": oid, "size": size}
            if oid not in hub.content:
                upload: dict[str, Any] = {"href": f"{hub.network}/{oid}?X-Signature=zq"}
                if size > PART:
                    count = -(-size // PART)
                    signed = {str(k): f"{hub.network}/{oid}?part={k}&X-Signature=zq" for k in range(1, count + 1)}
                    upload["header"] = {"chunk_size": str(PART), **signed}
                told["actions"] = {"upload": upload}
            objects.append(told)
        return 200, {"transfer": "basic", "objects": objects}, {}

    def committed(name: str, files: dict[str, tuple[bytes, bool]], head: str, body: bytes) -> tuple[int, Any, dict[str, str]]:
        changed, message = dict(files), ""
        for line in body.decode().splitlines():
            record = json.loads(line)
            key, value = record["key"], record["value"]
            if key == "header":
                message = value["summary"]
                if value.get("parentCommit") not in (None, head):
                    return 412, {"error": "A commit has happened since"}, {}
            elif key == "file":
                changed[value["path"]] = (base64.b64decode(value["content"]), False)
            elif key == "lfsFile":
                if value["oid"] not in hub.content:
                    return 400, {"error": "content was never uploaded"}, {}
                changed[value["path"]] = (hub.content[value["oid"]], True)
            else:
                if value["path"] not in changed:
                    return 404, {"error": "A file with this name doesn't exist"}, {"X-Error-Code": "EntryNotFound"}
                del changed[value["path"]]
        commit = hub.repositories[name].commit(changed, message)
        return 200, {"commitUrl": f"{hub.address}/datasets/{name}/commit/{commit}", "commitOid": commit, "success": True}, {}

    def tree(files: dict[str, tuple[bytes, bool]], folder: str, recursive: bool) -> tuple[int, Any, dict[str, str]]:
        start = f"{folder}/" if folder else ""
        listed: dict[str, dict[str, Any]] = {}
        for path, (data, outside) in sorted(files.items()):
            if not path.startswith(start):
                continue
            steps = path.removeprefix(start).split("/")
            for depth in range(1, len(steps)):
                above = start + "/".join(steps[:depth])
                if depth == 1 or recursive:
                    listed[above] = {"type": "directory", "oid": "0" * 40, "size": 0, "path": above}
            if len(steps) == 1 or recursive:
                listed[path] = {"type": "file", "oid": blob_id(data), "size": len(data), "path": path}
                if outside:
                    listed[path]["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
        if folder and not listed:
            return 404, {"error": "no such folder"}, {"X-Error-Code": "EntryNotFound"}
        return 200, list(listed.values()), {}

    def resolve(files: dict[str, tuple[bytes, bool]], path: str, commit: str) -> tuple[int, Any, dict[str, str]]:
        if path not in files:
            return 404, b"Entry not found", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}
        data, outside = files[path]
        if not outside:
            return 200, data, {"X-Repo-Commit": commit, "ETag": f'"{blob_id(data)}"'}
        oid = hashlib.sha256(data).hexdigest()
        linked = {"X-Linked-Size": str(len(data)), "X-Linked-ETag": f'"{oid}"', "Location": f"{hub.network}/{oid}?X-Signature=zq"}
        return 302, b"", {"X-Repo-Commit": commit, **linked}

    with serving_locally(Content, hub.stop) as hub.network, serving_locally(Api, hub.stop) as hub.address:
        yield hub


@contextmanager
def hub_settings(hub: Hub, monkeypatch: pytest.MonkeyPatch, home: Any, token: str = TOKEN) -> Iterator[None]:
    """Variables and constants with which huggingface_hub uses a server, over plain HTTP, without its caches and pauses."""
    constants = pytest.importorskip("huggingface_hub.constants")
    waiting = pytest.importorskip("huggingface_hub.utils._http")
    monkeypatch.setattr(waiting, "time", SimpleNamespace(**{**vars(time), "sleep": lambda _: None}))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", hub.address)
    monkeypatch.setenv("HF_HOME", str(home))
    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home))
    yield
