"""Make the clips anew: ``python -m data.speech.make [FOLDER]``; prints the table of README.md.

espeak-ng speaks a sentence; soxr brings it to 16 kHz; a room, a background noise and a level make it more like a
recording. Everything random is seeded with the clip's name.
"""

from __future__ import annotations

import io
import math
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import soundfile
import soxr
import typer

from qwen_omni_onnx.common import output
from qwen_omni_onnx.common.command_line import run_app
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.sound.audio import INPUT_SAMPLE_RATE

HERE = Path(__file__).resolve().parent
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
CALIBRATION, HELD_OUT = "calibration", "held_out"
LANGUAGES = {
    "cmn": "Mandarin",
    "de": "German",
    "en": "English",
    "es": "Spanish",
    "fr": "French",
    "it": "Italian",
    "pt": "Portuguese",
}


class Clip(NamedTuple):
    """A sentence, with the settings of its voice and of its recording.

    Attributes:
        split: Folder: ``calibration`` or ``held_out``.
        voice: Language and variant of espeak-ng.
        word: Last word of the file name.
        text: Sentence in SSML.
        speed: Words a minute.
        pitch: Pitch, 0 to 99.
        peak_db: Peak of the finished clip in dBFS.
        noise: Noise in the background: ``pink``, ``white`` or none.
        snr_db: Speech over noise in decibels.
        room_s: Reverberation time (RT60) in seconds; 0 for no room.
    """

    split: str
    voice: str
    word: str
    text: str
    speed: int = 170
    pitch: int = 50
    peak_db: float = -6.0
    noise: str = ""
    snr_db: float = math.inf
    room_s: float = 0.0

    @property
    def name(self) -> str:
        """Name of the file, without its suffix."""
        return f"{self.voice.replace('+', '-').lower()}-{self.word}"


CLIPS = (
    Clip(
        CALIBRATION, "en-us+f2", "harbour",
        "The harbour was quiet all morning, and two small boats came home just before the rain.",
    ),
    Clip(
        CALIBRATION, "en-us+m3", "kitchen",
        'Put the kettle on, please. <break time="500ms"/> I will slice the bread.',
        speed=155, pitch=40, peak_db=-12, noise="pink", snr_db=30,
    ),
    Clip(CALIBRATION, "en-us+m1", "score", "Seventeen points to nine!", speed=235, pitch=65, peak_db=-0.5),
    Clip(
        CALIBRATION, "en-gb+f4", "library",
        "The library closes at half past six on Thursdays, and at noon on the last day of the month.",
        speed=180, peak_db=-32, noise="white", snr_db=25,
    ),
    Clip(
        CALIBRATION, "en-gb+m7", "platform",
        "The next train leaves from platform nine, and stops only at the coast.",
        speed=165, pitch=35, room_s=0.7, peak_db=-8, noise="pink", snr_db=22,
    ),
    Clip(
        CALIBRATION, "en-gb-scotland+m4", "weather",
        "A cold wind from the north, with snow on the higher hills, and perhaps a little sunshine by the evening.",
        speed=200, pitch=30,
    ),
    Clip(
        CALIBRATION, "de+f3", "garten",
        "Im Garten hinter dem Haus steht ein alter Apfelbaum, der jedes Jahr im Mai blüht.",
        peak_db=-10, noise="white", snr_db=35,
    ),
    Clip(CALIBRATION, "de+m2", "werkstatt", "Wo ist der kleine Schraubenzieher?", speed=210, pitch=45, peak_db=-2),
    Clip(
        CALIBRATION, "es+f1", "mercado",
        'En el mercado venden naranjas dulces, <break time="400ms"/> pan recién hecho y queso.',
        speed=165, pitch=60, noise="pink", snr_db=18,
    ),
    Clip(CALIBRATION, "es-419+m5", "puente", "El puente nuevo cruza el río.", speed=150, pitch=40, peak_db=-26),
    Clip(
        CALIBRATION, "fr-fr+f1", "boulangerie", "La boulangerie ouvre à sept heures, sauf le lundi.",
        speed=185, pitch=70, peak_db=-1,
    ),
    Clip(
        CALIBRATION, "fr-fr+m6", "orage",
        "Après l'orage, les enfants sont sortis jouer dans les flaques, et personne ne les a grondés.",
        speed=160, peak_db=-15, noise="white", snr_db=40,
    ),
    Clip(
        CALIBRATION, "cmn-latn-pinyin+f2", "chayuan",
        "jin1tian1 xia4wu3 wo3men5 qu4 shan1shang5 kan4 cha2yuan2, wan3shang5 hui2lai2 chi1fan4.",
        speed=170, pitch=55, peak_db=-9, noise="pink", snr_db=28,
    ),
    Clip(
        CALIBRATION, "cmn-latn-pinyin+m3", "chezhan", "qing3wen4, huo3che1zhan4 zen3me5 zou3?",
        speed=190, pitch=35, peak_db=-4,
    ),
    Clip(
        CALIBRATION, "it+f4", "finestra",
        "Apri la finestra: fuori si sente il mare, e più lontano una campana.",
        speed=140, pitch=45, peak_db=-20, noise="pink", snr_db=15,
    ),
    Clip(
        HELD_OUT, "en-gb-x-rp+f5", "clock",
        "Somebody wound the clock in the hall last night, but nobody remembers who it was.",
        speed=175, pitch=55, peak_db=-7, noise="pink", snr_db=24,
    ),
    Clip(HELD_OUT, "de+m8", "fahrrad", "Mein Fahrrad hat seit gestern einen Platten.", speed=190, peak_db=-24),
    Clip(
        HELD_OUT, "cmn-latn-pinyin+Andrea", "xiayu",
        'wai4mian4 xia4yu3 le5, <break time="600ms"/> bie2 wang4 le5 dai4 san3.',
        speed=150, peak_db=-3, noise="white", snr_db=32,
    ),
    Clip(
        HELD_OUT, "fr-be+Michael", "escalier",
        "Attention à la dernière marche de l'escalier, elle est plus haute.",
        speed=175, pitch=40, room_s=0.4, peak_db=-5,
    ),
    Clip(
        HELD_OUT, "pt-br+linda", "cafe", "O café está quente demais, espere um pouco antes de beber.",
        speed=200, pitch=60, peak_db=-14, noise="pink", snr_db=20,
    ),
)  # fmt: skip


