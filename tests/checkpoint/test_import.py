"""4-bit checkpoints come in as they are: dequantized, and as MatMulNBits, bit for bit what their formats say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import tiny_decoder as tiny
from onnx import helper, numpy_helper
from packed_checkpoints import AWQ, GPTQ, GROUP, LAYERS, LAYOUTS, Packed, pack, pack_gptq, rounded, write_tensors

from export.decoder import Schemes
from omni.checkpoint import Checkpoint, TensorSpec
from omni.imported import Importer
from omni.packed import packed_format
from omni.params import QuantizeParams, Scheme
from omni.streamed import save_graph
from quantize.apply import quantize
from qwen_omni_onnx.common.metrics import sqnr_db

HEAD: dict[str, Scheme] = {"lm_head*": "int8-block"}
IMPORTED = Schemes("int4-import", nodes=HEAD)
WIDTHS = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
RAGGED = {"hidden_size": 96, "intermediate_size": 112, "num_hidden_layers": 1, "num_attention_heads": 6}
DECODER = tiny.PARTS["thinker"].DECODER


@dataclass
class Imported:
    """A tiny Thinker packed in one layout: its graph in float32, and its graph that took the codes over."""

    packed: Packed
    float32: Path
    graph: Path

    def staged(self, folder: Path) -> tuple[Path, dict]:
        """Quantize the float32 graph, as the stage does."""
        how = QuantizeParams(scheme="int4-import", block=32, nodes=HEAD)
        model, done = quantize(self.float32, how, {}, Importer(self.packed.checkpoint, DECODER.matrices))
        save_graph(model, folder, "staged")
        return folder / "staged.onnx", done


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return tiny.write_source("thinker", tiny.config(**WIDTHS), tmp_path_factory.mktemp("original"))


@pytest.fixture(scope="module", params=LAYOUTS)
def imported(
    request: pytest.FixtureRequest, original: Checkpoint, tmp_path_factory: pytest.TempPathFactory
) -> Imported:
    folder = tmp_path_factory.mktemp(request.param)
    packed = pack(original, LAYOUTS[request.param], folder / "thinker")
    return _built(packed, folder)


@pytest.fixture(scope="module")
def ragged(tmp_path_factory: pytest.TempPathFactory) -> Imported:
    """Three groups and a half of inputs, or three: neither comes out even."""
    folder = tmp_path_factory.mktemp("ragged")
    source = tiny.write_source("thinker", tiny.config(**RAGGED), folder / "original")
    return _built(pack(source, LAYOUTS["gptq"], folder / "thinker"), folder)


def _built(packed: Packed, folder: Path) -> Imported:
    float32 = tiny.write_graph("thinker", packed.checkpoint, folder / "float32")
    return Imported(packed, float32, tiny.write_graph("thinker", packed.checkpoint, folder / "imported", IMPORTED))


# Dequantized


def test_a_packed_layer_reads_as_its_formats_formula_says(imported: Imported) -> None:
    checkpoint = imported.packed.checkpoint
    assert len(imported.packed.layers) == 2 * len(LAYERS)

    for module, codes in imported.packed.layers.items():
        name, expected = f"{module}.weight", codes.weight()
        assert checkpoint.spec(name) == TensorSpec("F32", expected.shape)
        np.testing.assert_array_equal(checkpoint.read(name), expected)
        for rows in (slice(0, 8), slice(3, 21), slice(5, None), slice(7, 7)):  # words hold eight outputs
            np.testing.assert_array_equal(checkpoint.read_rows(name, rows), expected[rows])


def test_what_is_not_packed_reads_as_it_is_stored(imported: Imported, original: Checkpoint) -> None:
    checkpoint = imported.packed.checkpoint

    for name in ("thinker.lm_head.weight", "thinker.model.norm.weight", "thinker.model.layers.0.self_attn.q_proj.bias"):
        assert checkpoint.spec(name).dtype == "F16"
        np.testing.assert_array_equal(checkpoint.read(name), original.read(name).astype(np.float16))


def test_the_float32_graph_holds_the_dequantized_weights(imported: Imported) -> None:
    matrices = {
        str(node.name): node.inputs[1].const_value.numpy()
        for node in ir.load(imported.float32).graph
        if _is_matmul(node)
    }

    for node, expected in _expected(imported.packed).items():
        np.testing.assert_array_equal(matrices[node], expected.T)


# As MatMulNBits


def test_the_operators_initializers_mean_the_same_weights(imported: Imported, tmp_path: Path) -> None:
    for graph in (imported.graph, imported.staged(tmp_path)[0]):
        found = {name: np.concatenate([_meant(node) for node in nodes]) for name, nodes in _operators(graph).items()}
        expected = _expected(imported.packed)
        assert set(found) == set(expected)
        for name in expected:
            np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


def test_groups_that_do_not_come_out_even_mean_the_same_weights(ragged: Imported) -> None:
    expected = _expected(ragged.packed)

    for name, nodes in _operators(ragged.graph).items():
        np.testing.assert_array_equal(np.concatenate([_meant(node) for node in nodes]), expected[name])


def test_onnx_runtime_multiplies_by_the_same_weights(imported: Imported) -> None:
    """Its own kernel at accuracy level 0, which leaves activations float32, fed an identity matrix."""
    _assert_multiplied_by_the_same(imported)


def test_onnx_runtime_multiplies_by_the_same_weights_in_groups_that_do_not_come_out_even(ragged: Imported) -> None:
    _assert_multiplied_by_the_same(ragged)


def test_queries_keys_and_values_are_one_operator_where_their_inputs_are_in_one_order(
    imported: Imported, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    layout = request.node.callspec.params["imported"]
    staged, done = imported.staged(tmp_path)

    for graph in (imported.graph, staged):
        counts = {name: len(nodes) for name, nodes in _operators(graph).items()}
        apart = 3 if layout == "act-order-apart" else 1
        assert {count for name, count in counts.items() if "qkv" in name} == {apart}
        gathers = sum(node.op_type == "Gather" and "order" in node.inputs[1].name for node in ir.load(graph).graph)
        # One for each activation of a layer; apart, one for each layer.
        assert gathers == {"act-order": 2 * 4, "act-order-apart": 2 * 7}.get(layout, 0)
    record = done["model.layers.0.self_attn.qkv_proj/MatMul"]
    assert record["operator"] == "MatMulNBits"
    assert record.get("nodes", 1) == (3 if layout == "act-order-apart" else 1)
    assert {entry["scheme"] for entry in done.values()} == {"int4-import", "int8-block"}


# The whole Thinker


def test_the_imported_thinker_says_what_the_dequantized_weights_say(imported: Imported, tmp_path: Path) -> None:
    staged, _ = imported.staged(tmp_path)
    onnx.checker.check_model(str(imported.graph))
    onnx.checker.check_model(str(staged))
    embeds = np.random.default_rng(3).standard_normal((1, 20, 64), np.float32)

    said = [
        tiny.open_decoder(graph).forward(embeds, np.array([20])) for graph in (imported.float32, imported.graph, staged)
    ]

    for (logits, hidden), least in zip(said[1:], (25, 25), strict=True):  # activations in 8 bits, by the block
        assert sqnr_db(said[0][0], logits) > least
        assert sqnr_db(said[0][1], hidden) > least
    for one, other in zip(said[1], said[2], strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_float32_graph_agrees_with_transformers(imported: Imported) -> None:
    embeds = np.random.default_rng(4).standard_normal((1, 9, 64), np.float32)

    logits, hidden = tiny.original("thinker", imported.packed.checkpoint)(embeds)

    ours = tiny.open_decoder(imported.float32).forward(embeds, np.array([9]))
    assert sqnr_db(logits, ours[0]) > 100
    assert sqnr_db(hidden, ours[1]) > 100


@pytest.mark.parametrize("scheme", ["int4-block", "int8-block"])
def test_other_schemes_take_a_packed_checkpoint_dequantized(imported: Imported, scheme: str, tmp_path: Path) -> None:
    graph = tiny.write_graph("thinker", imported.packed.checkpoint, tmp_path / scheme, Schemes(scheme))
    embeds = np.random.default_rng(3).standard_normal((1, 20, 64), np.float32)

    float32, blocks = (tiny.open_decoder(file).forward(embeds, np.array([20]))[1] for file in (imported.float32, graph))

    assert sqnr_db(float32, blocks) > {"int4-block": 8, "int8-block": 25}[scheme]


def test_layers_of_which_only_some_are_packed_keep_every_bit(original: Checkpoint, tmp_path: Path) -> None:
    """Keys are float16 beside packed queries: one matrix, which neither may round."""
    packed = pack(original, LAYOUTS["awq"], tmp_path / "thinker")
    source = packed.checkpoint
    tensors = {
        name: source.read(name) for name in source.entries if ".k_proj.q" not in name and "k_proj.scales" not in name
    }
    keys = {name: original.read(name).astype(np.float16) for name in original.entries if name.endswith("k_proj.weight")}
    write_tensors(source.folder, tensors | keys)

    graph = tiny.write_graph("thinker", Checkpoint(source.folder), tmp_path / "graph")

    node = next(node for node in ir.load(graph).graph if node.name == "model.layers.1.self_attn.qkv_proj/MatMul")
    module = "thinker.model.layers.1.self_attn"
    values = [
        packed.layers[f"{module}.q_proj"].weight(),
        keys[f"{module}.k_proj.weight"],
        packed.layers[f"{module}.v_proj"].weight(),
    ]
    np.testing.assert_array_equal(node.inputs[1].const_value.numpy(), np.concatenate(values).T)


# Refusals


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({**AWQ, "version": "gemv"}, "version 'gemv' of awq has another layout; only gemm is read"),
        ({**AWQ, "bits": 8}, "bits 8: only 4 are read"),
        ({**GPTQ, "bits": 3}, "bits 3: only 4 are read"),
        ({**GPTQ, "group_size": -1}, "group_size -1: MatMulNBits takes powers of two from 16"),
        ({**GPTQ, "group_size": 8}, "group_size 8: "),
        ({**GPTQ, "group_size": 96}, "group_size 96: "),
        ({**GPTQ, "group_size": "128"}, "group_size '128': "),
        (
            {**GPTQ, "checkpoint_format": "marlin"},
            "checkpoint_format 'marlin' has another layout; only gptq and gptq_v2",
        ),
        ({"quant_method": "fp8"}, "quant_method 'fp8' is not one of awq, gptq, auto-round"),
        ({**GPTQ, "quant_method": "auto-round"}, "quant_method packing_format None is not one of"),
        (
            {**GPTQ, "quant_method": "auto-round", "packing_format": "auto_round:marlin"},
            "'auto_round:marlin' is not one of",
        ),
    ],
)
def test_another_format_is_refused_in_one_line(changes: dict, said: str, message: Callable[..., str]) -> None:
    found = message(packed_format, {"quantization_config": changes})

    assert found.startswith("config.json: quantization_config: ")
    assert said in found


def test_the_format_is_found_in_a_section_too_or_missed(message: Callable[..., str]) -> None:
    at_top = packed_format({"quantization_config": AWQ})

    assert at_top == packed_format({"thinker_config": {"quantization_config": AWQ}})
    assert at_top == packed_format({"thinker_config": {"text_config": {"quantization_config": AWQ}}})
    assert at_top.group == GROUP
    assert "no quantization_config" in message(packed_format, {"thinker_config": {}})


@pytest.mark.parametrize(
    ("part", "change", "said"),
    [
        ("qzeros", None, "k_proj.qzeros: missing beside "),
        ("scales", lambda array: array[:-1], "k_proj.scales: float16 [1, 32]; by quantization_config it should be "),
        ("scales", lambda array: array.astype(np.int32), "should be float16 or bfloat16 or float32 [2, 32]"),
        ("qweight", lambda array: array.astype(np.int64), "k_proj.qweight: int64 [8, 32]; "),
        ("qweight", lambda array: array.ravel(), "k_proj.qweight: [256] is not the shape of a matrix"),
        ("qweight", lambda array: np.concatenate([array, array]), "k_proj.qzeros: int32 [2, 4]; "),  # as of 8 bits
        ("g_idx", lambda array: array + 1, "k_proj.g_idx: names groups beyond the 2 that have scales"),
        ("qzeros", lambda array: array | (15 << 8), "k_proj.qzeros: a stored 15 means a zero point of 16, "),
    ],
)  # fmt: skip
def test_tensors_that_are_not_what_the_format_says_are_refused_in_one_line(
    part: str, change: Callable[[np.ndarray], np.ndarray] | None, said: str, original: Checkpoint, tmp_path: Path,
    message: Callable[..., str],
) -> None:  # fmt: skip
    source = pack(original, LAYOUTS["gptq"], tmp_path / "thinker").checkpoint
    module = "thinker.model.layers.0.self_attn.k_proj"
    tensors = {name: source.read(name) for name in source.entries}
    changed = tensors.pop(f"{module}.{part}")
    write_tensors(source.folder, tensors | ({f"{module}.{part}": change(changed)} if change else {}))

    assert said in message(Checkpoint(source.folder).read, f"{module}.weight")


def test_a_stored_15_is_a_zero_point_like_others_where_the_format_stores_them_as_they_are(
    original: Checkpoint, tmp_path: Path
) -> None:
    packed = pack(original, LAYOUTS["gptq_v2"], tmp_path / "thinker")
    module = "thinker.model.layers.0.self_attn.k_proj"
    codes = replace(packed.layers[module], zeros=np.full_like(packed.layers[module].zeros, 15))
    tensors = {name: packed.checkpoint.read(name) for name in packed.checkpoint.entries}
    write_tensors(
        packed.checkpoint.folder, tensors | {f"{module}.{part}": a for part, a in pack_gptq(codes, offset=0).items()}
    )

    np.testing.assert_array_equal(Checkpoint(packed.checkpoint.folder).read(f"{module}.weight"), codes.weight())


def test_groups_of_several_sizes_are_dequantized_but_not_imported(
    original: Checkpoint, tmp_path: Path, message: Callable[..., str]
) -> None:
    packed = pack(original, LAYOUTS["act-order"], tmp_path / "thinker")
    module = "thinker.model.layers.0.self_attn.o_proj"
    groups = packed.layers[module].groups.copy()
    groups[np.flatnonzero(groups == 0)[0]] = 1
    codes = rounded(original.read(f"{module}.weight"), groups)
    tensors = {name: packed.checkpoint.read(name) for name in packed.checkpoint.entries}
    write_tensors(packed.checkpoint.folder, tensors | {f"{module}.{part}": a for part, a in pack_gptq(codes).items()})
    source = Checkpoint(packed.checkpoint.folder)

    np.testing.assert_array_equal(source.read(f"{module}.weight"), codes.weight())
    said = message(tiny.write_graph, "thinker", source, tmp_path / "graph", IMPORTED)
    assert said.startswith(f"{module}.g_idx: group 0 has 31 inputs, not 32; int4-import needs whole groups")
    spared = Schemes("int4-import", nodes={"*.0.self_attn.o_proj/*": "int4-block", **HEAD})
    tiny.write_graph("thinker", source, tmp_path / "spared", spared)


def test_what_is_not_packed_is_named_and_so_is_what_to_do(
    imported: Imported, original: Checkpoint, tmp_path: Path, message: Callable[..., str]
) -> None:
    everywhere = QuantizeParams(scheme="int4-import", block=32, nodes={})
    importer = Importer(imported.packed.checkpoint, DECODER.matrices)
    said = "lm_head.0/MatMul: thinker.lm_head.weight is not packed to 4 bits, as int4-import wants it; name another "

    assert message(
        tiny.write_graph, "thinker", imported.packed.checkpoint, tmp_path / "1", Schemes("int4-import")
    ).startswith(said)
    assert message(quantize, imported.float32, everywhere, {}, importer).startswith(said)
    assert "no tensor named qweight in it" in message(tiny.write_graph, "thinker", original, tmp_path / "2", IMPORTED)
    assert "int4-import needs the checkpoint" in message(quantize, imported.float32, everywhere, {})


# What graphs mean, by formulas of the tests' own


def _expected(packed: Packed) -> dict[str, np.ndarray]:
    """Each MatMul's matrix [out, in] by the node's name in the float32 graph."""
    found: dict[str, np.ndarray] = {}
    for module, codes in packed.layers.items():
        node = module.removeprefix("thinker.")
        if node.endswith("q_proj"):
            attention = module.removesuffix("q_proj")
            weights = [packed.layers[f"{attention}{name}_proj"].weight() for name in "qkv"]
            found[f"{node.removesuffix('q_proj')}qkv_proj/MatMul"] = np.concatenate(weights)
        elif not node.endswith(("k_proj", "v_proj")):
            found[f"{node}/MatMul"] = codes.weight()
    return found


def _assert_multiplied_by_the_same(given: Imported) -> None:
    expected = _expected(given.packed)
    for name, nodes in _operators(given.graph).items():
        weight = np.concatenate([_multiplied_by(node) for node in nodes])
        np.testing.assert_array_equal(weight, expected[name], err_msg=name)


def _is_matmul(node: ir.Node) -> bool:
    return node.op_type == "MatMul" and node.inputs[1].const_value is not None


def _operators(graph: Path) -> dict[str, list[ir.Node]]:
    """The 4-bit operators by the MatMul that they stand for; several where queries, keys and values are apart."""
    found: dict[str, list[ir.Node]] = {}
    for node in ir.load(graph).graph:
        if node.op_type != "MatMulNBits" or node.attributes["bits"].as_int() != 4:
            continue
        module = str(node.name).partition("/MatMul")[0]
        whole = module.partition(".qkv_proj")[0] + ".qkv_proj" if ".qkv_proj" in module else module
        found.setdefault(f"{whole}/MatMul", []).append(node)
    return found


def _order(node: ir.Node) -> np.ndarray | None:
    """What the activation's channels are ordered by before the operator reads them."""
    before = node.inputs[0].producer()
    return before.inputs[1].const_value.numpy() if before is not None and before.op_type == "Gather" else None


