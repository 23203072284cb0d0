"""Linear layers that a checkpoint holds in 4 bits, as ONNX Runtime's ``MatMulNBits`` takes them: ``int4-import``.

Nothing is rounded again: codes, zero points and scales are the checkpoint's own, only laid out anew, in a stream.
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
    """Layers that read the same activation, one below the other, as one ``MatMulNBits``.

    Attributes:
        checkpoint: Where they are.
        names: Names of their weights.
        shape: Outputs of all, and inputs.
        group: Inputs that share a scale and a zero point: the operator's block.
        permutation: What orders the activation's channels as the codes are stored, [in]; None where it need not be.
    """

    checkpoint: Checkpoint
    names: tuple[str, ...]
    shape: tuple[int, int]
    group: int
    permutation: np.ndarray | None

    @property
    def leaf(self) -> str:
        """The last part of the first one's name: ``q_proj``."""
        return self.names[0].split(".")[-2]

    @property
    def matrix(self) -> nbits.BlockMatrix:
        """All of them, one below the other, as the operator takes them."""
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
        """Yield one after another: each keeps the checkpoint mapped only while it is read."""
        for name in self.names:
            matrix = self.checkpoint.packed(name)
            assert matrix is not None, "packed_layers has seen it"
            yield matrix


def packed_layers(checkpoint: Checkpoint, names: tuple[str, ...], node: str, outputs: int) -> list[PackedLayers]:
    """Return layers that read the same activation, as one; or one by one, where their inputs are ordered differently.

    Args:
        checkpoint: Where they are.
        names: Names of their weights.
        node: The MatMul that they stand for, for messages.
        outputs: Outputs that it has.

    Raises:
        UserError: A layer is not packed, or only a slice of it is wanted, or its inputs cannot be ordered into whole
            groups.
    """
    if not checkpoint.is_packed:
        raise UserError(
            f"{checkpoint.folder}: no tensor named qweight in it; {IMPORT} is for checkpoints that AutoAWQ, GPTQ or "
            "AutoRound wrote in 4 bits: pull one, or name another scheme under quantize"
        )
    found = []
    for name in names:
        matrix = checkpoint.packed(name)
        if matrix is None:
            raise UserError(f"{node}: {name} is not packed to 4 bits, as {IMPORT} wants it; {_otherwise(node)}")
        found.append(PackedLayers(checkpoint, (name,), matrix.shape, matrix.group, matrix.permutation()))
    rows = sum(layer.shape[0] for layer in found)
    if rows != outputs:
        cut = f"{node}: has {outputs} of the {rows} outputs of {names[0]}, which {IMPORT} does not cut"
        raise UserError(f"{cut}; {_otherwise(node)}")
    first = found[0]
    if any(not _same(layer.permutation, first.permutation) for layer in found):
        return found
    return [PackedLayers(checkpoint, names, (rows, first.shape[1]), first.group, first.permutation)]


@dataclass(frozen=True)
class Importer:
    """What the stage ``quantize`` asks for the packed layers behind a float32 graph's nodes.

    Attributes:
        checkpoint: The source that the graph was exported from.
        matrices: The tensors that make up a MatMul's matrix, by the node's name.
    """

    checkpoint: Checkpoint
    matrices: Callable[[str], tuple[str, ...]]

    def layers(self, node: str, outputs: int) -> list[PackedLayers]:
        """Return the layers behind a node; see :func:`packed_layers`."""
        return packed_layers(self.checkpoint, self.matrices(node), node, outputs)


def _otherwise(node: str) -> str:
    return f"name another scheme for {node} under quantize.nodes"


def _same(one: np.ndarray | None, other: np.ndarray | None) -> bool:
    return one is other or (one is not None and other is not None and np.array_equal(one, other))
