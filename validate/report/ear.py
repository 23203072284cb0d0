"""What the page shows of speech that was judged by ear: figures, and the replies that came out worst, to listen to."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path

from omni.replies import sound_path
from omni.speech_report import SpeechPair, SpeechReport
from validate.ear.judge import worst

__all__ = ["JudgedByEar", "WorstReply", "judged_by_ear"]

_SHOWN = 3  # replies, each of two chains: a few hundred kilobytes each


@dataclass(frozen=True)
class WorstReply:
    """A question whose reply got worse.

    Attributes:
        pair: Scores of both replies.
        sounds: Both waveforms as data URIs, by chain; one that is gone is left out.
    """

    pair: SpeechPair
    sounds: dict[str, str]


@dataclass(frozen=True)
class JudgedByEar:
    """The report, and the worst replies in it."""

    report: SpeechReport
    worst: list[WorstReply]


def judged_by_ear() -> JudgedByEar | None:
    """Return what ``python -m validate speech`` found; None if it was not run.

    Raises:
        UserError: The report is not what this version writes.
    """
    if not SpeechReport.path().is_file():
        return None
    report = SpeechReport.read()
    replies = [WorstReply(pair, _sounds(report, pair)) for pair in worst(report.pairs, _SHOWN)]
    return JudgedByEar(report, replies)


def _sounds(report: SpeechReport, pair: SpeechPair) -> dict[str, str]:
    places = {chain: sound_path(Path(folder), pair.question) for chain, folder in report.folders.items()}
    return {chain: _uri(place) for chain, place in places.items() if place.is_file()}


def _uri(place: Path) -> str:
    return f"data:audio/flac;base64,{base64.b64encode(place.read_bytes()).decode('ascii')}"
