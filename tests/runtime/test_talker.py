"""The Talker's loop beside ``talker.generate``, and its prompt beside ``generate`` of the whole model."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny_decoder as tiny
from conftest import ROOT

from omni.checkpoint import Checkpoint
from qwen_omni_onnx.decoder import CHUNK_SIZE
from qwen_omni_onnx.sampling import Sampling
from qwen_omni_onnx.talker import SAMPLING, Talker, talker_prompt, talker_reply

WIDTH = 96
GREEDY = Sampling(greedy=True, repetition_penalty=1.05)


@dataclass
class Built:
    """A tiny Talker: its graph's run-time, and transformers' own."""

    checkpoint: Checkpoint
    graph: Path
    talker: Talker
    original: Any

    @property
    def table(self) -> Path:
        return self.graph.with_name("codec_embedding.npy")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Built]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("talker")
    checkpoint = tiny.write_source("talker", tiny.config(), folder)
    graph = tiny.write_graph("talker", checkpoint, folder / "onnx")
    talker = Talker(graph, graph.with_name("codec_embedding.npy"), checkpoint.config, threads=1)
    yield Built(checkpoint, graph, talker, tiny.talker_module(checkpoint))
    torch.set_num_threads(before)


def _rows(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, WIDTH), np.float32)


def _transformers(
    built: Built, prompts: list[np.ndarray], replies: list[np.ndarray], penalty: float, most: int
) -> list[list[int]]:
    """Codes of ``talker.generate``, called as the whole model calls it, without what ends them.

    Args:
        built: the Talker.
        prompts: [seq, width] each; shorter ones are padded on the left, as transformers' processor does.
        replies: [rows, width] each, of one length.
        penalty: of repetition.
        most: codes.
    """
    import torch

    longest = max(map(len, prompts))
    codec = torch.full((len(prompts), longest), tiny.MASK)
    codec[:, -2:] = torch.tensor([tiny.PAD, tiny.START])
    padded = np.stack([np.pad(prompt, ((longest - len(prompt), 0), (0, 0))) for prompt in prompts])
    mask = np.stack([np.arange(longest) >= longest - len(prompt) for prompt in prompts]).astype(np.int64)
    result = built.original.generate(
        input_ids=codec,
        input_text_ids=torch.zeros_like(codec),
        thinker_reply_part=torch.from_numpy(np.stack(replies)),
        inputs_embeds=torch.from_numpy(padded),
        attention_mask=torch.from_numpy(mask),
        suppress_tokens=[tiny.START],
        do_sample=False,
        max_new_tokens=most,
        eos_token_id=[tiny.PAD, tiny.END],
        pad_token_id=tiny.PAD,
        repetition_penalty=penalty,
    )
    rows = result[:, longest:].tolist()
    return [list(takewhile(lambda code: code not in (tiny.PAD, tiny.END), row)) for row in rows]


@pytest.mark.parametrize("penalty", [1.0, 1.05, 1.5])
@pytest.mark.parametrize(("tokens", "rows"), [(4, 1), (20, 7), (33, 90)])
def test_greedy_codes_are_those_of_transformers(built: Built, tokens: int, rows: int, penalty: float) -> None:
    prompts = [_rows(tokens, 1), _rows(tokens - 2, 2)]  # a padded batch: see the next test
    replies = [_rows(rows, 3), _rows(rows, 4)]
    how = Sampling(greedy=True, repetition_penalty=penalty)

    codes = [
        list(built.talker.speak(prompt, reply, how, max_new_codes=64, chunk_size=8))
        for prompt, reply in zip(prompts, replies, strict=True)
    ]

    assert codes == _transformers(built, prompts, replies, penalty, 64)
    assert all(len(set(row)) > 1 for row in codes)


def test_a_single_reply_differs_from_transformers_by_the_start_of_speech_only(built: Built) -> None:
    """Of a batch without padding, transformers 5.23 drops the mask, and with it the start of speech."""
    prompt, reply = _rows(12, 10), _rows(5, 30)
    without = prompt.copy()
    without[-2:] -= built.talker.embedding(np.array([tiny.PAD, tiny.START]))

    (codes,) = _transformers(built, [prompt], [reply], 1.05, 40)

    assert list(built.talker.speak(without, reply, GREEDY, max_new_codes=40)) == codes
    assert list(built.talker.speak(prompt, reply, GREEDY, max_new_codes=40)) != codes


@pytest.mark.parametrize("tokens", [2, CHUNK_SIZE, CHUNK_SIZE + 1, CHUNK_SIZE + 2, CHUNK_SIZE + 3, 2 * CHUNK_SIZE + 40])
def test_a_long_prompt_is_spoken_to_as_if_it_were_taken_in_at_once(built: Built, tokens: int) -> None:
    prompt, reply = _rows(tokens, 11), _rows(5, 31)
    before = prompt.copy()

    codes = [
        list(built.talker.speak(prompt, reply, GREEDY, max_new_codes=20, chunk_size=piece))
        for piece in (CHUNK_SIZE, tokens)
    ]

    assert codes[0] == codes[1]
    np.testing.assert_array_equal(prompt, before)


def test_speech_ends_where_the_talker_ends_it(built: Built) -> None:
    seeds = (2, 5, 17, 18, 31, 0)
    prompts = [_rows(11 if seed == 0 else 12, seed) for seed in seeds]
    replies = [_rows(5, 100 + seed) for seed in seeds]

    codes = [
        list(built.talker.speak(prompt, reply, GREEDY, max_new_codes=60))
        for prompt, reply in zip(prompts, replies, strict=True)
    ]

    assert codes == _transformers(built, prompts, replies, 1.05, 60)
    assert [len(row) for row in codes] == [3, 1, 24, 6, 12, 60]


@pytest.mark.parametrize("most", [1, 2, 9])
def test_speech_is_cut_off(built: Built, most: int) -> None:
    prompt, reply = _rows(12, 1), _rows(5, 2)

    assert len(list(built.talker.speak(prompt, reply, GREEDY, max_new_codes=most))) == most


def test_the_reply_is_taken_one_row_a_step_and_the_last_one_stays(built: Built) -> None:
    prompt, reply, taken = _rows(12, 1), _rows(3, 2), []

    def rows() -> Iterator[np.ndarray]:
        for number, row in enumerate(reply):
            taken.append(number)
            yield row

    speaking = built.talker.speak(prompt, rows(), GREEDY, max_new_codes=8)

    codes = [next(speaking)]
    assert taken == []
    codes.append(next(speaking))
    assert taken == [0]
    codes += speaking
    assert taken == [0, 1, 2]
    assert codes == list(built.talker.speak(prompt, [*reply, *[reply[-1]] * 9], GREEDY, max_new_codes=8))


def test_the_same_seed_says_the_same(built: Built) -> None:
    prompt, reply = _rows(12, 1), _rows(5, 2)

    one, same, other = (list(built.talker.speak(prompt, reply, SAMPLING, seed, max_new_codes=30)) for seed in (1, 1, 2))

    assert one == same
    assert one != other
    assert tiny.START not in one + other


def test_the_prompt_is_not_changed(built: Built) -> None:
    prompt, reply = _rows(12, 1), _rows(5, 2)
    before = prompt.copy()

    list(built.talker.speak(prompt, reply, GREEDY, max_new_codes=3))

    np.testing.assert_array_equal(prompt, before)


class _Enough(Exception):
    """The Talker was given its inputs; what follows is not looked at."""


@pytest.mark.parametrize("ended", [True, False])
def test_the_prompt_is_the_one_that_the_whole_model_gives_its_talker(ended: bool) -> None:
    """``generate`` of transformers' whole model runs, with a Thinker and a Talker that only hand over and take."""
    import torch
    from transformers import Qwen2_5OmniForConditionalGeneration

    audio, voice, text_end, text_pad, thinker_end = 9, 11, 12, 13, 14
    asked, answered = [1, audio, audio, 2], [5, 6, 7, thinker_end if ended else 8]
    table = _rows(20, 5)
    heard = np.array([token == audio for token in asked])
    embeds = np.where(heard[:, None], _rows(4, 6), table[asked])
    hidden = [_rows(4, 7), *(_rows(1, 8 + number) for number in range(3))]  # the last token is never fed back
    given = [embeds, *(table[[token]] for token in answered[:3])]
    states = tuple((torch.from_numpy(e)[None], torch.from_numpy(h)[None]) for e, h in zip(given, hidden, strict=True))
    sequences = torch.tensor([asked + answered])
    caught: dict[str, Any] = {}

    def catch(**inputs: Any) -> None:
        caught.update(inputs)
        raise _Enough

    embedding = torch.nn.Embedding.from_pretrained(torch.from_numpy(table))
    thinker = SimpleNamespace(
        generate=lambda **_: SimpleNamespace(hidden_states=states, sequences=sequences),
        get_input_embeddings=lambda: embedding,
        generation_config=SimpleNamespace(eos_token_id=thinker_end),
    )
    talker = SimpleNamespace(
        codec_pad_token=tiny.PAD, codec_bos_token=tiny.START, codec_mask_token=tiny.MASK,
        text_eos_token=text_end, text_pad_token=text_pad, generate=catch,
    )  # fmt: skip
    model = SimpleNamespace(
        thinker=thinker, talker=talker, has_talker=True, speaker_map={"Chelsie": {"bos_token": voice}},
        config=SimpleNamespace(thinker_config=SimpleNamespace(audio_token_index=audio)),
    )  # fmt: skip
    with pytest.raises(_Enough):
        Qwen2_5OmniForConditionalGeneration.generate(
            model,
            torch.tensor([asked]),
            input_features=torch.zeros(1),
            attention_mask=torch.ones(1, 4, dtype=torch.long),
        )

    said = [state[0] + embed[0] for state, embed in zip(hidden[1:], given[1:], strict=True)]
    prompt = talker_prompt(hidden[0], embeds, heard, table[voice], said[0])
    reply = np.stack(list(talker_reply(said[1:], table[text_end], table[text_pad])))

    np.testing.assert_array_equal(prompt, caught["inputs_embeds"][0].numpy())
    np.testing.assert_array_equal(reply, caught["thinker_reply_part"][0].numpy())
    assert caught["input_ids"][0].tolist() == [tiny.MASK] * 4 + [tiny.PAD, tiny.START]
    assert caught["suppress_tokens"] == [tiny.START]
    for name in ("temperature", "top_k", "top_p", "repetition_penalty"):
        assert caught[name] == getattr(SAMPLING, name)
    assert caught["max_new_tokens"] == 4096


