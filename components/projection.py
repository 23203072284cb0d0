"""The thinker-to-talker projection followed by the codec head, without the Talker's layers between the two."""

from __future__ import annotations

import re

from omni.checkpoint import TensorSpec
from omni.component import WITHOUT_SPEECH, Component, Config, checkpoint_dtype, require_speech, sizes
from qwen_omni_onnx.common.contract import GraphContract, Port
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.common.identity import CHECKPOINT_NAME

GRAPHS = "*_audio"  # pattern of the file stems that stem_of returns
_FAMILY = re.compile(r"qwen2\.5-omni-(\d+b)")


def stem_of(checkpoint: str) -> str:
    """Return the file stem of the graph, which is derived from the checkpoint's name.

    ``Qwen2.5-Omni-7B`` gives ``qwen25_7b_audio``, and ``My Omni v1.2`` gives ``my_omni_v1_2_audio``.

    Args:
        checkpoint: Name of the checkpoint.
    """
    family = _FAMILY.fullmatch(checkpoint.lower())
    plain = f"qwen25_{family[1]}" if family else re.sub(r"[^a-z0-9]+", "_", checkpoint.lower()).strip("_")
    return f"{plain or 'checkpoint'}_audio"


def _tensors(config: Config) -> dict[str, TensorSpec]:
    embedding, hidden, vocabulary = _widths(config)
    dtype = checkpoint_dtype(config)
    return {
        "talker.thinker_to_talker_proj.weight": TensorSpec(dtype, (hidden, embedding)),
        "talker.thinker_to_talker_proj.bias": TensorSpec(dtype, (hidden,)),
        "talker.codec_head.weight": TensorSpec(dtype, (vocabulary, hidden)),
    }


def _contracts(config: Config) -> dict[str, GraphContract]:
    if CHECKPOINT_NAME not in config:
        raise UserError(
            "source.json: does not name the checkpoint that the projection's file is named after; pull again"
        )
    embedding, hidden, vocabulary = _widths(config)
    parameters = embedding * hidden + hidden + hidden * vocabulary
    contract = GraphContract(
        inputs=(Port("hidden_states", "FLOAT", ("batch", "seq", embedding)),),
        outputs=(Port("audio_logits", "FLOAT", ("batch", "seq", vocabulary)),),
        ir_version=10,
        length="seq",
        nodes=3,
        data_bytes=4 * parameters,
    )
    return {stem_of(config[CHECKPOINT_NAME]): contract}


def _widths(config: Config) -> tuple[int, ...]:
    """Return the widths of the Thinker's hidden states, of the Talker's hidden states, and of the codec vocabulary."""
    require_speech(config)
    keys = ("embedding_size", "hidden_size", "vocab_size")
    return sizes(config, "talker_config", keys, f"the checkpoint has no Talker: {WITHOUT_SPEECH}")


COMPONENT = Component(
    name="projection",
    summary=(
        "The projection from the Thinker's hidden states to the Talker's width, followed directly by the Talker's "
        "codec head: `hidden_states` to `audio_logits` in one graph of three nodes."
    ),
    caveat=(
        "This is a shortcut through the Talker, not a Talker: the real one runs all its decoder layers between the two "
        "matrices. The artifact serves as an interface, for latency work, and as the input and output stage of the "
        "real Talker; its logits are not speech."
    ),
    tensors=_tensors,
    contracts=_contracts,
    original_latency={stem_of("Qwen2.5-Omni-7B"): {"ms_per_token": 0.07, "ms": 1.5}},
)