def speak(clip: Clip) -> np.ndarray:
    """Return what espeak-ng says, [samples] float64 at 16 kHz.

    Raises:
        UserError: espeak-ng cannot speak this clip.
    """
    with tempfile.TemporaryDirectory() as folder:
        wave = Path(folder) / "speech.wav"
        command = ["espeak-ng", "-b", "1", "-m", "-v", clip.voice, "-s", str(clip.speed), "-p", str(clip.pitch)]
        done = subprocess.run([*command, "-w", str(wave), clip.text], capture_output=True, text=True, check=False)
        if done.returncode or not wave.is_file():
            said = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
            raise UserError(f"espeak-ng does not speak {clip.name}: {said}")
        audio, rate = soundfile.read(wave)
    return np.asarray(soxr.resample(audio, rate, INPUT_SAMPLE_RATE, quality="VHQ"))


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
    audio = audio / np.abs(audio).max() * 10 ** (clip.peak_db / 20)
    return np.round(audio * 32767).astype(np.int16)


def reverberate(speech: np.ndarray, seconds: float, random: np.random.Generator) -> np.ndarray:
    """Return speech [samples] in a room whose echo, decaying noise, has fallen by 60 dB after so many seconds."""
    time = np.arange(int(seconds * INPUT_SAMPLE_RATE)) / INPUT_SAMPLE_RATE
    echo = 0.03 * random.standard_normal(len(time)) * 10 ** (-3 * time / seconds)
    echo[0] = 1  # the direct sound
    length = len(speech) + len(echo) - 1
    return np.fft.irfft(np.fft.rfft(speech, length) * np.fft.rfft(echo, length), length)


def background(kind: str, samples: int, random: np.random.Generator) -> np.ndarray:
    """Return white or pink noise [samples] of mean square 1; pink has a power of 1 / frequency."""
    spectrum = np.fft.rfft(random.standard_normal(samples))
    if kind == "pink":
        spectrum /= np.sqrt(np.maximum(np.arange(len(spectrum)), 1))
    noise = np.fft.irfft(spectrum, samples)
    return noise / np.sqrt(np.mean(noise**2))


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
    print("| clip | voice | language | seconds | peak, dBFS | noise, SNR in dB | room, RT60 in s |")
    print("|---|---|---|--:|--:|---|--:|")
    for clip in CLIPS:
        audio = record(clip, speak(clip))
        path, coded = _file(folder, clip), io.BytesIO()  # libsndfile does not report that the end of a file is lost
        soundfile.write(coded, audio, INPUT_SAMPLE_RATE, format="FLAC", subtype="PCM_16", compression_level=1)
        with output.writing(path) as beside:
            beside.write_bytes(coded.getvalue())
        noise = f"{clip.noise}, {clip.snr_db:g}" if clip.noise else ""
        language = LANGUAGES[clip.voice.partition("-")[0].partition("+")[0]]
        seconds = len(audio) / INPUT_SAMPLE_RATE
        row = (f"{clip.split}/{path.name}", clip.voice, language, f"{seconds:.2f}", f"{clip.peak_db:g}", noise)
        print(f"| {' | '.join(row)} | {clip.room_s or ''} |")


def _file(folder: Path, clip: Clip) -> Path:
    return folder / clip.split / f"{clip.name}.flac"


if __name__ == "__main__":
    run_app(app)
