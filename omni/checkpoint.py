"""One component's tensors, read lazily from a safetensors file: never all in memory.

The header is parsed here and not by the safetensors library, because the same strict check also serves a header that
is downloaded before any tensor (https://huggingface.co/docs/safetensors#format).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from omni.packed import PackedMatrix, packed_format
from qwen_omni_onnx.common.configuration import read_config
from qwen_omni_onnx.common.errors import UserError

__all__ = [
    "DTYPES",
    "HEADER_LENGTH_BYTES",
    "Checkpoint",
    "TensorEntry",
    "TensorSpec",
    "encode_header",
    "header_length",
    "parse_header",
    "require_finite",
]

DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
HEADER_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 100_000_000  # the safetensors library's own limit
_MAX_DIMENSIONS = 64  # numpy's own limit
_BLOCK_BYTES = 16 * 2**20
_WEIGHT, _QWEIGHT = ".weight", ".qweight"
_PACKED_SUFFIXES = ("qweight", "qzeros", "scales", "g_idx")


@dataclass(frozen=True)
class TensorSpec:
    """Dtype of a tensor, by its name in safetensors, and its shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Size of the tensor's values in bytes."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


@dataclass(frozen=True)
class TensorEntry:
    """A tensor in a safetensors file: its spec, and the offsets of its first byte and of the byte after its last."""

    spec: TensorSpec
    start: int
    end: int


def header_length(first_bytes: bytes, file_bytes: int, where: str) -> int:
    """Return the length of the JSON header that the file's first 8 bytes announce.

    Raises:
        UserError: The file has fewer than 8 bytes, or the header is longer than the format allows or than the file.
    """
    if len(first_bytes) < HEADER_LENGTH_BYTES:
        raise UserError(f"{where}: not a safetensors file (only {file_bytes} bytes)")
    length = int.from_bytes(first_bytes[:HEADER_LENGTH_BYTES], "little")
    if length > _MAX_HEADER_BYTES:
        raise UserError(f"{where}: header of {length} bytes; safetensors allows at most {_MAX_HEADER_BYTES}")
    if HEADER_LENGTH_BYTES + length > file_bytes:
        raise UserError(
            f"{where}: header of {length} bytes in a file of {file_bytes} bytes; it is cut off or not whole"
        )
    return length


def parse_header(header: bytes, file_bytes: int, where: str) -> dict[str, TensorEntry]:
    """Parse the JSON header of a safetensors file of ``file_bytes`` bytes.

    Raises:
        UserError: The header is not JSON; a dtype is unknown; a shape does not fill its byte range; a range lies
            outside the file; ranges overlap or leave holes.
    """
    try:
        table = json.loads(header.decode("utf-8"), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: header is not valid JSON ({error})") from None
    if not isinstance(table, dict):
        raise UserError(f"{where}: header is not a JSON object")
    data_start = HEADER_LENGTH_BYTES + len(header)
    entries = {
        name: _entry(name, fields, data_start, file_bytes, where)
        for name, fields in table.items()
        if name != "__metadata__"
    }
    position, before = data_start, "the header"
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)):
        if entry.start != position:
            fault = "overlaps" if entry.start < position else "leaves a hole behind"
            raise UserError(f"{where}: tensor {name!r} {fault} {before}")
        position, before = entry.end, f"tensor {name!r}"
    if position != file_bytes:
        raise UserError(f"{where}: {file_bytes} bytes, but its header describes {position}")
    return entries


