"""OCI registries on this machine: a real one, Debian's docker-registry, and one that misbehaves on purpose."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

USER, PASSWORD = "tester", "of the tests"
NAME = "speech/tiny-omni"
_HTPASSWD = f"{USER}:$2b$04$5.XHrOkybBNDNL7lcXh8hew35ZiTi2ioQioOURH96L9S0dEpN9Mra\n"  # the password, hashed by bcrypt
_PROGRAM = "docker-registry"


@contextlib.contextmanager
def docker_registry(folder: Path, *, private: bool = False) -> Iterator[str]:
    """Run a real registry; yield its host and port.

    Args:
        folder: Folder for what it stores.
        private: Whether it wants user and password.
    """
    if shutil.which(_PROGRAM) is None:
        pytest.skip("no docker-registry here: apt-get install docker-registry")
    folder.mkdir()
    config: dict[str, Any] = {
        "version": "0.1",
        "log": {"level": "info"},
        "storage": {"filesystem": {"rootdirectory": str(folder / "data")}},
        "http": {"addr": "127.0.0.1:0", "secret": "of the tests"},
    }
    if private:
        (folder / "htpasswd").write_text(_HTPASSWD)
        config["auth"] = {"htpasswd": {"realm": "tests", "path": str(folder / "htpasswd")}}
    (folder / "config.yml").write_text(json.dumps(config))  # which is YAML, too
    log = folder / "log"
    with log.open("wb") as written:
        process = subprocess.Popen([_PROGRAM, "serve", folder / "config.yml"], stdout=written, stderr=written)
    try:
        yield _listening(process, log)
    finally:
        process.kill()
        process.wait()


def _listening(process: subprocess.Popen[bytes], log: Path) -> str:
    """Wait until a registry listens; return where."""
    while process.poll() is None:
        if found := re.search(r'listening on (127\.0\.0\.1:\d+)"', log.read_text()):
            return found[1]
        time.sleep(0.02)
    raise AssertionError(log.read_text())


def no_credentials(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let nobody be logged in anywhere, and nobody wait before another attempt."""
    monkeypatch.setenv("DOCKER_CONFIG", str(folder / "no-such-folder"))
    for name in ("ORAS_USER", "ORAS_PASS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setattr("qwen_omni_onnx.registry.client._WAIT", 0.0)


def log_in(monkeypatch: pytest.MonkeyPatch, folder: Path, host: str, password: str = PASSWORD) -> None:
    """Let a user be logged in as ``docker login`` leaves it."""
    folder.mkdir(exist_ok=True)
    auth = base64.b64encode(f"{USER}:{password}".encode()).decode()
    (folder / "config.json").write_text(json.dumps({"auths": {host: {"auth": auth}}}))
    monkeypatch.setenv("DOCKER_CONFIG", str(folder))


@dataclass
class Request:
    """A request that a registry has got.

    Attributes:
        method: Its method.
        path: Its path, behind ``/v2/`` and the repository's name.
        range: Its Range or Content-Range.
        authorization: What it was authorized by.
        received: Bytes that came with it.
        sent: Bytes of the answer.
    """

    method: str
    path: str
    range: str
    authorization: str
    received: int = 0
    sent: int = 0


@dataclass
class Answer:
    """An answer; ``cut`` is after how many bytes of the body the connection ends."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    cut: int | None = None


@dataclass
class Cut:
    """In place of an answer: the connection ends when so many bytes of the request have come."""

    after: int


class FaultyRegistry:
    """A registry in memory.

    Attributes:
        requests: What it was asked.
        blobs: Its blobs, by digest.
        manifests: Its manifests, by digest and by tag.
        fault: Returns what happens in place of what should; None: what should.
        changed: Changes an answer.
        bearer: Whether it wants a token, which USER and PASSWORD get.
        public: Whether everybody gets one.
    """

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[str, bytes] = {}
        self.uploads: dict[str, bytes] = {}
        self.fault: Callable[[Request], Answer | Cut | None] = lambda _: None
        self.changed: Callable[[Request, Answer], Answer] = lambda _, answer: answer
        self.bearer = self.public = False
        self._server = _server(self)
        self.host = f"127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        """Stop it."""
        self._server.shutdown()
        self._server.server_close()

    def sent(self, method: str) -> int:
        """How many bytes came with requests of a method."""
        return sum(one.received for one in self.requests if one.method == method)

    def answer(self, request: Request, query: dict[str, list[str]], body: bytes, accept: str) -> Answer:
        """What a registry should answer."""
        if request.path == "token":
            known = request.authorization == f"Basic {base64.b64encode(f'{USER}:{PASSWORD}'.encode()).decode()}"
            known = known or (self.public and not request.authorization)
            return Answer(200, body=b'{"token": "of-the-tests"}') if known else error(401, "UNAUTHORIZED", "who?")
        if self.bearer and request.authorization != "Bearer of-the-tests":
            challenge = f'Bearer realm="http://{self.host}/token",service="tests",scope="repository:any:pull,push"'
            return error(401, "UNAUTHORIZED", "authentication required", {"WWW-Authenticate": challenge})
        kind, _, rest = request.path.partition("/")
        if rest == "uploads/" or rest.startswith("uploads/"):
            return self._upload(request, rest.removeprefix("uploads/"), query, body)
        if kind == "blobs":
            return _content(request, self.blobs.get(rest), "BLOB_UNKNOWN")
        if kind == "manifests" and request.method == "PUT":
            digest = _digest(body)
            self.manifests[digest] = self.manifests[rest] = body
            return Answer(201, {"Docker-Content-Digest": digest})
        if kind == "manifests":
            assert "application/vnd.oci.image.manifest.v1+json" in accept
            return _content(request, self.manifests.get(rest), "MANIFEST_UNKNOWN")
        return Answer(200)  # of /v2/

    def _upload(self, request: Request, name: str, query: dict[str, list[str]], body: bytes) -> Answer:
        if request.method == "POST":
            name = f"{len(self.uploads)}"
            self.uploads[name] = b""
            return Answer(202, {"Location": f"/v2/{NAME}/blobs/uploads/{name}"})
        if name not in self.uploads:
            return error(404, "BLOB_UPLOAD_UNKNOWN", "no such upload")
        there = self.uploads[name]
        headers = {"Location": f"/v2/{NAME}/blobs/uploads/{name}", "Range": f"0-{max(0, len(there) - 1)}"}
        if request.method == "GET":
            return Answer(204, headers)
        if request.method == "PATCH" and not request.range.startswith(f"{len(there)}-"):
            return Answer(416, headers)
        self.uploads[name] = there = there + body
        headers["Range"] = f"0-{len(there) - 1}"
        if request.method == "PATCH":
            return Answer(202, headers)
        (digest,) = query["digest"]
        if _digest(there) != digest:
            return error(400, "DIGEST_INVALID", "provided digest did not match uploaded content")
        self.blobs[digest] = self.uploads.pop(name)
        return Answer(201, {"Docker-Content-Digest": digest})


@contextlib.contextmanager
def faulty_registry() -> Iterator[FaultyRegistry]:
    """A registry that a test makes misbehave; gone afterwards."""
    registry = FaultyRegistry()
    try:
        yield registry
    finally:
        registry.close()


def error(status: int, code: str, message: str, headers: dict[str, str] | None = None) -> Answer:
    """An error as registries tell it."""
    return Answer(status, headers or {}, json.dumps({"errors": [{"code": code, "message": message}]}).encode())


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _content(request: Request, content: bytes | None, unknown: str) -> Answer:
    if content is None:
        return error(404, unknown, "not here")
    if asked := re.fullmatch(r"bytes=(\d+)-(\d+)", request.range):
        start, end = int(asked[1]), int(asked[2]) + 1
        headers = {"Content-Range": f"bytes {start}-{end - 1}/{len(content)}"}
        return Answer(206, headers, content[start:end])
    return Answer(200, {"Content-Type": "application/vnd.oci.image.manifest.v1+json"}, content)


def _server(registry: FaultyRegistry) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def handle_any(self) -> None:
            address = urlsplit(self.path)
            name = address.path.removeprefix("/v2/").removeprefix(f"{NAME}/").removeprefix("/")
            given = self.headers.get("Range") or self.headers.get("Content-Range") or ""
            request = Request(self.command, name, given, self.headers.get("Authorization", ""))
            registry.requests.append(request)
            length = int(self.headers.get("Content-Length", "0"))
            instead = registry.fault(request)
            body = self.rfile.read(min(length, instead.after) if isinstance(instead, Cut) else length)
            request.received = len(body)
            if isinstance(instead, Cut):
                if body and request.method == "PATCH":
                    registry.uploads[name.rpartition("/")[2]] += body
                self.close_connection = True
                return
            query = parse_qs(address.query)
            answer = instead or registry.answer(request, query, body, self.headers.get("Accept", ""))
            self._send(request, registry.changed(request, answer))

        do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = handle_any  # noqa: N815

        def _send(self, request: Request, answer: Answer) -> None:
            self.send_response(answer.status)
            for name, value in {"Content-Length": str(len(answer.body)), **answer.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                body = answer.body[: answer.cut]
                request.sent = len(body)  # before: the client may look as soon as it has the last byte
                with contextlib.suppress(ConnectionError):
                    self.wfile.write(body)
            if answer.cut is not None:
                self.close_connection = True

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            """A client that goes away in the middle is no error here."""

    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    return server
