"""What each component is fed, recorded: clips go through the float32 graphs of one after another."""

import omni  # noqa: F401 - first of all: it switches off the telemetry of ONNX Runtime
