"""Lets two chains reply to the same questions, and judges one by the other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from omni.limits import SpeechLimits
from omni.pieces.work import Pool
from omni.questions import Question
from omni.replies import ReplyLimits, read_chain
from omni.reports import REPORTS
from omni.speech_report import SpeechReport
from qwen_omni_onnx.common.errors import UserError
from validate.ear.chain import Chain
from validate.ear.judge import judge
from validate.ear.score import Chosen, Listening, listen, open_scorers, pair

__all__ = ["REPLIES", "compare"]

REPLIES = REPORTS / "speech"


def compare(
    reference: Chain | Path,
    candidate: Chain,
    questions: Sequence[Question],
    chosen: Chosen,
    limits: SpeechLimits,
    reply_limits: ReplyLimits,
    pool: Pool,
) -> SpeechReport:
    """Let two chains reply, score the replies, and judge the candidate; what was replied before is not replied again.

    Args:
        reference: Chain that is compared with, or the folder of its replies.
        candidate: Chain that is judged.
        questions: The questions.
        chosen: The scorers.
        limits: What the candidate may lose.
        reply_limits: How replies begin and end.
        pool: Processes that share the work.

    Raises:
        UserError: A scorer or a model cannot be opened, a reply cannot be written, or one is missing in the folder, or
            was recorded with other limits.
    """
    listening = Listening(chosen, open_scorers(chosen))  # before hours of replies
    folders = {"reference": REPLIES / "reference", "candidate": REPLIES / "candidate"}
    if isinstance(reference, Path):
        folders["reference"] = reference
        if read_chain(reference).limits != reply_limits:
            raise UserError(f"{reference}: recorded with other seeds or lengths; give the same to both")
    else:
        reference.record(questions, folders["reference"], reply_limits, pool)
    candidate.record(questions, folders["candidate"], reply_limits, pool)
    chains = {name: read_chain(folder) for name, folder in folders.items()}
    synthetic = any(chain.synthetic for chain in chains.values())
    heard = {name: listen(questions, folder, listening, pool) for name, folder in folders.items()}
    pairs = pair(questions, heard["reference"], heard["candidate"])
    return SpeechReport(
        chains={name: chain.described for name, chain in chains.items()},
        folders={name: str(folder) for name, folder in folders.items()},
        scorers={kind: name if model is None else f"{name} ({model.name})" for kind, (name, model) in chosen.items()},
        synthetic=synthetic,
        figures=judge(pairs, limits, synthetic=synthetic),
        pairs=pairs,
    )
