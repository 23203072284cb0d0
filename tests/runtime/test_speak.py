"""The run-time's commands: what they refuse at once, and the sound where text cannot be written."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from cli import call, open_nothing, requested, speak, verify
from hostile import Argument, commands

import qwen_omni_onnx

Message = Callable[..., str]


def _clip() -> str:
    return str(sorted(Path("data/speech").rglob("*.flac"))[0])


def _folder(component: str) -> str:
    return str(next(Path("models/published", component).iterdir()))


@pytest.fixture
def untouched(gated_chain: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The published chain, of which nothing may be hashed or opened."""
    open_nothing(monkeypatch)
    return gated_chain


# Options

USED_BY_DIRECT = {
    "--overwrite", "--direct", "--models", "--float32", "--float32-parts", "--voice", "--variant", "--max-seconds",
    "--seed",
}  # fmt: skip
VALUES = {
    "--live": "16000",
    "--models": "models",
    "--float32-parts": "encoder",
    "--max-tokens": "0",
    "--thinker-top-k": "0",
}


def _options() -> list[Argument]:
    return [argument for argument in commands()["qwen_omni_onnx speak"].arguments if argument.name.startswith("--")]


def test_every_option_is_used_by_the_shortcut_or_refused(message: Message) -> None:
    assert {option.name for option in _options()} > USED_BY_DIRECT
    for option in _options():
        flag = option.name
        given = ["in.wav", "out.wav", "--direct", flag]
        if option.kind != "flag":
            given.append(VALUES.get(flag, "1"))
        if flag in USED_BY_DIRECT:
            assert requested(given).direct
        else:
            assert message(requested, given) == (
                f"{flag}: does nothing with --direct, where there is no language model and no Talker; leave one of "
                "them out"
            )


def test_every_option_is_used_by_a_reply() -> None:
    """But for the shortcut's own; given alone, for some do nothing beside others."""
    for option in _options():
        if option.name != "--direct":
            value = [] if option.kind == "flag" else [VALUES.get(option.name, "1").replace("0", "1")]
            assert not requested(["in.wav", "out.wav", option.name, *value]).direct


USE = "a command comes first, as in: qwen-omni-onnx speak [IN.wav] OUT.wav"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["speak", "in.wav", "out.wav", "--max-sec", "1"],
            "No such option: --max-sec (Possible options: --max-seconds, --max-tokens)",
        ),
        (["speak", "in.wav", "out.wav", "--seed"], "Option '--seed' requires an argument."),
        (
            ["speak", "in.wav", "out.wav", "--seed", "one"],
            "Invalid value for '--seed': Input should be a valid integer, unable to parse string as an integer",
        ),
        (["speak"], "Missing argument '[IN.wav] OUT.wav'."),
        (["vocode", "folder"], "Missing argument 'CODES.npy'."),
        (["question.wav", "out.wav"], f"No such command 'question.wav'; {USE}"),
        (["out.wav", "--text", "a"], f"No such command 'out.wav'; {USE}"),
        (["--text", "a", "out.wav"], f"No such option: --text; {USE}"),
        ([], "Missing command."),
    ],
)
def test_a_command_line_that_is_none_is_told_in_one_line(arguments: list[str], said: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "qwen_omni_onnx", *arguments], capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: {said} (--help shows all arguments)\n"


def test_every_option_is_in_the_help_with_a_sentence_of_its_own() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "qwen_omni_onnx", "speak", "--help"],
        env={**os.environ, "COLUMNS": "200", "NO_COLOR": "1"}, capture_output=True, text=True, check=True,
    )  # fmt: skip

    assert "Usage: python -m qwen_omni_onnx speak [OPTIONS] [IN.wav] OUT.wav" in done.stdout
    for option in _options():
        (line,) = (line for line in done.stdout.splitlines() if f" {option.name} " in line)
        assert re.search(r" [A-Z][^<>]* ", line.split(option.name)[1]), line


def test_the_version_is_printed() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "qwen_omni_onnx", "--version"], capture_output=True, text=True, check=True
    )

    assert done.stdout == f"qwen-omni-onnx {qwen_omni_onnx.__version__}\n"


