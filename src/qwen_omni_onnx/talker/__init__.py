"""The Talker: what the Thinker says to codec codes, 50 a second, from a published folder."""

from qwen_omni_onnx.talker.runtime import SAMPLING, Talker, open_talker, talker_prompt, talker_reply

__all__ = ["SAMPLING", "Talker", "open_talker", "talker_prompt", "talker_reply"]
