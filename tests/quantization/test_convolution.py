"""INT8 convolutions: ranges from calibration, rewriting, and what ONNX Runtime makes of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from calibrate import __main__ as saving
from calibrate import convolutions as observing
from calibrate.activations import observe
from calibrate.convolutions import observe_convolutions
from calibrate.histogram import SignedHistogram
from omni.params import CalibrateParams, QuantizeParams
from omni.streamed import save_graph
from omni.weight import Kernel, convolutions
from quantize import pack
from quantize.apply import Calibration, quantize, read_calibration
from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.common.contract import GraphContract, Port
from qwen_omni_onnx.common.metrics import sqnr_db
from qwen_omni_onnx.common.session import open_session, run
from validate.contract import _optimized

CHANNELS, WIDE, OUT = 8, 24, 16
DENSE = ("block.0/Conv", "block.1/Conv", "post/Conv")
HEADROOM = CalibrateParams(smoothing=0.0, headroom=1.0, nodes={})
CONTRACT = GraphContract(
    inputs=(Port("x", "FLOAT", ("batch", CHANNELS, 1, "frames")),),
    outputs=(Port("y", "FLOAT", ("batch", "samples", OUT)),),
    ir_version=10,
    length="frames",
)


def _weights() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return random.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))

    weights = {
        "block.0.weight": normal(WIDE, CHANNELS, 1, 3), "block.0.bias": normal(WIDE) / 4,
        "depthwise.weight": normal(WIDE, 1, 1, 3), "block.1.weight": normal(WIDE, WIDE, 1, 5),
        "up.weight": normal(WIDE, WIDE, 1, 4), "post.weight": normal(WIDE, WIDE, 3), "post.bias": normal(WIDE),
        "matrix": normal(WIDE, OUT), "height": np.array([2], np.int64),
    }  # fmt: skip
    # A channel of nothing, one of hardly more than its bias, and one of nothing but its bias.
    weights["block.0.weight"][[3, 4, 5]] *= np.array([0, 1e-11, 0])[:, None, None, None]
    weights["block.0.bias"][3] = 0
    return {name: w.astype(np.int64 if w.dtype == np.int64 else np.float32) for name, w in weights.items()}


def _graph(folder: Path) -> Path:
    """x -> dilated Conv -> Relu -> strided Conv -> ConvTranspose -> 1-D Conv -> MatMul -> y; and a depthwise Conv."""
    nodes = [
        helper.make_node("Conv", ["x", "block.0.weight", "block.0.bias"], ["a"], "block.0/Conv",
                         kernel_shape=[1, 3], dilations=[1, 2], pads=[0, 2, 0, 2]),
        helper.make_node("Relu", ["a"], ["r"], "relu"),
        helper.make_node("Conv", ["r", "depthwise.weight"], ["d"], "depthwise/Conv", group=WIDE, pads=[0, 1, 0, 1]),
        helper.make_node("Add", ["r", "d"], ["s"], "residual"),
        helper.make_node("Conv", ["r", "block.1.weight"], ["b"], "block.1/Conv", strides=[1, 2], pads=[0, 3, 0, 1]),
        helper.make_node("ConvTranspose", ["b", "up.weight"], ["u"], "up/ConvTranspose", strides=[1, 2]),
        helper.make_node("Squeeze", ["u", "height"], ["q"], "squeeze"),
        helper.make_node("Conv", ["q", "post.weight", "post.bias"], ["c"], "post/Conv", auto_pad="SAME_UPPER"),
        helper.make_node("Transpose", ["c"], ["t"], "transpose", perm=[0, 2, 1]),
        helper.make_node("MatMul", ["t", "matrix"], ["y"], "head/MatMul"),
    ]  # fmt: skip
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", CHANNELS, 1, "frames"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "samples", OUT])
    s = helper.make_tensor_value_info("s", TensorProto.FLOAT, ["batch", WIDE, 1, "frames"])
    constants = [numpy_helper.from_array(w, name) for name, w in _weights().items()]
    model = helper.make_model(
        helper.make_graph(nodes, "g", [x], [y, s], constants),
        opset_imports=[helper.make_opsetid("", 21)],
        ir_version=10,
    )
    save_graph(ir.from_proto(onnx.shape_inference.infer_shapes(model)), folder, "float")
    return folder / "float.onnx"


def _sound(seed: int, frames: int = 300) -> np.ndarray:
    """[channels, 1, frames], of unequal channels."""
    random = np.random.default_rng(seed)
    return (random.standard_normal((CHANNELS, 1, frames)) * np.linspace(0.5, 2, CHANNELS)[:, None, None]).astype(
        np.float32
    )


def _recordings() -> dict[str, np.ndarray]:
    return {f"clip-{seed}": _sound(seed) for seed in range(3)}


def _calibrated(graph: Path) -> dict[str, Calibration]:
    seen = observe(graph, CONTRACT, HEADROOM, _recordings())
    found = {name: Calibration(o.factors, o.histogram.best_range()) for name, o in seen.items()}
    for name, o in observe_convolutions(graph, CONTRACT, _recordings()).items():
        flat = Calibration(np.ones_like(o.absmax), 1.0)
        found[name] = replace(found.get(name, flat), span=o.histogram.best_range())
    return found


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _graph(tmp_path_factory.mktemp("convolution"))


@pytest.fixture(scope="module")
def calibration(graph: Path) -> dict[str, Calibration]:
    return _calibrated(graph)


@pytest.fixture(scope="module")
def quantized(graph: Path, calibration: dict[str, Calibration]) -> Path:
    return _quantize(graph, calibration)[0]


def _quantize(
    graph: Path, calibration: dict[str, Calibration], scheme: str = "int8-static", stem: str = "int8", **nodes: str
) -> tuple[Path, dict[str, dict[str, str]]]:
    params = QuantizeParams.model_validate({"scheme": scheme, "block": 32, "nodes": nodes})
    model, done = quantize(graph, params, calibration)
    save_graph(model, graph.parent, stem)
    return graph.parent / f"{stem}.onnx", done


def _nodes(graph: Path) -> dict[str, ir.Node]:
    return {str(node.name): node for node in ir.load(graph).graph}


def _values(node: ir.Node, index: int) -> np.ndarray:
    return node.inputs[index].const_value.numpy()


# The graph


@pytest.mark.parametrize("saturates", [False, True])
@pytest.mark.parametrize(("batch", "frames", "least"), [(1, 1, 25), (1, 50, 30), (3, 101, 30)])  # one frame is quiet
def test_a_quantized_graph_keeps_the_signal(
    batch: int, frames: int, least: float, saturates: bool, graph: Path, quantized: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Where sums saturate, ONNX Runtime makes other weights; that it can is to be seen on every processor."""
    if saturates:
        monkeypatch.setattr("qwen_omni_onnx.common.session.sums_saturate", lambda: True)
    x = np.stack([_sound(50 + row, frames) for row in range(batch)])

    onnx.checker.check_model(str(quantized))
    expected, actual = (run(open_session(path), {"x": x}) for path in (graph, quantized))

    assert expected["y"].shape == actual["y"].shape
    assert sqnr_db(expected["s"], actual["s"]) > least
    assert sqnr_db(expected["y"], actual["y"]) > least