def test_float32_takes_no_file_for_a_part(message: Message) -> None:
    given = requested(["--float32", "in.wav", "out.wav"])

    assert [str(path) for path in given.files] == ["in.wav", "out.wav"]
    assert given.float32_components == ["frontend", "encoder", "thinker", "talker", "token2wav"]
    given = requested(["--float32", "in.wav", "out.wav", "--direct"])
    assert given.float32_components == ["frontend", "encoder", "projection", "token2wav"]
    given = requested(["--float32-parts", "thinker,talker", "in.wav", "out.wav"])
    assert given.float32_components == ["thinker", "talker"]
    for arguments, said in (
        (["--float32-parts", "in.wav", "out.wav", "--text", "a"], "--float32-parts: no part 'in.wav' without --direct"),
        (["--float32-parts", "projection", "in.wav", "out.wav"], "--float32-parts: no part 'projection' without --dir"),
        (["--float32-parts", "talker", "in.wav", "out.wav", "--direct"], "--float32-parts: no part 'talker' with --di"),
        (["--float32-parts", "", "in.wav", "out.wav"], "--float32-parts: no part ''"),
        (["--float32", "--float32-parts", "talker", "in.wav", "out.wav"], "--float32: means all parts; leave it out"),
    ):
        assert message(requested, arguments).startswith(said)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["out.wav", "--direct"], "--direct: takes a sound; give one, and the file to write"),
        (["a", "b", "c"], "3 files; give the sound to reply to, if there is one, and the file to write"),
        (["in.wav", "out.wav", "--text", ""], "--text: holds no text; give one, or leave --text out"),
        (["out.wav", "--text", " \t\n\u3000"], "--text: holds no text; give one, or leave --text out"),
        (["out.wav", "--text", "f\udce4hre"], "--text: holds bytes that are no UTF-8; convert the text to it"),
        (["out.wav", "--text", "a", "--system", ""], "--system: holds no text; give one, or leave --system out"),
        (
            ["out.wav", "--text", "a", "--system", "\udcff"],
            "--system: holds bytes that are no UTF-8; convert the text to it",
        ),
        (
            ["out.wav", "--text", "a", "--greedy", "--talker-top-k", "0"],
            "--talker-top-k: does nothing with --greedy; leave one of them out",
        ),
        (["out.wav", "--text", "a", "--talker-temperature", "1e-40"], "sampling: temperature cannot be 1e-40"),
        (["out.wav", "--text", "a", "--talker-temperature", "1e39"], "sampling: temperature cannot be 1e+39"),
        (
            ["out.wav", "--text", "a", "--thinker-repetition-penalty", "1e39"],
            "sampling: repetition_penalty cannot be 1e+39",
        ),
    ],
)
def test_what_cannot_be_meant_is_told(arguments: list[str], said: str, message: Message) -> None:
    assert message(speak, arguments) == said


def test_a_text_is_read_in_a_locale_without_its_characters() -> None:
    given = requested(["out.wav", "--text", "fj\udcc3\udca4rd \udce6\udc9d\udcb1", "--system", "ä"])

    assert (given.text, given.system) == ("fjärd 東", "ä")


# Before gigabytes are hashed


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [(["--text", "a fjord " * 130_000], "text"), (["--text", "a", "--system", "be brief " * 500], "text")],
)
def test_a_text_that_is_too_long_is_told_at_once(
    arguments: list[str], cause: str, untouched: Path, message: Message
) -> None:
    began = time.monotonic()
    said = message(speak, ["out.wav", *arguments])

    assert said.startswith("the prompt has ")
    assert said.endswith(f" tokens, 0 of them of sound (25 a second); there are 512 positions, for the reply too: "
                         f"give a shorter {cause}")  # fmt: skip
    assert time.monotonic() - began < 10


