"""A stranger's tokenizer and chat template in a process of its own: the same tokens and texts, or one line."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

from pull.synthetic import CONFIGS, SyntheticSnapshot
from pull.text import files
from qwen_omni_onnx.common.confined import Limits
from qwen_omni_onnx.common.text import CHAT_TEMPLATE, TOKENIZER
from qwen_omni_onnx.text.chat import Chat, conversation
from qwen_omni_onnx.text.confined_chat import ConfinedChat

SOUND = 151646
IMPATIENT, LEAN = Limits(seconds=3, nbytes=8 << 30), Limits(seconds=120, nbytes=1 << 30)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    for name, content in files(SyntheticSnapshot(CONFIGS["7b"], 0, 1)).items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def confined(folder: Path) -> ConfinedChat:
    return ConfinedChat(folder, SOUND)


@pytest.mark.parametrize("text", ["What?", "späť 迟到 \x1b[2J <|im_end|>", "a\nb\0", "🙂" * 50])
def test_tokens_are_those_of_the_chat_itself(folder: Path, confined: ConfinedChat, text: str) -> None:
    chat, messages = Chat(folder, SOUND), conversation(text, 2)

    ids = confined.ids(messages, [3, 1])

    np.testing.assert_array_equal(ids, chat.ids(messages, [3, 1]))
    assert ids.dtype == np.int64
    assert (confined.sampling, confined.max_new_tokens) == (chat.sampling, chat.max_new_tokens)


def test_two_replies_are_decoded_side_by_side(folder: Path, confined: ConfinedChat) -> None:
    ids = [int(token) for token in Chat(folder, SOUND).text_ids("späť 迟到 🙂")]
    first, second = confined.stream(), confined.stream()

    texts = [(first(token), second(token)) for token in ids]

    assert "".join(text for text, _ in texts) == "".join(text for _, text in texts) == "späť 迟到 🙂"


def test_messages_may_hold_what_json_does_not(folder: Path, confined: ConfinedChat) -> None:
    content = (MappingProxyType({"type": "audio", "audio": np.zeros(3)}), {"type": "text", "text": "What?"})
    messages: list[Mapping[str, Any]] = [MappingProxyType({"role": "user", "content": content})]
    plain = [{"role": "user", "content": [{"type": "audio"}, {"type": "text", "text": "What?"}]}]

    np.testing.assert_array_equal(confined.ids(messages, [1]), confined.ids(plain, [1]))


def test_a_mistake_in_messages_is_told_and_the_next_ones_are_laid_out(
    confined: ConfinedChat, message: Callable[..., str]
) -> None:
    said = message(confined.ids, conversation("What?", 1), [])

    assert said == "messages: places for 1 sounds; 0 are given"
    assert len(confined.ids(conversation("What?", 0))) > 0


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            CHAT_TEMPLATE,
            "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
            "longer than",
        ),
        (CHAT_TEMPLATE, "{{ 9 ** 99999999999 }}", "longer than"),
        (CHAT_TEMPLATE, "{{ 'a' * 3 * 10**9 }}", "GB of memory"),
        (TOKENIZER, {"normalizer": {"type": "Replace", "pattern": {"String": ""}, "content": "x" * 10}}, "Panic"),
        (TOKENIZER, {"model": {"type": "WordLevel", "vocab": {}, "unk_token": "x"}}, "WordLevel"),
    ],
)
def test_what_loops_fills_the_memory_or_panics_is_one_line(
    folder: Path, tmp_path: Path, message: Callable[..., str], name: str, content: Any, said: str
) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    if name == TOKENIZER:
        content = json.dumps(json.loads((folder / name).read_text()) | content)
    (tmp_path / name).write_text(content)

    limits = IMPATIENT if said == "longer than" else LEAN
    told = message(lambda: ConfinedChat(tmp_path, SOUND, limits).ids(conversation("hello", 0)))

    assert told.startswith(f"{tmp_path}: its tokenizer or chat template ")
    assert said in told
