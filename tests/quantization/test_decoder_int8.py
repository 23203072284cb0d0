"""Decoders, quantized by calibration: what smoothing folds into, through grouped heads too, and what INT8 keeps."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import tiny_decoder as tiny

from calibrate.activations import Observation, observe
from omni.change import Change
from omni.checkpoint import Checkpoint
from omni.component import Outliers
from omni.graph_builder import GraphBuilder
from omni.grouped_query import shared_channels
from omni.params import CalibrateParams, QuantizeParams, Scheme
from omni.streamed import save_graph
from omni.weight import Weight, matmuls
from quantize.apply import Calibration, quantize
from quantize.fold import fold
from quantize.schemes import Rewriter
from quantize.smooth import Smoother
from qwen_omni_onnx.common.metrics import sqnr_db
from qwen_omni_onnx.decoder import Decoder

LAYERS, HEADS, KV_HEADS, HEAD_DIM, INNER = 3, 4, 2, 16, 112
PLANTED = {
    "*layernorm.weight": Outliers(2, 10, 20),
    "*.v_proj.weight": Outliers(2, 10, 20),
    "*.up_proj.weight": Outliers(3, 20, 40),
}


@dataclass
class Tiny:
    """A tiny decoder with outliers, and what calibrates it."""

    name: str
    checkpoint: Checkpoint
    graph: Path
    recordings: dict[str, dict[str, np.ndarray]]

    def observe(self, smoothing: float) -> dict[str, Observation]:
        contract = tiny.PARTS[self.name].COMPONENT.contracts(self.checkpoint.config)[self.name]
        return observe(
            self.graph, contract, CalibrateParams(smoothing=smoothing, headroom=1.3, nodes={}), self.recordings
        )

    def calibrated(self, smoothing: float) -> dict[str, Calibration]:
        seen = self.observe(smoothing)
        return {name: Calibration(o.factors, o.histogram.best_range() * 1.3) for name, o in seen.items()}

    def quantized(self, folder: Path, scheme: Scheme, smoothing: float = 0.5) -> tuple[Path, dict[str, dict[str, str]]]:
        params = QuantizeParams(scheme=scheme, block=32, nodes={})
        model, done = quantize(self.graph, params, self.calibrated(smoothing))
        stem = f"{scheme}-{smoothing}"
        save_graph(model, folder, stem)
        return folder / f"{stem}.onnx", done

    def decibels(self, other: Path) -> float:
        """SQNR of another graph's logits and hidden states: of a prompt, of the rest of it, and of steps after it."""
        ours, theirs = (_said(tiny.open_decoder(graph)) for graph in (self.graph, other))
        return min(sqnr_db(one, another) for one, another in zip(ours, theirs, strict=True))


def _said(decoder: Decoder) -> tuple[np.ndarray, np.ndarray]:
    """Logits and hidden states of a conversation, whose cache the graph fills and reads."""
    random = np.random.default_rng(99)
    conversation = decoder.begin()
    answers = [conversation.prefill(_embeds(random, decoder.width, tokens)) for tokens in (20, 7)]
    answers += [conversation.step(_embeds(random, decoder.width, 1)) for _ in range(5)]
    return np.concatenate([a.logits for a in answers]), np.concatenate([a.hidden for a in answers], 1)


def _embeds(random: np.random.Generator, width: int, tokens: int) -> np.ndarray:
    return random.standard_normal((1, tokens, width), np.float32)


def _recordings(decoder: Decoder) -> dict[str, dict[str, np.ndarray]]:
    """All inputs of clips that begin: nothing is past."""
    random = np.random.default_rng(1)
    past = dict.fromkeys(decoder.caches, np.zeros((1, decoder.kv_heads, 0, decoder.head_dim), np.float32))
    return {
        f"clip-{tokens}": {
            "inputs_embeds": _embeds(random, decoder.width, tokens),
            "attention_mask": np.ones((1, tokens), np.int64),
            "logits_to_keep": np.arange(tokens)[None],
            **past,
        }
        for tokens in (30, 5, 41)
    }


@pytest.fixture(scope="module", params=tiny.PARTS)
def decoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    folder = tmp_path_factory.mktemp(request.param)
    checkpoint = tiny.write_source(request.param, tiny.config(), folder, PLANTED)
    graph = tiny.write_graph(request.param, checkpoint, folder / "onnx")
    return Tiny(request.param, checkpoint, graph, _recordings(tiny.open_decoder(graph)))


