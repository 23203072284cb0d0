"""Headers that do not count all of the sound: what recorders leave that were killed, and what pipes are given."""

from __future__ import annotations

import struct
import sys
import warnings
from collections.abc import Callable, Iterator
from io import FileIO
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from qwen_omni_onnx.common.input_warning import InputWarning
from qwen_omni_onnx.sound.audio import INPUT_SAMPLE_RATE, read_audio
from qwen_omni_onnx.sound.header import SoundLength, read_length

Message = Callable[..., str]
# Format, encoding, byte order; where the length of the sound stands, behind which name; its bytes; what it counts more.
KINDS = {
    **{
        f"WAV {encoding}": ("WAV", encoding, None, b"data", 4, "<I", 0)
        for encoding in ("PCM_16", "PCM_U8", "PCM_24", "FLOAT", "ULAW", "MS_ADPCM", "IMA_ADPCM", "GSM610")
    },
    "RIFX PCM_24": ("WAV", "PCM_24", "BIG", b"data", 4, ">I", 0),
    "WAVE_FORMAT_EXTENSIBLE": ("WAVEX", "PCM_16", None, b"data", 4, "<I", 0),
    "RF64": ("RF64", "PCM_16", None, b"ds64", 16, "<Q", 0),
    "RF64 FLOAT": ("RF64", "FLOAT", None, b"ds64", 16, "<Q", 0),
    "W64": ("W64", "PCM_16", None, b"data", 16, "<Q", 24),
    "AIFF": ("AIFF", "PCM_16", None, b"SSND", 4, ">I", 0),
    "CAF": ("CAF", "PCM_16", None, b"data", 4, ">Q", 0),
}
# Names with spaces, lengths odd and even, as they stand behind sound.
METADATA = {
    "LIST": (b"LIST", b"INFOISFT\x06\x00\x00\x00Lavf60\0\0" * 20),
    "id3, of odd length": (b"id3 ", b"ID3\x04" + b"\x81" * 399),
    "bext": (b"bext", bytes(602)),
    "cue": (b"cue ", struct.pack("<I", 20) + b"\x01\x00\x00\x00" * 120),
}


def _noise(frames: int = 6_000) -> np.ndarray:
    return np.random.default_rng(0).uniform(-0.5, 0.5, frames)


def _chunk(name: bytes, content: bytes, size: str = "<I") -> bytes:
    return name + struct.pack(size, len(content)) + content + bytes(len(content) % 2)


def _wav(path: Path, promised: int | None = None, behind: bytes = b"", before: bytes = b"", cut: int = 0) -> Path:
    """Write 6,000 samples of noise with another length in the header, and with chunks before and behind."""
    soundfile.write(path, _noise(), INPUT_SAMPLE_RATE, subtype="PCM_16")
    data = path.read_bytes()
    length = struct.pack("<I", 12_000 if promised is None else promised)
    path.write_bytes(data[:36] + before + b"data" + length + data[44 : len(data) - cut] + behind)
    return path


def _length(path: Path) -> SoundLength:
    with FileIO(path) as file:
        length = read_length(file)
    assert length is not None
    return length


@pytest.fixture
def no_warning() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", InputWarning)
        yield


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("part", [0, 0.5, "unknown"])
def test_what_was_recorded_is_read_whole_and_is_said_to_be(
    kind: str, part: float | str, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    form, encoding, order, name, offset, size, counted = KINDS[kind]
    path = tmp_path / "a"
    soundfile.write(path, _noise(6_400), INPUT_SAMPLE_RATE, format=form, subtype=encoding, endian=order)
    whole = read_audio(path)
    data = bytearray(path.read_bytes())
    at = data.index(name) + offset
    (right,) = struct.unpack_from(size, data, at)
    promised = int(part * right) if not isinstance(part, str) else 256 ** struct.calcsize(size) - 1
    struct.pack_into(size, data, at, promised)
    path.write_bytes(data)
    assert not recwarn

    np.testing.assert_array_equal(read_audio(path), whole)

    told = [str(warning.message) for warning in recwarn]
    counts = f"{max(0, promised - counted):,} of {right - counted:,} bytes of sound"
    assert told == ([] if part == "unknown" else [f"{path}: its header counts {counts}; all of them are read"])


@pytest.mark.parametrize("riff", [0, 8, 36 + 3_000, 0xFFFF_FFFF])
@pytest.mark.parametrize("promised", [0, 3_000])
@pytest.mark.filterwarnings("ignore::qwen_omni_onnx.common.input_warning.InputWarning")
def test_the_length_of_the_file_in_its_header_does_not_matter(riff: int, promised: int, tmp_path: Path) -> None:
    path = _wav(tmp_path / "a.wav", promised)
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, 4, riff)
    path.write_bytes(data)

    assert len(read_audio(path)) == 6_000


