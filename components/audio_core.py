"""The audio core: frontend, encoder, projection and token2wav composed into one graph from audio to waveform."""

from __future__ import annotations

from components import component
from omni.checkpoint import TensorSpec
from omni.component import COMPOSED_OF, Component, Config
from qwen_omni_onnx.common.contract import GraphContract, Port

GRAPH = "agi_audio_core"
COMPONENTS = COMPOSED_OF["audio_core"]


def _tensors(config: Config) -> dict[str, TensorSpec]:
    return {}


def _contracts(config: Config) -> dict[str, GraphContract]:
    frontend, encoder, _, token2wav = (component(name).interface(config) for name in COMPONENTS)

    def codes(samples: int) -> int:
        return encoder.derived["tokens"](frontend.derived["frames"](samples))

    ports = {port.name: port for port in token2wav.inputs}
    contract = GraphContract(
        inputs=(
            Port("audio", "FLOAT", (1, "samples")),
            Port("cond", "FLOAT", (1, *ports["cond"].shape[1:])),
            Port("ref_mel", "FLOAT", (1, *ports["ref_mel"].shape[1:])),
            Port("noise", "FLOAT", (1, "mel_frames", *ports["noise"].shape[2:])),
        ),
        outputs=(Port("waveform", "FLOAT", (1, "spoken_samples")), Port("codes", "INT64", (1, "codes"))),
        ir_version=10,
        length="samples",
        least=next(samples for samples in range(1, 100_000) if codes(samples)),
        derived={
            "codes": codes,
            "mel_frames": lambda samples: token2wav.derived["frames"](codes(samples)),
            "spoken_samples": lambda samples: token2wav.derived["samples"](codes(samples)),
        },
        free=token2wav.free,
    )
    return {GRAPH: contract}


COMPONENT = Component(
    name="audio_core",
    summary=(
        "Sound to sound in one graph: `audio`, 16 kHz mono, is turned into log-mel features, the encoder's embeddings, "
        "the projection's best codes (`codes`, one for each embedding) and, in a voice and from `noise`, by all "
        "evaluations of token2wav's ODE and its vocoder into a 24 kHz `waveform`. Any length; one clip at a time."
    ),
    caveat=(
        "This is a shortcut: nothing thinks and no Talker speaks, so its codes are not a Talker's and what it says is "
        "not speech. There is one code for each embedding, 25 a second, and token2wav speaks 50 a second: the sound "
        "that comes out is half as long as the one that goes in. It serves for latency work, and as a single file to "
        "carry the path from sound to sound where a loop in Python is not wanted."
    ),
    tensors=_tensors,
    contracts=_contracts,
    composed_of=COMPONENTS,
    companions=("preprocessor_config.json",),
    runtime="qwen_omni_onnx.audio_core",
    example="""from pathlib import Path
import numpy as np
from qwen_omni_onnx.audio_core import open_audio_core
from qwen_omni_onnx.voices import read_voices

core = open_audio_core(Path("."))  # the INT8 graph, each file checked; quantized=False for float32
voice = read_voices(Path("speakers.safetensors"))["Chelsie"]
# A second at 16 kHz; qwen_omni_onnx.sound.audio.read_audio reads files.
audio = 0.1 * np.random.default_rng(0).standard_normal(16_000)
waveform = core.speak(audio, 16_000, voice, seed=0)  # [12000] float32, 24 kHz""",
    constructed=True,
    voices=True,
)
