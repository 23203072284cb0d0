"""Stage 3: calibrate a float32 graph, then write its quantized sibling. Properties of a graph, not of one component."""

import omni  # noqa: F401 - first of all: it switches off the telemetry of ONNX Runtime
