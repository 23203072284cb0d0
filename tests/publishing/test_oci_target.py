"""Publishing to an OCI registry: to a real one, and to one that misbehaves."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import oras.provider
import pytest
from cli import call
from conftest import NAME as COMPONENT
from keys import key_pair
from oci_registries import (
    NAME,
    PASSWORD,
    Answer,
    Cut,
    FaultyRegistry,
    Request,
    docker_registry,
    error,
    faulty_registry,
    log_in,
    no_credentials,
)
from releases import WEIGHTS, write_published

from publish.__main__ import publish
from publish.release import opened, release
from publish.sign import Signer
from publish.targets import upload
from qwen_omni_onnx.registry.client import ATTEMPTS, Reference, Registry

Sent = list[tuple[str, str]]
GRAPH = "encoder/tiny-encoder/onnx/graph_int8.onnx.data"


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    no_credentials(monkeypatch, tmp_path)


@pytest.fixture
def real(tmp_path: Path) -> Iterator[str]:
    with docker_registry(tmp_path / "registry") as host:
        yield host


@pytest.fixture
def faulty() -> Iterator[FaultyRegistry]:
    with faulty_registry() as registry:
        yield registry


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Sent:
    """Methods and addresses of all requests that send something."""
    found: Sent = []
    send = Registry.send

    def noted(self: Registry, method: str, location: str, what: str, **options: Any) -> Any:
        if method not in ("GET", "HEAD"):
            found.append((method, location))
        return send(self, method, location, what, **options)

    monkeypatch.setattr(Registry, "send", noted)
    return found


def put(host: str, folders: Mapping[str, Path], signer: Signer | None = None, tag: str = "v1") -> None:
    release(folders, opened(f"oci://{host}/{NAME}:{tag}"), signer, dry_run=False)


def manifest_of(host: str, tag: str = "v1") -> dict[str, Any]:
    content = Registry(Reference.parse(f"oci://{host}/{NAME}")).manifest(tag, 2**20)
    assert content is not None
    manifest: dict[str, Any] = json.loads(content)
    return manifest


def paths_of(host: str) -> set[str]:
    return {layer["annotations"]["org.cncf.model.filepath"] for layer in manifest_of(host)["layers"]}


def test_what_the_gate_passed_is_signed_published_pulled_and_verified(
    gated: Path, real: str, sent: Sent, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    private, public = key_pair(tmp_path)
    to = f"oci://{real}/{NAME}:v1"
    publish([COMPONENT], to=to, sign_key=private)
    (published,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("published: "))
    sent.clear()
    publish([COMPONENT], to=to, sign_key=private)
    assert not sent
    assert "up to date: nothing was sent" in capsys.readouterr().out
    for source in (to, published.removeprefix("published: ")):
        call("pull", source, "--to", str(tmp_path / "pulled"), "--key", str(public))
    assert "there already" in capsys.readouterr().out
    (folder,) = (tmp_path / "pulled" / COMPONENT).iterdir()
    call("verify", str(folder), "--key", str(public))


def test_others_fetch_one_graph_or_all_by_their_own_tools(real: str, tmp_path: Path) -> None:
    folder = write_published(tmp_path / "published", "encoder")
    put(real, {"encoder": folder})
    client = oras.provider.Registry(real, insecure=True)
    target = f"{real}/{NAME}:v1"
    (digest,) = (
        layer["digest"]
        for layer in client.get_manifest(target)["layers"]
        if layer["annotations"]["org.cncf.model.filepath"] == GRAPH
    )
    client.download_blob(target, digest, str(tmp_path / "graph"))
    assert (tmp_path / "graph").read_bytes() == (folder / "onnx/graph_int8.onnx.data").read_bytes()
    client.pull(target, outdir=str(tmp_path / "all"))
    for path in folder.rglob("*"):
        if path.is_file():
            assert (tmp_path / "all/encoder/tiny-encoder" / path.relative_to(folder)).read_bytes() == path.read_bytes()


def test_a_release_is_an_artifact_of_the_model_specification(real: str, tmp_path: Path) -> None:
    put(real, {"encoder": write_published(tmp_path, "encoder")})
    manifest = manifest_of(real)
    assert manifest["artifactType"] == "application/vnd.cncf.model.manifest.v1+json"
    assert manifest["config"]["mediaType"] == "application/vnd.cncf.model.config.v1+json"
    kinds = {layer["annotations"]["org.cncf.model.filepath"]: layer["mediaType"] for layer in manifest["layers"]}
    names = {path.removeprefix("encoder/tiny-encoder/"): kind for path, kind in kinds.items()}
    form = "application/vnd.cncf.model.{}.v1.raw"
    assert names["onnx/graph.onnx"] == names["onnx/graph.onnx.data"] == form.format("weight")
    assert names["config.json"] == names["manifest.json"] == form.format("weight.config")
    assert names["README.md"] == names["LICENSE"] == form.format("doc")
    assert names["golden/golden.safetensors"] == form.format("dataset")
    registry = Registry(Reference.parse(f"oci://{real}/{NAME}"))
    config = b"".join(registry.blob(manifest["config"]["digest"], 0, manifest["config"]["size"], "config"))
    assert json.loads(config)["modelfs"] == {
        "type": "layers",
        "diffIds": [layer["digest"] for layer in manifest["layers"]],
    }


def test_the_same_files_are_the_same_release_in_whatever_order_they_come(real: str, tmp_path: Path) -> None:
    folders = {name: write_published(tmp_path, name) for name in ("encoder", "talker")}
    put(real, folders)
    put(real, {"talker": folders["talker"]}, tag="v2")
    put(real, {"encoder": folders["encoder"]}, tag="v2")
    assert manifest_of(real, "v1") == manifest_of(real, "v2")


def test_a_component_is_replaced_and_the_others_stay(real: str, tmp_path: Path, sent: Sent) -> None:
    put(real, {name: write_published(tmp_path, name) for name in ("encoder", "talker")})
    before = paths_of(real)
    changed = write_published(tmp_path / "new", "encoder", {"vocab.txt": b"new"})
    sent.clear()
    put(real, {"encoder": changed})
    assert [method for method, _ in sent] == ["POST", "PUT"] * 3 + ["PUT"]  # the file, the manifest, the configuration
    assert paths_of(real) == before | {"encoder/tiny-encoder/vocab.txt"}
    put(real, {"encoder": write_published(tmp_path / "newest", "encoder")})
    assert paths_of(real) == before


def test_a_private_registry_takes_who_is_logged_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, message: Callable[..., str]
) -> None:
    folders = {"encoder": write_published(tmp_path, "encoder")}
    with docker_registry(tmp_path / "private", private=True) as host:
        assert f"docker login {host}" in message(put, host, folders)
        log_in(monkeypatch, tmp_path / "docker", host, "another")
        assert "does not accept the credentials" in message(put, host, folders)
        log_in(monkeypatch, tmp_path / "docker", host)
        put(host, folders)
        monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "nowhere"))
        monkeypatch.setenv("ORAS_USER", "tester")
        monkeypatch.setenv("ORAS_PASS", PASSWORD)
        put(host, folders)
        monkeypatch.delenv("ORAS_USER")
        (tmp_path / "docker/config.json").write_text("{")
        monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
        assert "no credentials can be read" in message(put, host, folders)


def test_a_helper_that_docker_knows_is_asked_for_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper = tmp_path / "docker-credential-tests"
    helper.write_text(f'#!/bin/sh\ncat > {tmp_path}/asked\necho \'{{"Username": "tester", "Secret": "{PASSWORD}"}}\'\n')
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with docker_registry(tmp_path / "private", private=True) as host:
        (tmp_path / "config.json").write_text(json.dumps({"credHelpers": {host: "tests"}}))
        monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
        put(host, {"encoder": write_published(tmp_path, "encoder")})
        assert (tmp_path / "asked").read_text() == host


def test_a_dry_run_sends_nothing(
    faulty: FaultyRegistry, tmp_path: Path, sent: Sent, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = {"encoder": write_published(tmp_path, "encoder")}
    release(folders, opened(f"oci://{faulty.host}/{NAME}:v1"), None, dry_run=True)
    assert not sent
    assert "0.6 MB in 9 to be sent" in capsys.readouterr().out


def test_a_large_file_goes_in_pieces(real: str, tmp_path: Path, sent: Sent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload, "_PIECE", 2**17)
    put(real, {"encoder": write_published(tmp_path, "encoder")})
    assert [method for method, _ in sent].count("PATCH") == 6  # three for each of the two graphs
    assert GRAPH in paths_of(real)


def test_a_file_is_not_read_into_memory(
    faulty: FaultyRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    largest, read = [0], upload._Part.read

    def noted(self: upload._Part, size: int = -1) -> bytes:
        block = read(self, size)
        largest[0] = max(largest[0], len(block))
        return block

    monkeypatch.setattr(upload._Part, "read", noted)
    put(faulty.host, {"encoder": write_published(tmp_path, "encoder")})
    assert 0 < largest[0] < len(WEIGHTS) / 2


def test_a_token_is_asked_for_with_the_credentials(
    faulty: FaultyRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, message: Callable[..., str]
) -> None:
    faulty.bearer = True
    folders = {"encoder": write_published(tmp_path, "encoder")}
    assert "docker login" in message(put, faulty.host, folders)
    log_in(monkeypatch, tmp_path / "docker", faulty.host)
    put(faulty.host, folders)
    assert GRAPH in paths_of(faulty.host)


def test_a_cut_upload_goes_on_where_it_was(
    faulty: FaultyRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload, "_PIECE", 2**17)
    cuts = [50_000]

    def cut(request: Request) -> Cut | None:
        return Cut(cuts.pop()) if request.method == "PATCH" and request.range.startswith("131072-") and cuts else None

    faulty.fault = cut
    folder = write_published(tmp_path, "encoder")
    put(faulty.host, {"encoder": folder})
    assert not cuts
    data = [(folder / f"onnx/graph{kind}.onnx.data").stat().st_size for kind in ("", "_int8")]
    assert faulty.sent("PATCH") == sum(data)


def test_a_push_that_failed_leaves_the_tag_and_goes_on_file_by_file(
    faulty: FaultyRegistry, tmp_path: Path, message: Callable[..., str]
) -> None:
    put(faulty.host, {"encoder": write_published(tmp_path, "encoder")})
    before = manifest_of(faulty.host)
    new = write_published(tmp_path / "new", "encoder", {"a.json": b"1", "z.json": b"2"})
    uploads = iter(range(2))  # the first two come through

    def refused(request: Request) -> Answer | None:
        over = request.method == "PUT" and next(uploads, None) is None
        return error(403, "DENIED", "no") if over else None

    faulty.fault = refused
    assert "403 (DENIED: no)" in message(put, faulty.host, {"encoder": new})
    assert manifest_of(faulty.host) == before
    faulty.fault = lambda _: None
    faulty.requests.clear()
    put(faulty.host, {"encoder": new})
    assert "encoder/tiny-encoder/z.json" in paths_of(faulty.host)
    blobs = [one for one in faulty.requests if one.method == "PUT" and one.path.startswith("blobs/")]
    assert len(blobs) == 2  # of four: two files, the manifest, and the configuration


@pytest.mark.parametrize("status", [404, 416, 501])
def test_a_registry_that_takes_no_pieces_gets_the_file_whole(
    faulty: FaultyRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setattr(upload, "_PIECE", 2**17)
    faulty.fault = lambda request: Answer(status) if request.method == "PATCH" else None
    put(faulty.host, {"encoder": write_published(tmp_path, "encoder")})
    assert GRAPH in paths_of(faulty.host)


def test_an_upload_that_the_registry_has_forgotten_is_begun_again(
    faulty: FaultyRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upload, "_PIECE", 2**17)
    cuts = [1]

    def forget(request: Request) -> Cut | None:
        if request.method == "GET" and request.path.startswith("blobs/uploads/"):
            faulty.uploads.clear()
        return Cut(cuts.pop()) if request.method == "PATCH" and cuts else None

    faulty.fault = forget
    put(faulty.host, {"encoder": write_published(tmp_path, "encoder")})
    assert GRAPH in paths_of(faulty.host)


@pytest.mark.parametrize("method", ["PUT", "POST", "HEAD"])
def test_a_busy_registry_is_asked_again(faulty: FaultyRegistry, tmp_path: Path, method: str) -> None:
    faults: list[Answer | Cut] = [Answer(503), Cut(10), Answer(429, {"Retry-After": "0"})]
    faulty.fault = lambda request: faults.pop() if request.method == method and faults else None
    put(faulty.host, {"encoder": write_published(tmp_path, "encoder")})
    assert not faults
    assert GRAPH in paths_of(faulty.host)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (error(401, "UNAUTHORIZED", "who are you"), "it wants credentials"),
        (error(403, "DENIED", "requested access\nis denied"), "403 (DENIED: requested access\\nis denied)"),
        (error(403, "DENIED", "quota exceeded"), "more than the registry takes"),
        (Answer(413), "more than the registry takes"),
        (Answer(404, {}, b"<html>"), "whether this is an OCI registry"),
        (Answer(405), "whether this is an OCI registry"),
        (error(400, "NAME_INVALID", "invalid repository name"), "400 (NAME_INVALID: invalid repository name); check"),
        (Answer(429), "answered 429; try again later"),
        (Answer(500), "answered 500; try again later"),
        (Answer(202), "does not say where to send it"),
        (Cut(0), "cannot be reached"),
    ],
)
def test_a_refusal_is_told_in_one_line(
    faulty: FaultyRegistry, tmp_path: Path, message: Callable[..., str], answer: Answer | Cut, said: str
) -> None:
    faulty.fault = lambda request: answer if request.method == "POST" else None
    assert said in message(put, faulty.host, {"encoder": write_published(tmp_path, "encoder")})
    assert not faulty.manifests
    assert sum(one.method == "POST" for one in faulty.requests) in (1, ATTEMPTS)


def test_a_server_that_is_no_registry_is_told(faulty: FaultyRegistry, message: Callable[..., str]) -> None:
    faulty.fault = lambda _: Answer(404, {}, b"<html>")
    assert "is no OCI registry" in message(opened, f"oci://{faulty.host}/{NAME}:v1")
    faulty.fault = lambda _: Answer(200, {}, b"<html>")
    assert "no manifest" in message(opened, f"oci://{faulty.host}/{NAME}:v1")
    faulty.close()
    assert "cannot be reached" in message(opened, f"oci://{faulty.host}/{NAME}:v1")


def test_a_file_that_changes_meanwhile_is_refused(
    faulty: FaultyRegistry, tmp_path: Path, message: Callable[..., str]
) -> None:
    folder = write_published(tmp_path, "encoder")
    place = folder / "config.json"

    def change(request: Request) -> None:
        if request.method == "POST":
            place.write_bytes(b"[]\n")

    faulty.fault = change
    assert "DIGEST_INVALID" in message(put, faulty.host, {"encoder": folder})


def test_credentials_go_to_the_registry_alone(
    faulty: FaultyRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faulty.bearer = True
    log_in(monkeypatch, tmp_path / "docker", faulty.host)
    with faulty_registry() as storage:

        def elsewhere(request: Request, answer: Answer) -> Answer:
            location = answer.headers.get("Location", "").replace("/v2/", f"http://{storage.host}/v2/", 1)
            storage.uploads = faulty.uploads
            storage.blobs = faulty.blobs
            return Answer(answer.status, {**answer.headers, "Location": location}, answer.body)

        faulty.changed = elsewhere
        put(faulty.host, {"encoder": write_published(tmp_path, "encoder")})
        assert storage.sent("PUT") > len(WEIGHTS)
        assert not any(one.authorization for one in storage.requests)


def test_something_else_at_the_tag_is_left_alone(faulty: FaultyRegistry, message: Callable[..., str]) -> None:
    faulty.manifests["v1"] = json.dumps({"schemaVersion": 2, "config": {}, "layers": []}).encode()
    assert "holds something else" in message(opened, f"oci://{faulty.host}/{NAME}:v1")
    faulty.manifests["v1"] = json.dumps({"schemaVersion": 2, "manifests": []}).encode()
    assert "no manifest of an image or an artifact" in message(opened, f"oci://{faulty.host}/{NAME}:v1")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("oci://ghcr.io/me/model", "give oci://ghcr.io/me/model:TAG"),
        ("oci://ghcr.io/me/model@sha256:" + 64 * "0", "give oci://ghcr.io/me/model:TAG"),
        ("oci://ghcr.io/Me/model:v1", "in lower case"),
        ("oci://ghcr.io/me/model:a b", "no name in a registry"),
        ("oci://ghcr.io", "no name in a registry"),
        ("oci://user:password@ghcr.io/me/model:v1", "no name in a registry"),
        ("oci://ghcr.io/../model:v1", "no name in a registry"),
        ("oci://ghcr.io/me/model\n:v1", "no name in a registry"),
    ],
)
def test_a_name_that_is_none_is_told(message: Callable[..., str], name: str, said: str) -> None:
    assert said in message(opened, name)
