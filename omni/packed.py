"""Matrices in 4 bits, in the layouts of checkpoints that AutoAWQ, GPTQ and AutoRound write.

A linear layer of ``in`` inputs and ``out`` outputs, whose groups of inputs share a scale and a zero point, is stored as
three or four tensors. Eight codes are packed into an INT32, code p into bits 4p to 4p + 3:

    AutoAWQ, version gemm   qweight [in, out / 8], qzeros [groups, out / 8]: code p of word c is of output
                            8c + (0, 2, 4, 6, 1, 3, 5, 7)[p]
    GPTQ                    qweight [in / 8, out]: code p of word r is of input 8r + p
                            qzeros [groups, out / 8]: code p of word c is of output 8c + p; format v1 stores zero - 1
                            g_idx [in] INT32: the group that each input belongs to
    both                    scales [groups, out], floats

Its weight is ``weight[o, i] = (code[o, i] - zero[g, o]) * scale[g, o]``, where g is ``g_idx[i]`` or ``i // group``.

Sources: ``awq/utils/packing_utils.py`` of https://github.com/casper-hansen/AutoAWQ,
``auto_gptq/nn_modules/qlinear/qlinear_cuda_old.py`` of https://github.com/AutoGPTQ/AutoGPTQ; AutoRound writes either
layout (``auto_round/export`` of https://github.com/intel/auto-round).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import ml_dtypes
import numpy as np

from qwen_omni_onnx.common.errors import UserError

__all__ = ["CODES", "PackedFormat", "PackedMatrix", "packed_format"]

CODES = 8  # codes in an INT32
_BITS = 4
_BLOCK_VALUES = 2**22  # values unpacked at a time: 16 MB of float32
_LEAST_GROUP = 16  # MatMulNBits takes powers of two from 16 on
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
_GPTQ_ZERO_OFFSETS = {"gptq": 1, "gptq_v2": 0}  # added to a stored zero point, by checkpoint_format
_AUTO_ROUND = {"auto_round:auto_gptq": "gptq", "auto_round:auto_awq": "awq"}
_SCALE_DTYPES = tuple(np.dtype(dtype) for dtype in (np.float16, ml_dtypes.bfloat16, np.float32))
_SECTIONS = (
    (),
    ("thinker_config",),
    ("thinker_config", "text_config"),
)  # sections in which known checkpoints hold quantization_config


@dataclass(frozen=True)
class PackedFormat:
    """Layout of a checkpoint's 4-bit matrices.

    Attributes:
        layout: Order of the codes; see the module's docstring.
        group: Number of inputs that share a scale and a zero point.
        zero_offset: Offset that is added to a stored zero point.
    """

    layout: Literal["awq", "gptq"]
    group: int
    zero_offset: int = 0

    def shape(self, qweight: tuple[int, ...]) -> tuple[int, int]:
        """Return ``(out, in)`` of the matrix whose ``qweight`` has this shape."""
        rows, columns = qweight
        return (CODES * columns, rows) if self.layout == "awq" else (columns, CODES * rows)

    def shapes(self, name: str, out: int, into: int) -> dict[str, tuple[int, ...]]:
        """Return the shapes of a matrix' tensors, by the suffix of their names; only ``g_idx`` is optional.

        Args:
            name: Name of the module in the checkpoint, for messages.
            out: Number of outputs.
            into: Number of inputs.

        Raises:
            UserError: The outputs, or the inputs where they are packed, do not fill whole words.
        """
        for size, axis in ((out, "outputs"), (into, "inputs")):  # zero points are packed along the outputs in both
            if size % CODES and (axis == "outputs" or self.layout == "gptq"):
                raise UserError(
                    f"{name}: {size} {axis} do not fill words of {CODES} codes, as {self.layout} packs them"
                )
        groups = -(-into // self.group)
        packing: dict[str, tuple[int, ...]] = {
            "qweight": (into, out // CODES) if self.layout == "awq" else (into // CODES, out),
            "qzeros": (groups, out // CODES),
            "scales": (groups, out),
        }
        return packing if self.layout == "awq" else {**packing, "g_idx": (into,)}


def packed_format(config: Mapping[str, Any]) -> PackedFormat:
    """Return the format that ``quantization_config`` declares, at the top level or in a section of the Thinker.

    It does not decide which modules are packed: the tensors in the checkpoint do.

    Raises:
        UserError: The configuration has no ``quantization_config``, or one that declares a layout, a number of bits or
            a group size that is not supported.
    """
    quantization = _quantization_config(config)
    method = quantization.get("quant_method")
    layout = _AUTO_ROUND.get(str(quantization.get("packing_format"))) if method == "auto-round" else method
    if layout not in ("awq", "gptq"):
        declared = f"packing_format {quantization.get('packing_format')!r}" if method == "auto-round" else f"{method!r}"
        raise _refused(f"quant_method {declared} is not one of awq, gptq, auto-round ({' or '.join(_AUTO_ROUND)})")
    if quantization.get("bits") != _BITS:
        raise _refused(f"bits {quantization.get('bits')!r}: only 4 are read")
    group = quantization.get("group_size")
    if type(group) is not int or group < _LEAST_GROUP or group & (group - 1):
        raise _refused(f"group_size {group!r}: MatMulNBits takes powers of two from {_LEAST_GROUP}")
    if layout == "awq":
        version = str(quantization.get("version", "gemm")).lower()
        if version != "gemm":
            raise _refused(f"version {version!r} of awq has another layout; only gemm is read")
        return PackedFormat("awq", group)
    declared = (
        "gptq" if method == "auto-round" else quantization.get("checkpoint_format", quantization.get("format", "gptq"))
    )
    checkpoint_format = str(declared)
    if checkpoint_format not in _GPTQ_ZERO_OFFSETS:
        known = " and ".join(_GPTQ_ZERO_OFFSETS)
        raise _refused(f"checkpoint_format {checkpoint_format!r} has another layout; only {known} are read")
    return PackedFormat("gptq", group, _GPTQ_ZERO_OFFSETS[checkpoint_format])


class PackedMatrix:
    """One linear layer, [out, in], whose codes are unpacked on demand.

    Args:
        name: Name of the module in the checkpoint, for messages.
        packing: Layout of the tensors.
        tensors: The tensors, by the suffix of their names; ``qweight`` may be memory-mapped, so that only the columns
            in use are read.

    Attributes:
        shape: Numbers of outputs and inputs.
        group: Number of inputs that share a scale and a zero point.
        zero_points: Zero points, [out, groups] UINT8.
        scales: Scales, [out, groups] float32.

    Raises:
        UserError: A tensor is missing, or its dtype or shape is not that of the format; a zero point is 16, which
            GPTQ's implementations read differently; an input belongs to no group.
    """

    def __init__(self, name: str, packing: PackedFormat, tensors: Mapping[str, np.ndarray]) -> None:
        self.name, self.group = name, packing.group
        self._packing, self._qweight = packing, _required(name, tensors, "qweight")
        if self._qweight.ndim != 2:
            raise UserError(f"{name}.qweight: {list(self._qweight.shape)} is not the shape of a matrix")
        self.shape = packing.shape(self._qweight.shape)
        self._require_shapes(tensors)
        self.zero_points = self._unpack_zero_points(tensors["qzeros"])
        self.scales = np.ascontiguousarray(tensors["scales"].T.astype(np.float32))
        self._groups = np.arange(self.shape[1]) // self.group
        if packing.layout == "gptq" and "g_idx" in tensors:
            self._groups = np.asarray(tensors["g_idx"])
            if self._groups.min() < 0 or self._groups.max() >= self.scales.shape[1]:
                raise UserError(f"{name}.g_idx: names groups beyond the {self.scales.shape[1]} that have scales")

    def codes(self, rows: slice) -> np.ndarray:
        """Return the codes of a slice of the outputs, [rows, in] UINT8 from 0 to 15."""
        start, stop, _ = rows.indices(self.shape[0])
        if self._packing.layout == "gptq":
            codes = _nibbles(self._qweight[:, start:stop])  # [in / 8, rows, 8]
            return codes.transpose(1, 0, 2).reshape(stop - start, self.shape[1])
        first = start // CODES
        codes = _in_awq_order(_nibbles(self._qweight[:, first : -(-stop // CODES)]))  # [in, columns]
        return np.ascontiguousarray(codes[:, start - CODES * first : stop - CODES * first].T)

    def dequantized(self, rows: slice) -> np.ndarray:
        """Return the weights of a slice of the outputs, [rows, in] float32.

        The difference of two codes has at most 4 bits and a sign, and a scale in float16 or bfloat16 at most 11 bits:
        their product is exact in float32. (With a scale in float32 the product is rounded once; a kernel that
        multiplies in float16 rounds, too.)
        """
        start, stop, _ = rows.indices(self.shape[0])
        weights = np.empty((max(0, stop - start), self.shape[1]), np.float32)
        step = max(1, _BLOCK_VALUES // self.shape[1])
        for first in range(start, stop, step):
            outputs = slice(first, min(first + step, stop))
            block = weights[first - start : outputs.stop - start]
            np.subtract(self.codes(outputs), self.zero_points[outputs][:, self._groups], out=block, dtype=np.float32)
            block *= self.scales[outputs][:, self._groups]
        return weights

    def permutation(self) -> np.ndarray | None:
        """Return the permutation that orders the inputs by group, [in]; None where they are in that order.

        GPTQ quantizes inputs in the order of their activations' energy (``desc_act``) and then stores them in the
        original order: a group's inputs are scattered.

        Raises:
            UserError: A group has more or fewer inputs than the group size, so that no permutation gives whole blocks.
        """
        if np.array_equal(self._groups, np.arange(self.shape[1]) // self.group):
            return None
        sizes = np.bincount(self._groups, minlength=self.scales.shape[1])
        if (sizes != self.group).any():
            worst = int(np.argmax(sizes != self.group))
            raise UserError(
                f"{self.name}.g_idx: group {worst} has {sizes[worst]} inputs, not {self.group}; int4-import needs "
                "whole groups: name another scheme for it under quantize.nodes, which dequantizes it"
            )
        return np.argsort(self._groups, kind="stable")

    def _require_shapes(self, tensors: Mapping[str, np.ndarray]) -> None:
        for suffix, shape in self._packing.shapes(self.name, *self.shape).items():
            if suffix == "g_idx" and suffix not in tensors:
                continue
            tensor = _required(self.name, tensors, suffix)
            allowed = _SCALE_DTYPES if suffix == "scales" else (np.dtype(np.int32),)
            if tensor.shape != shape or tensor.dtype not in allowed:
                dtypes = " or ".join(str(dtype) for dtype in allowed)
                raise UserError(
                    f"{self.name}.{suffix}: {tensor.dtype} {list(tensor.shape)}; by quantization_config it should be "
                    f"{dtypes} {list(shape)}"
                )

    def _unpack_zero_points(self, qzeros: np.ndarray) -> np.ndarray:
        codes = _nibbles(qzeros)
        stored = _in_awq_order(codes) if self._packing.layout == "awq" else codes.reshape(len(qzeros), -1)
        if self._packing.zero_offset and (stored == 2**_BITS - 1).any():
            raise UserError(
                f"{self.name}.qzeros: a stored 15 means a zero point of 16, which some of GPTQ's implementations read "
                "as 0, and which does not fit into 4 bits; quantize it again as gptq_v2, or symmetrically"
            )
        return np.ascontiguousarray((stored + np.uint8(self._packing.zero_offset)).T)


def _quantization_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    for path in _SECTIONS:
        section: Any = config
        for key in path:
            section = section.get(key) or {}
        quantization = section.get("quantization_config")
        if isinstance(quantization, Mapping):
            return quantization
    raise UserError("config.json: no quantization_config, which says how the tensors named qweight are packed")


def _refused(fault: str) -> UserError:
    return UserError(f"config.json: quantization_config: {fault}")


def _required(name: str, tensors: Mapping[str, np.ndarray], suffix: str) -> np.ndarray:
    if suffix not in tensors:
        raise UserError(f"{name}.{suffix}: missing beside {name}.qweight; the checkpoint is not whole")
    return tensors[suffix]


def _nibbles(words: np.ndarray) -> np.ndarray:
    """Return the codes of INT32 words, [..., 8] UINT8, lowest bits first: the words' bytes are little-endian."""
    pairs = np.ascontiguousarray(words).view(np.uint8).reshape(*words.shape, CODES // 2)
    return np.stack([pairs & 15, pairs >> _BITS], -1).reshape(*words.shape, CODES)


def _in_awq_order(codes: np.ndarray) -> np.ndarray:
    """Return codes [rows, 8 * words] in the order of the outputs, from AutoAWQ's interleaved [rows, words, 8]."""
    return codes[..., np.argsort(_AWQ_ORDER)].reshape(len(codes), -1)
