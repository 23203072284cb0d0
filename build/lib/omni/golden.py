"""Golden cases: inputs, and the outputs that PyTorch gave for them. They travel from ``reference`` to the user.

One safetensors file; the tensor ``<case>/<port>`` belongs to the input or output of that name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from omni.errors import Problem

__all__ = ["FILE", "cases", "read", "save"]

FILE = "golden.safetensors"


def save(path: Path, golden: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Write all cases: ``{case: {port: array}}``."""
    flat = {
        f"{case}/{port}": np.ascontiguousarray(array) for case, ports in golden.items() for port, array in ports.items()
    }
    save_file(flat, path)


def cases(path: Path) -> list[str]:
    """Names of the cases in a file.

    Raises:
        Problem: the file is missing, or holds none.
    """
    with _opened(path) as file:
        found = sorted({name.partition("/")[0] for name in file.keys()})  # noqa: SIM118 - not a dict
    if not found:
        raise Problem(f"{path}: holds no golden case")
    return found


def read(path: Path) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Yield the cases one at a time, as ``(case, {port: array})``."""
    for case in cases(path):
        with _opened(path) as file:
            keys = [name for name in file.keys() if name.startswith(f"{case}/")]  # noqa: SIM118
            yield case, {name.partition("/")[2]: file.get_tensor(name) for name in keys}


def _opened(path: Path) -> safe_open:
    try:
        return safe_open(path, "numpy")
    except FileNotFoundError:
        raise Problem(f"{path}: no golden cases here; run python -m export.reference") from None
    except SafetensorError as error:
        raise Problem(f"{path}: golden cases cannot be read ({error})") from None
