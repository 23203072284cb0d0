"""What users ask to be written: never over an input, over nothing unasked, and whole or not at all."""

from __future__ import annotations

import errno
import os
import resource
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from cli import call, speak
from conftest import ROOT

from qwen_omni_onnx.common import output
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.sound import file as sound_file


def test_what_is_not_there_may_be_written(tmp_path: Path) -> None:
    output.require_writable(tmp_path / "new", inputs=[tmp_path / "other", tmp_path / "gone"])


def test_what_is_there_may_only_go_if_that_is_said(tmp_path: Path, message: Callable[..., str]) -> None:
    (tmp_path / "here").write_text("mine")

    assert message(output.require_writable, tmp_path / "here").endswith(
        "is there already; give another name, or --overwrite"
    )
    output.require_writable(tmp_path / "here", overwrite=True)


@pytest.mark.parametrize("link", [None, "symlink_to", "hardlink_to"])
def test_an_input_is_never_written_over(tmp_path: Path, link: str | None, message: Callable[..., str]) -> None:
    (tmp_path / "in").write_text("mine")
    out = tmp_path / "in"
    if link:
        out = tmp_path / "out"
        getattr(out, link)(tmp_path / "in")

    said = message(output.require_writable, out, inputs=[tmp_path / "in"], overwrite=True)

    assert said == f"{out}: is what is read; give another name for what is to be written"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda at: at.mkdir(), "a folder; give the name of a file to write"),
        (os.mkfifo, "not a plain file; give another name"),
        (lambda at: at.symlink_to("nowhere"), "not a plain file; give another name"),
    ],
)
def test_what_is_no_file_is_not_replaced(
    make: Callable[[Path], object], said: str, tmp_path: Path, message: Callable[..., str]
) -> None:
    make(tmp_path / "out")

    assert message(output.require_writable, tmp_path / "out", overwrite=True) == f"{tmp_path / 'out'}: {said}"


@pytest.mark.parametrize("name", ["a" * 256, "ä" * 128])
def test_a_name_that_no_file_system_takes_is_told(tmp_path: Path, name: str, message: Callable[..., str]) -> None:
    assert "bytes; 255 is the most" in message(output.require_writable, tmp_path / name)


def test_the_longest_name_can_be_written(tmp_path: Path) -> None:
    with sound_file.writing(tmp_path / ("a" * 251 + ".wav")) as write:
        write(np.zeros(100, np.float32))

    assert [path.stat().st_size for path in tmp_path.iterdir()] == [244]


