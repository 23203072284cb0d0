"""Embedding tables, read row by row from the file that they lie in."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from qwen_omni_onnx.common.errors import UserError

__all__ = ["EmbeddingTable"]


class EmbeddingTable:
    """A table [vocabulary, width] in a ``.npy`` file, mapped and not loaded: only rows that are asked for are read.

    Its values are float32 or float16, or bfloat16 as UINT16: the upper half of a float32's bits.

    Raises:
        UserError: There is no such file, or not such a table.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._table = np.load(path, mmap_mode="r")
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"{path}: cannot be read as an embedding table ({error})") from None
        if self._table.ndim != 2 or self._table.dtype not in (np.float32, np.float16, np.uint16):
            raise UserError(f"{path}: {self._table.dtype} {list(self._table.shape)} is no embedding table")
        self._path = path

    @property
    def vocabulary(self) -> int:
        """Number of rows."""
        return int(self._table.shape[0])

    @property
    def width(self) -> int:
        """Width of each row."""
        return int(self._table.shape[1])

    def __call__(self, ids: np.ndarray | int) -> np.ndarray:
        """Return the rows of ``ids`` [...], [..., width] float32.

        Raises:
            UserError: There is no such row.
        """
        wanted = np.asarray(ids)
        if wanted.size and not 0 <= wanted.min() <= wanted.max() < self.vocabulary:
            outside = wanted[(wanted < 0) | (wanted >= self.vocabulary)].flat[0]
            raise UserError(f"{self._path.name}: no row {outside}; it has {self.vocabulary}")
        rows = np.asarray(self._table[wanted])
        if rows.dtype == np.uint16:
            return (rows.astype(np.uint32) << 16).view(np.float32)
        return rows.astype(np.float32)
