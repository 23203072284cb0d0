"""The public face of the run-time: what it exports, what docs/api.md says of it, and ``Bundle.reply``."""

from __future__ import annotations

import contextlib
import io
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from conftest import ROOT
from fenced import blocks

import qwen_omni_onnx as omni
from qwen_omni_onnx.bundle import Bundle
from qwen_omni_onnx.reply import Event, Reply, build_prompt
from qwen_omni_onnx.sound.audio import read_audio
from qwen_omni_onnx.text.chat import conversation

PAGE = ROOT / "docs/api.md"
SHORT: dict[str, Any] = {
    "thinker": omni.Sampling(temperature=1.5), "max_new_tokens": 5, "max_new_codes": 12, "seed": 3, "voice": "Ethan",
}  # fmt: skip


@pytest.fixture
def bundle(gated_chain: Path) -> Bundle:
    return omni.load("models/published", threads=1)


def _clip(number: int) -> Path:
    return sorted(Path("data/speech").rglob("*.flac"))[number]


def _facts(events: list[Event]) -> list[Any]:
    return [event.waveform.tolist() if isinstance(event, omni.AudioChunk) else event for event in events]


# What is exported


def test_every_exported_name_is_there_and_is_described() -> None:
    described = set(re.findall(r"^\| ((?:`[\w.]+`(?:, )?)+) \|", PAGE.read_text(), re.M))
    names = {name for row in described for name in re.findall(r"`([\w.]+)`", row)}

    assert {name for name in names if "." not in name} == set(omni.__all__) - {"__version__"}
    assert "`__version__`" in PAGE.read_text()
    for name in omni.__all__:
        assert getattr(omni, name) is not None
    for name in names - set(omni.__all__):
        assert getattr(omni.Bundle, name.removeprefix("Bundle."))
    assert set(omni.__all__) <= set(dir(omni))


def test_nothing_is_exported_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = omni.nothing


def test_the_import_loads_nothing_until_it_is_used() -> None:
    code = "import sys, qwen_omni_onnx; print({'numpy', 'onnxruntime', 'typer', 'soundfile'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == "set()\n"


