"""Let ONNX Runtime's own quantizers make a graph of 4 bits from our float32 graph, its head at 8 bits.

All are of ``onnxruntime.quantization.matmul_nbits_quantizer``, with their defaults but for what is named. A graph is
made in two passes, because HQQ, GPTQ and plain rounding cannot give the head other bits than the rest: plain rounding
to 8 bits takes the head, and what the second pass finds are the matrices of the layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime.quantization as tools
from onnxruntime.quantization import matmul_nbits_quantizer as nbits

from benchmarks.measure import Feeds

__all__ = ["Writer", "writers"]

Writer = Callable[[Path], Path]  # from a folder to the graph that was written into it
_LEVEL = 4  # accuracy level: activations in 8 bits, as in our graphs; HQQ's tool cannot set it
_BLOCK = 32  # weights that share a scale; in the head, too
_LARGE = 128  # the tools' default
_DAMPING = (0.01, 1.0)  # of GPTQ, as shares of the mean diagonal: the tool's default, and what few tokens want


def writers(graph: Path, head: str, feeds: Sequence[Feeds]) -> dict[str, Writer]:
    """Return a function that writes the graph of each tool, by the tool's name.

    Args:
        graph: File of our float32 graph.
        head: Name of the linear layer that gives the logits: names of its nodes begin with it.
        feeds: Inputs of the graph with which GPTQ calibrates.
    """
    k_quant = nbits.KQuantWeightOnlyQuantConfig
    configs: dict[str, tuple[Callable[[], Any], int, bool]] = {}
    for block in (_BLOCK, _LARGE):
        configs[f"ORT RTN, symmetric, {block}"] = partial(_rounding, 4, block, True), block, True
        configs[f"ORT RTN, zero points, {block}"] = partial(_rounding, 4, block, False), block, False
        configs[f"ORT k-quant, {block}"] = k_quant, block, False
    configs[f"ORT HQQ, {_BLOCK}"] = partial(nbits.HQQWeightOnlyQuantConfig, block_size=_BLOCK), _BLOCK, False
    for damping in _DAMPING:
        configs[f"ORT GPTQ, damping {damping:g}, {_BLOCK}"] = partial(_gptq, feeds, damping), _BLOCK, False
    return {name: partial(_write, graph, head, *config) for name, config in configs.items()}


def _rounding(bits: int, block: int, symmetric: bool) -> Any:
    return nbits.DefaultWeightOnlyQuantConfig(block, symmetric, _LEVEL, bits=bits)


def _gptq(feeds: Sequence[Feeds], damping: float) -> Any:
    return nbits.GPTQWeightOnlyQuantConfig(_Feeds(feeds), percdamp=damping)


class _Feeds(tools.CalibrationDataReader):
    """Inputs for ONNX Runtime's tool, which copies its reader before it reads."""

    def __init__(self, feeds: Iterable[Feeds]) -> None:
        self._left = [dict(fed) for fed in feeds]

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Return the next inputs; None after the last ones."""
        return self._left.pop(0) if self._left else None


def _write(graph: Path, head: str, config: Callable[[], Any], block: int, symmetric: bool, folder: Path) -> Path:
    model = onnx.load(graph)
    layers = [node.name for node in model.graph.node if not node.name.startswith(head)]
    model = _quantized(model, _rounding(8, _BLOCK, True), nodes_to_exclude=layers)
    model = _quantized(model, config(), block_size=block, is_symmetric=symmetric, accuracy_level=_LEVEL)
    out = folder / graph.name
    onnx.save(model, out, save_as_external_data=True, location=f"{out.name}.data")
    return out


def _quantized(model: onnx.ModelProto, config: Any, **options: Any) -> onnx.ModelProto:
    quantizer = nbits.MatMulNBitsQuantizer(model, algo_config=config, **options)
    quantizer.process()
    return quantizer.model.model
