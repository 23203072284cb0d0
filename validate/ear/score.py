"""Scores recorded replies, one by one and in pairs: the same question through two chains."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from omni.pieces.work import OneProcess, Place, Pool
from omni.questions import Question
from omni.replies import RecordedReply, read_reply
from omni.speech_report import SpeechPair, SpeechScore
from qwen_omni_onnx.token2wav.runtime import OUTPUT_SAMPLE_RATE
from validate.ear import scorers
from validate.ear.scorers import Rater, SpeakerEncoder, Transcriber
from validate.ear.text import errors, normalize
from validate.ear.utterance import prepare

__all__ = ["Chosen", "HeardReply", "Listening", "Scorers", "listen", "open_scorers", "pair"]

_OFF_PACE = 3.0  # times as long for each letter as the other chain's reply: it babbles on, or swallows words
Chosen = Mapping[scorers.Kind, tuple[str, Path | None]]
"""Name and model of the scorer of each kind."""
_Recorded = tuple[Question, RecordedReply, np.ndarray]  # and the waveform [samples], 24 kHz


@dataclass(frozen=True)
class Scorers:
    """Those who judge.

    Attributes:
        transcriber: Writes down what is said.
        rater: Predicts a mean opinion score.
        speaker: Tells whether two replies have the same voice.
    """

    transcriber: Transcriber
    rater: Rater
    speaker: SpeakerEncoder


@dataclass(frozen=True, eq=False)
class HeardReply:
    """A reply as the scorers hear it.

    Attributes:
        score: The scores that need no other reply.
        voice: Vector of length 1 that is the speaker's; None if there is nothing to be heard.
    """

    score: SpeechScore
    voice: np.ndarray | None


@dataclass(frozen=True)
class Listening:
    """The work of scoring replies one by one.

    Attributes:
        chosen: Name and model of the scorer of each kind.
        opened: The scorers where this process has opened them; they are not sent to others.
    """

    chosen: Chosen
    opened: Scorers | None = None

    @property
    def needs(self) -> list[Path]:
        """The models."""
        return [model for _, model in self.chosen.values() if model is not None]

    def open(self, place: Place) -> Callable[[_Recorded], HeardReply]:
        """Return what scores a recorded reply.

        Raises:
            UserError: A scorer cannot be had: see :func:`open_scorers`.
        """
        placed = {kind: (name, model and place(model)) for kind, (name, model) in self.chosen.items()}
        return partial(_listen, self.opened or open_scorers(placed))

    def __reduce__(self) -> tuple[type[Listening], tuple[Chosen]]:
        return Listening, (self.chosen,)


def open_scorers(chosen: Chosen) -> Scorers:
    """Return the scorers.

    Raises:
        UserError: One cannot be had: see :func:`validate.ear.scorers.load`.
    """
    return Scorers(
        scorers.load("transcriber", *chosen["transcriber"]),
        scorers.load("rater", *chosen["rater"]),
        scorers.load("speaker", *chosen["speaker"]),
    )


def listen(
    questions: Sequence[Question], folder: Path, listening: Listening, pool: Pool | None = None
) -> list[HeardReply]:
    """Return how a chain's replies to questions sound.

    Args:
        questions: The questions.
        folder: Folder of the chain's replies.
        listening: Those who judge.
        pool: Processes that share the work; None: this one alone.

    Raises:
        UserError: A reply is missing or broken.
    """
    recorded = {question.name: (question, *read_reply(folder, question.name)) for question in questions}
    heard: dict[str, HeardReply] = {}
    (pool or OneProcess()).run(listening, recorded, f"listening to {folder}", heard.__setitem__)
    return [heard[name] for name in recorded]


def pair(
    questions: Sequence[Question], reference: Sequence[HeardReply], candidate: Sequence[HeardReply]
) -> list[SpeechPair]:
    """Return the scores of both chains' reply to each question."""
    return [_pair(*replies) for replies in zip(questions, reference, candidate, strict=True)]


def _listen(opened: Scorers, recorded: _Recorded) -> HeardReply:
    question, reply, waveform = recorded
    utterance = prepare(waveform, OUTPUT_SAMPLE_RATE)
    voice, transcript, mos = None, "", None
    if not utterance.silent:
        transcript = opened.transcriber.transcribe(utterance.at(opened.transcriber.rate), question.language)
        mos = opened.rater.rate_speech(utterance.at(opened.rater.rate))
        voice = opened.speaker.embed(utterance.at(opened.speaker.rate))
    spoken = errors(reply.text, transcript, question.language)
    heard = None
    if question.said is not None and reply.understood is not None:
        heard = errors(question.said, reply.understood, question.language)
    score = SpeechScore(
        text=reply.text,
        transcript=transcript,
        seconds=utterance.seconds,
        speaking_errors=spoken.wrong,
        speaking_length=spoken.length,
        understood=reply.understood,
        hearing_errors=heard.wrong if heard else None,
        hearing_length=heard.length if heard else None,
        mos=mos,
        runs_on=reply.runs_on,
    )
    return HeardReply(score, voice)


def _pair(question: Question, reference: HeardReply, candidate: HeardReply) -> SpeechPair:
    similarity = duration_ratio = None
    if reference.voice is not None and candidate.voice is not None:
        similarity = float(reference.voice @ candidate.voice)
        duration_ratio = _pace(candidate.score) / _pace(reference.score)
    return SpeechPair(
        question=question.name,
        language=question.language,
        reference=reference.score,
        candidate=candidate.score,
        similarity=similarity,
        duration_ratio=duration_ratio,
        fault=_fault(reference.score, candidate.score, duration_ratio),
    )


def _pace(score: SpeechScore) -> float:
    """Return seconds for each letter of the text: replies whose texts differ are compared by it."""
    return score.seconds / max(1, len(normalize(score.text).replace(" ", "")))


def _fault(first: SpeechScore, second: SpeechScore, ratio: float | None) -> str | None:
    """Return what is wrong with the candidate's reply as a whole; None where the reference's is no better."""
    if first.seconds == 0:
        return None
    if second.seconds == 0:
        return "empty"
    if second.runs_on and not first.runs_on:
        return "runs on"
    if ratio is not None and ratio > _OFF_PACE:
        return "runs on"
    if ratio is not None and ratio < 1 / _OFF_PACE:
        return "ends early"
    return None
