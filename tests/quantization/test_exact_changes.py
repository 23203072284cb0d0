"""Shift, factors and rotation of activations: nothing changes but what quantization makes of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx_ir.passes.common import RemoveUnusedNodesPass, TopologicalSortPass

from calibrate.activations import observe
from omni.change import Change
from omni.graph_builder import GraphBuilder
from omni.hadamard import matrix, rotate
from omni.params import CalibrateParams, NodeCalibration, QuantizeParams
from omni.streamed import save_graph
from omni.weight import Weight, matmuls
from quantize.apply import Calibration, quantize
from quantize.fold import shifts_softmax_alone
from quantize.schemes import Rewriter
from quantize.smooth import Smoother
from qwen_omni_onnx.common.contract import GraphContract, Port
from qwen_omni_onnx.common.metrics import sqnr_db
from qwen_omni_onnx.common.session import open_session, run

WIDTH, HEADS, INNER = 32, 2, 48
CONTRACT = GraphContract(
    inputs=(Port("x", "FLOAT", ("batch", "seq", WIDTH)),),
    outputs=(Port("y", "FLOAT", ("batch", "seq", WIDTH)),),
    ir_version=10,
    length="seq",
)


def _layer(folder: Path, *, key_bias: bool = False) -> Path:
    """Write a layer of an encoder: norm, attention, norm, fc1, GELU, fc2; keys have no bias, as in Whisper."""
    random = np.random.default_rng(0)
    weights: dict[str, np.ndarray] = {}

    def constant(name: str, *shape: int) -> str:
        weights[name] = random.standard_normal(shape).astype(np.float32) / np.float32(np.sqrt(shape[0]))
        return name

    def linear(name: str, source: str, into: int, out: int, bias: bool = True) -> list[onnx.NodeProto]:
        product = f"{name}.product" if bias else name
        nodes = [
            helper.make_node("MatMul", [source, constant(f"{name}.w", into, out)], [product], name=f"{name}/MatMul")
        ]
        if bias:
            nodes.append(helper.make_node("Add", [product, constant(f"{name}.b", out)], [name], name=f"{name}/Add"))
        return nodes

    def node(op_type: str, inputs: list[str], output: str, **attributes: object) -> onnx.NodeProto:
        return helper.make_node(op_type, inputs, [output], name=output, **attributes)

    weights |= {
        "heads": np.array([0, 0, HEADS, -1]),
        "joined": np.array([0, 0, WIDTH]),
        "scale": np.array(0.25, np.float32),
    }
    nodes = [node("LayerNormalization", ["x", constant("n1.w", WIDTH), constant("n1.b", WIDTH)], "n1")]
    for name in "qkv":
        nodes += linear(name, "n1", WIDTH, WIDTH, bias=name != "k" or key_bias)
        nodes += [
            node("Reshape", [name, "heads"], f"{name}.heads"),
            node("Transpose", [f"{name}.heads"], f"{name}.t", perm=[0, 2, 1, 3]),
        ]
    nodes += [
        node("Transpose", ["k.t"], "k.tt", perm=[0, 1, 3, 2]),
        node("MatMul", ["q.t", "k.tt"], "scores"),
        node("Mul", ["scores", "scale"], "scaled"),
        node("Softmax", ["scaled"], "p", axis=-1),
        node("MatMul", ["p", "v.t"], "mixed"),
        node("Transpose", ["mixed"], "mixed.t", perm=[0, 2, 1, 3]),
        node("Reshape", ["mixed.t", "joined"], "attended"),
        *linear("o", "attended", WIDTH, WIDTH),
        node("Add", ["x", "o"], "h"),
        node("LayerNormalization", ["h", constant("n2.w", WIDTH), constant("n2.b", WIDTH)], "n2"),
        *linear("fc1", "n2", WIDTH, INNER),
        node("Gelu", ["fc1"], "g"),
        *linear("fc2", "g", INNER, WIDTH, bias=False),
        node("Add", ["h", "fc2"], "y"),
    ]
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", "seq", WIDTH]) for name in "xy"]
    constants = [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "layer", ports[:1], ports[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    save_graph(ir.from_proto(onnx.shape_inference.infer_shapes(model)), folder, "layer")
    return folder / "layer.onnx"


def _x(seed: int = 0, tokens: int = 12) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((1, tokens, WIDTH), np.float32)


def _changed(graph: Path, changes: dict[str, Change]) -> tuple[Path, dict[str, dict[str, str]]]:
    """Change activations by name; every matrix stays float32. Return the graph and what each change's record says."""
    model = ir.load(graph)
    groups = matmuls(model.graph)
    weights = {node: Weight(node.inputs[1].const_value) for nodes in groups.values() for node in nodes}
    rewriter = Rewriter(GraphBuilder(model.graph), 32)
    smoother = Smoother(rewriter, weights)
    records = {
        str(value.name): dict(smoother.apply(value, nodes, nodes, changes[str(value.name)]).record)
        for value, nodes in groups.items()
        if value.name in changes
    }
    for node, weight in weights.items():
        rewriter.rewrite(node, "float32", weight)
    RemoveUnusedNodesPass()(model)
    TopologicalSortPass()(model)
    save_graph(model, graph.parent, "changed")
    return graph.parent / "changed.onnx", records


