"""Make the clips anew: ``python -m data.speech.make [FOLDER]``; prints the table of README.md.

espeak-ng speaks a sentence; soxr brings it to 16 kHz; a room, a background noise and a level make it more like a
recording. Music, noise and silence are synthesized. Everything random is seeded with the clip's name.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Annotated

import numpy as np
import soundfile
import soxr
import typer

from data.speech.clips import BABBLE, CALIBRATION, CLIPS, HELD_OUT, Clip, Sound, Voice
from data.speech.sounds import SOUNDS, level, reverberate
from qwen_omni_onnx.common import output
from qwen_omni_onnx.common.command_line import run_app
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.sound.audio import INPUT_SAMPLE_RATE

HERE = Path(__file__).resolve().parent
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
LANGUAGES = {
    "ar": "Arabic", "cmn": "Mandarin", "cs": "Czech", "de": "German", "el": "Greek", "en": "English", "es": "Spanish",
    "fi": "Finnish", "fr": "French", "hi": "Hindi", "id": "Indonesian", "it": "Italian", "ja": "Japanese",
    "ko": "Korean", "nl": "Dutch", "pl": "Polish", "pt": "Portuguese", "ru": "Russian", "sv": "Swedish",
    "sw": "Swahili", "tr": "Turkish", "uk": "Ukrainian", "vi": "Vietnamese",
}  # fmt: skip


def speak(clip: Clip) -> np.ndarray:
    """Return what is said in a clip, [samples] float64 at 16 kHz: by its voice, and by the one beside it.

    Raises:
        UserError: espeak-ng cannot speak this clip.
    """
    speech = _say(Voice(clip.voice, clip.text, clip.speed, clip.pitch), clip.name)
    if clip.beside is None:
        return speech
    other = _say(clip.beside, clip.name)
    together = np.zeros(max(len(speech), len(other)))
    together[: len(speech)] = level(speech)
    together[-len(other) :] += level(other)
    return together


def record(clip: Clip, speech: np.ndarray) -> np.ndarray:
    """Add the clip's room, noise and level to speech [samples]; return [samples] int16.

    The number of samples is odd, so that no clip is a whole number of frames of 160.
    """
    random = np.random.default_rng(list(clip.name.encode()))
    audio = reverberate(speech, clip.room_s, random) if clip.room_s else speech
    audio = audio[: len(audio) - (len(audio) + 1) % 2]
    if clip.noise:
        noise = background(clip.noise, len(audio), random)
        audio = audio + noise * np.sqrt(np.mean(audio**2)) * 10 ** (-clip.snr_db / 20)
    if clip.overdrive_db:
        limit = np.abs(audio).max() * 10 ** (-clip.overdrive_db / 20)
        audio = np.clip(audio, -limit, limit)
    return _samples(audio, clip.peak_db)


def sound(clip: Sound) -> np.ndarray:
    """Return a sound that is no speech, [samples] int16; the number of samples is odd."""
    random = np.random.default_rng(list(clip.name.encode()))
    return _samples(background(clip.kind, int(clip.seconds * INPUT_SAMPLE_RATE) | 1, random), clip.peak_db)


def background(kind: str, samples: int, random: np.random.Generator) -> np.ndarray:
    """Return a background [samples] of mean square 1: several voices at once, or a sound of ``sounds.SOUNDS``."""
    if kind != "babble":
        return level(SOUNDS[kind](samples, random))
    voices = [np.resize(level(_say(voice, kind)), samples) for voice in BABBLE]
    return level(np.sum([np.roll(voice, random.integers(samples)) for voice in voices], axis=0))


def _samples(audio: np.ndarray, peak_db: float) -> np.ndarray:
    audio = audio / (np.abs(audio).max() or 1) * 10 ** (peak_db / 20)
    return np.round(audio * 32767).astype(np.int16)


@cache
def _say(voice: Voice, name: str) -> np.ndarray:
    """Return what espeak-ng says, [samples] float64 at 16 kHz; ``name`` is that of the clip, for messages."""
    with tempfile.TemporaryDirectory() as folder:
        wave = Path(folder) / "speech.wav"
        command = ["espeak-ng", "-b", "1", "-m", "-v", voice.voice, "-s", str(voice.speed), "-p", str(voice.pitch)]
        done = subprocess.run([*command, "-w", str(wave), voice.text], capture_output=True, text=True, check=False)
        if done.returncode or not wave.is_file():
            said = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
            raise UserError(f"espeak-ng does not speak {name}: {said}")
        audio, rate = soundfile.read(wave)
    return np.asarray(soxr.resample(audio, rate, INPUT_SAMPLE_RATE, quality="VHQ"))


@app.command()
def main(
    folder: Annotated[Path, typer.Argument(help="Folder in which calibration/ and held_out/ are written.")] = HERE,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Let clips replace files in another FOLDER than the usual one.")
    ] = False,
) -> None:
    """Write every clip as 16-bit FLAC at 16 kHz, and print a table of them."""
    if shutil.which("espeak-ng") is None:
        raise UserError("espeak-ng is not installed; on Debian and Ubuntu: apt-get install espeak-ng")
    for split in (CALIBRATION, HELD_OUT):
        (folder / split).mkdir(parents=True, exist_ok=True)
    for clip in CLIPS:
        output.require_writable(_file(folder, clip), overwrite=overwrite or folder.resolve() == HERE)
    print("| clip | voice | language, or sound | seconds | peak, dBFS | noise, SNR in dB | room, RT60 in s | besides |")
    print("|---|---|---|--:|--:|---|--:|---|")
    for clip in CLIPS:
        audio = sound(clip) if isinstance(clip, Sound) else record(clip, speak(clip))
        path, coded = _file(folder, clip), io.BytesIO()  # libsndfile does not report that the end of a file is lost
        soundfile.write(coded, audio, INPUT_SAMPLE_RATE, format="FLAC", subtype="PCM_16", compression_level=1)
        with output.writing(path) as beside:
            beside.write_bytes(coded.getvalue())
        print(_row(clip, len(audio) / INPUT_SAMPLE_RATE))


def _row(clip: Clip | Sound, seconds: float) -> str:
    """Return a clip's row in the table of README.md."""
    name = f"{clip.split}/{clip.name}.flac"
    if isinstance(clip, Sound):
        peak = f"{clip.peak_db:g}" if clip.kind != "silence" else ""
        return f"| {name} |  | {clip.kind} | {seconds:.2f} | {peak} |  |  |  |"
    noise = f"{clip.noise}, {clip.snr_db:g}" if clip.noise else ""
    besides = f"{clip.beside.voice} at the same time" if clip.beside else ""
    besides = f"cut off {clip.overdrive_db:g} dB below its peak" if clip.overdrive_db else besides
    row = (name, clip.voice, _language(clip.voice), f"{seconds:.2f}", f"{clip.peak_db:g}", noise)
    return f"| {' | '.join(row)} | {clip.room_s or ''} | {besides} |"


def _language(voice: str) -> str:
    return LANGUAGES[voice.partition("-")[0].partition("+")[0]]


def _file(folder: Path, clip: Clip | Sound) -> Path:
    return folder / clip.split / f"{clip.name}.flac"


if __name__ == "__main__":
    run_app(app)
