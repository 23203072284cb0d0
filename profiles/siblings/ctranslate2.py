"""CTranslate2's file format: ``model.bin``, all variables of a model one after another.

Little-endian; a string is its length in two bytes, the terminating zero counted, and its bytes::

    version u32, specification string, revision u32
    number of variables u32, and for each: name string, rank u8, dimensions u32 each, type u8, bytes u32, data
    number of aliases u32, and for each: alias string, name string

Source: ``ModelSpec._serialize`` in CTranslate2's ``python/ctranslate2/specs/model_spec.py``.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from qwen_omni_onnx.common.errors import UserError

__all__ = ["read"]

_VERSION = 6
_TYPES = (np.float32, np.int8, np.int16, np.int32, np.float16)


class _Cursor:
    """Reads values from bytes, one after another."""

    def __init__(self, content: bytes) -> None:
        self._content, self._position = content, 0

    def number(self, kind: str) -> int:
        """Return an unsigned integer: ``B`` of one byte, ``H`` of two, ``I`` of four."""
        (value,) = struct.unpack(f"<{kind}", self.take(struct.calcsize(kind)))
        return int(value)

    def string(self) -> str:
        return self.take(self.number("H"))[:-1].decode("utf-8")

    def array(self) -> np.ndarray:
        shape = [self.number("I") for _ in range(self.number("B"))]
        dtype = np.dtype(_TYPES[self.number("B")]).newbyteorder("<")
        return np.frombuffer(self.take(self.number("I")), dtype).reshape(shape)

    def take(self, size: int) -> bytes:
        start, self._position = self._position, self._position + size
        if self._position > len(self._content):
            raise EOFError
        return self._content[start : self._position]


def read(path: Path) -> dict[str, np.ndarray]:
    """Return the variables of a model by name, each in the dtype and shape that it is stored in.

    Raises:
        UserError: The file is not of this format, or is cut.
    """
    cursor = _Cursor(path.read_bytes())
    try:
        version = cursor.number("I")
        if version != _VERSION:
            raise UserError(f"{path.name}: version {version} of CTranslate2's format; {_VERSION} is read")
        cursor.string(), cursor.number("I")  # specification and its revision
        variables = {}
        for _ in range(cursor.number("I")):
            name = cursor.string()
            variables[name] = cursor.array()
        for _ in range(cursor.number("I")):
            alias = cursor.string()
            variables[alias] = variables[cursor.string()]
    except (EOFError, IndexError, KeyError, ValueError):
        raise UserError(f"{path.name}: not a whole file of CTranslate2's format") from None
    return variables
