"""Every command with values that nobody should give: one line, no traceback, and nothing written or lost.

The commands run in this process, on a tiny build of everything, one after the other in the same folder, which is the
same after each. That a mistake is told at once is not timed, as that depends on the machine: what takes its time, a
session of ONNX Runtime or the hash of a file of weights, must not have begun.
"""

from __future__ import annotations

import os
import runpy
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import hostile
import numpy as np
import onnxruntime
import pytest
from conftest import ROOT
from hostile import Argument, Command

from qwen_omni_onnx.common import artifact

COMMANDS = hostile.commands()
_PUBLISHED = "models/published/{0}/qwen2.5-omni-7b-{0}-onnx-synthetic"
# How each command is called rightly. Positional arguments in order; those of one name are numbered.
USUAL: dict[str, dict[str, str | bool]] = {
    "attacks": {"names": "arrays", "--mutations": "1"},
    "benchmarks.cluster": {},
    "benchmarks.decoder": {},
    "benchmarks.ear": {},
    "benchmarks.encoder": {"--layers": "built"},
    "benchmarks.four_bits": {},
    "benchmarks.live": {},
    "benchmarks.long_sound": {},
    "benchmarks.one_pass": {"name": "thinker"},
    "benchmarks.projection": {},
    "benchmarks.readme": {},
    "benchmarks.recipes": {"names": "projection"},
    "benchmarks.reply": {"--tokens": "8", "--codes": "50"},
    "benchmarks.sinks": {"name": "thinker", "--tokens": "8"},
    "benchmarks.spoiled": {"names": "projection"},
    "benchmarks.text": {},
    "benchmarks.token2wav": {"--layers": "built"},
    "data.speech.make": {"folder": "clips"},
    "export": {"name": "projection"},
    "calibrate": {"name": "projection"},
    "compose": {"name": "audio_core"},
    "compose.loop": {"step": "models/onnx/token2wav/dit_step.onnx", "out": "loop"},
    "inputs": {"components": "frontend"},
    "profiles": {"name": "small", "folder": "copy", "--source": "synthetic"},
    "profiles.run": {"--dry-run": True},
    "profiles.siblings": {"folder": "siblings"},
    "profiles.siblings.ear": {"folder": "ear"},
    "publish": {"names": "projection"},
    "publish.schemas": {},
    "pull": {"name": "projection"},
    "pull.link": {},
    "quantize": {"name": "encoder", "--sensitivity": True, "--schemes": "int8-tensor", "--target-db": "30"},
    "quantize.compensate": {"name": "projection"},
    "reference": {"name": "projection"},
    "reference.whole": {"folder": "replies", "--questions": "asked.json"},
    "qwen_omni_onnx speak": {
        "files": "question.wav", "files 2": "new.wav", "--max-tokens": "2", "--max-seconds": "0.2",
    },
    "qwen_omni_onnx pull": {"source": "models/published", "--components": "frontend", "--to": "pulled"},
    "qwen_omni_onnx verify": {"folder": _PUBLISHED.format("frontend")},
    "qwen_omni_onnx listen": {
        "frontend": _PUBLISHED.format("frontend"),
        "encoder": _PUBLISHED.format("encoder"),
        "sound": "question.wav",
        "out": "new.npy",
    },
    "qwen_omni_onnx vocode": {"folder": _PUBLISHED.format("token2wav"), "codes": "codes.npy", "out": "new.wav"},
    "validate contract": {"names": "projection"},
    "validate gate": {"names": "projection"},
    "validate latency": {"names": "projection"},
    "validate memory": {"names": "projection"},
    "validate parity": {"names": "projection"},
    "validate rebuild": {"names": "projection"},
    "validate report": {"--out": "page.html"},
    "validate speech": {"--questions": "asked.json"},
    "validate text": {"tasks": "mmlu"},
}  # fmt: skip
# What a command writes; every other file is read, and so are these folders.
WRITTEN = {"--json", "--out", "out", "files 2", "folder"}
READ_FOLDERS = {("qwen_omni_onnx verify", "folder"), ("qwen_omni_onnx vocode", "folder")}
HUGE, LONG = "9" * 20, "x" * 5000
VALUES = {
    "int": ("-1", "0", "nan", "1e400", "abc", "", "1.5", HUGE),
    "float": ("-1", "0", "nan", "inf", "-inf", "1e400", "1e300", "abc", ""),
    "text": ("", " ", "nonsense", "\x1b[2J", "a\nb", "\udcff", LONG, "../x", "-x", "*"),
}
READ = ("", "missing", "a\nb", "\udcff", "x" * 300, "a folder", "empty", "text", "pipe", "/dev/null", "/dev/zero")
TAKEN = ("", "a folder", "question.wav", "taken.wav", "taken.npy", "taken.json", "pipe", "params.yaml",
         "no/folder/x.wav", "text/x.wav", f"{'x' * 300}.wav", "models/onnx", "models", ".", "..")  # fmt: skip