def _meant(node: ir.Node) -> np.ndarray:
    """The operator's weights [out, in], by its specification: (value - zero point) * scale, low nibbles first."""
    values, scales, zeros = (value.const_value.numpy() for value in node.inputs[1:4])
    out, into, block = (node.attributes[name].as_int() for name in ("N", "K", "block_size"))
    order = _order(node)
    weight = np.empty((out, into), np.float32)
    for i in range(into):
        g, at = divmod(i, block)
        value = (values[:, g, at // 2] >> (4 * (at % 2))) & 15
        zero = (zeros[:, g // 2] >> (4 * (g % 2))) & 15
        column = (value.astype(np.float64) - zero) * scales[:, g]
        weight[:, i if order is None else order[i]] = column
    assert node.attributes["accuracy_level"].as_int() == 4
    return weight


def _multiplied_by(node: ir.Node) -> np.ndarray:
    """What ONNX Runtime's kernel multiplies by, [out, in]: the operator at accuracy level 0 on an identity matrix."""
    out, into = (node.attributes[name].as_int() for name in ("N", "K"))
    names = ("values", "scales", "zeros")
    stored = [numpy_helper.from_array(v.const_value.numpy(), n) for n, v in zip(names, node.inputs[1:4], strict=True)]
    attributes = {name: value.as_int() for name, value in node.attributes.items()} | {"accuracy_level": 0}
    operator = helper.make_node("MatMulNBits", ["x", *names], ["y"], domain="com.microsoft", **attributes)
    ports = [helper.make_tensor_value_info(name, 1, [into, size]) for name, size in (("x", into), ("y", out))]
    graph = helper.make_graph([operator], "one", ports[:1], ports[1:], stored)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    identity = np.eye(into, dtype=np.float32)
    order = _order(node)
    given = identity if order is None else identity[:, order]
    return session.run(None, {"x": given})[0].T
