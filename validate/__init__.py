"""Measure the artifacts, then judge them. Needs no PyTorch."""

import omni  # noqa: F401 - first of all: it switches off the telemetry of ONNX Runtime
