"""A conversation to the Thinker's tokens and back, with the checkpoint's own tokenizer and chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.common.generation import max_new_tokens, read_generation_config
from qwen_omni_onnx.common.text import CHAT_TEMPLATE, TOKENIZER
from qwen_omni_onnx.sampling import Sampling, checkpoint_sampling
from qwen_omni_onnx.text.chat_template import compile_template
from qwen_omni_onnx.text.control_tokens import MessageEncoder, require_unicode

__all__ = ["SYSTEM", "Chat", "Message", "TextStream", "conversation", "with_system"]

Message = Mapping[
    str, Any
]  # {"role": ..., "content": text, or parts {"type": "text", "text": ...} | {"type": "audio"}}

# What Qwen2.5-Omni was told while it learned to speak; with another system prompt, its speech is not what it could be.
SYSTEM = (
    "You are Qwen, a virtual human developed by the Qwen Team, Alibaba Group, capable of perceiving auditory and "
    "visual inputs, as well as generating text and speech."
)


def conversation(text: str | None, sounds: int, system: str = SYSTEM) -> list[Message]:
    """Return the messages of one question: so many sounds, then text.

    Raises:
        UserError: There is neither sound nor text; a text is not Unicode.
    """
    require_unicode(text or "", "text")
    require_unicode(system, "system prompt")
    content = [{"type": "audio"}] * sounds + ([{"type": "text", "text": text}] if text else [])
    if not content:
        raise UserError("nothing to reply to: give a sound, a text, or both")
    return with_system([{"role": "user", "content": content}], system)


def with_system(messages: Sequence[Message], system: str | None = None) -> list[Message]:
    """Return a conversation that begins with a system prompt.

    Args:
        messages: The conversation.
        system: System prompt to put in front; None takes :data:`SYSTEM`, unless the conversation begins with one.

    Raises:
        UserError: The conversation is empty, or begins with a system prompt of its own beside ``system``.
    """
    if not messages:
        raise UserError("messages: empty; give a message of the user")
    if messages[0].get("role") == "system":
        if system is not None:
            raise UserError("system: messages begin with a system prompt of their own; leave one of them out")
        return list(messages)
    return [{"role": "system", "content": [{"type": "text", "text": system or SYSTEM}]}, *messages]


class Chat:
    """Tokenizer, chat template and generation defaults of a checkpoint.

    Args:
        folder: Folder of the Thinker, which holds them.
        sound: Token that stands for one embedding of sound.

    Raises:
        UserError: A file is missing, or cannot be read.
    """

    def __init__(self, folder: Path, sound: int) -> None:
        self._sound = sound
        path = folder / TOKENIZER
        try:
            self.tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(f"{path}: missing; build or download the Thinker again") from None
        except Exception as error:  # the library raises plain Exception for a file that is not what it says
            raise UserError(f"{path}: cannot be read as a tokenizer ({error})") from None
        path = folder / CHAT_TEMPLATE
        try:
            source = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise UserError(f"{path}: missing; build or download the Thinker again") from None
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: cannot be read as a chat template ({error})") from None
        self._template = compile_template(source, str(path))
        self._encoder = MessageEncoder(self.tokenizer, self._template)
        self._defaults = read_generation_config(folder)

    @property
    def sampling(self) -> Sampling:
        """How the checkpoint wants tokens to be chosen; the best one, if it does not say.

        Raises:
            UserError: See :func:`qwen_omni_onnx.sampling.checkpoint_sampling`.
        """
        return checkpoint_sampling(self._defaults)

    @property
    def max_new_tokens(self) -> int | None:
        """Tokens after which a reply is cut off, if the checkpoint says.

        Raises:
            UserError: See :func:`qwen_omni_onnx.common.generation.max_new_tokens`.
        """
        return max_new_tokens(self._defaults)

    def render(self, messages: Sequence[Message]) -> str:
        """Return a conversation as the Thinker reads it, up to where its reply begins.

        Raises:
            UserError: The template refuses it.
        """
        return self._template(messages)

    def ids(self, messages: Sequence[Message], sounds: Sequence[int] = ()) -> np.ndarray:
        """Return the tokens of a conversation [seq] int64, with as many of sound as there are embeddings of it.

        What messages hold is text, control tokens too (:mod:`qwen_omni_onnx.text.control_tokens`).

        Args:
            messages: The conversation.
            sounds: Embeddings of each sound in it, in order.

        Raises:
            UserError: The template refuses it, or has another number of sounds; a text is not Unicode.
        """
        ids = self._encoder.ids(messages)
        found = ids.count(self._sound)
        if found != len(sounds):
            raise UserError(f"messages: places for {found} sounds; {len(sounds)} are given")
        waiting = iter(sounds)
        counts = [next(waiting) if token == self._sound else 1 for token in ids]
        return np.repeat(np.array(ids, np.int64), counts)

    def text_ids(self, text: str) -> np.ndarray:
        """Return the tokens of a text as it is, [seq] int64: no chat template, and no control token."""
        return np.array(self._encoder.text_ids(text), np.int64)

    def stream(self) -> TextStream:
        """Return what turns the tokens of one reply into text as they come."""
        return TextStream(self.tokenizer)


class TextStream:
    """Text of tokens that come one by one; half a character waits for its other half."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)

    def __call__(self, token: int) -> str:
        """Return the text that is complete with this token; often a word, sometimes nothing yet."""
        return self._stream.step(self._tokenizer, token) or ""
