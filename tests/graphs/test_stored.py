"""Graphs that store matrices as the checkpoint does: half the bytes, the same bits, and the same quantized graphs."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from conftest import build_here, chained_params, write_params

from calibrate.__main__ import calibrate
from components import component
from compose.__main__ import compose
from export.__main__ import export
from omni import segments
from omni.inputs import CALIBRATION, read
from omni.segments import Segments
from omni.stored import load_graph, loaded_bytes, narrow
from omni.streamed import StreamedTensor, WidenedTensor, external_rows, save_graph
from quantize.__main__ import main as quantize
from quantize.compensate import main as compensate
from qwen_omni_onnx.common.configuration import read_config
from qwen_omni_onnx.common.contract import GraphContract
from qwen_omni_onnx.common.session import open_session, run
from validate import memory
from validate.__main__ import run_contract, run_parity
from validate.ceiling import BareKernels, kernels
from validate.measured import built_components

STORED = ("encoder", "thinker", "talker")  # the checkpoint has token2wav in float32


def _store_as_the_checkpoint() -> None:
    params = chained_params()
    for name in STORED:
        params[name]["export"]["store"] = "checkpoint"
    write_params(Path(), params)


def _contracts(name: str) -> dict[str, GraphContract]:
    return dict(component(name).contracts(read_config(Path("models/onnx") / name)))


def _content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir()) if ".onnx" in file.suffixes}


def _large(graph: Path) -> dict[str, ir.TensorProtocol]:
    tensors = {name: value.const_value for name, value in ir.load(graph).graph.initializers.items()}
    return {name: tensor for name, tensor in tensors.items() if tensor is not None and len(tensor.shape) > 1}


@pytest.mark.parametrize("name", STORED)
def test_half_the_bytes_give_the_same_bits_and_the_same_quantized_graphs(name: str, chain: Path) -> None:
    onnx, quantized = Path("models/onnx") / name, Path("models/quantized") / name
    contracts, before, made = _contracts(name), _content(onnx), _content(quantized)
    fed = {stem: contract.example(1, 5 * contract.least) for stem, contract in contracts.items()}
    outputs = {stem: run(open_session(onnx / f"{stem}.onnx"), fed[stem]) for stem in contracts}
    _store_as_the_checkpoint()

    export(name)
    for stage in (calibrate, compensate, quantize):
        stage(name)

    halved = 0
    for stem in contracts:
        narrowed = [tensor for tensor in _large(onnx / f"{stem}.onnx").values() if tensor.dtype == ir.DataType.BFLOAT16]
        data = f"{stem}.onnx.data"
        assert len(before[data]) - (onnx / data).stat().st_size == sum(tensor.nbytes for tensor in narrowed)
        halved += len(narrowed)
        for port, array in run(open_session(onnx / f"{stem}.onnx"), fed[stem]).items():
            np.testing.assert_array_equal(array, outputs[stem][port], err_msg=f"{stem} {port}")
    assert halved > 5
    assert _content(quantized) == made
    run_contract([name])
    run_parity([name])


def test_what_measures_and_what_composes_reads_such_graphs(chain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = _content(Path("models/composed/onnx/audio_core"))
    _store_as_the_checkpoint()
    for name in STORED:
        export(name)
        for stage in (calibrate, compensate, quantize):
            stage(name)

    compose("audio_core")
    assert _content(Path("models/composed/onnx/audio_core")) == made  # stored in float32: a loop would cast every time
    monkeypatch.setattr("omni.resources.measure_module", build_here)
    for measured, params in built_components(["encoder", "thinker"]):
        (graph,) = measured.graphs.values()
        sessions = memory.measure(measured, params, 1).graphs[graph.stem]
        stored = graph.files["float32"].with_suffix(".onnx.data").stat().st_size
        assert sessions["float32"].data_bytes > 1.5 * stored
        assert (
            sessions["quantized"].data_bytes < 1.1 * graph.files["quantized"].with_suffix(".onnx.data").stat().st_size
        )
        with BareKernels(kernels(graph, 9), "float32", 1, "CPUExecutionProvider") as bare:
            bare.run()
            assert bare.seconds(1)[0] > 0


@pytest.mark.slow
def test_sensitivity_reads_such_graphs(chain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = []
    for store in (lambda: None, _store_as_the_checkpoint):
        store()
        export("encoder")
        for stage in (calibrate, compensate, quantize):
            stage("encoder")
        quantize("encoder", sensitivity=True, schemes="int8-token")
        nodes = [line.split()[:2] for line in capsys.readouterr().out.splitlines() if "MatMul" in line]
        assert nodes
        printed.append(sorted(nodes))
    assert printed[0] == printed[1]


def test_segments_count_what_a_session_holds(chain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = StreamedTensor("w", ir.DataType.BFLOAT16, (3, 5), lambda: iter(()))
    assert (stored.nbytes, loaded_bytes(stored)) == (30, 60)
    graph, (contract,) = Path("models/onnx/encoder/audio_encoder.onnx"), _contracts("encoder").values()
    names = [str(node.inputs[0].name) for node in load_graph(graph).graph if node.op_type == "MatMul"][::3]
    recordings = read("encoder", CALIBRATION)

    def observed() -> tuple[int, dict[tuple[str, str], np.ndarray]]:
        found: dict[tuple[str, str], np.ndarray] = {}
        split = Segments(graph, names, lambda some: [some])
        split.run(
            contract,
            recordings,
            lambda clip, values: found.update({(clip, name): array for name, array in values.items()}),
        )
        return split.sessions, found

    monkeypatch.setattr(segments, "SEGMENT_BYTES", 40_000)
    sessions, expected = observed()
    assert sessions > 1
    _store_as_the_checkpoint()
    export("encoder")

    again, found = observed()

    assert again == sessions
    assert found.keys() == expected.keys()
    for key, array in expected.items():
        np.testing.assert_array_equal(found[key], array)


def test_only_what_the_checkpoint_has_in_16_bits_is_stored_so(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    half = random.standard_normal((6, 4)).astype(np.float16).astype(np.float32)
    tensors = {
        "half": (half, ir.DataType.FLOAT16),
        "whole": (random.standard_normal((6, 4), np.float32), None),
        "vector": (half[:, 0].copy(), ir.DataType.FLOAT16),
    }
    values = {}
    for name, (array, dtype) in tensors.items():
        tensor = StreamedTensor(name, ir.DataType.FLOAT, array.shape, partial(iter, [array]), dtype)
        shape = ir.Shape(array.shape)
        values[name] = ir.Value(name=name, shape=shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    nodes = [
        ir.node("Sub", [values["half"], values["whole"]], name="sub"),
        ir.node("MatMul", [values["vector"], values["half"]], name="product"),
    ]
    for node in nodes:
        node.outputs[0].name, node.outputs[0].type = node.name, ir.TensorType(ir.DataType.FLOAT)
    results = [node.outputs[0] for node in nodes]
    graph = ir.Graph([], results, nodes=nodes, initializers=list(values.values()), opset_imports={"": 21}, name="g")

    narrow(graph)
    save_graph(ir.Model(graph, ir_version=10), tmp_path, "g")

    stored = {name: value.dtype for name, value in ir.load(tmp_path / "g.onnx").graph.initializers.items()}
    assert stored == {"half": ir.DataType.FLOAT16, "whole": ir.DataType.FLOAT, "vector": ir.DataType.FLOAT}
    assert [node.op_type for node in ir.load(tmp_path / "g.onnx").graph] == ["Cast", "Sub", "MatMul"]
    sub, product = open_session(tmp_path / "g.onnx").run(None, {})
    np.testing.assert_array_equal(sub, half - tensors["whole"][0])
    np.testing.assert_allclose(product, half[:, 0] @ half, rtol=1e-6)

    loaded = load_graph(tmp_path / "g.onnx").graph
    assert [node.op_type for node in loaded] == ["Sub", "MatMul"]
    tensor = loaded.initializers["half"].const_value
    assert isinstance(tensor, WidenedTensor)
    np.testing.assert_array_equal(external_rows(tensor, slice(2, 5)), half[2:5])
    np.testing.assert_array_equal(tensor.numpy(), half)
