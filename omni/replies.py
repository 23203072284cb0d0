"""Recorded replies to questions: the sound and the text of each, in a folder that a later run goes on with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from pydantic import TypeAdapter, ValidationError

from omni.questions import Question
from omni.resources import progress
from qwen_omni_onnx.common import artifact, output
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.talker.runtime import CODES_A_SECOND
from qwen_omni_onnx.token2wav.runtime import OUTPUT_SAMPLE_RATE

__all__ = [
    "LISTENER",
    "TRANSCRIBE",
    "Answer",
    "RecordedChain",
    "RecordedReply",
    "ReplyLimits",
    "codes_within",
    "depends_on",
    "in_turn",
    "read_chain",
    "read_reply",
    "record",
    "sound_path",
]

LISTENER = "You are a speech recognition model."  # the system prompt with which Qwen's team measures what is understood
TRANSCRIBE = "Transcribe the audio into text."
_CHAIN = "chain.json"
_LONGEST = 600  # seconds


@dataclass(frozen=True)
class ReplyLimits:
    """How replies begin and end.

    Attributes:
        seed: Seed for sampling and for the initial noise.
        max_new_tokens: Tokens after which a text is cut off.
        max_new_codes: Codes after which speech is cut off, 50 a second.
    """

    seed: int
    max_new_tokens: int
    max_new_codes: int


@dataclass(frozen=True)
class RecordedChain:
    """Who replied, beside the replies.

    Attributes:
        described: The models in words.
        synthetic: Whether any of their weights are synthetic.
        limits: How the replies begin and end.
    """

    described: str
    synthetic: bool
    limits: ReplyLimits


@dataclass(frozen=True)
class RecordedReply:
    """A reply; its sound lies beside it.

    Attributes:
        made_from: SHA-256 of everything that the reply depends on.
        text: What the Thinker wrote.
        seconds: Duration of the speech, as it came.
        runs_on: Whether speech was cut off where no more was allowed, though its text had ended.
        understood: What the Thinker wrote down of the question's sound; None if it has none.
    """

    made_from: str
    text: str
    seconds: float
    runs_on: bool
    understood: str | None


Answer = tuple[RecordedReply, np.ndarray]
"""A reply, and its waveform [samples] float32 at 24 kHz."""
ReplyAll = Callable[[Sequence[str], Callable[[str, Answer], None]], None]
"""Replies to the questions of these names, and hands over each name with its reply."""


def depends_on(question: Question, *others: Any) -> str:
    """Return a SHA-256 of everything that a reply depends on: the question, with its sound's bytes, and what is named.

    Args:
        question: The question.
        others: Values that JSON can hold: models, limits, versions.
    """
    sound = artifact.sha256(Path(question.sound)) if question.sound else None
    named = [{**question.model_dump(), "sound": sound}, LISTENER, TRANSCRIBE, *others]
    return hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()


def record(
    folder: Path,
    chain: RecordedChain,
    wanted: Mapping[str, str],
    reply_all: ReplyAll,
) -> None:
    """Write ``NAME.json`` and ``NAME.flac`` for each question, but for those that are there and whole.

    Args:
        folder: Folder of the replies.
        chain: Who replies.
        wanted: For each question's name, the SHA-256 of everything that the reply depends on.
        reply_all: What replies to the questions; each reply is kept as soon as it comes.

    Raises:
        UserError: A reply cannot be written, or the folder holds something else.
    """
    if folder.exists() and not (folder / _CHAIN).is_file() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"{folder}: in the way, and no folder of replies; give another one")
    missing = [name for name, made_from in wanted.items() if not _is_there(folder, name, made_from)]
    with output.told(folder, folder.parent):
        folder.mkdir(parents=True, exist_ok=True)
    artifact.write_json(folder / _CHAIN, asdict(chain))

    def take(name: str, answer: Answer) -> None:
        found, waveform = answer
        sound = np.clip(waveform, -1, 1) if len(waveform) else np.zeros(1)  # an empty FLAC cannot be read
        with output.writing(sound_path(folder, name)) as beside:
            soundfile.write(beside, sound, OUTPUT_SAMPLE_RATE, "PCM_16", format="FLAC")
        artifact.write_json(folder / f"{name}.json", asdict(found))

    reply_all(missing, take)


def in_turn(title: str, reply: Callable[[str], Answer]) -> ReplyAll:
    """Return what replies to questions one after another, under a progress bar, by a function of a question's name."""

    def reply_all(names: Sequence[str], take: Callable[[str, Answer], None]) -> None:
        with progress(title, len(names)) as advance:
            for name in names:
                take(name, reply(name))
                advance(1)

    return reply_all


def codes_within(max_seconds: float) -> int:
    """Return how many codes of speech are allowed.

    Raises:
        UserError: It is no time that a reply could take.
    """
    if not 0.1 <= max_seconds <= _LONGEST:  # neither is a number that is none
        raise UserError(f"--max-seconds: {max_seconds:g}; give 0.1 to {_LONGEST}")
    return round(max_seconds * CODES_A_SECOND)


def read_chain(folder: Path) -> RecordedChain:
    """Return who replied.

    Raises:
        UserError: The folder holds no recorded replies.
    """
    try:
        return TypeAdapter(RecordedChain).validate_python(artifact.read_json(folder / _CHAIN))
    except ValidationError:
        raise UserError(f"{folder / _CHAIN}: not of recorded replies; delete {folder}, and record them again") from None


def sound_path(folder: Path, name: str) -> Path:
    """Return the file with the speech of a reply."""
    return folder / f"{name}.flac"


def read_reply(folder: Path, name: str) -> tuple[RecordedReply, np.ndarray]:
    """Return a recorded reply, and its waveform [samples] float32 at 24 kHz.

    Raises:
        UserError: It is missing, or not what :func:`record` writes.
    """
    path = folder / f"{name}.json"
    try:
        reply = TypeAdapter(RecordedReply).validate_python(artifact.read_json(path))
        waveform, rate = soundfile.read(sound_path(folder, name), dtype="float32")
    except (ValidationError, soundfile.SoundFileError):
        raise UserError(f"{path}: not a recorded reply; delete {folder}, and record it again") from None
    if rate != OUTPUT_SAMPLE_RATE or waveform.ndim != 1:
        raise UserError(f"{sound_path(folder, name)}: not at 24 kHz, or not mono; delete {folder}, and record it again")
    return reply, waveform


def _is_there(folder: Path, name: str, made_from: str) -> bool:
    try:
        return read_reply(folder, name)[0].made_from == made_from
    except UserError:
        return False
