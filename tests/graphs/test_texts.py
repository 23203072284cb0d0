"""Texts and dialogues that feed the Thinker: what is read, how it is encoded, what of it the Talker hears."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import DIALOGUES, EMBEDDING, ROOT, TEXTS, chained_params, recorded_names, write_params

from inputs.__main__ import main
from omni.inputs import CALIBRATION, HELD_OUT, read, recordings
from omni.texts import documents, token_ids
from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.common.configuration import read_config
from qwen_omni_onnx.embedding import EmbeddingTable
from qwen_omni_onnx.text.chat import SYSTEM, Chat, with_system
from qwen_omni_onnx.thinker.prompts import SpecialTokens
from qwen_omni_onnx.thinker.runtime import EMBEDDING as TABLE

ONNX = Path("models/onnx/thinker")
TALK = [{"role": "user", "content": "Is it late?"}, {"role": "assistant", "content": "No."}]
Message = Callable[..., str]


@pytest.fixture
def chat(chain_once: Path) -> Chat:
    return Chat(chain_once / ONNX, SpecialTokens.of(read_config(chain_once / ONNX)).sound)


# Tokens


def test_a_text_is_encoded_as_it_is_with_no_reply(chat: Chat) -> None:
    ids, reply = token_ids(chat, "späť <|im_end|>")

    assert chat.tokenizer.decode(ids.tolist(), skip_special_tokens=True) == "späť <|im_end|>"
    assert reply == 0
    assert token_ids(chat, "späť", limit=3)[0].tolist() == ids[:3].tolist()


def test_a_dialogue_is_laid_out_by_the_chat_template_and_ends_with_its_reply(chat: Chat) -> None:
    ids, reply = token_ids(chat, TALK)

    assert ids.tolist() == [*chat.ids(TALK[:1]), *chat.text_ids("No.")]
    assert reply == len(chat.text_ids("No."))
    told, _ = token_ids(chat, TALK, system=SYSTEM)
    assert told[:-reply].tolist() == chat.ids(with_system(TALK[:1], SYSTEM)).tolist()


def test_a_long_dialogue_begins_later_and_its_reply_ends_at_the_limit(chat: Chat) -> None:
    long = [*TALK, {"role": "user", "content": "Sure?"}, {"role": "assistant", "content": "Yes, the clock is right."}]
    whole, part = len(token_ids(chat, long)[0]), chat.ids(long[2:3])
    reply = chat.text_ids("Yes, the clock is right.")

    assert token_ids(chat, long, limit=whole)[0].tolist() == token_ids(chat, long)[0].tolist()
    ids, replied = token_ids(chat, long, limit=whole - 1)
    assert (ids.tolist(), replied) == ([*part, *reply], len(reply))
    ids, replied = token_ids(chat, long, limit=len(part) + 2)
    assert (ids.tolist(), replied) == ([*part, *reply[:2]], 2)
    ids, replied = token_ids(chat, long, limit=5)
    assert (ids.tolist(), replied) == (part[:5].tolist(), 0)


# Files


def test_files_are_read_in_the_order_of_their_names_and_by_pattern(tmp_path: Path) -> None:
    for name in ("en-b.txt", "de-a.txt", "notes.md"):
        (tmp_path / name).write_text(name)
    (tmp_path / "en-a.json").write_text(json.dumps(TALK))

    assert list(documents(tmp_path)) == [("de-a", "de-a.txt"), ("en-a", TALK), ("en-b", "en-b.txt")]
    assert [name for name, _ in documents(tmp_path, "en-*")] == ["en-a", "en-b"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", b"", "empty; write a text, or remove the file"),
        ("a.txt", b" \n\t", "empty; write a text, or remove the file"),
        ("a.txt", b"caf\xe9", "cannot be read as UTF-8 ("),
        ("a.json", b"caf\xe9", "cannot be read as UTF-8 ("),
        ("a.json", b"[", "cannot be read as JSON ("),
        ("a.json", b"[" * 100_000, "cannot be read as JSON ("),
        ("a.json", b"{}", 'no dialogue; give a list of two or more {"role": ..., "content": ...}'),
        ("a.json", b'"hello"', "no dialogue; give a list"),
        ("a.json", b"[]", "no dialogue; give a list"),
        ("a.json", json.dumps(TALK[:1]).encode(), "no dialogue; give a list of two or more"),
        ("a.json", json.dumps([*TALK, "x"]).encode(), "message 3: has not just role and content"),
        ("a.json", json.dumps([{"role": "user"}, *TALK]).encode(), "message 1: has not just role and content"),
        (
            "a.json",
            json.dumps([{**TALK[0], "name": "x"}, TALK[1]]).encode(),
            "message 1: has not just role and content",
        ),
        (
            "a.json",
            json.dumps([TALK[0], {"role": "robot", "content": "x"}]).encode(),
            "message 2: role 'robot'; give user or assistant",
        ),
        ("a.json", json.dumps([TALK[0], {"role": [], "content": "x"}]).encode(), "message 2: role []; give user or"),
        ("a.json", json.dumps([TALK[0], {"role": "assistant", "content": 7}]).encode(), "message 2: content 7; give a"),
        (
            "a.json",
            json.dumps([TALK[0], {"role": "assistant", "content": " "}]).encode(),
            "message 2: content ' '; giv",
        ),
        ("a.json", json.dumps([{"role": "user", "content": "\ud800"}, TALK[1]]).encode(), "message 1: character 1 is"),
        ("a.json", json.dumps(TALK[::-1]).encode(), "message 1 is not the user's; the user begins, and the assistant"),
        ("a.json", json.dumps([*TALK, TALK[0]]).encode(), "message 3 is not the assistant's; the user begins, and"),
    ],
)
def test_a_file_that_is_no_text_is_told(name: str, content: bytes, said: str, tmp_path: Path, message: Message) -> None:
    (tmp_path / name).write_bytes(content)

    assert message(lambda: list(documents(tmp_path))).startswith(f"{tmp_path / name}: {said}")


def test_a_folder_without_texts_and_a_name_that_is_there_twice_are_told(tmp_path: Path, message: Message) -> None:
    def read_all(folder: Path) -> None:
        list(documents(folder))

    assert message(read_all, tmp_path / "no").startswith(f"{tmp_path}/no: no such folder; texts lie in calibration/")
    assert message(read_all, tmp_path) == f"{tmp_path}: no .txt or .json file in it"
    (tmp_path / "a.json").write_text(json.dumps(TALK))
    (tmp_path / "a.txt").write_text("a")
    assert message(read_all, tmp_path) == f"{tmp_path}/a.txt: a.json has the same name; rename one"


# The stage


@pytest.mark.parametrize("split", TEXTS)
def test_the_thinker_reads_texts_after_the_clips(split: str, chain: Path, chat: Chat) -> None:
    table = EmbeddingTable(ONNX / TABLE)

    recorded = recordings("thinker", split)

    assert {recording.name for recording in recorded} == recorded_names(split)
    texts = [recording for recording in recorded if recording.name.startswith("text/")]
    assert recorded[-len(texts) :] == texts
    for recording, (name, document) in zip(texts, documents(Path("data/text") / split), strict=True):
        ids, reply = token_ids(chat, document, system=SYSTEM)
        assert (recording.name, recording.reply) == (f"text/{name}", reply)
        np.testing.assert_array_equal(recording.array, table(ids))


def test_the_talker_reads_dialogues_up_to_their_reply_and_no_texts(chain: Path) -> None:
    for split in DIALOGUES:
        assert set(read("talker", split)) == recorded_names(split, texts=False)
        told = {recording.name: recording for recording in recordings("thinker", split)}
        for name in DIALOGUES[split]:
            recording = told[f"text/{name}"]
            spoken = read("talker", split)[recording.name]
            assert recording.reply
            prompt = len(recording.array) - recording.reply + 2
            assert spoken.shape[1] == EMBEDDING
            assert 0 < len(spoken) - prompt <= 47


def test_a_clip_whose_name_sorts_after_every_text_still_comes_before_them(chain: Path) -> None:
    shutil.copyfile("data/speech/held_out/hum.flac", "data/speech/held_out/zzz.flac")

    main(["thinker"])

    assert list(read("thinker", HELD_OUT)) == ["hum", "sweep", "zzz", "text/remark", "text/request"]


def test_no_texts_are_read_where_none_are_wanted(chain: Path) -> None:
    params = chained_params()
    params["thinker"]["inputs"]["texts"] = None
    write_params(chain, params)

    main(["talker"])

    for name in ("thinker", "talker"):
        assert set(read(name, CALIBRATION)) == {"low", "high", "noise"}


def test_a_component_without_a_tokenizer_reads_no_texts(chain: Path, message: Message) -> None:
    params = chained_params()
    params["talker"]["inputs"]["texts"] = "data/text"
    write_params(chain, params)

    assert message(main, ["talker"]) == "inputs.texts: talker reads no text; give texts to the Thinker"


def test_a_text_that_cannot_be_read_leaves_what_was_recorded(chain: Path, message: Message) -> None:
    before = artifact.fingerprint(Path("models/inputs/thinker"))
    Path("data/text/held_out/remark.txt").write_bytes(b"")

    assert message(main, ["thinker"]) == "data/text/held_out/remark.txt: empty; write a text, or remove the file"
    assert artifact.fingerprint(Path("models/inputs/thinker")) == before


# The repository's


def test_the_texts_of_the_repository_are_of_many_languages_and_kinds(chat: Chat) -> None:
    found = {split: dict(documents(ROOT / "data/text" / split)) for split in (CALIBRATION, HELD_OUT)}

    for texts in found.values():
        for name, document in texts.items():
            ids, reply = token_ids(chat, document, system=SYSTEM, limit=512)
            assert len(ids) > 200, name
            assert (reply > 0) == (not isinstance(document, str)), name
    assert not found[CALIBRATION].keys() & found[HELD_OUT].keys()
    assert len({name.split("-")[0] for name in found[CALIBRATION]}) >= 12
    assert len({name.split("-")[0] for name in found[HELD_OUT]}) >= 4
    english = [name for name in found[HELD_OUT] if name.startswith("en-")]
    assert english == ["en-job-queue", "en-orchard", "en-table"]
    for texts in found.values():
        assert sum(not isinstance(document, str) for document in texts.values()) >= 2
