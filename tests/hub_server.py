"""A Hugging Face Hub with one repository, on this machine: what the tests of ``pull`` talk to.

Two servers, as there: the hub (knows revisions, wants a token, redirects large files) and a storage host (knows
signed addresses only). Every request is recorded. A test makes the hub misbehave by changing chosen answers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open

from qwen_omni_onnx.common import artifact

REPOSITORY = "someone/tiny-omni"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_of_the_tests"
WIDTHS = {"embedding_size": 12, "hidden_size": 8, "vocab_size": 20}
WEIGHT, BIAS, HEAD = (
    "talker.thinker_to_talker_proj.weight",
    "talker.thinker_to_talker_proj.bias",
    "talker.codec_head.weight",
)
FIRST, SECOND, THIRD = (f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3))
INDEX = "model.safetensors.index.json"
_CHUNK = 65536


def tensors() -> dict[str, np.ndarray]:
    """The projection's tensors of the tiny checkpoint, always the same."""
    random = np.random.default_rng(7)
    embedding, hidden, vocabulary = WIDTHS.values()
    shapes = {BIAS: (hidden,), WEIGHT: (hidden, embedding), HEAD: (vocabulary, hidden)}
    return {name: random.standard_normal(shape).astype(ml_dtypes.bfloat16) for name, shape in shapes.items()}


def safetensors(table: dict[str, np.ndarray]) -> bytes:
    """A safetensors file with tensors in the order given; not the project's own encoder, which is under test."""
    names = {"bfloat16": "BF16", "float32": "F32", "float16": "F16"}
    header, position = {}, 0
    for name, array in table.items():
        offsets = [position, position + array.nbytes]
        header[name] = {"dtype": names[array.dtype.name], "shape": list(array.shape), "data_offsets": offsets}
        position += array.nbytes
    head = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    return len(head).to_bytes(8, "little") + head + b"".join(array.tobytes() for array in table.values())


def checkpoint(**changed: np.ndarray) -> dict[str, bytes]:
    """Files of a tiny checkpoint in three shards: two neighbours in the first, one tensor in the second.

    Args:
        changed: ``weight``, ``bias`` or ``head`` in place of the usual tensor.
    """
    usual = tensors()
    weight, bias, head = (
        changed.get(key, usual[name]) for key, name in (("weight", WEIGHT), ("bias", BIAS), ("head", HEAD))
    )
    other = np.arange(40, dtype=np.float32).astype(ml_dtypes.bfloat16)
    shards = {
        FIRST: {"thinker.before": other, BIAS: bias, WEIGHT: weight, "thinker.behind": other},
        SECOND: {"talker.before": other, HEAD: head},
        THIRD: {"token2wav.weight": other},
    }
    config = {"model_type": "qwen2_5_omni", "torch_dtype": "bfloat16", "talker_config": WIDTHS}
    weight_map = {name: shard for shard, table in shards.items() for name in table}
    return {
        "config.json": json.dumps(config).encode(),
        "LICENSE": b"Apache License 2.0\n",
        INDEX: json.dumps({"metadata": {}, "weight_map": weight_map}).encode(),
        **{shard: safetensors(table) for shard, table in shards.items()},
    }


def assert_whole(folder: Path) -> None:
    """The artifact holds exactly the checkpoint's tensors."""
    artifact.check(folder)
    with safe_open(folder / "model.safetensors", framework="numpy") as file:
        assert set(file.keys()) == {WEIGHT, BIAS, HEAD}
        for name, array in tensors().items():
            np.testing.assert_array_equal(file.get_tensor(name), array)


def header_bytes(shard: bytes) -> int:
    """Bytes in front of a shard's first tensor."""
    return 8 + int.from_bytes(shard[:8], "little")


@dataclasses.dataclass
class Request:
    """What was asked, and how much was sent back. ``range`` is [start, end)."""

    host: str
    method: str
    name: str
    range: tuple[int, int] | None
    authorized: bool
    signature: int | None
    body: bytes = b""
    status: int = 0
    sent: int = 0

    @property
    def span(self) -> tuple[int, int]:
        """The range of a request that has one."""
        assert self.range is not None
        return self.range


