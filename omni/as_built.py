"""Whether what was published is what was built: its graphs, weights and golden cases, beside the artifacts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qwen_omni_onnx.common import artifact, golden

__all__ = ["as_built"]

_BUILT = (
    "onnx",
    "golden",
)  # folders of what is built; what else there is holds what was measured, or is the checkpoint's


def as_built(manifest: Mapping[str, Any], folders: Mapping[str, Path]) -> dict[str, bool]:
    """Return whether each published file of what is built has the bytes of the artifact that is here.

    Args:
        manifest: Manifest of the published folder.
        folders: Artifacts of the component: ``onnx``, ``quantized`` and ``reference``.
    """
    here = {
        file: entry["sha256"]
        for kind in ("onnx", "quantized", "reference")
        for file, entry in artifact.read_manifest(folders[kind])["files"].items()
        if kind != "reference" or file == golden.FILE
    }
    published = {name: entry for name, entry in manifest["files"].items() if name.partition("/")[0] in _BUILT}
    return {name: here.get(name.partition("/")[2]) == entry["sha256"] for name, entry in published.items()}
