"""Pulling a release from the Hugging Face Hub: what is asked for, and what is said when something is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import cli
import pytest
from hub_server import REPOSITORY, TOKEN, Answer, Request, error
from hub_upload_server import UploadHub, hang_up, upload_hub
from keys import key_pair
from releases import NBYTES, published

from publish.release import opened as target
from publish.release import release
from publish.sign import Signer
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.download import Download, download
from qwen_omni_onnx.sources import opened
from qwen_omni_onnx.trust import Trust

NAME = f"hf://{REPOSITORY}"
DATA = "onnx/thinker.onnx.data"

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # how huggingface_hub sends files


@pytest.fixture
def empty(monkeypatch: pytest.MonkeyPatch) -> Iterator[UploadHub]:
    with upload_hub(monkeypatch) as server:
        server.token = TOKEN
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    return key_pair(tmp_path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return published(tmp_path / "here", "thinker")


@pytest.fixture
def hub(empty: UploadHub, folder: Path, keys: tuple[Path, Path]) -> UploadHub:
    """A hub with a signed release."""
    release({"thinker": folder}, target(NAME), Signer(keys[0]), name=NAME, dry_run=False)
    empty.behave()
    return empty


@pytest.fixture
def to(tmp_path: Path) -> Path:
    return tmp_path / "pulled"


def pull(to: Path, name: str = NAME, trust: Trust | None = None) -> list[Download]:
    return list(download(name, to, trust=trust))


def refused(to: Path, name: str = NAME, trust: Trust | None = None) -> str:
    """Pull in vain; return the message, which is one line; no folder is in its place."""
    with pytest.raises(UserError) as caught:
        pull(to, name, trust)
    message = str(caught.value)
    assert len(message.splitlines()) == 1, message
    assert TOKEN not in message
    assert not [path for path in to.glob("*/*") if not path.name.startswith(".")]
    return message


def assert_whole(to: Path, folder: Path) -> None:
    pulled = to / "thinker" / folder.name
    names = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    assert {path.relative_to(pulled) for path in pulled.rglob("*") if path.is_file()} == {*names, Path("model.sig")}
    assert all((pulled / name).read_bytes() == (folder / name).read_bytes() for name in names)


def of_weights(request: Request) -> bool:
    return DATA in request.name and request.method == "GET"


def test_a_signed_release_goes_to_the_hub_and_comes_back(
    empty: UploadHub, gated: Path, keys: tuple[Path, Path], to: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A component of the pipeline, by the commands; whoever has its key sees who signed, and what it computes."""
    from publish.__main__ import publish

    private, public = keys
    publish(["projection"], to=NAME, sign_key=private)
    empty.behave()
    publish(["projection"], to=NAME, sign_key=private)
    assert not empty.asked("hub", method="POST")
    assert not empty.uploaded()

    cli.call("pull", NAME, "--to", str(to), "--key", str(public), "--float32")
    cli.call("verify", str(to), "--key", str(public))

    said = capsys.readouterr()
    assert "up to date: nothing was sent" in said.out
    assert f"signed by the owner of {public}" in said.out
    assert said.err == ""


def test_a_pull_brings_every_byte_and_asks_for_none_twice(hub: UploadHub, folder: Path, to: Path) -> None:
    (found,) = pull(to)

    assert_whole(to, folder)
    assert found.signed
    assert sum(request.sent for request in hub.asked("storage")) == NBYTES


def test_a_second_pull_fetches_no_weights(hub: UploadHub, to: Path) -> None:
    pull(to)
    hub.behave()

    (found,) = pull(to)

    assert found.fetched == 0
    assert not hub.asked("storage")


def test_everything_is_read_at_the_commit_that_the_revision_named_at_first(hub: UploadHub, to: Path) -> None:
    source = opened(NAME)
    before = {path: hub.head()[path] for path in source.paths()}
    hub.commit(dict.fromkeys(before, b"another"))

    assert {path: source.read(path) for path in before} == before


@pytest.mark.parametrize("revision", ["main", "v1", ""])
def test_a_branch_or_a_commit_can_be_pulled(hub: UploadHub, folder: Path, to: Path, revision: str) -> None:
    commit = hub.branches["main"]
    hub.branches["v1"] = commit

    pull(to, f"{NAME}@{revision or commit}")

    assert_whole(to, folder)


def test_the_token_is_sent_to_the_hub_alone(hub: UploadHub, folder: Path, to: Path) -> None:
    hub.token = None  # then a request counts as authorized that has any token

    pull(to)

    assert all(request.authorized for request in hub.asked("hub"))
    assert hub.asked("storage")
    assert not [request for request in hub.asked("storage") if request.authorized]


def test_nothing_is_kept_in_a_cache(hub: UploadHub, to: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))

    pull(to)

    assert not (tmp_path / "cache").exists()


# Interruptions


def test_a_cut_download_goes_on_where_it_was(hub: UploadHub, folder: Path, to: Path) -> None:
    hub.misbehave(lambda _, a: a.but(cut=70_000), host="storage", when=of_weights, times=1)
    hub.misbehave(lambda _, a: a.but(cut=0), host="storage", when=of_weights)
    message = refused(to)
    hub.behave()

    pull(to)

    assert "the connection was cut, 5 times in a row, at byte 70000; run again to go on" in message
    assert [request.span for request in hub.asked("storage")] == [(70_000, NBYTES)]
    assert_whole(to, folder)


def test_an_address_of_the_storage_that_has_expired_is_asked_for_anew(hub: UploadHub, folder: Path, to: Path) -> None:
    hub.misbehave(error(403), host="storage", times=1)

    pull(to)

    assert_whole(to, folder)


