"""Arrays that a user hands over as ``.npy`` files: looked at before they are read."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from qwen_omni_onnx.common.errors import UserError

__all__ = ["read_array"]


def read_array(path: Path) -> np.ndarray:
    """Return the array of a ``.npy`` file, mapped into memory: its size is known before it is read. To be copied.

    Raises:
        UserError: The path is no plain file, holds no plain array, or is shorter than it says.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file")
    if not path.is_file():  # a pipe would be waited for, and cannot be looked at twice
        raise UserError(f"{path}: not a plain file; give an array that numpy.save wrote")
    try:
        return np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # NumPy raises many kinds for a file that is not what it says
        said = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path}: cannot be read as an array ({said:.200}); write it with numpy.save") from None
