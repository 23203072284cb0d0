"""The run-time's voices: those of the model, and a user's own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from safetensors.numpy import save_file

from qwen_omni_onnx.common.speakers import Widths
from qwen_omni_onnx.voices import Voice, pick, read_voice, read_voices

WIDTHS = Widths(cond=12, ref_mel=8)


def tensors(*names: str) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    table: dict[str, np.ndarray] = {}
    for number, name in enumerate(names):
        table[f"{name}/cond"] = random.standard_normal((1, 12), np.float32)
        table[f"{name}/ref_mel"] = random.standard_normal((1, 20 + number, 8), np.float32)
        table[f"{name}/bos_token"] = np.array([100 + number], np.int64)
    return table


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file with two voices."""
    save_file(tensors("Ethan", "Chelsie"), tmp_path / "speakers.safetensors")
    return tmp_path / "speakers.safetensors"


@pytest.fixture
def voices(path: Path) -> dict[str, Voice]:
    return read_voices(path)


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A folder with a user's own voice."""
    folder = tmp_path / "grandma"
    folder.mkdir()
    random = np.random.default_rng(1)
    np.save(folder / "cond.npy", random.standard_normal((1, 12), np.float32))
    np.save(folder / "ref_mel.npy", random.standard_normal((1, 30, 8), np.float32))
    return folder


# Those of the model


def test_voices_are_read_by_name(voices: dict[str, Voice]) -> None:
    assert list(voices) == ["Chelsie", "Ethan"]
    expected = tensors("Ethan", "Chelsie")
    for name, voice in voices.items():
        assert voice.name == name
        np.testing.assert_array_equal(voice.cond, expected[f"{name}/cond"])
        np.testing.assert_array_equal(voice.ref_mel, expected[f"{name}/ref_mel"])
    assert {name: voice.bos_token for name, voice in voices.items()} == {"Ethan": 100, "Chelsie": 101}


def test_a_file_that_is_missing_is_told(tmp_path: Path, message: Callable[..., str]) -> None:
    said = message(read_voices, tmp_path / "speakers.safetensors")

    assert said.endswith("speakers.safetensors: missing; download the artifact again, or pull and export the component")


@pytest.mark.parametrize("length", [0, 5, 200, -1])
def test_a_file_that_is_cut_off_is_told(path: Path, length: int, message: Callable[..., str]) -> None:
    path.write_bytes(path.read_bytes()[:length])

    assert "speakers.safetensors: cannot be read (" in message(read_voices, path)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"Ethan/cond": None}, "'Ethan/cond' is missing or no part of a voice"),
        ({"Ethan/bos_token": None}, "'Ethan/bos_token' is missing"),
        ({"Ethan/more": np.zeros(1, np.float32)}, "'Ethan/more' is missing or no part of a voice"),
        ({"cond": np.zeros(1, np.float32)}, "'cond' is missing or no part of a voice"),
        ({"Ethan/cond": np.zeros((1, 12))}, "Ethan: cond is float64 [1, 12]; it must be float32 [1, width]"),
        ({"Ethan/cond": np.zeros(12, np.float32)}, "cond is float32 [12]; it must be float32 [1, width]"),
        ({"Ethan/cond": np.zeros((1, 0), np.float32)}, "cond is float32 [1, 0]; it must be"),
        ({"Ethan/ref_mel": np.zeros((1, 4, 8), np.float32)}, "ref_mel has 4 frames; give at least 5"),
        (
            {"Ethan/ref_mel": np.zeros((1, 30_001, 8), np.float32)},
            "ref_mel has 30001 frames; give at least 5, and at most",
        ),
        ({"Ethan/ref_mel": np.full((1, 9, 8), np.nan, np.float32)}, "ref_mel holds NaN or infinity"),
        ({"Ethan/bos_token": np.zeros(1, np.int32)}, "bos_token is no token's number"),
        ({"Ethan/bos_token": np.array([-1])}, "bos_token is no token's number"),
        ({"Ethan/bos_token": np.array(3)}, "bos_token is no token's number"),
    ],
)
def test_a_file_that_holds_anything_else_is_told(
    change: dict[str, np.ndarray | None], expected: str, path: Path, message: Callable[..., str]
) -> None:
    table = {**tensors("Ethan", "Chelsie"), **change}
    save_file({name: array for name, array in table.items() if array is not None}, path)

    assert expected in message(read_voices, path)


def test_a_name_that_is_no_plain_word_is_told(path: Path, message: Callable[..., str]) -> None:
    save_file(tensors("two words"), path)

    assert "'two words' is missing or no part of a voice" in message(read_voices, path)


def test_a_file_without_voices_is_told(path: Path, message: Callable[..., str]) -> None:
    save_file({}, path)

    assert "no voice in it" in message(read_voices, path)


# A user's own


def test_a_voice_is_read_from_two_arrays(own: Path) -> None:
    voice = read_voice(own, WIDTHS)

    assert (voice.name, voice.bos_token) == ("grandma", None)
    np.testing.assert_array_equal(voice.cond, np.load(own / "cond.npy"))
    np.testing.assert_array_equal(voice.ref_mel, np.load(own / "ref_mel.npy"))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_arrays_without_a_batch_axis_and_of_other_precision_will_do(own: Path, dtype: type) -> None:
    cond, mel = np.load(own / "cond.npy")[0].astype(dtype), np.load(own / "ref_mel.npy")[0].astype(dtype)
    np.save(own / "cond.npy", cond)
    np.save(own / "ref_mel.npy", np.asfortranarray(mel))

    voice = read_voice(own, WIDTHS)

    assert (voice.cond.shape, voice.ref_mel.shape) == ((1, 12), (1, 30, 8))
    assert {voice.cond.dtype, voice.ref_mel.dtype} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(voice.cond[0], cond.astype(np.float32))
    np.testing.assert_array_equal(voice.ref_mel[0], mel.astype(np.float32))


