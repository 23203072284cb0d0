"""Codes of matrices whose rounding errors are compensated, a file for each.

The stage ``python -m quantize.compensate`` writes them. They are stored and not computed anew when a graph is
quantized, because that takes all calibration clips.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from omni import nbits
from omni.streamed import row_blocks
from qwen_omni_onnx.common import output
from qwen_omni_onnx.common.errors import UserError

__all__ = ["Codes"]

_COLUMNS = "int8"  # of a matrix [in, out] with a scale for each output, which quantize computes itself
_BLOCKS = ("values", "scales", "zero_points")


class Codes:
    """Codes of one graph's compensated nodes.

    Args:
        folder: Folder with a file for each node.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def has(self, node: str) -> bool:
        """Return whether a node has codes here."""
        return self._file(node).is_file()

    def link(self, folder: Path) -> None:
        """Give the files of all nodes another name in a folder, which takes no more of the disk."""
        folder.mkdir()
        for file in sorted(self._folder.iterdir()):
            os.link(file, folder / file.name)

    def write_columns(self, node: str, codes: np.ndarray) -> None:
        """Write codes INT8 [in, out] of a matrix that has a scale for each output."""
        self._write(node, {_COLUMNS: codes})

    def write_blocks(self, node: str, rows: nbits.BlockRows) -> None:
        """Write all rows of a matrix in MatMulNBits's layout."""
        arrays = zip(_BLOCKS, (rows.values, rows.scales, rows.zero_points), strict=True)
        self._write(node, {name: array for name, array in arrays if array is not None})

    def columns(self, node: str) -> Iterator[np.ndarray]:
        """Yield consecutive rows [some, out] of the codes that :meth:`write_columns` wrote."""
        return self._slices(node, _COLUMNS)

    def matrix(self, node: str, shape: tuple[int, int], block: int, bits: int) -> nbits.BlockMatrix:
        """Return the matrix that :meth:`write_blocks` wrote; it is read when it is written to a graph.

        Args:
            node: Name of the node.
            shape: Numbers of outputs and inputs.
            block: Number of inputs that share a scale.
            bits: Bits of a code.
        """
        values, scales, zero_points = (partial(self._slices, node, name) for name in _BLOCKS)
        return nbits.BlockMatrix(shape, block, bits, values, scales, zero_points if bits != 8 else None)

    def _write(self, node: str, arrays: dict[str, np.ndarray]) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        with output.writing(self._file(node)) as beside:
            save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, beside)

    def _slices(self, node: str, name: str) -> Iterator[np.ndarray]:
        path = self._file(node)
        if not path.is_file():
            raise UserError(f"{path}: missing; {node} is compensated: run python -m quantize.compensate again")
        with safe_open(path, "numpy") as file:
            stored = file.get_slice(name)
            shape = stored.get_shape()
            for rows in row_blocks(shape[0], int(np.prod(shape[1:])) * 4):
                yield stored[rows]

    def _file(self, node: str) -> Path:
        return self._folder / f"{node.replace('/', '.')}.safetensors"
