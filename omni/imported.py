"""Linear layers of a 4-bit checkpoint in the layout of ONNX Runtime's ``MatMulNBits``: the scheme ``int4-import``.

Nothing is quantized a second time: codes, zero points and scales are the checkpoint's own, repacked block by block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from omni import nbits
from omni.checkpoint import Checkpoint
from omni.packed import PackedMatrix
from omni.streamed import row_blocks
from qwen_omni_onnx.common.errors import UserError

__all__ = ["IMPORT", "Importer", "PackedLayers", "packed_layers"]

IMPORT = "int4-import"
_BITS = 4


@dataclass(frozen=True)
class PackedLayers:
    """Layers that read the same activation, stacked into one ``MatMulNBits``.

    Attributes:
        checkpoint: The checkpoint that holds the layers.
        names: Names of the layers' weights.
        shape: Number of outputs of all layers together, and number of inputs.
        group: Number of inputs that share a scale and a zero point: the operator's block size.
        permutation: Order of the activation's channels in which the codes are stored, [in]; None if it is their own.
    """

    checkpoint: Checkpoint
    names: tuple[str, ...]
    shape: tuple[int, int]
    group: int
    permutation: np.ndarray | None

    @property
    def leaf(self) -> str:
        """Last component of the first layer's name: ``q_proj``."""
        return self.names[0].split(".")[-2]

    @property
    def matrix(self) -> nbits.BlockMatrix:
        """The stacked layers in the operator's layout."""
        return nbits.BlockMatrix(self.shape, self.group, _BITS, self._values, self._scales, self._zero_points)

    def _values(self) -> Iterator[np.ndarray]:
        for matrix in self._matrices():
            out, into = matrix.shape
            for rows in row_blocks(out, 4 * into):
                codes = matrix.codes(rows)
                if self.permutation is not None:
                    codes = codes[:, self.permutation]
                yield nbits.packed(nbits.in_blocks(codes, self.group), _BITS)

    def _scales(self) -> Iterator[np.ndarray]:
        return (matrix.scales for matrix in self._matrices())

    def _zero_points(self) -> Iterator[np.ndarray]:
        return (nbits.packed(matrix.zero_points, _BITS) for matrix in self._matrices())

    def _matrices(self) -> Iterator[PackedMatrix]:
        """Yield the layers one by one, so that each keeps the checkpoint memory-mapped only while it is read."""
        for name in self.names:
            matrix = self.checkpoint.packed(name)
            assert matrix is not None, "packed_layers has checked it"
            yield matrix


def packed_layers(checkpoint: Checkpoint, names: tuple[str, ...], node: str, outputs: int) -> list[PackedLayers]:
    """Return layers that read the same activation, stacked into one where their inputs have the same order.

    Args:
        checkpoint: The checkpoint that holds the layers.
        names: Names of the layers' weights.
        node: Name of the MatMul that computes them, for messages.
        outputs: Number of outputs of that MatMul.

    Raises:
        UserError: A layer is not packed, or only a slice of it is needed, or its inputs cannot be ordered into whole
            groups.
    """
    if not checkpoint.is_packed:
        raise UserError(
            f"{checkpoint.folder}: no tensor named qweight in it; {IMPORT} is for checkpoints that AutoAWQ, GPTQ or "
            "AutoRound wrote in 4 bits: pull one, or name another scheme under quantize"
        )
    layers = []
    for name in names:
        matrix = checkpoint.packed(name)
        if matrix is None:
            raise UserError(f"{node}: {name} is not packed to 4 bits, as {IMPORT} wants it; {_other_scheme(node)}")
        layers.append(PackedLayers(checkpoint, (name,), matrix.shape, matrix.group, matrix.permutation()))
    rows = sum(layer.shape[0] for layer in layers)
    if rows != outputs:
        cut = f"{node}: has {outputs} of the {rows} outputs of {names[0]}, which {IMPORT} does not cut"
        raise UserError(f"{cut}; {_other_scheme(node)}")
    first = layers[0]
    if any(not _same(layer.permutation, first.permutation) for layer in layers):
        return layers
    return [PackedLayers(checkpoint, names, (rows, first.shape[1]), first.group, first.permutation)]


@dataclass(frozen=True)
class Importer:
    """Finds the packed layers that the nodes of a float32 graph compute, for the stage ``quantize``.

    Attributes:
        checkpoint: The checkpoint that the graph was exported from.
        matrices: Returns the names of the tensors that are stacked into a MatMul's matrix, for the node's name.
    """

    checkpoint: Checkpoint
    matrices: Callable[[str], tuple[str, ...]]

    def layers(self, node: str, outputs: int) -> list[PackedLayers]:
        """Return the packed layers that a node computes; see :func:`packed_layers`."""
        return packed_layers(self.checkpoint, self.matrices(node), node, outputs)


def _other_scheme(node: str) -> str:
    return f"name another scheme for {node} under quantize.nodes"


def _same(one: np.ndarray | None, other: np.ndarray | None) -> bool:
    return one is other or (one is not None and other is not None and np.array_equal(one, other))
