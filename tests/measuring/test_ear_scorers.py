"""The scorers of speech themselves, on clips that are spoiled in known ways: each hears what it is there to hear."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

from benchmarks import ear
from omni.speech_report import SpeechFigure
from qwen_omni_onnx.sound.audio import read_audio
from validate.ear import scorers
from validate.ear.judge import MISSED
from validate.ear.score import Listening, Scorers

pytestmark = pytest.mark.ear
MODELS = ROOT / "build/ear"
Found = dict[str, dict[str, SpeechFigure]]


@pytest.fixture(scope="module")
def opened() -> Scorers:
    found = ear.open_scorers(MODELS).opened
    assert found is not None
    return found


@pytest.fixture(scope="module")
def found(opened: Scorers) -> Found:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        return {
            way: {figure.name: figure for figure in figures}
            for way, figures in ear.measure(Listening({}, opened)).items()
        }


def in_order(found: Found, name: str, *ways: str) -> list[float]:
    return [found[way][name].value for way in ways]


def missed(found: Found, way: str) -> set[str]:
    return {name for name, figure in found[way].items() if figure.verdict == MISSED}


def test_clean_clips_miss_no_limit(found: Found) -> None:
    assert missed(found, "clean") == set()
    assert found["clean"]["speaking"].value == 0
    assert found["clean"]["similarity"].value == pytest.approx(1)


def test_less_is_understood_the_louder_the_noise(found: Found) -> None:
    points = in_order(found, "speaking", "clean", "noise, 10 dB", "noise, 0 dB")

    assert points == sorted(points)
    assert points[-1] > 50
    assert found["silence"]["speaking"].value > 50


def test_less_is_understood_the_more_is_cut_out(found: Found) -> None:
    points = in_order(found, "speaking", "clean", "a third cut out", "two thirds cut out")

    assert points == sorted(points)
    assert "speaking" in missed(found, "two thirds cut out")


def test_noise_and_clipping_are_rated_worse(found: Found) -> None:
    for ways in (("clean", "noise, 20 dB", "noise, 10 dB", "noise, 0 dB"), ("clean", "clipped by 30 dB")):
        lost = in_order(found, "loss of MOS", *ways)
        assert lost == sorted(lost), ways
        assert "loss of MOS" in missed(found, ways[-1])


def test_another_voice_is_less_similar_than_any_spoiled_one(found: Found) -> None:
    assert "similarity" in missed(found, ear.ANOTHER)
    kept = in_order(found, "similarity", "clean", "noise, 20 dB", "a third cut out")
    assert min(kept) > found[ear.ANOTHER]["similarity"].value


def test_half_speed_and_missing_words_take_another_time(found: Found) -> None:
    assert found["half speed"]["duration"].value == pytest.approx(2, abs=0.2)
    assert "duration" in missed(found, "half speed")
    shorter = in_order(found, "duration", "clean", "a third cut out", "two thirds cut out")
    assert shorter == sorted(shorter)


def test_silence_and_what_is_left_of_a_sentence_are_faults(found: Found) -> None:
    assert found["silence"]["faults"].value == len(ear.CLIPS_USED)
    assert "faults" in missed(found, "silence")
    assert found["clean"]["faults"].value == 0


def test_the_speakers_network_is_pytorchs(opened: Scorers) -> None:
    import torch
    from safetensors.torch import load_file

    weights = load_file(MODELS / "speaker.safetensors")
    lstm = torch.nn.LSTM(40, 256, 3, batch_first=True)
    lstm.load_state_dict({name.removeprefix("lstm."): w for name, w in weights.items() if name.startswith("lstm.")})
    frames = torch.from_numpy(np.random.default_rng(0).random((2, 160, 40), np.float32))
    with torch.inference_mode():
        _, (hidden, _) = lstm(frames)
        expected = torch.relu(hidden[-1] @ weights["linear.weight"].T + weights["linear.bias"])
        expected = torch.nn.functional.normalize(expected, dim=1)

    embedded = opened.speaker._embed_parts(frames.numpy())  # type: ignore[attr-defined]

    assert np.abs(embedded - expected.numpy()).max() < 1e-4


def test_a_short_sound_has_a_speaker_too(opened: Scorers) -> None:
    sound = read_audio(ROOT / "data/speech/held_out/de-m8-fahrrad.flac")

    short, whole = opened.speaker.embed(sound[6_000:18_000]), opened.speaker.embed(sound)

    assert np.linalg.norm(short) == pytest.approx(1, abs=1e-3)
    assert short @ whole > 0.6


def test_models_that_are_none_are_told(message: Callable[..., str], tmp_path: Path) -> None:
    assert "python -m profiles.siblings.ear makes one" in message(scorers.load, "transcriber", "faster-whisper")
    assert "no model.bin in it" in message(scorers.load, "transcriber", "faster-whisper", tmp_path)
    assert "not the network of ge2e" in message(scorers.load, "speaker", "ge2e", tmp_path / "none.safetensors")
    assert "brings its own model" in message(scorers.load, "rater", "dnsmos", tmp_path)
    for name in ("model.bin", "config.json", "tokenizer.json", "vocabulary.txt"):
        (tmp_path / name).write_bytes(b"{}")
    assert "faster-whisper cannot use it" in message(scorers.load, "transcriber", "faster-whisper", tmp_path)
