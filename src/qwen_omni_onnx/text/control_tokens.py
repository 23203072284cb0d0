"""Messages to tokens: control tokens come from the chat template alone, and what users write is text.

A text that spells ``<|im_end|>`` would else end its own turn, and one that spells ``<|AUDIO|>`` would ask for a sound.
Transformers encodes what the template makes of all messages as one string, and so takes such a text for the tokens.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from tokenizers import Encoding, Tokenizer

from qwen_omni_onnx.common.errors import UserError

__all__ = ["MessageEncoder", "require_unicode"]

_LAST_PRIVATE = 0x10FFFD  # of the code points that mean nothing; there are 137,468


class MessageEncoder:
    """Encodes what a chat template makes of messages.

    Control tokens are those that the tokenizer marks as special, and tags such as ``<tool_call>``, which Qwen's
    tokenizer does not mark. Other added tokens are words that a checkpoint was given, and stand for text.

    Args:
        tokenizer: The checkpoint's.
        template: Lays out messages.
    """

    def __init__(self, tokenizer: Tokenizer, template: Callable[[Sequence[Mapping[str, Any]]], str]) -> None:
        self._tokenizer, self._template = tokenizer, template
        added = tokenizer.get_added_tokens_decoder()
        self._control = {
            number: token.content
            for number, token in added.items()
            if token.special or (token.content.startswith("<") and token.content.endswith(">"))
        }
        self._begins = {content[0] for content in self._control.values() if content}

    def ids(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """Return the tokens of messages.

        They are those of the laid-out string where no message spells a control token. Else each control token of the
        template stands for itself, and what is between two of them is encoded as text.

        Raises:
            UserError: The template refuses the messages, or takes apart a text that spells a control token; a text is
                not Unicode.
        """
        written: set[str] = set()  # characters
        for where, text in _texts(messages, "messages"):
            require_unicode(text, where)
            written |= set(text)
        laid_out = self._template(messages)
        require_unicode(laid_out, "messages: what the chat template makes of them")
        encoding = self._encoded(laid_out)
        if written.isdisjoint(self._begins):
            return encoding.ids
        # In texts alone, each character that control tokens begin with gives way to one that is used nowhere.
        used = written.union(laid_out)
        unused = (chr(number) for number in range(_LAST_PRIVATE, 0, -1) if chr(number) not in used)
        hide = {ord(begin): stand_in for begin, stand_in in zip(sorted(self._begins), unused, strict=False)}
        hidden = self._template(_translated(messages, hide))
        of_template = self._control_tokens(self._encoded(hidden))
        if of_template == self._control_tokens(encoding):
            return encoding.ids
        if hidden.translate({ord(stand_in): begin for begin, stand_in in hide.items()}) != laid_out:
            raise UserError("messages: a text spells a control token, and the chat template changes it; leave it out")
        ids, begin = [], 0
        for token, start, end in of_template:
            ids += [*self.text_ids(laid_out[begin:start]), token]
            begin = end
        return ids + self.text_ids(laid_out[begin:])

    def text_ids(self, text: str) -> list[int]:
        """Return the tokens of a text as it is; what spells a control token is text, too."""
        return self._text_tokenizer.encode(text, add_special_tokens=False).ids

    def _encoded(self, text: str) -> Encoding:
        return self._tokenizer.encode(text, add_special_tokens=False)

    def _control_tokens(self, encoding: Encoding) -> list[tuple[int, int, int]]:
        """Return the control tokens of a text: id, and where it begins and ends."""
        tokens = zip(encoding.ids, encoding.offsets, strict=True)
        return [(token, *place) for token, place in tokens if token in self._control]

    @cached_property
    def _text_tokenizer(self) -> Tokenizer:
        """The tokenizer, to which control tokens are text."""
        table = json.loads(self._tokenizer.to_str())
        for token in table["added_tokens"]:
            token["special"] = token["id"] in self._control
        tokenizer = Tokenizer.from_str(json.dumps(table))
        tokenizer.encode_special_tokens = True  # special ones alone, so all of those above are
        return tokenizer


def require_unicode(text: str, where: str) -> None:
    """Refuse a text with a surrogate in it: half of a character, or, of a command line, a byte that is not UTF-8.

    Args:
        text: What a user has written.
        where: It comes from, for messages.

    Raises:
        UserError: There is one.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where}: character {error.start + 1} is {text[error.start]!a}, which is not Unicode"
        ) from None


def _texts(value: Any, where: str) -> Iterator[tuple[str, str]]:
    """Yield every text in messages, and where it stands."""
    if isinstance(value, str):
        yield where, value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _texts(inner, f"{where}.{name}")
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from _texts(inner, f"{where}[{number}]")


def _translated(value: Any, table: Mapping[int, str]) -> Any:
    """Return messages with every text translated."""
    if isinstance(value, str):
        return value.translate(table)
    if isinstance(value, Mapping):
        return {name: _translated(inner, table) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_translated(inner, table) for inner in value]
    return value
