"""Stage 3: calibration, smoothing, and every scheme on graphs of their own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from conftest import NAME, tiny_params, write_params
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from calibrate import activations as observing
from calibrate.__main__ import calibrate
from calibrate.activations import observe
from calibrate.factors import smoothing_factors
from calibrate.histogram import Histogram
from inputs.__main__ import main as record_inputs
from omni import nbits, weight
from omni.params import CalibrateParams, NodeCalibration, QuantizeParams, Scheme
from omni.streamed import save_graph
from omni.weight import Weight
from quantize import pack
from quantize.__main__ import main
from quantize.apply import Calibration, quantize
from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.common.contract import GraphContract, Port
from qwen_omni_onnx.common.metrics import sqnr_db
from qwen_omni_onnx.common.session import open_session, run

CHANNELS, WIDE, OUT = 40, 64, 24
LEAST_DB = {"int8-token": 38, "int8-tensor": 34, "int8-static": 32, "int8-block": 38, "int4-block": 14, "float32": 100}


def _graph(folder: Path, *, residual: bool = False) -> Path:
    """x -> MatMul -> Add -> h; q = h A, k = h B + bias; y = q + k. With ``residual``, h itself is read once more."""
    random = np.random.default_rng(0)
    weights = {
        "up": random.standard_normal((CHANNELS, WIDE)).astype(np.float32),
        "up_bias": random.standard_normal(WIDE).astype(np.float32),
        "a": random.standard_normal((WIDE, OUT)).astype(np.float32),
        "b": random.standard_normal((WIDE, OUT)).astype(np.float32),
        "b_bias": random.standard_normal(OUT).astype(np.float32),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "up"], ["u"], name="up"),
        helper.make_node("Add", ["u", "up_bias"], ["h"], name="up_add"),
        helper.make_node("MatMul", ["h", "a"], ["q"], name="a"),
        helper.make_node("MatMul", ["h", "b"], ["kb"], name="b"),
        helper.make_node("Add", ["b_bias", "kb"], ["k"], name="b_add"),
        helper.make_node("Add", ["q", "k"], ["y"], name="sum"),
    ]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "seq", OUT])]
    if residual:
        nodes.append(helper.make_node("Relu", ["h"], ["r"], name="relu"))
        outputs.append(helper.make_tensor_value_info("r", TensorProto.FLOAT, ["batch", "seq", WIDE]))
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "seq", CHANNELS])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, [numpy_helper.from_array(w, n) for n, w in weights.items()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    folder.mkdir(exist_ok=True)
    save_graph(ir.from_proto(onnx.shape_inference.infer_shapes(model)), folder, "float")
    return folder / "float.onnx"


CONTRACT = GraphContract(
    inputs=(Port("x", "FLOAT", ("batch", "seq", CHANNELS)),),
    outputs=(Port("y", "FLOAT", ("batch", "seq", OUT)),),
    ir_version=10,
    length="seq",
)


def _speech(seed: int, tokens: int) -> np.ndarray:
    """Tokens [tokens, channels] in which the same channels stand out, whatever the seed."""
    random = np.random.default_rng([seed, 1])
    channel = np.ones(CHANNELS, np.float32)
    channel[[3, 36]] = 22, 29
    loudness = np.exp(0.3 * random.standard_normal((tokens, 1)))
    return (random.standard_normal((tokens, CHANNELS)) * channel * loudness).astype(np.float32)


def _tokens(seed: int, tokens: int) -> np.ndarray:
    return _speech(seed + 100, tokens)[None]


def _recordings() -> dict[str, np.ndarray]:
    return {f"clip-{index}": _speech(index, 64) for index in range(4)}


def _calibrated(graph: Path) -> dict[str, Calibration]:
    seen = observe(graph, CONTRACT, CalibrateParams(smoothing=0.5, headroom=1.3, nodes={}), _recordings())
    return {name: Calibration(o.factors, o.histogram.best_range() * 1.3) for name, o in seen.items()}


def _quantized(graph: Path, scheme: Scheme, **nodes: Scheme) -> tuple[Path, dict[str, dict[str, str]]]:
    params = QuantizeParams(scheme=scheme, block=32, nodes=nodes)
    model, done = quantize(graph, params, _calibrated(graph))
    save_graph(model, graph.parent, "quantized")
    return graph.parent / "quantized.onnx", done


@pytest.mark.parametrize("scheme", list(LEAST_DB))
def test_each_scheme_keeps_the_signal(scheme: Scheme, tmp_path: Path) -> None:
    graph = _graph(tmp_path)
    x = _tokens(0, 50)

    quantized, _ = _quantized(graph, scheme)

    onnx.checker.check_model(str(quantized))
    expected, actual = (run(open_session(path), {"x": x})["y"] for path in (graph, quantized))
    assert sqnr_db(expected, actual) > LEAST_DB[scheme]


def test_smoothing_is_what_keeps_outliers_from_spoiling_the_rest(tmp_path: Path) -> None:
    graph = _graph(tmp_path)
    x = _tokens(0, 50)
    expected = run(open_session(graph), {"x": x})["y"]
    flat = {name: Calibration(np.ones_like(c.factors), c.static_range) for name, c in _calibrated(graph).items()}

    model, _ = quantize(graph, QuantizeParams(scheme="int8-token", block=32, nodes={}), flat)
    save_graph(model, tmp_path, "flat")
    smoothed, _ = _quantized(graph, "int8-token")

    loss = [sqnr_db(expected, run(open_session(path), {"x": x})["y"]) for path in (tmp_path / "flat.onnx", smoothed)]
    assert loss[1] > loss[0] + 3


def test_smoothing_folds_into_what_makes_the_activation_and_one_quantization_serves_all_readers(tmp_path: Path) -> None:
    quantized, done = _quantized(_graph(tmp_path), "int8-token")

    operators = [node.op_type for node in ir.load(quantized).graph]
    assert done["up"]["smoothing"] == "Mul"
    assert done["a"]["smoothing"] == done["b"]["smoothing"] == "folded into up"
    assert operators.count("MatMulIntegerToFloat") == 3
    assert operators.count("QuantizeLinear") == 2


def test_smoothing_does_not_fold_where_another_node_reads_the_activation(tmp_path: Path) -> None:
    graph = _graph(tmp_path, residual=True)
    x = _tokens(0, 20)

    quantized, done = _quantized(graph, "int8-token")

    assert done["a"]["smoothing"] == "Mul"
    expected, actual = (run(open_session(path), {"x": x}) for path in (graph, quantized))
    assert sqnr_db(expected["r"], actual["r"]) > LEAST_DB["int8-token"]
    assert sqnr_db(expected["y"], actual["y"]) > LEAST_DB["int8-token"]


def test_schemes_can_be_mixed_by_node(tmp_path: Path) -> None:
    graph = _graph(tmp_path)
    x = _tokens(0, 20)

    quantized, done = _quantized(graph, "int8-token", a="float32", b="int8-block", up="int8-static")

    operators = {node.name: node.op_type for node in ir.load(quantized).graph}
    assert (operators["up"], operators["a"], operators["b"]) == ("MatMulIntegerToFloat", "MatMul", "MatMulNBits")
    assert done["a"]["scheme"] == "float32"
    expected, actual = (run(open_session(path), {"x": x})["y"] for path in (graph, quantized))
    assert sqnr_db(expected, actual) > LEAST_DB["int8-static"]


def test_the_bias_goes_into_operators_that_take_one(tmp_path: Path) -> None:
    for scheme in ("int8-tensor", "int8-static"):
        quantized, _ = _quantized(_graph(tmp_path), scheme)

        assert [node.name for node in ir.load(quantized).graph if node.op_type == "Add"] == ["sum"]


def test_a_token_of_zeros_gives_no_nan(tmp_path: Path) -> None:
    x = _tokens(0, 3)
    x[0, 1] = 0

    for scheme in ("int8-token", "int8-tensor", "int8-static", "int8-block"):
        quantized, _ = _quantized(_graph(tmp_path), scheme)

        assert np.isfinite(run(open_session(quantized), {"x": x})["y"]).all()


def test_an_unknown_node_is_named_with_those_there_are(tmp_path: Path, message: Callable[..., str]) -> None:
    graph = _graph(tmp_path)

    said = message(_quantized, graph, "int8-token", head="float32")
    assert "quantize.nodes: no MatMul named head; there are a, b, up" in said

    params = CalibrateParams(smoothing=0.5, headroom=1, nodes={"head": NodeCalibration(smoothing=0.4)})
    assert "calibrate.nodes: no MatMul named head" in message(observe, graph, CONTRACT, params, _recordings())


def test_nodes_may_be_given_by_pattern_and_the_first_that_matches_counts(tmp_path: Path) -> None:
    graph = _graph(tmp_path)

    def factors(alphas: dict[str, float]) -> dict[str, np.ndarray]:
        nodes = {pattern: NodeCalibration(smoothing=alpha) for pattern, alpha in alphas.items()}
        seen = observe(graph, CONTRACT, CalibrateParams(smoothing=0.5, headroom=1, nodes=nodes), _recordings())
        return {name: observation.factors for name, observation in seen.items()}

    nodes: dict[str, Scheme] = {"u?": "int8-static", "[ab]": "float32", "*": "int8-block"}
    _, done = _quantized(graph, "int8-token", **nodes)
    by_pattern, by_name = factors({"u*": 0.3, "*": 0.8}), factors({"up": 0.3, "a": 0.8})

    assert {name: entry["scheme"] for name, entry in done.items()} == {
        "up": "int8-static", "a": "float32", "b": "float32",
    }  # fmt: skip
    for name, expected in by_name.items():
        np.testing.assert_array_equal(by_pattern[name], expected)


def test_a_nan_in_calibration_is_told_with_its_clip(tmp_path: Path, message: Callable[..., str]) -> None:
    graph = _graph(tmp_path)
    recordings = {"quiet": _speech(0, 2), "loud": np.full((2, CHANNELS), 3e38, np.float32)}
    params = CalibrateParams(smoothing=0.5, headroom=1, nodes={})

    said = message(observe, graph, CONTRACT, params, recordings)

    assert "clip loud makes h NaN or infinite" in said


def test_calibration_says_which_clip_widened_which_range(tmp_path: Path) -> None:
    graph = _graph(tmp_path)
    recordings = {
        name: np.full((tokens, CHANNELS), loud, np.float32)
        for name, tokens, loud in (("a", 2, 1.0), ("b", 5, 5.0), ("c", 1, 2.0))
    }
    params = CalibrateParams(smoothing=0.5, headroom=1, nodes={})

    seen = observe(graph, CONTRACT, params, recordings)

    assert seen["x"].widened == [("a", 1.0), ("b", 5.0)]
    np.testing.assert_array_equal(seen["x"].absmax, np.full(CHANNELS, 5.0))


def test_calibration_made_from_another_graph_is_refused(workplace: Path, message: Callable[..., str]) -> None:
    manifest = Path("models/onnx") / NAME / artifact.MANIFEST
    manifest.write_text(manifest.read_text().replace('"kind": "onnx"', '"kind": "onnx "'))

    assert "made from another models/onnx/projection" in message(main, NAME)


def test_activations_are_fetched_in_groups_with_the_same_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = _graph(tmp_path)
    together = _calibrated(graph)
    shown: list[tuple[str, ...]] = []
    look = observing.require_finite
    monkeypatch.setattr(observing, "_FETCHED_CHANNELS", 1)
    monkeypatch.setattr(
        observing, "require_finite", lambda clip, name, seen: shown.append((clip, name)) or look(clip, name, seen)
    )

    apart = _calibrated(graph)

    assert shown == [(clip, name) for name in ("x", "h") for clip in _recordings()]
    for name, calibration in together.items():
        np.testing.assert_array_equal(apart[name].factors, calibration.factors)
        assert apart[name].static_range == calibration.static_range


def test_calibration_made_from_other_inputs_is_refused(workplace: Path, message: Callable[..., str]) -> None:
    params = tiny_params()
    params[NAME]["inputs"]["synthetic"]["seed"] = 77
    write_params(workplace, params)
    record_inputs([NAME])

    assert "made from other inputs" in message(main, NAME)

    calibrate(NAME)
    main(NAME)
    artifact.check(Path("models/quantized") / NAME)


@given(
    st.lists(st.integers(1, 400), min_size=1, max_size=6),
    st.floats(1e-6, 1e6),
    st.integers(0, 2**32 - 1),
)
def test_a_histogram_keeps_every_weight_and_the_largest_value(sizes: list[int], scale: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    histogram = Histogram()
    weights = np.array([1.0, 3.0])
    largest, rows = 0.0, 0

    for size in sizes:
        values = random.standard_normal((size, 2)) * scale * random.uniform(0.01, 100)
        histogram.add(values, weights)
        largest, rows = max(largest, float(np.abs(values).max())), rows + size

    assert histogram.absmax == largest
    assert largest <= histogram.limit
    assert histogram.weights.sum() == pytest.approx(rows * weights.sum())
    assert 0 < histogram.best_range() <= largest * (1 + 1e-12)


def test_a_histogram_cuts_a_light_outlier_and_keeps_a_heavy_one() -> None:
    values = np.random.default_rng(0).standard_normal((200_000, 2))
    values[0, 1] = 60
    light, heavy = Histogram(), Histogram()

    light.add(values, np.array([1.0, 1.0]))
    heavy.add(values, np.array([1e-3, 1e4]))

    assert light.best_range() < 30
    assert heavy.best_range() > light.best_range()


def test_a_histogram_of_zeros_has_a_usable_range() -> None:
    histogram = Histogram()
    histogram.add(np.zeros((3, 2)), np.ones(2))

    assert histogram.best_range() == 1.0


def test_smoothing_factors_follow_the_paper_and_survive_silent_channels() -> None:
    activation = np.array([8.0, 2.0, 0.0], np.float32)
    rows = np.array([2.0, 2.0, 2.0], np.float32)

    factors = smoothing_factors(activation, rows, alpha=0.5)

    assert np.isfinite(factors).all()
    assert (factors > 0).all()
    assert factors[0] / factors[1] == pytest.approx(2)  # (8/2)^0.5
    assert np.exp(np.log(factors).mean()) == pytest.approx(1, rel=1e-5)


def test_weights_are_scaled_the_same_in_blocks_and_whole(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("omni.streamed.BLOCK_BYTES", 600)
    graph = ir.load(_graph(tmp_path)).graph
    matrix = Weight(graph.initializers["up"].const_value)
    plain = matrix.tensor.numpy().copy()
    rows, columns = np.arange(1, CHANNELS + 1, dtype=np.float32), np.linspace(0.5, 2, WIDE, dtype=np.float32)

    matrix.change_rows(rows)
    matrix.change_columns(columns)

    expected = plain * rows[:, None] * columns
    assert len(list(matrix.blocks())) > 5
    np.testing.assert_allclose(matrix.whole(), expected, rtol=1e-6)
    np.testing.assert_allclose(matrix.row_absmax(), np.abs(expected).max(1), rtol=1e-6)
    np.testing.assert_allclose(matrix.column_absmax(), np.abs(expected).max(0), rtol=1e-6)
    np.testing.assert_allclose(matrix.row_energy(), (expected**2).sum(1), rtol=1e-5)


def test_of_two_values_of_one_magnitude_the_first_one_decides_the_sign_of_the_scale() -> None:
    blocked = np.array([[[1, -4, 4, 0], [4, -4, 1, 0], [0, -2, 3, -1], [0, 0, 0, 0]]], np.float32)

    expected = np.array([[-4, 4, 3, -8]], np.float32) / -8

    np.testing.assert_array_equal(nbits.block_scales(blocked, 4), expected)
    np.testing.assert_array_equal(nbits.block_scales(blocked.transpose(1, 2, 0), 4, axis=1).T, expected)


@pytest.mark.parametrize("bits", [4, 8])
def test_blocks_are_within_half_a_step_of_the_weights(bits: int) -> None:
    plain = np.random.default_rng(0).standard_normal((CHANNELS, OUT)).astype(np.float32)
    matrix = pack.block_matrix(Weight(ir.tensor(plain)), 32, bits, None)

    values, scales = (np.concatenate(list(read())) for read in (matrix.values, matrix.scales))

    zero_points = np.full(scales.shape, 128)
    if matrix.zero_points is not None:
        values = np.stack([values & 15, values >> 4], -1).reshape(OUT, -1, 32)
        stored = np.concatenate(list(matrix.zero_points()))
        zero_points = np.stack([stored & 15, stored >> 4], -1).reshape(OUT, -1)[:, : scales.shape[1]]
    restored = ((values.astype(int) - zero_points[..., None]) * scales[..., None]).reshape(OUT, -1)[:, :CHANNELS].T
    step = np.repeat(np.abs(scales), 32, -1)[:, :CHANNELS].T
    error = np.abs(restored - plain)
    assert (error <= step / 2 + 1e-6).mean() > (0.9 if bits == 4 else 0.999)  # a range that is cut clips some values
    assert np.square(error).mean() < np.square(step).mean() / 12 * 1.05


def test_int8_columns_are_within_half_a_step_and_zero_columns_stay_zero() -> None:
    plain = np.random.default_rng(0).standard_normal((CHANNELS, OUT)).astype(np.float32)
    plain[:, 3] = 0
    matrix = Weight(ir.tensor(plain))

    scale = pack.column_scale(matrix)
    values = np.concatenate(list(pack.int8_columns(matrix, scale)))

    assert values.dtype == np.int8
    assert values.min() >= -127
    assert (np.abs(values * scale - plain) <= scale / 2 + 1e-6).all()
    assert not values[:, 3].any()


def test_a_matrix_that_is_computed_is_left_alone(tmp_path: Path) -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="attention")
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2, 2]) for n in "xwy"]
    model = helper.make_model(helper.make_graph([node], "g", ports[:2], ports[2:]))

    assert weight.matmuls(ir.from_proto(model).graph) == {}
