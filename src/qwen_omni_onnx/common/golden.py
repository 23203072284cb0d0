"""Golden cases: inputs, and the outputs that PyTorch gave for them. They travel from ``reference`` to the user.

One safetensors file; the tensor ``<case>/<port>`` belongs to the input or output of that name. With them travels the
yardstick, what PyTorch gave for the same inputs in bfloat16: ``<case>/bfloat16/<port>``. Numbers that bfloat16 can hold
are UINT16, the upper halves of float32 (NumPy has no bfloat16, and a user needs no package for it); others, as what was
added up in float32, are float32. The file's metadata says how it was made.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from qwen_omni_onnx.common.errors import UserError

__all__ = ["FILE", "cases", "read", "read_yardstick", "save"]

FILE = "golden.safetensors"
_YARDSTICK = "bfloat16/"
Cases = Mapping[str, Mapping[str, np.ndarray]]


def save(path: Path, golden: Cases, yardstick: Cases | None = None, how: Mapping[str, str] | None = None) -> None:
    """Write all cases.

    Args:
        path: Path of the file.
        golden: Golden cases, ``{case: {port: array}}``, inputs and outputs.
        yardstick: Yardstick's cases, ``{case: {port: array}}``, float32 outputs alone.
        how: What the file's metadata says about the yardstick.
    """
    flat = {f"{case}/{port}": array for case, ports in golden.items() for port, array in ports.items()}
    for case, ports in (yardstick or {}).items():
        flat |= {f"{case}/{_YARDSTICK}{port}": _halved(array) for port, array in ports.items()}
    save_file({name: np.ascontiguousarray(array) for name, array in flat.items()}, path, metadata=dict(how or {}))


def cases(path: Path) -> list[str]:
    """Names of the cases in a file.

    Raises:
        UserError: The file is missing, or holds none.
    """
    with _opened(path) as file:
        found = sorted({name.partition("/")[0] for name in file.keys()})  # noqa: SIM118 - not a dict
    if not found:
        raise UserError(f"{path}: holds no golden case")
    return found


def read(path: Path) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Yield the cases one at a time, as ``(case, {port: array})``."""
    for case in cases(path):
        with _opened(path) as file:
            yield case, {port: file.get_tensor(f"{case}/{port}") for port in _ports(file, case, yardstick=False)}


def read_yardstick(path: Path, case: str) -> dict[str, np.ndarray]:
    """Return what PyTorch gave for a case in bfloat16, as float32: nothing where that was not recorded."""
    with _opened(path) as file:
        ports = _ports(file, case, yardstick=True)
        return {port.removeprefix(_YARDSTICK): _widened(file.get_tensor(f"{case}/{port}")) for port in ports}


def _ports(file: safe_open, case: str, *, yardstick: bool) -> list[str]:
    """Return what follows the case in the names of its tensors: those of the yardstick, or the others."""
    ports = [name.removeprefix(f"{case}/") for name in file.keys() if name.startswith(f"{case}/")]  # noqa: SIM118
    return [port for port in ports if port.startswith(_YARDSTICK) == yardstick]


def _halved(array: np.ndarray) -> np.ndarray:
    """Return float32 numbers as UINT16 if bfloat16 can hold every one of them, or else as they are."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    return array if (bits & 0xFFFF).any() else (bits >> 16).astype(np.uint16)


def _widened(stored: np.ndarray) -> np.ndarray:
    return stored if stored.dtype == np.float32 else (stored.astype(np.uint32) << 16).view(np.float32)


def _opened(path: Path) -> safe_open:
    try:
        return safe_open(path, "numpy")
    except FileNotFoundError:
        raise UserError(f"{path}: no golden cases here; run python -m reference") from None
    except SafetensorError as error:
        raise UserError(f"{path}: golden cases cannot be read ({error})") from None
