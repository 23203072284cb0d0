"""Exact keys and values of the first tokens: the benchmark measures what they would gain."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from tiny_decoder import POSITIONS

from benchmarks import sinks
from omni.inputs import FOLDER, HELD_OUT
from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.common.metrics import kl_divergence, token_kl
from qwen_omni_onnx.decoder import Decoder

GRAPHS = [Path("models") / kind / "talker" / f"{graph}.onnx"
          for kind, graph in (("onnx", "talker"), ("quantized", "talker_int8"))]  # fmt: skip


def test_a_row_of_each_prefix_says_what_the_other_tokens_gain(chain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sinks.main("talker", tokens=20, recordings=2, json=Path("found.json"))

    found = artifact.read_json(Path("found.json"))
    clips = [clip[:20] for _, clip in sorted(load_file(FOLDER / "talker" / f"{HELD_OUT}.safetensors").items())][:2]
    exact, quantized = ([_logits(graph, clip) for clip in clips] for graph in GRAPHS)
    rows = {(row["graph"], row["prefix"]): row for row in found["rows"]}
    assert list(rows) == [(graph, prefix) for graph in ("as built", "int8-block") for prefix in (0, 1, 4, 16)]
    for prefix in (0, 4):
        kl = [token_kl(wanted[prefix:], given[prefix:]) for wanted, given in zip(exact, quantized, strict=True)]
        row = rows["as built", prefix]
        assert row["alone_kl"] == pytest.approx(np.concatenate(kl).mean(), rel=1e-3)
        assert row["tokens"] == sum(map(len, kl)) == 2 * (20 - prefix)
    # What is exact is exact in the quantized graph's terms, whose cached values smoothing has divided.
    assert rows["as built", 4]["exact_kl"] != rows["as built", 4]["alone_kl"]
    assert rows["as built", 16]["exact_kl"] < 1.5 * rows["as built", 16]["alone_kl"]
    assert found["token_bytes"] == 4 * sum(np.prod(cache) for cache in _caches())
    assert "KL saved" in capsys.readouterr().out


def test_what_follows_an_exact_past_in_the_float32_graph_is_what_follows_it_anyway(chain: Path) -> None:
    decoder = Decoder(GRAPHS[0], POSITIONS, threads=1)
    clip = next(iter(load_file(FOLDER / "talker" / f"{HELD_OUT}.safetensors").values()))[:20]

    recording = sinks._exact(decoder, clip, {})

    for prefix in (1, 16):
        assert kl_divergence(recording.logits[prefix:], sinks._logits(decoder, recording, prefix)) < 1e-9


def test_what_is_no_decoder_has_no_keys_and_values(chain: Path, message: Callable[..., str]) -> None:
    assert message(sinks.main, "encoder") == (
        "encoder: no decoder, and has no keys and values; give one of thinker, talker"
    )


def _logits(graph: Path, clip: np.ndarray) -> np.ndarray:
    return Decoder(graph, POSITIONS, threads=1).forward(clip[None], np.array([len(clip)]))[0][0]


def _caches() -> list[tuple[int, int]]:
    decoder = Decoder(GRAPHS[0], POSITIONS, threads=1)
    return [(decoder.kv_heads, decoder.head_dim) for _ in decoder.caches]