def test_each_dense_convolution_becomes_one_qlinearconv_with_its_name_and_attributes(
    graph: Path, quantized: Path
) -> None:
    before, after = _nodes(graph), _nodes(quantized)

    assert [name for name, node in after.items() if node.op_type == "QLinearConv"] == list(DENSE)
    for name in DENSE:
        kept = {key: attribute.value for key, attribute in after[name].attributes.items()}
        assert kept == {key: attribute.value for key, attribute in before[name].attributes.items()}
        assert after[name].inputs[3].dtype == ir.DataType.INT8
        assert after[name].inputs[0].producer().op_type == "QuantizeLinear"
    assert after["depthwise/Conv"].op_type == "Conv"
    assert after["up/ConvTranspose"].op_type == "ConvTranspose"


def test_convolutions_that_read_one_activation_share_its_quantization(
    tmp_path: Path, calibration: dict[str, Calibration]
) -> None:
    model = onnx.load(_graph(tmp_path))
    twin = next(node for node in model.graph.node if node.name == "block.1/Conv")
    twin = helper.make_node("Conv", twin.input, ["s2"], "twin/Conv", strides=[1, 2], pads=[0, 3, 0, 1])
    model.graph.node.append(twin)
    model.graph.output.append(helper.make_tensor_value_info("s2", TensorProto.FLOAT, ["batch", WIDE, 1, "half"]))
    save_graph(ir.from_proto(model), tmp_path, "float")

    int8, done = _quantize(tmp_path / "float.onnx", {**calibration, "s2": calibration["b"]})

    nodes = _nodes(int8)
    assert set(done) == {*DENSE, "twin/Conv", "head/MatMul"}
    assert nodes["twin/Conv"].inputs[0] is nodes["block.1/Conv"].inputs[0]
    assert [value.name for value in ir.load(int8).graph.outputs] == ["y", "s", "s2"]


