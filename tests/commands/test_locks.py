"""What belongs to a process while it lives: refused to others, and free once it has ended, however it ended."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import ROOT

from qwen_omni_onnx.common import locks
from qwen_omni_onnx.common.errors import UserError

HELD = """
import sys
from pathlib import Path
from qwen_omni_onnx.common import locks

place, what = Path("place"), sys.argv[1]
with locks.claimed(place, Path("whole")) if what == "claimed" else getattr(locks, what)(Path()) as path:
    path = path or place
    (path / "half" if path.is_dir() else path).write_text("half")
    {more}
    print("ready", flush=True)
    sys.stdin.read()
"""
FORKED = """
import os, time
if not os.fork():
    os.close(0)
    time.sleep(60)
    os._exit(0)
"""
CHILD = "import subprocess; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], stdin=-3)"


@contextlib.contextmanager
def holder(what: str, folder: Path, more: str = "") -> Iterator[subprocess.Popen[str]]:
    """Yield a process that holds something in a folder, until its stdin is closed."""
    script = HELD.format(more=more.strip().replace("\n", "\n    "))
    process = subprocess.Popen(
        [sys.executable, "-c", script, what],
        cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdin.close()
        process.stdout.close()


def let_go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait() == 0


def claim(folder: Path) -> list[str]:
    """Claim what ``holder`` does; return what was left in it."""
    with locks.claimed(folder / "place", folder / "whole"):
        return sorted(path.name for path in (folder / "place").iterdir())


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_claimed_folder_is_refused_to_another_process_at_once(tmp_path: Path, message: Callable[..., str]) -> None:
    with holder("claimed", tmp_path):
        said = message(claim, tmp_path)

    assert said == f"{tmp_path / 'whole'}: is being written by another process; wait until it is done, or stop it"


def test_a_claimed_folder_is_refused_to_another_thread(tmp_path: Path) -> None:
    refused = []

    def other() -> None:
        try:
            claim(tmp_path)
        except UserError as problem:
            refused.append(problem)

    with locks.claimed(tmp_path / "place", tmp_path / "whole"):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()

    assert len(refused) == 1
    assert claim(tmp_path) == []


def test_what_a_killed_process_had_claimed_is_taken_over_with_what_is_in_it(tmp_path: Path) -> None:
    with holder("claimed", tmp_path) as process:
        process.kill()
        process.wait()

        assert claim(tmp_path) == ["half"]


def test_a_process_that_the_killed_one_had_started_keeps_nothing(tmp_path: Path) -> None:
    with holder("claimed", tmp_path, CHILD) as process:
        process.kill()
        process.wait()

        assert claim(tmp_path) == ["half"]


def test_a_process_that_was_forked_keeps_nothing_once_the_other_is_done(tmp_path: Path) -> None:
    with holder("claimed", tmp_path, FORKED) as process:
        let_go(process)

        assert claim(tmp_path) == ["half"]


def test_a_claimed_folder_that_is_empty_goes_and_another_stays(tmp_path: Path) -> None:
    claim(tmp_path)
    assert names(tmp_path) == []

    with locks.claimed(tmp_path / "place", tmp_path / "whole"):
        (tmp_path / "place" / "half").touch()
    assert names(tmp_path) == ["place"]


def test_of_many_that_claim_one_folder_one_has_it_at_a_time(tmp_path: Path) -> None:
    inside, most, done = [0], [0], [0]

    def work() -> None:
        while done[0] < 300:
            with contextlib.suppress(UserError), locks.claimed(tmp_path / "place", tmp_path / "whole"):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                (tmp_path / "place" / "file").touch()
                assert names(tmp_path / "place") == ["file"]
                locks.empty(tmp_path / "place")
                inside[0] -= 1
                done[0] += 1

    with ThreadPoolExecutor(6) as threads:
        for finished in [threads.submit(work) for _ in range(6)]:
            finished.result()

    assert most == [1]
    assert names(tmp_path) == []


@pytest.mark.parametrize("what", ["temporary_file", "temporary_folder"])
def test_what_a_killed_process_left_is_removed_by_the_next_and_nothing_else(tmp_path: Path, what: str) -> None:
    own = [".qwen-omni-", ".qwen-omni-notes", "notes.writing", "notes.folder"]
    for name in own:
        (tmp_path / name).write_text("mine")
    with holder(what, tmp_path) as lives, holder(what, tmp_path) as dies:
        held = set(names(tmp_path)) - set(own)
        assert len(held) == 2
        dies.kill()
        dies.wait()

        with getattr(locks, what)(tmp_path) as path:
            kept = set(names(tmp_path)) - set(own) - {path.name}

        assert len(kept & held) == 1
        let_go(lives)
    assert names(tmp_path) == sorted(own)
    assert {(tmp_path / name).read_text() for name in own} == {"mine"}


def test_a_pipe_of_such_a_name_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / ".qwen-omni-x.writing")

    with locks.temporary_file(tmp_path) as path:
        path.write_text("x")


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOTSUP, errno.EINVAL, errno.EBADF])
def test_without_locks_a_single_run_works_and_nothing_of_another_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(descriptor: int, how: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    (tmp_path / ".qwen-omni-x.folder").mkdir()
    (tmp_path / ".qwen-omni-x.writing").write_text("perhaps of a process that lives")

    assert claim(tmp_path) == []
    with locks.temporary_folder(tmp_path) as folder, locks.temporary_file(tmp_path) as file:
        assert folder.is_dir()
        assert file.is_file()

    assert names(tmp_path) == [".qwen-omni-x.folder", ".qwen-omni-x.writing"]


def test_what_is_taken_for_abandoned_before_it_is_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = locks._open
    swept: list[Path] = []

    def sweep_first(path: Path) -> int:
        if not swept:
            swept.append(path)
            path.rmdir()
        return opened(path)

    monkeypatch.setattr(locks, "_open", sweep_first)

    with locks.temporary_folder(tmp_path) as folder:
        assert folder.is_dir()
        assert folder != swept[0]
