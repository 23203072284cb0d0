"""Sessions: INT8 sums are exact, at the speed that the processor has."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from qwen_omni_onnx.common import session
from qwen_omni_onnx.common.session import open_session, run

LARGEST = 255 * 127  # of a product of UINT8 and INT8; two of them do not fit 16 bits


def _product(rows: int, columns: int) -> bytes:
    """x UINT8 [batch, rows] times a constant INT8 matrix of 127s, as the quantized graphs multiply."""
    weights = {"w": np.full((rows, columns), 127, np.int8), "one": np.float32(1), "ones": np.ones(columns, np.float32)}
    node = helper.make_node("MatMulIntegerToFloat", ["x", "w", "one", "ones"], ["y"], domain="com.microsoft")
    x = helper.make_tensor_value_info("x", TensorProto.UINT8, ["batch", rows])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", columns])
    constants = [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()]
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    graph = helper.make_graph([node], "product", [x], [y], constants)
    return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


@pytest.mark.parametrize("batch", [1, 5, 64])
def test_int8_sums_are_exact_whatever_the_processor(batch: int) -> None:
    x = np.full((batch, 96), 255, np.uint8)

    y = run(open_session(_product(96, 48)), {"x": x})["y"]

    assert (y == 96 * LARGEST).all()


def test_weights_turn_to_uint8_where_sums_would_saturate_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    def precise(saturates: bool) -> str | None:
        monkeypatch.setattr(session, "sums_saturate", lambda: saturates)
        options = open_session(_product(96, 48)).get_session_options()
        try:
            return options.get_session_config_entry(session._EXACT_INT8)
        except RuntimeError:  # no such entry
            return None

    assert precise(True) == "1"
    assert precise(False) is None


def test_the_probe_multiplies_uint8_by_int8() -> None:
    model = onnx.load_from_string(session._PRODUCT)

    onnx.checker.check_model(model)
    assert [node.op_type for node in model.graph.node] == ["MatMulInteger"]
    assert [port.type.tensor_type.elem_type for port in model.graph.input] == [TensorProto.UINT8, TensorProto.INT8]
