"""``python -m validate speech`` on tiny published models, by scorers that are made up; and what it says of replies."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from omni.questions import Question
from omni.replies import RecordedChain, RecordedReply, ReplyLimits, in_turn, record
from omni.speech_report import SpeechPair, SpeechReport
from qwen_omni_onnx.token2wav.runtime import OUTPUT_SAMPLE_RATE
from validate.__main__ import app
from validate.ear import scorers
from validate.ear.compare import REPLIES
from validate.ear.judge import NOT_JUDGED
from validate.ear.score import Listening, Scorers, listen, pair
from validate.report.ear import judged_by_ear

LIMITED = ("--max-tokens", "4", "--max-seconds", "0.6")


class Transcriber:
    rate = 16_000

    def transcribe(self, samples: np.ndarray, language: str) -> str:
        assert samples.dtype == np.float32
        return "one two"


class Rater:
    rate = 8_000

    def rate_speech(self, samples: np.ndarray) -> float:
        return float(1 + len(samples) / self.rate)


class Speaker:
    rate = 16_000

    def embed(self, samples: np.ndarray) -> np.ndarray:
        loudest = np.abs(np.fft.rfft(samples)).argmax() / len(samples) * self.rate
        return np.array([1.0, 0.0]) if loudest < 1000 else np.array([0.0, 1.0])


OPENED = Scorers(Transcriber(), Rater(), Speaker())


def speech(*arguments: str) -> None:
    """Run ``python -m validate speech`` with these arguments; a mistake is raised."""
    app(["speech", *arguments], standalone_mode=False)


@pytest.fixture(autouse=True)
def made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(kind: str, name: str, model: Path | None = None) -> object:
        assert name in scorers.names(kind)  # type: ignore[arg-type]
        return {"transcriber": OPENED.transcriber, "rater": OPENED.rater, "speaker": OPENED.speaker}[kind]

    monkeypatch.setattr(scorers, "load", load)


def reply(folder: Path, text: str, *, seconds: float, runs_on: bool = False, hertz: int = 440) -> None:
    """Record a reply to the question ``a``: a tone."""
    tone = 0.3 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * OUTPUT_SAMPLE_RATE)) / OUTPUT_SAMPLE_RATE)
    found = RecordedReply("", text, seconds, runs_on, "one")
    record(
        folder, RecordedChain("a tone", False, ReplyLimits(0, 1, 1)), {"a": ""}, in_turn("", lambda _: (found, tone))
    )


def scored(folder: Path, first: dict[str, Any], second: dict[str, Any]) -> SpeechPair:
    """Score two replies, of two seconds and two words unless it is said otherwise."""
    for name, given in (("first", first), ("second", second)):
        reply(folder / name, **{"text": "One, two.", "seconds": 2.0, **given})
    question = Question(name="a", language="en", sound="a.wav", said="one two three")
    heard = (listen([question], folder / name, Listening({}, OPENED)) for name in ("first", "second"))
    return pair([question], *heard)[0]


def test_equal_replies_score_equally(tmp_path: Path) -> None:
    both = scored(tmp_path, {}, {})

    assert both.reference == both.candidate
    assert (both.similarity, both.duration_ratio, both.fault) == (1.0, 1.0, None)
    found = both.candidate
    assert (found.speaking_errors, found.speaking_length) == (0, 2)
    assert (found.hearing_errors, found.hearing_length) == (2, 3)
    assert found.mos == pytest.approx(3, abs=0.02)


@pytest.mark.parametrize(
    ("first", "second", "fault"),
    [
        ({}, {"seconds": 0.0}, "empty"),
        ({"seconds": 0.0}, {"seconds": 0.0}, None),
        ({"seconds": 0.0}, {}, None),
        ({}, {"runs_on": True}, "runs on"),
        ({"runs_on": True}, {"runs_on": True}, None),
        ({}, {"seconds": 7.0}, "runs on"),
        ({}, {"seconds": 0.5}, "ends early"),
        ({}, {"text": "One two, one two, one two, one two.", "seconds": 7.5}, None),
    ],
    ids=["empty", "both empty", "the reference is", "cut off", "both cut off", "slow", "swallowed", "a longer text"],
)
def test_a_reply_that_is_broken_as_a_whole_is_named(
    first: dict[str, Any], second: dict[str, Any], fault: str | None, tmp_path: Path
) -> None:
    assert scored(tmp_path, first, second).fault == fault


def test_another_voice_and_another_text_are_heard(tmp_path: Path) -> None:
    both = scored(tmp_path, {}, {"hertz": 3000, "text": "One, three."})

    assert both.similarity == 0
    assert both.candidate.speaking_errors == 1


def test_replies_that_nobody_recorded_are_told(tmp_path: Path, message: Callable[..., str]) -> None:
    scored(tmp_path, {}, {})
    question = Question(name="a", language="en", text="?")
    (tmp_path / "second/a.flac").write_bytes(b"no sound")

    assert "not a recorded reply; delete" in message(listen, [question], tmp_path / "second", Listening({}, OPENED))


def test_two_chains_are_judged_by_ear(gated_chain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    questions = [{"name": "text", "language": "en", "text": "What is this?"}]
    clip = sorted(Path("data/speech/held_out").glob("*.flac"))[0].relative_to("data")
    questions.append({"name": "sound", "language": "zh", "sound": str(clip), "said": "什么"})
    Path("data/asked.json").write_text(json.dumps(questions))

    speech("--questions", "data/asked.json", *LIMITED)

    assert NOT_JUDGED.split(":")[0] in capsys.readouterr().out
    report = SpeechReport.read()
    assert report.synthetic
    assert report.chains == {
        "reference": "models/published, float32 encoder, thinker, talker, token2wav",
        "candidate": "models/published, as published",
    }
    assert {figure.verdict for figure in report.figures if figure.limit is not None} == {NOT_JUDGED}
    assert [found.question for found in report.pairs] == ["text", "sound"]
    assert report.pairs[0].candidate.understood is None
    assert report.pairs[1].candidate.understood is not None
    assert report.pairs[1].candidate.hearing_length == 2

    shown = judged_by_ear()
    assert shown is not None
    assert {chain for reply in shown.worst for chain in reply.sounds} == {"reference", "candidate"}

    recorded = {path: path.stat().st_mtime_ns for path in REPLIES.rglob("*.flac")}
    (REPLIES / "candidate/text.flac").write_bytes(b"cut off")
    speech("--questions", "data/asked.json", *LIMITED)
    again = [path for path in recorded if path.stat().st_mtime_ns != recorded[path]]
    assert again == [REPLIES / "candidate/text.flac"], "what is whole is not replied again"


def test_published_models_are_compared_with_what_pytorch_replied(
    gated_chain: Path, capsys: pytest.CaptureFixture[str], message: Callable[..., str]
) -> None:
    from reference.whole import main

    clip = sorted(Path("data/speech/held_out").glob("*.flac"))[0].relative_to("data")
    questions = [
        {"name": "text", "language": "en", "text": "What is this?"},
        {"name": "sound", "language": "en", "sound": str(clip), "said": "this"},
    ]
    Path("data/asked.json").write_text(json.dumps(questions))
    asked = ("--questions", "data/asked.json")
    assert "chain.json" in message(speech, *asked, *LIMITED, "--replies", "replies")

    main(Path("replies"), Path("data/asked.json"), "float32", seed=0, max_tokens=4, max_seconds=0.6)
    assert "replies: 2 replies" in capsys.readouterr().out

    speech(*asked, *LIMITED, "--replies", "replies")
    report = SpeechReport.read()
    assert report.chains["reference"] == "PyTorch, float32"
    assert report.folders["reference"] == "replies"
    assert report.synthetic
    assert report.pairs[1].reference.understood is not None
    assert report.pairs[0].reference.text
    assert "recorded with other seeds or lengths" in message(
        speech, *asked, *LIMITED, "--replies", "replies", "--seed=1"
    )


def test_what_cannot_be_compared_is_told_before_anything_is_replied(
    gated_chain: Path, message: Callable[..., str]
) -> None:
    assert "data/questions.json" in message(speech)
    Path("data/asked.json").write_text(json.dumps([{"name": "a", "language": "en", "text": "?"}]))
    asked = ("--questions", "data/asked.json", *LIMITED)
    assert "empty" in message(speech, *asked, "--models", "empty")
    assert "empty" in message(speech, *asked, "--against", "empty")
    for path in Path("models/published").glob("*/*/onnx/*.onnx"):
        if path.with_stem(f"{path.stem}_int8").is_file() or path.with_stem(f"{path.stem}_int4").is_file():
            path.unlink()
    assert "no float32 graphs to compare with; give --against" in message(speech, *asked)

    assert not REPLIES.exists()
