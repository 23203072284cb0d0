"""The run-time: published artifacts in ONNX Runtime. Needs no PyTorch, and nothing that builds the artifacts."""

from __future__ import annotations

from typing import Any

import omni  # noqa: F401 - first of all: it switches off the telemetry of ONNX Runtime

__all__ = ["CHAIN", "SHORTCUT", "load"]


def __getattr__(name: str) -> Any:
    """Import what is asked for only then: parts of the run-time need less than all of it does."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from speech import bundle

    return getattr(bundle, name)
