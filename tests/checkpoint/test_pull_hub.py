"""Pulling from a hub: what is asked for, what is written, and what is said when something goes wrong."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest
from conftest import ROOT
from hub_server import (
    BIAS,
    COMMIT,
    FIRST,
    HEAD,
    INDEX,
    REPOSITORY,
    SECOND,
    THIRD,
    TOKEN,
    WEIGHT,
    Answer,
    Hub,
    Request,
    assert_whole,
    checkpoint,
    error,
    header_bytes,
    hub_with,
    point_huggingface_hub_at,
    safetensors,
    tensors,
)
from huggingface_hub import constants

from components import component
from omni.checkpoint import Checkpoint
from pull import plan as planning
from pull import synthetic
from pull.hub import HubSnapshot
from pull.plan import config_of, plan
from pull.write import already_here, fetch
from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.common.errors import UserError

TENSOR_BYTES = sum(array.nbytes for array in tensors().values())


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub_with(checkpoint()) as server:
        point_huggingface_hub_at(monkeypatch, server.endpoint)
        yield server


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that huggingface_hub would have waited, instead of waiting."""
    waited: list[float] = []
    monkeypatch.setattr("huggingface_hub.utils._http.time", SimpleNamespace(sleep=waited.append))
    return waited


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "models" / "source" / "projection"


def pull(folder: Path, *, revision: str = "main", retries: int = 2) -> None:
    snapshot = HubSnapshot(REPOSITORY, revision, retries=retries)
    fetch(snapshot, plan_of(snapshot), folder)


def refused(folder: Path, **options: object) -> str:
    """Pull in vain; return the message, having checked that it is one line and that no artifact is there."""
    with pytest.raises(UserError) as caught:
        pull(folder, **options)  # type: ignore[arg-type]
    message = str(caught.value)
    assert len(message.splitlines()) == 1, message
    assert not folder.exists()
    assert not list(folder.parent.glob("*.writing"))
    return message


def data(request: Request) -> bool:
    """Whether a request to the storage host is for tensors and not for a header."""
    return request.range is not None and request.range[0] > 8


def header_ranges(shard: bytes) -> list[tuple[int, int]]:
    """The two ranges by which a shard's header is read."""
    return [(0, 8), (8, header_bytes(shard))]


def plan_of(snapshot: HubSnapshot, name: str = "projection") -> planning.Plan:
    return plan(snapshot, component(name), config_of(snapshot, component(name)))


def planned(hub: Hub) -> tuple[planning.Range, ...]:
    """The ranges that a pull would fetch."""
    return plan_of(HubSnapshot(REPOSITORY, "main")).ranges


# What is fetched


def test_a_pull_writes_the_tensors_the_configuration_and_the_license(hub: Hub, folder: Path) -> None:
    pull(folder)

    assert_whole(folder)
    assert (folder / "config.json").read_bytes() == hub.files["config.json"]
    assert (folder / "LICENSE").read_bytes() == hub.files["LICENSE"]
    assert [path.name for path in folder.parent.iterdir()] == ["projection"]


def test_only_the_headers_and_the_wanted_tensors_are_fetched(hub: Hub, folder: Path) -> None:
    pull(folder)

    asked = hub.asked("storage")
    headers = sum(header_bytes(hub.files[shard]) for shard in (FIRST, SECOND))
    assert sum(request.sent for request in asked) == TENSOR_BYTES + headers
    assert all(request.status == 206 for request in asked)


def test_neighbours_are_fetched_in_one_range(hub: Hub, folder: Path) -> None:
    pull(folder)

    in_first = [r.span for r in hub.asked("storage", FIRST) if r.span[0] >= header_bytes(hub.files[FIRST])]
    start = header_bytes(hub.files[FIRST]) + 80
    assert in_first == [(start, start + tensors()[BIAS].nbytes + tensors()[WEIGHT].nbytes)]


def test_shards_without_wanted_tensors_are_never_asked_for(hub: Hub, folder: Path) -> None:
    pull(folder)

    assert not [request for request in hub.requests if THIRD in request.name]


def test_a_shard_that_the_hub_serves_itself_is_read_there(hub: Hub, folder: Path) -> None:
    hub.redirects = False

    pull(folder)

    assert_whole(folder)
    assert not hub.asked("storage")


