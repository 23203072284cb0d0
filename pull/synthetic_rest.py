"""What the hub's checkpoint holds beside the tensors that components are built from: vision, and a few small ones.

So a made-up checkpoint has all that the real one has, and a pull has something to leave out.
"""

from __future__ import annotations

from typing import Any

from omni.checkpoint import TensorSpec
from omni.component import Config, checkpoint_dtype

__all__ = ["tensors"]

_VISUAL = "thinker.visual"


def tensors(config: Config) -> dict[str, TensorSpec]:
    """Return these tensors of a completed configuration, by name.

    The last one is a guess: the hub's index counts 2,448 tensors, one more than transformers' modules have parameters,
    and the rotary embedding's frequencies are what an older version would have saved.
    """
    dtype, thinker = checkpoint_dtype(config), config["thinker_config"]
    shapes: dict[str, tuple[int, ...]] = {
        "thinker.audio_tower.audio_bos_eos_token.weight": (2, thinker["audio_config"]["output_dim"])
    }
    if "vision_config" in thinker:
        shapes |= {f"{_VISUAL}.{name}": shape for name, shape in _visual(thinker["vision_config"]).items()}
    found = {name: TensorSpec(dtype, shape) for name, shape in shapes.items()}
    head = config["token2wav_config"]["dit_config"]["head_dim"]
    return {**found, "token2wav.code2wav_dit_model.rotary_embed.inv_freq": TensorSpec("F32", (head // 2,))}


def _visual(vision: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    width, inner, patch = vision["hidden_size"], vision["intermediate_size"], vision["patch_size"]
    merged = width * vision["spatial_merge_size"] ** 2
    shapes: dict[str, tuple[int, ...]] = {
        "patch_embed.proj.weight": (width, vision["in_channels"], vision["temporal_patch_size"], patch, patch)
    }
    for block in (f"blocks.{number}" for number in range(vision["depth"])):
        shapes |= {f"{block}.{norm}.weight": (width,) for norm in ("norm1", "norm2")}
        for name in ("q", "k", "v", "proj"):
            shapes |= _linear(f"{block}.attn.{name}", width, width)
        for name, rows, columns in (("gate", inner, width), ("up", inner, width), ("down", width, inner)):
            shapes |= _linear(f"{block}.mlp.{name}_proj", rows, columns)
    shapes["merger.ln_q.weight"] = (width,)
    return shapes | _linear("merger.mlp.0", merged, merged) | _linear("merger.mlp.2", vision["out_hidden_size"], merged)


def _linear(name: str, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}
