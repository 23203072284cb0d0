"""Speech judged by ear, but for the scorers themselves: sound, text, questions, figures, limits."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT

from omni.limits import SpeechLimits
from omni.params import load
from omni.questions import read_questions
from omni.speech_report import SpeechFigure, SpeechPair, SpeechScore
from validate.ear import judge, scorers
from validate.ear.judge import MISSED, NOT_JUDGED, OK, UNDECIDED
from validate.ear.text import Errors, errors, normalize
from validate.ear.utterance import LOUDNESS_DB, prepare

RATE = 24_000


def tone(seconds: float, level: float = 0.1) -> np.ndarray:
    """Return a tone [samples]."""
    return np.asarray(level * np.sin(2 * np.pi * 440 * np.arange(round(seconds * RATE)) / RATE))


# Sound


def test_silence_at_the_ends_is_cut_off_but_for_a_tenth_of_a_second() -> None:
    silence = np.zeros(RATE)

    utterance = prepare(np.concatenate([silence, tone(1), silence[: RATE // 2], tone(1), silence]), RATE)

    assert utterance.seconds == pytest.approx(1 + 0.5 + 1 + 0.2, abs=0.02), "silence inside is part of the speech"


@pytest.mark.parametrize("level", [0.002, 0.1, 0.9])
def test_every_recording_is_as_loud(level: float) -> None:
    samples = prepare(tone(1, level), RATE).at(RATE)

    assert 20 * np.log10(np.sqrt(np.mean(samples**2))) == pytest.approx(LOUDNESS_DB, abs=0.1)
    assert samples.dtype == np.float32


def test_what_would_leave_full_scale_meets_it() -> None:
    click = tone(1, level=0.02)
    click[RATE // 2] = 0.9

    samples = prepare(click, RATE)

    assert np.abs(samples.at(RATE)).max() == pytest.approx(1)
    assert np.abs(samples.at(16_000)).max() <= 1


def test_channels_are_averaged() -> None:
    both = np.stack([tone(1), np.zeros(RATE)], axis=1)

    assert np.array_equal(prepare(both, RATE).at(RATE), prepare(tone(1), RATE).at(RATE))


@pytest.mark.parametrize(
    "samples",
    [np.empty(0), np.zeros(RATE), np.full(RATE, 1e-5), np.full(RATE, np.nan), np.full((RATE, 2), np.inf)],
    ids=["empty", "zeros", "too quiet", "NaN", "infinity"],
)
def test_what_nobody_hears_is_silent(samples: np.ndarray) -> None:
    utterance = prepare(samples, RATE)

    assert utterance.silent
    assert utterance.seconds == 0


def test_a_rate_is_changed_without_changing_the_duration() -> None:
    utterance = prepare(tone(1), RATE)

    assert len(utterance.at(16_000)) == pytest.approx(16_000 * utterance.seconds, abs=1)
    assert utterance.at(16_000) is utterance.at(16_000)


# Text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  It's  NOON — isn\u2019t it?! ", "it's noon isn't it"),
        ("'Quoted' rock 'n' roll", "quoted rock n roll"),
        ("ＡＢＣ，１２", "abc 12"),
        ("Straße", "strasse"),
        ("外面下雨了，别忘了带伞。", "外面下雨了 别忘了带伞"),
        ("3 + 4 = 7 €", "3 4 7"),
        ("...", ""),
    ],
)
def test_text_is_normalized(text: str, expected: str) -> None:
    assert normalize(text) == expected


@pytest.mark.parametrize(
    ("said", "understood", "language", "expected"),
    [
        ("The boat came home.", "the boat came home", "en", Errors(0, 4)),
        ("The boat came home.", "a boat came", "en", Errors(2, 4)),
        ("The boat", "the old boat came home", "en", Errors(3, 2)),
        ("The boat came home.", "", "en-gb", Errors(4, 4)),
        ("", "uh oh", "en", Errors(2, 0)),
        ("", "", "en", Errors(0, 0)),
        ("带伞。", "带 山", "zh", Errors(1, 2)),
        ("とても いい", "とてもいい", "ja", Errors(0, 5)),
        ("", "带", "zh", Errors(1, 0)),
    ],
)
def test_errors_are_counted(said: str, understood: str, language: str, expected: Errors) -> None:
    assert errors(said, understood, language) == expected


# Questions


def test_the_projects_questions_can_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)

    questions = read_questions()

    assert {question.language for question in questions} == {"en", "zh"}, "the languages that the model speaks"
    assert {Path(question.sound).name for question in questions if question.sound} == {
        path.name for path in (ROOT / "data/speech/held_out").glob("*.flac")
    }


@pytest.mark.parametrize(
    ("questions", "expected"),
    [
        ([], "no question in it"),
        ({"name": "a"}, "Input should be a valid list"),
        ([{"name": "a", "language": "en"}], "give a text, a sound, or both"),
        ([{"name": "a", "language": "en", "sound": "a.wav"}], "a sound comes with the words that are said in it"),
        ([{"name": "a", "language": "en", "text": "?", "said": "yes"}], "only a sound does"),
        ([{"name": "../a", "language": "en", "text": "?"}], "a name is made of letters"),
        ([{"name": "a", "language": "en", "text": "?", "voice": "x"}], "0.voice"),
        ([{"name": "a", "language": "en", "text": "?"}] * 2, "two questions are named a"),
        ([{"name": "a", "language": "en", "sound": "a.wav", "said": "yes"}], "a.wav: missing; questions.json names it"),
    ],
)
def test_questions_that_cannot_be_asked_are_told_in_a_line(
    questions: Any, expected: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, message: Callable[..., str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("questions.json").write_text(json.dumps(questions))

    told = message(read_questions, Path("questions.json"))

    assert expected in told
    assert "\n" not in told


# Scorers


def test_a_scorer_of_ones_own_is_plugged_in(monkeypatch: pytest.MonkeyPatch) -> None:
    def found(group: str, name: str | None = None) -> list[EntryPoint]:
        ours = EntryPoint("two", "measuring.test_ear:Two", "qwen_omni_onnx.scorers.rater")
        return [ours] if group == ours.group and name in (None, ours.name) else []

    monkeypatch.setattr(scorers, "entry_points", found)
    monkeypatch.setattr(EntryPoint, "load", lambda self: Two)

    assert scorers.names("rater") == ["dnsmos", "two"]
    assert scorers.load("rater", "two", Path("m")).rate_speech(tone(1)) == 2


class Two:
    rate = 8_000

    def __init__(self, model: Path | None) -> None:
        assert model == Path("m")

    def rate_speech(self, samples: np.ndarray) -> float:
        return 2


def test_scorers_that_cannot_be_had_are_told(message: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert message(scorers.load, "rater", "x").startswith("rater 'x': there is none; there are: dnsmos")

    def missing(_: str) -> None:
        raise ModuleNotFoundError("No module named 'speechmos'")

    monkeypatch.setattr(scorers.importlib, "import_module", missing)

    assert message(scorers.load, "rater", "dnsmos") == (
        "rater dnsmos: No module named 'speechmos'; install the extra ear: pip install -e '.[build,ear]'"
    )


# Figures and limits


LIMITS = SpeechLimits(speaking_points=1, hearing_points=1, mos=0.2, similarity=0.8, duration=1.2, faults=0)


def a_score(wrong: int = 0, mos: float | None = 3.0, heard: int | None = 0) -> SpeechScore:
    length = None if heard is None else 10
    return SpeechScore("text", "text", 1.0, wrong, 10, None, heard, length, mos, runs_on=False)


def pairs(count: int = 20, language: str = "en", **changes: Any) -> list[SpeechPair]:
    usual = {"similarity": 0.9, "duration_ratio": 1.0, "fault": None, "reference": a_score(), "candidate": a_score()}
    return [SpeechPair(question=str(n), language=language, **{**usual, **changes}) for n in range(count)]


def judged(found: list[SpeechPair], *, synthetic: bool = False) -> dict[str, SpeechFigure]:
    return {figure.name: figure for figure in judge.judge(found, LIMITS, synthetic=synthetic)}


def verdicts(found: list[SpeechPair], *, synthetic: bool = False) -> dict[str, str]:
    figures = judged(found, synthetic=synthetic)
    return {name: figure.verdict for name, figure in figures.items() if figure.verdict is not None}


GREEN = dict.fromkeys(("speaking", "hearing", "loss of MOS", "similarity", "duration", "faults"), OK)


def test_the_same_replies_are_within_every_limit() -> None:
    assert verdicts(pairs()) == GREEN


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("speaking", {"candidate": a_score(wrong=1)}),
        ("hearing", {"candidate": a_score(heard=1)}),
        ("loss of MOS", {"candidate": a_score(mos=2.5)}),
        ("similarity", {"similarity": 0.7}),
        ("duration", {"duration_ratio": 1.5}),
        ("duration", {"duration_ratio": 0.5}),
        ("faults", {"fault": "empty"}),
    ],
)
def test_each_limit_is_missed_by_what_it_is_about_and_no_other(name: str, changes: dict[str, Any]) -> None:
    assert verdicts(pairs(**changes)) == {**GREEN, name: MISSED}


def test_one_bad_reply_of_many_leaves_it_undecided() -> None:
    found = [*pairs(), *pairs(1, candidate=a_score(wrong=5))]

    figure = judged(found)["speaking"]

    assert figure.verdict == UNDECIDED
    assert figure.value == pytest.approx(100 * 5 / 210)
    assert figure.low == 0
    assert figure.high is not None
    assert figure.high > figure.value


def test_what_is_better_than_the_reference_is_within_the_limits() -> None:
    found = pairs(reference=a_score(wrong=5, mos=2.0, heard=5))

    assert verdicts(found) == GREEN
    assert judged(found)["speaking"].value == -50


def test_intervals_are_of_pairs() -> None:
    """Questions differ far more than chains do; who drew them apart would see nothing."""
    hard = pairs(10, reference=a_score(wrong=8), candidate=a_score(wrong=9))
    easy = pairs(10, reference=a_score(wrong=0), candidate=a_score(wrong=1))

    figure = judged([*hard, *easy])["speaking"]

    assert figure.low == pytest.approx(10)
    assert figure.high == pytest.approx(10)


def test_languages_are_told_apart_and_not_judged() -> None:
    figures = judged([*pairs(5), *pairs(5, "zh", candidate=a_score(wrong=5))])

    assert figures["speaking, en"].value == 0
    assert figures["speaking, zh"].value == 50
    assert figures["speaking, zh"].verdict is None


def test_what_no_reply_tells_of_is_left_out() -> None:
    silent = a_score(mos=None, heard=None)

    figures = judged(pairs(reference=silent, candidate=silent, similarity=None, duration_ratio=None))

    assert set(figures) == {"speaking", "speaking, en", "faults"}


def test_synthetic_weights_are_never_green() -> None:
    assert set(verdicts(pairs(fault="empty"), synthetic=True).values()) == {NOT_JUDGED}


def test_the_worst_are_those_with_a_fault_and_then_those_least_understood() -> None:
    found = pairs(3)
    found[1] = replace(found[1], fault="runs on")
    found[2] = replace(found[2], candidate=a_score(wrong=4))

    assert [pair.question for pair in judge.worst(found, 2)] == ["1", "2"]


def test_params_have_the_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)

    assert load().speech.speaking_points == 0.18, "what the AWQ form of the checkpoint lost"