@pytest.mark.parametrize("before", [b"", _chunk(b"LIST", b"INFO" + bytes(99)), _chunk(b"JUNK", bytes(28))])
@pytest.mark.parametrize("behind", METADATA.values(), ids=METADATA)
@pytest.mark.parametrize("promised", [None, 0, 6_000, 0xFFFF_FFFF])
@pytest.mark.filterwarnings("ignore::qwen_omni_onnx.common.input_warning.InputWarning")
def test_metadata_behind_the_sound_is_never_sound(
    promised: int | None, behind: tuple[bytes, bytes], before: bytes, tmp_path: Path
) -> None:
    chain = _chunk(*behind) + _chunk(b"LIST", b"adtl" + bytes(10)) + _chunk(b"XyZ1", bytes(300))

    samples = read_audio(_wav(tmp_path / "a.wav", promised, chain, before))

    assert len(samples) == 6_000
    np.testing.assert_allclose(samples, _noise(), atol=1e-4)


@pytest.mark.parametrize(
    "behind",
    [
        b"",
        b"\x00",
        bytes(100_000),  # up to a full block of a disk
        b"TAG" + b"a title".ljust(125),  # ID3v1
        _chunk(b"LIST", b"INFO" + bytes(1_000))[:500],  # cut short
        _chunk(b"ABCD", b"x" * 401)[:-1],  # without padding
        _chunk(b"LIST", b"INFO" + bytes(300)) + b"\x93" * 5_000,  # sound does not go on behind metadata
    ],
)
@pytest.mark.usefixtures("no_warning")
def test_what_no_sound_follows_is_left_as_it_is(behind: bytes, tmp_path: Path) -> None:
    assert len(read_audio(_wav(tmp_path / "a.wav", behind=behind))) == 6_000


@pytest.mark.usefixtures("no_warning")
def test_a_chunk_of_odd_length_without_padding_before_the_sound_is_passed_over(tmp_path: Path) -> None:
    path = _wav(tmp_path / "a.wav", before=_chunk(b"LIST", b"INFO" + bytes(99))[:-1])

    assert _length(path).is_right
    assert _length(path).start == 36 + 8 + 103 + 8


@pytest.mark.filterwarnings("ignore::qwen_omni_onnx.common.input_warning.InputWarning")
def test_sound_that_begins_like_a_chunk_is_sound(tmp_path: Path) -> None:
    path = _wav(tmp_path / "a.wav", 6_000)
    data = bytearray(path.read_bytes())
    data[44 + 6_000 : 44 + 6_008] = b"abcd\x00\x01\x00\x00"
    path.write_bytes(data)

    assert len(read_audio(path)) == 6_000


def test_a_header_of_no_sound_with_metadata_behind_is_empty(tmp_path: Path, message: Message) -> None:
    path = _wav(tmp_path / "a.wav", 0, _chunk(b"LIST", b"INFO" + bytes(396)), cut=12_000)

    assert f"{path}: empty" in message(read_audio, path)


@pytest.mark.parametrize(
    ("kind", "promised"),
    [("WAV PCM_16", 0x7FFE_FFFF), ("RIFX PCM_24", 99_999), ("RF64", 1 << 40), ("W64", 1 << 40), ("AIFF", 99_999)],
)
def test_what_was_cut_short_is_refused_whatever_the_format(
    kind: str, promised: int, tmp_path: Path, message: Message
) -> None:
    form, encoding, order, name, offset, size, counted = KINDS[kind]
    path = tmp_path / "a"
    soundfile.write(path, _noise(), INPUT_SAMPLE_RATE, format=form, subtype=encoding, endian=order)
    data = bytearray(path.read_bytes())
    struct.pack_into(size, data, data.index(name) + offset, promised)
    path.write_bytes(data)

    said = message(read_audio, path)

    assert said.startswith(f"{path}: damaged or cut short, ")
    assert f"of {promised - counted:,} bytes of sound are there" in said


@pytest.mark.slow
def test_a_length_that_wrapped_around_at_4_gb_is_not_believed(tmp_path: Path) -> None:
    """A sparse file: what it holds is not decoded."""
    behind, present = _chunk(b"LIST", b"INFO" + bytes(50)), (1 << 32) + 12_000
    path = _wav(tmp_path / "a.wav")
    with path.open("r+b") as file:
        file.truncate(44 + present)
        file.seek(0, 2)
        file.write(behind)

    length = _length(path)
    with FileIO(path) as raw, soundfile.SoundFile(length.corrected(raw)) as corrected:
        frames = corrected.frames
        start = corrected.read(6_000)

    assert (length.promised, length.present) == (12_000, present)
    assert frames == present // 2
    np.testing.assert_allclose(start, _noise(), atol=1e-4)


def test_the_file_itself_stays_as_it_is(tmp_path: Path) -> None:
    path = _wav(tmp_path / "a.wav", 0)
    before = path.read_bytes()

    with pytest.warns(InputWarning):
        read_audio(path)

    assert path.read_bytes() == before


@given(content=st.binary(max_size=300), magic=st.sampled_from([b"RIFF", b"RF64", b"FORM", b"caff", b"riff", b"RIFX"]))
def test_no_header_makes_it_fail(content: bytes, magic: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    kinds = {b"FORM": b"AIFC", b"caff": b"\0\1\0\0", b"riff": bytes(16)}
    path = tmp_path_factory.mktemp("header") / "a"
    path.write_bytes(magic + bytes(4) + kinds.get(magic, b"WAVE") + content)

    with FileIO(path) as file:
        length = read_length(file)

    assert length is None or 0 <= length.start + length.present <= sys.maxsize