def test_a_sound_that_is_too_long_is_told_at_once(untouched: Path, message: Message) -> None:
    soundfile.write("long.wav", 0.1 * np.sin(np.arange(16_000 * 60) / 9), 16_000)
    for arguments, said in (
        (
            [],
            "tokens, 1,500 of them of sound (25 a second); there are 512 positions, for the reply too: give a shorter ",
        ),
        (["--direct"], "--direct: 1500 codes of this sound; 1000 is the most: give a shorter one, or --max-seconds 20"),
    ):
        settings = Path(_folder("token2wav")) / "sampler.json"
        settings.write_text(settings.read_text().replace('"longest": 32768', '"longest": 2000'))
        assert said in message(speak, ["long.wav", "out.wav", *arguments])
    with pytest.raises(AssertionError, match="hashed or opened"):
        speak(["long.wav", "out.wav", "--direct", "--max-seconds", "20"])


def test_a_sound_of_which_nothing_is_heard_is_told_at_once(untouched: Path, message: Message) -> None:
    soundfile.write("short.wav", np.zeros(320), 16_000)
    for arguments in ([], ["--direct"], ["--text", "a"]):
        said = message(speak, ["short.wav", "out.wav", *arguments])
        assert said == "short.wav: 320 samples at 16000 Hz; at least 321 are needed"


def test_a_live_question_is_refused_before_it_is_asked(untouched: Path, message: Message) -> None:
    """Nobody speaks to a model that loads for a minute, to be told of the voice then."""
    for arguments, said in (
        (["--voice", "Nobody"], "no voice 'Nobody'; there are: Chelsie, Ethan"),
        (["--voice", "data"], "voice 'data': the Talker was not trained on it; there are: Chelsie, Ethan"),
        (["--variant", "nothing"], "no variant 'nothing'; there are: "),
    ):
        assert message(speak, ["--live", "16000", "out.wav", *arguments]).startswith(said)
    with pytest.raises(AssertionError, match="hashed or opened"):
        speak(["--live", "16000", "out.wav", "--voice", "Ethan"])


def test_folders_of_other_components_are_told_at_once(untouched: Path, message: Message) -> None:
    frontend, encoder, token2wav, talker = map(_folder, ("frontend", "encoder", "token2wav", "talker"))
    np.save("codes.npy", np.arange(4))
    for command, arguments, said in (
        ("listen", (encoder, frontend, _clip(), "out.npy"), f"{encoder}: not a published frontend; give the folder"),
        ("listen", (frontend, talker, _clip(), "out.npy"), f"{talker}: not a published encoder; give the folder"),
        ("listen", (frontend, "data", _clip(), "out.npy"), "data: no artifact here (no manifest.json)"),
        ("vocode", (talker, "codes.npy", "out.wav"), f"{talker}: not a published token2wav; give the folder"),
        ("vocode", (token2wav, "codes.npy", "out.wav", "--voice", ""), "no voice ''; there are: Chelsie, Ethan"),
    ):
        assert message(call, command, *arguments).startswith(said)


def test_nothing_to_verify_is_told(tmp_path: Path, message: Message) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for name in ("file", "folder", "nowhere"):
        said = message(verify, [str(tmp_path / name)])
        assert said == f"{tmp_path / name}: nothing published there; give a published folder, or one that holds some"


# Codes

CODES: dict[str, tuple[Any, str]] = {
    "archive": (lambda path: np.savez(path.open("wb"), np.zeros(3, np.int64)), "cannot be read as an array (the magic"),
    "objects": (
        lambda path: np.save(path, np.array([{}], object), allow_pickle=True), "cannot be read as an array (Array can't"
    ),
    "structured": (np.zeros(3, [("a", "i4")]), "[('a', '<i4')] [3]; integers [codes] are needed"),
    "complex": (np.zeros(3, complex), "complex128 [3]; integers [codes] are needed"),
    "bool": (np.zeros(3, bool), "bool [3]; integers [codes] are needed"),
    "floats": (np.array([1.0, np.nan]), "float64 [2]; integers [codes] are needed"),
    "one number": (np.int64(3), "int64 []; integers [codes] are needed"),
    "a batch": (np.zeros((1, 3), np.int64), "int64 [1, 3]; integers [codes] are needed"),
    "none": (np.zeros(0, np.int64), "codes: none; there is nothing to say"),
    "negative": (np.array([3, -1]), "codes: -1 is none; they go from 0 to 39 (end and pad are to be cut off)"),
    "too large": (np.array([3, 2**63 + 5], np.uint64), "codes: 9223372036854775813 is none; they go from 0 to 39"),
    "too many": (np.zeros(16_385, np.uint8), "codes: 16385 at once; the model goes to 16384: cut them, or use the str"),
    "text": (lambda path: path.write_text("1 2 3"), "cannot be read as an array (EOF: reading magic string"),
    "cut": (
        lambda path: path.write_bytes(_header("(1000000000000000,)")), "cannot be read as an array (mmap length is"
    ),
    "no shape": (lambda path: path.write_bytes(_header("'wide'")), "cannot be read as an array (shape is not valid"),
    "a folder": (lambda path: path.mkdir(), "not a plain file; give an array that numpy.save wrote"),
    "a pipe": (os.mkfifo, "not a plain file; give an array that numpy.save wrote"),
    "missing": (lambda path: None, "no such file"),
}  # fmt: skip


