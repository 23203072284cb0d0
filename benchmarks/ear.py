"""Do the scorers of speech hear what is wrong, and does the gate? ``python -m benchmarks.ear``, after ``make ear``.

Clips of known words are spoiled in known ways. Each scorer rates them, and each way is judged as if a chain had spoken
so: clean clips are the reference's replies, spoiled ones the candidate's.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import soxr
import typer

from benchmarks.report import JsonFile, Overwrite, json_file, number, print_table
from data.speech.clips import CLIPS, Clip
from omni.params import load
from omni.questions import Question
from omni.replies import RecordedChain, RecordedReply, ReplyLimits, in_turn, record
from omni.speech_report import SpeechFigure
from profiles.siblings import ear
from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.common.command_line import run_app
from qwen_omni_onnx.sound.audio import INPUT_SAMPLE_RATE, read_audio
from qwen_omni_onnx.token2wav.runtime import OUTPUT_SAMPLE_RATE
from validate.ear.judge import MISSED, judge
from validate.ear.score import Chosen, HeardReply, Listening, listen, pair
from validate.ear.score import open_scorers as scorers_of

__all__ = ["SPOILED", "main", "measure", "open_scorers"]

# English, which Whisper base knows best; women and men take turns, so that the next one is another voice.
CLIPS_USED = (
    "en-us-f2-harbour",
    "en-us-m3-kitchen",
    "en-gb-f4-library",
    "en-gb-scotland-m4-weather",
    "en-gb-x-rp-f5-clock",
    "en-us-m1-score",
)
_CHAIN = RecordedChain("clips", False, ReplyLimits(0, 0, 0))  # nobody's
_MARKUP = re.compile(r"<[^>]*>")
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
Spoil = Callable[[np.ndarray], np.ndarray]  # from samples [samples] at 16 kHz to others


def _with_noise(decibels: float) -> Spoil:
    """Add white noise of a level below the sound's own."""

    def spoil(sound: np.ndarray) -> np.ndarray:
        noise = np.random.default_rng(0).standard_normal(len(sound))
        return np.asarray(sound + noise * np.sqrt(np.mean(sound**2)) * 10 ** (-decibels / 20))

    return spoil


def _clipped(decibels: float) -> Spoil:
    """Cut peaks off, so many decibels below the highest."""
    return lambda sound: np.clip(sound, *(np.array([-1, 1]) * np.abs(sound).max() * 10 ** (-decibels / 20)))


def _narrow(rate: int) -> Spoil:
    """Leave out what lies above half a sampling rate."""
    return lambda sound: soxr.resample(soxr.resample(sound, INPUT_SAMPLE_RATE, rate), rate, INPUT_SAMPLE_RATE)


def _slower(times: int) -> Spoil:
    """Play it so many times as slowly, and lower."""
    return lambda sound: soxr.resample(sound, INPUT_SAMPLE_RATE, times * INPUT_SAMPLE_RATE)


def _without_its_middle(share: float) -> Spoil:
    """Cut words out."""

    def spoil(sound: np.ndarray) -> np.ndarray:
        cut = int(len(sound) * (1 - share) / 2)
        return np.concatenate([sound[:cut], sound[-cut:]])

    return spoil


CLEAN, ANOTHER = "clean", "another voice"
SPOILED: Mapping[str, Spoil] = {
    CLEAN: lambda sound: sound,
    "noise, 20 dB": _with_noise(20),
    "noise, 10 dB": _with_noise(10),
    "noise, 0 dB": _with_noise(0),
    "clipped by 12 dB": _clipped(12),
    "clipped by 30 dB": _clipped(30),
    "8 kHz": _narrow(8000),
    "2 kHz": _narrow(2000),
    "half speed": _slower(2),
    "a third cut out": _without_its_middle(1 / 3),
    "two thirds cut out": _without_its_middle(2 / 3),
    "silence": np.zeros_like,
}


def open_scorers(models: Path) -> Listening:
    """Return the project's own scorers, with models that ``python -m profiles.siblings.ear`` laid out."""
    chosen: Chosen = {
        "transcriber": ("faster-whisper", models / ear.WHISPER),
        "rater": ("dnsmos", None),
        "speaker": ("ge2e", models / ear.SPEAKER),
    }
    return Listening(chosen, scorers_of(chosen))


def measure(listening: Listening) -> dict[str, list[SpeechFigure]]:
    """Return what the gate says of each way to spoil the clips, as figures.

    Args:
        listening: The scorers.
    """
    clips = {clip.name: clip for clip in CLIPS if isinstance(clip, Clip) and clip.name in CLIPS_USED}
    sounds = {name: read_audio(Path("data/speech") / clip.split / f"{name}.flac") for name, clip in clips.items()}
    said = {name: _MARKUP.sub("", clip.text) for name, clip in clips.items()}
    others = dict(zip(CLIPS_USED, [*CLIPS_USED[1:], CLIPS_USED[0]], strict=True))
    questions = [Question(name=name, language="en", text="?") for name in CLIPS_USED]
    limits = load().speech
    with tempfile.TemporaryDirectory(prefix="ear-") as folder:

        def heard(way: str, sounds: Mapping[str, np.ndarray], said: Mapping[str, str]) -> list[HeardReply]:
            place = Path(folder) / way
            reply_all = in_turn(way, lambda name: _reply(way, sounds[name], said[name]))
            record(place, _CHAIN, dict.fromkeys(sounds, way), reply_all)
            return listen(questions, place, listening)

        replies = {
            way: heard(way, {name: spoil(sound) for name, sound in sounds.items()}, said)
            for way, spoil in SPOILED.items()
        }
        replies[ANOTHER] = heard(
            ANOTHER,
            {name: sounds[other] for name, other in others.items()},
            {name: said[other] for name, other in others.items()},
        )
    return {
        way: judge(pair(questions, replies[CLEAN], spoiled), limits, synthetic=False)
        for way, spoiled in replies.items()
    }


def _reply(way: str, sound: np.ndarray, said: str) -> tuple[RecordedReply, np.ndarray]:
    """Return a clip as if a chain had replied it."""
    waveform = soxr.resample(sound, INPUT_SAMPLE_RATE, OUTPUT_SAMPLE_RATE)
    return RecordedReply(way, said, len(waveform) / OUTPUT_SAMPLE_RATE, False, None), waveform


@app.command()
def main(
    models: Annotated[Path, typer.Option(help="Folder that python -m profiles.siblings.ear wrote.")] = Path(
        "build/ear"
    ),
    json: JsonFile = None,
    overwrite: Overwrite = False,
) -> None:
    """Print what each scorer, and the gate, makes of clips that are spoiled in known ways."""
    json = json_file(json, overwrite=overwrite, inputs=[models])
    found = measure(open_scorers(models))
    columns = ["speaking", "loss of MOS", "similarity", "duration", "faults"]
    rows = []
    for way, figures in found.items():
        by_name = {figure.name: figure for figure in figures}
        cells = [number(by_name[column].value, 2) if column in by_name else "" for column in columns]
        rows.append([way, *cells, ", ".join(f.name for f in figures if f.verdict == MISSED) or "none"])
    print_table([["clips", "WER, points more", *columns[1:], "limits missed"], *rows])
    if json:
        made: dict[str, Any] = {way: [asdict(figure) for figure in figures] for way, figures in found.items()}
        artifact.write_json(json, made)


if __name__ == "__main__":
    run_app(app)