def test_a_license_that_is_not_there_is_done_without(hub: Hub, folder: Path) -> None:
    del hub.files["LICENSE"]

    pull(folder)

    assert not (folder / "LICENSE").exists()


def test_the_revision_is_resolved_once_and_its_commit_recorded(hub: Hub, folder: Path) -> None:
    pull(folder, revision="v1")

    origin = json.loads((folder / "source.json").read_text())
    assert origin["commit"] == COMMIT
    assert origin["checkpoint"] == REPOSITORY
    assert (origin["model"]["repository"], origin["model"]["revision"]) == (REPOSITORY, COMMIT)
    assert [r.name for r in hub.asked("hub") if "/v1" in r.name] == [f"/api/models/{REPOSITORY}/revision/v1"]
    assert all(COMMIT in r.name for r in hub.asked("hub")[1:])


def test_a_revision_with_a_slash_is_quoted(hub: Hub, folder: Path) -> None:
    hub.revisions["refs/pr/1"] = COMMIT

    pull(folder, revision="refs/pr/1")

    assert_whole(folder)


def test_source_json_holds_the_sha256_of_each_tensor(hub: Hub, folder: Path) -> None:
    pull(folder)

    written = json.loads((folder / "source.json").read_text())["tensors"]
    expected = {name: hashlib.sha256(array.tobytes()).hexdigest() for name, array in tensors().items()}
    assert {name: entry["sha256"] for name, entry in written.items()} == expected
    assert written[HEAD]["dtype"] == "BF16"
    assert written[HEAD]["shape"] == [20, 8]


# The token


