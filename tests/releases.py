"""Tiny published folders, which no run-time opens."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.common.identity import Model

WEIGHTS = 100_000  # bytes


def published(folder: Path, component: str, *, nbytes: int = WEIGHTS, seed: int = 0, **files: bytes) -> Path:
    """Write a published folder with a graph whose weights are noise, and the given files; return it."""
    place = folder / component / f"tiny-{component}-onnx"
    facts = {
        "kind": "published",
        "name": place.name,
        "component": component,
        "synthetic_weights": True,
        "source": {"kind": "synthetic", "model": Model("Qwen2.5-Omni-Tiny", license="apache-2.0").record()},
        "quantization": {},
    }
    with artifact.writing(place, **facts) as beside:
        (beside / "onnx").mkdir()
        (beside / f"onnx/{component}.onnx").write_bytes(b"graph of " + component.encode())
        (beside / f"onnx/{component}.onnx.data").write_bytes(np.random.default_rng(seed).bytes(nbytes))
        (beside / "README.md").write_bytes(b"# A card\n")
        for name, content in files.items():
            (beside / name).write_bytes(content)
    return place
