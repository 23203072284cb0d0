"""The command ``python -m validate speech``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from omni.params import load
from omni.pieces.work import Workers, open_pool, require_workers
from omni.questions import QUESTIONS, read_questions
from omni.replies import ReplyLimits, codes_within
from omni.speech_report import SpeechReport
from qwen_omni_onnx.common.errors import UserError
from validate import tables
from validate.ear import scorers
from validate.ear.chain import Chain
from validate.ear.compare import compare
from validate.ear.judge import MISSED, worst

__all__ = ["run"]

_WORST = 3  # replies that are named


def run(
    models: Annotated[Path, typer.Option(help="Folder with the published components that are judged.")] = Path(
        "models/published"
    ),
    against: Annotated[
        Path | None,
        typer.Option(help="Folder with others to compare with; without, the float32 graphs of --models."),
    ] = None,
    replies: Annotated[
        Path | None,
        typer.Option(help="Folder of replies to compare with that python -m reference.whole recorded."),
    ] = None,
    questions: Annotated[Path, typer.Option(metavar="FILE", help="JSON file with the questions.")] = QUESTIONS,
    transcriber: Annotated[str, typer.Option(help="Scorer that writes down what is said.")] = "faster-whisper",
    transcriber_model: Annotated[Path | None, typer.Option(help="Its model.")] = None,
    rater: Annotated[str, typer.Option(help="Scorer that predicts a mean opinion score.")] = "dnsmos",
    rater_model: Annotated[Path | None, typer.Option(help="Its model.")] = None,
    speaker: Annotated[str, typer.Option(help="Scorer that tells speakers apart.")] = "ge2e",
    speaker_model: Annotated[Path | None, typer.Option(help="Its model.")] = None,
    seed: Annotated[int, typer.Option(help="Seed for sampling and for the initial noise.", min=0, max=2**32 - 1)] = 0,
    max_tokens: Annotated[int, typer.Option(help="Tokens after which a text is cut off.", min=1, max=4096)] = 128,
    max_seconds: Annotated[float, typer.Option(help="Seconds after which speech is cut off.")] = 30.0,
    workers: Workers = "1",
) -> None:
    """Judge the speech of two chains by ear: what is understood of it, its voice, quality and pace."""
    require_workers(workers)
    reply_limits = ReplyLimits(seed, max_tokens, codes_within(max_seconds))
    if against and replies:
        raise UserError("--against, --replies: give one of them")
    limits, asked = load().speech, read_questions(questions)
    chosen: dict[scorers.Kind, tuple[str, Path | None]] = {
        "transcriber": (transcriber, transcriber_model),
        "rater": (rater, rater_model),
        "speaker": (speaker, speaker_model),
    }
    for kind, (name, _) in chosen.items():
        scorers.require(kind, name)
    reference = replies or (Chain(against) if against else Chain.in_float32(models))
    with open_pool(workers) as pool:
        report = compare(reference, Chain(models), asked, chosen, limits, reply_limits, pool)
    report.write()
    tables.speech(report, worst(report.pairs, _WORST))
    _require_within_limits(report)


def _require_within_limits(report: SpeechReport) -> None:
    missed = [
        f"{figure.name}: {figure.value:.3g}, limit {figure.limit:.3g}"
        for figure in report.figures
        if figure.verdict == MISSED
    ]
    if missed:
        raise UserError("; ".join(missed))
