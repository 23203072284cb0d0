"""Work in a process of its own: what it gives, what limits end it, and that nothing of it reaches the caller."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from qwen_omni_onnx.common.confined import ConfinedProcess, Limits, StoppedError
from qwen_omni_onnx.common.errors import UserError

GENEROUS = Limits(seconds=120, nbytes=2 << 30)


@pytest.fixture(scope="module")
def process() -> Iterator[ConfinedProcess]:
    with ConfinedProcess(GENEROUS) as found:
        yield found


def echo(value: Any) -> Any:
    return value


def process_id() -> int:
    return os.getpid()


def loop() -> None:
    while True:
        pass


def fill() -> None:
    taken = []
    while True:
        taken.append(bytearray(os.urandom(1 << 20)))


def crash(number: int) -> None:
    os.kill(os.getpid(), number)


def leave() -> None:
    os._exit(3)


def chatter() -> str:
    os.system("echo to stdout; echo to stderr >&2")
    print("printed")
    return "answer"


def flood() -> str:
    return "x" * (1 << 27)


def refuse(text: str) -> None:
    raise UserError(text)


def fail() -> None:
    raise KeyError("a\nb")


@pytest.mark.parametrize("value", [None, 1.5, "späť", "\udcff", "a\nb", [1, {"a": [float("inf")]}], "x" * 100_000])
def test_what_work_returns_comes_back(process: ConfinedProcess, value: Any) -> None:
    assert process.call(echo, value) == value


def test_calls_share_one_process_which_is_another_one(process: ConfinedProcess) -> None:
    first, second = process.call(process_id), process.call(process_id)

    assert first == second != os.getpid()


def test_a_mistake_in_it_is_one_here_and_anything_else_says_what_and_where(process: ConfinedProcess) -> None:
    with pytest.raises(UserError, match=r"^mend it$"):
        process.call(refuse, "mend it")
    with pytest.raises(StoppedError, match=r"^failed with KeyError: 'a\\nb' \(test_confined.py, line \d+\)$"):
        process.call(fail)
    assert process.call(echo, 1) == 1  # it goes on


def test_what_libraries_print_is_no_answer_and_is_not_seen(
    process: ConfinedProcess, capfd: pytest.CaptureFixture[str]
) -> None:
    assert process.call(chatter) == "answer"
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("limits", "work", "arguments", "said"),
    [
        (Limits(0.2, 2 << 30), loop, (), "took longer than 0.2 s"),
        (Limits(120, 200 << 20), fill, (), "took more than 0.21 GB of memory"),
        (GENEROUS, crash, (signal.SIGSEGV,), "crashed (SIGSEGV)"),
        (GENEROUS, crash, (signal.SIGABRT,), "crashed (SIGABRT)"),
        (GENEROUS, crash, (signal.SIGKILL,), "was killed, as a system does that is short of memory"),
        (GENEROUS, leave, (), "ended with exit code 3"),
        (GENEROUS, flood, (), "answered with more than 67 MB"),
    ],
)
def test_what_comes_to_no_end_of_its_own_is_stopped_and_takes_no_other_call(
    limits: Limits, work: Callable[..., None], arguments: tuple[int, ...], said: str
) -> None:
    with ConfinedProcess(limits) as stopped:
        with pytest.raises(StoppedError) as raised:
            stopped.call(work, *arguments)
        assert str(raised.value) == said
        with pytest.raises(StoppedError, match="was stopped before"):
            stopped.call(echo, 1)


def test_a_process_ends_with_its_object() -> None:
    confined = ConfinedProcess(GENEROUS)
    number = confined.call(process_id)
    del confined

    assert not Path(f"/proc/{number}").exists()


def test_a_process_ends_with_whoever_began_it_though_it_is_at_work(tmp_path: Path) -> None:
    program = (
        "import os, threading, test_confined as t\n"
        "process = t.ConfinedProcess(t.GENEROUS)\n"
        "print(process.call(t.process_id), flush=True)\n"
        "threading.Timer(0.1, lambda: os.kill(os.getpid(), 9)).start()\n"
        "process.call(t.loop)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    begun = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False
    )

    assert begun.returncode == -signal.SIGKILL
    number = int(begun.stdout)
    while _is_running(number):
        time.sleep(0.02)


def test_nothing_is_imported_from_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "resource.py").write_text("import os; os._exit(7)")  # imported when the process begins
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])

    with ConfinedProcess(GENEROUS) as process:
        assert process.call(echo, 1) == 1


def test_a_script_needs_no_guard(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import operator, sys\n"
        "from qwen_omni_onnx.common.confined import ConfinedProcess, Limits\n"
        "with ConfinedProcess(Limits(60, 2**31)) as process:\n"
        "    print(process.call(operator.add, 1, 2))\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, check=True)

    assert done.stdout == "3\n"


def _is_running(number: int) -> bool:
    try:
        return "(zombie)" not in Path(f"/proc/{number}/status").read_text()
    except OSError:
        return False
