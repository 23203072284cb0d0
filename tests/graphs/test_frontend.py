"""The log-mel front end: transformers' processor, as a graph."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from conftest import MELS, ROOT, tiny_config, tiny_preprocessor

from components import component
from export.__main__ import export
from omni.inputs import feed
from pull import synthetic
from qwen_omni_onnx.common.configuration import read_config
from qwen_omni_onnx.common.session import open_session, run
from qwen_omni_onnx.sound.audio import clips, read_audio
from reference.frontend import ORIGINAL

assert ORIGINAL.run is not None
run_original = ORIGINAL.run
PART = component("frontend")
LARGEST = 1e-4
SPEECH = ROOT / "data/speech"
Spoken = dict[str, np.ndarray]


@pytest.fixture(scope="session")
def real_width(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The graph with the 7B's 128 mel bins; its reference pads to 21 seconds instead of five minutes."""
    folder = tmp_path_factory.mktemp("frontend")
    configs = folder / "configs"
    configs.mkdir()
    for name, table in read_config(synthetic.CONFIG).items():
        if name == "preprocessor_config":
            (configs / f"{name}.json").write_text(json.dumps({**table, "chunk_length": 21}))
    (configs / "config.json").write_bytes((synthetic.CONFIG / "config.json").read_bytes())
    synthetic.write(PART, 0, "full", folder / "source", configs)
    export("frontend", source=folder / "source", out=folder / "onnx")
    return folder / "onnx"


@pytest.fixture(scope="session")
def speech() -> Spoken:
    return {path.stem: read_audio(path) for part in ("calibration", "held_out") for path in clips(SPEECH / part)}


def _session(folder: Path) -> ort.InferenceSession:
    return open_session(folder / "log_mel.onnx", threads=1)


def _batch(rows: list[np.ndarray]) -> dict[str, np.ndarray]:
    """A batch whose rows are followed by anything but silence: nothing there may be heard."""
    longest = max(map(len, rows))
    random = np.random.default_rng(0)
    audio = random.uniform(-1, 1, (len(rows), longest)).astype(np.float32)
    for target, row in zip(audio, rows, strict=True):
        target[: len(row)] = row
    return {"audio": audio, "audio_lens": np.array([len(row) for row in rows])}


def _expected(folder: Path, fed: dict[str, np.ndarray]) -> tuple[np.ndarray, ...]:
    config = read_config(folder)
    return run_original(ORIGINAL.make(config), fed)


