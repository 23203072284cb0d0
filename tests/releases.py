"""Made-up published folders, which no run-time opens."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.common.identity import Model

NBYTES = 100_000  # of the weights of `published`
WEIGHTS = bytes(range(256)) * 1200  # of the quantized graph of `write_published`: 300 kB


def published(folder: Path, component: str, *, nbytes: int = NBYTES, seed: int = 0, **files: bytes) -> Path:
    """Write a published folder with a graph whose weights are noise, and the given files; return it."""
    weights = np.random.default_rng(seed).bytes(nbytes)
    graph = {f"onnx/{component}.onnx": b"graph of " + component.encode(), f"onnx/{component}.onnx.data": weights}
    return _write(folder, component, {**graph, "README.md": b"# A card\n", **files}, f"tiny-{component}-onnx")


def write_published(root: Path, component: str, changed: Mapping[str, bytes] | None = None) -> Path:
    """Write a published folder with a float32 and a quantized graph; return it.

    Args:
        root: Folder to write ``COMPONENT/NAME`` into.
        component: The component.
        changed: Files with another content, or further ones.
    """
    files = {
        "README.md": f"# {component}\n".encode(),
        "LICENSE": b"the same in every component\n",
        "config.json": b"{}\n",
        "onnx/graph.onnx": b"graph of " + component.encode(),
        "onnx/graph.onnx.data": WEIGHTS[::-1] + component.encode(),
        "onnx/graph_int8.onnx": b"quantized graph of " + component.encode(),
        "onnx/graph_int8.onnx.data": component.encode() + WEIGHTS,
        "golden/golden.safetensors": b"golden of " + component.encode(),
        **(changed or {}),
    }
    return _write(root, component, files, f"tiny-{component}", {"graph": {}})


def _write(
    root: Path, component: str, files: Mapping[str, bytes], name: str, quantization: Mapping[str, object] | None = None
) -> Path:
    place = root / component / name
    place.parent.mkdir(parents=True, exist_ok=True)
    facts = {
        "kind": "published",
        "name": name,
        "component": component,
        "synthetic_weights": True,
        "source": {"kind": "synthetic", "model": Model("Qwen2.5-Omni-Tiny", license="apache-2.0").record()},
        "quantization": quantization or {},
    }
    with artifact.writing(place, **facts) as beside:
        for file, content in files.items():
            (beside / file).parent.mkdir(exist_ok=True)
            (beside / file).write_bytes(content)
    return place
