"""Texts and dialogues that calibrate and judge a language model: how they are read, and their tokens.

A folder has them in ``calibration`` and ``held_out``: texts in ``.txt``, dialogues in ``.json``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.text.chat import Chat, with_system
from qwen_omni_onnx.text.control_tokens import require_unicode

__all__ = ["Dialogue", "documents", "read_text", "token_ids"]

Dialogue = Sequence[Mapping[str, str]]  # messages, {"role": user or assistant, "content": text}; the last one replies
_ROLES = ("user", "assistant")


def documents(folder: Path, pattern: str = "*") -> Iterator[tuple[str, str | Dialogue]]:
    """Yield each text and dialogue of a folder with its name, that of the file without the suffix, in order.

    Args:
        folder: Folder of ``.txt`` and ``.json`` files.
        pattern: Glob pattern of the names that are read.

    Raises:
        UserError: There is no such folder, it holds no text, or a file in it is none.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; texts lie in calibration/ and held_out/")
    files = sorted(path for path in folder.glob(pattern) if path.suffix in (".txt", ".json"))
    if not files:
        raise UserError(f"{folder}: no .txt or .json file in it")
    for before, path in zip([None, *files], files, strict=False):
        if before is not None and before.stem == path.stem:
            raise UserError(f"{path}: {before.name} has the same name; rename one")
        yield path.stem, _read(path)


def token_ids(
    chat: Chat, document: str | Dialogue, *, system: str | None = None, limit: int | None = None
) -> tuple[np.ndarray, int]:
    """Return the tokens of a text or of a dialogue, [tokens] int64, and how many at the end are the reply.

    A text is encoded as it is, and has no reply. The chat template lays a dialogue out as a prompt, which its last
    message, the reply, follows.

    Args:
        chat: Tokenizer and chat template.
        document: The text or the dialogue.
        system: System prompt of a dialogue; None leaves it to the chat template.
        limit: Most tokens; a text ends there. A dialogue that is longer begins later, with another message of the
            user, and its reply ends there.

    Raises:
        UserError: The chat template refuses the dialogue.
    """
    if isinstance(document, str):
        return chat.text_ids(document)[:limit], 0
    *turns, last = document
    reply = chat.text_ids(last["content"])
    for begin, message in enumerate(turns):
        if message["role"] == "user":
            shown = turns[begin:]
            prompt = chat.ids(shown if system is None else with_system(shown, system))
            if limit is None or len(prompt) + len(reply) <= limit:
                break
    if limit is not None:
        prompt, reply = prompt[:limit], reply[: max(0, limit - len(prompt))]
    return np.concatenate([prompt, reply]), len(reply)


def read_text(path: Path) -> str:
    """Return a text in UTF-8.

    Raises:
        UserError: It is not in UTF-8, or empty.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: cannot be read as UTF-8 ({error}); save it in that encoding") from None
    if not text.strip():
        raise UserError(f"{path}: empty; write a text, or remove the file")
    return text


def _read(path: Path) -> str | Dialogue:
    text = read_text(path)
    if path.suffix == ".txt":
        return text
    try:
        messages = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error})") from None
    if not isinstance(messages, list) or len(messages) < 2:
        raise UserError(f'{path}: no dialogue; give a list of two or more {{"role": ..., "content": ...}}')
    for number, message in enumerate(messages, 1):
        _require_message(message, f"{path}: message {number}")
    for number, role in ((1, "user"), (len(messages), "assistant")):
        if messages[number - 1]["role"] != role:
            raise UserError(f"{path}: message {number} is not the {role}'s; the user begins, and the assistant ends")
    return messages


def _require_message(message: Any, where: str) -> None:
    if not isinstance(message, dict) or message.keys() != {"role", "content"}:
        raise UserError(f"{where}: has not just role and content")
    if message["role"] not in _ROLES:
        raise UserError(f"{where}: role {message['role']!r}; give {' or '.join(_ROLES)}")
    if not isinstance(message["content"], str) or not message["content"].strip():
        raise UserError(f"{where}: content {message['content']!r}; give a text")
    require_unicode(message["content"], where)