def _folding(graph_file: Path) -> tuple[ir.Model, dict[ir.Value, list[ir.Node]], dict[ir.Node, Weight]]:
    model = ir.load(graph_file)
    groups = matmuls(model.graph)
    return model, groups, {node: Weight(node.inputs[1].const_value) for nodes in groups.values() for node in nodes}


def _readers_of(groups: dict[ir.Value, list[ir.Node]], name: str) -> tuple[ir.Value, list[ir.Node]]:
    return next((value, nodes) for value, nodes in groups.items() if nodes[0].name == f"{name}/MatMul")


# Folding


def test_smoothing_folds_into_norms_values_and_up_in_every_layer(decoder: Tiny, tmp_path: Path) -> None:
    graph, done = decoder.quantized(tmp_path, "int8-token")

    onnx.checker.check_model(str(graph))
    how = {name.removesuffix("/MatMul"): entry["smoothing"] for name, entry in done.items()}
    for number in range(LAYERS):
        layer = f"model.layers.{number}"
        norm = "SkipSimplifiedLayerNormalization" if number else "Mul"
        assert how.pop(f"{layer}.self_attn.qkv_proj") == f"folded into {layer}.input_layernorm/{norm}"
        assert how.pop(f"{layer}.self_attn.o_proj") == f"folded into {layer}.self_attn.qkv_proj/MatMul"
        for name in ("gate_proj", "up_proj"):
            after = f"{layer}.post_attention_layernorm/SkipSimplifiedLayerNormalization"
            assert how.pop(f"{layer}.mlp.{name}") == f"folded into {after}"
        assert how.pop(f"{layer}.mlp.down_proj") == f"folded into {layer}.mlp.up_proj/MatMul"
    rest = {"codec_head.0", "codec_head.1", "thinker_to_talker_proj"}  # what reads an output or an input of the graph
    assert how == dict.fromkeys(rest if decoder.name == "talker" else [f"lm_head.{part}" for part in range(3)], "Mul")


def test_smoothing_alone_changes_neither_logits_nor_hidden_states(decoder: Tiny, tmp_path: Path) -> None:
    """Random factors in every place; every matrix is float32. The cache that is read is the one that was written."""
    model, groups, weights = _folding(decoder.graph)
    rewriter, random, how = Rewriter(GraphBuilder(model.graph), 32), np.random.default_rng(0), []
    for activation, nodes in groups.items():
        channels = weights[nodes[0]].shape[0]
        factors = np.exp(random.uniform(-3, 3, channels)).astype(np.float32)
        shared = shared_channels(activation, channels)
        factors = factors if shared is None else factors[shared]
        how.append(Smoother(rewriter, weights).apply(activation, nodes, nodes, Change(factors)).record["smoothing"])
    for node, weight in weights.items():
        rewriter.rewrite(node, "float32", weight)
    save_graph(model, tmp_path, "smoothed")

    assert len(how) - how.count("Mul") == 4 * LAYERS
    assert decoder.decibels(tmp_path / "smoothed.onnx") >= 100


def test_the_present_values_are_divided_and_the_keys_are_not(decoder: Tiny, tmp_path: Path) -> None:
    model, groups, weights = _folding(decoder.graph)
    activation, nodes = _readers_of(groups, "model.layers.0.self_attn.o_proj")
    divisors = np.exp(np.random.default_rng(0).uniform(-3, 3, KV_HEADS * HEAD_DIM)).astype(np.float32)

    assert fold(activation, nodes, Change(divisors[shared_channels(activation, HEADS * HEAD_DIM)]), weights)

    rewriter = Rewriter(GraphBuilder(model.graph), 32)
    for node, weight in weights.items():
        rewriter.rewrite(node, "float32", weight)
    save_graph(model, tmp_path, "folded")
    fed = decoder.recordings["clip-30"]
    wanted = ["present.0.key", "present.0.value"]
    before, after = (
        tiny.open_decoder(graph).session.run(wanted, fed) for graph in (decoder.graph, tmp_path / "folded.onnx")
    )
    np.testing.assert_array_equal(after[0], before[0])
    divided = before[1] / divisors.reshape(KV_HEADS, 1, HEAD_DIM)
    assert sqnr_db(divided, after[1]) >= 100


