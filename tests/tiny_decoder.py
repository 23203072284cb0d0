"""Tiny decoders with the 7B's architecture, and transformers' own beside them, with the same weights."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from conftest import ROOT

from components import talker, thinker
from export.decoder import FLOAT32, Schemes, write
from omni.checkpoint import Checkpoint
from omni.component import Outliers
from pull import synthetic
from qwen_omni_onnx.decoder import Decoder

PARTS = {"talker": talker, "thinker": thinker}
POSITIONS = 4096
FEW = {"*layernorm.weight": Outliers(1, 4, 8), "*.mlp.up_proj.weight": Outliers(2, 4, 8)}
PAD, START, END, MASK = 180, 181, 182, 184  # codes that are no sound; the vocabulary ends at 200
SPECIAL_TOKENS = {
    "bos_token_id": 270, "eos_token_id": 271, "audio_start_token_id": 272, "audio_token_index": 273,
    "audio_end_token_id": 274, "image_token_index": 275, "video_token_index": 276,
}  # fmt: skip
TTS_TOKENS = {"tts_text_start_token_id": 280, "tts_text_end_token_id": 281, "tts_text_pad_token_id": 282}
_ROPE = {"mrope_section": [2, 3, 3], "rope_type": "default", "type": "default"}
_TINY = {
    "hidden_size": 64, "intermediate_size": 112, "num_attention_heads": 4, "num_key_value_heads": 2,
    "num_hidden_layers": 3, "max_position_embeddings": POSITIONS, "rope_scaling": _ROPE,
}  # fmt: skip
TINY = {
    "talker": {
        **_TINY, "embedding_size": 96, "head_dim": 16, "vocab_size": 200, "tts_codec_pad_token_id": PAD,
        "tts_codec_start_token_id": START, "tts_codec_end_token_id": END, "tts_codec_mask_token_id": MASK,
    },
    "thinker": {**_TINY, "num_attention_heads": 4, "vocab_size": 300},
}  # fmt: skip


def config(**changes: Any) -> dict:
    """The 7B's configuration with tiny decoders; ``changes`` are of both."""
    table = json.loads((ROOT / "pull/qwen2_5_omni_7b/config.json").read_text())
    for name in PARTS:
        section(table, name).update({**TINY[name], **changes})
    return table


def section(table: dict, name: str) -> dict:
    """A decoder's section of a configuration."""
    return table["talker_config"] if name == "talker" else table["thinker_config"]["text_config"]


def write_source(name: str, table: dict, folder: Path, outliers: Mapping[str, Outliers] = FEW) -> Checkpoint:
    """Write a synthetic checkpoint in which the last token matters as much as it would in a trained one.

    Of 64 channels, fewer stand out than of the 7B's: if ``outliers`` does not say otherwise.
    """
    configs = folder / "configs"
    configs.mkdir(parents=True)
    (configs / "config.json").write_text(json.dumps(table))
    loud = {"*.embed_tokens.weight": Outliers(10**6, 10, 20)}
    part = replace(PARTS[name].COMPONENT, outliers={**loud, **outliers})
    synthetic.write(part, 0, "full", folder / "source", configs)
    return Checkpoint(folder / "source")


def write_graph(name: str, checkpoint: Checkpoint, folder: Path, schemes: Schemes = FLOAT32) -> Path:
    """Build the graph; return its path."""
    folder.mkdir(parents=True)
    write(PARTS[name].DECODER, checkpoint, folder, schemes)
    return folder / f"{name}.onnx"


def open_decoder(graph: Path) -> Decoder:
    return Decoder(graph, POSITIONS, threads=1)


def original(name: str, checkpoint: Checkpoint) -> Any:
    """Transformers' own decoder: a function from embeddings [batch, seq, width] to logits and hidden states.

    With ``cache``, transformers' own, it goes on after what that holds.
    """
    import torch

    module = talker_module(checkpoint) if name == "talker" else thinker_module(checkpoint)

    def run(embeds: np.ndarray, cache: Any = None) -> tuple[np.ndarray, np.ndarray]:
        with torch.inference_mode():
            fed = torch.from_numpy(embeds)
            if name == "talker":
                fed = module.thinker_to_talker_proj(fed)
            found = module.model(inputs_embeds=fed, past_key_values=cache, use_cache=cache is not None)
            hidden = found.last_hidden_state
            head = module.codec_head if name == "talker" else module.lm_head
            return head(hidden).numpy(), hidden.numpy()

    return run


def talker_module(checkpoint: Checkpoint) -> Any:
    from transformers import Qwen2_5OmniTalkerForConditionalGeneration as Original
    from transformers.models.qwen2_5_omni.configuration_qwen2_5_omni import Qwen2_5OmniTalkerConfig

    module = Original(Qwen2_5OmniTalkerConfig(**copy.deepcopy(checkpoint.config["talker_config"])))
    return _with_weights(module, checkpoint, "talker")


def thinker_module(checkpoint: Checkpoint) -> Any:
    """The Thinker's text model and its head, without the encoders."""
    import torch
    from transformers.models.qwen2_5_omni.configuration_qwen2_5_omni import Qwen2_5OmniTextConfig
    from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import Qwen2_5OmniThinkerTextModel

    text = Qwen2_5OmniTextConfig(**copy.deepcopy(checkpoint.config["thinker_config"]["text_config"]))
    module = torch.nn.Module()
    module.model = Qwen2_5OmniThinkerTextModel(text)
    module.lm_head = torch.nn.Linear(text.hidden_size, text.vocab_size, bias=False)
    return _with_weights(module, checkpoint, "thinker")


def _with_weights(module: Any, checkpoint: Checkpoint, prefix: str) -> Any:
    import torch

    names = [name for name, _ in module.named_parameters()]
    weights = {name: torch.from_numpy(checkpoint.read(f"{prefix}.{name}").astype(np.float32)) for name in names}
    module.load_state_dict(weights, assign=True)
    return module.eval()


def published(name: str) -> dict:
    """A decoder's section of the 7B's configuration."""
    return section(json.loads((ROOT / "pull/qwen2_5_omni_7b/config.json").read_text()), name)
