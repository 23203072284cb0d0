"""The build's vocabulary, which all stages share: parameters, checkpoints, components, graphs, reports."""

import qwen_omni_onnx  # noqa: F401 - first of all: it switches off the telemetry of ONNX Runtime
