"""The Thinker: a prompt of text and sound to text, and to what the Talker reads, from a published folder."""

from qwen_omni_onnx.thinker.runtime import (
    EMBEDDING,
    GRAPH,
    GREEDY,
    MAX_NEW_TOKENS,
    GeneratedToken,
    PrefilledPrompt,
    Prompt,
    SpecialTokens,
    Thinker,
    open_graph,
    open_thinker,
    positions,
)

__all__ = [
    "EMBEDDING",
    "GRAPH",
    "GREEDY",
    "MAX_NEW_TOKENS",
    "GeneratedToken",
    "PrefilledPrompt",
    "Prompt",
    "SpecialTokens",
    "Thinker",
    "open_graph",
    "open_thinker",
    "positions",
]
