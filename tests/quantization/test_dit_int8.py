"""The step of token2wav's diffusion transformer, quantized: what smoothing folds into, and what INT8 keeps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from dit_graphs import LOOK_BACK, TIMES, TINY, Fed, blocked, contract_of, graphs_in, session_of, tiny_dit, utterance

from calibrate.activations import observe
from components.token2wav import CONDITION, STEP
from omni.change import Change
from omni.graph_builder import GraphBuilder
from omni.params import CalibrateParams, QuantizeParams, Scheme
from omni.streamed import save_graph
from omni.weight import Weight, matmuls
from quantize.apply import Calibration, quantize
from quantize.fold import fold
from quantize.schemes import Rewriter
from quantize.smooth import Smoother
from qwen_omni_onnx.common.metrics import sqnr_db
from qwen_omni_onnx.common.session import open_session, run
from qwen_omni_onnx.token2wav.velocity import without_past

LAYERS, WITH_NEIGHBOURS = TINY["num_hidden_layers"], 2


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return graphs_in(tiny_dit(tmp_path_factory))


def _feeds(graphs: dict[str, Path], codes: int, evaluation: int) -> Fed:
    """Inputs of the step."""
    fed, mel = utterance([codes])
    told = run(session_of(graphs[CONDITION]), fed)
    return {"mel": blocked(mel), **told, **without_past(told, LOOK_BACK), "evaluation": np.array(evaluation)}


@pytest.fixture(scope="module")
def calibration(graphs: dict[str, Path]) -> dict[str, Calibration]:
    recordings = {f"{codes}": _feeds(graphs, codes, codes % TIMES) for codes in range(30, 38)}
    params = CalibrateParams(smoothing=0.5, headroom=1.3, nodes={})
    seen = observe(graphs[STEP], contract_of(STEP), params, recordings)
    return {name: Calibration(o.factors, o.histogram.best_range() * 1.3) for name, o in seen.items()}


def _decibels(graphs: dict[str, Path], other: Path) -> float:
    """SQNR of another step's velocities, over times and lengths that nothing was calibrated with."""
    session, velocities = open_session(other, threads=1), []
    for codes, evaluation in ((50, 0), (20, TIMES // 2), (41, TIMES - 1)):
        fed = _feeds(graphs, codes, evaluation)
        velocities.append([run(s, fed)["velocity"].ravel() for s in (session_of(graphs[STEP]), session)])
    return sqnr_db(*(np.concatenate(found) for found in zip(*velocities, strict=True)))


def test_smoothing_folds_into_the_tables_of_scale_and_shift(
    graphs: dict[str, Path], calibration: dict[str, Calibration]
) -> None:
    _, done = quantize(graphs[STEP], QuantizeParams(scheme="int8-token", block=32, nodes={}), calibration)

    how = {name.removesuffix("/MatMul"): entry["smoothing"] for name, entry in done.items()}
    for layer in (f"transformer_blocks.{number}" for number in range(LAYERS)):
        for name in ("to_q", "to_k", "to_v"):
            assert how[f"{layer}.attn.{name}"] == f"folded into {layer}.attn_norm/LayerNormalization"
        assert how[f"{layer}.ff.ff.0"] == f"folded into {layer}.ff_norm/LayerNormalization"
        assert how[f"{layer}.ff.ff.3"] == "Mul"
    assert how["proj_out"] == "folded into norm_out/LayerNormalization"
    outputs = [how[f"transformer_blocks.{layer}.attn.to_out.0"] for layer in range(LAYERS)]
    assert outputs == ["Mul", "Mul", "folded into transformer_blocks.2.attn.to_v/MatMul"]


def test_smoothing_alone_changes_nothing(graphs: dict[str, Path], tmp_path: Path) -> None:
    """Tables, values of attention and a Mul take the factors; every matrix is float32."""
    model = ir.load(graphs[STEP])
    groups = matmuls(model.graph)
    weights = {node: Weight(node.inputs[1].const_value) for nodes in groups.values() for node in nodes}
    rewriter, random, how = Rewriter(GraphBuilder(model.graph), 32), np.random.default_rng(0), []
    for activation, nodes in groups.items():
        factors = np.exp(random.uniform(-3, 3, weights[nodes[0]].shape[0])).astype(np.float32)
        how.append(Smoother(rewriter, weights).apply(activation, nodes, nodes, Change(factors)).record["smoothing"])
    for node, weight in weights.items():
        rewriter.rewrite(node, "float32", weight)
    save_graph(model, tmp_path, "smoothed")

    assert how.count("Mul") == 1 + LAYERS + WITH_NEIGHBOURS  # of mel, behind GELU, behind attention to neighbours
    assert len(how) - how.count("Mul") == 2 * LAYERS + 1 + LAYERS - WITH_NEIGHBOURS
    assert _decibels(graphs, tmp_path / "smoothed.onnx") >= 100
    changed = ir.load(tmp_path / "smoothed.onnx").graph.initializers
    assert changed["transformer_blocks.0.attn_norm.scale_smoothed"].shape == (TIMES, TINY["hidden_size"])


@pytest.mark.parametrize("spoil", ["read elsewhere", "gathered on another axis", "not constant"])
def test_smoothing_does_not_fold_into_a_table_that_it_may_not_change(spoil: str, graphs: dict[str, Path]) -> None:
    graph = ir.load(graphs[STEP]).graph
    activation, nodes = next(
        (value, nodes)
        for value, nodes in matmuls(graph).items()
        if nodes[0].name == "transformer_blocks.1.ff.ff.0/MatMul"
    )
    gather = activation.producer().inputs[2].producer()
    if spoil == "read elsewhere":
        graph.outputs.append(gather.outputs[0])
    elif spoil == "gathered on another axis":
        gather.attributes["axis"] = ir.AttrInt64("axis", 1)
    else:
        gather.replace_input_with(0, graph.inputs[0])
    before = [value.name for value in activation.producer().inputs]

    taker = fold(
        activation,
        nodes,
        Change(np.full(TINY["hidden_size"], 2, np.float32)),
        {nodes[0]: Weight(nodes[0].inputs[1].const_value)},
    )

    assert taker is None
    assert [value.name for value in activation.producer().inputs] == before


@pytest.mark.parametrize(("scheme", "least"), [("int8-token", 28), ("int8-tensor", 25)])
def test_int8_keeps_the_velocity(
    scheme: Scheme, least: float, graphs: dict[str, Path], calibration: dict[str, Calibration], tmp_path: Path
) -> None:
    model, done = quantize(graphs[STEP], QuantizeParams(scheme=scheme, block=32, nodes={}), calibration)
    save_graph(model, tmp_path, "int8")

    assert len(done) == 6 * LAYERS + 2
    assert _decibels(graphs, tmp_path / "int8.onnx") > least
