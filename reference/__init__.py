"""What PyTorch gives for the golden cases. One file a component, and the two precisions that all share."""

import omni  # noqa: F401 - first of all: it switches off the telemetry of ONNX Runtime
