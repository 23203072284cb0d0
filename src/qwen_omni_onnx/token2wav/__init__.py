"""token2wav: codec codes to sound, whole or as a stream, from the three graphs of a published folder."""

from qwen_omni_onnx.token2wav.runtime import Token2Wav, open_token2wav, read_variants, voice_noise
from qwen_omni_onnx.token2wav.stream import Stream, Window, stream

__all__ = ["Stream", "Token2Wav", "Window", "open_token2wav", "read_variants", "stream", "voice_noise"]