@dataclasses.dataclass(frozen=True)
class Answer:
    """What is sent back; ``cut``: the connection is closed after so many bytes of the body; status 0: at once."""

    status: int
    headers: dict[str, str] = dataclasses.field(default_factory=dict)
    body: bytes = b""
    cut: int | None = None

    def but(self, **changes: object) -> Answer:
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]

    def with_header(self, name: str, value: str | None) -> Answer:
        """The same answer with one header set, or without it."""
        others = {key: old for key, old in self.headers.items() if key != name}
        return self.but(headers=others if value is None else {**others, name: value})


def error(status: int, code: str | None = None, message: str = "", **headers: str) -> Answer:
    """An error as the hub sends it: named in headers, told in a JSON body."""
    named = {"X-Error-Code": code} if code else {}
    said = {"X-Error-Message": " ".join(message.split())} if message else {}
    return Answer(status, {**named, **said, **headers}, json.dumps({"error": message or "no"}).encode())


@dataclasses.dataclass
class _Fault:
    when: Callable[[Request], bool]
    change: Callable[[Request, Answer], Answer]
    times: float


class Hub:
    """The two servers. ``files`` may be changed at any time; ``signature`` counts the storage addresses given out."""

    def __init__(self, files: Mapping[str, Any]) -> None:
        self.files: dict[str, Any] = dict(files)
        self.revisions = {"main": COMMIT, "v1": COMMIT, COMMIT: COMMIT}
        self.token: str | None = None  # the only one let in, where there is one
        self.requests: list[Request] = []
        self.signature = 0
        self.redirects = True  # of shards and pickles to the storage host
        self._faults: list[_Fault] = []
        self._lock = threading.Lock()
        self._servers = {host: _server(self, host) for host in ("hub", "storage")}
        self.endpoint, self.storage = (
            f"http://127.0.0.1:{server.server_address[1]}" for server in self._servers.values()
        )

    def close(self) -> None:
        for server in self._servers.values():
            server.shutdown()
            server.server_close()

    def misbehave(
        self,
        change: Callable[[Request, Answer], Answer] | Answer,
        *,
        host: str,
        method: str = "GET",
        name: str = "",
        when: Callable[[Request], bool] = lambda request: True,
        times: float = float("inf"),
    ) -> None:
        """Change the next ``times`` answers to matching requests; ``name`` is a part of the file's or path's name."""

        def matches(request: Request) -> bool:
            return request.host == host and request.method == method and name in request.name and when(request)

        answer = change if callable(change) else lambda request, usual: change
        self._faults.append(_Fault(matches, answer, times))

    def behave(self) -> None:
        """From now on, make no faults; forget what was asked."""
        self._faults.clear()
        self.requests.clear()

    def asked(self, host: str, name: str = "", method: str = "GET") -> list[Request]:
        """Requests so far, in order."""
        return [r for r in self.requests if r.host == host and name in r.name and r.method == method]

    def respond(self, request: Request) -> Answer:
        with self._lock:
            self.requests.append(request)
            answer = self._from_hub(request) if request.host == "hub" else self._from_storage(request)
            fault = next((f for f in self._faults if f.times > 0 and f.when(request)), None)
            if fault:
                fault.times -= 1
                answer = fault.change(request, answer)
            request.status = answer.status
        return answer

    def _from_hub(self, request: Request) -> Answer:
        if self.token and not request.authorized:
            return error(401, message="Invalid username or password.")
        api = f"/api/models/{REPOSITORY}/revision/"
        if request.name.startswith(api):
            commit = self.revisions.get(unquote(request.name.removeprefix(api)))
            if commit is None:
                return error(404, "RevisionNotFound", "Invalid rev id")
            return Answer(
                200, {"Content-Type": "application/json"}, json.dumps({"id": REPOSITORY, "sha": commit}).encode()
            )
        found = re.fullmatch(rf"/{REPOSITORY}/resolve/([^/]+)/(.+)", request.name)
        if not found:
            return error(404, "RepoNotFound", "Repository not found")
        if found[1] not in self.revisions:
            return error(404, "RevisionNotFound", "Invalid rev id")
        name = unquote(found[2])
        if name not in self.files:
            return error(404, "EntryNotFound", "Entry not found")
        content = self.files[name]
        etag = f'"{tag(content)}"'
        named = {"X-Repo-Commit": self.revisions[found[1]]}
        if not name.endswith((".safetensors", ".pt")) or not self.redirects:
            return part(request, content, {**named, "ETag": etag})
        self.signature += 1
        location = f"{self.storage}/{name}?signature={self.signature}"
        linked = {"X-Linked-Etag": etag, "X-Linked-Size": str(len(content)), "Location": location}
        return Answer(302, {**named, **linked}, b"Found. Redirecting")

    def _from_storage(self, request: Request) -> Answer:
        content = self.files.get(request.name.removeprefix("/"))
        if content is None or request.signature is None:
            return Answer(403, {"Content-Type": "application/xml"}, b"<Error><Code>AccessDenied</Code></Error>")
        return part(request, content, {"ETag": f'"{tag(content)}"'})


