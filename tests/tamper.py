"""Breaking artifacts on purpose."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir

from qwen_omni_onnx.common import artifact


def edit(folder: Path, name: str, change: Callable[[np.ndarray], None], graph: str = "*") -> None:
    """Change one tensor in place: in the external data, or in the graph file where it is small."""
    (path,) = folder.glob(f"{graph}.onnx")
    tensor = ir.load(path).graph.initializers[name].const_value
    array = tensor.numpy().copy()
    change(array)
    if isinstance(tensor, ir.ExternalTensor):
        with Path(tensor.path).open("r+b") as file:
            file.seek(tensor.offset)
            file.write(array.tobytes())
        return
    content, before = path.read_bytes(), tensor.numpy().tobytes()
    assert content.count(before) == 1
    path.write_bytes(content.replace(before, array.tobytes()))


def reseal(folder: Path) -> None:
    """Write the manifest anew, as if the stage itself had made what is there now: hashes alone see nothing."""
    manifest = artifact.read_manifest(folder)
    for name in manifest["files"]:
        path = folder / name
        manifest["files"][name] = {"bytes": path.stat().st_size, "sha256": artifact.sha256(path)}
    artifact.write_json(folder / artifact.MANIFEST, manifest)


def flip_sign(array: np.ndarray) -> None:
    index = np.unravel_index(np.abs(array.astype(np.float64)).argmax(), array.shape)
    array[index] = -array[index]