def test_heads_that_share_their_values_share_factors(decoder: Tiny) -> None:
    _, groups, _ = _folding(decoder.graph)
    attended, _ = _readers_of(groups, "model.layers.1.self_attn.o_proj")
    other, _ = _readers_of(groups, "model.layers.1.mlp.down_proj")

    shared = shared_channels(attended, HEADS * HEAD_DIM)

    assert shared is not None
    assert shared_channels(other, INNER) is None
    for head, channels in enumerate(shared.reshape(HEADS, HEAD_DIM)):
        np.testing.assert_array_equal(channels, head // 2 * HEAD_DIM + np.arange(HEAD_DIM))


def test_factors_of_shared_values_follow_the_loudest_of_their_channels(decoder: Tiny) -> None:
    _, groups, weights = _folding(decoder.graph)
    activation, (node,) = _readers_of(groups, "model.layers.1.self_attn.o_proj")

    seen = decoder.observe(0.5)[str(activation.name)]

    def loudest(magnitudes: np.ndarray) -> np.ndarray:
        by_head = magnitudes.reshape(KV_HEADS, HEADS // KV_HEADS, HEAD_DIM).max(1, keepdims=True)
        return np.broadcast_to(by_head, (KV_HEADS, HEADS // KV_HEADS, HEAD_DIM)).ravel()

    expected = np.sqrt(loudest(seen.absmax) / loudest(weights[node].row_absmax()))
    np.testing.assert_allclose(seen.factors, expected / np.exp(np.log(expected).mean()), rtol=1e-5)


def test_unequal_factors_of_heads_that_share_values_do_not_fold(decoder: Tiny) -> None:
    _, groups, weights = _folding(decoder.graph)
    activation, nodes = _readers_of(groups, "model.layers.0.self_attn.o_proj")
    factors = np.ones(HEADS * HEAD_DIM, np.float32)
    factors[0] = 2

    assert fold(activation, nodes, Change(factors), weights) is None
    assert all(weight.column_scale is None for weight in weights.values())


def test_gate_never_takes_the_factors(decoder: Tiny) -> None:
    """silu(gate) is left once up's layer is not one to scale; gate's, whose output silu reads twice, is not touched."""
    _, groups, weights = _folding(decoder.graph)
    activation, nodes = _readers_of(groups, "model.layers.0.mlp.down_proj")
    up = next(node for node in weights if node.name == "model.layers.0.mlp.up_proj/MatMul")

    taker = fold(
        activation,
        nodes,
        Change(np.full(INNER, 2, np.float32)),
        {node: weight for node, weight in weights.items() if node is not up},
    )

    assert taker is None
    assert all(weight.column_scale is None for weight in weights.values())


def test_up_does_not_take_the_factors_where_another_node_reads_it(decoder: Tiny) -> None:
    model, groups, weights = _folding(decoder.graph)
    activation, nodes = _readers_of(groups, "model.layers.0.mlp.down_proj")
    up = next(node for node in weights if node.name == "model.layers.0.mlp.up_proj/MatMul")
    model.graph.outputs.append(up.outputs[0])

    assert fold(activation, nodes, Change(np.full(INNER, 2, np.float32)), weights) is None
    assert all(weight.column_scale is None for weight in weights.values())


def test_the_sum_beside_a_norm_does_not_take_its_factors(decoder: Tiny) -> None:
    """Output 3 of the operator is the residual stream, which its weight does not touch."""
    _, groups, weights = _folding(decoder.graph)
    normed, nodes = _readers_of(groups, "model.layers.1.self_attn.qkv_proj")
    summed = normed.producer().outputs[3]
    for use in list(summed.uses()):
        use.node.replace_input_with(use.idx, normed)
    nodes[0].replace_input_with(0, summed)

    assert fold(summed, nodes, Change(np.full(64, 2, np.float32)), weights) is None


# INT8


@pytest.mark.parametrize(("scheme", "least"), [("int8-token", 25), ("int8-tensor", 19), ("int8-static", 16)])
def test_int8_keeps_logits_and_hidden_states(decoder: Tiny, scheme: Scheme, least: float, tmp_path: Path) -> None:
    graph, done = decoder.quantized(tmp_path, scheme)

    assert {entry["scheme"] for entry in done.values()} == {scheme}
    assert decoder.decibels(graph) > least


def test_smoothing_keeps_outliers_from_spoiling_the_rest(decoder: Tiny, tmp_path: Path) -> None:
    smoothed, rough = (decoder.quantized(tmp_path, "int8-token", smoothing)[0] for smoothing in (0.5, 0.0))

    assert decoder.decibels(smoothed) > decoder.decibels(rough) + 3