@contextlib.contextmanager
def hub_with(files: Mapping[str, Any]) -> Iterator[Hub]:
    """A hub that serves ``files`` and is gone afterwards."""
    hub = Hub(files)
    try:
        yield hub
    finally:
        hub.close()


def point_huggingface_hub_at(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    """Let huggingface_hub, which reads its environment when imported, talk to ``endpoint``, and know no token."""
    from huggingface_hub import constants
    from huggingface_hub.utils import close_session

    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "no-such-file")
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.utils._detect_agent._registry", {})  # else asked of the hub once a day
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    close_session()  # of an earlier test


class Vast:
    """A file too large to be in memory: what is in front, and then zeros.

    Args:
        front: First bytes.
        size: Of the whole file.
    """

    def __init__(self, front: bytes, size: int) -> None:
        self.front, self.size = front, size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, part: slice) -> bytes:
        start, stop, _ = part.indices(self.size)
        return self.front[start:stop].ljust(stop - start, b"\0")


def tag(content: bytes | Vast) -> str:
    return hashlib.sha256(content.front if isinstance(content, Vast) else content).hexdigest()


def part(request: Request, content: bytes | Vast, headers: dict[str, str]) -> Answer:
    headers = {**headers, "Accept-Ranges": "bytes"}
    if request.range is None:
        return Answer(200, headers, content[:])
    start, end = request.range
    if start >= len(content):
        return Answer(416, {**headers, "Content-Range": f"bytes */{len(content)}"}, b"")
    end = min(end, len(content))
    return Answer(206, {**headers, "Content-Range": f"bytes {start}-{end - 1}/{len(content)}"}, content[start:end])


def _server(hub: Hub, host: str) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            address = urlsplit(self.path)
            asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            signature = parse_qs(address.query).get("signature")
            authorization = self.headers.get("Authorization")
            request = Request(
                host=host,
                method=self.command,
                name=address.path,
                range=(int(asked[1]), int(asked[2]) + 1) if asked else None,
                authorized=authorization == f"Bearer {hub.token}" if hub.token else authorization is not None,
                signature=int(signature[0]) if signature else None,
                body=self._body(),
            )
            self._send(request, hub.respond(request))

        do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length", "0")))
            chunks = []
            while size := int(self.rfile.readline(), 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)

        def _send(self, request: Request, answer: Answer) -> None:
            if answer.status == 0:
                self.close_connection = True
                return
            self.send_response(answer.status)
            for name, value in {"Content-Length": str(len(answer.body)), **answer.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "HEAD":
                return
            body = answer.body[: answer.cut]
            try:
                for start in range(0, len(body), _CHUNK):
                    chunk = body[start : start + _CHUNK]
                    request.sent += len(chunk)  # before: the client may look as soon as it has the last byte
                    self.wfile.write(chunk)
            except ConnectionError:  # the client has heard enough
                self.close_connection = True
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
