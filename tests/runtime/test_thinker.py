"""The Thinker's loop beside transformers' own decoder, and what passes from it to the Talker."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_decoder as tiny

from inputs.dialogue import talker_inputs
from omni.checkpoint import Checkpoint
from qwen_omni_onnx.common.metrics import sqnr_db
from qwen_omni_onnx.common.text import GENERATION
from qwen_omni_onnx.decoder import CHUNK_SIZE
from qwen_omni_onnx.thinker.golden import open_graphs
from qwen_omni_onnx.thinker.prompts import EMBEDDING, Prompt, SpecialTokens
from qwen_omni_onnx.thinker.runtime import GREEDY, GeneratedToken, Thinker

FLOAT_DB = 100


@dataclass
class Built:
    """A tiny Thinker: its run-time, what it was made of, and transformers' own."""

    checkpoint: Checkpoint
    graph: Path
    config: dict
    thinker: Thinker
    original: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]

    @property
    def table(self) -> Path:
        return self.graph.with_name("token_embedding.npy")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Built]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("thinker")
    table = tiny.config()
    table["thinker_config"] |= tiny.SPECIAL_TOKENS
    table["talker_config"] |= tiny.TTS_TOKENS
    checkpoint = tiny.write_source("thinker", table, folder)
    graph = tiny.write_graph("thinker", checkpoint, folder / "onnx")
    thinker = Thinker(graph, graph.with_name("token_embedding.npy"), table, threads=1)
    yield Built(checkpoint, graph, table, thinker, tiny.original("thinker", checkpoint))
    torch.set_num_threads(before)


def _sound(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 64), np.float32)


def _greedy(built: Built, prompt: Prompt, most: int) -> tuple[list[int], np.ndarray]:
    """Reply by transformers' decoder alone, which sees the whole past anew at each step; return ids and hidden."""
    embeds, ids = prompt.embeds[None], []
    for _ in range(most):
        logits, hidden = built.original(embeds)
        ids.append(int(logits[0, -1].argmax()))
        embeds = np.concatenate([embeds, built.thinker.embedding(ids[-1])[None, None]], 1)
    return ids, hidden[0]


def test_a_prompt_holds_sound_where_its_ids_say_so(built: Built) -> None:
    sound = _sound(3)

    prompt = built.thinker.prompt(np.array([5, 272, 273, 273, 273, 274, 6]), sound)

    np.testing.assert_array_equal(prompt.audio_mask, [False, False, True, True, True, False, False])
    np.testing.assert_array_equal(prompt.embeds[2:5], sound)
    np.testing.assert_array_equal(prompt.embeds[[0, 1, 5, 6]], built.thinker.embedding(np.array([5, 272, 274, 6])))
    several = built.thinker.prompt(prompt.ids, [sound[:2], sound[2:2], sound[2:]])
    np.testing.assert_array_equal(several.embeds, prompt.embeds)


def test_the_shortest_prompt_is_sound_in_somebodys_turn(built: Built) -> None:
    prompt = built.thinker.prompt_of_sound(_sound(4))

    assert prompt.ids.tolist() == [270, 272, 273, 273, 273, 273, 274, 271, 270]
    np.testing.assert_array_equal(prompt.embeds[prompt.audio_mask], _sound(4))


def test_a_greedy_reply_is_transformers_token_by_token(built: Built) -> None:
    prompt = built.thinker.prompt_of_sound(_sound(20))

    tokens = list(built.thinker.prefill(prompt).generate(GREEDY, max_new_tokens=24))

    ids, hidden = _greedy(built, prompt, 24)
    assert [token.id for token in tokens] == ids
    assert len(set(ids)) > 4
    for token, state in zip(tokens[:-1], hidden[len(prompt.ids) :], strict=True):
        assert token.talker_input is not None
        assert sqnr_db(state + built.thinker.embedding(token.id), token.talker_input) >= FLOAT_DB
    assert tokens[-1].talker_input is None


