"""Artifacts: whole or refused, replaced at once, and never leading out of their folder."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from safetensors import SafetensorError

from qwen_omni_onnx.common import artifact, swap
from qwen_omni_onnx.common.artifact import MANIFEST
from qwen_omni_onnx.common.errors import UserError

Message = Callable[..., str]


def write(folder: Path, graph: str = "graph", **facts: object) -> None:
    """An artifact of two files, one of them in a folder of its own."""
    with artifact.writing(folder, **facts) as beside:
        (beside / "graph.onnx").write_text(graph)
        (beside / "golden").mkdir()
        (beside / "golden" / "cases").write_text("cases")


def left_overs(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.parent.iterdir() if path != folder)


def edit_manifest(folder: Path, edit: Callable[[dict], object]) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    edit(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole artifact, alone in its parent."""
    folder = tmp_path / "models" / "projection"
    write(folder, kind="onnx")
    return folder


def test_what_was_written_is_sealed_with_a_manifest_of_every_file(folder: Path) -> None:
    manifest = artifact.check(folder)

    assert manifest == {
        "kind": "onnx",
        "files": {
            "golden/cases": {"bytes": 5, "sha256": hashlib.sha256(b"cases").hexdigest()},
            "graph.onnx": {"bytes": 5, "sha256": hashlib.sha256(b"graph").hexdigest()},
        },
    }
    assert left_overs(folder) == []


def test_nothing_is_in_place_before_the_end(tmp_path: Path, message: Message) -> None:
    folder = tmp_path / "projection"

    with artifact.writing(folder) as beside:
        (beside / "graph.onnx").write_text("graph")

        assert beside.parent.parent == folder.parent
        assert message(artifact.check, folder) == (
            f"{folder}: no artifact here (no manifest.json); run the stage that makes it, or dvc repro"
        )
    artifact.check(folder)


def test_an_exception_leaves_the_old_artifact_and_nothing_else(folder: Path) -> None:
    before = artifact.check(folder)

    def fail_halfway() -> None:
        with artifact.writing(folder, kind="onnx") as beside:
            (beside / "graph.onnx").write_text("half of a gr")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_halfway()

    assert artifact.check(folder) == before
    assert left_overs(folder) == []


def test_an_exception_where_nothing_was_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), artifact.writing(tmp_path / "models" / "projection"):
        raise ZeroDivisionError

    assert list((tmp_path / "models").iterdir()) == []


@pytest.mark.parametrize("atomic", [True, False], ids=["exchanged", "renamed twice"])
def test_an_artifact_is_replaced_as_a_whole(folder: Path, monkeypatch: pytest.MonkeyPatch, atomic: bool) -> None:
    exchange = swap.exchange
    monkeypatch.setattr(swap, "exchange", lambda one, other: atomic and exchange(one, other))

    with artifact.writing(folder, kind="onnx", graphs=[]) as beside:
        (beside / "other.onnx").write_text("other")

    assert list(artifact.check(folder)["files"]) == ["other.onnx"]
    assert not (folder / "graph.onnx").exists()
    assert left_overs(folder) == []


def test_files_that_a_cache_holds_under_another_name_stay_as_they_are(folder: Path, tmp_path: Path) -> None:
    """As DVC would, with hard links: neither the content nor the mode of a cached file may change with an artifact."""
    cached = {path: tmp_path / f"cached-{path.name}" for path in folder.rglob("*") if path.is_file()}
    for path, copy in cached.items():
        os.link(path, copy)
        copy.chmod(0o444)
    before = {copy: copy.read_bytes() for copy in cached.values()}

    write(folder, "another graph", kind="onnx")
    artifact.write_json(folder.parent / "report.json", {"new": True})
    os.link(folder.parent / "report.json", tmp_path / "cached-report")
    artifact.write_json(folder.parent / "report.json", {"new": False})

    assert {copy: copy.read_bytes() for copy in before} == before
    assert {copy.stat().st_mode & 0o777 for copy in before} == {0o444}
    assert json.loads((tmp_path / "cached-report").read_text()) == {"new": True}


