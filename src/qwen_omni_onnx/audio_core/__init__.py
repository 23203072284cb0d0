"""Sound to sound in one graph, from a published folder."""

from qwen_omni_onnx.audio_core.runtime import AudioCore, open_audio_core

__all__ = ["AudioCore", "open_audio_core"]
