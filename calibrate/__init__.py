"""What activations a float32 graph sees at work, from which smoothing factors and static ranges follow."""

import omni  # noqa: F401 - first of all: it switches off the telemetry of ONNX Runtime
