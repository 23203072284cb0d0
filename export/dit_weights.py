"""What is computed of the DiT's weights before its graphs are written: tables over times, and matrices in parts.

Each function gives arrays by parameter of the modules of :mod:`export.dit`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import SinusPositionEmbedding

from components.token2wav import DIT, dit_config
from export.exporter import Derived
from omni.checkpoint import Checkpoint
from omni.params import SampledParams
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.sampler import evaluation_times, variants

__all__ = ["condition_tensors", "step_tensors", "table_times"]

_INPUTS = {"mel": "mel_dim", "voice": "enc_dim", "code": "emb_dim", "speaker": "enc_emb_dim"}  # widths, in their order
_LAYER = ("attn_norm.shift", "attn_norm.scale", "attn_norm.gate", "ff_norm.shift", "ff_norm.scale", "ff_norm.gate")
_LAST = ("norm_out.scale", "norm_out.shift")  # here the scale comes first


def table_times(settings: Any) -> np.ndarray:
    """Return the time of each row of the tables, [rows] float32, from the ``export`` block of ``params.yaml``.

    Raises:
        UserError: The block declares no variants of the solver.
    """
    if not isinstance(settings, SampledParams):
        raise UserError("params.yaml: token2wav.export: guidance_scale and variants are needed")
    declared = variants({name: variant.model_dump() for name, variant in settings.variants.items()})
    return evaluation_times(declared.values())


def _modulation_tables(checkpoint: Checkpoint, times: np.ndarray, layers: int) -> Derived:
    """Return functions that compute the tables of every ``Modulation``, by parameter name, each [times, width].

    The vectors of a layer come from one matrix, which is read once if its tables are written one after another.
    """

    @lru_cache(maxsize=1)
    def embedded() -> np.ndarray:
        return _silu(_embedded_times(checkpoint, times))

    @lru_cache(maxsize=1)
    def vectors(linear: str, number: int) -> list[np.ndarray]:
        return np.split(_linear(checkpoint, linear, embedded()), number, axis=1)

    def table(linear: str, names: tuple[str, ...], name: str) -> np.ndarray:
        values = vectors(linear, len(names))[names.index(name)]
        return values + 1 if name.endswith(".scale") else values

    tables: dict[str, Callable[[], np.ndarray]] = {
        name: partial(table, "norm_out.linear", _LAST, name) for name in _LAST
    }
    for layer in (f"transformer_blocks.{number}" for number in range(layers)):
        linear = f"{layer}.attn_norm.linear"
        tables |= {f"{layer}.{name}": partial(table, linear, _LAYER, name) for name in _LAYER}
    return tables


def _embedded_times(checkpoint: Checkpoint, times: np.ndarray) -> np.ndarray:
    """Return transformers' embedding of the times, [times, width].

    Sines and cosines of up to 1000 radians depend on how the angles are rounded: those are transformers' own.
    """
    features = checkpoint.spec(f"{DIT}.time_embed.time_mlp.0.weight").shape[1]
    hidden = SinusPositionEmbedding(features)(torch.from_numpy(times)).numpy()
    hidden = _silu(_linear(checkpoint, "time_embed.time_mlp.0", hidden))
    return _linear(checkpoint, "time_embed.time_mlp.2", hidden)


def _linear(checkpoint: Checkpoint, name: str, hidden: np.ndarray) -> np.ndarray:
    """Apply a linear layer in float64, so that neither threads nor libraries round the result differently."""
    weight, bias = (checkpoint.read(f"{DIT}.{name}.{kind}").astype(np.float64) for kind in ("weight", "bias"))
    return hidden.astype(np.float64) @ weight.T + bias


def _silu(hidden: np.ndarray) -> np.ndarray:
    return hidden / (1 + np.exp(-hidden))


def _input_columns(checkpoint: Checkpoint, dit: dict[str, Any], name: str) -> np.ndarray:
    """Return the columns of the input projection for one of its inputs, a key of ``_INPUTS``, [in, width] float32."""
    before = list(_INPUTS)[: list(_INPUTS).index(name)]
    start = sum(dit[_INPUTS[one]] for one in before)
    weight = checkpoint.read(f"{DIT}.input_embed.proj.weight")
    return weight[:, start : start + dit[_INPUTS[name]]].T.astype(np.float32, order="C")


def _rotary_projection(checkpoint: Checkpoint, parameter: str, head: int, scale: float) -> np.ndarray:
    """Return weight [in, out] or bias [out] of queries or keys, scaled, in the order of channels that ``Rotary`` wants.

    The checkpoint rotates pairs of neighbouring channels. Those of head 0 are stored here in the order 0, 2, 4, ...,
    1, 3, 5, ..., to rotate halves: queries and keys reordered alike give the same scores.
    """
    rows = checkpoint.read(f"{DIT}.{parameter}").astype(np.float32) * np.float32(scale)
    order = np.arange(len(rows))
    order[:head] = np.concatenate([np.arange(0, head, 2), np.arange(1, head, 2)])
    return np.ascontiguousarray(rows[order].T)


def condition_tensors(checkpoint: Checkpoint, settings: Any) -> Derived:
    """Return the input projection's columns for each input of ``Condition``."""
    dit = dit_config(checkpoint.config)
    names = ("voice", "code", "speaker")
    return {f"input_embed.{name}.weight": partial(_input_columns, checkpoint, dit, name) for name in names}


def step_tensors(checkpoint: Checkpoint, settings: Any) -> Derived:
    """Return what ``Step`` has: tables of modulations, the mel's columns of the input projection, queries and keys."""
    dit = dit_config(checkpoint.config)
    layers, head = dit["num_hidden_layers"], dit["head_dim"]
    tensors = dict(_modulation_tables(checkpoint, table_times(settings), layers))
    tensors["input_embed.proj.weight"] = partial(_input_columns, checkpoint, dit, "mel")
    for layer in range(layers):
        for name, scale in (("to_q", head**-0.5), ("to_k", 1.0)):  # attention's scale is in the queries
            for kind in ("weight", "bias"):
                parameter = f"transformer_blocks.{layer}.attn.{name}.{kind}"
                tensors[parameter] = partial(_rotary_projection, checkpoint, parameter, head, scale)
    return tensors
