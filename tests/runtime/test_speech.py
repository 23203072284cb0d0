"""The run-time: sound to embeddings from published folders, without what built them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import BLOCK, EMBEDDING, MELS, ROOT

from qwen_omni_onnx.common import golden
from qwen_omni_onnx.common.metrics import compare
from qwen_omni_onnx.common.session import run
from qwen_omni_onnx.listen import _BLOCKS_PER_RUN, Listener
from qwen_omni_onnx.sound.audio import INPUT_SAMPLE_RATE


def _folder(component: str) -> Path:
    (folder,) = Path("models/published", component).iterdir()
    return folder


@pytest.fixture
def listener(gated_chain: Path) -> Listener:
    return Listener(_folder("frontend"), _folder("encoder"), quantized=False)


def _sound(samples: int) -> np.ndarray:
    seconds = np.arange(samples) / INPUT_SAMPLE_RATE
    noise = np.random.default_rng(samples).standard_normal(samples)
    return (0.3 * np.sin(2 * np.pi * 440 * seconds) + 0.05 * noise).astype(np.float32)


def _features(frames: int) -> np.ndarray:
    return np.random.default_rng(frames).standard_normal((MELS, frames), np.float32)


def test_sound_becomes_features_and_embeddings(listener: Listener) -> None:
    features = listener.features(_sound(16_001), INPUT_SAMPLE_RATE)
    embeddings = listener.embed(features)

    assert features.shape == (MELS, 101)
    assert embeddings.shape == (25, EMBEDDING)
    assert np.isfinite(embeddings).all()


def test_the_published_graphs_give_what_pytorch_gave(listener: Listener) -> None:
    hear, embed = (lambda audio: listener.features(audio, INPUT_SAMPLE_RATE)), listener.embed
    checked = 0
    for component, given, expected, hear_or_embed in (
        ("frontend", "audio", "input_features", hear),
        ("encoder", "input_features", "audio_features", embed),
    ):
        for _, ports in golden.read(_folder(component) / "golden" / golden.FILE):
            if len(ports[given]) == 1:
                assert compare(ports[expected][0], hear_or_embed(ports[given][0]), 0).sqnr_db > 90
                checked += 1
    assert checked >= 4


@pytest.mark.parametrize("frames", [1, 2, 3, BLOCK - 1, BLOCK, BLOCK + 1, 5 * BLOCK + 7, 45 * BLOCK + 3])
@pytest.mark.parametrize("piece", [1, 5, BLOCK, 3 * BLOCK + 1])
def test_a_stream_gives_what_the_whole_gives(listener: Listener, frames: int, piece: int) -> None:
    features = _features(frames)
    pieces = (features[:, start : start + piece] for start in range(0, frames, piece))

    streamed = list(listener.stream(pieces))

    np.testing.assert_allclose(np.concatenate(streamed), listener.embed(features), atol=1e-5)


@pytest.mark.parametrize("blocks", [_BLOCKS_PER_RUN, 2 * _BLOCKS_PER_RUN])
@pytest.mark.parametrize("more", [-1, 0, 1, 2, 3, 4])
def test_a_long_clip_gives_in_groups_of_blocks_what_one_run_gives(listener: Listener, blocks: int, more: int) -> None:
    features = _features(blocks * BLOCK + more)
    fed = {"input_features": features[None], "feature_lens": np.array([features.shape[1]])}

    found = listener.embed(features)

    expected = run(listener._encoder, fed)["audio_features"][0]
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_stream_answers_as_soon_as_a_block_is_whole(listener: Listener) -> None:
    taken = []

    def pieces() -> Iterator[np.ndarray]:
        for number in range(4):
            taken.append(number)
            yield _features(BLOCK // 2)

    first = next(listener.stream(pieces()))

    assert taken == [0, 1]
    assert first.shape == (BLOCK // 4, EMBEDDING)


@pytest.mark.parametrize(
    ("audio", "rate", "said"),
    [
        (np.zeros(16_000, np.float32), 44_100, "44100 Hz"),
        (np.zeros((2, 16_000), np.float32), 16_000, "shape [2, 16000]"),
        (np.zeros(16_000, np.int16), 16_000, "int16"),
        (np.zeros(0, np.float32), 16_000, "empty"),
        (np.zeros(159, np.float32), 16_000, "159 samples"),
        (np.array([0.0] * 500 + [np.nan]), 16_000, "sample 500 is nan"),
    ],
)
def test_what_is_no_clip_is_refused(
    listener: Listener, message: Callable[..., str], audio: np.ndarray, rate: int, said: str
) -> None:
    assert said in message(listener.features, audio, rate)


def test_the_folders_must_be_the_published_ones_and_whole(gated_chain: Path, message: Callable[..., str]) -> None:
    frontend, encoder = _folder("frontend"), _folder("encoder")

    assert "not a published frontend" in message(Listener, encoder, frontend)
    assert "no artifact here" in message(Listener, Path("nowhere"), encoder)
    data = encoder / "onnx" / "audio_encoder_int8.onnx.data"
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    assert "SHA-256" in message(Listener, frontend, encoder)


def test_the_command_reads_any_sound_and_writes_embeddings(gated_chain: Path) -> None:
    import soundfile

    stereo = np.stack([_sound(44_100), -0.5 * _sound(44_100)], 1)
    soundfile.write("stereo.wav", stereo, 44_100)
    Path("broken.flac").write_bytes(b"fLaC, or not")
    run = [sys.executable, "-m", "qwen_omni_onnx", "listen", str(_folder("frontend")), str(_folder("encoder"))]

    done = subprocess.run([*run, "stereo.wav", "out.npy"], capture_output=True, text=True, check=False)
    failed = subprocess.run([*run, "broken.flac", "other.npy"], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert np.load("out.npy").shape == (25, EMBEDDING)
    assert done.stdout == "out.npy: 25 embeddings of 1.00 s\n"
    assert failed.returncode == 1
    assert failed.stderr.startswith("error: broken.flac: cannot be read as sound")
    assert failed.stderr.count("\n") == 1
    assert not Path("other.npy").exists()


def test_the_run_time_needs_nothing_that_builds_the_artifacts() -> None:
    """Only NumPy, ONNX Runtime, soundfile and soxr: whatever else is imported fails, as if it were not installed."""
    built_with = "torch transformers onnx onnx_ir onnxscript pydantic typer rich ruamel huggingface_hub dvc psutil"
    code = (
        f"import sys\nfor name in {built_with.split()!r}: sys.modules[name] = None\n"
        "import qwen_omni_onnx.listen, soundfile, soxr; print('imported')"
    )

    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.stdout == "imported\n", done.stderr
