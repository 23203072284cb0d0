"""The audio encoder: computes the Thinker's audio embeddings, 25 a second, from log-mel features."""

from __future__ import annotations

from omni.checkpoint import TensorSpec
from omni.component import Component, Config, Outliers, checkpoint_dtype, sizes
from qwen_omni_onnx.common.contract import GraphContract, Port

GRAPH = "audio_encoder"
_PREFIX = "thinker.audio_tower"
_WIDTHS = ("num_mel_bins", "d_model", "encoder_ffn_dim", "output_dim", "encoder_layers", "n_window")


def _tensors(config: Config) -> dict[str, TensorSpec]:
    mels, width, inner, out, layers, _ = _sizes(config)
    shapes: dict[str, tuple[int, ...]] = {
        "conv1.weight": (width, mels, 3),
        "conv1.bias": (width,),
        "conv2.weight": (width, width, 3),
        "conv2.bias": (width,),
        "ln_post.weight": (width,),
        "ln_post.bias": (width,),
        "proj.weight": (out, width),
        "proj.bias": (out,),
    }
    for layer in (f"layers.{number}" for number in range(layers)):
        for name, rows, columns in (("fc1", inner, width), ("fc2", width, inner)):
            shapes |= {f"{layer}.{name}.weight": (rows, columns), f"{layer}.{name}.bias": (rows,)}
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes[f"{layer}.self_attn.{name}.weight"] = (width, width)
            if name != "k_proj":  # a key bias would add the same value to all scores of a query
                shapes[f"{layer}.self_attn.{name}.bias"] = (width,)
        for name in ("self_attn_layer_norm", "final_layer_norm"):
            shapes |= {f"{layer}.{name}.weight": (width,), f"{layer}.{name}.bias": (width,)}
    dtype = checkpoint_dtype(config)
    return {f"{_PREFIX}.{name}": TensorSpec(dtype, shape) for name, shape in shapes.items()}


def _contracts(config: Config) -> dict[str, GraphContract]:
    mels, _, _, out, _, window = _sizes(config)
    contract = GraphContract(
        inputs=(Port("input_features", "FLOAT", ("batch", mels, "frames")), Port("feature_lens", "INT64", ("batch",))),
        outputs=(Port("audio_features", "FLOAT", ("batch", "tokens", out)), Port("audio_lens", "INT64", ("batch",))),
        ir_version=10,
        length="frames",
        derived={"tokens": lambda frames: ((frames - 1) // 2 + 1) // 2},
        filled_to=2 * window,  # frames of a block
    )
    return {GRAPH: contract}


def _sizes(config: Config) -> tuple[int, ...]:
    return sizes(config, "thinker_config.audio_config", _WIDTHS, "the checkpoint has no audio encoder")


COMPONENT = Component(
    name="encoder",
    summary=(
        "The audio encoder: `input_features`, 100 log-mel frames a second, to `audio_features`, 25 embeddings a second "
        "in the Thinker's width. One graph for clips of any length and for batches of unequal ones; rows of "
        "`audio_features` beyond `audio_lens` are zero."
    ),
    caveat=(
        "Blocks of 200 frames (2 s) do not see each other: a stream may be fed in pieces of whole blocks. Clips of 1 "
        "and 2 frames give no embedding."
    ),
    tensors=_tensors,
    contracts=_contracts,
    depth=("thinker_config", "audio_config", "encoder_layers"),
    outliers={
        "*_layer_norm.weight": Outliers(8, 20, 60),
        f"{_PREFIX}.proj.weight": Outliers(12, 30, 150),  # as in a language model's hidden states
    },
)