def test_what_was_there_stays_if_the_body_raises_or_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("before")

    def fail() -> None:
        with output.writing(tmp_path / "out") as beside:
            beside.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with output.writing(tmp_path / "out"):
        pass

    assert (tmp_path / "out").read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_two_writers_do_not_meet(tmp_path: Path) -> None:
    both = threading.Barrier(2)

    def write(text: str) -> None:
        with output.writing(tmp_path / "out") as beside:
            both.wait()
            beside.write_text(text * 100_000)
            both.wait()

    threads = [threading.Thread(target=write, args=(text,)) for text in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert (tmp_path / "out").read_text() in ("a" * 100_000, "b" * 100_000)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_a_file_has_the_mode_that_the_user_gives_files(tmp_path: Path, mask: int, mode: int) -> None:
    before = os.umask(mask)
    try:
        with output.writing(tmp_path / "out") as beside:
            beside.write_text("x")
    finally:
        os.umask(before)

    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == mode


_FULL = """
import resource, sys
import numpy as np
from pathlib import Path
from qwen_omni_onnx.common.errors import run_command
from qwen_omni_onnx.sound import file as sound_file

def main():
    resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))  # what a full disk is to a program that writes
    noise = np.random.default_rng(0).uniform(-1, 1, 240_000).astype(np.float32)
    with sound_file.writing(Path(sys.argv[1])) as write:
        for start in range(0, len(noise), 4800):
            write(noise[start : start + 4800])

run_command(main)
"""


@pytest.mark.parametrize("name", ["out.wav", "out.flac"])
@pytest.mark.parametrize("limit", [10_000, 400_000, 479_000])
def test_a_full_disk_is_told_and_costs_nothing(tmp_path: Path, name: str, limit: int) -> None:
    out = tmp_path / name
    soundfile.write(out, np.zeros(2400), 24_000)
    before = out.read_bytes()

    done = subprocess.run(
        [sys.executable, "-c", _FULL.format(limit=limit), str(out)],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.returncode == 1, done.stdout
    assert done.stderr.startswith(f"error: {out}: cannot be written"), done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert out.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


@pytest.mark.parametrize("past", [1, 5000])
def test_numpy_s_full_disk_is_told_to_the_last_byte(tmp_path: Path, past: int) -> None:
    out, array = tmp_path / "out.npy", np.zeros(10_000, np.uint8)
    script = (
        "import resource, sys; import numpy as np; from pathlib import Path; from qwen_omni_onnx.common import output\n"
        "from qwen_omni_onnx.common.errors import run_command\n"
        "def main():\n"
        f"    resource.setrlimit(resource.RLIMIT_FSIZE, ({array.nbytes + 128 - past},) * 2)\n"
        "    with output.writing(Path(sys.argv[1])) as beside, beside.open('w+b') as file:\n"
        f"        np.save(file, np.zeros({array.size}, np.uint8))\n"
        "run_command(main)\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", script, str(out)],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {out}: cannot be written (File too large: raise the limit"), done.stderr
    assert list(tmp_path.iterdir()) == []


def test_what_lies_in_a_folder_of_inputs_is_not_written(tmp_path: Path, message: Callable[..., str]) -> None:
    (tmp_path / "models/onnx").mkdir(parents=True)
    (tmp_path / "link").symlink_to("models/onnx")

    for place in ("models", "models/onnx", "link"):
        out = tmp_path / place / "out"
        said = message(output.require_writable, out, inputs=[tmp_path / "models", tmp_path / "gone"], overwrite=True)
        assert said.startswith(f"{out}: lies in {tmp_path / 'models'}, which is read")
    output.require_writable(tmp_path / "models.json", inputs=[tmp_path / "models"])


def test_a_folder_that_is_missing_or_not_writable_is_told_with_the_file(
    tmp_path: Path, message: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(out: Path) -> None:
        with output.writing(out) as beside:
            beside.write_text("x")

    assert message(write, tmp_path / "gone/out") == (
        f"{tmp_path}/gone/out: cannot be written (No such file or directory); what was there before is as it was"
    )

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "x"))

    monkeypatch.setattr(tempfile, "mkstemp", refuse)
    assert "out: cannot be written (Permission denied); what" in message(write, tmp_path / "out")


def test_an_input_that_cannot_be_read_is_not_taken_for_the_output(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), output.writing(tmp_path / "out"):
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "in"))


def test_a_full_disk_of_temporary_files_is_told_with_what_to_do(
    tmp_path: Path, message: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def write(parent: Path | None) -> None:
        with output.temporary_folder(parent) as folder:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder / "kept"))

    full = f"{tmp_path}: no temporary file can be written (No space left on device: free some space"
    assert message(write, None) == f"{full}, or set TMPDIR to a folder on another disk)"
    assert message(write, tmp_path) == f"{full})"
    assert list(tmp_path.iterdir()) == []


# The commands


def test_a_recording_is_not_replaced_by_the_reply_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, message: Callable[..., str]
) -> None:
    monkeypatch.chdir(tmp_path)
    soundfile.write("question.wav", np.zeros(1600), 16_000)
    before = Path("question.wav").read_bytes()

    said = message(speak, ["question.wav", "--text", "Translate."])
    same = message(speak, ["question.wav", "question.wav", "--overwrite"])

    assert said == "question.wav: is there already; give another name, or --overwrite"
    assert same == "question.wav: is what is read; give another name for what is to be written"
    assert Path("question.wav").read_bytes() == before


def test_codes_are_not_replaced_by_what_they_sound_like(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("codes.npy", np.zeros(4, np.int64))
    Path("codes.npy").rename("codes.wav")

    with pytest.raises(UserError, match=r"codes\.wav: is what is read"):
        call("vocode", "folder", "codes.wav", "codes.wav", "--overwrite")
