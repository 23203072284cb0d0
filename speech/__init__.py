"""The run-time: published artifacts in ONNX Runtime. Needs no PyTorch, and nothing that builds the artifacts."""

import omni  # noqa: F401 - first of all: it switches off the telemetry of ONNX Runtime
