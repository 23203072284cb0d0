"""Commands whose output cannot be written, or holds what a terminal should not get."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from qwen_omni_onnx.common.console import one_line, without_commands

RUNS = {  # what is printed by typer, by rich and by print, and the exit code where streams are as they should be
    ("qwen_omni_onnx", "--help"): 0, ("qwen_omni_onnx",): 2, ("pull", "--help"): 0, ("pull", "--nothing"): 2,
    ("pull", "--dry-run"): 0, ("pull", "projection", "--dry-run"): 0, ("pull", "nowhere"): 1,
}  # fmt: skip
# Told by the same libraries as others, but these start for seconds.
ALIKE = [("pull", "--help"), ("pull", "--nothing"), ("pull", "--dry-run")]


def run_in_shell(arguments: tuple[str, ...], ending: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command as the shell starts it with this ending; its exit code is that of ``python``."""
    return subprocess.run(
        ["bash", "-c", f'"$0" -m "$@" {ending}; exit ${{PIPESTATUS[0]}}', sys.executable, *arguments],
        cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


@pytest.mark.parametrize(
    "arguments", [pytest.param(run, marks=pytest.mark.slow if run in ALIKE else [], id=" ".join(run)) for run in RUNS]
)
def test_no_stream_makes_a_command_fail_with_a_traceback(arguments: tuple[str, ...]) -> None:
    """What should be printed to stdout and cannot be ends with an exit code of its own; nothing else changes."""
    code = RUNS[arguments]
    printed = code == 0
    unread = 0 if arguments[0] == "qwen_omni_onnx" else 141  # what is spoken is there without a reader
    for ending, environment, expected, said in (
        ("> /dev/full", {}, 1 if printed else code, "error: stdout: No space left on device\n" if printed else None),
        ("| true", {}, unread if printed else code, "" if printed else None),
        (">&-", {}, code, "" if printed else None),
        ("2> /dev/full", {}, code, ""),
        ("2>&1 >&- | true", {}, code, ""),
        (">&- 2>&- <&-", {}, code, ""),
        ("", {"PYTHONIOENCODING": "ascii"}, code, "" if printed else None),
    ):
        done = run_in_shell(arguments, ending, **environment)

        assert done.returncode == expected, (ending, done.stderr)
        assert said is None or done.stderr == said, ending
        assert "Traceback" not in done.stderr
        assert "Exception ignored" not in done.stderr


def test_text_that_an_encoding_does_not_have_is_printed_as_escapes() -> None:
    script = "from qwen_omni_onnx.common.errors import run_command\nrun_command(lambda: print('fjord \\u00e4 \\udce4'))"
    for environment, printed in (
        ({"PYTHONIOENCODING": "ascii"}, b"fjord \\xe4 \\udce4\n"),
        ({"PYTHONIOENCODING": "utf-8"}, b"fjord \xc3\xa4 \\udce4\n"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", script],
            cwd=ROOT,
            env={**os.environ, **environment},
            capture_output=True,
            check=False,
        )

        assert (done.returncode, done.stdout, done.stderr) == (0, printed, b"")


def test_no_file_gets_what_is_printed_to_a_stream_that_is_closed(tmp_path: Path) -> None:
    """The first file that is opened would have the number of stdout."""
    script = (
        "import os\nfrom pathlib import Path\nfrom qwen_omni_onnx.common import output\n"
        "from qwen_omni_onnx.common.errors import run_command\n"
        "def command():\n"
        "    with output.writing(Path('out')) as beside, beside.open('wb') as file:\n"
        "        for number in (1, 2): os.write(number, b'from a library')\n"
        "        print('from a command', flush=True)\n"
        "        file.write(b'a sound')\n"
        "run_command(command)\n"
    )
    (tmp_path / "script.py").write_text(script)
    for closed in (">&-", "2>&-", "<&- >&- 2>&-"):
        done = subprocess.run(
            ["bash", "-c", f'"$0" script.py {closed}', sys.executable],
            cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
        )  # fmt: skip

        assert done.returncode == 0, done.stderr
        assert (tmp_path / "out").read_bytes() == b"a sound"


# Messages


def test_a_message_is_one_printable_line() -> None:
    assert one_line("a\nb\r\x1b[31m\u2028\udce4 ä 東京 \u202e") == "a\\nb\\r\\x1b[31m\\u2028\\udce4 ä 東京 \\u202e"

    name = b"no\nsuch\x1b[2J\xe4.wav"
    done = subprocess.run(
        [sys.executable.encode(), b"-m", b"qwen_omni_onnx", b"verify", name],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.returncode == 1
    assert done.stderr.startswith("error: no\\nsuch\\x1b[2J\\udce4.wav: nothing published there")
    assert done.stderr.count("\n") == 1


def test_a_reply_is_text_and_no_command_to_the_terminal() -> None:
    said = "one\n\ttwo ä 東京 👨\u200d👩\u200d👧 \u05d0"

    assert without_commands(said) == said
    assert without_commands("\x1b[2J\x9b31m\r\x07\x7f\x00") == "\\x1b[2J\\x9b31m\\r\\x07\\x7f\\x00"
