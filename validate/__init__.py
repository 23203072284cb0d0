"""Measures the artifacts and judges the results; it does not need PyTorch."""

import omni  # noqa: F401 - imported first: it switches off ONNX Runtime's telemetry