@pytest.mark.parametrize(
    ("name", "array", "expected"),
    [
        ("cond", np.zeros((1, 13), np.float32), "cond is float32 [1, 13]; it must be float32 [1, 12]"),
        ("cond", np.zeros((2, 12), np.float32), "cond is float32 [2, 12]; it must be"),
        ("cond", np.float32(1), "cond is float32 []; it must be"),
        ("cond", np.zeros(12, np.int64), "cond.npy: int64; give floats"),
        ("cond", np.full(12, 1e300), "cond holds NaN or infinity"),
        ("ref_mel", np.zeros((20, 9), np.float32), "[1, 20, 9]; it must be float32 [1, frames, 8]"),
        ("ref_mel", np.zeros((8, 20), np.float32), "[1, 8, 20]; it must be float32 [1, frames, 8]"),
        ("ref_mel", np.zeros((4, 8), np.float32), "ref_mel has 4 frames; give at least 5"),
        ("ref_mel", np.full((9, 8), np.inf, np.float32), "ref_mel holds NaN or infinity"),
        ("ref_mel", np.zeros((9, 8), np.complex64), "ref_mel.npy: complex64; give floats"),
    ],
)
def test_an_array_that_cannot_be_a_voice_is_told(
    name: str, array: np.ndarray, expected: str, own: Path, message: Callable[..., str]
) -> None:
    np.save(own / f"{name}.npy", array)

    assert expected in message(read_voice, own, WIDTHS)


@pytest.mark.parametrize("name", ["cond.npy", "ref_mel.npy"])
def test_an_array_that_is_missing_is_told(name: str, own: Path, message: Callable[..., str]) -> None:
    (own / name).unlink()

    assert f"{name}: missing; a voice is a folder with cond.npy and ref_mel.npy" in message(read_voice, own, WIDTHS)


class Run:
    """Creates a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.marker}",)


def test_an_array_of_objects_is_refused_and_runs_nothing(
    own: Path, tmp_path: Path, message: Callable[..., str]
) -> None:
    np.save(own / "cond.npy", np.array([Run(tmp_path / "ran")], object), allow_pickle=True)

    said = message(read_voice, own, WIDTHS)

    assert "cond.npy: cannot be read as an array (" in said
    assert not (tmp_path / "ran").exists()
    np.load(own / "cond.npy", allow_pickle=True)
    assert (tmp_path / "ran").exists(), "the array was harmless: nothing was tested"


@pytest.mark.parametrize("content", [b"", b"hello", b"\x93NUMPY\x01\x00\xff\xff{}"])
def test_a_file_that_is_no_array_is_told(content: bytes, own: Path, message: Callable[..., str]) -> None:
    (own / "cond.npy").write_bytes(content)

    assert "cond.npy: cannot be read as an array (" in message(read_voice, own, WIDTHS)


def test_an_array_that_is_cut_off_is_told(own: Path, message: Callable[..., str]) -> None:
    os.truncate(own / "ref_mel.npy", 200)

    assert "ref_mel.npy: cannot be read as an array (" in message(read_voice, own, WIDTHS)


# Which one


def test_a_voice_is_picked_by_name(voices: dict[str, Voice]) -> None:
    assert pick(voices, "Ethan") is voices["Ethan"]


def test_a_voice_is_picked_from_a_folder(voices: dict[str, Voice], own: Path) -> None:
    assert pick(voices, str(own)).name == "grandma"


def test_a_folder_s_voice_must_fit_the_others(voices: dict[str, Voice], own: Path, message: Callable[..., str]) -> None:
    np.save(own / "cond.npy", np.zeros(192, np.float32))

    assert "cond is float32 [1, 192]; it must be float32 [1, 12]" in message(pick, voices, str(own))


def test_a_name_comes_before_a_folder(voices: dict[str, Voice], own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own.rename(own.with_name("Ethan"))
    monkeypatch.chdir(own.parent)

    assert pick(voices, "Ethan") is voices["Ethan"]
    assert pick(voices, "./Ethan").bos_token is None


@pytest.mark.parametrize("name", ["Nobody", "ethan", "", "speakers.safetensors", "Et\nhan"])
def test_an_unknown_voice_is_told_with_those_that_there_are(
    name: str, voices: dict[str, Voice], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, message: Callable[..., str]
) -> None:
    monkeypatch.chdir(tmp_path)

    said = message(pick, voices, name)

    assert said.startswith(f"no voice {name!r}; there are: Chelsie, Ethan; or give a folder with cond.npy and ")


@pytest.mark.parametrize("name", ["Nobody", "", "nowhere/mine"])
def test_where_the_talker_speaks_its_own_voices_alone_are_named(
    name: str, voices: dict[str, Voice], own: Path, message: Callable[..., str]
) -> None:
    known = ", ".join(sorted(voices))

    assert pick(voices, min(voices), own=False) is voices[min(voices)]
    assert message(pick, voices, name, own=False) == f"no voice {name!r}; there are: {known}"
    said = message(pick, voices, str(own), own=False)
    assert said == f"voice {str(own)!r}: the Talker was not trained on it; there are: {known}"


def test_voices_need_no_pytorch_and_no_onnx() -> None:
    blocked = ["torch", "onnx", "pydantic", "ml_dtypes", "ruamel"]
    code = f"import sys; sys.modules.update(dict.fromkeys({blocked})); import qwen_omni_onnx.voices"

    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
