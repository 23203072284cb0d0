"""The vocoder: transformers' own, as a graph that ONNX Runtime's blocked convolutions take."""

from __future__ import annotations

import dataclasses
import json
import platform
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from conftest import tiny_config

from components import component
from components.token2wav import BIGVGAN, VOCODER, bigvgan_config, samples_per_frame
from export.trace import trace
from export.weights import bind
from omni.checkpoint import Checkpoint
from omni.streamed import save_graph
from pull import synthetic
from qwen_omni_onnx.common.metrics import sqnr_db
from qwen_omni_onnx.common.session import open_session, run

PART = component("token2wav")
# Of all that token2wav is, the vocoder's tensors only.
VOCODER_ONLY = dataclasses.replace(
    PART,
    tensors=lambda config: {name: spec for name, spec in PART.tensors(config).items() if name.startswith(BIGVGAN)},
)
LEAST_DB = 100
MELS = tiny_config()["token2wav_config"]["bigvgan_config"]["mel_dim"]


def vocoder_config() -> dict[str, Any]:
    """The tiny configuration, with two of the 7B's six stages and two of its three residual blocks in each."""
    config = tiny_config()
    config["token2wav_config"]["bigvgan_config"] |= {
        "upsample_initial_channel": 64, "upsample_rates": [5, 2], "upsample_kernel_sizes": [11, 4],
        "resblock_kernel_sizes": [3, 7], "resblock_dilation_sizes": [[1, 3, 5], [1, 3, 5]],
    }  # fmt: skip
    return config


def write_source(folder: Path) -> Checkpoint:
    configs = folder / "configs"
    configs.mkdir(parents=True)
    (configs / "config.json").write_text(json.dumps(vocoder_config()))
    synthetic.write(VOCODER_ONLY, 0, "full", folder / "source", configs)
    return Checkpoint(folder / "source")


def export_vocoder(checkpoint: Checkpoint, folder: Path) -> Path:
    """Do as ``python -m export token2wav`` does, for this graph alone."""
    from export.bigvgan import TRACED

    model = trace(partial(TRACED[VOCODER].build, checkpoint.config, None), PART.contracts(checkpoint.config)[VOCODER])
    bind(model, checkpoint, TRACED[VOCODER], None)
    save_graph(model, folder, VOCODER)
    return folder / f"{VOCODER}.onnx"


def transformers_vocoder(checkpoint: Checkpoint) -> Any:
    """Transformers' own vocoder with the checkpoint's weights."""
    import torch
    from transformers.models.qwen2_5_omni.configuration_qwen2_5_omni import Qwen2_5OmniBigVGANConfig
    from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import Qwen2_5OmniToken2WavBigVGANModel

    vocoder = Qwen2_5OmniToken2WavBigVGANModel(Qwen2_5OmniBigVGANConfig(**bigvgan_config(checkpoint.config)))
    weights = {
        name: torch.from_numpy(checkpoint.read(f"{BIGVGAN}.{name}").astype(np.float32))
        for name, _ in vocoder.named_parameters()
    }
    vocoder.load_state_dict(weights, assign=True)
    return vocoder.eval()


def mels(frames: int, batch: int = 1, bins: int = MELS) -> np.ndarray:
    """Natural logarithms of a mel's amplitudes [batch, bins, frames], as of speech: -5 in the mean, slow in time."""
    random = np.random.default_rng(frames)
    steps = random.standard_normal((batch, bins, frames + 4))
    total = sum((steps[..., shift : shift + frames] for shift in range(5)), np.zeros(()))
    return (-5 + 2 * total / 5**0.5).astype(np.float32)


def expected_waveform(original: Any, mel: np.ndarray) -> np.ndarray:
    """Row by row: transformers' vocoder drops the axis of a batch of one."""
    import torch

    with torch.inference_mode():
        return np.stack([original(torch.from_numpy(row[None])).numpy() for row in mel])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return write_source(tmp_path_factory.mktemp("vocoder"))


@pytest.fixture(scope="module")
def graph(checkpoint: Checkpoint) -> Path:
    return export_vocoder(checkpoint, checkpoint.folder)


@pytest.fixture(scope="module")
def session(graph: Path) -> ort.InferenceSession:
    return open_session(graph, threads=1)


@pytest.fixture(scope="module")
def original(checkpoint: Checkpoint) -> Any:
    return transformers_vocoder(checkpoint)


@pytest.mark.parametrize("frames", [1, 2, 5, 50, 101])
def test_a_mel_of_any_length_sounds_as_with_transformers(
    frames: int, session: ort.InferenceSession, original: Any, checkpoint: Checkpoint
) -> None:
    mel = mels(frames)

    waveform = run(session, {"mel": mel})["waveform"]

    assert waveform.shape == (1, samples_per_frame(checkpoint.config) * frames)
    assert sqnr_db(expected_waveform(original, mel), waveform) >= LEAST_DB


def test_each_row_of_a_batch_sounds_as_alone(session: ort.InferenceSession, original: Any) -> None:
    mel = mels(21, batch=2)

    waveform = run(session, {"mel": mel})["waveform"]

    for expected, row in zip(expected_waveform(original, mel), waveform, strict=True):
        assert sqnr_db(expected, row) >= LEAST_DB


