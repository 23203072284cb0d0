"""Pulling from a folder: a snapshot, also one of links into a cache, and folders that are none."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from hub_server import BIAS, FIRST, HEAD, INDEX, SECOND, THIRD, WEIGHT, assert_whole, checkpoint, safetensors, tensors

from components import component
from pull import plan as planning
from pull import write
from pull.folder import FolderSnapshot
from pull.plan import config_of, plan
from pull.snapshot import Snapshot
from pull.write import fetch
from qwen_omni_onnx.common import artifact, locks
from qwen_omni_onnx.common.errors import UserError


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder with the tiny checkpoint."""
    return written(tmp_path / "snapshot", checkpoint())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "models" / "source" / "projection"


def written(place: Path, files: dict[str, bytes]) -> Path:
    place.mkdir()
    for name, content in files.items():
        (place / name).write_bytes(content)
    return place


def pull(source: Path, folder: Path) -> None:
    fetch_from(FolderSnapshot(source), folder)


def planned(snapshot: Snapshot, name: str = "projection") -> planning.Plan:
    return plan(snapshot, component(name), config_of(snapshot, component(name)))


def pull_frontend(snapshot: Snapshot, folder: Path) -> Path:
    fetch(snapshot, planned(snapshot, "frontend"), folder.with_name("frontend"))
    return folder.with_name("frontend")


def fetch_from(snapshot: Snapshot, folder: Path) -> None:
    fetch(snapshot, planned(snapshot), folder)


def refused(source: Path, folder: Path) -> str:
    """Pull in vain; return the message, having checked that it is one line and that no artifact is there."""
    with pytest.raises(UserError) as caught:
        pull(source, folder)
    message = str(caught.value)
    assert len(message.splitlines()) == 1, message
    assert not folder.exists()
    return message


class Failing(FolderSnapshot):
    """A snapshot whose second shard cannot be read past its header."""

    def read(self, name: str, start: int, end: int, write) -> None:  # type: ignore[no-untyped-def]
        if name == SECOND and start > 8:
            raise UserError("cannot be read")
        super().read(name, start, end, write)


def test_a_snapshot_is_pulled_without_telling_where_it_was(source: Path, folder: Path) -> None:
    pull(source, folder)

    assert_whole(folder)
    origin = json.loads((folder / "source.json").read_text())
    assert (origin["checkpoint"], origin["kind"]) == ("snapshot", "folder")
    assert str(source.parent) not in (folder / "source.json").read_text() + (folder / "manifest.json").read_text()


def test_a_snapshot_of_links_into_a_cache_is_followed(source: Path, folder: Path, tmp_path: Path) -> None:
    linked = tmp_path / "snapshots" / "0123abcd"
    linked.mkdir(parents=True)
    for path in source.iterdir():
        (linked / path.name).symlink_to(os.path.relpath(path, linked))

    pull(linked, folder)

    assert_whole(folder)
    assert not any(path.is_symlink() for path in folder.iterdir())


@pytest.mark.parametrize("name", ["config.json", "LICENSE", INDEX, SECOND])
def test_a_link_that_leads_nowhere_is_told(source: Path, folder: Path, name: str) -> None:
    (source / name).unlink()
    (source / name).symlink_to(source / "gone")

    message = refused(source, folder)

    assert f"{name}: missing (a link that leads nowhere)" in message
    assert "not whole" in message


def test_a_shard_that_is_missing_is_told(source: Path, folder: Path) -> None:
    (source / SECOND).unlink()

    assert f"{SECOND}: missing; the snapshot is not whole" in refused(source, folder)


def test_a_shard_that_is_not_needed_may_be_missing(source: Path, folder: Path) -> None:
    (source / THIRD).unlink()

    pull(source, folder)

    assert_whole(folder)


def test_a_shard_that_is_cut_off_is_told(source: Path, folder: Path) -> None:
    os.truncate(source / SECOND, (source / SECOND).stat().st_size - 1)

    assert SECOND in refused(source, folder)


def test_a_shard_that_shrinks_after_its_header_was_read_is_told(source: Path, folder: Path) -> None:
    snapshot = FolderSnapshot(source)
    needed = planned(snapshot)
    os.truncate(source / SECOND, 300)

    with pytest.raises(UserError, match="ends at byte 300"):
        fetch(snapshot, needed, folder)

    assert not folder.exists()


@pytest.mark.parametrize("content", [b"", b"short", b"\xff" * 8 + b"{}"])
def test_a_shard_that_is_no_safetensors_file_is_told(source: Path, folder: Path, content: bytes) -> None:
    (source / SECOND).write_bytes(content)

    message = refused(source, folder)

    assert SECOND in message
    assert "safetensors" in message


def test_a_folder_that_is_not_there_is_told(folder: Path, tmp_path: Path) -> None:
    message = refused(tmp_path / "hubb", folder)

    assert message.startswith("model.source: ")
    assert "no such folder; give synthetic, hub, or a folder" in message