@pytest.mark.parametrize("answer", [error(503), error(429), hang_up()], ids=["503", "429", "cut"])
@pytest.mark.parametrize(("host", "name"), [("hub", "/api/"), ("hub", "manifest.json"), ("storage", "")])
def test_a_fault_that_passes_is_waited_for(
    hub: UploadHub, folder: Path, to: Path, host: str, name: str, answer: Answer
) -> None:
    hub.misbehave(answer, host=host, name=name, times=2)

    pull(to)

    assert_whole(to, folder)


# Trust


def test_a_release_that_somebody_else_has_signed_is_refused_before_its_weights_are_asked_for(
    hub: UploadHub, to: Path, tmp_path: Path
) -> None:
    message = refused(to, trust=Trust(key=key_pair(tmp_path, "other")[1]))

    assert "not signed by the owner of" in message
    assert not hub.asked("storage")


def test_a_byte_that_a_proxy_rewrites_is_noticed(
    hub: UploadHub, folder: Path, keys: tuple[Path, Path], to: Path
) -> None:
    hub.misbehave(lambda _, a: a.but(body=bytes([a.body[0] ^ 1]) + a.body[1:]), host="storage", when=of_weights)

    message = refused(to, trust=Trust(key=keys[1]))

    assert message.endswith(f"{DATA}: arrived with other bytes than were published; pull again")
    hub.behave()
    pull(to, trust=Trust(key=keys[1]))
    assert_whole(to, folder)


# What is wrong


def test_a_server_that_sends_the_whole_file_is_taken_at_the_beginning_and_told_later(
    hub: UploadHub, folder: Path, to: Path
) -> None:
    def whole(request: Request, usual: Answer) -> Answer:
        return Answer(200, {}, (folder / DATA).read_bytes(), cut=50_000 if request.span[0] == 0 else None)

    hub.misbehave(whole, host="storage", when=of_weights)

    message = refused(to)

    assert "the server ignores Range" in message
    assert hub.asked("storage")[-1].span == (50_000, NBYTES)


def test_more_bytes_than_there_are_are_not_written(hub: UploadHub, to: Path) -> None:
    hub.misbehave(lambda _, a: a.but(body=a.body * 2), host="storage", when=of_weights)

    assert "the server sent more than the bytes up to" in refused(to)
    assert max(path.stat().st_size for path in to.rglob("*.data")) <= NBYTES


def test_another_size_than_was_published_is_told(hub: UploadHub, to: Path) -> None:
    path = next(path for path in hub.head() if path.endswith(DATA))
    hub.commit({**hub.head(), path: bytes(NBYTES + 1)})

    assert f"{NBYTES + 1} bytes there, {NBYTES} were published; do not use it" in refused(to)


def test_a_file_that_is_not_there_is_told(hub: UploadHub, to: Path) -> None:
    hub.commit({path: content for path, content in hub.head().items() if not path.endswith(DATA)})

    assert f"{DATA} in it; the release is not whole" in refused(to)


def test_a_manifest_that_is_too_large_is_not_read(hub: UploadHub, to: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qwen_omni_onnx.sources.hub.SMALL", 100)

    assert "100 is the most that is taken" in refused(to)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (error(401), "the token in HF_TOKEN is not accepted"),
        (error(403), "the token in HF_TOKEN may not do that"),
        (error(403, "GatedRepo", "Access is restricted"), "access has to be asked for on the hub first"),
        (error(429), "try again later"),
        (error(500), "try again later"),
        (Answer(404, {}, b"<html>"), "answered 404; check the network"),
        (hang_up(), "check the network"),
    ],
)
@pytest.mark.parametrize("name", ["/api/", "manifest.json"])
def test_a_hub_that_refuses_is_told(hub: UploadHub, to: Path, name: str, answer: Answer, said: str) -> None:
    for method in ("GET", "HEAD"):
        hub.misbehave(answer, host="hub", method=method, name=name)

    assert said in refused(to)


@pytest.mark.parametrize(
    "body",
    [
        b"", b"null", b"[]", b"<html>", b'{"siblings": [1]}', b'{"siblings": [{"rfilename": 1}]}',
        b'{"siblings": [{"rfilename": "x", "size": Infinity, "blobId": ""}]}',
    ],
)  # fmt: skip
def test_a_page_that_is_no_list_of_files_is_told(hub: UploadHub, to: Path, body: bytes) -> None:
    hub.misbehave(Answer(200, {}, body), host="hub", name=hub.branches["main"])

    assert "does not list the files of commit" in refused(to)


def test_a_repository_without_a_release_is_told(empty: UploadHub, to: Path) -> None:
    empty.commit({"README.md": b"# Mine"})

    assert f"{NAME}: nothing published there" in refused(to)


def test_what_is_not_there_is_told(hub: UploadHub, to: Path) -> None:
    assert "someone/else: no such repository" in refused(to, "hf://someone/else")
    assert "no such revision (revision v9); check what follows the @" in refused(to, f"{NAME}@v9")


@pytest.mark.parametrize("name", ["hf://x", "hf://a/b/c", "hf://datasets/a/b", "hf://a/b@", "hf://../b", "hf://a\n/b"])
def test_what_names_no_repository_is_told(message: Callable[..., str], name: str) -> None:
    assert "give" in message(opened, name)


def test_a_wrong_endpoint_is_told(message: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "huggingface.co")

    assert message(opened, NAME).startswith("HF_ENDPOINT does not begin with http")
