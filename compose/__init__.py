"""The graphs of several components put together into one, and what it is compared with."""

import omni  # noqa: F401 - first of all: it switches off the telemetry of ONNX Runtime