def test_onnx_runtime_runs_every_one_of_them_in_int8(quantized: Path, graph: Path, tmp_path: Path) -> None:
    open_session(quantized, optimized_to=tmp_path / "optimized.onnx")

    found = Counter(node.op_type for node in ir.load(tmp_path / "optimized.onnx").graph)
    assert found["QLinearConv"] == len(DENSE)
    assert found["Conv"] == 1  # of each channel


def test_the_contract_counts_them_in_the_optimized_graph(graph: Path, calibration: dict[str, Calibration]) -> None:
    int8, done = _quantize(graph, calibration, stem="counted")

    def check(quantization: dict[str, dict[str, str]]) -> str:
        graph: Any = SimpleNamespace(quantization=quantization)
        return _optimized(int8, graph, composed=False)

    assert "3 QLinearConv" in check(done)
    with pytest.raises(Exception, match="3 QLinearConv in the optimized graph, 4 were quantized so"):
        check({**done, "ghost/Conv": done["post/Conv"]})


def test_a_channel_of_nothing_stays_nothing_and_one_of_bias_alone_keeps_it(graph: Path, quantized: Path) -> None:
    x = _sound(60)[None]
    bias = np.maximum(_weights()["block.0.bias"], 0)

    r = run(_observed(quantized, "r"), {"x": x})["r"]

    assert not r[:, 3].any()
    for channel in (4, 5):
        step = float(_values(_nodes(quantized)["block.0/Conv"], 6))
        assert np.abs(r[:, channel] - bias[channel]).max() <= step


def _observed(graph: Path, name: str) -> Any:
    model = ir.load(graph)
    model.graph.outputs.append(next(v for node in model.graph for v in node.outputs if v.name == name))
    return open_session(ir.to_proto(model).SerializeToString(), data_folder=graph.parent)


def test_weights_are_within_half_a_step_of_the_float_ones(quantized: Path) -> None:
    weights = _weights()
    for name in DENSE:
        node, kernel = _nodes(quantized)[name], weights[f"{name.partition('/')[0]}.weight"]
        step = _values(node, 4).reshape(-1, *[1] * (kernel.ndim - 1))

        values = _values(node, 3)

        assert values.min() >= -127
        assert (np.abs(values * step - kernel) <= step / 2 + 1e-9).all()


