"""Commands that are asked to stop: they clean up, say so in one line, and have the exit code of the signal."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import NAME, ROOT, heed_signals, tiny_params, write_params

from qwen_omni_onnx.common import artifact

SIGNALS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated", signal.SIGHUP: "hung up"}
Running = subprocess.Popen[str]


def start(*arguments: str, cwd: Path | None = None, ignored: signal.Signals | None = None) -> Running:
    """Start Python, with a signal ignored as ``nohup`` does it."""
    return subprocess.Popen(
        [sys.executable, *arguments], cwd=cwd, env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=lambda: heed_signals(ignored),
    )  # fmt: skip


def start_script(body: str, *arguments: str, cwd: Path, ignored: signal.Signals | None = None) -> Running:
    """Start a command with this body, and wait until it has said that it runs."""
    lines = ["print('runs', flush=True)", *body.splitlines()]
    script = "\n".join(
        [
            "import os, signal, sys, time",
            "from pathlib import Path",
            "from omni import resources",
            "from qwen_omni_onnx.common import artifact, output",
            "from qwen_omni_onnx.common.errors import UserError, run_command",
            "def command():",
            *(f"    {line}" for line in lines),
            "run_command(command)",
        ]
    )
    running = start("-c", script, *arguments, cwd=cwd, ignored=ignored)
    assert running.stdout is not None
    assert running.stdout.readline() == "runs\n"
    return running


def wait_until_signals_are_heeded(process: Running) -> None:
    """Wait until the imports are over: before that, Python's own handlers are there, and nothing to clean up."""
    while True:
        status = Path(f"/proc/{process.pid}/status").read_text()
        caught = next(line for line in status.splitlines() if line.startswith("SigCgt"))
        if int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1:
            return
        time.sleep(0.001)


def ended(process: Running) -> tuple[int, str]:
    _, stderr = process.communicate(timeout=60)
    return process.returncode, stderr


# Signals

WRITING = {
    "a file": """
with output.writing(Path('out')) as beside:
    with beside.open('wb') as file:
        while True:
            file.write(bytes(1000))
""",
    "an artifact": """
while True:
    with artifact.writing(Path('out'), kind='test') as beside:
        for number in range(20_000):
            (beside / str(number % 10)).write_text(str(number))
""",
}


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("what", WRITING)
def test_a_signal_at_any_moment_leaves_nothing_behind(what: str, number: signal.Signals, tmp_path: Path) -> None:
    for _ in range(3):
        running = start_script(WRITING[what], cwd=tmp_path)
        time.sleep(random.uniform(0, 0.1))
        running.send_signal(number)

        assert ended(running) == (128 + number, f"{SIGNALS[number]}\n")
        assert [path.name for path in tmp_path.iterdir()] == []


@pytest.mark.parametrize("number", SIGNALS)
def test_what_is_ignored_when_a_command_starts_stays_ignored(number: signal.Signals, tmp_path: Path) -> None:
    running = start_script("os.kill(os.getpid(), int(sys.argv[1]))", str(int(number)), cwd=tmp_path, ignored=number)

    assert ended(running) == (0, "")


def test_a_second_signal_does_not_break_the_clean_up(tmp_path: Path) -> None:
    running = start_script(
        """
try:
    print('working', flush=True)
    while True: pass
finally:
    print('cleaning', flush=True)
    for _ in range(100): time.sleep(0.005)
    Path('cleaned').touch()
""",
        cwd=tmp_path,
    )
    assert running.stdout is not None
    assert running.stdout.readline() == "working\n"
    running.terminate()
    assert running.stdout.readline() == "cleaning\n"
    for number in SIGNALS:
        running.send_signal(number)

    assert ended(running) == (128 + signal.SIGTERM, "terminated\n")
    assert (tmp_path / "cleaned").exists()


def test_a_second_signal_stops_what_has_swallowed_the_first(tmp_path: Path) -> None:
    running = start_script(
        """
class Finalized:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(100): time.sleep(0.001)
Finalized()
print('swallowed', flush=True)
while True: pass
""",
        cwd=tmp_path,
    )
    assert running.stdout is not None
    assert running.stdout.readline() == "swallowed\n"
    running.terminate()

    code, stderr = ended(running)
    assert (code, stderr.splitlines()[-1]) == (128 + signal.SIGTERM, "terminated")


@pytest.mark.parametrize("number", SIGNALS)
def test_an_error_that_a_library_makes_of_an_interruption_is_told_as_one(
    number: signal.Signals, tmp_path: Path
) -> None:
    """pybind11 may see the exception while it converts an argument, and call that a wrong argument."""
    running = start_script(
        """
try:
    os.kill(os.getpid(), int(sys.argv[1]))
    while True: pass
except BaseException:
    raise UserError('ONNX Runtime cannot run the graph') from None
""",
        str(int(number)),
        cwd=tmp_path,
    )

    assert ended(running) == (128 + number, f"{SIGNALS[number]}\n")


def test_a_command_that_nobody_reads_can_be_stopped(tmp_path: Path) -> None:
    """The pipe is full, and whoever should read it does not: ``less`` that waits for a key."""
    running = start_script("while True: print('y' * 1000)", cwd=tmp_path)
    time.sleep(0.3)
    running.terminate()

    assert running.wait(timeout=10) == 128 + signal.SIGTERM
    assert ended(running) == (128 + signal.SIGTERM, "terminated\n")


def test_a_measured_process_ends_with_the_one_that_measures_it(tmp_path: Path) -> None:
    (tmp_path / "sleeper.py").write_text(
        "import os, time\nfrom pathlib import Path\nfrom qwen_omni_onnx.common.errors import run_command\n"
        "def command():\n"
        "    Path('started').touch()\n"
        "    try: time.sleep(60)\n"
        "    finally: Path('cleaned').touch()\n"
        "run_command(command)\n"
    )
    running = start_script("resources.measure_module('sleeper')", cwd=tmp_path)
    while not (tmp_path / "started").exists():
        time.sleep(0.01)
    running.terminate()

    assert ended(running) == (128 + signal.SIGTERM, "terminated\n")
    assert (tmp_path / "cleaned").exists()


@pytest.mark.parametrize("stage", ["pull", pytest.param("reference", marks=pytest.mark.slow)])
def test_a_stage_that_is_stopped_leaves_the_artifact_as_it_was(stage: str, workplace: Path) -> None:
    folder = {"pull": Path("models/source"), "reference": Path("models/reference")}[stage] / NAME
    if stage == "pull":  # else there would be nothing to do
        params = tiny_params()
        write_params(workplace, {**params, "model": {**params["model"], "seed": 1}})
    before = artifact.fingerprint(folder)
    shutil.copytree(folder, "before")
    whole = start("-m", stage, NAME, cwd=workplace)
    wait_until_signals_are_heeded(whole)
    since = time.monotonic()
    assert ended(whole) == (0, "")
    seconds, after = time.monotonic() - since, artifact.fingerprint(folder)

    for number in SIGNALS:
        shutil.rmtree(folder)
        shutil.copytree("before", folder)
        running = start("-m", stage, NAME, cwd=workplace)
        wait_until_signals_are_heeded(running)
        time.sleep(random.uniform(0, seconds))
        running.send_signal(number)

        assert ended(running) in [(128 + number, f"{SIGNALS[number]}\n"), (0, "")]
        artifact.check(folder)
        assert artifact.fingerprint(folder) in (before, after)
        assert not [path.name for path in folder.parent.iterdir() if path.name.endswith(".writing")]