def test_the_hidden_states_of_the_prompt_are_transformers(built: Built) -> None:
    prompt = built.thinker.prompt_of_sound(_sound(9))

    whole, pieces = built.thinker.prefill(prompt), built.thinker.prefill(prompt, chunk_size=4)

    for turn in (whole, pieces):
        assert sqnr_db(built.original(prompt.embeds[None])[1][0], turn.hidden) >= FLOAT_DB


def test_a_long_prompt_is_replied_to_as_if_it_were_taken_in_at_once(built: Built) -> None:
    prompt = built.thinker.prompt_of_sound(_sound(2 * CHUNK_SIZE))

    turns = [built.thinker.prefill(prompt), built.thinker.prefill(prompt, chunk_size=len(prompt.ids))]

    assert sqnr_db(turns[1].hidden, turns[0].hidden) >= FLOAT_DB
    replies = [[token.id for token in turn.generate(GREEDY, max_new_tokens=8)] for turn in turns]
    assert replies[0] == replies[1]


def test_the_mark_that_ends_a_turn_ends_the_reply(built: Built) -> None:
    prompt = built.thinker.prompt_of_sound(_sound(20))
    ids, _ = _greedy(built, prompt, 12)
    config = copy.deepcopy(built.config)
    config["thinker_config"]["eos_token_id"] = ids[7]
    ending = Thinker(built.graph, built.table, config, threads=1)

    tokens: list[GeneratedToken] = list(ending.prefill(prompt).generate(GREEDY, max_new_tokens=100))

    assert [token.id for token in tokens] == ids[: ids.index(ids[7])]
    assert all(token.talker_input is not None for token in tokens)


def test_every_token_that_is_said_to_end_a_reply_ends_it(built: Built, tmp_path: Path) -> None:
    prompt = built.thinker.prompt_of_sound(_sound(20))
    ids, _ = _greedy(built, prompt, 12)
    end, other = ids[7], next(token for token in range(300) if token not in ids)

    for place in ("thinker_config", "config.json", GENERATION):
        for said in (end, [other, end], [end, other]):
            config, defaults = copy.deepcopy(built.config), {}
            if place == "thinker_config":
                config["thinker_config"]["eos_token_id"] = said
            elif place == "config.json":
                config["eos_token_id"] = said
            else:
                defaults = {"eos_token_id": said}
            for name, content in (("config.json", config), (GENERATION, defaults)):
                (tmp_path / name).write_text(json.dumps(content))
            (tmp_path / EMBEDDING).unlink(missing_ok=True)
            os.link(built.table, tmp_path / EMBEDDING)

            ending = open_graphs({"thinker": built.graph}, tmp_path, 1)

            replied = [token.id for token in ending.prefill(prompt).generate(GREEDY, max_new_tokens=12)]
            assert replied == ids[: ids.index(end)], (place, said)
            first = np.atleast_1d(said)[0] if place == "thinker_config" else 271
            assert ending.prompt_of_sound(_sound(1)).ids.tolist() == [270, 272, 273, 274, first, 270]


def test_the_end_of_a_turn_may_be_said_at_the_top_alone(built: Built) -> None:
    config = copy.deepcopy(built.config)
    config["eos_token_id"] = [12, 13]
    config["thinker_config"]["eos_token_id"] = None

    special = SpecialTokens.of(config, [13, 14])

    assert (special.end, special.ends) == (12, (12, 13, 14))


def test_what_the_talker_is_told_has_no_sound_in_it(built: Built) -> None:
    prompt, reply = built.thinker.prompt_of_sound(_sound(11)), np.array([9, 40, 41])
    length, recording = len(prompt.ids), np.concatenate([prompt.embeds, built.thinker.embedding(reply)])
    _, hidden = built.original(recording[None])

    told = talker_inputs(built.thinker, recording, hidden[0], len(reply))

    spoken = hidden[0] + np.where(np.pad(prompt.audio_mask, (0, 3))[:, None], np.float32(0), recording)
    begins, ends, pads = built.thinker.embedding(np.array([280, 281, 282]))
    expected = np.concatenate([spoken[:length], begins[None], spoken[length:], ends[None], pads[None]])
    np.testing.assert_array_equal(told, expected)


