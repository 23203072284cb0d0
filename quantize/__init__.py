"""A float32 graph becomes its quantized sibling. Schemes are properties of a graph, not of a component."""

import omni  # noqa: F401 - first of all: it switches off the telemetry of ONNX Runtime
