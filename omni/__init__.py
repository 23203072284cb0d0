"""Modules that all stages of the build share: parameters, checkpoints, components, graphs, reports."""

import qwen_omni_onnx  # noqa: F401 - imported first: it switches off ONNX Runtime's telemetry
