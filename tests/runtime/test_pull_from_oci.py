"""Pulling a release from an OCI registry: from a real one, and from one that misbehaves."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from keys import key_pair
from oci_registries import (
    NAME,
    Answer,
    FaultyRegistry,
    Request,
    docker_registry,
    error,
    faulty_registry,
    log_in,
    no_credentials,
)
from releases import write_published

from publish.release import opened as target
from publish.release import release
from publish.sign import Signer
from qwen_omni_onnx.download import Download, download
from qwen_omni_onnx.registry.client import ATTEMPTS, Reference, Registry
from qwen_omni_onnx.sources import opened
from qwen_omni_onnx.trust import Trust

GRAPH = "encoder/tiny-encoder/onnx/graph_int8.onnx.data"


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    no_credentials(monkeypatch, tmp_path)


@pytest.fixture
def published(tmp_path: Path) -> Path:
    return write_published(tmp_path / "published", "encoder")


@pytest.fixture
def faulty(published: Path) -> Iterator[FaultyRegistry]:
    """A registry with a release of one component."""
    with faulty_registry() as registry:
        put(registry.host, published)
        registry.requests.clear()
        yield registry


def put(host: str, folder: Path, tag: str = "latest", signer: Signer | None = None) -> None:
    release({folder.parent.name: folder}, target(f"oci://{host}/{NAME}:{tag}"), signer, dry_run=False)


def pull(host: str, to: Path, which: str = "", **options: Any) -> list[Download]:
    return list(download(f"oci://{host}/{NAME}{which}", to, **options))


def large(registry: FaultyRegistry, published: Path) -> tuple[str, int]:
    """Address and size of the largest file."""
    content = (published / "onnx/graph_int8.onnx.data").read_bytes()
    return f"blobs/sha256:{hashlib.sha256(content).hexdigest()}", len(content)


def assert_whole(folder: Path, published: Path) -> None:
    for path in published.rglob("*"):
        if path.is_file() and path.name not in ("graph.onnx", "graph.onnx.data"):
            assert (folder / path.relative_to(published)).read_bytes() == path.read_bytes()


def test_a_release_is_pulled_by_tag_and_by_digest(published: Path, tmp_path: Path, message: Callable[..., str]) -> None:
    private, public = key_pair(tmp_path)
    trust = Trust(key=public)
    with docker_registry(tmp_path / "registry") as host:
        put(host, published, signer=Signer(private))
        (found,) = pull(host, tmp_path / "by-tag", trust=trust)
        assert_whole(found.folder, published)
        assert found.signed
        registry = Registry(Reference.parse(f"oci://{host}/{NAME}"))
        content = registry.manifest("latest", 2**20)
        assert content is not None
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        put(host, write_published(tmp_path / "new", "encoder", {"config.json": b"[]"}))
        (found,) = pull(host, tmp_path / "by-digest", f"@{digest}", trust=trust)
        assert_whole(found.folder, published)
        assert "not signed" in message(pull, host, tmp_path / "unsigned", trust=trust)
        assert "no v9 in it" in message(pull, host, tmp_path / "none", ":v9")
        assert "no talker in it" in message(pull, host, tmp_path / "none", components=["talker"])


def test_a_cut_download_goes_on_where_it_was(faulty: FaultyRegistry, published: Path, tmp_path: Path) -> None:
    address, size = large(faulty, published)
    cuts = [100_000, 150_000]

    def cut(request: Request, answer: Answer) -> Answer:
        if request.path == address and cuts:
            answer.cut = cuts.pop()
        return answer

    faulty.changed = cut
    (found,) = pull(faulty.host, tmp_path / "pulled")
    assert_whole(found.folder, published)
    assert sum(one.sent for one in faulty.requests if one.path == address) == size


def test_a_pull_that_was_cut_off_goes_on_where_it_was(
    faulty: FaultyRegistry, published: Path, tmp_path: Path, message: Callable[..., str]
) -> None:
    address, size = large(faulty, published)

    def cut(request: Request, answer: Answer) -> Answer:
        if request.path == address:
            answer.cut = 0 if request.range else 100_000
        return answer

    faulty.changed = cut
    assert f"cut the connection {ATTEMPTS} times, at byte 100000" in message(pull, faulty.host, tmp_path / "pulled")
    assert not (tmp_path / "pulled/encoder/tiny-encoder").exists()
    faulty.changed = lambda _, answer: answer
    faulty.requests.clear()
    (found,) = pull(faulty.host, tmp_path / "pulled")
    assert_whole(found.folder, published)
    (again,) = (one for one in faulty.requests if one.path == address)
    assert again.sent == size - 100_000
    assert found.fetched < size


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (lambda answer: Answer(200, {}, answer.body), "ignores Range, and would send all 307207 bytes again; remove "),
        (lambda answer: Answer(206, {"Content-Range": "bytes 0-9/10"}, answer.body), "and sends bytes 0-9/10"),
        (lambda answer: Answer(206, {}, answer.body), "and sends others"),
        (lambda answer: Answer(206, answer.headers, answer.body + b"more"), "sends more than the 307207 bytes"),
    ],
)
def test_a_registry_that_sends_other_bytes_than_were_asked_for_is_told(
    faulty: FaultyRegistry,
    published: Path,
    tmp_path: Path,
    message: Callable[..., str],
    changed: Callable[[Answer], Answer],
    said: str,
) -> None:
    address, _ = large(faulty, published)

    def change(request: Request, answer: Answer) -> Answer:
        if request.path == address:
            return changed(answer) if request.range else Answer(200, {}, answer.body, cut=1000)
        return answer

    faulty.changed = change
    told = message(pull, faulty.host, tmp_path / "pulled")
    assert said in told
    begun = tmp_path / "pulled/encoder/.tiny-encoder.pulling/tiny-encoder/onnx/graph_int8.onnx.data"
    assert begun.stat().st_size <= large(faulty, published)[1]
    if "remove" in said:
        assert str(begun) in told


@pytest.mark.parametrize("name", ["onnx/graph_int8.onnx.data", "manifest.json"])
def test_a_byte_that_is_another_one_is_told(
    faulty: FaultyRegistry, published: Path, tmp_path: Path, message: Callable[..., str], name: str
) -> None:
    digest = f"sha256:{hashlib.sha256((published / name).read_bytes()).hexdigest()}"
    faulty.blobs[digest] = faulty.blobs[digest].replace(b"e", b"f", 1)
    assert "arrived with other bytes than were published" in message(pull, faulty.host, tmp_path / "pulled")
    assert not (tmp_path / "pulled/encoder/tiny-encoder").exists()
    del faulty.blobs[digest]
    assert "answered 404 (BLOB_UNKNOWN: not here)" in message(pull, faulty.host, tmp_path / "pulled")


def test_a_manifest_of_another_digest_is_told(
    faulty: FaultyRegistry, tmp_path: Path, message: Callable[..., str]
) -> None:
    digest = f"sha256:{hashlib.sha256(faulty.manifests['latest']).hexdigest()}"
    faulty.manifests[digest] += b" "
    assert "the registry sends other bytes" in message(pull, faulty.host, tmp_path / "pulled", f"@{digest}")


@pytest.mark.parametrize("path", ["../out", "/out", "encoder/../../out", "a//b", "a\\b", "a\nb", "./a"])
def test_a_path_that_leads_out_is_told(
    faulty: FaultyRegistry, tmp_path: Path, message: Callable[..., str], path: str
) -> None:
    manifest = json.loads(faulty.manifests["latest"])
    manifest["layers"][0]["annotations"]["org.cncf.model.filepath"] = path
    faulty.manifests["latest"] = json.dumps(manifest).encode()
    assert "leads out of the release" in message(pull, faulty.host, tmp_path / "pulled")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"<html>", "no manifest of an image"),
        (b"[]", "no manifest of an image"),
        (b'{"manifests": []}', "no manifest of an image"),
        (b'{"layers": [{"annotations": {"org.cncf.model.filepath": "a"}}]}', "no manifest of an image"),
        (b'{"layers": [{"annotations": []}, 3]}', "no manifest of an image"),
        (b'{"layers": []}', "nothing published there"),
        (b"[" * 10**6, "no manifest of an image"),
        (b" " * (2**22 + 1), "not a release"),
    ],
)
def test_what_is_no_release_is_told(
    faulty: FaultyRegistry, tmp_path: Path, message: Callable[..., str], content: bytes, said: str
) -> None:
    faulty.manifests["latest"] = content
    assert said in message(pull, faulty.host, tmp_path / "pulled")


def test_a_file_that_is_twice_or_of_another_size_is_told(
    faulty: FaultyRegistry, tmp_path: Path, message: Callable[..., str]
) -> None:
    manifest = json.loads(faulty.manifests["latest"])
    faulty.manifests["latest"] = json.dumps({**manifest, "layers": manifest["layers"] * 2}).encode()
    assert "twice in the manifest" in message(pull, faulty.host, tmp_path / "pulled")
    (layer,) = (one for one in manifest["layers"] if one["annotations"]["org.cncf.model.filepath"] == GRAPH)
    layer["size"] += 1
    faulty.manifests["latest"] = json.dumps(manifest).encode()
    assert "307208 bytes in the registry, 307207 as published" in message(pull, faulty.host, tmp_path / "pulled")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (error(401, "UNAUTHORIZED", "who are you"), "it wants credentials: docker login"),
        (error(403, "DENIED", "no"), "403 (DENIED: no)"),
        (Answer(429), "answered 429; try again later"),
        (Answer(503, {}, b"<html>"), "answered 503; try again later"),
        (Answer(404, {}, b"<html>"), "is no OCI registry"),
    ],
)
def test_a_refusal_is_told_in_one_line(
    faulty: FaultyRegistry, tmp_path: Path, message: Callable[..., str], answer: Answer, said: str
) -> None:
    faulty.fault = lambda _: answer
    assert said in message(pull, faulty.host, tmp_path / "pulled")


def test_a_public_release_needs_no_credentials(faulty: FaultyRegistry, published: Path, tmp_path: Path) -> None:
    faulty.bearer = faulty.public = True
    (found,) = pull(faulty.host, tmp_path / "pulled")
    assert_whole(found.folder, published)


def test_credentials_do_not_follow_a_redirect(
    faulty: FaultyRegistry,
    published: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    message: Callable[..., str],
) -> None:
    faulty.bearer = True
    log_in(monkeypatch, tmp_path / "docker", faulty.host)
    with faulty_registry() as storage:
        storage.blobs = faulty.blobs
        faulty.changed = lambda request, answer: (
            Answer(307, {"Location": f"http://{storage.host}/v2/{NAME}/{request.path}"})
            if request.path.startswith("blobs/") and answer.status < 300
            else answer
        )
        (found,) = pull(faulty.host, tmp_path / "pulled")
        assert_whole(found.folder, published)
        assert len(storage.requests) > 5
        storage.bearer = True  # asks for them
        assert "401" in message(pull, faulty.host, tmp_path / "again")
        assert not any(one.authorization or one.path == "token" for one in storage.requests)


@pytest.mark.parametrize("realm", ["http://tokens.example/get", "file:///etc/passwd", ""])
def test_a_password_is_not_sent_where_others_could_listen(
    faulty: FaultyRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, message: Callable[..., str], realm: str
) -> None:
    log_in(monkeypatch, tmp_path / "docker", faulty.host)
    challenge = {"WWW-Authenticate": f'Bearer realm="{realm}",service="tests"'}
    faulty.fault = lambda _: error(401, "UNAUTHORIZED", "authentication required", challenge)
    assert "not over https" in message(pull, faulty.host, tmp_path / "pulled")


def test_other_hosts_are_asked_over_https_alone() -> None:
    session = Registry(Reference.parse("oci://registry.example/model"))._session
    with pytest.raises(requests.exceptions.InvalidSchema):
        session.get_adapter("http://registry.example/")


def test_the_extra_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, message: Callable[..., str]) -> None:
    for name in ("sources.oci", "registry.client", "registry.manifest"):
        monkeypatch.delitem(sys.modules, f"qwen_omni_onnx.{name}", raising=False)
    for name in [name for name in sys.modules if name.partition(".")[0] == "oras"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "oras", None)
    assert "pip install 'oras>=0.2.43'" in message(opened, "oci://registry.example/model")
