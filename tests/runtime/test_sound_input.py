"""Where sound comes from: pipes, what is piped into a command, and what is no file."""

from __future__ import annotations

import gc
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import ROOT

from qwen_omni_onnx.sound import input as sound_input
from qwen_omni_onnx.sound.audio import INPUT_SAMPLE_RATE, read_audio

Message = Callable[..., str]
PROGRAM = (
    "import sys; from pathlib import Path; from qwen_omni_onnx.sound.audio import read_audio; "
    "from qwen_omni_onnx.common.errors import run_command; "
    "run_command(lambda: print(len(read_audio(Path(sys.argv[1])))))"
)


def _sound(path: Path, seconds: float = 2) -> Path:
    times = np.arange(int(seconds * INPUT_SAMPLE_RATE)) / INPUT_SAMPLE_RATE
    soundfile.write(path, 0.5 * np.sin(2 * np.pi * 440 * times), INPUT_SAMPLE_RATE)
    return path


def _piped(tmp_path: Path, content: bytes) -> Path:
    """Return a named pipe that something else writes to."""
    path = tmp_path / "pipe"
    os.mkfifo(path)

    def write() -> None:
        with path.open("wb") as pipe:
            try:
                pipe.write(content)
            except BrokenPipeError:
                return

    threading.Thread(target=write, daemon=True).start()
    return path


def _read_in_shell(command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", command], cwd=cwd, capture_output=True, text=True, check=False, timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT), "READ": f"{sys.executable} -c '{PROGRAM}'"},
    )  # fmt: skip


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.mp3", "a.aiff", "a.caf", "a.w64"])
def test_a_pipe_gives_what_the_file_does(name: str, tmp_path: Path) -> None:
    path = _sound(tmp_path / name)

    np.testing.assert_array_equal(read_audio(_piped(tmp_path, path.read_bytes())), read_audio(path))


@pytest.mark.parametrize("name", ["a.wav", "a.flac"])
@pytest.mark.parametrize(
    "command", ["cat {} | eval $READ /dev/stdin", "eval $READ /dev/stdin < {}", "eval $READ '<(cat {})'"]
)
def test_what_a_shell_pipes_into_a_command_is_read(command: str, name: str, tmp_path: Path) -> None:
    _sound(tmp_path / name)

    done = _read_in_shell(command.format(name), tmp_path)

    assert (done.stdout, done.stderr) == (f"{2 * INPUT_SAMPLE_RATE}\n", "")


@pytest.mark.parametrize("length", [0xFFFF_FFFF, 0x7FFF_F000])
def test_a_wav_of_unknown_length_comes_through_a_pipe(length: int, tmp_path: Path) -> None:
    data = bytearray(_sound(tmp_path / "a.wav").read_bytes())
    data[4:8] = data[40:44] = length.to_bytes(4, "little")

    assert len(read_audio(_piped(tmp_path, bytes(data)))) == 2 * INPUT_SAMPLE_RATE


def test_a_flac_that_was_written_to_a_pipe_is_whole(tmp_path: Path) -> None:
    """It does not know how many samples it has: 0 in the first block of its metadata."""
    path = _sound(tmp_path / "a.flac")
    data = bytearray(path.read_bytes())
    data[21] &= 0xF0
    data[22:26] = bytes(4)
    path.write_bytes(data)

    assert len(read_audio(path)) == 2 * INPUT_SAMPLE_RATE


def test_a_sound_that_was_cut_short_in_a_pipe_is_refused(tmp_path: Path, message: Message) -> None:
    data = _sound(tmp_path / "a.wav").read_bytes()

    assert "cut short" in message(read_audio, _piped(tmp_path, data[:-1_000]))


def test_an_empty_pipe_is_told(tmp_path: Path, message: Message) -> None:
    path = _piped(tmp_path, b"")

    assert message(read_audio, path) == f"{path}: empty; nothing came through the pipe"


def test_a_pipe_that_does_not_end_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, message: Message) -> None:
    monkeypatch.setattr(sound_input, "_MOST_PIPED", 1 << 21)
    path = _piped(tmp_path, bytes(1 << 23))

    assert message(read_audio, path) == f"{path}: more than 2,097,152 bytes came through the pipe; give a file"


def test_a_full_disk_is_told_with_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, message: Message) -> None:
    path = _piped(tmp_path, bytes(1 << 22))
    monkeypatch.setattr(sound_input.tempfile, "TemporaryFile", lambda: open("/dev/full", "wb"))  # noqa: SIM115

    said = message(read_audio, path)

    assert said.startswith(f"{path}: ")
    assert "(No space left on device); give a file" in said


def test_nothing_is_left_of_a_pipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(sound_input.tempfile, "tempdir", str(tmp_path / "temporary"))
    gc.collect()  # else, what other tests left may be closed in between
    before = len(os.listdir("/proc/self/fd"))

    read_audio(_piped(tmp_path, _sound(tmp_path / "a.flac").read_bytes()))

    assert not list((tmp_path / "temporary").iterdir())
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/null", "/dev/urandom", "/dev/full"])
def test_a_device_is_refused_and_not_read(device: str, message: Message) -> None:
    said = message(read_audio, Path(device))

    assert said == f"{device}: is a device or a socket; give an audio file, or a pipe that one comes through"


def test_a_socket_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, message: Message) -> None:
    monkeypatch.chdir(tmp_path)  # the path of a socket has to be short
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket")

        assert message(read_audio, Path("socket")).startswith("socket: is a device or a socket")


def test_a_hyphen_is_a_name_and_the_right_one_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, message: Message
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message(read_audio, Path("-")) == "-: no such file; /dev/stdin is what is piped into a command"

    _sound(Path("a.wav")).rename("-")
    assert len(read_audio(Path("-"))) == 2 * INPUT_SAMPLE_RATE


def test_a_link_that_leads_nowhere_and_a_name_that_cannot_be_are_told(tmp_path: Path, message: Message) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")

    assert message(read_audio, tmp_path / "link") == f"{tmp_path}/link: no such file"
    assert "loop: cannot be opened (Too many levels of symbolic links)" in message(read_audio, tmp_path / "loop")
    assert "cannot be opened (File name too long)" in message(read_audio, tmp_path / ("a" * 300))
    assert "cannot be opened (embedded null byte)" in message(read_audio, tmp_path / "a\0.wav")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_told(tmp_path: Path, message: Message) -> None:
    path = _sound(tmp_path / "a.wav")
    path.chmod(0)

    assert message(read_audio, path) == f"{path}: cannot be opened (Permission denied)"
