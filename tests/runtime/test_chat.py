"""Conversations to tokens and back, with the made-up tokenizer that synthetic weights come with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, tiny_config
from tokenizers import Tokenizer

from pull.synthetic import CONFIGS, SyntheticSnapshot
from pull.text import files
from qwen_omni_onnx.common.text import CHAT_TEMPLATE, GENERATION, TOKENIZER
from qwen_omni_onnx.sampling import Sampling
from qwen_omni_onnx.text.chat import SYSTEM, Chat, conversation

CONFIG = json.loads((ROOT / "pull/qwen2_5_omni_7b/config.json").read_text())
SOUND = CONFIG["thinker_config"]["audio_token_index"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    for name, content in files(SyntheticSnapshot(CONFIGS["7b"], 0, 1)).items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def chat(folder: Path) -> Chat:
    return Chat(folder, SOUND)


def test_a_question_is_laid_out_as_the_model_was_trained(chat: Chat) -> None:
    assert chat.render(conversation("What?", 1)) == (
        f"<|im_start|>system\n{SYSTEM}<|im_end|>\n"
        "<|im_start|>user\n<|audio_bos|><|AUDIO|><|audio_eos|>What?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert chat.render([{"role": "user", "content": "What?"}]).startswith(
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nWhat?"
    )


def test_marks_have_the_real_ids(chat: Chat) -> None:
    ids = chat.ids(conversation(None, 2, "x"), [3, 1])
    thinker = CONFIG["thinker_config"]
    begin, end, opens, closes = (
        thinker[key] for key in ("bos_token_id", "eos_token_id", "audio_start_token_id", "audio_end_token_id")
    )
    marks = [token for token in ids.tolist() if token > 255]

    assert marks == [
        begin, end, begin, opens, SOUND, SOUND, SOUND, closes, opens, SOUND, closes, end, begin
    ]  # fmt: skip
    assert ids.dtype == np.int64


@pytest.mark.parametrize("text", ["plain", " spaces  and\nlines\t", "äöü 東京 🎧", "a\u0301", ""])
def test_text_comes_back_as_it_went_in(chat: Chat, text: str) -> None:
    ids = chat.tokenizer.encode(text, add_special_tokens=False).ids
    decode = chat.stream()

    assert len(ids) == len(text.encode())
    assert "".join(decode(token) for token in ids) == text


def test_every_token_can_be_read_or_is_a_mark(chat: Chat) -> None:
    table = json.loads(chat.tokenizer.to_str())
    vocabulary, marks = table["model"]["vocab"], {token["id"] for token in table["added_tokens"]}

    assert sorted(vocabulary.values()) == list(range(CONFIG["thinker_config"]["text_config"]["vocab_size"]))
    assert marks >= {CONFIG["talker_config"][f"tts_text_{name}_token_id"] for name in ("start", "end", "pad")}
    words = [chat.tokenizer.decode([token]) for token in (300, 5_000, 151_000, 152_063)]
    assert len(set(words)) == 4
    assert all(word.strip().isalpha() for word in words)


def test_any_tokens_make_a_stream(chat: Chat) -> None:
    """Those of random weights: halves of characters among them, marks, and bytes that are no text."""
    random = np.random.default_rng(0)
    for size in (256, 152_064):
        decode = chat.stream()
        tokens = random.integers(0, size, 500).tolist()
        text = "".join(decode(token) for token in tokens)
        assert text
        assert "<|im_start|>" not in text


def test_a_tiny_vocabulary_has_one_too(tmp_path: Path) -> None:
    config = tiny_config()
    table = json.loads(files(SyntheticSnapshot(CONFIGS["tiny"], 0, "full"))[TOKENIZER])

    assert len(table["model"]["vocab"]) == config["thinker_config"]["text_config"]["vocab_size"]
    Tokenizer.from_str(json.dumps(table))


def test_the_same_configuration_gives_the_same_bytes() -> None:
    one, again = (files(SyntheticSnapshot(CONFIGS["7b"], 0, layers)) for layers in (1, "full"))

    assert one == again


def test_places_for_sound_and_sounds_must_be_as_many(chat: Chat, message: Callable[..., str]) -> None:
    assert message(chat.ids, conversation("a", 1), []) == "messages: places for 1 sounds; 0 are given"
    assert message(chat.ids, conversation("<|AUDIO|>", 1), []) == "messages: places for 1 sounds; 0 are given"
    assert message(conversation, None, 0) == "nothing to reply to: give a sound, a text, or both"
    assert message(conversation, "", 0) == "nothing to reply to: give a sound, a text, or both"


def test_what_the_template_refuses_is_told(chat: Chat, message: Callable[..., str]) -> None:
    said = message(chat.render, [{"role": "user", "content": [{"type": "video"}]}])
    assert said == "messages: the chat template cannot lay them out (video is not supported)"


def test_a_template_cannot_reach_out_of_its_sandbox(folder: Path, tmp_path: Path, message: Callable[..., str]) -> None:
    (tmp_path / TOKENIZER).write_bytes((folder / TOKENIZER).read_bytes())
    (tmp_path / CHAT_TEMPLATE).write_text("{{ messages.__class__.__mro__[1].__subclasses__() }}")

    assert "cannot lay them out" in message(Chat(tmp_path, SOUND).render, conversation("a", 0))


def _with_template(folder: Path, tmp_path: Path, template: str) -> Chat:
    (tmp_path / TOKENIZER).write_bytes((folder / TOKENIZER).read_bytes())
    (tmp_path / CHAT_TEMPLATE).write_text(template)
    return Chat(tmp_path, SOUND)


_LAID_OUT = {
    "generation": "{% for m in messages %}\n  {% generation %}\n{{ m['role'] }}|\n  {% endgeneration %}\n!{% endfor %}",
    "generation, trimmed": "a {%- generation -%} b {{ messages|length }} {%- endgeneration -%} c",
    "set inside generation": "{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}",
    "break": "{% for m in messages %}{% if loop.index == 2 %}{% break %}{% endif %}{{ m['role'] }}{% endfor %}",
    "continue": "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m['role'] }}{% endfor %}",
    "tojson": "{{ messages[0]|tojson }}{{ '<ä & \"b\">'|tojson }}{{ 'ä'|tojson(ensure_ascii=True) }}",
    "tojson, laid out": "{{ {'b': 1, 'a': [2]}|tojson(indent=2, separators=(',', ': '), sort_keys=true) }}",
    "strftime_now": "{{ strftime_now('%Y-%m') }}",
    "dict and namespace": "{% set n = namespace(count=1, self=2) %}{% set n.count = n.count + 1 %}{{ n.count }}"
    "{{ dict(a=1) }}{{ dict.fromkeys('ab', 3) }}",
    "no tools": "{% if tools is not none %}tools{% elif documents is none %}nothing{% endif %}",
    "the end": "{{ messages[-1]['content'][0]['text'] }}{% if add_generation_prompt %}<|im_start|>{% endif %}\n",
}


@pytest.mark.parametrize("template", _LAID_OUT.values(), ids=_LAID_OUT)
def test_templates_are_laid_out_as_transformers_does(folder: Path, tmp_path: Path, template: str) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    messages = conversation("What? äöü <b>", 0, "short")
    (expected,), _ = render_jinja_template([messages], chat_template=template, add_generation_prompt=True)

    assert _with_template(folder, tmp_path, template).render(messages) == expected
    assert expected


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('no \n such role') }}",
        "{{ namespace(__class__=1) }}",
        "{% set n = namespace() %}{% set n._x = 1 %}",
        "{{ dict.__class__.__mro__ }}{{ dict.mro() }}",
        "{{ messages.append(1) }}",
        "{{ raise_exception.__globals__['json'] }}",
        "{{ strftime_now(1) }}",
        "{{ 1 / 0 }}",
        "{{ messages[0]['role'].nothing.at_all }}",
        "{{ undefined|tojson }}",
    ],
)
def test_what_fails_in_transformers_is_told_in_one_line(
    folder: Path, tmp_path: Path, template: str, message: Callable[..., str]
) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    messages = conversation("a", 0)
    with pytest.raises(Exception):  # noqa: B017, PT011 - of many kinds
        render_jinja_template([messages], chat_template=template)

    said = message(_with_template(folder, tmp_path, template).render, messages)
    assert said.startswith("messages: the chat template cannot lay them out (")
    assert "\n" not in said


def test_a_template_that_needs_the_tokenizer_s_configuration_is_refused(
    folder: Path, tmp_path: Path, message: Callable[..., str]
) -> None:
    said = message(_with_template, folder, tmp_path, "{{ bos_token }}{{ messages }}{{ eos_token }}")

    assert said == (
        f"{tmp_path / CHAT_TEMPLATE}: uses bos_token, which is not known here; write the token itself in its place"
    )
    _with_template(folder, tmp_path, "{% set bos_token = '<s>' %}{{ bos_token }}")


@pytest.mark.parametrize(
    ("said", "how", "most"),
    [
        (None, Sampling(greedy=True, top_k=50), None),
        ({"do_sample": False, "max_new_tokens": 7}, Sampling(greedy=True, top_k=50), 7),
        ({"do_sample": True, "top_k": 5, "temperature": None}, Sampling(top_k=5), None),
    ],
)
def test_generation_defaults_are_the_checkpoints(
    folder: Path, tmp_path: Path, said: dict[str, Any] | None, how: Sampling, most: int | None
) -> None:
    for name in (TOKENIZER, CHAT_TEMPLATE):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    if said is not None:
        (tmp_path / GENERATION).write_text(json.dumps(said))
    chat = Chat(tmp_path, SOUND)

    assert chat.sampling == how
    assert chat.max_new_tokens == most


def test_files_that_are_not_what_they_say_are_refused(
    folder: Path, tmp_path: Path, message: Callable[..., str]
) -> None:
    assert message(Chat, tmp_path, SOUND) == f"{tmp_path / TOKENIZER}: missing; build or download the Thinker again"
    (tmp_path / TOKENIZER).write_text("{}")
    assert "cannot be read as a tokenizer" in message(Chat, tmp_path, SOUND)
    (tmp_path / TOKENIZER).write_bytes((folder / TOKENIZER).read_bytes())
    assert message(Chat, tmp_path, SOUND).startswith(f"{tmp_path / CHAT_TEMPLATE}: missing")
    (tmp_path / CHAT_TEMPLATE).write_text("{% if %}")
    assert "cannot be read as a chat template" in message(Chat, tmp_path, SOUND)
    (tmp_path / CHAT_TEMPLATE).write_bytes((folder / CHAT_TEMPLATE).read_bytes())
    (tmp_path / GENERATION).write_text('{"do_sample": true, "temperature": "hot"}')
    with pytest.raises(Exception, match="temperature is 'hot', not a number"):
        Chat(tmp_path, SOUND).sampling  # noqa: B018 - reads them
