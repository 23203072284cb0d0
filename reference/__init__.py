"""Records PyTorch's outputs on the golden cases, in float32 and in bfloat16. Each component has one file."""

import omni  # noqa: F401 - imported first: it switches off ONNX Runtime's telemetry
