"""Releases on the Hugging Face Hub: what is sent, what is not sent again, and what is said when something is wrong."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hub_server import REPOSITORY, TOKEN, Answer, Request, error
from hub_upload_server import IDENTITY, UploadHub, hang_up, upload_hub
from keys import key_pair
from releases import published

from publish.release import opened, release
from publish.sign import Signer
from qwen_omni_onnx.common.errors import UserError

NAME = f"hf://{REPOSITORY}"
DATA = "onnx/thinker.onnx.data"

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # how huggingface_hub sends files


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[UploadHub]:
    with upload_hub(monkeypatch) as server:
        server.token = TOKEN
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return published(tmp_path, "thinker")


def put(*folders: Path, signer: Signer | None = None, name: str = NAME, dry_run: bool = False) -> None:
    release({folder.parent.name: folder for folder in folders}, opened(name), signer, name=name, dry_run=dry_run)


def refused(*folders: Path, name: str = NAME) -> str:
    """Publish in vain; return the message, which is one line."""
    with pytest.raises(UserError) as caught:
        put(*folders, name=name)
    message = str(caught.value)
    assert len(message.splitlines()) == 1, message
    assert TOKEN not in message
    return message


def on_disk(folder: Path) -> dict[str, bytes]:
    """The files of a published folder by their paths in a release."""
    root = folder.parent.parent
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def written(hub: UploadHub) -> list[Request]:
    return [r for method in ("POST", "PUT") for host in ("hub", "storage") for r in hub.asked(host, method=method)]


# What is sent


def test_a_release_is_one_commit_in_a_repository_that_is_made_and_private(
    hub: UploadHub, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(folder)

    there = hub.head()
    assert {path: there[path] for path in on_disk(folder)} == on_disk(folder)
    assert set(there) == {*on_disk(folder), "README.md", ".gitattributes"}
    assert hub.private
    assert len(hub.asked("hub", "/commit/", "POST")) == 1
    said = capsys.readouterr()
    assert f"{REPOSITORY}: made, and private" in said.out
    assert f"published: hf://{REPOSITORY}@{hub.branches['main']}\n" in said.out
    assert said.err == ""


def test_a_second_run_sends_nothing(hub: UploadHub, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(folder)
    hub.behave()

    put(folder)

    assert not written(hub)
    assert "up to date: nothing was sent" in capsys.readouterr().out


def test_a_signature_that_is_there_is_not_made_anew(hub: UploadHub, folder: Path, tmp_path: Path) -> None:
    signer = Signer(key_pair(tmp_path)[0])
    put(folder, signer=signer)
    hub.behave()

    put(folder, signer=signer)

    assert not written(hub)
    assert f"thinker/{folder.name}/model.sig" in hub.head()


def test_a_signature_of_these_files_stays_where_nobody_signs(hub: UploadHub, folder: Path, tmp_path: Path) -> None:
    put(folder, signer=Signer(key_pair(tmp_path)[0]))
    signed = hub.head()[f"thinker/{folder.name}/model.sig"]

    put(folder)
    put(published(tmp_path / "new", "thinker", seed=1))

    assert signed in hub.commits[list(hub.commits)[-2]].values()
    assert f"thinker/{folder.name}/model.sig" not in hub.head()  # over other files, it would be none


def test_a_dry_run_makes_nothing(hub: UploadHub, folder: Path) -> None:
    put(folder, dry_run=True)

    assert not written(hub)
    assert not hub.branches


def test_only_what_is_new_is_sent(hub: UploadHub, folder: Path, tmp_path: Path) -> None:
    put(folder)
    hub.behave()

    put(folder, published(tmp_path, "talker", nbytes=50_000, seed=1))

    assert hub.uploaded() == 50_000


def test_a_large_file_goes_in_pieces(hub: UploadHub, tmp_path: Path) -> None:
    large = published(tmp_path, "thinker", nbytes=400_000)

    put(large)

    assert [len(r.body) for r in hub.asked("storage", method="PUT")] == [150_000, 150_000, 100_000]
    assert hub.head()[f"thinker/{large.name}/{DATA}"] == (large / DATA).read_bytes()


def test_files_of_a_component_that_are_gone_go_and_those_of_others_stay(hub: UploadHub, tmp_path: Path) -> None:
    hub.commit({"notes.md": b"a user's", "thinker/old/onnx/x.onnx": b"x", "thinker/old/manifest.json": b"{}"})
    talker = published(tmp_path, "talker")
    put(talker)

    put(published(tmp_path, "thinker", seed=1))

    there = hub.head()
    assert there["notes.md"] == b"a user's"
    assert not [path for path in there if path.startswith("thinker/old/")]
    assert on_disk(talker).items() <= there.items()
    card = there["README.md"].decode()
    assert f"[talker](talker/{talker.name}/README.md)" in card
    assert "[thinker](thinker/tiny-thinker-onnx/README.md)" in card


def test_the_token_is_not_sent_to_the_storage_host(hub: UploadHub, folder: Path) -> None:
    hub.token = None  # then a request counts as authorized that has any token

    put(folder)

    assert all(request.authorized for request in hub.asked("hub", "/api/", "POST"))
    assert hub.asked("storage", method="PUT")
    assert not [request for request in hub.asked("storage", method="PUT") if request.authorized]


def test_a_branch_that_is_not_there_is_made(hub: UploadHub, folder: Path) -> None:
    main = hub.commit({"notes.md": b"a user's"})

    put(folder, name=f"{NAME}@v2")

    assert hub.branches["main"] == main
    assert on_disk(folder).items() <= hub.head("v2").items()


def test_a_terminal_sees_how_far_a_file_has_gone(
    hub: UploadHub, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)

    put(folder)

    assert "thinker.onnx.data" in capsys.readouterr().err


# Interruptions


def test_a_cut_upload_goes_on_without_the_files_that_have_arrived(hub: UploadHub, folder: Path, tmp_path: Path) -> None:
    def cut(request: Request, usual: Answer) -> Answer:
        hub.objects.pop(request.name.rpartition("/")[2])
        return hang_up()

    talker = published(tmp_path, "talker", nbytes=60_000, seed=1)
    hub.misbehave(cut, host="storage", method="PUT", when=lambda request: len(request.body) == 60_000)
    message = refused(folder, talker)
    hub.behave()

    put(folder, talker)

    assert "sending files" in message
    assert hub.uploaded() == 60_000
    assert {**on_disk(folder), **on_disk(talker)}.items() <= hub.head().items()


def test_a_connection_that_is_cut_once_is_no_fault(hub: UploadHub, folder: Path) -> None:
    for method, name in (("PUT", "/upload/"), ("POST", "preupload"), ("POST", "/commit/"), ("POST", "/repos/create")):
        hub.misbehave(hang_up(), host="storage" if method == "PUT" else "hub", method=method, name=name, times=1)

    put(folder)

    assert on_disk(folder).items() <= hub.head().items()


def test_a_commit_whose_answer_is_lost_is_not_made_twice(hub: UploadHub, folder: Path) -> None:
    hub.misbehave(hang_up(), host="hub", method="POST", name="/commit/", times=1)  # once it is made

    put(folder)

    assert [request.status for request in hub.asked("hub", "/commit/", "POST")] == [0, 412]
    assert len(hub.commits) == 2  # the first one is that of the new repository


def test_a_commit_of_somebody_else_meanwhile_is_not_undone(hub: UploadHub, folder: Path) -> None:
    hub.commit({})
    target = opened(NAME)
    theirs = hub.commit({"thinker/mine/manifest.json": b"{}"})

    with pytest.raises(UserError, match="changed meanwhile; nothing was committed; run again"):
        release({"thinker": folder}, target, None, name=NAME, dry_run=False)

    assert hub.branches["main"] == theirs


@pytest.mark.parametrize("status", [409, 412])
def test_a_commit_that_is_refused_for_another_is_told(
    hub: UploadHub, folder: Path, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setattr(hub, "_commit", lambda *_: error(status, message="A commit has happened since."))

    assert refused(folder).endswith("changed meanwhile; nothing was committed; run again")


# What is wrong


STEPS = [
    ("GET", "/api/models/"),
    ("POST", "/repos/create"),
    ("POST", "/preupload/"),
    ("POST", "/objects/batch"),
    ("PUT", "/upload/"),
    ("POST", "/verify/"),
    ("POST", "/commit/"),
]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (error(401, message="Invalid username or password."), "the token in HF_TOKEN is not accepted"),
        (error(403, message="You may not."), "answered 403: You may not; the token in HF_TOKEN may not do that"),
        (error(403, message="You have exceeded your storage limit"), "make space there, or ask for more"),
        (error(413, message="too large"), "answered 413: too large; it is more than the hub takes at once"),
        (error(429, **{"Retry-After": "7"}), "try again in 7 seconds"),
        (error(500), "try again later"),
        (Answer(503, {"Content-Type": "text/html"}, b"<html>\nbusy"), "answered 503; try again later"),
        (hang_up(), "check the network"),
    ],
    ids=["401", "403", "storage", "413", "429", "500", "503", "cut"],
)
@pytest.mark.parametrize(("method", "name"), STEPS, ids=[name for _, name in STEPS])
def test_a_fault_at_any_step_is_told_in_one_line(
    hub: UploadHub, folder: Path, method: str, name: str, answer: Answer, said: str
) -> None:
    hub.misbehave(answer, host="storage" if method == "PUT" else "hub", method=method, name=name)

    assert said in refused(folder)
    assert len(hub.commits) <= 1 or (method, name) == ("POST", "/commit/")


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b"{}", b"<html>", b'{"files": [{}]}', b'{"objects": [{}]}'])
@pytest.mark.parametrize(("method", "name"), [step for step in STEPS if step[0] == "POST"])
def test_an_answer_that_no_hub_gives_is_told(hub: UploadHub, folder: Path, method: str, name: str, body: bytes) -> None:
    hub.misbehave(Answer(200, {"Content-Type": "application/json"}, body), host="hub", method=method, name=name)

    if name != "/verify/":  # whose answer has nothing to say
        refused(folder)


def test_no_token_is_told(hub: UploadHub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")

    assert refused(folder).endswith("log in, or set HF_TOKEN")


def test_a_quota_that_the_storage_names_is_told(hub: UploadHub, folder: Path) -> None:
    def full(request: Request, usual: Answer) -> Answer:
        entry = b'{"objects": [{"oid": "x", "size": 1, "error": {"code": 507, "message": "Quota\\nexceeded"}}]}'
        return usual.but(body=entry)

    hub.misbehave(full, host="hub", method="POST", name="/objects/batch")

    assert "Quota exceeded" in refused(folder)


def test_a_file_that_the_repository_ignores_is_told(hub: UploadHub, folder: Path) -> None:
    ignored = f"thinker/{folder.name}/{DATA}"
    hub.ignored = {ignored}

    message = refused(folder)

    assert f"{ignored} is not in what was committed" in message
    assert ".gitignore" in message


def test_a_commit_cannot_be_published_to(hub: UploadHub, folder: Path) -> None:
    commit = hub.commit({})

    assert "give a branch" in refused(folder, name=f"{NAME}@{commit}")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("hf://tiny", "no name that the hub has for a repository"),
        ("hf://a/b/c", "no name that the hub has for a repository"),
        ("hf://a/b c", "no name that the hub has for a repository"),
        ("hf://a/b\nc", "no name that the hub has for a repository"),
        ("hf://a--b/c", "no name that the hub has for a repository"),
        ("hf://a/b.git", "no name that the hub has for a repository"),
        ("hf://datasets/a/b", "of datasets; releases are in models"),
        ("hf://spaces/a/b", "of spaces; releases are in models"),
        ("hf://a/b@", "no revision after the @"),
        ("hf://a/b@x y", "no revision after the @"),
        ("hf://a/b@../x", "no revision after the @"),
        ("s3://a/b", "give a folder, hf://OWNER/REPO"),
    ],
)
def test_what_names_no_repository_is_told(message: Callable[..., str], name: str, said: str) -> None:
    assert said in message(opened, name)


def test_hf_xet_fails_in_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """huggingface_hub uploads by it where it is installed; the hub of these tests does not know it."""
    pytest.importorskip("hf_xet")
    with upload_hub(monkeypatch, xet=True) as hub:
        message = refused(folder)

        assert message.startswith(f"{REPOSITORY}: sending files: ")
        assert message.endswith("; run again to go on, or set HF_HUB_DISABLE_XET=1 for the older protocol")
        assert len(hub.commits) == 1


# The identity of a CI job


@pytest.fixture
def job(hub: UploadHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setenv("HF_OIDC_RESOURCE", REPOSITORY)
    monkeypatch.setenv("HF_OIDC_ID_TOKEN", IDENTITY)


def test_a_job_publishes_by_its_identity_without_a_token(hub: UploadHub, job: None, folder: Path) -> None:
    hub.commit({})

    put(folder)

    assert on_disk(folder).items() <= hub.head().items()
    assert len(hub.asked("hub", "/oauth/token", "POST")) == 1


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (None, "no trusted publisher"),
        (Answer(200, {}, b"{}"), "gives no token"),
        (Answer(200, {}, b"<html>"), "gives no token"),
        (hang_up(), "disconnected"),
    ],
)
def test_an_identity_that_gets_no_token_is_told(
    hub: UploadHub, job: None, folder: Path, monkeypatch: pytest.MonkeyPatch, answer: Answer | None, said: str
) -> None:
    monkeypatch.setenv("HF_OIDC_ID_TOKEN", "somebody.else")
    if answer is not None:
        hub.misbehave(answer, host="hub", method="POST", name="/oauth/token")

    message = refused(folder)

    assert message.startswith("HF_OIDC_RESOURCE: ")
    assert said in message
    assert "somebody.else" not in message


def test_a_job_without_an_identity_is_told(
    hub: UploadHub, job: None, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_OIDC_ID_TOKEN")
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)

    assert "HF_OIDC_ID_TOKEN" in refused(folder)
