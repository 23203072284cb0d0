"""The vocabulary that all stages share: parameters, checkpoints, components, graphs, artifacts, metrics."""

import os

# ONNX Runtime's Linux builds report usage unless this is set before their first import. Rooms that import
# onnxruntime therefore import this package first, in their own __init__.py.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
