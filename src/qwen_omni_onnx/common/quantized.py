"""How the file of a quantized graph is named: after the float32 one, and after how most of its weights are stored."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qwen_omni_onnx.common.errors import UserError

__all__ = ["float32_files", "quantized_graph", "quantized_stem"]


def quantized_stem(stem: str, scheme: str) -> str:
    """Return ``<stem>_int8``, or ``<stem>_int4`` where that is the scheme of most weights."""
    return f"{stem}_{'int4' if scheme.startswith('int4') else 'int8'}"


def quantized_graph(folder: Path, stem: str) -> Path:
    """Return the file of the quantized form of a graph.

    Raises:
        UserError: There is none in the folder, or more than one.
    """
    found = sorted(folder.glob(f"{stem}_int[48].onnx"))
    if len(found) != 1:
        raise UserError(f"{folder}: {len(found)} quantized graphs of {stem}, not one; run dvc repro, or download again")
    return found[0]


def float32_files(manifest: Mapping[str, Any]) -> set[str]:
    """Return the names of the files of those float32 graphs that have a quantized form, too: a download may lack them.

    Args:
        manifest: Manifest of a published folder, which may be a stranger's.
    """
    quantized = manifest.get("quantization")
    stems = quantized if isinstance(quantized, dict) else {}
    return {f"onnx/{stem}.onnx{end}" for stem in stems for end in ("", ".data")}