def test_inputs_that_do_not_fit_are_refused(built: Built, message: Callable[..., str]) -> None:
    speak, reply = (lambda *given: list(built.talker.speak(*given))), _rows(3, 1)

    assert f"not [2 or more, {WIDTH}]" in message(speak, _rows(1, 1), reply)
    assert f"not [2 or more, {WIDTH}]" in message(speak, np.zeros((4, 5), np.float32), reply)
    assert "the reply has no rows" in message(speak, _rows(4, 1), [], GREEDY)
    assert "the reply has no rows" in message(speak, _rows(4, 1), [np.zeros(5, np.float32)], GREEDY)


def test_files_that_do_not_fit_are_refused(built: Built, tmp_path: Path, message: Callable[..., str]) -> None:
    config = built.checkpoint.config
    np.save(tmp_path / "other.npy", np.zeros((200, WIDTH + 1), np.float32))

    assert "not the embedding table of talker.onnx" in message(Talker, built.graph, tmp_path / "other.npy", config)
    said = message(Talker, built.graph, built.table, {"talker_config": {"tts_codec_pad_token_id": 1}})
    assert said.startswith("config.json: talker_config.tts_codec_start_token_id is None")


def test_the_run_time_needs_nothing_that_builds_the_artifacts() -> None:
    built_with = (
        "torch transformers onnx onnx_ir onnxscript ml_dtypes pydantic typer rich ruamel huggingface_hub psutil"
    )
    hidden = f"import sys\nfor name in {built_with.split()!r}: sys.modules[name] = None\n"
    code = hidden + "import qwen_omni_onnx.talker; print('imported')"

    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.stdout == "imported\n", done.stderr