def _header(shape: str) -> bytes:
    text = f"{{'descr': '<i8', 'fortran_order': False, 'shape': {shape}}}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


@pytest.mark.parametrize("what", CODES)
def test_codes_that_cannot_be_spoken_are_told_at_once(what: str, untouched: Path, message: Message) -> None:
    made, said = CODES[what]
    if callable(made):
        made(Path("codes.npy"))
    else:
        np.save("codes.npy", made)

    told = message(call, "vocode", _folder("token2wav"), "codes.npy", "out.wav")

    assert told.removeprefix("codes.npy: ").startswith(said)


def test_as_many_codes_as_a_sound_file_holds_are_streamed_and_no_more(untouched: Path, message: Message) -> None:
    for codes, said in ((4_320_001, "codes.npy: 4320001 codes; a sound file takes 4320000, a day of"), (20_000, None)):
        np.save("codes.npy", np.zeros(codes, np.uint8))
        arguments = (_folder("token2wav"), "codes.npy", "out.wav", "--stream")
        if said:
            assert message(call, "vocode", *arguments).startswith(said)
        else:
            with pytest.raises(AssertionError, match="hashed or opened"):
                call("vocode", *arguments)


# Where text cannot go

ENDINGS = (
    ("", 0, ""),
    ("> /dev/full", 1, "error: stdout: No space left on device\n"),
    ("| true", 0, ""),
    (">&-", 0, ""),
    ("2>&-", 0, ""),
    ("2> /dev/full", 0, ""),
    (">&- 2>&- <&-", 0, ""),
    ("2>&1 | true", 0, ""),
)


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("speak", ["data/speech/calibration/low.flac", "{out}.wav", "--max-seconds", "0.5", "--max-tokens", "9"]),
        pytest.param("vocode", ["models/published/token2wav/*", "codes.npy", "{out}.wav", "--stream"],
                     marks=pytest.mark.slow),
        ("listen", ["models/published/frontend/*", "models/published/encoder/*",
                    "data/speech/calibration/low.flac", "{out}.npy"]),
    ],
)  # fmt: skip
def test_no_sound_is_lost_because_text_cannot_be_written(command: str, arguments: list[str], gated_chain: Path) -> None:
    np.save("codes.npy", np.arange(30))
    written = set()
    for number, (ending, code, said) in enumerate(ENDINGS):
        given = " ".join([command, *arguments]).format(out=f"out{number}")
        done = subprocess.run(
            ["bash", "-c", f'"$0" -m qwen_omni_onnx {given} {ending}; exit ${{PIPESTATUS[0]}}', sys.executable],
            env={**os.environ, "PYTHONIOENCODING": "ascii"}, capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip

        assert (done.returncode, done.stderr) == (code, said), ending
        (out,) = Path().glob(f"out{number}.*")
        written.add(out.read_bytes())
    assert len(written) == 1


def test_the_shortcut_stops_after_so_many_seconds(gated_chain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    speak([_clip(), "whole.wav", "--direct"])
    assert "cut off" not in capsys.readouterr().out
    speak([_clip(), "cut.wav", "--direct", "--max-seconds", "0.1"])

    assert capsys.readouterr().out.splitlines()[-1] == "cut off: the speech after 5 codes, the most allowed"
    assert soundfile.info("cut.wav").frames == 5 * 2 * 30
    assert soundfile.info("whole.wav").frames > 5 * 2 * 30
