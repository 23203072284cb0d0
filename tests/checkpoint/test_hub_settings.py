"""What the environment and the parameters say of the hub: a setting that is wrong is told by its name, in one line."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import ROOT
from hub_server import FIRST, REPOSITORY, Answer, Hub, checkpoint, hub_with, point_huggingface_hub_at
from huggingface_hub import constants
from huggingface_hub.utils import close_session
from pydantic import TypeAdapter, ValidationError

from components import component
from omni.forms import Repository, Revision
from omni.params import load
from pull.client import hub_snapshot
from pull.plan import config_of, plan
from qwen_omni_onnx.common.hub_name import is_repository

PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
COMMIT_FILE = "/api/"


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in (*PROXIES, *map(str.lower, PROXIES), "no_proxy", "SSL_CERT_FILE", "SSL_CERT_DIR", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    close_session()
    yield
    close_session()  # of what a test set


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr("huggingface_hub.utils._http.time", SimpleNamespace(sleep=lambda seconds: None))
    with hub_with(checkpoint()) as server:
        point_huggingface_hub_at(monkeypatch, server.endpoint)
        yield server


@pytest.fixture
def refused(message: Callable[..., str]) -> Callable[[], str]:
    return lambda: message(hub_snapshot, REPOSITORY, "main")


def pull_plan() -> object:
    snapshot, part = hub_snapshot(REPOSITORY, "main"), component("projection")
    return plan(snapshot, part, config_of(snapshot, part))


@pytest.mark.parametrize(
    ("endpoint", "fault"),
    [
        ("huggingface.co", "does not begin with http:// or https://"),
        ("", "does not begin with http:// or https://"),
        ("ftp://x", "does not begin with http:// or https://"),
        (" https://huggingface.co", "does not begin with http:// or https://"),
        ("http://a b", "has a space, a ? or a # in it"),
        ("http://a\n", "has a space, a ? or a # in it"),
        ("https://huggingface.co?x=1", "has a space, a ? or a # in it"),
        ("http://", "names no host, or a port that there cannot be"),
        ("http://[::1", "names no host, or a port that there cannot be"),
        ("http://localhost:x", "names no host, or a port that there cannot be"),
        ("http://localhost:99999", "names no host, or a port that there cannot be"),
        (f"http://{'a' * 64}.org", "names no host, or a port that there cannot be"),
    ],
)
def test_an_endpoint_that_is_no_address_is_told(
    monkeypatch: pytest.MonkeyPatch, refused: Callable[[], str], endpoint: str, fault: str
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)

    assert refused() == f"HF_ENDPOINT {fault}; give an address such as https://huggingface.co, or unset it"


@pytest.mark.parametrize("name", PROXIES)
@pytest.mark.parametrize(
    ("proxy", "said"),
    [
        ("socks5://localhost:1", "names a SOCKS proxy: pip install socksio"),
        ("socks4://localhost:1", "names no proxy that can be used; give http://HOST:PORT"),
        ("ftp://user:secret@localhost", "names no proxy that can be used; give http://HOST:PORT"),
        ("http://[::1", "names no proxy that can be used; give http://HOST:PORT"),
    ],
)
def test_a_proxy_that_cannot_be_used_is_told_and_its_password_is_not(
    monkeypatch: pytest.MonkeyPatch, refused: Callable[[], str], name: str, proxy: str, said: str
) -> None:
    monkeypatch.setenv(name.lower(), proxy)

    message = refused()

    assert message.startswith(f"{name.lower()} {said}")
    assert "secret" not in message


def test_a_proxy_that_does_not_answer_is_told(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, refused: Callable[[], str]
) -> None:
    monkeypatch.delenv("NO_PROXY")
    monkeypatch.setenv("HTTP_PROXY", "127.0.0.1:9")

    assert refused().endswith("check the network, HTTP_PROXY")


@pytest.mark.parametrize("content", [None, b"", b"no certificate"])
def test_certificates_that_are_none_are_told(
    monkeypatch: pytest.MonkeyPatch, refused: Callable[[], str], tmp_path: Path, content: bytes | None
) -> None:
    if content is not None:
        (tmp_path / "ca.pem").write_bytes(content)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))

    message = refused()

    assert message.startswith("SSL_CERT_FILE: ")
    assert message.endswith("; name a file that can be used, or unset it")


@pytest.mark.parametrize("token", ["tökén", "a\x01b"])
def test_a_token_that_no_header_can_hold_is_told_and_not_shown(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, refused: Callable[[], str], token: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)

    assert refused() == "HF_TOKEN has characters in it that no header can hold; mend or unset it"


@pytest.mark.parametrize("content", [b"\xff\xfe", None, "tökén".encode()])
def test_a_file_of_a_token_that_cannot_be_used_is_told(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, refused: Callable[[], str], tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "token"
    path.mkdir() if content is None else path.write_bytes(content)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(path))

    assert refused().startswith(str(path))


def test_a_user_agent_that_no_header_can_hold_is_told(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, refused: Callable[[], str]
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_USER_AGENT_ORIGIN", "ö")

    assert refused().startswith("HF_HUB_USER_AGENT_ORIGIN has characters in it")


@pytest.mark.parametrize("name", ["HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT"])
@pytest.mark.parametrize("value", ["", "ten", "-1", "1e3", "9" * 30])
def test_a_timeout_that_is_none_is_told(
    monkeypatch: pytest.MonkeyPatch, refused: Callable[[], str], name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)

    assert refused() == f"{name}: {value!r} is no whole number of seconds; mend or unset it"


def test_a_login_that_the_environment_asks_for_and_cannot_be_had_is_told(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, refused: Callable[[], str]
) -> None:
    monkeypatch.setenv("HF_OIDC_RESOURCE", "someone/tiny-omni")

    assert refused().startswith("HF_OIDC_RESOURCE: ")


@pytest.mark.parametrize(
    "location",
    ["http://[::1", "http://localhost:99999/", "http://localhost:x/", f"http://{'a' * 64}/", f"/{'x' * 70000}"],
)
def test_a_redirect_to_no_address_is_told(hub: Hub, message: Callable[..., str], location: str) -> None:
    hub.misbehave(lambda _, answer: answer.with_header("Location", location), host="hub", method="HEAD", name=FIRST)

    assert f"{FIRST}: leads to an address that there cannot be" in message(pull_plan)


@pytest.mark.parametrize(
    "location", ["ftp://localhost/", "http://", "/", "//", "http://a b/", "javascript:x", "http://localhost:x/"]
)
@pytest.mark.parametrize("name", [COMMIT_FILE, "config.json"])
def test_a_redirect_to_elsewhere_is_told(hub: Hub, message: Callable[..., str], name: str, location: str) -> None:
    hub.misbehave(Answer(302, {"Location": location}), host="hub", name=name)

    message(pull_plan)


@pytest.mark.parametrize("status", [204, 304, 404, 407, 418, 451, 511, 600])
@pytest.mark.parametrize(("method", "name"), [("GET", COMMIT_FILE), ("GET", "config.json"), ("HEAD", FIRST)])
def test_an_answer_that_no_hub_gives_is_told(
    hub: Hub, message: Callable[..., str], method: str, name: str, status: int
) -> None:
    hub.misbehave(Answer(status, {}, b"<html>"), host="hub", method=method, name=name)

    message(pull_plan)


@pytest.mark.parametrize("body", [b"<html>Please log in</html>", b"", b'{"sha', b"null"])
@pytest.mark.parametrize("name", [COMMIT_FILE, "config.json", "model.safetensors.index.json"])
def test_a_page_instead_of_json_is_told(hub: Hub, message: Callable[..., str], name: str, body: bytes) -> None:
    """As a network gives that wants one to log in first."""
    hub.misbehave(Answer(200, {"Content-Type": "text/html"}, body), host="hub", name=name)

    message(pull_plan)


def test_an_address_that_is_no_hub_s_is_told(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, refused: Callable[[], str]
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    hub.misbehave(Answer(404, {}, b"<html>"), host="hub")

    assert refused().endswith("answered 404; check the network, HF_ENDPOINT")


@pytest.mark.parametrize(
    "name",
    ["", "x", "a/b/c", "a b/c", "tö/x", "../x", "./x", "a/..", "-a/b", "a/b-", "a--b/c", "a/b?", "a/b\n", "Qwen/",
     "x" * 97 + "/b", "https://huggingface.co/Qwen/Qwen2.5-Omni-7B"],
)  # fmt: skip
def test_what_is_no_repository_is_refused(name: str) -> None:
    with pytest.raises(ValidationError, match="give owner/name, as the hub does"):
        TypeAdapter(Repository).validate_python(name)


def test_what_is_a_repository_is_taken() -> None:
    assert all(map(is_repository, ["Qwen/Qwen2.5-Omni-7B", "someone/tiny_omni", "_a/b.c-d", "x" * 96 + "/b"]))


@pytest.mark.parametrize(
    "name", ["", "a b", " main", "a\nb", "a\0b", "../x", "a..b", "/a", "a/", ".", "-a", "a?b", "a^", "a:b", "x" * 251]
)
def test_what_is_no_revision_is_refused(name: str) -> None:
    with pytest.raises(ValidationError, match="give a branch, a tag or a commit"):
        TypeAdapter(Revision).validate_python(name)


@pytest.mark.parametrize("name", ["main", "refs/pr/1", "v1.0", "f" * 40, "fix/größe", "a#b", "a+b", "100%"])
def test_what_is_a_revision_is_taken(name: str) -> None:
    assert TypeAdapter(Revision).validate_python(name) == name


def test_the_usual_parameters_name_both() -> None:
    assert load(ROOT / "params.yaml").model.repository == "Qwen/Qwen2.5-Omni-7B"


@pytest.mark.parametrize(
    "setting",
    [
        {"HF_ENDPOINT": "http://[::1"},
        {"HTTPS_PROXY": "ftp://x"},
        {"HF_TOKEN": "tökén"},
        {"HF_HUB_ETAG_TIMEOUT": "ten"},
        {"SSL_CERT_FILE": "/nowhere"},
    ],
    ids=lambda setting: next(iter(setting)),
)
def test_the_command_names_the_setting_in_one_line(tmp_path: Path, setting: dict[str, str]) -> None:
    text = (ROOT / "params.yaml").read_text()
    (tmp_path / "params.yaml").write_text(text.replace("source: synthetic  ", "source: hub  ", 1))
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "HF_HOME": str(tmp_path), **setting}

    done = subprocess.run(
        [sys.executable, "-m", "pull", "projection", "--dry-run"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip

    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {next(iter(setting))}")
    assert len(done.stderr.splitlines()) == 1