def test_the_examples_of_the_page_print_what_it_shows(gated_chain: Path) -> None:
    shutil.copytree(ROOT / "data/speech/held_out", "data/speech/held_out", dirs_exist_ok=True)
    found, space = blocks(PAGE), {"__name__": "example"}
    assert [language for language, _ in found] == ["python", "text"] * (len(found) // 2)
    for (_, code), (_, shown) in zip(found[::2], found[1::2], strict=True):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(code, space)
        assert printed.getvalue() == shown


# Bundle.reply


def test_a_reply_is_the_same_for_a_path_for_samples_and_for_a_prompt(bundle: Bundle) -> None:
    soundfile.write("question.wav", read_audio(_clip(0)), 16_000, subtype="FLOAT")
    sound = read_audio(Path("question.wav"))

    replies = [
        bundle.reply("Well?", audio=audio, **SHORT)
        for audio in ("question.wav", Path("question.wav"), (sound, 16_000), [(sound, 16_000)])
    ]
    messages = conversation("Well?", 1)
    prompt = build_prompt(bundle, messages, [bundle.listen("question.wav")])
    expected = _facts(list(Reply(bundle, prompt, omni.ReplyOptions(**SHORT))))

    assert [_facts(list(reply)) for reply in replies] == [expected] * 4
    assert {type(event) for event in bundle.reply("Well?", audio="question.wav", **SHORT)} == {
        omni.TextToken, omni.Code, omni.AudioChunk,
    }  # fmt: skip
    assert replies[0].text
    assert replies[0].voice.name == "Ethan"
    assert (
        replies[0].cut_off == "the text after 5 tokens, the most allowed; the speech after 12 codes, the most allowed"
    )


def test_samples_of_another_rate_are_resampled_as_a_file_is(bundle: Bundle) -> None:
    audio = 0.3 * np.sin(np.arange(44_100) / 20)
    soundfile.write("question.wav", audio, 44_100, subtype="DOUBLE")

    np.testing.assert_array_equal(bundle.listen((audio, 44_100)), bundle.listen("question.wav"))


def test_a_text_alone_and_a_sound_alone_are_replied_to(bundle: Bundle) -> None:
    for question in ({"text": "What is a fjord?"}, {"audio": _clip(0)}, {"audio": [_clip(0), _clip(1)]}):
        reply = bundle.reply(**question, **SHORT)
        assert any(isinstance(event, omni.AudioChunk) for event in reply)
        assert len(reply.tokens) == 5


def test_options_are_taken_whole_or_one_by_one(bundle: Bundle) -> None:
    whole = bundle.reply("Well?", options=omni.ReplyOptions(**SHORT))
    changed = bundle.reply("Well?", options=omni.ReplyOptions(**{**SHORT, "seed": 4}), seed=3)
    voice = bundle.reply("Well?", **{**SHORT, "voice": bundle.voice("Ethan")})

    assert _facts(list(whole)) == _facts(list(changed)) == _facts(list(voice))
    assert bundle.reply("Well?").voice.name == "Chelsie"
    with pytest.raises(TypeError, match="speed"):
        bundle.reply("Well?", speed=2)


def test_a_conversation_of_one_turn_is_a_question(bundle: Bundle) -> None:
    for messages in (conversation("Well?", 1), conversation("Well?", 1)[1:]):
        reply = bundle.reply(messages=messages, audio=_clip(0), **SHORT)
        assert _facts(list(reply)) == _facts(list(bundle.reply("Well?", audio=_clip(0), **SHORT)))
    brief = bundle.reply(messages=conversation("Well?", 0)[1:], system="Be brief.", **SHORT)
    assert _facts(list(brief)) == _facts(list(bundle.reply("Well?", system="Be brief.", **SHORT)))


def test_codes_are_spoken_as_in_the_reply_but_for_the_stream(bundle: Bundle) -> None:
    codes = np.array([1, 5, 9, 3])
    voice = bundle.voice("Ethan")

    expected = bundle.token2wav.speak(codes, voice.cond, voice.ref_mel, seed=2)

    for given in ("Ethan", voice):
        np.testing.assert_array_equal(bundle.vocode(codes, given, seed=2), expected)


@pytest.mark.parametrize(
    ("question", "said"),
    [
        ({}, "nothing to reply to: give a sound, a text, or both"),
        ({"audio": []}, "nothing to reply to: give a sound, a text, or both"),
        ({"audio": (np.zeros(320, np.float32), 16_000)}, "audio: 320 samples at 16000 Hz; at least 321 are needed"),
        (
            {"audio": [(np.ones(9000), 8_000), (np.zeros(9), 48_000)]},
            "audio 2: 3 samples at 16000 Hz; at least 160, one mel frame, are needed",
        ),
        ({"audio": np.zeros(16_000)}, "audio: samples without a rate; give (samples, rate)"),
        ({"audio": 7}, "audio: int; give a path, or (samples, rate) with samples in NumPy"),
        ({"audio": [None]}, "audio 1: NoneType; give a path, or (samples, rate) with samples in NumPy"),
        ({"audio": (np.zeros(999), 0)}, "audio: a sample rate of 0; give the Hz that it was recorded with"),
        ({"audio": (np.zeros(999), "high")}, "audio: a sample rate of 'high'; give the Hz that it was recorded with"),
        (
            {"audio": (np.zeros((999, 2)), 8_000)},
            "audio: shape [999, 2]; [samples] is needed: average the channels of one clip",
        ),
        (
            {"audio": (np.full(999, np.nan), 8_000)},
            "audio: sample 0 is nan; record or decode it again, or replace such samples",
        ),
        ({"audio": "nowhere.wav"}, "nowhere.wav: no such file"),
        ({"text": "a", "voice": "Nobody"}, "no voice 'Nobody'; there are: Chelsie, Ethan"),
        ({"text": "a", "variant": "worst"}, "no variant 'worst'; there are: reference, "),
        ({"text": "a", "seed": -1}, "seed: -1; give 0 or more"),
        ({"text": "a", "max_new_tokens": 0}, "max_new_tokens: 0; give 1 or more"),
        ({"text": "a", "max_new_codes": 0}, "max_new_codes: 0; give 1 or more"),
        ({"text": "a", "messages": conversation("b", 0)}, "text: does nothing beside messages; put it into the last"),
        ({"system": "a", "messages": conversation("b", 0)}, "system: messages begin with a system prompt of their own"),
        ({"messages": conversation(None, 1)}, "messages: places for 1 sounds; 0 are given"),
        ({"messages": []}, "messages: empty; give a message of the user"),
        ({"text": "a" * 9000}, "the prompt has 9,"),
    ],
    ids=str,
)
def test_what_cannot_be_replied_to_is_told_in_one_line_before_a_model_is_opened(
    question: dict[str, Any], said: str, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, message: Callable[..., str]
) -> None:
    monkeypatch.setattr("onnxruntime.InferenceSession", lambda *_, **__: pytest.fail("opened"))

    assert message(bundle.reply, **question).startswith(said)


def test_a_voice_of_ones_own_speaks_codes_and_no_replies(bundle: Bundle, message: Callable[..., str]) -> None:
    like = bundle.voice("Ethan")
    Path("mine").mkdir()
    for name in ("cond", "ref_mel"):
        np.save(f"mine/{name}.npy", getattr(like, name))

    said = "voice 'mine': the Talker was not trained on it; there are: Chelsie, Ethan"
    assert message(bundle.reply, "a", voice="mine") == said
    assert message(bundle.reply, "a", voice=bundle.voice("mine")) == said
    codes = np.arange(4)
    np.testing.assert_array_equal(bundle.vocode(codes, "mine"), bundle.vocode(codes, "Ethan"))
