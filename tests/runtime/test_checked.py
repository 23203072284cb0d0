"""Notes on folders that were checked already: they save reading, and nothing depends on them."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest

from qwen_omni_onnx.checked import check_once
from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.common.errors import UserError


@pytest.fixture
def folder(gated: Path) -> Path:
    (found,) = (gated / "models/published/projection").iterdir()
    return found


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that were read to be checked."""
    names: list[str] = []
    usual = artifact.sha256
    monkeypatch.setattr(artifact, "sha256", lambda path: names.append(path.name) or usual(path))
    return names


def files_read(folder: Path, read: list[str]) -> int:
    read.clear()
    check_once(folder)
    return len(set(read) - {artifact.MANIFEST})


@pytest.mark.parametrize("home", [None, "", "here", "/nonexistent", "/proc"])
@pytest.mark.parametrize("cache", [None, "", "here", "/nonexistent/x", "/proc", "{file}"])
def test_a_place_that_takes_no_note_is_done_without(
    folder: Path, read: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, home: str | None, cache: str | None
) -> None:
    def unknown(uid: int) -> object:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    (tmp_path / "file").touch()
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr(artifact, "write_json", lambda path, value: (_ for _ in ()).throw(PermissionError(path)))
    for name, value in (("HOME", home), ("XDG_CACHE_HOME", cache)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value.format(file=tmp_path / "file"))
    before = {*Path().rglob("*")}

    assert files_read(folder, read) == files_read(folder, read) > 5
    assert {*Path().rglob("*")} == before


def test_a_relative_place_is_passed_over(
    folder: Path, read: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")

    assert files_read(folder, read) > 5
    assert files_read(folder, read) == 0
    assert list((tmp_path / "home/.cache/qwen-omni-onnx").iterdir())
    assert not Path("cache").exists()


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"manifest": "x"}', '{"files": 1}', "{files}"])
def test_a_note_that_is_damaged_is_done_without(
    folder: Path, read: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, damage: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    check_once(folder)
    (note,) = (tmp_path / "cache/qwen-omni-onnx").iterdir()
    known = f'{{"manifest": "{artifact.fingerprint(folder)}", "files": ["odd"]}}'
    note.write_text(damage.replace("{files}", known))

    assert files_read(folder, read) > 5
    assert files_read(folder, read) == 0


def test_a_file_that_changed_is_found_in_spite_of_the_note(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    check_once(folder)
    card = folder / "README.md"
    times = card.stat()
    card.write_text(card.read_text().replace("a", "b", 1))
    os.utime(card, ns=(times.st_atime_ns, times.st_mtime_ns))

    with pytest.raises(UserError, match="its SHA-256 is not the manifest's"):
        check_once(folder)
