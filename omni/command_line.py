"""Command lines of the stages: those of the run-time, as they are."""

from __future__ import annotations

from qwen_omni_onnx.common.command_line import run_app

__all__ = ["run_app"]
