"""Calibrates a float32 graph: activation statistics, from which smoothing factors and static ranges follow."""

import omni  # noqa: F401 - imported first: it switches off ONNX Runtime's telemetry