def test_an_activation_of_one_side_uses_all_levels_on_that_side(
    graph: Path, calibration: dict[str, Calibration]
) -> None:
    x = _sound(70)[None]
    span = calibration["r"].span
    assert span is not None
    high = span[1]
    lopsided = {**calibration, "r": replace(calibration["r"], span=(-high, high))}

    one_sided, _ = _quantize(graph, calibration, "float32", "one", **{"block.1/Conv": "int8-static"})
    symmetric, _ = _quantize(graph, lopsided, "float32", "both", **{"block.1/Conv": "int8-static"})

    assert span[0] == 0
    assert _values(_nodes(one_sided)["block.1/Conv"], 2) == 0
    assert _values(_nodes(symmetric)["block.1/Conv"], 2) == 128
    expected, one, both = (run(open_session(path), {"x": x})["y"] for path in (graph, one_sided, symmetric))
    assert sqnr_db(expected, one) > sqnr_db(expected, both) + 1


def test_sums_are_exact_whatever_the_processor(tmp_path: Path) -> None:
    """The largest products that there are: without VNNI, x86 would cut their sums at 16 bits."""
    kernel = np.full((16, 64, 1, 3), 127, np.int8)
    levels = {
        "one": np.float32(1),
        "zero": np.uint8(0),
        "zero8": np.int8(0),
        "step": np.float32(64 * 3 * 255 * 127 / 240),
    }
    node = helper.make_node("QLinearConv", ["x", "one", "zero", "w", "one", "zero8", "step", "zero"], ["y"], "conv")
    ports = [
        helper.make_tensor_value_info(name, TensorProto.UINT8, ["batch", channels, 1, "frames"])
        for name, channels in (("x", 64), ("y", 16))
    ]
    constants = [numpy_helper.from_array(np.asarray(value), name) for name, value in {**levels, "w": kernel}.items()]
    graph = helper.make_graph([node], "g", ports[:1], ports[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)

    y = run(open_session(model.SerializeToString()), {"x": np.full((2, 64, 1, 40), 255, np.uint8)})["y"]

    assert (y == 240).all()


# Parameters


def test_the_first_pattern_that_matches_counts(graph: Path, calibration: dict[str, Calibration]) -> None:
    nodes = {"block.1/*": "float32", "block.*": "int8-static", "*": "float32"}

    int8, done = _quantize(graph, calibration, "int8-token", "patterns", **nodes)

    assert {name: entry["operator"] for name, entry in done.items()} == {
        "block.0/Conv": "QLinearConv",
        "head/MatMul": "MatMul",
    }
    assert [n for n, node in _nodes(int8).items() if node.op_type == "QLinearConv"] == ["block.0/Conv"]


@pytest.mark.parametrize("scheme", ["int8-token", "int8-tensor", "int8-block", "float32"])
def test_a_scheme_of_matrices_leaves_convolutions_alone(
    scheme: str, graph: Path, calibration: dict[str, Calibration]
) -> None:
    only_matrix = {name: seen for name, seen in calibration.items() if seen.span is None}

    int8, done = _quantize(graph, only_matrix, scheme, "matrices")

    assert set(done) == {"head/MatMul"}
    assert "QLinearConv" not in {node.op_type for node in _nodes(int8).values()}


def test_a_pattern_that_matches_nothing_is_named_with_the_nodes_there_are(
    graph: Path, calibration: dict[str, Calibration], message: Callable[..., str]
) -> None:
    said = message(_quantize, graph, calibration, **{"resblocks.*": "float32"})

    assert (
        "quantize.nodes: no MatMul or Conv named resblocks.*; there are block.0/Conv, block.1/Conv, head/MatMul" in said
    )
    assert "depthwise" not in said


@pytest.mark.parametrize("scheme", ["int8-token", "int8-tensor", "int8-block", "int4-block"])
def test_a_convolution_cannot_have_a_scheme_of_matrices(
    scheme: str, graph: Path, calibration: dict[str, Calibration], message: Callable[..., str]
) -> None:
    said = message(_quantize, graph, calibration, **{"block.*": scheme})

    assert f"{scheme} has no form for the Conv block.0/Conv; give it int8-static or float32" in said


@pytest.mark.parametrize("lacking", ["x", "a", "c"])
def test_an_activation_that_calibration_lacks_is_named(
    lacking: str, graph: Path, calibration: dict[str, Calibration], message: Callable[..., str]
) -> None:
    rest = {name: seen for name, seen in calibration.items() if name != lacking}

    assert f"calibration knows nothing of {lacking}; run python -m calibrate" in message(_quantize, graph, rest)


# Weights in blocks


def test_kernels_in_blocks_are_quantized_as_whole(monkeypatch: pytest.MonkeyPatch, graph: Path) -> None:
    kernel = Kernel(ir.load(graph).graph.initializers["block.1.weight"].const_value)
    plain = _weights()["block.1.weight"]
    scale = np.abs(plain).max((1, 2, 3)) / 127
    monkeypatch.setattr("omni.streamed.BLOCK_BYTES", 2000)

    blocks = list(kernel.blocks())

    assert len(blocks) > 5
    np.testing.assert_array_equal(np.concatenate(blocks), plain)
    np.testing.assert_allclose(kernel.out_absmax(), np.abs(plain).max((1, 2, 3)))
    np.testing.assert_allclose(kernel.in_energy(), (plain**2).sum((0, 2, 3)), rtol=1e-5)
    direct = np.clip(np.rint(plain / scale[:, None, None, None]), -127, 127)
    np.testing.assert_array_equal(np.concatenate(list(pack.int8_channels(kernel, scale))), direct)


def test_a_kernel_that_is_computed_is_left_alone() -> None:
    node = helper.make_node("Conv", ["x", "w"], ["y"], "dynamic")
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2, 2, 2]) for n in "xwy"]
    model = helper.make_model(helper.make_graph([node], "g", ports[:2], ports[2:]))

    assert convolutions(ir.from_proto(model).graph) == []


