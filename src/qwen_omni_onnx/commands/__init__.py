"""The commands of ``qwen-omni-onnx``, one a file: ``speak``, ``listen``, ``vocode``, ``verify``."""
