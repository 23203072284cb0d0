"""sound.audio: what is read as speech, what is refused and how it is told; and the clips in data/speech."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

from data.speech import make
from data.speech.clips import CLIPS as SPOKEN
from data.speech.clips import Clip, Sound, Voice
from data.speech.sounds import SOUNDS, level
from qwen_omni_onnx.common.input_warning import InputWarning
from qwen_omni_onnx.sound.audio import HOP, INPUT_SAMPLE_RATE, clips, read_audio, require_audio

SPEECH = ROOT / "data" / "speech"
CLIPS = sorted(SPEECH.glob("*/*.flac"))
Message = Callable[..., str]


def _sine(hertz: float, seconds: float, rate: int) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)


def _write(path: Path, audio: np.ndarray, rate: int = INPUT_SAMPLE_RATE, **kwargs: str) -> Path:
    soundfile.write(path, audio, rate, **kwargs)
    return path


def _cut(path: Path, part: float) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(part * len(data))])
    return path


def test_a_16_khz_mono_file_is_read_sample_for_sample(tmp_path: Path) -> None:
    samples = np.random.default_rng(0).integers(-32768, 32768, 1001, np.int16)

    audio = read_audio(_write(tmp_path / "a.flac", samples))

    assert audio.dtype == np.float32
    np.testing.assert_array_equal(audio, samples / np.float32(32768))


def test_a_file_longer_than_one_block_of_reading_is_read_whole(tmp_path: Path) -> None:
    samples = np.random.default_rng(0).integers(-32768, 32768, 200_003, np.int16)

    np.testing.assert_array_equal(read_audio(_write(tmp_path / "a.wav", samples)), samples / np.float32(32768))


def test_channels_are_averaged(tmp_path: Path) -> None:
    left, right = np.random.default_rng(0).uniform(-1, 1, (2, 500)).astype(np.float32)

    audio = read_audio(_write(tmp_path / "a.wav", np.stack([left, right], 1), subtype="FLOAT"))

    np.testing.assert_allclose(audio, (left + right) / 2, atol=1e-7)


@pytest.mark.parametrize(("rate", "channels"), [(44_100, 2), (48_000, 1), (8_000, 1), (22_050, 6), (11_025, 1)])
def test_another_rate_comes_out_at_16_khz_with_the_same_pitch_length_and_level(
    rate: int, channels: int, tmp_path: Path
) -> None:
    source = np.repeat(_sine(1000, 1.5, rate)[:, None], channels, 1)

    audio = read_audio(_write(tmp_path / "a.wav", source, rate, subtype="FLOAT"))

    middle = slice(800, -800)  # the ends ring
    assert audio.dtype == np.float32
    assert audio.flags.c_contiguous
    assert len(audio) == pytest.approx(1.5 * INPUT_SAMPLE_RATE, abs=1)
    np.testing.assert_allclose(audio[middle], _sine(1000, 1.5, INPUT_SAMPLE_RATE)[: len(audio)][middle], atol=1e-3)


def test_what_16_khz_cannot_hold_is_removed_and_not_folded_back(tmp_path: Path) -> None:
    audio = read_audio(_write(tmp_path / "a.wav", _sine(11_000, 1, 48_000), 48_000, subtype="FLOAT"))

    assert np.abs(audio[800:-800]).max() < 1e-4


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.mp3", "a.aiff", "a.au"])
def test_every_format_of_libsndfile_is_read(name: str, tmp_path: Path) -> None:
    audio = read_audio(_write(tmp_path / name, _sine(440, 1, INPUT_SAMPLE_RATE)))

    assert len(audio) == INPUT_SAMPLE_RATE
    assert np.abs(np.fft.rfft(audio)).argmax() == 440


def test_a_wav_that_was_written_to_a_pipe_is_whole(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.wav", _sine(440, 1, INPUT_SAMPLE_RATE))
    data = bytearray(path.read_bytes())
    data[40:44] = b"\xff" * 4  # the length of the data, unknown when the header was written
    path.write_bytes(data)

    assert len(read_audio(path)) == INPUT_SAMPLE_RATE


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path, message: Message) -> None:
    assert message(read_audio, tmp_path / "a.wav") == f"{tmp_path}/a.wav: no such file"
    assert message(read_audio, tmp_path).startswith(f"{tmp_path}: is a folder")


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.mp3", "a.raw", "a"])
@pytest.mark.parametrize("content", [b"", b"this is no sound\n" * 50])
def test_a_file_that_is_no_sound_is_named(name: str, content: bytes, tmp_path: Path, message: Message) -> None:
    (tmp_path / name).write_bytes(content)

    assert message(read_audio, tmp_path / name).startswith(f"{tmp_path / name}: cannot be read as sound (")


@pytest.mark.parametrize("name", ["a.flac", "a.mp3", "a.ogg"])
def test_a_tag_behind_the_sound_is_passed_over(name: str, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    path = _write(tmp_path / name, _sine(440, 1, INPUT_SAMPLE_RATE))
    path.write_bytes(path.read_bytes() + b"TAG" + bytes(125))

    assert len(read_audio(path)) == INPUT_SAMPLE_RATE
    assert not recwarn


@pytest.mark.parametrize("name", ["a.mp3", "a.ogg"])
def test_files_that_were_strung_together_are_told(name: str, tmp_path: Path) -> None:
    path = _write(tmp_path / name, _sine(440, 1, INPUT_SAMPLE_RATE))
    path.write_bytes(2 * path.read_bytes())

    with pytest.warns(InputWarning, match=f"{name}: holds several sounds one after another; the first one is read"):
        assert len(read_audio(path)) == INPUT_SAMPLE_RATE


@pytest.mark.parametrize("name", ["a.wav", "a.aiff"])
def test_files_of_chunks_that_were_strung_together_are_refused(name: str, tmp_path: Path, message: Message) -> None:
    path = _write(tmp_path / name, _sine(440, 1, INPUT_SAMPLE_RATE))
    path.write_bytes(2 * path.read_bytes())

    assert message(read_audio, path).startswith(f"{path}: cannot be read as sound (")


@pytest.mark.parametrize("part", [0.05, 0.5, 0.99])
@pytest.mark.parametrize("suffix", ["flac", "wav", "mp3"])
def test_a_file_that_was_cut_short_is_refused(suffix: str, part: float, tmp_path: Path, message: Message) -> None:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 30_000)

    said = message(read_audio, _cut(_write(tmp_path / f"a.{suffix}", noise), part))

    assert said.startswith(f"{tmp_path}/a.{suffix}: ")
    assert "cut short" in said or "cannot be read as sound" in said


@pytest.mark.parametrize("suffix", ["flac", "mp3"])
def test_a_file_with_a_hole_in_it_is_refused(suffix: str, tmp_path: Path, message: Message) -> None:
    path = _write(tmp_path / f"a.{suffix}", np.random.default_rng(0).uniform(-0.5, 0.5, 30_000))
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 300] = bytes(300)
    path.write_bytes(data)

    assert message(read_audio, path).startswith(f"{path}: ")


def test_a_header_that_promises_more_than_memory_holds_is_refused(tmp_path: Path, message: Message) -> None:
    path = _write(tmp_path / "a.flac", _sine(440, 1, INPUT_SAMPLE_RATE))
    data = bytearray(path.read_bytes())
    data[21] |= 0x0F
    data[22:26] = b"\xff" * 4  # 2^36 - 1 samples
    path.write_bytes(data)

    assert f"{path}: damaged or cut short, 16000 samples are left" in message(read_audio, path)


@pytest.mark.parametrize("rate", [1, 999])
def test_a_rate_that_no_recording_has_is_refused_before_it_is_resampled(
    rate: int, tmp_path: Path, message: Message
) -> None:
    path = _write(tmp_path / "a.wav", _sine(440, 1, INPUT_SAMPLE_RATE))
    data = bytearray(path.read_bytes())
    data[24:28] = struct.pack("<I", rate)
    path.write_bytes(data)

    assert f"a.wav: a sample rate of {rate} Hz" in message(read_audio, path)


@pytest.mark.parametrize(
    ("samples", "rate", "expected"),
    [
        (0, INPUT_SAMPLE_RATE, "a.wav: empty"),
        (0, 44_100, "a.wav: empty"),
        (HOP - 1, INPUT_SAMPLE_RATE, "a.wav: 159 samples at 16000 Hz; at least 160"),
        (400, 44_100, "a.wav: 145 samples at 16000 Hz; at least 160"),
    ],
)
def test_a_clip_shorter_than_a_mel_frame_is_refused(
    samples: int, rate: int, expected: str, tmp_path: Path, message: Message
) -> None:
    assert expected in message(read_audio, _write(tmp_path / "a.wav", np.zeros(samples), rate))


def test_the_shortest_clip_is_one_mel_frame(tmp_path: Path) -> None:
    assert len(read_audio(_write(tmp_path / "a.wav", _sine(440, 0.01, INPUT_SAMPLE_RATE)))) == HOP
    assert len(read_audio(_write(tmp_path / "b.wav", _sine(440, 0.01, 44_100), 44_100))) == HOP


@pytest.mark.parametrize("rate", [INPUT_SAMPLE_RATE, 44_100])
@pytest.mark.parametrize(("bad", "shown"), [(np.nan, "nan"), (np.inf, "inf"), (-np.inf, "-inf"), (1e300, "inf")])
def test_a_sample_that_is_no_number_is_shown_where_it_stands(
    bad: float, shown: str, rate: int, tmp_path: Path, message: Message
) -> None:
    audio = np.zeros(70_000)
    audio[66_000:66_003] = bad

    said = message(read_audio, _write(tmp_path / "a.wav", audio, rate, subtype="DOUBLE"))

    assert f"a.wav: sample 66000 is {shown};" in said


def test_infinities_that_cancel_over_channels_are_refused(tmp_path: Path, message: Message) -> None:
    audio = np.tile(np.array([np.inf, -np.inf], np.float32), (200, 1))

    assert "sample 0 is nan" in message(read_audio, _write(tmp_path / "a.wav", audio, subtype="FLOAT"))


@pytest.mark.parametrize(
    ("audio", "rate", "expected"),
    [
        (
            np.zeros(400, np.float32),
            44_100,
            "x: 44100 Hz; 16000 Hz is needed: resample it (qwen_omni_onnx.sound.audio.read_audio",
        ),
        (np.zeros((1, 400), np.float32), INPUT_SAMPLE_RATE, "x: shape [1, 400]; [samples]"),
        (np.zeros((400, 2), np.float32), INPUT_SAMPLE_RATE, "x: shape [400, 2]; [samples]"),
        (np.float32(0.5), INPUT_SAMPLE_RATE, "x: shape []; [samples]"),
        (np.zeros(400, np.int16), INPUT_SAMPLE_RATE, "x: int16 samples; floating-point ones are needed: divide"),
        (np.zeros(400, np.uint8), INPUT_SAMPLE_RATE, "x: uint8 samples"),
        (np.zeros(400, bool), INPUT_SAMPLE_RATE, "x: bool samples"),
        (np.zeros(400, np.complex64), INPUT_SAMPLE_RATE, "x: complex64 samples"),
        (np.zeros(400, object), INPUT_SAMPLE_RATE, "x: object samples"),
        (np.zeros(0, np.float32), INPUT_SAMPLE_RATE, "x: empty; at least 160"),
        (np.zeros(HOP - 1, np.float32), INPUT_SAMPLE_RATE, "x: 159 samples at 16000 Hz; at least 160"),
        (np.r_[np.zeros(200), np.nan, np.inf], INPUT_SAMPLE_RATE, "x: sample 200 is nan"),
        (np.r_[np.zeros(200), -1e300], INPUT_SAMPLE_RATE, "x: sample 200 is -inf"),
    ],
)
def test_an_array_that_is_no_speech_is_refused(audio: np.ndarray, rate: int, expected: str, message: Message) -> None:
    assert message(require_audio, audio, rate, "x").startswith(expected)


@given(
    samples=st.integers(HOP, 2000),
    step=st.sampled_from([1, 2, -1]),
    kind=st.sampled_from([np.float16, np.float32, np.float64, ">f4"]),
)
def test_any_finite_floating_array_comes_out_as_contiguous_float32(samples: int, step: int, kind: type) -> None:
    given_: np.ndarray = np.random.default_rng(samples).uniform(-1, 1, samples * abs(step)).astype(kind)[::step]

    audio = require_audio(given_, INPUT_SAMPLE_RATE, "x")

    assert audio.dtype == np.dtype("float32")
    assert audio.dtype.isnative
    assert audio.flags.c_contiguous
    np.testing.assert_array_equal(audio, given_.astype(np.float32))


@given(samples=st.integers(HOP, 4000), rate=st.sampled_from([8_000, 16_000, 22_050, 44_100, 48_000]))
def test_the_length_that_comes_out_is_the_files_at_16_khz(
    samples: int, rate: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = _write(
        tmp_path_factory.mktemp("length") / "a.wav", np.random.default_rng(0).uniform(-1, 1, 3 * samples), rate
    )

    assert len(read_audio(path)) == pytest.approx(3 * samples * INPUT_SAMPLE_RATE / rate, abs=1)


def test_clips_are_the_audio_files_of_a_folder_in_order(tmp_path: Path) -> None:
    for name in ("b.wav", "a.FLAC", "c.mp3", "d.ogg", "notes.txt", "e.wav.part"):
        (tmp_path / name).touch()
    (tmp_path / "folder.wav").mkdir()

    assert [path.name for path in clips(tmp_path)] == ["a.FLAC", "b.wav", "c.mp3", "d.ogg"]


def test_a_folder_without_clips_is_named(tmp_path: Path, message: Message) -> None:
    (tmp_path / "notes.txt").touch()

    assert message(clips, tmp_path / "nowhere") == f"{tmp_path}/nowhere: no such folder"
    assert message(clips, tmp_path / "notes.txt") == f"{tmp_path}/notes.txt: no such folder"
    assert message(clips, tmp_path) == f"{tmp_path}: no .flac, .mp3, .ogg, .wav file in it"


def test_checking_an_array_needs_only_numpy() -> None:
    program = "import sys; sys.modules.update(soundfile=None, soxr=None); import qwen_omni_onnx.sound.audio"

    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


def test_the_clips_are_small_split_and_of_many_languages() -> None:
    seen, judged = clips(SPEECH / "calibration"), clips(SPEECH / "held_out")
    seconds = [soundfile.info(path).duration for path in seen]

    assert sorted([*seen, *judged]) == CLIPS
    assert len(judged) == 5
    assert sum(path.stat().st_size for path in CLIPS) < 8_000_000
    assert not {path.read_bytes() for path in seen} & {path.read_bytes() for path in judged}
    assert sum(seconds) >= 300
    assert sum(10 <= length <= 25 for length in seconds) >= 5
    assert len({path.name.split("-")[0] for path in CLIPS}) >= 12
    assert len({path.name.split("-")[0] for path in judged}) >= 2


@pytest.mark.parametrize("path", CLIPS, ids=lambda path: path.stem)
def test_a_clip_is_16_khz_mono_of_its_level_and_no_whole_number_of_frames(path: Path) -> None:
    info = soundfile.info(path)
    audio = read_audio(path)
    (clip,) = [clip for clip in SPOKEN if clip.name == path.stem]
    silent = isinstance(clip, Sound) and clip.kind == "silence"

    assert (info.samplerate, info.channels, info.subtype) == (INPUT_SAMPLE_RATE, 1, "PCM_16")
    assert 1.2 * INPUT_SAMPLE_RATE <= len(audio) <= 25 * INPUT_SAMPLE_RATE
    assert len(audio) % HOP
    peak = 0 if silent else 10 ** (clip.peak_db / 20)
    assert np.abs(audio).max() == pytest.approx(peak, abs=2**-14)


def test_the_clips_are_those_of_the_table_that_makes_them() -> None:
    spoken = [clip for clip in SPOKEN if isinstance(clip, Clip)]
    voices = {split: {clip.voice for clip in spoken if clip.split == split} for split in ("calibration", "held_out")}
    texts = [clip.text for clip in spoken]

    assert sorted(SPEECH / clip.split / f"{clip.name}.flac" for clip in SPOKEN) == CLIPS
    assert not voices["calibration"] & voices["held_out"]
    assert len(set(texts)) == len(texts)


def test_sounds_are_seeded_and_as_long_as_was_asked_for() -> None:
    for kind, sound in SOUNDS.items():
        one, again, other = (level(sound(4001, np.random.default_rng(seed))) for seed in (1, 1, 2))

        assert one.shape == (4001,)
        np.testing.assert_array_equal(one, again)
        if kind == "silence":
            assert not one.any()
        else:
            assert np.mean(one**2) == pytest.approx(1)
            assert (one != other).any()


def test_the_calibration_meets_noise_music_silence_and_speech_that_is_spoiled() -> None:
    calibration = [clip for clip in SPOKEN if clip.split == "calibration"]
    spoken = [clip for clip in calibration if isinstance(clip, Clip)]

    assert {clip.kind for clip in calibration if isinstance(clip, Sound)} == {*SOUNDS, "babble"}
    assert {"", "babble", "band", "hum", "pink", "rain", "white"} <= {clip.noise for clip in spoken}
    for spoiled in ("room_s", "overdrive_db", "beside"):
        assert any(getattr(clip, spoiled) for clip in spoken), spoiled


def test_speech_that_is_overdriven_is_cut_off_and_two_voices_are_both_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    ramp = np.linspace(-1, 1, 2001)
    clip = Clip("calibration", "en", "ramp", "a", peak_db=0, overdrive_db=6)
    monkeypatch.setattr(make, "_say", lambda voice, name: np.full(3 if voice.text == "a" else 5, 2.0))

    flat = np.abs(make.record(clip, ramp)) == 32767
    both = make.speak(clip._replace(beside=Voice("de", "b")))

    assert flat.mean() == pytest.approx(0.5, abs=0.01)
    np.testing.assert_array_equal(both, [2, 2, 2, 1, 1])


def test_the_readme_tells_each_clip_and_its_seconds() -> None:
    readme = (SPEECH / "README.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")] for line in readme.splitlines() if ".flac |" in line]

    assert sorted(SPEECH / row[1] for row in rows) == CLIPS
    for row in rows:
        assert float(row[4]) == pytest.approx(len(read_audio(SPEECH / row[1])) / INPUT_SAMPLE_RATE, abs=0.006)


def test_making_the_clips_without_espeak_says_what_to_install(tmp_path: Path) -> None:
    made = subprocess.run(
        [sys.executable, "-m", "data.speech.make", tmp_path / "speech"],
        cwd=ROOT, env={**os.environ, "PATH": str(tmp_path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert made.returncode == 1
    assert made.stdout == ""
    assert made.stderr == "error: espeak-ng is not installed; on Debian and Ubuntu: apt-get install espeak-ng\n"
    assert not (tmp_path / "speech").exists()


def test_a_small_file_that_resampling_makes_large_is_refused(tmp_path: Path, message: Message) -> None:
    path = tmp_path / "a.flac"
    with soundfile.SoundFile(path, "w", 1_000, 1, "PCM_16") as file:
        for _ in range(11):
            file.write(np.zeros(1_000_000, np.int16))

    assert path.stat().st_size < 100_000
    assert message(read_audio, path) == f"{path}: more than 10,800,000 samples, hours of sound; cut it"
