"""The Talker: what the Thinker says to codec codes, 50 a second, from a published folder."""

from qwen_omni_onnx.talker.runtime import (
    EMBEDDING,
    GRAPH,
    MAX_NEW_CODES,
    SAMPLING,
    Talker,
    open_talker,
    positions,
    talker_prompt,
    talker_reply,
)

__all__ = [
    "EMBEDDING",
    "GRAPH",
    "MAX_NEW_CODES",
    "SAMPLING",
    "Talker",
    "open_talker",
    "positions",
    "talker_prompt",
    "talker_reply",
]
