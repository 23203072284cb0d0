"""Composes the graphs of several components into one, and records the outputs that it is compared with."""

import omni  # noqa: F401 - imported first: it switches off ONNX Runtime's telemetry
