"""The run-time: published artifacts in ONNX Runtime. Needs no PyTorch, and nothing that builds the artifacts."""

from __future__ import annotations

import os
from typing import Any

# ONNX Runtime's Linux builds report usage unless this is set before their first import: whatever imports onnxruntime
# imports this package first.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__version__ = "0.1.0"
__all__ = ["CHAIN", "SHORTCUT", "__version__", "load"]


def __getattr__(name: str) -> Any:
    """Import what is asked for only then: parts of the run-time need less than all of it does."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from qwen_omni_onnx import bundle

    return getattr(bundle, name)
