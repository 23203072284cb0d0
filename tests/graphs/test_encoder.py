"""The audio encoder: transformers' own, as a graph over blocks; float32 and quantized."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from conftest import BLOCK, EMBEDDING, MELS, ROOT, WIDTH, tiny_config

from components import component
from export.__main__ import export
from omni.change import Change
from omni.checkpoint import Checkpoint
from omni.graph_builder import GraphBuilder
from omni.inputs import HELD_OUT, read
from omni.params import QuantizeParams, Scheme, load
from omni.resources import measure_module
from omni.streamed import data_file, save_graph
from omni.weight import Weight, convolutions, matmuls
from pull import synthetic
from quantize.apply import Calibration, quantize, read_calibration
from quantize.fold import fold
from quantize.schemes import Rewriter
from quantize.smooth import Smoother
from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.common.metrics import sqnr_db
from qwen_omni_onnx.common.session import open_session, run
from reference.encoder import ORIGINAL
from validate.memory import describe_inputs

assert ORIGINAL.run is not None
run_original = ORIGINAL.run
PART = component("encoder")
FLOAT, INT8 = Path("models/onnx/encoder/audio_encoder.onnx"), Path("models/quantized/encoder/audio_encoder_int8.onnx")
EACH_LAYER = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "fc1", "fc2")
RAGGED = [
    [BLOCK, 1, 3 * BLOCK],
    [1, 5 * BLOCK + 3, 1],
    [2 * BLOCK, 2 * BLOCK],
    [3, BLOCK - 1, BLOCK + 1, 2, 7],
    [1, 2],
]
Fed = dict[str, np.ndarray]
Folding = tuple[ir.Model, dict[ir.Value, list[ir.Node]], dict[ir.Node, Weight]]


@pytest.fixture(autouse=True)
def _here(chain_once: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Paths above are those of the chain, which nobody changes; a test that asks for its own copy gets that."""
    if not {"chain", "full_width"} & set(request.fixturenames):
        monkeypatch.chdir(chain_once)


@functools.cache
def _session(graph: Path) -> ort.InferenceSession:
    return open_session(graph.absolute(), threads=1)


def _open(graph: Path) -> ort.InferenceSession:
    return _session(graph.absolute())


def _features(frames: int, mels: int = MELS) -> np.ndarray:
    """Features [mels, frames] of the held-out clips' kind: slow in time, between -1 and 1.5."""
    random = np.random.default_rng(frames)
    steps = random.standard_normal((mels, frames)) * 0.3 + np.sin(np.arange(frames) / 7) * 0.5
    return (np.clip(steps, -1, 1.5)).astype(np.float32)


def _batch(lengths: list[int], beyond: float = 0.0, mels: int = MELS) -> Fed:
    """A ragged batch whose rows are followed by ``beyond``."""
    batch = np.full((len(lengths), mels, max(lengths)), beyond, np.float32)
    for number, (row, length) in enumerate(zip(batch, lengths, strict=True)):
        row[:, :length] = _features(length + 1000 * number, mels)[:, :length]
    return {"input_features": batch, "feature_lens": np.array(lengths)}


def _transformers(source: Path) -> Any:
    """Transformers' own encoder with the checkpoint's weights."""
    import torch

    checkpoint = Checkpoint(source)
    encoder = ORIGINAL.make(checkpoint.config)
    weights = {
        name: torch.from_numpy(checkpoint.read(ORIGINAL.tensor_name(name)).astype(np.float32))
        for name, _ in encoder.named_parameters()
    }
    encoder.load_state_dict(weights, assign=True)
    return encoder.eval()


@pytest.fixture(scope="module")
def original(chain_once: Path) -> Any:
    return _transformers(chain_once / "models/source/encoder")