def test_a_folder_that_is_no_checkpoint_is_told(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()

    assert "photos: no config.json in it; not a checkpoint" in refused(tmp_path / "photos", folder)


def test_a_configuration_without_a_talker_is_told(source: Path, folder: Path) -> None:
    (source / "config.json").write_text(json.dumps({"model_type": "qwen2_5_omni_thinker", "torch_dtype": "bfloat16"}))

    message = refused(source, folder)

    assert "no talker_config" in message
    assert "has no Talker" in message


@pytest.mark.parametrize(
    ("text", "said"), [("{,", "config.json is not JSON"), ("3", "config.json is not a JSON object")]
)
def test_a_configuration_that_cannot_be_read_is_told(source: Path, folder: Path, text: str, said: str) -> None:
    (source / "config.json").write_text(text)

    assert said in refused(source, folder)


def test_a_single_file_without_an_index_is_read(folder: Path, tmp_path: Path) -> None:
    files = {name: content for name, content in checkpoint().items() if name in ("config.json", "LICENSE")}
    more = {"thinker.a": tensors()[BIAS], **tensors(), "thinker.z": tensors()[BIAS]}
    source = written(tmp_path / "single", {**files, "model.safetensors": safetensors(more)})

    pull(source, folder)

    assert_whole(folder)


def test_a_single_file_without_a_wanted_tensor_is_told(folder: Path, tmp_path: Path) -> None:
    less = {name: array for name, array in tensors().items() if name != HEAD}
    files = {"config.json": checkpoint()["config.json"], "model.safetensors": safetensors(less)}
    source = written(tmp_path / "single", files)

    message = refused(source, folder)

    assert f"model.safetensors: tensor {HEAD} is missing" in message
    assert "index" not in message


def test_a_folder_without_weights_is_told(folder: Path, tmp_path: Path) -> None:
    source = written(tmp_path / "bare", {"config.json": checkpoint()["config.json"]})

    assert "no model.safetensors in it; the snapshot is not whole" in refused(source, folder)


def test_a_weight_that_was_mended_is_read_again(folder: Path, tmp_path: Path) -> None:
    weight = tensors()[WEIGHT]
    weight[0, 0] = float("inf")
    source = written(tmp_path / "snapshot", checkpoint(weight=weight))
    assert "holds inf at flat index 0" in refused(source, folder)
    (source / FIRST).write_bytes(checkpoint()[FIRST])

    pull(source, folder)

    assert_whole(folder)


def test_what_was_read_of_another_folder_of_the_same_name_is_not_taken_up(
    source: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "PART_BYTES", 64)
    (tmp_path / "other").mkdir()
    other = written(tmp_path / "other" / source.name, checkpoint(weight=tensors()[WEIGHT] * 2))
    with pytest.raises(UserError, match="cannot be read"):
        fetch_from(Failing(other), folder)

    pull(source, folder)

    assert_whole(folder)


def test_what_was_read_of_tensors_with_other_names_is_not_taken_up(
    source: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The same ranges of the same shards, but another header in front of them.
    snapshot = FolderSnapshot(source)
    needed = planned(snapshot)
    renamed = dataclasses.replace(needed, tensors={f"x.{name}": spec for name, spec in needed.tensors.items()})
    with pytest.raises(UserError, match="cannot be read"):
        fetch(Failing(source), renamed, folder)

    pull(source, folder)

    assert_whole(folder)


def test_a_left_over_that_was_half_removed_never_touches_the_artifact(source: Path, folder: Path) -> None:
    # A kill while the left-over goes: its tensors are the artifact's own file by another name.
    pull(source, folder)
    part = folder.parent / ".projection.part"
    part.mkdir()
    os.link(folder / "model.safetensors", part / "model.safetensors")
    before = (folder / "model.safetensors").read_bytes()

    with pytest.raises(UserError, match="cannot be read"):
        fetch_from(Failing(source), folder)

    assert (folder / "model.safetensors").read_bytes() == before
    assert not os.path.samefile(folder / "model.safetensors", part / "model.safetensors")
    artifact.check(folder)


def test_a_left_over_loses_its_plan_before_anything_else(
    source: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left: list[list[str]] = []
    empty = locks.empty

    def watched(place: Path) -> None:
        if place.name == ".projection.part":
            left.append(sorted(path.name for path in place.iterdir()))
        empty(place)

    monkeypatch.setattr(locks, "empty", watched)

    pull(source, folder)

    assert left == [[], ["done", "model.safetensors"]]


def test_a_block_of_which_the_disk_takes_a_part_at_a_time_is_written_whole(
    source: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda descriptor, block, place: write(descriptor, block[:7], place))

    pull(source, folder)

    assert_whole(folder)


def test_a_range_whose_note_was_cut_short_is_fetched_again_and_no_other_is_taken_for_it(
    source: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On a full disk, the note of range 128 ends as "12", and the next one is written behind it.
    monkeypatch.setattr(planning, "PART_BYTES", 64)
    with pytest.raises(UserError, match="cannot be read"):
        fetch_from(Failing(source), folder)
    part = folder.parent / ".projection.part"
    targets = {str(item.target) for item in planned(FolderSnapshot(source)).ranges}
    missing = sorted(targets - set((part / "done").read_text().split()))
    with (part / "done").open("a") as journal:
        journal.write(missing[0])

    noted = write._noted(part / "done")

    assert noted == targets - set(missing)
    assert (part / "done").read_text().endswith("\n")
    with (part / "done").open("a") as journal:
        journal.write(missing[0])
    pull(source, folder)
    assert_whole(folder)


def test_after_an_error_of_writing_back_no_range_is_taken_for_fetched(
    source: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "PART_BYTES", 64)
    errors = iter([OSError(errno.EIO, "Input/output error")])

    def lose_once(descriptor: int) -> None:
        for error in errors:
            raise error

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lose_once)
        patch.setattr("pull.write.output.writing", lambda path: contextlib.nullcontext(path))
        assert refused(source, folder) == (
            f"{folder}: cannot be written (Input/output error); what was there before is as it was"
        )
    assert (folder.parent / ".projection.part" / "done").read_text() == ""

    pull(source, folder)

    assert_whole(folder)


def test_a_file_of_the_user_s_is_in_the_way_before_anything_is_fetched(source: Path, folder: Path) -> None:
    pull(source, folder)
    (folder / "notes.txt").write_text("mine")

    with pytest.raises(UserError, match=r"'notes\.txt' is not of the artifact, and would be lost with it; move it"):
        fetch_from(Failing(source), folder)

    assert (folder / "notes.txt").read_text() == "mine"
    assert not (folder.parent / ".projection.part").exists()


PREPROCESSOR = json.dumps(
    {"feature_extractor_type": "WhisperFeatureExtractor", "feature_size": 16, "hop_length": 160}, indent=3
)


def test_a_component_s_own_configuration_travels_with_it(source: Path, folder: Path) -> None:
    (source / "preprocessor_config.json").write_text(PREPROCESSOR)

    pulled = pull_frontend(FolderSnapshot(source), folder)

    assert set(artifact.check(pulled)["files"]) == {
        "LICENSE", "config.json", "model.safetensors", "preprocessor_config.json", "source.json",
    }  # fmt: skip
    assert (pulled / "preprocessor_config.json").read_text() == PREPROCESSOR
    assert json.loads((pulled / "source.json").read_text())["tensors"] == {}


def test_another_component_s_configuration_stays_where_it_is(source: Path, folder: Path) -> None:
    (source / "preprocessor_config.json").write_text(PREPROCESSOR)

    pull(source, folder)

    assert not (folder / "preprocessor_config.json").exists()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "snapshot: no preprocessor_config.json in it, nor a processor_config.json with feature_extractor"),
        ("{", "preprocessor_config.json is not JSON"),
        ("[]", "preprocessor_config.json is not a JSON object"),
    ],
)
def test_a_component_s_own_configuration_that_cannot_be_read_is_told(
    source: Path, folder: Path, content: str | None, expected: str
) -> None:
    if content is not None:
        (source / "preprocessor_config.json").write_text(content)

    with pytest.raises(UserError) as caught:
        pull_frontend(FolderSnapshot(source), folder)

    assert expected in str(caught.value)
    assert not folder.with_name("frontend").exists()