def test_the_token_goes_to_the_hub_and_never_to_the_storage_host(
    hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.token = TOKEN
    monkeypatch.setenv("HF_TOKEN", TOKEN)

    pull(folder)

    assert hub.asked("storage")
    assert all(request.authorized for request in hub.requests if request.host == "hub")
    assert not any(request.authorized for request in hub.requests if request.host == "storage")


def test_a_small_file_that_is_redirected_leaves_the_token_behind(
    hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.token = TOKEN
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    elsewhere = hub.storage + "/LICENSE?signature=1"
    hub.misbehave(Answer(302, {"Location": elsewhere}), host="hub", name="LICENSE")

    pull(folder)

    assert (folder / "LICENSE").read_bytes() == hub.files["LICENSE"]
    assert {request.authorized for request in hub.asked("storage", "LICENSE")} == {False}


def test_a_relative_redirect_stays_on_the_hub_with_the_token(
    hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.token = TOKEN
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    moved = f"/{REPOSITORY}/resolve/{COMMIT}/{FIRST}"
    hub.misbehave(Answer(307, {"Location": moved}), host="hub", method="HEAD", name=FIRST, times=1)

    pull(folder)

    assert_whole(folder)
    assert len(hub.asked("hub", FIRST, "HEAD")) == 2


def test_redirects_in_a_circle_are_told(hub: Hub, folder: Path) -> None:
    moved = f"/{REPOSITORY}/resolve/{COMMIT}/{FIRST}"
    hub.misbehave(Answer(307, {"Location": moved}), host="hub", method="HEAD", name=FIRST)

    assert "redirects" in refused(folder)


# Interruptions


def test_a_range_that_is_cut_is_resumed_from_where_it_was(hub: Hub, folder: Path) -> None:
    hub.misbehave(lambda _, a: a.but(cut=100), host="storage", name=SECOND, when=data, times=1)

    pull(folder)

    assert_whole(folder)
    _, header, first, second = (r.span for r in hub.asked("storage", SECOND))
    assert header == (8, header_bytes(hub.files[SECOND]))
    assert second == (first[0] + 100, first[1])
    assert sum(r.sent for r in hub.asked("storage", SECOND) if data(r)) == tensors()[HEAD].nbytes


def test_an_answer_that_ends_early_without_an_error_is_resumed(hub: Hub, folder: Path) -> None:
    hub.misbehave(lambda _, a: a.but(body=a.body[:7]), host="storage", when=data, times=3)

    pull(folder)

    assert_whole(folder)


def test_a_header_that_is_cut_is_resumed(hub: Hub, folder: Path) -> None:
    hub.misbehave(lambda _, a: a.but(cut=3), host="storage", name=FIRST, times=2)

    pull(folder)

    assert_whole(folder)


def test_a_connection_that_is_always_cut_ends_with_an_error(hub: Hub, folder: Path) -> None:
    hub.misbehave(lambda _, a: a.but(cut=0), host="storage", name=SECOND, when=data)

    message = refused(folder)

    assert SECOND in message
    assert "the connection was cut, 5 times in a row" in message
    assert "run again" in message


def test_a_small_file_that_is_cut_is_asked_for_again(hub: Hub, folder: Path) -> None:
    hub.misbehave(lambda _, a: a.but(cut=5), host="hub", name="config.json", times=1)

    pull(folder)

    assert_whole(folder)


def test_a_small_file_that_is_always_cut_ends_with_an_error(hub: Hub, folder: Path) -> None:
    hub.misbehave(lambda _, a: a.but(cut=5), host="hub", name="config.json")

    message = refused(folder)

    assert "config.json" in message
    assert "check the network" in message


def test_an_error_answer_that_is_cut_is_still_told_as_a_cut(hub: Hub, folder: Path) -> None:
    broken = Answer(400, {"Content-Length": "999"}, b"<Error>", cut=7)
    hub.misbehave(broken, host="storage", name=SECOND, when=data)

    assert "the connection was cut" in refused(folder)


def test_a_second_run_fetches_only_what_the_first_did_not(
    hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "PART_BYTES", 64)
    hub.misbehave(error(400), host="storage", name=SECOND, when=lambda r: data(r) and r.span[0] // 64 % 2 == 1)
    refused(folder)
    parts = {(part.shard, part.start, part.end) for part in planned(hub)}
    whole = {(r.name[1:], *r.span) for r in hub.asked("storage") if r.status == 206} & parts
    hub.behave()

    pull(folder)

    assert_whole(folder)
    headers = {(shard, start, end) for shard in (FIRST, SECOND) for start, end in header_ranges(hub.files[shard])}
    assert 0 < len(whole) < len(parts)
    assert sorted((r.name[1:], *r.span) for r in hub.asked("storage")) == sorted(parts - whole | headers)
    assert [path.name for path in folder.parent.iterdir()] == ["projection"]


def test_what_was_fetched_of_another_commit_is_not_taken_up(
    hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "PART_BYTES", 64)
    hub.files.update(checkpoint(weight=tensors()[WEIGHT] * 2))
    hub.misbehave(error(400), host="storage", name=SECOND, when=data)
    refused(folder)
    hub.behave()
    hub.files.update(checkpoint())
    hub.revisions = {"main": "f" * 40, "f" * 40: "f" * 40}

    pull(folder)

    assert_whole(folder)


def test_what_was_fetched_is_not_taken_up_once_its_file_is_lost(
    hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "PART_BYTES", 64)
    hub.misbehave(error(400), host="storage", name=SECOND, when=data)
    refused(folder)
    hub.behave()
    (folder.parent / ".projection.part" / "model.safetensors").unlink()

    pull(folder)

    assert_whole(folder)


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_hub_is_asked_again_after_waiting_longer_each_time(
    hub: Hub, folder: Path, waits: list[float], status: int
) -> None:
    hub.misbehave(error(status), host="hub", name="/api/", times=2)

    pull(folder, retries=2)

    assert_whole(folder)
    assert waits == [1.0, 2.0]


@pytest.mark.parametrize(
    ("host", "method", "name"),
    [("hub", "GET", "config.json"), ("hub", "HEAD", FIRST), ("storage", "GET", FIRST)],
)
@pytest.mark.parametrize("status", [429, 503])
def test_every_kind_of_request_is_retried(
    hub: Hub, folder: Path, waits: list[float], status: int, host: str, method: str, name: str
) -> None:
    hub.misbehave(error(status), host=host, method=method, name=name, times=2)

    pull(folder, retries=2)

    assert_whole(folder)
    assert waits == [1.0, 2.0]


def test_the_server_says_how_long_to_wait(hub: Hub, folder: Path, waits: list[float]) -> None:
    hub.misbehave(error(429, **{"Retry-After": "7"}), host="storage", times=1)

    pull(folder)

    assert waits == [8.0]


@pytest.mark.parametrize(
    ("host", "method", "name"),
    [("hub", "GET", "/api/"), ("hub", "GET", INDEX), ("hub", "HEAD", FIRST), ("storage", "GET", FIRST)],
)
@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_server_that_stays_busy_ends_with_an_error(
    hub: Hub, folder: Path, status: int, host: str, method: str, name: str
) -> None:
    hub.misbehave(error(status, message="slow\ndown"), host=host, method=method, name=name)

    message = refused(folder)

    assert f"127.0.0.1 answered {status}" in message
    assert "try again later" in message


def test_a_hub_that_cannot_be_reached_is_named(hub: Hub, folder: Path) -> None:
    hub.close()

    message = refused(folder)

    assert message.startswith("127.0.0.1: revision main: ")
    assert "check the network" in message


def test_a_storage_host_that_cannot_be_reached_is_named(hub: Hub, folder: Path) -> None:
    unreachable = "http://localhost:9/shard"
    hub.misbehave(lambda _, a: a.with_header("Location", unreachable), host="hub", method="HEAD")

    message = refused(folder)

    assert message.startswith(f"localhost: {FIRST}: ")
    assert "check the network" in message


def test_offline_mode_is_told(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    assert "HF_HUB_OFFLINE is set" in refused(folder)


# Access


def test_a_hub_that_wants_a_token_is_told(hub: Hub, folder: Path) -> None:
    hub.token = TOKEN

    message = refused(folder)

    assert "401" in message
    assert "log in, or set HF_TOKEN" in message


def test_a_private_repository_is_told(hub: Hub, folder: Path) -> None:
    hub.misbehave(error(401, "RepoNotFound", "Repository not found"), host="hub", name="/api/")

    message = refused(folder)

    assert f"{REPOSITORY}: no such repository, or no access to it" in message
    assert "log in, or set HF_TOKEN" in message


def test_a_token_that_is_not_accepted_is_told_and_not_shown(
    hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.token = TOKEN
    monkeypatch.setenv("HF_TOKEN", "hf_expired")

    message = refused(folder)

    assert "the token in HF_TOKEN is not accepted" in message
    assert "hf_expired" not in message


@pytest.mark.parametrize(("method", "name"), [("GET", "/api/"), ("HEAD", FIRST)])
def test_a_gated_repository_is_told(hub: Hub, folder: Path, method: str, name: str) -> None:
    gated = error(403, "GatedRepo", "Access to model is restricted")
    hub.misbehave(gated, host="hub", method=method, name=name)

    message = refused(folder)

    assert REPOSITORY in message
    assert "access has to be asked for" in message


def test_a_repository_that_is_not_there_is_told(hub: Hub, folder: Path) -> None:
    with pytest.raises(UserError) as caught:
        HubSnapshot("someone/else", "main")

    assert str(caught.value).startswith("someone/else: no such repository")
    assert len(str(caught.value).splitlines()) == 1


def test_a_revision_that_is_not_there_is_told(hub: Hub, folder: Path) -> None:
    message = refused(folder, revision="mian")

    assert "no such revision" in message
    assert "mian" in message
    assert "model.revision" in message


@pytest.mark.parametrize("body", [b"<html>Please log in</html>", b"[]", b'{"sha": null}', b"\xff"])
def test_an_endpoint_that_is_no_hub_is_told(hub: Hub, folder: Path, body: bytes) -> None:
    hub.misbehave(Answer(200, {}, body), host="hub", name="/api/")

    message = refused(folder)

    assert hub.endpoint in message
    assert "names no commit" in message


def test_an_expired_storage_address_is_resolved_anew(hub: Hub, folder: Path) -> None:
    expired = error(403)
    hub.misbehave(expired, host="storage", name=FIRST, when=lambda r: data(r) and r.signature == 1)

    pull(folder)

    assert_whole(folder)
    assert len(hub.asked("hub", FIRST, "HEAD")) == 2


def test_an_address_that_expires_for_all_workers_at_once_is_resolved_anew(
    hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "PART_BYTES", 16)
    hub.misbehave(error(403), host="storage", when=lambda r: data(r) and (r.signature or 0) <= 2)

    pull(folder)

    assert_whole(folder)


def test_a_storage_host_that_always_refuses_ends_with_an_error(hub: Hub, folder: Path) -> None:
    hub.misbehave(error(403), host="storage")

    message = refused(folder)

    assert "the storage host answered 403, 5 times in a row" in message
    assert len(hub.asked("storage")) == 5


# Servers and files that are not what they seem


def test_a_server_that_ignores_range_is_told_without_downloading_everything(hub: Hub, folder: Path) -> None:
    all_of_it = Answer(200, {}, bytes(64 * 2**20))
    hub.misbehave(all_of_it, host="storage")

    message = refused(folder)

    assert "ignores Range" in message
    assert "HF_ENDPOINT" in message
    assert sum(request.sent for request in hub.asked("storage")) < 16 * 2**20


def test_a_file_that_changes_its_size_after_its_header_was_read_is_told(hub: Hub, folder: Path) -> None:
    size = len(hub.files[SECOND])

    def grown(request: Request, usual: Answer) -> Answer:
        start, end = request.range or (0, 0)
        return usual.with_header("Content-Range", f"bytes {start}-{end - 1}/{size + 1}")

    hub.misbehave(grown, host="storage", name=SECOND, when=data)

    message = refused(folder)

    assert f"{SECOND}: changed while it was read" in message
    assert "run again" in message


def test_a_file_that_shrinks_after_its_header_was_read_is_told(hub: Hub, folder: Path) -> None:
    shrunk = Answer(416, {"Content-Range": "bytes */100"})
    hub.misbehave(shrunk, host="storage", name=SECOND, when=data)

    assert f"{SECOND}: changed while it was read" in refused(folder)


def test_a_file_that_changes_and_keeps_its_size_is_told(hub: Hub, folder: Path) -> None:
    hub.misbehave(lambda _, a: a.with_header("ETag", '"other"'), host="storage", name=SECOND, when=data)

    message = refused(folder)

    assert f"{SECOND}: changed while it was read" in message
    assert "ETag" in message


def test_a_file_that_changes_while_its_address_is_resolved_anew_is_told(hub: Hub, folder: Path) -> None:
    def expire_and_change(request: Request, usual: Answer) -> Answer:
        hub.files[SECOND] += b"more"
        return error(403)

    hub.misbehave(expire_and_change, host="storage", name=SECOND, when=data, times=1)

    assert f"{SECOND}: changed on the hub while it was read" in refused(folder)


@pytest.mark.parametrize("said", ["bytes 0-7/{size}", "items 1-2/{size}", "", None])
def test_another_range_than_asked_for_is_refused(hub: Hub, folder: Path, said: str | None) -> None:
    header = said.format(size=len(hub.files[SECOND])) if said else said
    hub.misbehave(lambda _, a: a.with_header("Content-Range", header), host="storage", name=SECOND, when=data)

    message = refused(folder)

    assert f"{SECOND}: asked for bytes" in message
    assert (header or "no Content-Range") in message


def test_more_bytes_than_asked_for_are_refused(hub: Hub, folder: Path) -> None:
    hub.misbehave(lambda _, a: a.but(body=a.body + b"!"), host="storage", name=SECOND, when=data)

    assert f"{SECOND}: the server sent more" in refused(folder)


def test_a_size_that_the_hub_does_not_say_is_told(hub: Hub, folder: Path) -> None:
    hub.misbehave(lambda _, a: a.with_header("X-Linked-Size", None), host="hub", method="HEAD")

    assert "does not say how large it is" in refused(folder)


# Checkpoints that are not whole


def changed_index(hub: Hub, **changes: str | None) -> None:
    """Point tensors at other shards in the index, or take them out; ``weight``, ``bias``, ``head``."""
    names = {"weight": WEIGHT, "bias": BIAS, "head": HEAD}
    index = json.loads(hub.files[INDEX])
    for key, shard in changes.items():
        index["weight_map"].pop(names[key])
        if shard is not None:
            index["weight_map"][names[key]] = shard
    hub.files[INDEX] = json.dumps(index).encode()


def test_a_tensor_that_the_index_does_not_name_is_told(hub: Hub, folder: Path) -> None:
    changed_index(hub, head=None)

    message = refused(folder)

    assert f"{INDEX}: tensor {HEAD} is missing" in message
    assert not hub.asked("storage")


def test_several_tensors_that_the_index_does_not_name_are_counted(hub: Hub, folder: Path) -> None:
    changed_index(hub, head=None, bias=None)

    assert "and 1 more is missing" in refused(folder)


def test_a_shard_that_the_index_names_and_the_hub_has_not_is_told(hub: Hub, folder: Path) -> None:
    changed_index(hub, head="model-00009-of-00003.safetensors")

    assert "no model-00009-of-00003.safetensors in it; the checkpoint is not whole" in refused(folder)


def test_a_tensor_in_another_shard_than_the_index_says_is_told(hub: Hub, folder: Path) -> None:
    changed_index(hub, head=FIRST)

    assert f"{FIRST}: tensor {HEAD} is missing" in refused(folder)


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/passwd",
        "../x.safetensors",
        "/x.safetensors",
        "a/b.safetensors",
        "x.safetensors?y",
        "x.bin",
        "",
        3,
        None,
    ],
)
def test_an_index_that_leads_elsewhere_is_refused(hub: Hub, folder: Path, name: object) -> None:
    index = json.loads(hub.files[INDEX])
    index["weight_map"][HEAD] = name
    hub.files[INDEX] = json.dumps(index).encode()

    message = refused(folder)

    assert f"{name!r} is not the name of a shard" in message
    assert not hub.asked("storage")


@pytest.mark.parametrize("text", [b"{", b"\xff\xfe{", b"[" * 100_000])
def test_an_index_that_is_not_json_is_told(hub: Hub, folder: Path, text: bytes) -> None:
    hub.files[INDEX] = text

    assert f"{INDEX} is not JSON" in refused(folder)


@pytest.mark.parametrize(("text", "said"), [(b"[]", "is not a JSON object"), (b"{}", "no weight_map")])
def test_an_index_without_a_map_is_told(hub: Hub, folder: Path, text: bytes, said: str) -> None:
    hub.files[INDEX] = text

    assert said in refused(folder)


def test_the_index_is_asked_for_once(hub: Hub, folder: Path) -> None:
    pull(folder)

    assert len(hub.asked("hub", INDEX)) == 1


def test_a_single_file_without_an_index_is_read(hub: Hub, folder: Path) -> None:
    del hub.files[INDEX]
    hub.files["model.safetensors"] = safetensors(tensors())

    pull(folder)

    assert_whole(folder)


def test_a_repository_without_safetensors_is_told(hub: Hub, folder: Path) -> None:
    del hub.files[INDEX]

    assert "no model.safetensors in it" in refused(folder)


def test_a_repository_without_a_configuration_is_told(hub: Hub, folder: Path) -> None:
    del hub.files["config.json"]

    assert f"{REPOSITORY}: no config.json in it" in refused(folder)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_a_weight_that_is_not_finite_is_told_with_its_place(hub: Hub, folder: Path, value: str) -> None:
    weight = tensors()[WEIGHT]
    weight[3, 5] = float(value)
    hub.files.update(checkpoint(weight=weight))

    message = refused(folder)

    assert f"tensor {WEIGHT} holds {value} at flat index 41" in message


def test_weights_that_were_refused_are_fetched_again(hub: Hub, folder: Path) -> None:
    # The same commit: a bad line, or a bad disk, may have been at fault.
    weight = tensors()[WEIGHT]
    weight[0, 0] = float("nan")
    good, bad = safetensors({WEIGHT: tensors()[WEIGHT]}), safetensors({WEIGHT: weight})
    hub.misbehave(
        lambda _, a: a.but(body=a.body.replace(good[-192:], bad[-192:])), host="storage", name=FIRST, when=data
    )
    refused(folder)
    hub.behave()

    pull(folder)

    assert_whole(folder)


def test_another_shape_than_the_configuration_says_is_told(hub: Hub, folder: Path) -> None:
    hub.files.update(checkpoint(head=tensors()[HEAD][:19]))

    message = refused(folder)

    assert f"{SECOND}: tensor {HEAD} is BF16 [19, 8]" in message
    assert "should be of shape [20, 8]" in message


@pytest.mark.parametrize(("dtype", "said"), [(np.float32, "F32"), (np.float16, "F16")])
def test_another_dtype_of_floats_than_the_configuration_says_is_taken(
    hub: Hub, folder: Path, dtype: type, said: str
) -> None:
    hub.files.update(checkpoint(bias=tensors()[BIAS].astype(dtype)))

    pull(folder)

    recorded = json.loads((folder / "source.json").read_text())["tensors"]
    assert {name: entry["dtype"] for name, entry in recorded.items()} == {BIAS: said, WEIGHT: "BF16", HEAD: "BF16"}
    np.testing.assert_array_equal(Checkpoint(folder).read(BIAS), tensors()[BIAS].astype(dtype))


# The disk, and what is on it


def disk_with(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=2**40, used=0, free=free))


def test_a_disk_that_is_too_full_is_told_before_anything_is_fetched(
    hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk_with(monkeypatch, 1000)

    message = refused(folder)

    assert "MB of disk" in message
    assert "are free" in message
    assert not [request for request in hub.asked("storage") if request.span[0] >= header_bytes(hub.files[FIRST])]


def test_disk_space_that_an_interrupted_run_takes_up_already_is_counted(
    hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Noise: a file system that compresses would hold zeros in no space at all.
    head = np.random.default_rng(0).standard_normal((20, 2**16)).astype(ml_dtypes.bfloat16)
    config = json.loads(hub.files["config.json"])
    config["talker_config"] = {"embedding_size": 1, "hidden_size": 2**16, "vocab_size": 20}
    row = np.zeros(2**16, ml_dtypes.bfloat16)
    hub.files.update(
        checkpoint(weight=row[:, None], bias=row, head=head), **{"config.json": json.dumps(config).encode()}
    )
    monkeypatch.setattr("pull.write._WORKERS", 1)  # one part after another: all but the last are there
    monkeypatch.setattr(planning, "PART_BYTES", 2**21)
    hub.misbehave(error(400), host="storage", name=SECOND, when=lambda request: request.span[0] > 2**21)
    refused(folder)
    hub.behave()
    disk_with(monkeypatch, 2**20 + 2**19)  # less than all of it, enough for the rest

    pull(folder)

    artifact.check(folder)


@pytest.mark.parametrize("how", ["cut", "expired", "not finite", "full"])
def test_an_earlier_artifact_stays_untouched_when_a_pull_fails(
    hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    pull(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    weight = np.full((8, 12), float("nan"), ml_dtypes.bfloat16)
    hub.files.update(checkpoint(weight=weight if how == "not finite" else tensors()[WEIGHT] * 2))
    hub.revisions = {"main": "f" * 40, "f" * 40: "f" * 40}
    if how == "cut":
        hub.misbehave(lambda _, a: a.but(cut=0), host="storage", name=SECOND, when=data)
    if how == "expired":
        hub.misbehave(error(403), host="storage", name=SECOND, when=data)
    if how == "full":
        disk_with(monkeypatch, 10)

    with pytest.raises(UserError):
        pull(folder)

    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    artifact.check(folder)


def test_a_new_pull_takes_the_place_of_an_earlier_artifact(hub: Hub, folder: Path) -> None:
    pull(folder)
    before = artifact.fingerprint(folder)
    hub.files.update(checkpoint(weight=tensors()[WEIGHT] * 2))
    hub.revisions = {"main": "f" * 40, "f" * 40: "f" * 40}

    pull(folder)

    artifact.check(folder)
    assert artifact.fingerprint(folder) != before
    assert [path.name for path in folder.parent.iterdir()] == ["projection"]


def here(folder: Path) -> bool:
    snapshot = HubSnapshot(REPOSITORY, "main")
    return already_here(snapshot, plan_of(snapshot), folder)


def test_an_artifact_of_the_same_commit_is_already_here(hub: Hub, folder: Path) -> None:
    before = here(folder)

    pull(folder)

    assert (before, here(folder)) == (False, True)


def test_an_artifact_of_another_commit_is_not_what_is_wanted(hub: Hub, folder: Path) -> None:
    pull(folder)

    hub.revisions = {"main": "f" * 40, "f" * 40: "f" * 40}

    assert not here(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "source.json", "config.json", "manifest.json"])
def test_an_artifact_that_was_damaged_is_not_what_is_wanted(hub: Hub, folder: Path, name: str) -> None:
    pull(folder)

    os.truncate(folder / name, 20)

    assert not here(folder)


def test_an_artifact_of_another_origin_is_not_what_is_wanted(hub: Hub, folder: Path) -> None:
    synthetic.write(component("projection"), 0, "full", folder)

    assert not here(folder)


def test_two_pulls_of_one_commit_write_the_same_bytes(hub: Hub, tmp_path: Path) -> None:
    pull(tmp_path / "one" / "projection")
    pull(tmp_path / "two" / "projection")

    assert artifact.fingerprint(tmp_path / "one" / "projection") == artifact.fingerprint(
        tmp_path / "two" / "projection"
    )


# The command


def command(hub: Hub, folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``python -m pull`` in a folder of its own, with parameters that name the hub."""
    parameters = (ROOT / "params.yaml").read_text()
    for old, new in (("source: synthetic  ", "source: hub  "), ("Qwen/Qwen2.5-Omni-7B", REPOSITORY)):
        assert old in parameters
        parameters = parameters.replace(old, new, 1)
    (folder / "params.yaml").write_text(parameters)
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    given = {"HF_ENDPOINT": hub.endpoint, "NO_PROXY": "127.0.0.1", "PYTHONPATH": str(ROOT), "HF_HOME": str(folder)}
    return subprocess.run(
        [sys.executable, "-m", "pull", *arguments],
        cwd=folder,
        env={**inherited, **given, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_the_command_pulls_with_the_token_of_the_environment(tmp_path: Path) -> None:
    with hub_with(checkpoint()) as hub:
        hub.token = TOKEN

        done = command(hub, tmp_path, "projection", HF_TOKEN=TOKEN)

        assert done.returncode == 0, done.stderr
        assert_whole(tmp_path / "models" / "source" / "projection")


def test_the_command_fetches_no_tensor_a_second_time(tmp_path: Path) -> None:
    with hub_with(checkpoint()) as hub:
        command(hub, tmp_path, "projection")
        hub.behave()

        done = command(hub, tmp_path, "projection")

        assert done.returncode == 0, done.stderr
        assert "already here" in done.stdout
        assert not [request for request in hub.asked("storage") if request.span[0] > 8]


def test_a_dry_run_says_what_would_be_read_and_writes_nothing(tmp_path: Path) -> None:
    with hub_with(checkpoint()) as hub:
        done = command(hub, tmp_path, "projection", "--dry-run")

        assert done.returncode == 0, done.stderr
        assert f"{REPOSITORY} at commit {COMMIT}" in done.stdout
        assert f"{HEAD}  BF16 [20, 8]  320 bytes" in done.stdout
        assert f"would read {TENSOR_BYTES} bytes in 2 requests from 2 file(s)" in done.stdout
        headers = sum(header_bytes(hub.files[shard]) for shard in (FIRST, SECOND))
        assert sum(request.sent for request in hub.asked("storage")) == headers
        assert not (tmp_path / "models").exists()


def test_the_command_ends_with_one_line_when_it_fails(tmp_path: Path) -> None:
    with hub_with(checkpoint()) as hub:
        hub.token = TOKEN

        done = command(hub, tmp_path, "projection")

        assert done.returncode == 1
        assert done.stderr.startswith("error: ")
        assert len(done.stderr.splitlines()) == 1


# Files that a component needs beside its tensors


def test_a_component_s_own_configuration_is_fetched(hub: Hub, folder: Path) -> None:
    hub.files["preprocessor_config.json"] = b'{"feature_extractor_type": "WhisperFeatureExtractor"}\n'
    snapshot = HubSnapshot(REPOSITORY, "main")
    pulled = folder.with_name("frontend")

    fetch(snapshot, plan_of(snapshot, "frontend"), pulled)

    assert (pulled / "preprocessor_config.json").read_bytes() == hub.files["preprocessor_config.json"]
    assert set(artifact.check(pulled)["files"]) >= {"config.json", "LICENSE", "preprocessor_config.json"}
    assert not hub.asked("storage")
    assert already_here(HubSnapshot(REPOSITORY, "main"), plan_of(snapshot, "frontend"), pulled)


def test_a_component_s_own_configuration_that_is_missing_is_told(hub: Hub, folder: Path) -> None:
    snapshot = HubSnapshot(REPOSITORY, "main")

    with pytest.raises(UserError, match=r"no preprocessor_config\.json in it, nor a processor_config"):
        plan_of(snapshot, "frontend")

    assert not hub.asked("hub", FIRST)
    assert not folder.with_name("frontend").exists()


def test_the_projection_asks_for_no_other_component_s_configuration(hub: Hub, folder: Path) -> None:
    hub.files["preprocessor_config.json"] = b"{}"

    pull(folder)

    assert not hub.asked("hub", "preprocessor_config.json")
