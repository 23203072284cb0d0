"""Lets two chains reply to the same questions, and judges one by the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from omni.limits import SpeechLimits
from omni.questions import Question
from omni.replies import ReplyLimits, read_chain
from omni.reports import REPORTS
from omni.speech_report import SpeechReport
from qwen_omni_onnx.common.errors import UserError
from validate.ear import scorers
from validate.ear.chain import Chain
from validate.ear.judge import judge
from validate.ear.score import Scorers, listen, pair

__all__ = ["REPLIES", "Chosen", "compare", "open_scorers"]

REPLIES = REPORTS / "speech"
Chosen = Mapping[scorers.Kind, tuple[str, Path | None]]  # name and model of the scorer of each kind


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


def compare(
    reference: Chain | Path,
    candidate: Chain,
    questions: Sequence[Question],
    chosen: Chosen,
    limits: SpeechLimits,
    reply_limits: ReplyLimits,
) -> SpeechReport:
    """Let two chains reply, score the replies, and judge the candidate; what was replied before is not replied again.

    Args:
        reference: Chain that is compared with, or the folder of its replies.
        candidate: Chain that is judged.
        questions: The questions.
        chosen: The scorers.
        limits: What the candidate may lose.
        reply_limits: How replies begin and end.

    Raises:
        UserError: A scorer or a model cannot be opened, a reply cannot be written, or one is missing in the folder, or
            was recorded with other limits.
    """
    opened = open_scorers(chosen)
    folders = {"reference": REPLIES / "reference", "candidate": REPLIES / "candidate"}
    if isinstance(reference, Path):
        folders["reference"] = reference
        if read_chain(reference).limits != reply_limits:
            raise UserError(f"{reference}: recorded with other seeds or lengths; give the same to both")
    else:
        reference.record(questions, folders["reference"], reply_limits)
    candidate.record(questions, folders["candidate"], reply_limits)
    chains = {name: read_chain(folder) for name, folder in folders.items()}
    synthetic = any(chain.synthetic for chain in chains.values())
    heard = {name: listen(questions, folder, opened) for name, folder in folders.items()}
    pairs = pair(questions, heard["reference"], heard["candidate"])
    return SpeechReport(
        chains={name: chain.described for name, chain in chains.items()},
        folders={name: str(folder) for name, folder in folders.items()},
        scorers={kind: name if model is None else f"{name} ({model.name})" for kind, (name, model) in chosen.items()},
        synthetic=synthetic,
        figures=judge(pairs, limits, synthetic=synthetic),
        pairs=pairs,
    )