@pytest.mark.parametrize("loudness", [-100.0, -13.0, -6.0, 3.0, 100.0])
def test_a_mel_beyond_its_range_is_clamped_where_transformers_clamps(
    loudness: float, session: ort.InferenceSession, original: Any
) -> None:
    """-100 lies below every clamp; the exponential of 100, which transformers takes, is infinite in float32."""
    mel = mels(9) + np.float32(loudness + 5)

    waveform = run(session, {"mel": mel})["waveform"]

    assert sqnr_db(expected_waveform(original, mel), waveform) >= LEAST_DB


def test_the_waveform_is_clamped(checkpoint: Checkpoint, graph: Path) -> None:
    loud = ir.load(graph)
    weight = loud.graph.initializers["conv_post.weight"]
    weight.const_value = ir.tensor(100 * weight.const_value.numpy(), name=weight.name)
    mel = mels(9)

    quiet = run(open_session(graph), {"mel": mel})["waveform"]
    waveform = run(open_session(ir.to_proto(loud).SerializeToString(), data_folder=graph.parent), {"mel": mel})[
        "waveform"
    ]

    assert np.abs(waveform).max() == 1
    np.testing.assert_allclose(waveform, np.clip(100 * quiet, -1, 1), atol=1e-3)


@pytest.mark.parametrize("samples", [1, 2, 3, 40])
@pytest.mark.parametrize("gain", [1.0, 0.25])
def test_an_activation_agrees_with_transformers(samples: int, gain: float, checkpoint: Checkpoint) -> None:
    import torch
    from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import (
        Qwen2_5OmniAntiAliasedActivation1d,
        Qwen2_5OmniSnakeBeta,
    )

    from export.bigvgan import Activation, activation_tensors

    name = f"{BIGVGAN}.activation_post"
    original = Qwen2_5OmniAntiAliasedActivation1d(Qwen2_5OmniSnakeBeta(16))
    rewritten = Activation(16)
    x = torch.randn(3, 16, samples, generator=torch.Generator().manual_seed(samples))

    with torch.inference_mode():
        for parameter in ("alpha", "beta"):
            getattr(original.act, parameter).copy_(torch.from_numpy(checkpoint.read(f"{name}.act.{parameter}")))
        for parameter, compute in activation_tensors(checkpoint, name, gain).items():
            getattr(rewritten, parameter).copy_(torch.from_numpy(compute()))
        expected, actual = original(gain * x), rewritten(x[:, :, None])[:, :, 0]

    assert sqnr_db(expected.numpy(), actual.numpy()) >= LEAST_DB


def test_synthetic_weights_make_a_sound_to_which_every_residual_block_adds(checkpoint: Checkpoint) -> None:
    import torch

    vocoder, mel = transformers_vocoder(checkpoint), mels(40)
    waveform = expected_waveform(vocoder, mel)

    assert 0.01 < waveform.std() < 0.3
    assert abs(waveform.mean()) < waveform.std()
    assert np.abs(waveform).max() < 1
    for block in vocoder.resblocks:
        kept = block.convs2[1].weight.data
        block.convs2[1].weight.data = torch.zeros_like(kept)
        assert sqnr_db(waveform, expected_waveform(vocoder, mel)) < 25
        block.convs2[1].weight.data = kept


def test_a_cosine_is_the_only_function_of_single_values(graph: Path) -> None:
    """Clamps and sums aside: transformers takes exponentials, logarithms, sines and powers."""
    operators = {node.op_type for node in ir.load(graph).graph}

    assert "Cos" in operators
    assert not operators & {"Sin", "Pow", "Exp", "Log", "Expand", "Shape"}


def test_convolutions_are_named_after_the_checkpoint(graph: Path, checkpoint: Checkpoint) -> None:
    nodes = [node.name for node in ir.load(graph).graph if node.op_type in ("Conv", "ConvTranspose")]

    dense = {name for name in nodes if "activation" not in name}
    stored = {
        name.rpartition(".")[0].removeprefix(f"{BIGVGAN}.") for name in checkpoint.entries if name.endswith(".weight")
    }
    assert dense == {f"{name[:-2]}/ConvTranspose" if name.startswith("ups.") else f"{name}/Conv" for name in stored}
    assert len(nodes) == len(set(nodes))


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="blocks of channels are for other processors")
def test_every_convolution_runs_on_blocks_of_channels(graph: Path, tmp_path: Path) -> None:
    open_session(graph, optimized_to=tmp_path / "optimized.onnx")

    nodes = list(ir.load(tmp_path / "optimized.onnx").graph)
    convolutions = [node for node in nodes if node.op_type == "Conv"]
    assert len(convolutions) == sum(node.op_type == "Conv" for node in ir.load(graph).graph)
    assert {node.domain for node in convolutions} == {"com.microsoft.nchwc"}


@pytest.mark.slow
def test_at_full_width_it_sounds_as_with_transformers(tmp_path: Path) -> None:
    synthetic.write(VOCODER_ONLY, 0, "full", tmp_path / "source")
    checkpoint = Checkpoint(tmp_path / "source")
    original, mel = transformers_vocoder(checkpoint), mels(23, batch=2, bins=80)

    waveform = run(open_session(export_vocoder(checkpoint, tmp_path)), {"mel": mel})["waveform"]

    expected = expected_waveform(original, mel)
    assert waveform.shape == expected.shape == (2, 240 * 23)
    assert 0.01 < expected.std() < 0.3
    assert sqnr_db(expected, waveform) >= LEAST_DB
