"""Texts and dialogues as the Thinker reads them: rows of its embedding table."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from omni.component import Component
from omni.inputs import TEXT, Recording
from omni.texts import documents, token_ids
from qwen_omni_onnx.common.configuration import read_config
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.embedding import EmbeddingTable
from qwen_omni_onnx.text.chat import SYSTEM, Chat
from qwen_omni_onnx.thinker.prompts import EMBEDDING, SpecialTokens

__all__ = ["record_texts"]

_MAX_TOKENS = 512  # of a text: calibration computes the logits of every token, 152,064 floats each


def record_texts(folder: Path, component: Component) -> Iterator[Recording]:
    """Yield the embeddings of each text and dialogue in a folder, [tokens, width] float32.

    A dialogue has the system prompt that Qwen2.5-Omni was trained with. What has more than ``_MAX_TOKENS`` tokens is
    cut: see :func:`omni.texts.token_ids`.

    Args:
        folder: Folder of the texts of one split.
        component: The Thinker, with whose tokenizer they are encoded.

    Raises:
        UserError: The component reads no text; the folder or a file in it is not usable.
    """
    if not component.text:
        raise UserError(f"inputs.texts: {component.name} reads no text; give texts to the Thinker")
    onnx = Path("models/onnx") / component.name
    chat = Chat(onnx, SpecialTokens.of(read_config(onnx)).sound)
    embedding = EmbeddingTable(onnx / EMBEDDING)
    for name, document in documents(folder):
        ids, reply = token_ids(chat, document, system=SYSTEM, limit=_MAX_TOKENS)
        yield Recording(f"{TEXT}{name}", embedding(ids), reply)
