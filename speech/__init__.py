"""The run-time: published artifacts in ONNX Runtime. Needs no PyTorch, and nothing that builds the artifacts."""

from __future__ import annotations

from typing import Any

import omni  # noqa: F401 - first of all: it switches off the telemetry of ONNX Runtime

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    """Import ``load`` when it is asked for: parts of the run-time need less than all of it does."""
    if name != "load":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from speech.bundle import load

    return load