def _change(channels: int, seed: int, *, shift: bool = True, factors: bool = True, run: int = 0) -> Change:
    random = np.random.default_rng(seed)
    divisors = np.exp(random.uniform(-2, 2, channels)).astype(np.float32)
    return Change(
        divisors if factors else np.ones(channels, np.float32),
        random.standard_normal(channels).astype(np.float32) if shift else None,
        run,
    )


def _decibels(one: Path, other: Path) -> float:
    return sqnr_db(*(run(open_session(graph), {"x": _x()})["y"] for graph in (one, other)))


ACTIVATIONS = {"n1": WIDTH, "attended": WIDTH, "n2": WIDTH, "g": INNER}


@pytest.mark.parametrize("run", [0, 16])
@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("factors", [False, True])
@pytest.mark.parametrize("key_bias", [False, True])
def test_changes_of_all_activations_together_change_no_output(
    run: int, shift: bool, factors: bool, key_bias: bool, tmp_path: Path
) -> None:
    graph = _layer(tmp_path, key_bias=key_bias)
    changes = {
        name: _change(channels, seed, shift=shift, factors=factors, run=run)
        for seed, (name, channels) in enumerate(ACTIVATIONS.items())
    }

    changed, _ = _changed(graph, changes)

    assert _decibels(graph, changed) > 100


def test_shift_and_factors_fold_into_norms_and_values_and_are_nodes_behind_gelu(tmp_path: Path) -> None:
    changes = {name: _change(channels, 1) for name, channels in ACTIVATIONS.items()}

    changed, records = _changed(_layer(tmp_path), changes)

    assert records == {
        "n1": {"smoothing": "folded into n1"},
        "attended": {"smoothing": "folded into v/MatMul"},
        "n2": {"smoothing": "folded into n2"},
        "g": {"smoothing": "Sub and Mul"},
    }
    operators = [node.op_type for node in ir.load(changed).graph]
    before = [node.op_type for node in ir.load(tmp_path / "layer.onnx").graph]
    # fc2 has no bias for its shift; keys have none either, but softmax does not see theirs.
    assert sorted(operators) == sorted([*before, "Sub", "Mul", "Add"])


def test_a_rotation_folds_into_the_values_of_attention_and_is_a_matmul_elsewhere(tmp_path: Path) -> None:
    changes = {name: _change(channels, 1, shift=False, run=16) for name, channels in ACTIVATIONS.items()}

    changed, records = _changed(_layer(tmp_path), changes)

    assert records["attended"] == {"smoothing": "folded into v/MatMul", "rotation": "16 channels, folded"}
    assert records["n1"] == {"smoothing": "folded into n1", "rotation": "16 channels, MatMul"}
    assert records["g"] == {"smoothing": "Mul", "rotation": "16 channels, MatMul"}
    assert [node.name for node in ir.load(changed).graph if node.name and node.name.endswith(".mixed")] == [
        "n1.mixed", "n2.mixed", "g.smoothed.mixed",
    ]  # fmt: skip