# Calibration


def test_calibration_sees_channels_on_the_second_axis_and_both_signs(graph: Path) -> None:
    recordings = {"loud": _sound(0), "quiet": _sound(1) / 10}

    seen = observe_convolutions(graph, CONTRACT, recordings)

    assert set(seen) == {"x", "a", "r", "b", "q", "c"}
    x = np.concatenate([clip.reshape(CHANNELS, -1) for clip in recordings.values()], 1)
    np.testing.assert_array_equal(seen["x"].absmax, np.abs(x).max(1))
    assert seen["x"].widened == [("loud", float(np.abs(x).max()))]
    assert (seen["x"].histogram.lowest, seen["x"].histogram.highest) == (x.min(), x.max())
    assert seen["r"].histogram.lowest == 0
    np.testing.assert_allclose(seen["r"].energy, (_weights()["block.1.weight"] ** 2).sum((0, 2, 3)), rtol=1e-5)
    assert not seen["c"].energy.any()


def test_activations_are_fetched_in_groups_with_the_same_result(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    together = observe_convolutions(graph, CONTRACT, _recordings())
    monkeypatch.setattr(observing, "_FETCHED", 2)

    apart = observe_convolutions(graph, CONTRACT, _recordings())

    assert list(apart) == list(together)
    for name, seen in together.items():
        np.testing.assert_array_equal(apart[name].histogram.weights, seen.histogram.weights)


def test_a_part_of_many_values_gives_nearly_the_same_range(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recordings = {"long": _sound(3, 20_000)}
    all_of_them = observe_convolutions(graph, CONTRACT, recordings)
    monkeypatch.setattr(observing, "_MANY", 1000)

    some = observe_convolutions(graph, CONTRACT, recordings)

    for name, seen in all_of_them.items():
        assert some[name].histogram.best_range() == pytest.approx(seen.histogram.best_range(), rel=0.3, abs=1e-9)
        np.testing.assert_array_equal(some[name].absmax, seen.absmax)


def test_a_nan_in_calibration_is_told_with_its_clip(graph: Path, message: Callable[..., str]) -> None:
    recordings = {"quiet": _sound(0), "broken": np.full_like(_sound(0), np.nan)}

    assert "clip broken makes x NaN or infinite" in message(observe_convolutions, graph, CONTRACT, recordings)


def test_what_calibration_writes_is_what_quantize_reads(graph: Path, tmp_path: Path) -> None:
    params = CalibrateParams(smoothing=0.0, headroom=1.5, nodes={})
    seen = observe(graph, CONTRACT, params, _recordings())
    convolved = observe_convolutions(graph, CONTRACT, _recordings())
    onnx_folder = tmp_path / "onnx"
    with artifact.writing(onnx_folder, kind="onnx", component="net"):
        pass
    facts = {"kind": "calibration", "component": "net", "made_from": {"onnx": artifact.fingerprint(onnx_folder)}}

    with artifact.writing(tmp_path / "calibration", **facts) as folder:
        saving._save(seen, convolved, params, folder / "net")

    read = read_calibration(tmp_path / "calibration", onnx_folder, "net")
    assert set(read) == {*seen, *convolved}
    assert read["t"].span is None
    for name, activation in convolved.items():
        low, high = activation.histogram.best_range()
        assert read[name].span == pytest.approx((1.5 * low, 1.5 * high), rel=1e-6)
    report = artifact.read_json(tmp_path / "calibration/net/report.json")
    assert {name: "span" in entry for name, entry in report.items()} == {name: name in convolved for name in read}


# Histograms of both signs


@given(
    st.lists(st.integers(1, 400), min_size=1, max_size=6),
    st.floats(1e-6, 1e6),
    st.floats(-3, 3),
    st.integers(0, 2**32 - 1),
)
def test_a_histogram_keeps_every_weight_and_both_ends(sizes: list[int], scale: float, offset: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    histogram = SignedHistogram()
    weights = np.array([1.0, 3.0])
    seen = []

    for size in sizes:
        seen.append((random.standard_normal((size, 2)) + offset) * scale * random.uniform(0.01, 100))
        histogram.add(seen[-1], weights)

    values = np.concatenate(seen)
    assert histogram.lowest == min(values.min(), 0)
    assert histogram.highest == max(values.max(), 0)
    assert histogram.weights.sum() == pytest.approx(len(values) * weights.sum())
    edges = np.linspace(-histogram.limit, histogram.limit, len(histogram.weights) + 1)
    below = np.searchsorted(np.sort(values[:, 0]), 0) + 3 * np.searchsorted(np.sort(values[:, 1]), 0)
    assert histogram.weights[edges[:-1] < 0].sum() == pytest.approx(below, abs=4)
    low, high = histogram.best_range()
    assert values.min() * (1 + 1e-12) <= low <= 0 <= high or low == 0
    assert low < high


def test_a_range_follows_its_values_cuts_a_light_outlier_and_holds_zero() -> None:
    random = np.random.default_rng(0)
    shifted, outlier, above = SignedHistogram(), SignedHistogram(), SignedHistogram()
    values = random.standard_normal((100_000, 2))

    shifted.add(values + 1, np.ones(2))
    above.add(np.abs(values) + 2, np.ones(2))
    values[0, 1] = 60
    outlier.add(values, np.array([1.0, 1e-3]))

    low, high = shifted.best_range()
    assert -low < high - 1.5
    assert outlier.best_range()[1] < 20
    assert above.best_range()[0] == 0


def test_a_range_is_the_best_of_those_tried() -> None:
    values = np.random.default_rng(1).laplace(size=(50_000, 1)) + 0.5
    histogram = SignedHistogram()
    histogram.add(values, np.ones(1))

    def error(low: float, high: float) -> float:
        step = (high - low) / 255
        zero_point = np.rint(-low / step)
        levels = np.clip(np.rint(values / step) + zero_point, 0, 255)
        return float(np.square((levels - zero_point) * step - values).mean())

    best = error(*histogram.best_range())

    assert best < error(float(values.min()), float(values.max()))
    for factor in (0.8, 1.25):
        assert best < error(*(factor * end for end in histogram.best_range()))


def test_a_histogram_of_zeros_has_a_usable_range() -> None:
    histogram = SignedHistogram()
    histogram.add(np.zeros((3, 2)), np.ones(2))

    assert histogram.best_range() == (-1.0, 1.0)
