"""The report on speech that was judged by ear, as typed records: ``reports/speech.json``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from pydantic import TypeAdapter, ValidationError

from omni.reports import REPORTS
from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.common.errors import UserError

__all__ = ["SpeechFigure", "SpeechPair", "SpeechReport", "SpeechScore"]


@dataclass(frozen=True)
class SpeechScore:
    """Scores of one reply, judged by ear.

    Attributes:
        text: What the Thinker wrote.
        transcript: What was understood of the speech.
        seconds: Duration without silence at the ends; 0 if there is nothing to be heard.
        speaking_errors: Words, or characters, of the text that the transcript has wrong.
        speaking_length: Words, or characters, of the text.
        understood: What the Thinker wrote down of the question's sound; None if it has none.
        hearing_errors: Words, or characters, of the sound that it has wrong.
        hearing_length: Words, or characters, of the sound.
        mos: Predicted mean opinion score of the speech, 1 to 5.
        runs_on: Whether speech was cut off where no more was allowed, though its text had ended.
    """

    text: str
    transcript: str
    seconds: float
    speaking_errors: int
    speaking_length: int
    understood: str | None
    hearing_errors: int | None
    hearing_length: int | None
    mos: float | None
    runs_on: bool


@dataclass(frozen=True)
class SpeechPair:
    """Scores of two chains' replies to the same question.

    Attributes:
        question: Name of the question.
        language: Its language.
        reference: Scores of the chain that is compared with.
        candidate: Scores of the chain that is judged.
        similarity: Cosine between the two voices; None if one is silent.
        duration_ratio: Seconds for each letter of the text, the candidate's over the reference's.
        fault: ``empty``, ``runs on`` or ``ends early``, if the candidate's reply does and the reference's does not.
    """

    question: str
    language: str
    reference: SpeechScore
    candidate: SpeechScore
    similarity: float | None
    duration_ratio: float | None
    fault: str | None


@dataclass(frozen=True)
class SpeechFigure:
    """A figure over all replies.

    Attributes:
        name: Name of the figure.
        value: Its value.
        low: Lower end of its 95 % interval; None for a count.
        high: Upper end.
        replies: Number of pairs of replies that it is computed from.
        limit: What it may be; None: it is not judged.
        verdict: What the gate says of it; None if it is not judged.
    """

    name: str
    value: float
    low: float | None
    high: float | None
    replies: int
    limit: float | None
    verdict: str | None


@dataclass(frozen=True, kw_only=True)
class SpeechReport:
    """Two chains judged by ear.

    Attributes:
        chains: What each chain is: ``reference`` and ``candidate``.
        folders: Folder of each chain's replies.
        scorers: Name of each scorer, and of its model, by kind.
        synthetic: Whether a chain's weights are synthetic: nothing is judged then.
        figures: The figures.
        pairs: Scores by question.
    """

    chains: dict[str, str]
    folders: dict[str, str]
    scorers: dict[str, str]
    synthetic: bool
    figures: list[SpeechFigure]
    pairs: list[SpeechPair]

    @staticmethod
    def path() -> Path:
        """Return the path of the report."""
        return REPORTS / "speech.json"

    @classmethod
    def read(cls) -> Self:
        """Return the report.

        Raises:
            UserError: It is missing, or this version does not write such a report.
        """
        try:
            return TypeAdapter(cls).validate_python(artifact.read_json(cls.path()))
        except ValidationError:
            raise UserError(f"{cls.path()}: is not what this version writes; run python -m validate speech") from None

    def write(self) -> None:
        """Write the report to :meth:`path`; a file there is replaced atomically."""
        artifact.write_json(self.path(), asdict(self))
