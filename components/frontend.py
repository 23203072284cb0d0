"""The log-mel front end: computes the audio encoder's features from a waveform. It has no weights."""

from __future__ import annotations

from omni.checkpoint import TensorSpec
from omni.component import Component, Config, sizes
from qwen_omni_onnx.common.contract import GraphContract, Port
from qwen_omni_onnx.common.errors import UserError

GRAPH = "log_mel"
_EXTRACTOR = "WhisperFeatureExtractor"


def _tensors(config: Config) -> dict[str, TensorSpec]:
    return {}


def _contracts(config: Config) -> dict[str, GraphContract]:
    extractor = config.get("preprocessor_config", {}).get("feature_extractor_type")
    if extractor != _EXTRACTOR:
        raise UserError(f"preprocessor_config.json: feature_extractor_type is {extractor!r}, not {_EXTRACTOR}")
    keys = ("feature_size", "hop_length")
    mels, hop = sizes(config, "preprocessor_config", keys, "the checkpoint has no audio front end")
    contract = GraphContract(
        inputs=(Port("audio", "FLOAT", ("batch", "samples")), Port("audio_lens", "INT64", ("batch",))),
        outputs=(
            Port("input_features", "FLOAT", ("batch", mels, "frames")),
            Port("feature_lens", "INT64", ("batch",)),
        ),
        ir_version=10,
        length="samples",
        derived={"frames": lambda samples: -(-samples // hop)},
    )
    return {GRAPH: contract}


COMPONENT = Component(
    name="frontend",
    summary=(
        "The log-mel front end of the audio encoder: `audio`, 16 kHz mono in -1 to 1, to `input_features`, 100 frames "
        "of mel bins a second, as transformers' `Qwen2_5OmniProcessor` computes them."
    ),
    caveat=(
        "Each clip is normalized by its own loudest bin, so features of a piece are not a piece of the features: "
        "give whole clips."
    ),
    tensors=_tensors,
    contracts=_contracts,
    companions=("preprocessor_config.json",),
)
