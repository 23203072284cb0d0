"""Files that turn a conversation into the Thinker's tokens and back: as checkpoints have them."""

from __future__ import annotations

__all__ = ["CHAT_TEMPLATE", "GENERATION", "TOKENIZER"]

TOKENIZER = "tokenizer.json"  # of the library `tokenizers`
CHAT_TEMPLATE = "chat_template.jinja"
GENERATION = "generation_config.json"  # may be missing: a checkpoint need not have one
