"""Benchmarks: each component beside its peers, and what the gates, long sounds and builds take on this machine."""

import sys

import omni  # noqa: F401 - first of all: it switches off the telemetry of ONNX Runtime

# OpenVINO and NNCF send usage to Google Analytics, unless the package that sends it cannot be imported.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