# What is right after all, however odd it looks.
ALLOWED = {
    ("qwen_omni_onnx speak", "--text"): set(VALUES["text"]) - {"", " ", "\udcff", LONG},
    ("qwen_omni_onnx speak", "--system"): set(VALUES["text"]) - {"", " ", "\udcff", LONG},
    ("qwen_omni_onnx speak", "--max-tokens"): {HUGE},
    ("qwen_omni_onnx speak", "--max-seconds"): {"1e300"},
    ("qwen_omni_onnx speak", "--seed"): {"0", HUGE},
    ("qwen_omni_onnx vocode", "--seed"): {"0", HUGE},
    ("benchmarks.reply", "--seed"): {"0"},
    ("reference.whole", "--seed"): {"0"},
    ("benchmarks.four_bits", "--only"): {"*"},
    ("benchmarks.live", "--speech"): {""},  # the current folder, which holds sounds
    ("benchmarks.reply", "--speech"): {""},  # the current folder, which holds sounds
    ("publish", "--to"): set(VALUES["text"]) - {"", LONG},  # a folder is made where there is none
    ("qwen_omni_onnx pull", "--to"): {"", "missing", "a\nb", "\udcff", "a folder"},
    ("qwen_omni_onnx verify", "--max-seconds"): {"1e300"},
    ("qwen_omni_onnx verify", "--max-gib"): {"1e300"},
    ("qwen_omni_onnx speak", "--thinker-top-k"): {"0", HUGE},
    ("qwen_omni_onnx speak", "--talker-top-k"): {"0", HUGE},
    ("profiles", "folder"): {"no/folder/x.wav"},  # a folder is made where there is none
    ("profiles.siblings", "folder"): {"no/folder/x.wav"},
    ("profiles.siblings.ear", "folder"): {"no/folder/x.wav"},
    ("reference.whole", "folder"): {"no/folder/x.wav"},
    ("data.speech.make", "folder"): {"no/folder/x.wav"},
    ("export", "--out"): {"no/folder/x.wav"},
    ("quantize.compensate", "--out"): {"no/folder/x.wav"},
    ("compose", "--out"): {"no/folder/x.wav"},
    ("compose.loop", "out"): {"no/folder/x.wav"},
}
# Nothing wrong, but it would run for ever; a user can stop it.
ENDLESS = {("--rounds", HUGE)}
PATIENCE = 60  # seconds, after which a command that does not end is an error, and ends this process


@pytest.fixture(scope="module")
def place(gated_chain_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with everything built, and with what hostile values name; the current directory."""
    import soundfile

    folder = tmp_path_factory.mktemp("hostile") / "workplace"
    shutil.copytree(gated_chain_once, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("XDG_CACHE_HOME", str(folder.parent / "cache"))
        for name in ("question.wav", "taken.wav"):
            soundfile.write(name, 0.1 * np.sin(np.arange(16_000) * 0.1), 16_000)
        for name in ("codes.npy", "taken.npy"):
            np.save(name, np.arange(10))
        Path("a folder").mkdir()
        asked = '[{"name": "a", "language": "en", "text": "?"}]'
        for name, content in (
            ("a folder/mine", "mine"), ("empty", ""), ("text", "hello"), ("taken.json", "{}"), ("asked.json", asked),
        ):  # fmt: skip
            Path(name).write_text(content)
        os.mkfifo("pipe")
        yield folder


@pytest.fixture
def run(place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    return Run(monkeypatch, capfd)


class Run:
    """Runs commands, and says what became of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capfd = monkeypatch, capfd
        self.begun: list[str] = []  # what takes its time
        monkeypatch.setattr(onnxruntime, "InferenceSession", self._noted("a session", onnxruntime.InferenceSession))
        monkeypatch.setattr(artifact, "sha256", self._noted("a hash", artifact.sha256, of=(".data", ".safetensors")))

    def __call__(self, command: Command, given: dict[str, str | bool]) -> tuple[int, str]:
        """Return exit code and what stderr got; a traceback is raised."""
        known = [argument.name for argument in command.arguments]
        options = [name if value is True else f"{name}={value}" for name, value in given.items() if name[0] == "-"]
        positional = sorted(
            (name for name in given if name[0] != "-"), key=lambda name: (known.index(name.split()[0]), name)
        )
        arguments = [*command.word.split(), *options, "--", *(str(given[name]) for name in positional)]
        self.begun.clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["", *arguments])
            for stream in ("stdout", "stderr"):
                patch.setattr(sys, stream, getattr(sys, stream))  # run_command puts others there
            self._capfd.readouterr()
            signal.alarm(PATIENCE)
            try:
                runpy.run_module(command.module, run_name="__main__")
                code = 0
            except SystemExit as ended:
                code = int(ended.code or 0)
            finally:
                signal.alarm(0)
            sys.stdout.flush()
            sys.stderr.flush()
            return code, self._capfd.readouterr().err

    def _noted(self, what: str, function: object, of: tuple[str, ...] = ("",)) -> object:
        def noting(*arguments: object, **options: object) -> object:
            if str(arguments[0]).endswith(of):
                self.begun.append(f"{what} of {arguments[0]}")
            return function(*arguments, **options)  # type: ignore[operator]

        return noting