def encode_header(specs: Mapping[str, TensorSpec]) -> bytes:
    """Return the first bytes of a safetensors file that holds ``specs``, in this order, without gaps."""
    table, position = {}, 0
    for name, spec in specs.items():
        table[name] = {
            "dtype": spec.dtype,
            "shape": list(spec.shape),
            "data_offsets": [position, position + spec.nbytes],
        }
        position += spec.nbytes
    header = json.dumps(table, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # the format asks for tensors aligned to 8 bytes
    return len(header).to_bytes(HEADER_LENGTH_BYTES, "little") + header


class Checkpoint:
    """The folder that ``pull`` writes: configuration files and one ``model.safetensors``.

    Tensors are read on demand. A linear layer that is packed to 4 bits (``X.qweight`` in place of ``X.weight``)
    reads as ``X.weight`` [out, in] float32, dequantized by its format's own formula: :mod:`omni.packed`.

    Attributes:
        folder: Folder of the checkpoint.
        config: Content of ``config.json``, and of the other configuration files under their stems.
        path: The safetensors file.
        entries: The tensors as they are stored, by name.

    Raises:
        UserError: A file is missing from the folder, or is not valid.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = read_config(folder)
        self.path = folder / "model.safetensors"
        if not self.path.is_file():
            raise UserError(f"{self.path}: missing; run python -m pull {folder.name}")
        size = self.path.stat().st_size
        with self.path.open("rb") as file:
            length = header_length(file.read(HEADER_LENGTH_BYTES), size, str(self.path))
            self.entries = parse_header(file.read(length), size, str(self.path))

    @property
    def is_packed(self) -> bool:
        """Whether any linear layer is packed to 4 bits."""
        return any(name.endswith(_QWEIGHT) for name in self.entries)

    def spec(self, name: str) -> TensorSpec:
        """Return dtype and shape of a tensor.

        Raises:
            UserError: There is no such tensor.
        """
        packed = self.packed(name)
        return TensorSpec("F32", packed.shape) if packed else self._entry(name).spec

    def packed(self, name: str) -> PackedMatrix | None:
        """Return the linear layer whose weight has this name, if it is packed to 4 bits; None if it is not.

        A layer is packed if its tensors are, whatever the configuration says. The file stays memory-mapped for as long
        as the matrix is referenced.

        Raises:
            UserError: The format is not supported, or the tensors do not have the shapes and dtypes of the format.
        """
        module = name.removesuffix(_WEIGHT)
        if name in self.entries or module == name or module + _QWEIGHT not in self.entries:
            return None
        stored = {suffix: f"{module}.{suffix}" for suffix in _PACKED_SUFFIXES}
        tensors = {suffix: self._mapped(full) for suffix, full in stored.items() if full in self.entries}
        return PackedMatrix(module, packed_format(self.config), tensors)

    def read(self, name: str) -> np.ndarray:
        """Return a whole tensor in its stored dtype, or in float32 if it is packed."""
        packed = self.packed(name)
        if packed:
            return packed.dequantized(slice(None))
        entry = self._entry(name)
        flat = np.fromfile(self.path, DTYPES[entry.spec.dtype], count=math.prod(entry.spec.shape), offset=entry.start)
        return flat.reshape(entry.spec.shape)

    def read_rows(self, name: str, rows: slice) -> np.ndarray:
        """Return consecutive rows along the first axis, as :meth:`read` returns a tensor; only their bytes are read."""
        packed = self.packed(name)
        if packed:
            return packed.dequantized(rows)
        entry = self._entry(name)
        row_shape, dtype = entry.spec.shape[1:], DTYPES[entry.spec.dtype]
        start, stop, _ = rows.indices(entry.spec.shape[0])
        size = math.prod(row_shape)
        flat = np.fromfile(
            self.path, dtype, count=(stop - start) * size, offset=entry.start + start * size * dtype.itemsize
        )
        return flat.reshape(-1, *row_shape)

    def _mapped(self, name: str) -> np.ndarray:
        entry = self._entry(name)
        if not entry.spec.nbytes:  # nothing to map
            return np.empty(entry.spec.shape, DTYPES[entry.spec.dtype])
        return np.memmap(self.path, DTYPES[entry.spec.dtype], "r", entry.start, entry.spec.shape).view(np.ndarray)

    def _entry(self, name: str) -> TensorEntry:
        if name not in self.entries:
            raise UserError(f"{self.path}: no tensor {name}; pull the component again")
        return self.entries[name]


def require_finite(path: Path, name: str, entry: TensorEntry) -> Iterator[bytes]:
    """Yield a tensor's bytes in blocks, each checked for NaN and infinity.

    Raises:
        UserError: A value is NaN or infinite; the message gives its flat index. The file ends within the tensor.
    """
    dtype = DTYPES[entry.spec.dtype]
    with path.open("rb") as file:
        file.seek(entry.start)
        seen = 0
        while seen < entry.spec.nbytes:
            block = file.read(min(_BLOCK_BYTES, entry.spec.nbytes - seen))
            if not block:
                raise UserError(f"{path}: ends within tensor {name}")
            if dtype.kind in "fV":
                values = np.frombuffer(block, dtype)
                finite = np.isfinite(values)
                if not finite.all():
                    bad = int(np.argmin(finite))
                    index = seen // dtype.itemsize + bad
                    raise UserError(f"{path.name}: tensor {name} holds {float(values[bad])} at flat index {index}")
            yield block
            seen += len(block)


def _entry(name: str, fields: Any, data_start: int, file_bytes: int, where: str) -> TensorEntry:
    # The name is untrusted text: its repr keeps a message on one line.
    try:
        dtype, shape, (begin, end) = fields["dtype"], fields["shape"], fields["data_offsets"]
        numbers = (*shape, begin, end) if isinstance(shape, list) else ()
    except (TypeError, KeyError, ValueError):
        numbers = ()
    if not numbers or not all(type(n) is int and 0 <= n < 2**63 for n in numbers) or len(shape) > _MAX_DIMENSIONS:
        raise UserError(f"{where}: tensor {name!r}: not a valid entry of dtype, shape and data_offsets")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise UserError(f"{where}: tensor {name!r}: dtype {dtype!r} is not supported")
    spec = TensorSpec(dtype, tuple(shape))
    if end - begin != spec.nbytes:
        raise UserError(f"{where}: tensor {name!r}: {spec} is {spec.nbytes} bytes, its offsets span {end - begin}")
    if data_start + end > file_bytes:
        raise UserError(
            f"{where}: tensor {name!r}: ends at byte {data_start + end}, beyond the file's {file_bytes} bytes"
        )
    return TensorEntry(spec, data_start + begin, data_start + end)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for name, value in pairs:
        if name in table:
            raise ValueError(f"the name {name!r} stands twice")
        table[name] = value
    return table