def test_a_rotation_wider_than_a_head_does_not_fold_into_attention(tmp_path: Path) -> None:
    graph = _layer(tmp_path)

    changed, records = _changed(graph, {"attended": _change(WIDTH, 1, shift=False, run=32)})

    assert records["attended"]["rotation"] == "32 channels, MatMul"
    assert _decibels(graph, changed) > 100


def test_softmax_does_not_see_a_shift_of_keys_alone(tmp_path: Path) -> None:
    graph = ir.load(_layer(tmp_path)).graph
    products = {str(node.name): node.outputs[0] for nodes in matmuls(graph).values() for node in nodes}

    assert {name for name, product in products.items() if shifts_softmax_alone(product)} == {"k/MatMul"}


def test_keys_whose_scores_are_multiplied_by_more_than_a_number_do_see_a_shift(tmp_path: Path) -> None:
    model = ir.load(_layer(tmp_path))
    scale = model.graph.initializers["scale"]
    scale.const_value = ir.tensor(np.ones((1, HEADS, 1, 12), np.float32))
    (keys,) = (node for node in model.graph if node.name == "k/MatMul")

    assert not shifts_softmax_alone(keys.outputs[0])


@pytest.mark.parametrize("run", [16, 64, 128])
def test_a_rotation_is_orthogonal_and_spreads_one_channel_evenly(run: int) -> None:
    h = matrix(run)

    np.testing.assert_allclose(h @ h.T, np.eye(run), atol=1e-6)
    np.testing.assert_allclose(np.abs(h), 1 / np.sqrt(run), rtol=1e-6)
    assert len(np.unique(h.sum(0))) > 2  # signs: a common mean does not end up in one channel


@given(st.integers(0, 10**6), st.sampled_from([16, 64]))
def test_rotating_activation_and_matrix_leaves_the_product(seed: int, run: int) -> None:
    random = np.random.default_rng(seed)
    x, w = random.standard_normal((3, 2 * run), np.float32), random.standard_normal((2 * run, 5), np.float32)

    np.testing.assert_allclose(rotate(x, run) @ rotate(w, run, axis=0), x @ w, atol=2e-4)
    np.testing.assert_allclose(rotate(x, run)[:, :run], x[:, :run] @ matrix(run), atol=1e-5)


def test_a_rotated_weight_is_the_same_in_blocks_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = np.random.default_rng(0).standard_normal((96, 64)).astype(np.float32)
    rows, columns = np.linspace(0.5, 2, 96, dtype=np.float32), np.linspace(2, 0.5, 64, dtype=np.float32)
    weight = Weight(ir.tensor(plain))
    weight.change_rows(rows, 16)
    weight.change_columns(columns, 32)
    whole = weight.whole()

    monkeypatch.setattr("omni.streamed.BLOCK_BYTES", 1000)

    expected = rotate(rotate(plain * rows[:, None], 16, axis=0) * columns, 32)
    assert len(list(weight.blocks())) == 6
    np.testing.assert_allclose(whole, expected, atol=1e-5)
    np.testing.assert_array_equal(weight.whole(), whole)
    np.testing.assert_array_equal(weight.part(slice(8, 40)).whole(), whole[:, 8:40])
    assert weight.part(slice(8, 40)).shape == (96, 32)
    np.testing.assert_allclose(weight.product(rows), rows @ expected, rtol=1e-4, atol=1e-3)


# What calibration chooses


def _observed(graph: Path, recordings: dict[str, np.ndarray], **settings: object) -> dict[str, Calibration]:
    params = CalibrateParams.model_validate({"headroom": 1.0, "nodes": {}, **settings})
    seen = observe(graph, CONTRACT, params, recordings)
    return {
        name: Calibration(o.factors, o.histogram.best_range(), None, o.shift, o.run, o.rms) for name, o in seen.items()
    }


def _recordings() -> dict[str, np.ndarray]:
    return {f"clip-{seed}": 3 + 2 * _x(seed, 40)[0] for seed in range(4)}


