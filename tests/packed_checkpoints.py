"""Checkpoints in AutoAWQ's, GPTQ's and AutoRound's 4-bit layouts, packed nibble by nibble: no code of the importer.

Formulas after AutoAWQ's ``WQLinear_GEMM.from_linear`` and AutoGPTQ's ``QuantLinear.pack``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from omni.checkpoint import DTYPES, Checkpoint, TensorSpec, encode_header
from qwen_omni_onnx.common import artifact

GROUP = 32
LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
AWQ = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm", "zero_point": True}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False, "sym": False}


@dataclass(frozen=True)
class Codes:
    """A quantized matrix: codes [out, in], zero points and scales [out, groups], and each input's group [in]."""

    codes: np.ndarray
    zeros: np.ndarray
    scales: np.ndarray
    groups: np.ndarray

    def weight(self) -> np.ndarray:
        """The reference formula, value by value in double precision; every result is exact in float32."""
        out, into = self.codes.shape
        weight = np.empty((out, into), np.float64)
        for i in range(into):
            group = self.groups[i]
            scale = self.scales[:, group].astype(np.float64)
            weight[:, i] = scale * (self.codes[:, i].astype(np.int64) - self.zeros[:, group].astype(np.int64))
        assert (weight.astype(np.float32) == weight).all()
        return weight.astype(np.float32)


@dataclass(frozen=True)
class Layout:
    """A way to write a checkpoint.

    Attributes:
        config: its ``quantization_config``.
        pack: from codes to tensors, by the last parts of their names.
        scattered: whether a group's inputs lie scattered (act-order): the same way in all layers that read one
            activation, or in each its own.
        dtype: of the scales.
    """

    config: Mapping[str, Any]
    pack: Callable[[Codes], dict[str, np.ndarray]]
    scattered: str = ""
    dtype: Any = np.float16


def pack_awq(codes: Codes) -> dict[str, np.ndarray]:
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    out = len(codes.codes)

    def interleaved(table: np.ndarray) -> np.ndarray:  # [rows, out] -> [rows, out / 8]
        words = np.zeros((len(table), out // 8), np.int64)
        for row in range(len(table)):
            for column in range(out // 8):
                for nibble in range(8):
                    words[row, column] |= int(table[row, 8 * column + order[nibble]]) << (4 * nibble)
        return words.astype(np.uint32).view(np.int32)

    return {
        "qweight": interleaved(codes.codes.T),
        "qzeros": interleaved(codes.zeros.T),
        "scales": codes.scales.T.copy(),
    }


def pack_gptq(codes: Codes, offset: int = 1, g_idx: bool = True) -> dict[str, np.ndarray]:
    out, into = codes.codes.shape
    qweight = np.zeros((into // 8, out), np.int64)
    for i in range(into):
        for o in range(out):
            qweight[i // 8, o] |= int(codes.codes[o, i]) << (4 * (i % 8))
    qzeros = np.zeros((codes.zeros.shape[1], out // 8), np.int64)
    for group in range(len(qzeros)):
        for o in range(out):
            qzeros[group, o // 8] |= (int(codes.zeros[o, group]) - offset) << (4 * (o % 8))
    tensors = {
        "qweight": qweight.astype(np.uint32).view(np.int32),
        "qzeros": qzeros.astype(np.uint32).view(np.int32),
        "scales": codes.scales.T.copy(),
    }
    return tensors | ({"g_idx": codes.groups.astype(np.int32)} if g_idx else {})


LAYOUTS = {
    "awq": Layout(AWQ, pack_awq),
    "gptq": Layout(GPTQ, pack_gptq),
    "gptq_v2": Layout({**GPTQ, "checkpoint_format": "gptq_v2"}, lambda codes: pack_gptq(codes, offset=0)),
    "act-order": Layout({**GPTQ, "desc_act": True}, pack_gptq, "together"),
    "act-order-apart": Layout({**GPTQ, "desc_act": True}, pack_gptq, "apart"),
    "autoround-gptq": Layout(
        {**GPTQ, "quant_method": "auto-round", "packing_format": "auto_round:auto_gptq"},
        lambda codes: pack_gptq(codes, g_idx=False),
        dtype=ml_dtypes.bfloat16,
    ),
    "autoround-awq": Layout({**AWQ, "quant_method": "auto-round", "packing_format": "auto_round:auto_awq"}, pack_awq),
}


@dataclass
class Packed:
    """A checkpoint, and what its packed layers mean."""

    checkpoint: Checkpoint
    layers: dict[str, Codes] = field(default_factory=dict)


def rounded(weight: np.ndarray, groups: np.ndarray, dtype: Any = np.float16) -> Codes:
    """Round a matrix [out, in] to 4 bits between each group's ends; zero points from 1 to 15, as v1 can store them."""
    out, into = weight.shape
    count = int(groups.max()) + 1
    codes = np.empty((out, into), np.uint8)
    zeros, scales = np.empty((out, count), np.uint8), np.empty((out, count), dtype)
    for group in range(count):
        members = np.flatnonzero(groups == group)
        part = weight[:, members].astype(np.float32)
        low, high = part.min(1), part.max(1)
        scales[:, group] = np.maximum((high - low) / 15, 1e-4).astype(dtype)
        scale = scales[:, group].astype(np.float32)
        zeros[:, group] = np.clip(np.rint(-low / scale), 1, 15)
        codes[:, members] = np.clip(np.rint(part / scale[:, None]) + zeros[:, group, None], 0, 15)
    return Codes(codes, zeros, scales, groups)


def pack(checkpoint: Checkpoint, layout: Layout, folder: Path) -> Packed:
    """Write a float checkpoint's Thinker with its layers packed, all else in float16, as an artifact of the stage pull.

    ``source.json`` and the small files stay what they are.
    """
    random = np.random.default_rng(7)
    tensors: dict[str, np.ndarray] = {}
    layers: dict[str, Codes] = {}
    scattered: dict[str, np.ndarray] = {}
    for name in checkpoint.entries:
        module = name.removesuffix(".weight")
        leaf = module.rpartition(".")[2]
        if leaf not in LAYERS or not name.endswith(".weight"):
            tensors[name] = checkpoint.read(name).astype(np.float16)
            continue
        weight = checkpoint.read(name).astype(np.float32)
        groups = np.arange(weight.shape[1]) // GROUP
        if layout.scattered:
            key = (
                module
                if layout.scattered == "apart"
                else module.rpartition(".")[0] + str(leaf in ("o_proj", "down_proj"))
            )
            groups = scattered.setdefault(key, random.permutation(groups))
        layers[module] = rounded(weight, groups, layout.dtype)
        tensors |= {f"{module}.{part}": array for part, array in layout.pack(layers[module]).items()}
    config = {**checkpoint.config, "torch_dtype": "float16", "quantization_config": dict(layout.config)}
    with artifact.writing(folder, kind="source", component=folder.name) as beside:
        for path in checkpoint.folder.iterdir():
            if path.is_file() and path.name not in ("model.safetensors", artifact.MANIFEST):
                (beside / path.name).write_bytes(path.read_bytes())
        (beside / "config.json").write_text(json.dumps(config))
        write_tensors(beside, tensors)
    return Packed(Checkpoint(folder), layers)


def write_tensors(folder: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write ``model.safetensors``."""
    names = {dtype: name for name, dtype in DTYPES.items()}
    specs = {name: TensorSpec(names[array.dtype], array.shape) for name, array in tensors.items()}
    with (folder / "model.safetensors").open("wb") as file:
        file.write(encode_header(specs))
        for array in tensors.values():
            file.write(np.ascontiguousarray(array).tobytes())
