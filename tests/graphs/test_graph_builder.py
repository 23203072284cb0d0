"""Building graphs: names, places and what is shared."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import onnx_ir as ir
import pytest

from omni.graph_builder import CONTRIB, OPSET, GraphBuilder, port_value
from omni.nbits import BlockMatrix, matmul_nbits
from omni.patterns import first_match, require_matches, unmatched
from qwen_omni_onnx.common.contract import GraphContract, Port


@pytest.fixture
def x() -> ir.Value:
    return port_value(Port("x", "FLOAT", ("batch", 4)))


@pytest.fixture
def builder(x: ir.Value) -> GraphBuilder:
    return GraphBuilder(ir.Graph([x], [], nodes=[], opset_imports={"": OPSET}, name="graph"))


def test_a_node_and_its_output_have_one_name_which_is_numbered_where_it_is_taken(
    builder: GraphBuilder, x: ir.Value
) -> None:
    first = builder.op("Relu", [x], module="layer")
    second = builder.op("Relu", [first], module="layer")
    third = builder.op("Relu", [second], "other", node_name="node")

    assert [value.name for value in (first, second, third)] == ["layer/Relu", "layer/Relu_2", "other"]
    assert [node.name for node in builder.graph] == ["layer/Relu", "layer/Relu_2", "node"]


def test_further_outputs_are_named_after_the_first_and_one_that_nothing_reads_has_no_name(
    builder: GraphBuilder, x: ir.Value
) -> None:
    values, indices = builder.ops("TopK", [x, builder.constant("k", np.array([1]))], "best", outputs=2)
    assert (values.name, indices.name) == ("best", "best.1")

    builder.unused(indices)

    assert indices.name == ""


def test_outputs_have_the_builders_type_or_their_own(x: ir.Value) -> None:
    builder = GraphBuilder(ir.Graph([x], [], nodes=[]), ir.DataType.FLOAT)

    assert builder.op("Relu", [x], "a").dtype == ir.DataType.FLOAT
    assert builder.op("Shape", [x], "b", dtype=ir.DataType.INT64).dtype == ir.DataType.INT64
    assert GraphBuilder(builder.graph).op("Relu", [x], "c").dtype is None


def test_a_node_goes_to_the_end_or_before_another(builder: GraphBuilder, x: ir.Value) -> None:
    last = builder.op("Relu", [x], "last").producer()

    builder.op("Neg", [x], "before", last)

    assert [node.name for node in builder.graph] == ["before", "last"]


def test_a_constant_is_there_once_and_an_initializer_may_not_be_there_twice(builder: GraphBuilder) -> None:
    one = builder.constant("one", np.float32(1))

    assert builder.constant("one", np.float32(2)) is one
    assert list(builder.graph.initializers) == ["one"]
    with pytest.raises(ValueError, match="one"):
        builder.initializer(ir.tensor(np.ones(1), name="one"))


def test_what_replaces_a_node_takes_its_name_and_shape_and_its_place_among_the_outputs(
    builder: GraphBuilder, x: ir.Value
) -> None:
    product = builder.op("Relu", [x], "product")
    result = builder.op("Neg", [product], "y")
    result.shape = ir.Shape(["batch", 4])
    builder.graph.outputs.append(result)
    new = builder.op("Abs", [x], "new", result.producer())

    builder.replace(result.producer(), new, also=product.producer())

    assert [node.op_type for node in builder.graph] == ["Abs"]
    assert list(builder.graph.outputs) == [new]
    assert (new.name, new.shape) == ("y", ir.Shape(["batch", 4]))


def test_a_model_has_the_contracts_inputs_and_outputs() -> None:
    port = Port("y", "FLOAT", ("batch", 4))
    contract = GraphContract((Port("x", "FLOAT", ("batch", 4)),), (port,), ir_version=10, length="batch")
    builder = GraphBuilder.of("graph", contract, ir.DataType.FLOAT)
    value = builder.op("Relu", [builder.input("x")], "unnamed")

    model = builder.model({value: port}, contract.ir_version)

    assert [value.name for value in (*model.graph.inputs, *model.graph.outputs)] == ["x", "y"]
    assert model.graph.opset_imports == {"": OPSET, CONTRIB: 1}


@pytest.mark.parametrize(("bits", "zero_points"), [(4, False), (8, False), (4, True)])
def test_a_matmul_in_blocks_has_the_operators_inputs(
    bits: int, zero_points: bool, builder: GraphBuilder, x: ir.Value
) -> None:
    def nothing() -> Iterator[np.ndarray]:
        return iter(())

    matrix = BlockMatrix((3, 40), 16, bits, nothing, nothing, nothing if zero_points else None)

    node = matmul_nbits(builder, x, matrix, "product", stored="layer", suffix=".q", node_name="node").producer()

    stored = {value.name: (value.dtype, tuple(value.shape.numpy())) for value in node.inputs[1:]}
    expected = {
        f"layer.weight_int{bits}.q": (ir.DataType.UINT8, (3, 3, 2 * bits)),
        "layer.weight_scale.q": (ir.DataType.FLOAT, (3, 3)),
        "layer.weight_zero_point.q": (ir.DataType.UINT8, (3, 2)),
    }
    assert stored == dict(list(expected.items())[: 2 + zero_points])
    assert (node.name, node.domain, node.op_type) == ("node", CONTRIB, "MatMulNBits")
    assert [node.attributes[key].as_int() for key in ("K", "N", "bits", "block_size")] == [40, 3, bits, 16]


def test_the_first_pattern_that_matches_a_name_counts() -> None:
    table = {"layers.0.*": 1, "*": 2}

    assert [first_match(table, name) for name in ("layers.0.a", "layers.1.a")] == [1, 2]
    assert first_match({}, "a") is None
    assert first_match({"A": 1}, "a") is None


def test_a_pattern_that_matches_nothing_is_told(message: Callable[..., str]) -> None:
    require_matches("quantize.nodes", {"a*": 1}, ["ab"])

    assert unmatched({"a*": 1, "c": 2}, ["ab"]) == ["c"]
    said = message(require_matches, "quantize.nodes", {"a*": 1, "c": 2}, ["b", "ab"])
    assert said == "quantize.nodes: no MatMul named c; there are ab, b"
