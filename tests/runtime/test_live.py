"""A question that is heard while it is asked: the same as of the whole sound, but for what is louder still to come."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from cli import speak
from replies import waveform_of

import qwen_omni_onnx
from qwen_omni_onnx.bundle import CHAIN, Bundle
from qwen_omni_onnx.common.metrics import sqnr_db
from qwen_omni_onnx.listen import Listener
from qwen_omni_onnx.reply import Reply, ReplyOptions
from qwen_omni_onnx.sampling import Sampling
from qwen_omni_onnx.sound.audio import HOP, INPUT_SAMPLE_RATE, embeddings
from qwen_omni_onnx.sound.live import LiveSound
from qwen_omni_onnx.sound.raw import raw_samples

Message = Callable[..., str]
OPTIONS = ReplyOptions(
    voice="Ethan", thinker=Sampling(greedy=True), talker=Sampling(greedy=True), max_new_tokens=6, max_new_codes=30
)


@pytest.fixture
def bundle(gated_chain: Path) -> Bundle:
    return qwen_omni_onnx.load("models/published", float32=CHAIN, threads=1)


def _sound(listener: Listener, blocks: float, seed: int = 0, loudest: int = 0) -> np.ndarray:
    """A sound of so many blocks, one of which is the loudest."""
    samples = int(blocks * listener.block * HOP)
    sound = np.random.default_rng(seed).standard_normal(samples).astype(np.float32) / 100
    here = loudest * listener.block * HOP
    sound[here : here + listener.block * HOP] *= 20
    return sound


def _pieces(sound: np.ndarray, seed: int = 0) -> Iterator[np.ndarray]:
    random = np.random.default_rng(seed)
    while len(sound):
        size = int(random.integers(0, 4000))
        yield sound[:size]
        sound = sound[size:]


def _live(listener: Listener, pieces: Iterator[np.ndarray], rate: int = INPUT_SAMPLE_RATE) -> np.ndarray:
    live = LiveSound(listener, rate)
    found = [some for piece in pieces for some in live.feed(piece)]
    return np.concatenate([*found, *live.end()])


def _whole(listener: Listener, sound: np.ndarray) -> np.ndarray:
    return listener.embed(listener.features(sound, INPUT_SAMPLE_RATE))


# Sound


@pytest.mark.parametrize("blocks", [0.2, 0.99, 1, 1.005, 1.011, 2, 3.37])
@pytest.mark.parametrize("seed", [0, 1])
def test_embeddings_are_those_of_the_whole_sound(blocks: float, seed: int, bundle: Bundle) -> None:
    listener = bundle.listener
    sound = _sound(listener, blocks)

    whole, live = _whole(listener, sound), _live(listener, _pieces(sound, seed))

    assert whole.shape == live.shape == (embeddings(len(sound)), whole.shape[1])
    assert sqnr_db(whole, live) > 100


def test_a_block_is_embedded_as_soon_as_it_is_whole(bundle: Bundle) -> None:
    listener = bundle.listener
    sound, live = _sound(listener, 3), LiveSound(listener)
    block, sees = listener.block * HOP, 2 * HOP

    counts = [len(list(live.feed(sound[start : start + HOP]))) for start in range(0, len(sound), HOP)]

    assert [(number + 1) * HOP for number, count in enumerate(counts) if count] == [block + sees, 2 * block + sees]
    assert sum(len(some) for some in live.end()) == embeddings(block)


def test_a_block_before_the_loudest_one_is_measured_by_what_was_heard(bundle: Bundle) -> None:
    listener = bundle.listener
    sound = _sound(listener, 4, loudest=2)
    sound[: listener.block * HOP] /= 100  # 8 decades of power below the loudest, and more
    sound[2 * listener.block * HOP :] *= 10
    count = embeddings(listener.block * HOP)

    live, whole = _live(listener, _pieces(sound)), _whole(listener, sound)
    heard = listener.features(sound[: (listener.block + 2) * HOP], INPUT_SAMPLE_RATE)[:, : listener.block]

    assert sqnr_db(listener.embed(heard), live[:count]) > 100
    assert sqnr_db(whole[:count], live[:count]) < 60
    assert sqnr_db(whole[2 * count :], live[2 * count :]) > 100


def test_another_rate_is_resampled_as_it_comes(bundle: Bundle) -> None:
    listener = bundle.listener
    sound = _sound(listener, 2.5)
    recorded = soxr.resample(sound, INPUT_SAMPLE_RATE, 44_100, quality="VHQ")

    whole = _whole(listener, soxr.resample(recorded, 44_100, INPUT_SAMPLE_RATE, quality="VHQ"))

    assert sqnr_db(whole, _live(listener, _pieces(recorded), 44_100)[: len(whole)]) > 40


@pytest.mark.parametrize(
    ("samples", "said"),
    [
        (np.zeros((2, 8), np.float32), "sound: shape [2, 8]; [samples] is needed"),
        (np.zeros(8, np.int16), "sound: int16 samples; floating-point ones are needed"),
        (np.array([0, np.nan], np.float32), "sound: sample 1 is nan"),
    ],
)
def test_what_is_no_sound_is_refused(samples: np.ndarray, said: str, bundle: Bundle, message: Message) -> None:
    live = LiveSound(bundle.listener)

    assert message(list, live.feed(samples)).startswith(said)
    assert message(list, live.end()) == "sound: 0 samples at 16000 Hz; at least 321 are needed"
    assert message(LiveSound, bundle.listener, 10).startswith("sound: a sample rate of 10")


# Questions


@pytest.mark.parametrize("text", [None, "Say it again."])
def test_the_reply_is_that_to_the_whole_question(text: str | None, bundle: Bundle) -> None:
    sound = _sound(bundle.listener, 2.3)

    question = bundle.live_question(options=OPTIONS)
    for piece in _pieces(sound):
        question.feed(piece)
    live, whole = question.reply(text), bundle.reply(text, audio=(sound, INPUT_SAMPLE_RATE), options=OPTIONS)
    spoken, expected = waveform_of(list(live)), waveform_of(list(whole))

    assert live.tokens == whole.tokens
    assert live.codes == whole.codes
    assert sqnr_db(expected, spoken) > 60
    assert set(question.clock.seconds) == {"thinker", "listening"}


def test_all_but_the_last_block_is_read_before_the_question_ends(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    reader = "qwen_omni_onnx.thinker.runtime.PromptReader.read"
    monkeypatch.setattr(reader, lambda self, part: read.append(len(part.ids)))
    question = bundle.live_question(options=OPTIONS)
    question.feed(_sound(bundle.listener, 2.3))

    block = embeddings(bundle.listener.block * HOP)
    assert read[1:] == [block, block]
    assert read[0] > 3


def test_a_question_is_refused_where_it_cannot_be_replied_to(bundle: Bundle, message: Message) -> None:
    sound = _sound(bundle.listener, 1.2)

    assert "Nobody" in message(bundle.live_question, voice="Nobody")
    assert "nothing" in message(bundle.live_question, variant="nothing")
    nothing = bundle.live_question(options=OPTIONS)
    assert message(list, nothing.reply()) == "sound: 0 samples at 16000 Hz; at least 321 are needed"
    over = "this question is over; begin another one"
    assert message(nothing.feed, sound) == message(nothing.reply) == over
    question = bundle.live_question(options=OPTIONS)
    bundle.talker.decoder.positions = 200
    assert "there are 200 positions, for the reply too" in message(question.feed, np.tile(sound, 4))


# Pipes


def _piped(content: bytes, step: int) -> int:
    """Return the end of a pipe that this comes through in steps."""
    end, begin = os.pipe()

    def write() -> None:
        with os.fdopen(begin, "wb", buffering=0) as pipe:
            for start in range(0, len(content), step):
                pipe.write(content[start : start + step])

    threading.Thread(target=write).start()
    return end


@pytest.mark.parametrize("step", [1, 3, 1000])
def test_raw_samples_come_whole_through_a_pipe(step: int) -> None:
    samples = np.random.default_rng(0).integers(-(1 << 15), 1 << 15, 999).astype("<i2")
    end = _piped(samples.tobytes() + b"\x01", step)

    came = np.concatenate(list(raw_samples(Path(f"/dev/fd/{end}"))))
    os.close(end)

    np.testing.assert_array_equal(came, samples / np.float32(1 << 15))


def test_a_sound_file_is_no_raw_sound(tmp_path: Path, message: Message) -> None:
    soundfile.write(tmp_path / "in.wav", np.zeros(999), INPUT_SAMPLE_RATE)

    assert "begins as a sound file does" in message(list, raw_samples(tmp_path / "in.wav"))
    assert message(list, raw_samples(tmp_path)) == f"{tmp_path}: cannot be opened (Is a directory)"
    assert "No such file" in message(list, raw_samples(tmp_path / "nothing"))


def test_speak_replies_to_what_is_piped_in(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    sound = (_sound(bundle.listener, 1.5) * (1 << 15)).clip(-(1 << 15), (1 << 15) - 1).astype("<i2")
    short = ["--max-tokens", "4", "--max-seconds", "0.4", "--greedy"]
    end = _piped(sound.tobytes(), 4096)

    speak(["--live", "16000", f"/dev/fd/{end}", "live.wav", *short])
    os.close(end)
    live = capsys.readouterr().out
    soundfile.write("in.wav", sound, INPUT_SAMPLE_RATE)
    speak(["in.wav", "whole.wav", *short])

    assert f"/dev/fd/{end}: {len(sound) / INPUT_SAMPLE_RATE:.2f} s, heard while it was asked: " in live
    assert "live.wav: 0.05 s of Chelsie, the first after " in live
    assert soundfile.info("live.wav").frames == soundfile.info("whole.wav").frames


def test_a_reply_that_is_given_up_computes_no_more(bundle: Bundle) -> None:
    before = set(threading.enumerate())
    reply = iter(Reply(bundle, bundle.thinker.prompt(np.arange(3, 9)), OPTIONS))
    next(reply)
    reply.close()  # type: ignore[attr-defined]

    left = [thread for thread in set(threading.enumerate()) - before if thread.name.startswith("token2wav")]
    for thread in left:
        thread.join(60)
        assert not thread.is_alive()
