"""Published folders, as the run-time takes them."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from pathlib import Path

from qwen_omni_onnx.checked import check_once
from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.common.quantized import quantized_graph
from qwen_omni_onnx.published_manifest import STEM

__all__ = ["graphs_of", "published_graphs", "require_published"]


def published_graphs(
    folder: Path, component: str, stems: Sequence[str] | None = None, *, quantized: bool
) -> dict[str, Path]:
    """Return the graph files of a published folder, by stem, checked against its manifest by :func:`check_once`.

    Args:
        folder: Folder that holds ``manifest.json`` and ``onnx/``.
        component: Component that the folder must hold.
        stems: Stems of the float32 graphs; None takes the only one that the manifest names.
        quantized: Whether to take the quantized graph where there is one.

    Raises:
        UserError: The folder is not what it should be, or a file in it is not as published.
    """
    require_published(folder, component)
    manifest = check_once(folder)
    if stems is None:
        stems = list(manifest.get("interface", ()))
        if len(stems) != 1 or not STEM.fullmatch(stems[0]):  # a manifest comes from a stranger, and names a file here
            raise UserError(f"{folder}: its manifest does not name one graph; publish or download it again")
    graphs = graphs_of(folder, stems, manifest.get("quantization", {}) if quantized else ())
    for stem, path in graphs.items():
        if path.is_file():
            continue
        if stem in manifest.get("quantization", {}):
            raise UserError(f"{path}: not published, only the quantized graph is; run that, without float32")
        raise UserError(f"{path}: missing; this folder holds other graphs")
    return graphs


def require_published(folder: Path, component: str) -> None:
    """Refuse what is not the published folder of a component; nothing but its manifest is read.

    Raises:
        UserError: The folder is another one, or none.
    """
    manifest = artifact.read_manifest(folder)
    if manifest.get("kind") != "published" or manifest.get("component") != component:
        raise UserError(f"{folder}: not a published {component}; give the folder that holds its README.md and onnx/")


def graphs_of(folder: Path, stems: Iterable[str], quantized: Container[str]) -> dict[str, Path]:
    """Return the graph files of a published folder, by stem: the quantized form of those in ``quantized``."""
    onnx = folder / "onnx"
    return {stem: quantized_graph(onnx, stem) if stem in quantized else onnx / f"{stem}.onnx" for stem in stems}