def test_a_recording_of_text_alone_is_told_with_all_its_embeddings(built: Built) -> None:
    recording, hidden = built.thinker.embedding(np.arange(20)), _sound(20)

    told = talker_inputs(built.thinker, recording, hidden, 8)

    np.testing.assert_array_equal(told[:12], (hidden + recording)[:12])
    assert len(told) == 23


# Mistakes


@pytest.mark.parametrize(
    ("ids", "sound", "said"),
    [
        ([5, 273, 6], (), "the prompt's sound is missing; its ids of sound want [1, 64]"),
        ([5, 6], np.zeros((1, 64), np.float32), "its ids of sound want [0, 64]"),
        ([5, 275, 6], (), "images and videos have positions of three axes"),
        ([5, 276, 6], (), "this graph is for text and sound only"),
        ([], (), "a prompt has ids of [seq], not [0]"),
        ([[1, 2]], (), "a prompt has ids of [seq], not [1, 2]"),
        ([300], (), "token_embedding.npy: no row 300; it has 300"),
    ],
)
def test_a_prompt_that_cannot_be_read_is_refused(
    built: Built, ids: Any, sound: np.ndarray | None, said: str, message: Callable[..., str]
) -> None:
    assert said in message(built.thinker.prompt, np.array(ids, np.int64), sound)


def test_a_recording_of_a_reply_alone_is_refused(built: Built, message: Callable[..., str]) -> None:
    assert "8 of a reply end it" in message(talker_inputs, built.thinker, _sound(8), _sound(8), 8)


def test_a_configuration_without_a_mark_is_refused(built: Built, message: Callable[..., str]) -> None:
    config = copy.deepcopy(built.config)
    del config["thinker_config"]["audio_start_token_id"]

    assert "config.json: audio_start_token_id is None, not a number" in message(SpecialTokens.of, config)


@pytest.mark.parametrize(
    ("place", "said", "wrong"),
    [
        ("thinker_config", [], "config.json: thinker_config.eos_token_id is [], not the number of a token"),
        ("thinker_config", None, "config.json: eos_token_id is None, not a number"),
        ("thinker_config", "271", "config.json: thinker_config.eos_token_id is '271', not the number of a token"),
        ("thinker_config", [271, True], "config.json: thinker_config.eos_token_id is [271, True], not"),
        ("thinker_config", [271, 300], "eos_token_id: no token 300; the Thinker's vocabulary has 300"),
        ("top", -1, "config.json: eos_token_id is -1, not the number of a token or a list of them"),
        ("top", {}, "config.json: eos_token_id is {}, not the number of a token or a list of them"),
        ("ends", [151643], "eos_token_id: no token 151643; the Thinker's vocabulary has 300"),
    ],
)
def test_ends_that_are_none_are_refused(
    built: Built, place: str, said: Any, wrong: str, message: Callable[..., str]
) -> None:
    config = copy.deepcopy(built.config)
    if place != "ends":
        (config["thinker_config"] if place == "thinker_config" else config)["eos_token_id"] = said

    told = message(Thinker, built.graph, built.table, config, 1, ends=said if place == "ends" else ())

    assert told.startswith(wrong)


def test_another_table_is_refused(built: Built, tmp_path: Path, message: Callable[..., str]) -> None:
    np.save(tmp_path / "other.npy", np.zeros((10, 64), np.float32))

    said = message(Thinker, built.graph, tmp_path / "other.npy", built.config)

    assert "not the embedding table of thinker.onnx; take both from one folder" in said
