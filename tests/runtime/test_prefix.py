"""Keys and values of what prompts begin with: kept on disk, they save reading, and nothing depends on them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny_decoder as tiny

from qwen_omni_onnx.common.metrics import sqnr_db
from qwen_omni_onnx.decoder import DecodingSession
from qwen_omni_onnx.thinker.prefix import PrefixStore, prefix_tokens
from qwen_omni_onnx.thinker.prompts import Prompt
from qwen_omni_onnx.thinker.runtime import PrefilledPrompt, Thinker

BEGIN, END, SOUND = (tiny.SPECIAL_TOKENS[name] for name in ("bos_token_id", "eos_token_id", "audio_token_index"))
SYSTEM = [BEGIN, 7, 8, 9, 10, END]


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Thinker:
    folder, table = tmp_path_factory.mktemp("thinker"), tiny.config()
    table["thinker_config"] |= tiny.SPECIAL_TOKENS
    table["talker_config"] |= tiny.TTS_TOKENS
    graph = tiny.write_graph("thinker", tiny.write_source("thinker", table, folder), folder / "onnx")
    return Thinker(graph, graph.with_name("token_embedding.npy"), table, threads=1)


@pytest.fixture
def thinker(opened: Thinker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Thinker:
    """The Thinker with an empty place for what is kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    keeping = copy.copy(opened)
    keeping.prefixes = PrefixStore("graph")
    return keeping


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokens that the graph read, run by run."""
    runs: list[int] = []
    usual = DecodingSession.prefill

    def watch(session: DecodingSession, embeds: np.ndarray, *rest: object) -> object:
        runs.append(embeds.shape[1])
        return usual(session, embeds, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(DecodingSession, "prefill", watch)
    return runs


def _prompt(thinker: Thinker, question: int = 20, system: list[int] = SYSTEM) -> Prompt:
    return thinker.prompt(np.array([*system, BEGIN, question, question + 1, END, BEGIN]))


def _said(prefilled: PrefilledPrompt) -> list[int]:
    return [token.id for token in prefilled.generate(max_new_tokens=12)]


def _kept(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache/qwen-omni-onnx/prefixes").glob("*"))


def test_a_system_prompt_is_read_once(thinker: Thinker, opened: Thinker, read: list[int], tmp_path: Path) -> None:
    first, second = thinker.prefill(_prompt(thinker)), thinker.prefill(_prompt(thinker))
    other = thinker.prefill(_prompt(thinker, question=30))

    assert read == [6, 5, 5, 5]
    assert np.array_equal(first.hidden, second.hidden)
    assert _said(first) == _said(second)
    assert len(_kept(tmp_path)) == 1
    for prefilled, question in ((first, 20), (other, 30)):
        expected = opened.prefill(_prompt(opened, question))
        assert sqnr_db(expected.hidden, prefilled.hidden) >= 100
    assert _said(other) == _said(expected)


@pytest.mark.parametrize("damage", [
    lambda content: b"",
    lambda content: content[: len(content) // 2],
    lambda content: content[:600] + bytes([content[600] ^ 1]) + content[601:],
    lambda content: b"PK" + content[5:],
    lambda content: b"\x93NUMPY" + content[6:],
])  # fmt: skip
def test_what_is_damaged_is_read_again(
    damage: Callable[[bytes], bytes], thinker: Thinker, read: list[int], tmp_path: Path
) -> None:
    first = thinker.prefill(_prompt(thinker))
    (path,) = _kept(tmp_path)
    path.write_bytes(damage(path.read_bytes()))
    read.clear()

    second, third = thinker.prefill(_prompt(thinker)), thinker.prefill(_prompt(thinker))

    assert read == [6, 5, 5]
    assert np.array_equal(first.hidden, second.hidden)
    assert np.array_equal(first.hidden, third.hidden)


@pytest.mark.parametrize("cut", [("hidden", 1), ("keys_and_values", 2), ("keys_and_values", 0)])
def test_arrays_of_another_shape_are_not_taken(
    cut: tuple[str, int], thinker: Thinker, read: list[int], tmp_path: Path
) -> None:
    first = thinker.prefill(_prompt(thinker))
    (path,) = _kept(tmp_path)
    arrays = dict(np.load(path))
    name, axis = cut
    arrays[name] = np.delete(arrays[name], 0, axis)
    np.savez(path, **arrays)
    read.clear()

    assert np.array_equal(first.hidden, thinker.prefill(_prompt(thinker)).hidden)
    assert read == [6, 5]


def test_another_graph_and_another_system_prompt_are_kept_apart(
    thinker: Thinker, read: list[int], tmp_path: Path
) -> None:
    thinker.prefill(_prompt(thinker))
    thinker.prefill(_prompt(thinker, system=[BEGIN, 7, 8, 9, 11, END]))
    thinker.prefixes = PrefixStore("another")
    thinker.prefill(_prompt(thinker))

    assert read == [6, 5] * 3
    assert len(_kept(tmp_path)) == 3


def test_the_oldest_go(thinker: Thinker, tmp_path: Path) -> None:
    for number in range(10):
        thinker.prefill(_prompt(thinker, system=[BEGIN, number, END]))

    assert len(_kept(tmp_path)) == 8
    assert all(path.suffix == ".npz" for path in _kept(tmp_path))


@pytest.mark.parametrize("place", ["{file}", "/proc", "here"])
def test_without_a_place_nothing_is_kept(
    place: str, thinker: Thinker, read: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOME", "here")
    monkeypatch.setenv("XDG_CACHE_HOME", place.format(file=tmp_path / "file"))

    first, second = thinker.prefill(_prompt(thinker)), thinker.prefill(_prompt(thinker))

    assert read == [6, 5, 6, 5]
    assert np.array_equal(first.hidden, second.hidden)


def test_only_a_first_turn_of_text_is_a_prefix(thinker: Thinker) -> None:
    def length(ids: list[int]) -> int:
        return prefix_tokens(np.array(ids), thinker.special_tokens)

    assert length([*SYSTEM, BEGIN, SOUND, END, BEGIN]) == len(SYSTEM)
    assert length([BEGIN, 5, END, BEGIN]) == 0  # a question alone
    assert length([BEGIN, SOUND, END, BEGIN, 5, END, BEGIN]) == 0
    assert length([BEGIN, *[5] * 600, END, BEGIN, 5, END, BEGIN]) == 0
