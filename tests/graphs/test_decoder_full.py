"""The Talker at full depth: every layer of it, from a checkpoint of the real size, beside transformers'."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tiny_decoder as tiny
from conftest import ROOT
from transformers import DynamicCache

from components.talker import COMPONENT, DECODER
from export.decoder import Schemes, write
from omni.checkpoint import Checkpoint
from pull import synthetic
from qwen_omni_onnx.common.metrics import sqnr_db
from qwen_omni_onnx.decoder import Decoder
from qwen_omni_onnx.embedding import EmbeddingTable

pytestmark = pytest.mark.slow
FLOAT_DB = 100


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Checkpoint, Path]]:
    """Checkpoint and folder; 3 GB."""
    folder = tmp_path_factory.mktemp("talker")
    synthetic.write(COMPONENT, 0, "full", folder / "source", ROOT / "pull/qwen2_5_omni_7b")
    yield Checkpoint(folder / "source"), folder
    shutil.rmtree(folder)


def test_64_greedy_steps_agree_with_transformers_at_full_depth(talker: tuple[Checkpoint, Path]) -> None:
    checkpoint, folder = talker
    onnx = folder / "onnx"
    onnx.mkdir()
    write(DECODER, checkpoint, onnx)
    decoder, table = Decoder(onnx / "talker.onnx", 32_768), EmbeddingTable(onnx / "codec_embedding.npy")
    original = tiny.original("talker", checkpoint)
    said = np.random.default_rng(0).standard_normal((1, 50, decoder.width), np.float32)
    conversation, cache = decoder.begin(), DynamicCache()

    answer = conversation.prefill(said)
    logits, hidden = original(said, cache)
    assert len(decoder.caches) == 2 * 24
    assert sqnr_db(hidden, answer.hidden) >= FLOAT_DB
    ours, theirs = [], []
    for _ in range(64):
        ours.append(answer.logits[0])
        theirs.append(logits[0, -1])
        assert ours[-1].argmax() == theirs[-1].argmax()
        new = table(int(ours[-1].argmax()))[None, None]
        answer = conversation.step(new)
        logits, _ = original(new, cache)
    # 24 layers of float32 rounding: a single step may be a few decibels below what all of them have together.
    assert min(map(sqnr_db, theirs, ours)) >= FLOAT_DB - 10
    assert sqnr_db(np.stack(theirs), np.stack(ours)) >= FLOAT_DB


def test_int8_by_the_block_is_half_the_checkpoint_and_near_it(talker: tuple[Checkpoint, Path]) -> None:
    checkpoint, folder = talker
    onnx = folder / "int8"
    onnx.mkdir()
    write(DECODER, checkpoint, onnx, Schemes("int8-block"))
    decoder = Decoder(onnx / "talker.onnx", 32_768)
    said = np.random.default_rng(0).standard_normal((1, 50, decoder.width), np.float32)

    logits, hidden = decoder.forward(said, np.array([50]))

    expected = tiny.original("talker", checkpoint)(said)
    assert sqnr_db(expected[0], logits) > 15  # every layer adds its share of noise
    assert sqnr_db(expected[1], hidden) > 15
    stored = sum(checkpoint.spec(name).nbytes for name in COMPONENT.tensors(checkpoint.config))
    assert (onnx / "talker.onnx.data").stat().st_size < 0.58 * stored