def _compared(folder: Path, rows: list[np.ndarray], largest: float = LARGEST) -> np.ndarray:
    """Run graph and processor; return the graph's features, having compared everything."""
    fed = _batch(rows)
    features, lengths = run(_session(folder), fed).values()
    expected, expected_lengths = _expected(folder, fed)
    assert features.shape == expected.shape
    assert np.isfinite(features).all()
    assert lengths.tolist() == expected_lengths.tolist() == [-(-len(row) // 160) for row in rows]
    assert np.abs(features - expected).max() <= largest
    return features


def test_every_clip_of_the_repository_agrees_in_one_ragged_batch_and_alone(real_width: Path, speech: Spoken) -> None:
    together = _compared(real_width, list(speech.values()))

    assert together.shape[:2] == (len(speech), 128)
    for row, audio in zip(together, speech.values(), strict=True):
        alone = _compared(real_width, [audio])[0]
        frames = -(-len(audio) // 160)
        assert alone.shape == (128, frames)
        np.testing.assert_allclose(row[:, :frames], alone, atol=1e-5)


@pytest.mark.parametrize("samples", [160, 161, 319, 320, 399, 400, 401, 1600, 1601, 4799, 15_999, 16_001, 31_799])
def test_any_length_agrees(samples: int, chain_once: Path) -> None:
    """Up to where the reference, which pads to two seconds here, reflects at the end of its padding."""
    audio = np.random.default_rng(samples).standard_normal(samples).astype(np.float32) * 0.1

    features = _compared(chain_once / "models/onnx/frontend", [audio])

    assert features.shape == (1, MELS, -(-samples // 160))


@pytest.mark.parametrize(
    "audio",
    [
        np.zeros(8000, np.float32),
        np.sign(np.sin(np.arange(8000) * 0.3)).astype(np.float32),
        np.full(8000, 1e-30, np.float32),
        np.eye(1, 8000, 4000, dtype=np.float32)[0],
    ],
    ids=["silence", "square wave at full scale", "next to nothing", "click"],
)
def test_unusual_sound_agrees_and_stays_finite(audio: np.ndarray, chain_once: Path, real_width: Path) -> None:
    for folder in (chain_once / "models/onnx/frontend", real_width):
        _compared(folder, [audio])
        _compared(folder, [audio[:321], audio])


def test_a_constant_agrees_up_to_the_rounding_noise_of_both(chain_once: Path) -> None:
    """Its other bins lie 80 dB below the first and hold nothing but rounding errors, in the reference too."""
    features = _compared(chain_once / "models/onnx/frontend", [np.full(8000, -1, np.float32)], largest=0.1)

    assert features.max() - features.min() == pytest.approx(2, abs=1e-5)  # eight decades


def test_silence_is_the_floor(chain_once: Path) -> None:
    features = _compared(chain_once / "models/onnx/frontend", [np.zeros(1600, np.float32)])

    np.testing.assert_allclose(features, (-10 + 4) / 4)


def test_rows_of_a_ragged_batch_are_the_clips_alone(chain_once: Path) -> None:
    random = np.random.default_rng(1)
    rows = [random.standard_normal(n).astype(np.float32) * 0.2 for n in (160, 12_345, 401, 20_000)]
    session = _session(chain_once / "models/onnx/frontend")

    together = run(session, _batch(rows))["input_features"]

    for row, audio in zip(together, rows, strict=True):
        alone = run(session, _batch([audio]))["input_features"][0]
        np.testing.assert_allclose(row[:, : alone.shape[1]], alone, atol=1e-6)


def test_what_lies_beyond_a_clip_is_not_heard(chain_once: Path) -> None:
    session = _session(chain_once / "models/onnx/frontend")
    fed = feed(PART.graph(read_config(chain_once / "models/onnx/frontend"))[1], [np.ones(9000, np.float32)], [9000, 77])
    quiet = run(session, fed)["input_features"]

    fed["audio"][1, 77:] = 1e6

    np.testing.assert_array_equal(run(session, fed)["input_features"], quiet)


def test_the_graph_has_one_entry_of_samples_for_each_frame() -> None:
    config = {**tiny_config(), "preprocessor_config": tiny_preprocessor()}
    _, contract = PART.graph(config)

    assert [contract.sizes(1, n)["frames"] for n in (1, 159, 160, 161, 16_000)] == [1, 1, 1, 2, 100]
    assert PART.tensors(config) == {}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"dither": 1e-5}, "preprocessor_config.json: dither is random"),
        ({"feature_extractor_type": "SeamlessM4TFeatureExtractor"}, "is 'SeamlessM4TFeatureExtractor', not Whisper"),
        ({"feature_extractor_type": None}, "feature_extractor_type is None, not Whisper"),
        ({"feature_size": None}, "preprocessor_config widths must be positive integers"),
        ({"hop_length": 0}, "preprocessor_config widths must be positive integers"),
    ],
)
def test_settings_that_the_graph_cannot_have_are_refused(
    change: dict, expected: str, tmp_path: Path, message: Callable[..., str], chain_once: Path
) -> None:
    """On the way from the checkpoint to the graph, before PyTorch is asked for anything."""
    source = tmp_path / "source"
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/config.json").write_text(json.dumps(tiny_config()))
    (tmp_path / "configs/preprocessor_config.json").write_text(json.dumps(tiny_preprocessor() | change))
    synthetic.write(PART, 0, "full", source, tmp_path / "configs")

    assert expected in message(export, "frontend", source=source, out=tmp_path / "onnx")
    assert not (tmp_path / "onnx").exists()


def test_a_checkpoint_without_a_preprocessor_is_told(message: Callable[..., str]) -> None:
    assert "feature_extractor_type is None" in message(PART.contracts, tiny_config())