def _tokens(frames: int) -> int:
    return ((frames - 1) // 2 + 1) // 2


def _decibels(expected: np.ndarray, actual: np.ndarray) -> float:
    assert np.isfinite(actual).all()
    assert expected.shape == actual.shape
    return sqnr_db(expected, actual)


# The float32 graph


@pytest.mark.parametrize("frames", [1, 2, 3, 4, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 5 * BLOCK + 3])
def test_a_clip_of_any_length_agrees_with_transformers(frames: int, original: Any) -> None:
    fed = _batch([frames])

    features, lengths = run(_open(FLOAT), fed).values()
    expected, expected_lengths = run_original(original, fed)

    assert lengths.tolist() == expected_lengths.tolist() == [_tokens(frames)]
    assert features.shape == (1, _tokens(frames), EMBEDDING)
    assert _decibels(expected, features) >= 100


@pytest.mark.parametrize("lengths", RAGGED, ids=str)
def test_a_ragged_batch_agrees_with_transformers_and_is_zero_beyond_its_lengths(
    lengths: list[int], original: Any
) -> None:
    fed = _batch(lengths)

    features, audio_lens = run(_open(FLOAT), fed).values()
    expected, expected_lens = run_original(original, fed)

    assert audio_lens.tolist() == expected_lens.tolist() == [_tokens(length) for length in lengths]
    assert _decibels(expected, features) >= 100
    for row, wanted, tokens in zip(features, expected, audio_lens, strict=True):
        assert not row[tokens:].any()
        assert _decibels(wanted[:tokens], row[:tokens]) >= 100


def test_transformers_itself_is_what_the_golden_cases_hold(original: Any) -> None:
    """Clip by clip through the public interface, not by way of the exporter's own ``run``."""
    import torch

    lengths = [5 * BLOCK + 3, 3, BLOCK]
    fed = _batch(lengths)
    features = run(_open(FLOAT), fed)["audio_features"]

    for row, clip, length in zip(features, fed["input_features"], lengths, strict=True):
        with torch.inference_mode():
            alone = original(
                input_features=torch.from_numpy(clip[:, :length].copy()), feature_lens=torch.tensor([length])
            ).last_hidden_state.numpy()
        assert _decibels(alone, row[: len(alone)]) >= 100


@pytest.mark.parametrize("graph", [FLOAT, INT8], ids=["float32", "quantized"])
@pytest.mark.parametrize("beyond", [1.0, -3e4, 1e30])
def test_what_lies_beyond_a_clip_changes_nothing(graph: Path, beyond: float) -> None:
    lengths = [BLOCK + 5, 3 * BLOCK, 1, 2 * BLOCK]

    quiet, loud = (run(_open(graph), _batch(lengths, value)) for value in (0.0, beyond))

    for name, array in quiet.items():
        np.testing.assert_array_equal(loud[name], array)


@pytest.mark.parametrize("graph", [FLOAT, INT8], ids=["float32", "quantized"])
def test_a_stream_of_whole_blocks_gives_what_the_whole_gives(graph: Path) -> None:
    whole = _batch([5 * BLOCK + 3])
    pieces = [
        run(_open(graph), {"input_features": piece, "feature_lens": np.array([piece.shape[2]])})["audio_features"]
        for piece in np.split(whole["input_features"], [2 * BLOCK, 3 * BLOCK], axis=2)
    ]

    together = run(_open(graph), whole)["audio_features"]

    assert _decibels(together, np.concatenate(pieces, 1)) > 100


def test_a_block_does_not_see_another_one() -> None:
    fed = _batch([3 * BLOCK])
    before = run(_open(FLOAT), fed)["audio_features"]

    fed["input_features"][:, :, BLOCK : 2 * BLOCK] += 1
    after = run(_open(FLOAT), fed)["audio_features"]

    changed = (before != after).any(-1)[0]
    assert changed[BLOCK // 4 : BLOCK // 2].all()
    assert not changed[: BLOCK // 4].any()
    assert not changed[BLOCK // 2 :].any()


@pytest.mark.parametrize(("graph", "least"), [(FLOAT, 100), (INT8, 60)], ids=["float32", "quantized"])
def test_rows_of_a_batch_do_not_see_each_other(graph: Path, least: float) -> None:
    fed = _batch([BLOCK, 4 * BLOCK + 1, 5])
    together = run(_open(graph), fed)["audio_features"]

    for number, length in enumerate(fed["feature_lens"]):
        alone = run(
            _open(graph),
            {"input_features": fed["input_features"][number : number + 1, :, :length], "feature_lens": length[None]},
        )["audio_features"]
        assert _decibels(alone[0], together[number, : _tokens(int(length))]) > least


def test_a_checkpoint_of_another_size_is_another_contract(message: Callable[..., str]) -> None:
    _, contract = PART.graph(tiny_config())

    assert [str(port) for port in (*contract.inputs, *contract.outputs)] == [
        f"input_features FLOAT [batch, {MELS}, frames]",
        "feature_lens INT64 [batch]",
        f"audio_features FLOAT [batch, tokens, {EMBEDDING}]",
        "audio_lens INT64 [batch]",
    ]
    assert [contract.sizes(1, frames)["tokens"] for frames in (1, 2, 3, 4, 5, 200, 201)] == [0, 0, 1, 1, 1, 50, 50]
    assert "the checkpoint has no audio encoder" in message(PART.contracts, {"thinker_config": {}})


def test_the_tensors_are_those_of_transformers_module() -> None:
    expected = {name: tuple(p.shape) for name, p in ORIGINAL.make(tiny_config()).named_parameters()}

    specs = PART.tensors(tiny_config())

    assert {name: spec.shape for name, spec in specs.items()} == {
        ORIGINAL.tensor_name(name): shape for name, shape in expected.items()
    }


def test_what_the_checkpoint_does_not_hold_is_a_constant_of_the_graph() -> None:
    """Sinusoids as transformers computes them, not what tracing without values would leave."""
    positions = ir.load(FLOAT).graph.initializers["positions"].const_value.numpy()

    distance = np.exp(-np.log(10_000) / (WIDTH // 2 - 1) * np.arange(WIDTH // 2))
    angle = np.arange(BLOCK // 2)[:, None] * distance
    np.testing.assert_allclose(positions, np.concatenate([np.sin(angle), np.cos(angle)], 1), atol=1e-5)


def test_exporting_again_gives_the_same_bytes(tmp_path: Path) -> None:
    export("encoder", out=tmp_path / "again")

    assert artifact.fingerprint(tmp_path / "again") == artifact.fingerprint(FLOAT.parent)


# Quantization


def test_every_matrix_is_quantized_but_the_first_attention_and_changes_fold_but_behind_gelu() -> None:
    done = artifact.read_manifest(INT8.parent)["quantization"]["audio_encoder"]

    names = {f"layers.{layer}.{name}" for layer in (0, 1) for name in EACH_LAYER} | {"proj"}
    assert set(done) == {f"{name}/MatMul" for name in names}
    first = {name for name in done if name.startswith("layers.0.self_attn.")}
    assert {name for name, entry in done.items() if entry["operator"] == "MatMul"} == first
    assert {entry["operator"] for entry in done.values()} == {"MatMul", "MatMulIntegerToFloat"}
    norms = {"q_proj": "self_attn_layer_norm", "k_proj": "self_attn_layer_norm", "v_proj": "self_attn_layer_norm",
             "fc1": "final_layer_norm"}  # fmt: skip
    for name in done.keys() - first:
        layer, last = name.removesuffix("/MatMul").rpartition(".")[0].removesuffix(".self_attn"), name.split(".")[-1]
        last = last.removesuffix("/MatMul")
        expected: dict[str, Any] = {"compensation": 0.1, "rotation": "16 channels, MatMul", "smoothing": "none"}
        if last == "proj":
            del expected["rotation"]
            expected["smoothing"] = "folded into ln_post/LayerNormalization"
        elif last == "out_proj":
            expected["rotation"] = "16 channels, folded"
            expected["smoothing"] = f"folded into {layer}.self_attn.v_proj/MatMul"
        elif last != "fc2":
            expected["smoothing"] = f"folded into {layer}.{norms[last]}/LayerNormalization"
        assert done[name] == {"scheme": "int8-token", "operator": "MatMulIntegerToFloat", **expected}, name


def test_the_graph_that_runs_has_no_float_matrix_left_but_attention_and_rotations() -> None:
    operators = [node.op_type for node in ir.load(INT8).graph]

    assert operators.count("MatMulIntegerToFloat") == 9
    assert operators.count("MatMul") == 4 + 4 + 5  # scores and mixing, the first attention, norms and GELU rotated
    assert operators.count("QuantizeLinear") == 7  # one for q, k and v together


def test_the_quantized_graph_keeps_the_signal() -> None:
    fed = _batch([5 * BLOCK + 3, BLOCK])

    assert _decibels(*(run(_open(graph), fed)["audio_features"] for graph in (FLOAT, INT8))) > 20


def _calibration() -> dict[str, Calibration]:
    return read_calibration(Path("models/calibration/encoder"), FLOAT.parent, "audio_encoder")


@pytest.mark.parametrize(
    "nodes",
    [
        {"layers.0.self_attn.q_proj/MatMul": "float32", "layers.1.self_attn.v_proj/MatMul": "float32"},
        {"layers.0.self_attn.out_proj/MatMul": "float32", "layers.1.fc1/MatMul": "float32", "proj/MatMul": "float32"},
        {"layers.0.fc2/MatMul": "int8-static", "layers.0.self_attn.k_proj/MatMul": "int8-block"},
    ],
    ids=["float32 beside int8", "float32 alone", "other schemes"],
)
def test_schemes_may_differ_within_a_group(nodes: dict[str, Scheme], tmp_path: Path) -> None:
    """The float32 ones read what smoothing divided, and their matrices make up for it."""
    model, done = quantize(FLOAT, QuantizeParams(scheme="int8-token", block=32, nodes=nodes), _calibration())
    save_graph(model, tmp_path, "mixed")
    fed = _batch([5 * BLOCK + 3])

    assert {name: done[name]["scheme"] for name in nodes} == nodes
    assert _decibels(*(run(_open(g), fed)["audio_features"] for g in (FLOAT, tmp_path / "mixed.onnx"))) > 20


def test_static_ranges_reach_the_two_convolutions_too(chain_once: Path, tmp_path: Path) -> None:
    params = QuantizeParams(scheme="int8-static", block=32, nodes={"*/MatMul": "float32"})
    (clip, *_) = read("encoder", HELD_OUT).values()
    fed = {"input_features": clip[None], "feature_lens": np.array([clip.shape[1]])}

    model, done = quantize(FLOAT, params, _calibration())
    save_graph(model, tmp_path, "static")

    assert {name for name, entry in done.items() if entry["operator"] == "QLinearConv"} == {"conv1/Conv", "conv2/Conv"}
    assert _decibels(*(run(_open(g), fed)["audio_features"] for g in (FLOAT, tmp_path / "static.onnx"))) > 30


def _foldable() -> Folding:
    model = ir.load(FLOAT)
    groups = matmuls(model.graph)
    return model, groups, {node: Weight(node.inputs[1].const_value) for nodes in groups.values() for node in nodes}


def test_smoothing_alone_changes_nothing(tmp_path: Path) -> None:
    """Normalizations, values of attention and a Mul take the factors; every matrix is float32."""
    model, groups, weights = _foldable()
    rewriter = Rewriter(GraphBuilder(model.graph), 32)
    random = np.random.default_rng(0)
    how: dict[str, Any] = {}
    for activation, nodes in groups.items():
        factors = np.exp(random.uniform(-3, 3, weights[nodes[0]].shape[0])).astype(np.float32)
        smoothed = Smoother(rewriter, weights).apply(activation, nodes, nodes, Change(factors))
        how[str(nodes[0].name)] = smoothed.record["smoothing"]
    for node, weight in weights.items():
        rewriter.rewrite(node, "float32", weight)
    save_graph(model, tmp_path, "smoothed")
    fed = _batch([5 * BLOCK + 3, BLOCK])

    before, after = (run(_open(g), fed)["audio_features"] for g in (FLOAT, tmp_path / "smoothed.onnx"))

    assert sum(said.startswith("folded into") for said in how.values()) == 7
    assert list(how.values()).count("Mul") == 2
    assert np.abs(after - before).max() < 1e-4 * np.abs(before).max()
    changed = ir.load(tmp_path / "smoothed.onnx").graph
    assert "layers.0.self_attn_layer_norm.weight_smoothed" in changed.initializers
    assert "layers.0.self_attn.v_proj.bias_smoothed" in changed.initializers


def _group(groups: Mapping[ir.Value, list[ir.Node]], name: str) -> tuple[ir.Value, list[ir.Node]]:
    return next((v, nodes) for v, nodes in groups.items() if any(n.name == f"{name}/MatMul" for n in nodes))


def _fold(folding: Folding, name: str) -> str | None:
    _, groups, weights = folding
    activation, nodes = _group(groups, name)
    return fold(activation, nodes, Change(np.full(weights[nodes[0]].shape[0], 2, np.float32)), weights)


@pytest.mark.parametrize("name", ["layers.0.fc1", "layers.0.self_attn.q_proj", "layers.0.self_attn.out_proj"])
def test_factors_do_not_fold_where_another_node_reads_the_activation(name: str) -> None:
    assert _fold(_foldable(), name) is not None

    folding = _foldable()
    activation, _ = _group(folding[1], name)
    folding[0].graph.append(ir.node("Relu", [activation]))
    assert _fold(folding, name) is None

    folding = _foldable()
    folding[0].graph.outputs.append(_group(folding[1], name)[0])
    assert _fold(folding, name) is None


def _upstream(value: ir.Value, *op_types: str) -> list[ir.Node]:
    """The nodes that make a value, from the last one up, along the first input (attention: the second)."""
    found = []
    for op_type in op_types:
        node = value.producer()
        assert node is not None
        assert node.op_type == op_type
        found.append(node)
        value = node.inputs[1 if op_type == "MatMul" else 0]
    return found


@pytest.mark.parametrize(
    "change",
    [
        lambda nodes, graph: nodes[1].attributes.add(ir.AttrInt64s("perm", [0, 2, 3, 1])),
        lambda nodes, graph: nodes[3].attributes.add(ir.AttrInt64s("perm", [1, 0, 2, 3])),
        lambda nodes, graph: graph.append(ir.node("Relu", [nodes[2].outputs[0]])),
        lambda nodes, graph: graph.append(ir.node("Relu", [nodes[3].outputs[0]])),
        lambda nodes, graph: graph.append(ir.node("Relu", [nodes[4].outputs[0]])),
        lambda nodes, graph: graph.append(ir.node("Relu", [nodes[4].inputs[0]])),
        lambda nodes, graph: setattr(nodes[2], "op_type", "Mul"),
        lambda nodes, graph: setattr(nodes[2], "domain", "com.microsoft"),
        lambda nodes, graph: graph.outputs.append(nodes[4].inputs[0]),
    ],
    ids=["other order of axes", "other order of heads", "mixed read elsewhere", "heads read elsewhere",
         "reshaped read elsewhere", "values read elsewhere", "no mixing", "another domain", "values are an output"],
)  # fmt: skip
def test_factors_do_not_fold_through_what_is_no_attention(change: Callable[..., object]) -> None:
    folding = _foldable()
    activation, _ = _group(folding[1], "layers.0.self_attn.out_proj")
    change(_upstream(activation, "Reshape", "Transpose", "MatMul", "Transpose", "Reshape"), folding[0].graph)

    assert _fold(folding, "layers.0.self_attn.out_proj") is None


def test_factors_do_not_fold_into_a_normalization_of_another_shape() -> None:
    folding = _foldable()
    activation, _ = _group(folding[1], "layers.0.fc1")
    norm = activation.producer()
    odd = ir.Value(name="odd", const_value=ir.tensor(np.ones((1, WIDTH), np.float32)))
    norm.replace_input_with(1, odd)

    assert _fold(folding, "layers.0.fc1") is None


def test_calibration_reports_every_activation_and_the_clips_that_widened_it() -> None:
    report = json.loads(Path("models/calibration/encoder/audio_encoder/report.json").read_text())

    graph = ir.load(FLOAT).graph
    multiplied = {str(value.name) for value in matmuls(graph)}
    convolved = {str(value.name) for node in convolutions(graph) for value in (node.inputs[0], node.outputs[0])}
    assert len(convolved) == 4
    assert set(report) == multiplied | convolved
    assert all(report[name]["absmax"] > 0 and report[name]["static_range"] > 0 for name in multiplied)
    assert all(report[name]["span"][0] <= 0 < report[name]["span"][1] for name in convolved)
    widened = {clip["clip"] for entry in report.values() for clip in entry["widened_by"]}
    assert widened <= {"low", "high", "noise"}


# The real width


@pytest.fixture(scope="module")
def full_width(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The 7B's widths with two layers: source, float32 and quantized graph, with factors that were made up."""
    folder = tmp_path_factory.mktemp("full")
    synthetic.write(PART, 0, 2, folder / "source")
    export("encoder", source=folder / "source", out=folder / "onnx")
    graph = folder / "onnx/audio_encoder.onnx"
    seen = {
        str(value.name): Calibration(np.ones(nodes[0].inputs[1].shape[0], np.float32), 1.0)
        for value, nodes in matmuls(ir.load(graph).graph).items()
    }
    params = load(ROOT / "params.yaml").component("encoder").graph("audio_encoder").quantize
    assert params is not None
    model, _ = quantize(graph, params, seen)
    (folder / "int8").mkdir()
    save_graph(model, folder / "int8", "audio_encoder_int8")
    yield folder
    shutil.rmtree(folder)


@pytest.mark.slow
@pytest.mark.parametrize("frames", [3000, 30_000])
def test_the_real_width_agrees_with_transformers(full_width: Path, frames: int) -> None:
    fed = _batch([frames], mels=128)

    features = run(open_session(full_width / "onnx/audio_encoder.onnx"), fed)["audio_features"]
    expected, _ = run_original(_transformers(full_width / "source"), fed)

    assert features.shape == (1, _tokens(frames), 3584)
    assert _decibels(expected, features) >= 100


@pytest.mark.slow
@pytest.mark.parametrize("graph", ["onnx/audio_encoder.onnx", "int8/audio_encoder_int8.onnx"])
def test_five_minutes_of_sound_fit_into_the_memory_that_is_promised(
    full_width: Path, graph: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)

    _, contract = PART.graph(Checkpoint(full_width / "source").config)
    peak = measure_module("validate.loaded", str(full_width / graph), "0", describe_inputs(contract, 30_000))

    assert peak <= data_file(full_width / graph).stat().st_size + 1500 * 2**20
