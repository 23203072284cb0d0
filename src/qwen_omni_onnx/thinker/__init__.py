"""The Thinker: a prompt of text and sound to text, and to what the Talker reads, from a published folder."""

from qwen_omni_onnx.thinker.prompts import Prompt
from qwen_omni_onnx.thinker.runtime import GeneratedToken, PrefilledPrompt, Thinker, open_thinker

__all__ = ["GeneratedToken", "PrefilledPrompt", "Prompt", "Thinker", "open_thinker"]
