"""Records the inputs of each component: clips run through the float32 graphs of one component after another."""

import omni  # noqa: F401 - imported first: it switches off ONNX Runtime's telemetry