def test_the_shift_is_the_mean_and_the_importance_what_is_left(tmp_path: Path) -> None:
    graph, recordings = _layer(tmp_path), _recordings()

    found = _observed(graph, recordings, smoothing="rms^0.5", shift=True)["n1"]

    session = open_session(_with_output(graph, "n1"))
    tokens = np.concatenate([run(session, {"x": clip[None]})["n1"][0] for clip in recordings.values()])
    assert found.shift is not None
    assert found.rms is not None
    assert found.importance is not None
    np.testing.assert_allclose(found.shift, tokens.mean(0), atol=1e-5)
    np.testing.assert_allclose(found.rms, np.sqrt(np.square(tokens).mean(0)), rtol=1e-4)
    changed = (tokens - tokens.mean(0)) / found.factors
    np.testing.assert_allclose(found.importance, np.square(changed).mean(0), rtol=1e-3)
    expected = tokens.std(0) ** 0.5
    np.testing.assert_allclose(found.factors, expected / np.exp(np.log(expected).mean()), rtol=1e-3)


def _with_output(graph: Path, name: str) -> Path:
    model = onnx.load(graph)
    model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    onnx.save(model, graph.with_name("probed.onnx"))
    return graph.with_name("probed.onnx")


def test_settings_of_a_node_are_laid_over_those_of_the_graph(tmp_path: Path) -> None:
    nodes = {"fc2/*": {"rotation": 16}, "o/*": {"smoothing": "none", "shift": False}}

    found = _observed(_layer(tmp_path), _recordings(), smoothing=0.5, shift=True, nodes=nodes)

    assert (found["g"].run, found["g"].shift is None) == (16, False)
    assert (found["n1"].run, found["n1"].shift is None) == (0, False)
    assert found["attended"].shift is None
    assert (found["attended"].factors == 1).all()
    assert not (found["g"].factors == 1).all()


def test_each_exact_change_makes_int8_less_noisy_on_channels_that_are_loud_and_steady(tmp_path: Path) -> None:
    graph = _loud(_layer(tmp_path))
    recordings = {f"clip-{seed}": _x(seed, 60)[0] for seed in range(3)}

    def decibels(**settings: object) -> float:
        params = QuantizeParams.model_validate({"scheme": "int8-token", "block": 32, "nodes": {}})
        model, _ = quantize(graph, params, _observed(graph, recordings, **settings))
        save_graph(model, tmp_path, "quantized")
        return _decibels(graph, tmp_path / "quantized.onnx")

    plain = decibels(smoothing="none")

    assert decibels(smoothing="none", shift=True) > plain + 1
    assert decibels(smoothing="search") > plain + 1
    assert decibels(smoothing="none", rotation=16) > plain + 1
    assert decibels(smoothing="search", shift=True, rotation=16) > decibels(smoothing=0.5)


def _loud(graph: Path) -> Path:
    """Give a few channels of the normalizations a loud scale, others a loud constant."""
    model = ir.load(graph)
    for name in ("n1", "n2"):
        for suffix, places, factor in ((".w", [3, 17], 30), (".b", [5, 21], 40)):
            value = model.graph.initializers[name + suffix]
            array = value.const_value.numpy().copy()
            array[places] += factor
            value.const_value = ir.tensor(array, name=value.name)
    save_graph(model, graph.parent, "loud")
    return graph.parent / "loud.onnx"


def test_a_rotation_that_does_not_fit_is_told(tmp_path: Path, message: Callable[..., str]) -> None:
    params = CalibrateParams(rotation=64, headroom=1.0, nodes={})

    assert "n1 has 32 channels" in message(observe, _layer(tmp_path), CONTRACT, params, _recordings())


def test_a_node_may_only_have_settings_that_there_are() -> None:
    for wrong in ({"smoothing": "rms"}, {"smoothing": "rms^2"}, {"smoothing": 1.5}, {"rotation": 3}, {"alpha": 1}):
        with pytest.raises(ValueError, match=r"smoothing|rotation|alpha"):
            NodeCalibration.model_validate(wrong)