def test_the_command_pulls_from_a_folder(source: Path, tmp_path: Path) -> None:
    parameters = (ROOT / "params.yaml").read_text()
    assert "source: synthetic  " in parameters
    (tmp_path / "params.yaml").write_text(parameters.replace("source: synthetic  ", f"source: {source.name}  ", 1))

    done = subprocess.run(
        [sys.executable, "-m", "pull", "projection"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert done.returncode == 0, done.stderr
    assert_whole(tmp_path / "models" / "source" / "projection")


@pytest.mark.parametrize("name", ["config.json", "LICENSE"])
def test_a_small_file_that_links_to_one_of_the_user_s_is_refused(
    source: Path, folder: Path, tmp_path: Path, name: str
) -> None:
    """What is small is published as it is."""
    own = tmp_path / "own"
    own.write_bytes((source / name).read_bytes() if (source / name).exists() else b"a secret")
    (source / name).unlink(missing_ok=True)
    (source / name).symlink_to(own)

    said = f"{source / name}: a link that leads out of the checkpoint; copy the file there if it is yours"
    assert refused(source, folder) == said


def test_a_small_file_of_gigabytes_is_refused_before_it_is_read(source: Path, folder: Path) -> None:
    with (source / "LICENSE").open("wb") as file:
        file.truncate(3 << 30)

    assert "LICENSE: 3,221,225,472 bytes; it should have at most 67,108,864" in refused(source, folder)


@pytest.mark.parametrize("layers", [1_001, 10**9, 1e300, 10**30])
def test_more_layers_than_a_model_has_are_refused_before_they_are_listed(source: Path, layers: float) -> None:
    config = {"model_type": "qwen2_5_omni", "thinker_config": {"audio_config": {"encoder_layers": layers}}}
    (source / "config.json").write_text(json.dumps(config))

    with pytest.raises(UserError, match=r"audio_config\.encoder_layers is .*; no model has so many layers"):
        config_of(FolderSnapshot(source), component("encoder"))
