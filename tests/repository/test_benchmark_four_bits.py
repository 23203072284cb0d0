"""The benchmark of 4 bits makes every peer, judges and ranks it; what cannot be made has a reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from fenced import first_columns
from onnx import helper, numpy_helper
from onnxruntime import InferenceSession

from benchmarks.decoder import genai
from benchmarks.decoder.bench import FLOAT32
from benchmarks.four_bits import __main__ as benchmark
from benchmarks.four_bits.judge import Judge, token_ids, weights
from benchmarks.four_bits.peers import OURS
from benchmarks.four_bits.tools import writers
from qwen_omni_onnx.common import golden
from qwen_omni_onnx.common.agreement import FLOAT, QUANTIZED
from qwen_omni_onnx.common.artifact import read_json
from qwen_omni_onnx.common.metrics import sqnr_db
from qwen_omni_onnx.embedding import EmbeddingTable

GENAI = [f"{genai.GENAI}, {name}" for name in ("default", "k_quant", "k_quant_mixed")]
ROUNDED = [f"ORT RTN, {kind}, {block}" for block in (32, 128) for kind in ("symmetric", "zero points")]
GPTQ = ["ORT GPTQ, damping 0.01, 32", "ORT GPTQ, damping 1, 32"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["thinker", "talker"])
def test_every_peer_is_made_judged_and_ranked(
    name: str, chain: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(genai, "installed", lambda: False)

    benchmark.main(component=name, ours=[f"again=models/quantized/{name}"], rounds=1, json=Path("found.json"))

    found = read_json(Path("found.json"))
    made = {row["peer"]: row for row in found["peers"] if "reason" not in row}
    reasons = {row["peer"]: row["reason"] for row in found["peers"] if "reason" in row}
    # These two tools cannot pack the zero points of an odd number of blocks, which tiny matrices have.
    odd = {*GPTQ, "ORT k-quant, 32", "ORT k-quant, 128"}
    assert set(reasons) == {*GENAI, *odd}
    assert all(reasons[peer].startswith("ValueError: cannot reshape array of size") for peer in odd)
    assert all(reasons[peer].endswith("not installed (pip install '.[bench]')") for peer in GENAI)
    assert {FLOAT32, OURS, "ours again", *ROUNDED, "ORT HQQ, 32"} <= set(made)
    assert [row["kl"] for row in made.values()] == sorted(row["kl"] for row in made.values())
    assert next(iter(made)) == FLOAT32
    assert (made[FLOAT32]["kl"], made[FLOAT32]["top1"], made[FLOAT32]["bits"]) == (0, 1, 32)
    assert made["ours again"]["kl"] == made[OURS]["kl"]
    for peer, row in made.items():
        assert row["head_bits"] == (32 if peer == FLOAT32 else 8), peer
        assert row["bits"] > 4
        assert row["tokens"] == found["tokens"]
        assert row["step"]["speedup"] > 0
        assert row["prefill"]["speedup"] > 0
    for peer in ROUNDED:
        assert made[FLOAT32]["mb"] > made[peer]["mb"]
        assert made[peer]["bits"] < 10  # tiny matrices are padded to whole blocks
        assert made[peer]["kl"] > made.get("ours int8-block, 32", made[OURS])["kl"]
    assert not [path for path in Path("models").iterdir() if path.name.startswith(".")]
    printed = capsys.readouterr().out
    bold = [f"**{peer}**" if peer == OURS else peer for peer in made]
    assert first_columns(printed) == [bold]
    assert all(f"{peer}: {reason}" in printed for peer, reason in reasons.items())


def test_a_tool_that_fails_has_a_reason_and_ours_must_not_fail(chain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> Path:
        raise ValueError("no such\nblock")

    chosen = ["ORT HQQ*", "ours int4-block, 128"]
    monkeypatch.setattr("benchmarks.four_bits.tools._write", broken)
    benchmark.main(component="talker", only=chosen, rounds=1, json=Path("found.json"))

    found = read_json(Path("found.json"))["peers"]
    assert {row["peer"] for row in found} == {FLOAT32, OURS, "ORT HQQ, 32", "ours int4-block, 128"}
    assert found[-1] == {"peer": "ORT HQQ, 32", "reason": "ValueError: no such block"}

    monkeypatch.setattr("benchmarks.four_bits.peers.write_ours", broken)
    with pytest.raises(ValueError, match="no such"):
        benchmark.main(component="talker", only=chosen, rounds=1)


def test_every_tool_rounds_the_layers_to_4_bits_and_the_head_to_8(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    width, classes = 256, 96  # an even number of blocks of 32 and of 128
    matrices = {"layer": (width, width), "lm_head.0": (width, classes)}
    weights = {name: random.standard_normal(shape, np.float32) / 16 for name, shape in matrices.items()}
    nodes = [
        helper.make_node("MatMul", ["x", "layer"], ["h"], "layer/MatMul"),
        helper.make_node("MatMul", ["h", "lm_head.0"], ["y"], "lm_head.0/MatMul"),
    ]
    ports = [
        helper.make_tensor_value_info(name, 1, [1, "seq", channels])
        for name, channels in (("x", width), ("y", classes))
    ]
    constants = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "two", ports[:1], ports[1:], constants)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "two.onnx")
    feeds = [{"x": random.standard_normal((1, 40, width), np.float32)} for _ in range(2)]
    expected = feeds[0]["x"] @ weights["layer"] @ weights["lm_head.0"]

    found = {}
    for name, write in writers(tmp_path / "two.onnx", "lm_head", feeds).items():
        folder = tmp_path / name
        folder.mkdir()
        file = write(folder)
        bits = {node.name.split("/")[0]: node.attributes["bits"].as_int() for node in ir.load(file).graph}
        assert bits == {"layer": 4, "lm_head.0": 8}, name
        found[name] = sqnr_db(expected, InferenceSession(file).run(None, feeds[0])[0])

    assert set(found) == {*ROUNDED, *GPTQ, "ORT HQQ, 32", "ORT k-quant, 32", "ORT k-quant, 128"}
    assert min(found.values()) > 14
    assert found[GPTQ[0]] > found["ORT RTN, zero points, 32"]  # on what it was calibrated with


@pytest.mark.parametrize("name", ["thinker", "talker"])
def test_onnxruntime_genai_is_judged_by_the_same_rows(name: str, chain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime_genai")
    # A token of the tiny vocabulary for each row: the golden cases' are few enough.
    cases = [ports["inputs_embeds"] for _, ports in golden.read(benchmark._setting(name).measured.golden)]
    monkeypatch.setattr(benchmark, "read", lambda *_: dict(enumerate(row for rows in cases for row in rows)))

    only = [*GENAI, "ORT RTN, symmetric, 32"]
    benchmark.main(component=name, only=only, rounds=1, json=Path("found.json"))

    rows = {row["peer"]: row for row in read_json(Path("found.json"))["peers"]}
    plain, rounded = rows[GENAI[0]], rows["ORT RTN, symmetric, 32"]
    assert 0 < plain["kl"] < 1.3 * rounded["kl"]  # the Talker's projection is not quantized there
    assert plain["head_bits"] == 8
    assert plain["step"]["speedup"] > 0
    for peer in GENAI[1:]:  # with an odd number of blocks
        assert "ValueError: cannot reshape array of size" in rows[peer]["reason"]


def test_divergence_is_counted_with_and_without_first_tokens(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    recordings = [random.standard_normal((count, 4), np.float32) for count in (3, 5)]
    expected = {rows.tobytes(): random.standard_normal((len(rows), 11)).astype(np.float32) for rows in recordings}
    ids = [random.integers(0, 11, len(rows)) for rows in recordings]
    judge = Judge(recordings, ids, lambda rows: expected[rows.tobytes()], tmp_path)

    def first_is_off(rows: np.ndarray) -> np.ndarray:
        logits = expected[rows.tobytes()].copy()
        logits[0] = np.roll(logits[0], 1)
        return logits

    same, off = judge(lambda rows: expected[rows.tobytes()]), judge(first_is_off)

    assert (same.tokens, same.kl, same.kl_later, same.top1) == (8, 0, 0, 1)
    assert off.kl > 0
    assert off.kl_later == pytest.approx(0, abs=1e-12)
    assert off.top1 == 6 / 8
    surprises = []
    for rows, tokens in zip(recordings, ids, strict=True):
        p = np.exp(expected[rows.tobytes()].astype(np.float64))
        p /= p.sum(-1, keepdims=True)
        surprises += [-np.log(p[place, tokens[place + 1]]) for place in range(len(rows) - 1)]
    assert same.perplexity == pytest.approx(np.exp(np.mean(surprises)))
    assert Judge(recordings, None, judge_forward(expected), tmp_path)(judge_forward(expected)).perplexity is None


def judge_forward(expected: dict[bytes, np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    return lambda rows: expected[rows.tobytes()]


def test_logits_that_are_no_numbers_or_of_another_shape_are_refused(
    tmp_path: Path, message: Callable[..., str]
) -> None:
    rows = np.ones((3, 4), np.float32)
    judge = Judge([rows], None, lambda _: np.ones((3, 5), np.float32), tmp_path)

    assert "logits [3, 6] are not [3, 5] finite numbers" in message(judge, lambda _: np.ones((3, 6), np.float32))
    assert "finite" in message(judge, lambda _: np.full((3, 5), np.nan, np.float32))


def test_tokens_are_found_where_every_row_is_of_the_table(tmp_path: Path) -> None:
    table = np.random.default_rng(0).standard_normal((50, 6)).astype(np.float16)
    np.save(tmp_path / "table.npy", table)
    opened = EmbeddingTable(tmp_path / "table.npy")
    ids = [np.array([3, 49, 3]), np.array([0])]
    recordings = [table[tokens].astype(np.float32) for tokens in ids]

    found = token_ids(recordings, opened)

    assert found is not None
    assert [tokens.tolist() for tokens in found] == [[3, 49, 3], [0]]
    assert token_ids([*recordings, recordings[0] + 1], opened) is None
    assert token_ids([np.zeros((2, 5), np.float32)], opened) is None


def test_bits_are_counted_of_the_layers_alone(chain: Path) -> None:
    setting = benchmark._setting("talker")
    floating, quantized = (weights(setting.graph.files[kind], setting.head) for kind in (FLOAT, QUANTIZED))

    size = setting.bench.size
    projected = size.embedding * size.hidden
    attention = size.hidden * (2 * size.heads + 2 * size.kv_heads) * size.head_dim
    inner = 3 * size.hidden * size.inner
    assert floating.layer_bytes == 4 * (projected + size.layers * (attention + inner))
    assert floating.head_bits == 32
    assert quantized.layer_bytes < floating.layer_bytes
    assert quantized.mb < floating.mb


def test_what_is_not_allowed_is_refused(chain: Path, message: Callable[..., str]) -> None:
    Path("empty").mkdir()

    assert "encoder: not a decoder: give talker or thinker" in message(benchmark.main, component="encoder")
    for text in ("int4", "=folder", "name="):
        assert f"--ours: {text!r} is not allowed: give NAME=FOLDER" in message(benchmark.main, ours=[text])
    assert "--ours: empty: 0 graphs" in message(benchmark.main, ours=["name=empty"])
    assert "--only: 'gguf*' is none of ours int4-block, 32; " in message(
        benchmark.main, component="talker", only=["gguf*"]
    )
    assert "nowhere: no such folder" in message(benchmark.main, json=Path("nowhere/found.json"))
