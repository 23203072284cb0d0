"""From PyTorch to ONNX, in bounded memory. One file a component, and the two steps that all share."""