def test_the_exchange_happens_at_once_where_the_system_can(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    other.mkdir()
    (one / "in one").touch()

    exchanged = swap.exchange(one, other)

    assert exchanged
    assert [path.name for path in other.iterdir()] == ["in one"]
    assert list(one.iterdir()) == []


def test_an_exchange_that_fails_for_a_reason_of_its_own_is_told(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()

    with pytest.raises(FileNotFoundError, match="nowhere"):
        swap.exchange(tmp_path / "one", tmp_path / "nowhere")


def test_two_renames_of_which_the_second_fails_bring_the_old_artifact_back(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = artifact.check(folder)
    rename = os.rename

    def refuse_the_new_one(source: Path, target: Path) -> None:
        if target == folder and source.name != "replaced":
            raise OSError("no")
        rename(source, target)

    monkeypatch.setattr(swap, "exchange", lambda one, other: False)
    monkeypatch.setattr(os, "rename", refuse_the_new_one)

    with pytest.raises(OSError, match="no"):
        write(folder, "new graph", kind="onnx")

    assert artifact.check(folder) == before
    assert left_overs(folder) == []


def test_what_killed_runs_left_behind_is_swept_and_nothing_else(folder: Path) -> None:
    for name in (".projection.writing/x1y2z3", ".projection.writing/replaced", ".encoder.writing/x1y2z3"):
        (folder.parent / name).mkdir(parents=True)
        (folder.parent / name / "graph.onnx").write_text("half of a gr")

    write(folder, kind="onnx")

    assert left_overs(folder) == [".encoder.writing"]


def test_a_link_to_a_folder_elsewhere_stays_a_link(folder: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "another disk" / "projection"
    elsewhere.parent.mkdir()
    shutil.move(folder, elsewhere)
    folder.symlink_to(elsewhere)

    write(folder, "new graph", kind="onnx")

    assert folder.is_symlink()
    assert (elsewhere / "graph.onnx").read_text() == "new graph"
    artifact.check(folder)
    assert left_overs(folder) == left_overs(elsewhere) == []


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_is_no_artifact_is_never_written_over(tmp_path: Path, message: Message, kind: str) -> None:
    mine = tmp_path / "Documents"
    thesis = mine / "thesis.txt" if kind == "folder" else mine
    thesis.parent.mkdir(exist_ok=True)
    thesis.write_text("mine")

    said = message(write, mine)

    assert said == f"{mine}: in the way, and no artifact (no manifest.json); move it, or write elsewhere"
    assert thesis.read_text() == "mine"


@pytest.mark.parametrize(
    ("facts", "held"),
    [({"kind": "source"}, "'onnx'"), ({"kind": "onnx", "component": "encoder"}, "'onnx'"), ({}, "'onnx'")],
)
def test_only_an_artifact_of_the_same_kind_and_component_is_written_over(
    folder: Path, message: Message, facts: dict, held: str
) -> None:
    before = artifact.check(folder)

    said = message(write, folder, **facts)

    assert said == f"{folder}: in the way: it holds another artifact ({held}); move it, or write elsewhere"
    assert artifact.check(folder) == before


def test_what_a_stranger_calls_a_kind_does_not_break_the_message(folder: Path, message: Message) -> None:
    edit_manifest(folder, lambda manifest: manifest.update(kind="x\n" * 1000, component=["y"]))

    said = message(artifact.require_replaceable, folder, "onnx")

    assert len(said.removeprefix(str(folder))) < 250
    assert r"('x\nx\n" in said


@pytest.mark.parametrize("manifest", ["{}", "[]", "not JSON", '{"files": {"../x": {}}}'])
def test_another_s_manifest_is_no_artifact_to_write_over(folder: Path, message: Message, manifest: str) -> None:
    (folder / MANIFEST).write_text(manifest)

    assert message(write, folder, kind="onnx").startswith(f"{folder}/manifest.json: ")
    assert (folder / MANIFEST).read_text() == manifest


@pytest.mark.parametrize("name", ["notes.txt", "golden/notes.txt", "own/notes.txt", ".git/HEAD", ".hidden"])
def test_a_file_that_a_user_put_into_an_artifact_is_not_lost_with_it(folder: Path, message: Message, name: str) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("mine")

    said = message(write, folder, "new graph", kind="onnx")

    named = ".git" if name.startswith(".git") else name
    assert said == f"{folder}: {named!r} is not of the artifact, and would be lost with it; move it"
    assert (folder / name).read_text() == "mine"
    assert (folder / "graph.onnx").read_text() == "graph"


def test_a_link_that_a_user_put_into_an_artifact_is_not_lost_with_it(folder: Path, message: Message) -> None:
    (folder / "notes").symlink_to(folder.parent)

    assert "'notes' is not of the artifact" in message(write, folder, kind="onnx")


def test_a_file_that_is_put_into_the_old_artifact_meanwhile_is_not_lost_with_it(folder: Path, message: Message) -> None:
    def write_slowly() -> None:
        with artifact.writing(folder, kind="onnx") as beside:
            (beside / "graph.onnx").write_text("new graph")
            (folder / "notes.txt").write_text("mine")

    assert "'notes.txt' is not of the artifact" in message(write_slowly)
    assert (folder / "notes.txt").read_text() == "mine"
    assert left_overs(folder) == []


@pytest.mark.parametrize("name", [".cache/huggingface/x", ".gitattributes", ".DS_Store", "golden/._cases"])
def test_what_systems_put_into_an_artifact_is_in_nobody_s_way(folder: Path, name: str) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).touch()

    write(folder, "new graph", kind="onnx")

    assert (folder / "graph.onnx").read_text() == "new graph"
    artifact.check(folder)


def test_an_artifact_that_lost_a_file_is_written_over(folder: Path) -> None:
    (folder / "graph.onnx").unlink()

    write(folder, kind="onnx")

    artifact.check(folder)


@pytest.mark.parametrize("inside", ["new", "golden/new", "golden"])
def test_nothing_is_written_into_an_artifact(folder: Path, message: Message, inside: str) -> None:
    before = artifact.check(folder)

    said = message(write, folder / inside, kind="onnx")

    assert said == f"{folder / inside}: lies in an artifact, {folder}, which would not be whole then; write elsewhere"
    assert artifact.check(folder) == before


def test_the_manifest_of_a_web_page_makes_nothing_an_artifact(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text('{"name": "a page"}')

    write(tmp_path / "models/projection", kind="onnx")

    artifact.check(tmp_path / "models/projection")


def test_facts_may_be_filled_by_the_body(tmp_path: Path) -> None:
    graphs: list[str] = []

    with artifact.writing(tmp_path / "projection", graphs=graphs):
        graphs.append("graph")

    assert artifact.check(tmp_path / "projection")["graphs"] == ["graph"]


def test_a_full_disk_is_told_with_the_folder_and_not_with_the_place_beside_it(folder: Path, message: Message) -> None:
    before = artifact.check(folder)
    errors = [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError("100 requested and 40 written"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        OSError(errno.ENOSPC, "No space left on device", "graph.onnx"),
    ]

    def write_onto_a_full_disk(error: Exception) -> None:
        with artifact.writing(folder, kind="onnx") as beside:
            if isinstance(error, OSError) and error.filename:
                error.filename = str(beside / error.filename)
            raise error

    for error in errors:
        said = message(write_onto_a_full_disk, error)
        assert said.startswith(f"{folder}: cannot be written (No space left on device: free some space); what was")
        assert artifact.check(folder) == before
        assert left_overs(folder) == []


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EACCES, "Permission denied", "/elsewhere/weights"),
        OSError(errno.ENOSPC, "No space left on device", "/elsewhere/weights"),
        OSError(errno.EIO, "Input/output error"),
        OSError("killed"),
        SafetensorError("Error while deserializing: No such file or directory (os error 2)"),
        UserError("models/onnx: something else"),
    ],
)
def test_an_error_that_is_of_something_else_stays_what_it_is(folder: Path, error: Exception) -> None:
    with pytest.raises(type(error)) as raised, artifact.writing(folder, kind="onnx"):
        raise error

    assert raised.value is error
    assert left_overs(folder) == []


def test_an_error_of_writing_back_is_told_with_the_folder(
    folder: Path, message: Message, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = artifact.check(folder)

    def lose(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", lose)

    assert message(write, folder, kind="onnx") == (
        f"{folder}: cannot be written (Input/output error); what was there before is as it was"
    )
    assert artifact.check(folder) == before


def test_two_writers_of_one_json_file_do_not_meet(tmp_path: Path) -> None:
    reports = [{"of": name, "rows": [name] * 10_000} for name in "ab"]

    def write_often(report: dict) -> None:
        for _ in range(30):
            artifact.write_json(tmp_path / "report.json", report)
            assert artifact.read_json(tmp_path / "report.json") in reports

    with ThreadPoolExecutor() as threads:
        for done in [threads.submit(write_often, report) for report in reports]:
            done.result()

    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_an_empty_folder_is_no_obstacle(tmp_path: Path) -> None:
    folder = tmp_path / "projection"
    folder.mkdir()

    write(folder)

    artifact.check(folder)


def test_a_link_in_the_body_is_refused_and_its_target_not_touched(
    folder: Path, tmp_path: Path, message: Message
) -> None:
    before = artifact.check(folder)
    outside = tmp_path / "outside"
    outside.write_text("mine")
    outside.chmod(0o600)

    def write_a_link() -> None:
        with artifact.writing(folder, kind="onnx") as beside:
            (beside / "graph.onnx").symlink_to(outside)

    assert "'graph.onnx' is a link" in message(write_a_link)

    assert outside.stat().st_mode & 0o777 == 0o600
    assert artifact.check(folder) == before


def test_files_and_folders_are_readable_by_all_whatever_the_umask(tmp_path: Path) -> None:
    folder = tmp_path / "projection"
    before = os.umask(0o077)
    try:
        write(folder)
    finally:
        os.umask(before)

    modes = {str(path.relative_to(folder)): path.stat().st_mode & 0o777 for path in (folder, *folder.rglob("*"))}
    assert modes == {".": 0o755, "golden": 0o755, "golden/cases": 0o644, "graph.onnx": 0o644, MANIFEST: 0o644}


def test_the_same_content_gives_the_same_fingerprint_anywhere(folder: Path, tmp_path: Path) -> None:
    write(tmp_path / "elsewhere", kind="onnx")

    assert artifact.fingerprint(tmp_path / "elsewhere") == artifact.fingerprint(folder)


@pytest.mark.parametrize("change", [{"graph": "hparg"}, {"graphs": []}], ids=["a byte", "a fact"])
def test_another_content_or_another_fact_gives_another_fingerprint(folder: Path, change: dict) -> None:
    before = artifact.fingerprint(folder)

    write(folder, kind="onnx", **change)

    assert artifact.fingerprint(folder) != before


def test_there_is_no_fingerprint_without_an_artifact(tmp_path: Path, message: Message) -> None:
    assert "no artifact here" in message(artifact.fingerprint, tmp_path)


def test_a_missing_file_is_named(folder: Path, message: Message) -> None:
    (folder / "golden" / "cases").unlink()

    assert message(artifact.check, folder) == f"{folder}/golden/cases: missing; build the artifact again"


@pytest.mark.parametrize("name", ["extra", "golden/extra", "golden/manifest.json", ".hidden"])
def test_an_extra_file_is_named(folder: Path, message: Message, name: str) -> None:
    (folder / name).touch()

    assert message(artifact.check, folder) == f"{folder}: {name!r} is not in the manifest; build the artifact again"


@pytest.mark.parametrize(
    "name",
    [
        ".gitattributes", ".cache/huggingface/download/README.md.metadata", ".cache/huggingface/.gitignore",
        ".DS_Store", "golden/.DS_Store", "._graph.onnx", "golden/._cases", "Thumbs.db", "desktop.ini",
        ".git/HEAD", ".gitignore",
    ],
)  # fmt: skip
def test_what_the_hub_and_systems_put_beside_is_not_looked_at(folder: Path, tmp_path: Path, name: str) -> None:
    expected = artifact.check(folder)
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).symlink_to(tmp_path / "nowhere")  # which would be refused if it were

    assert artifact.check(folder) == expected


def test_what_a_manifest_lists_is_looked_at_whatever_its_name(folder: Path, message: Message) -> None:
    with artifact.writing(folder, kind="onnx") as beside:
        (beside / ".gitattributes").write_text("listed")
    (folder / ".gitattributes").write_text("change")

    assert message(artifact.check, folder).startswith(f"{folder}/.gitattributes: its SHA-256 is not the manifest's")


def test_who_downloaded_a_folder_is_not_told_to_build_it(tmp_path: Path, message: Message) -> None:
    folder = tmp_path / "downloaded"
    write(folder, kind="published")
    (folder / "graph.onnx").write_text("other")

    assert message(artifact.check, folder).endswith("; download the folder again, or publish it again")


def test_a_name_of_several_lines_does_not_break_the_message(folder: Path, message: Message) -> None:
    (folder / "extra\nerror: all is well").touch()

    assert r"'extra\nerror: all is well' is not in the manifest" in message(artifact.check, folder)


@pytest.mark.parametrize("length", [0, 4, 6])
def test_a_file_of_another_size_is_named_with_both_sizes(folder: Path, message: Message, length: int) -> None:
    (folder / "graph.onnx").write_text("graph!"[:length])

    assert message(artifact.check, folder) == (
        f"{folder}/graph.onnx: {length} bytes, the manifest says 5; build the artifact again"
    )


def test_a_single_altered_bit_is_noticed(folder: Path, message: Message) -> None:
    content = bytearray((folder / "graph.onnx").read_bytes())
    content[2] ^= 1
    (folder / "graph.onnx").write_bytes(content)

    assert message(artifact.check, folder) == (
        f"{folder}/graph.onnx: its SHA-256 is not the manifest's; build the artifact again"
    )


def test_a_file_that_became_a_folder_is_missing(folder: Path, message: Message) -> None:
    (folder / "graph.onnx").unlink()
    (folder / "graph.onnx").mkdir()

    assert message(artifact.check, folder) == f"{folder}/graph.onnx: missing; build the artifact again"


@pytest.mark.parametrize("name", ["graph.onnx", "golden", "golden/cases", MANIFEST])
def test_a_link_is_refused_even_to_the_very_same_content(
    folder: Path, tmp_path: Path, message: Message, name: str
) -> None:
    shutil.move(folder / name, tmp_path / "away")
    (folder / name).symlink_to(tmp_path / "away")

    assert message(artifact.check, folder) == (
        f"{folder}: {name!r} is a link or a special file; an artifact holds plain files only"
    )


@pytest.mark.parametrize("target", ["/", "nowhere", "."])
def test_a_link_that_no_manifest_lists_is_refused(folder: Path, message: Message, target: str) -> None:
    (folder / "golden" / "extra").symlink_to(target)

    assert "'golden/extra' is a link or a special file" in message(artifact.check, folder)


def test_a_pipe_is_refused_rather_than_waited_for(folder: Path, message: Message) -> None:
    (folder / "graph.onnx").unlink()
    os.mkfifo(folder / "graph.onnx")

    assert "'graph.onnx' is a link or a special file" in message(artifact.check, folder)


@pytest.mark.parametrize(
    "name",
    ["../outside", "golden/../../outside", "/outside", "golden//cases", "./graph.onnx", "..", ".", "",
     "..\\outside", "C:outside", "graph.onnx\n", MANIFEST],
)  # fmt: skip
def test_a_manifest_that_names_a_file_outside_the_folder_is_refused(folder: Path, message: Message, name: str) -> None:
    outside = folder.parent / "outside"
    outside.write_text("graph")
    entry = {"bytes": 5, "sha256": artifact.sha256(outside)}
    edit_manifest(folder, lambda manifest: manifest["files"].update({name: entry}))

    for function in (artifact.check, artifact.read_manifest, artifact.fingerprint):
        assert message(function, folder) == (
            f"{folder}/manifest.json: names {name!r}, which is no file in this folder; do not use it"
        )


def test_a_manifest_that_names_an_absolute_path_of_its_own_file_is_refused(folder: Path, message: Message) -> None:
    def make_absolute(manifest: dict) -> None:
        manifest["files"][str(folder / "graph.onnx")] = manifest["files"].pop("graph.onnx")

    edit_manifest(folder, make_absolute)

    assert "no file in this folder" in message(artifact.check, folder)


@pytest.mark.parametrize(
    "entry",
    [None, 5, [], {}, {"bytes": 5}, {"bytes": "5", "sha256": ""}, {"bytes": 5, "sha256": None}, {"sha256": ""}],
)
def test_an_entry_without_size_or_hash_is_refused(folder: Path, message: Message, entry: object) -> None:
    edit_manifest(folder, lambda manifest: manifest["files"].update({"graph.onnx": entry}))

    assert message(artifact.check, folder) == (
        f"{folder}/manifest.json: does not give bytes and sha256 of 'graph.onnx'; build the artifact again"
    )


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe", b'{"files": {}', b"[" * 100_000], ids=["empty", "{", "bytes", "cut", "deep"]
)
def test_a_manifest_that_is_not_json_is_refused(folder: Path, message: Message, content: bytes) -> None:
    (folder / MANIFEST).write_bytes(content)

    assert message(artifact.check, folder).startswith(f"{folder}/manifest.json: not JSON (")


@pytest.mark.parametrize("content", ["null", "[]", "{}", '{"files": []}', '{"files": null}'])
def test_a_manifest_without_a_table_of_files_is_refused(folder: Path, message: Message, content: str) -> None:
    (folder / MANIFEST).write_text(content)

    assert message(artifact.check, folder) == (
        f"{folder}/manifest.json: not a manifest (no table of files); build the artifact again"
    )


def test_a_folder_without_manifest_is_no_artifact_whatever_it_holds(folder: Path, message: Message) -> None:
    (folder / MANIFEST).unlink()

    assert message(artifact.check, folder) == (
        f"{folder}: no artifact here (no manifest.json); run the stage that makes it, or dvc repro"
    )


def test_json_is_sorted_indented_and_the_same_whatever_the_order(tmp_path: Path) -> None:
    artifact.write_json(tmp_path / "one.json", {"b": [1, 2.5], "a": {"y": True, "x": "ü"}})
    artifact.write_json(tmp_path / "other.json", {"a": {"x": "ü", "y": True}, "b": (1, 2.5)})

    content = (tmp_path / "one.json").read_bytes()
    assert content == (tmp_path / "other.json").read_bytes()
    assert content.startswith(b'{\n  "a": {\n    "x"')
    assert content.endswith(b"}\n")
    assert artifact.read_json(tmp_path / "one.json") == {"a": {"x": "ü", "y": True}, "b": [1, 2.5]}


def test_nan_becomes_null_at_any_depth(tmp_path: Path) -> None:
    nan = float("nan")

    artifact.write_json(tmp_path / "report.json", {"a": nan, "b": [nan, {"c": nan}], "d": 1.5})

    assert artifact.read_json(tmp_path / "report.json") == {"a": None, "b": [None, {"c": None}], "d": 1.5}


@pytest.mark.parametrize("value", [float("inf"), object()], ids=["infinity", "object"])
def test_what_json_cannot_hold_leaves_the_old_file(tmp_path: Path, value: object) -> None:
    report = tmp_path / "report.json"
    artifact.write_json(report, {"old": 1})

    with pytest.raises((ValueError, TypeError), match="JSON"):
        artifact.write_json(report, {"new": value})

    assert artifact.read_json(report) == {"old": 1}
    assert left_overs(report) == []


def test_json_is_renamed_into_place_and_the_old_file_stays_till_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = tmp_path / "reports" / "report.json"
    artifact.write_json(report, {"old": 1})

    def killed(source: Path, target: Path) -> None:
        assert json.loads(source.read_text()) == {"new": 1}
        assert source.parent == target.parent
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        artifact.write_json(report, {"new": 1})
    assert artifact.read_json(report) == {"old": 1}
    monkeypatch.undo()
    artifact.write_json(report, {"new": 1})

    assert artifact.read_json(report) == {"new": 1}
    assert left_overs(report) == []


def test_json_is_readable_by_all_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        artifact.write_json(tmp_path / "report.json", {})
    finally:
        os.umask(before)

    assert (tmp_path / "report.json").stat().st_mode & 0o777 == 0o644


def test_a_missing_json_file_is_named(tmp_path: Path, message: Message) -> None:
    path = tmp_path / "gate.json"

    assert message(artifact.read_json, path) == f"{path}: missing; run the stage that writes it, or dvc repro"