def test_every_command_is_walked() -> None:
    assert set(USUAL) == set(COMMANDS)


CASES = [
    pytest.param(command, argument, id=f"{command.name} {argument.name}".replace(" ", "-"))
    for command in COMMANDS.values()
    for argument in (
        *command.arguments,
        *([Argument("files 2", "file")] if command.name == "qwen_omni_onnx speak" else []),
    )
    if argument.kind != "flag"
]


@pytest.mark.parametrize(("command", "argument"), CASES)
def test_a_hostile_value_gets_one_line_and_costs_nothing(
    run: Run, place: Path, command: Command, argument: Argument
) -> None:
    wrong = []
    for value in _values(command, argument):
        if (argument.name, value) in ENDLESS or value in ALLOWED.get((command.name, argument.name), ()):
            continue
        shutil.rmtree(place.parent / "cache", ignore_errors=True)  # what was hashed before is hashed again
        before, writer = _listing(place), _Writer(place / "pipe")
        code, said = run(command, {**USUAL[command.name], argument.name: value})
        writer.end()
        lines = said.splitlines()
        faults = [
            *(["exit code 0"] if code == 0 else []),
            *([f"{len(lines)} lines"] if len(lines) != 1 or not lines[0].startswith("error: ") else []),
            *(["a line too long to read"] if any(len(line) > 600 for line in lines) else []),
            *(f"began {what}" for what in run.begun[:1]),
            *(f"changed {name}" for name in sorted(_changed(before, _listing(place)))[:2]),
        ]
        wrong += [f"{value[:40]!r}: {', '.join(faults)}: {said[:300]}"] if faults else []
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("argument", [name for command, name in ALLOWED if command == "qwen_omni_onnx speak"])
def test_an_odd_value_that_is_right_gets_a_reply(run: Run, place: Path, argument: str) -> None:
    for value in sorted(ALLOWED["qwen_omni_onnx speak", argument]):
        code, said = run(COMMANDS["qwen_omni_onnx speak"], {**USUAL["qwen_omni_onnx speak"], argument: value})

        # A model of random weights may have nothing to say.
        assert code == 0 or "the reply holds no speech; another --seed" in said, (value, said)
        (place / "new.wav").unlink(missing_ok=True)


def _values(command: Command, argument: Argument) -> tuple[str, ...]:
    if argument.kind != "file":
        return VALUES[argument.kind]
    reads = argument.name not in WRITTEN or (command.name, argument.name) in READ_FOLDERS
    return READ if reads else TAKEN


def _listing(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return what identifies each file and folder below a folder, and beside it."""
    found = [path for path in (*folder.rglob("*"), *folder.parent.iterdir()) if path.name != "cache"]
    status = {str(path): path.lstat() for path in found if not path.is_dir()}
    return {name: (one.st_ino, one.st_size, one.st_mtime_ns) for name, one in status.items()}


def _changed(before: dict[str, tuple[int, ...]], after: dict[str, tuple[int, ...]]) -> set[str]:
    return {name for name in {*before, *after} if before.get(name) != after.get(name) and not name.endswith("/pipe")}


class _Writer:
    """Writes a little to a pipe, as soon as somebody reads it."""

    def __init__(self, pipe: Path) -> None:
        self._pipe, self._ended = pipe, threading.Event()
        self._thread = threading.Thread(target=self._write)
        self._thread.start()

    def end(self) -> None:
        self._ended.set()
        self._thread.join()

    def _write(self) -> None:
        while not self._ended.wait(0.005):
            try:
                pipe = os.open(self._pipe, os.O_WRONLY | os.O_NONBLOCK)
            except OSError:  # nobody reads it yet
                continue
            os.write(pipe, b"not what is wanted")
            os.close(pipe)
