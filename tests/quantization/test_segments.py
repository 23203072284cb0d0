"""Calibration in segments: the same values as of the whole graph, one piece of it in memory at a time."""

from __future__ import annotations

import contextlib
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import tiny_decoder as tiny
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file

from calibrate import activations as observing
from calibrate.activations import Observation, observe
from calibrate.convolutions import Convolved, observe_convolutions
from components import component
from omni import segments
from omni.inputs import CALIBRATION, FOLDER, Feeds, feeds_file, read
from omni.params import CalibrateParams
from omni.pieces import clips
from omni.streamed import save_graph
from qwen_omni_onnx.common.configuration import read_config
from qwen_omni_onnx.common.contract import GraphContract, Port
from qwen_omni_onnx.common.session import open_session

PARAMS = CalibrateParams(smoothing=0.5, headroom=1.0, nodes={})
LAYERS = 3


@dataclass
class Subject:
    """A graph and what calibrates it."""

    graph: Path
    contract: GraphContract
    recordings: Mapping[str, Any]

    def observe(self) -> dict[str, Observation]:
        return observe(self.graph, self.contract, PARAMS, self.recordings)

    def observe_convolutions(self) -> dict[str, Convolved]:
        return observe_convolutions(self.graph, self.contract, self.recordings)

    @property
    def largest(self) -> int:
        """Bytes of the weights of the node that has most: the least budget that can be kept."""
        graph = ir.load(self.graph).graph
        return max(_bytes({value for value in node.inputs if value is not None}) for node in graph)


def _bytes(values: set[ir.Value]) -> int:
    return sum(value.const_value.nbytes for value in values if value.const_value is not None)


@dataclass
class Opened:
    """A session as it was opened."""

    weights: int
    initializers: set[str]
    inputs: list[str]
    outputs: list[str]


@dataclass
class Witness:
    """Looks at each session that is opened, and what is on disk then."""

    opened: list[Opened] = field(default_factory=list)
    alive: weakref.WeakSet = field(default_factory=weakref.WeakSet)
    on_disk: list[set[str]] = field(default_factory=list)
    folder: Path = field(default_factory=Path)

    def open(self, graph: bytes, **options: Any) -> Any:
        assert not self.alive, "two sessions at a time"
        model = onnx.load_from_string(graph)
        lengths = [
            int(next((e.value for e in tensor.external_data if e.key == "length"), len(tensor.raw_data)))
            for tensor in model.graph.initializer
        ]
        self.opened.append(
            Opened(
                sum(lengths),
                {tensor.name for tensor in model.graph.initializer},
                [value.name for value in model.graph.input],
                [value.name for value in model.graph.output],
            )
        )
        self.on_disk.append({path.parent.name for path in self.folder.glob("*/*/*.safetensors")})
        session = open_session(graph, **options)
        self.alive.add(session)
        return session


@pytest.fixture
def witness(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Witness:
    found = Witness(folder=tmp_path / "temporary")
    found.folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(found.folder))
    monkeypatch.setattr(segments, "open_session", found.open)
    return found


@pytest.fixture(scope="module", params=tiny.PARTS)
def decoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    folder = tmp_path_factory.mktemp(request.param)
    checkpoint = tiny.write_source(request.param, tiny.config(), folder)
    graph = tiny.write_graph(request.param, checkpoint, folder / "onnx")
    contract = tiny.PARTS[request.param].COMPONENT.contracts(checkpoint.config)[request.param]
    opened, random = tiny.open_decoder(graph), np.random.default_rng(0)
    past = dict.fromkeys(opened.caches, np.zeros((1, opened.kv_heads, 0, opened.head_dim), np.float32))
    recordings = {
        f"clip-{tokens}": {
            "inputs_embeds": random.standard_normal((1, tokens, opened.width), np.float32),
            "attention_mask": np.ones((1, tokens), np.int64),
            "logits_to_keep": np.arange(tokens)[None],
            **past,
        }
        for tokens in (17, 3, 29)
    }
    return Subject(graph, contract, recordings)


@pytest.fixture
def encoder(chain_once: Path, monkeypatch: pytest.MonkeyPatch) -> Subject:
    monkeypatch.chdir(chain_once)
    folder = chain_once / "models/onnx/encoder"
    stem, contract = component("encoder").graph(read_config(folder))
    return Subject(folder / f"{stem}.onnx", contract, read("encoder", CALIBRATION))


def _assert_same(one: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    """Two calibrations, but for the rounding of float32: what ONNX Runtime fuses ends where a segment does."""
    assert list(one) == list(other)
    for name, seen in one.items():
        np.testing.assert_allclose(other[name].absmax, seen.absmax, rtol=1e-4, atol=1e-6)
        ranges = (observation[name].histogram.best_range() for observation in (one, other))
        assert next(ranges) == pytest.approx(next(ranges), rel=0.02)  # hundredths of the largest value are tried
        assert [clip for clip, _ in other[name].widened] == [clip for clip, _ in seen.widened]
        if isinstance(seen, Observation):
            np.testing.assert_allclose(other[name].factors, seen.factors, rtol=1e-4)


# The same values


def test_a_decoder_in_segments_is_calibrated_as_a_whole(
    decoder: Subject, witness: Witness, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = decoder.observe()
    opened = len(witness.opened)
    monkeypatch.setattr(segments, "SEGMENT_BYTES", decoder.largest)

    cut = decoder.observe()

    assert opened == 2  # one for each pass
    assert len(witness.opened) - opened >= 2 * 2 * LAYERS
    _assert_same(whole, cut)


def test_an_encoder_in_segments_is_calibrated_as_a_whole(
    encoder: Subject, witness: Witness, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, convolved = encoder.observe(), encoder.observe_convolutions()
    monkeypatch.setattr(segments, "SEGMENT_BYTES", encoder.largest)

    cut, cut_convolved = encoder.observe(), encoder.observe_convolutions()

    assert len(witness.opened) - 3 >= 3 * 4
    _assert_same(whole, cut)
    _assert_same(convolved, cut_convolved)


@pytest.mark.parametrize("channels", [1, 100])
def test_groups_are_fetched_segment_by_segment(
    decoder: Subject, witness: Witness, monkeypatch: pytest.MonkeyPatch, channels: int
) -> None:
    """So that sessions are as many as segments and groups, and not as one times the other."""
    whole, opened = decoder.observe(), []
    monkeypatch.setattr(segments, "SEGMENT_BYTES", decoder.largest)
    for fetched in (observing._FETCHED_CHANNELS, channels):
        monkeypatch.setattr(observing, "_FETCHED_CHANNELS", fetched)
        witness.opened.clear()

        _assert_same(whole, decoder.observe())
        opened.append(len(witness.opened))

    together, apart = opened
    assert together < apart < together + 2 * len(whole)


def test_progress_counts_each_session_of_each_clip(
    decoder: Subject, witness: Witness, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[int] = []

    @contextlib.contextmanager
    def progress(title: str, total: int) -> Iterator[Callable[[int], None]]:
        counted.append(-total)
        yield counted.append

    monkeypatch.setattr(clips, "progress", progress)
    for budget in (segments.SEGMENT_BYTES, decoder.largest, 1):
        monkeypatch.setattr(segments, "SEGMENT_BYTES", budget)

        decoder.observe()

        assert sum(counted) == 0
        assert -sum(one for one in counted if one < 0) == len(witness.opened) * len(decoder.recordings)
        counted.clear()
        witness.opened.clear()


def test_a_graph_of_few_weights_is_opened_whole(decoder: Subject, witness: Witness) -> None:
    seen = decoder.observe()

    inputs = [value.name for value in ir.load(decoder.graph).graph.inputs]
    for opened in witness.opened:
        assert opened.inputs == inputs
        assert set(opened.outputs) == {*seen} - {*inputs}


def test_recordings_of_all_inputs_are_read_from_their_file_clip_by_clip(
    decoder: Subject, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The past that there is not yet, arrays of no token, among them."""
    monkeypatch.chdir(tmp_path)
    file = feeds_file(FOLDER / "decoder", "graph")
    file.parent.mkdir(parents=True)
    save_file({f"{clip}/{port}": a for clip, fed in decoder.recordings.items() for port, a in fed.items()}, file)
    monkeypatch.setattr(segments, "SEGMENT_BYTES", decoder.largest)

    seen = observe(decoder.graph, decoder.contract, PARAMS, Feeds("decoder", "graph"))

    for name, expected in decoder.observe().items():
        np.testing.assert_array_equal(seen[name].absmax, expected.absmax)


# Memory and disk


def test_no_session_holds_more_weights_than_the_budget_and_there_is_one_at_a_time(
    decoder: Subject, witness: Witness, monkeypatch: pytest.MonkeyPatch
) -> None:
    for budget in (decoder.largest, 2 * decoder.largest):
        witness.opened.clear()
        monkeypatch.setattr(segments, "SEGMENT_BYTES", budget)

        decoder.observe()

        assert len(witness.opened) > 2
        assert max(opened.weights for opened in witness.opened) <= budget


def test_a_node_of_more_weights_than_the_budget_is_a_segment_of_its_own(
    decoder: Subject, witness: Witness, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = decoder.observe()
    witness.opened.clear()
    monkeypatch.setattr(segments, "SEGMENT_BYTES", 1)

    cut = decoder.observe()

    _assert_same(whole, cut)
    assert max(opened.weights for opened in witness.opened) == decoder.largest


def test_what_follows_the_last_activation_is_not_run_and_caches_are_not_fetched(
    decoder: Subject, witness: Witness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments, "SEGMENT_BYTES", decoder.largest)

    decoder.observe()

    assert not any("_head" in name for opened in witness.opened for name in opened.initializers)
    fetched = {name for opened in witness.opened for name in opened.outputs}
    assert "logits_to_keep/GatherND" in fetched  # what the head reads
    assert not any(name.startswith("present.") or name == "logits" for name in fetched)


def test_what_is_kept_goes_once_it_is_read_and_the_folder_at_the_end(
    decoder: Subject, witness: Witness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments, "SEGMENT_BYTES", decoder.largest)

    decoder.observe()

    assert list(witness.folder.iterdir()) == []
    last = witness.on_disk[len(witness.on_disk) // 2 - 1]  # of the first pass
    assert 0 < len(last) <= 3
    assert "0" in witness.on_disk[1]  # what attention knows of the mask, or the residual stream
    assert max(len(there) for there in witness.on_disk) < len(witness.on_disk) // 2


def test_a_nan_in_a_late_segment_is_told_with_its_clip_and_leaves_nothing_behind(
    decoder: Subject, witness: Witness, monkeypatch: pytest.MonkeyPatch, message: Callable[..., str]
) -> None:
    """It comes out of the cache of the last layer, so that all segments before that one have kept something."""
    clip = dict(decoder.recordings["clip-3"])
    past = {
        name: np.zeros((*array.shape[:2], 1, array.shape[3]), np.float32)
        for name, array in clip.items()
        if array.ndim == 4
    }
    past[f"past_key_values.{LAYERS - 1}.value"][:] = np.nan
    clip |= {"attention_mask": np.ones((1, 4), np.int64), **past}
    broken = Subject(decoder.graph, decoder.contract, {**decoder.recordings, "clip-3": clip})
    expected = message(broken.observe)
    witness.alive.clear()  # the exception that was caught holds the session
    witness.opened.clear()
    monkeypatch.setattr(segments, "SEGMENT_BYTES", decoder.largest)

    said = message(broken.observe)

    attended = f"model.layers.{LAYERS - 1}.self_attn/GroupQueryAttention"
    assert said == f"calibration: clip clip-3 makes {attended} NaN or infinite; look at that clip"
    assert said == expected
    assert len(witness.opened) > 2 * (LAYERS - 1)
    assert list(witness.folder.iterdir()) == []


# Constants


def _constant_shapes(folder: Path) -> Subject:
    """x -> MatMul -> Reshape -> MatMul -> Reshape -> MatMul -> y, to one shape, which two constants make."""
    random, width = np.random.default_rng(0), 8
    constants = {name: random.standard_normal((width, width)).astype(np.float32) for name in "abc"}
    constants |= {"rows": np.array([-1], np.int64), "columns": np.array([width], np.int64)}
    nodes = [
        helper.make_node("Concat", ["rows", "columns"], ["shape"], "concat", axis=0),
        helper.make_node("MatMul", ["x", "a"], ["u"], "a"),
        helper.make_node("Reshape", ["u", "shape"], ["v"], "first"),
        helper.make_node("MatMul", ["v", "b"], ["w"], "b"),
        helper.make_node("Reshape", ["w", "shape"], ["h"], "second"),
        helper.make_node("MatMul", ["h", "c"], ["y"], "c"),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "seq", width])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["tokens", width])
    graph = helper.make_graph(nodes, "g", [x], [y], [numpy_helper.from_array(c, name) for name, c in constants.items()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    save_graph(ir.from_proto(model), folder, "constant")
    contract = GraphContract(
        inputs=(Port("x", "FLOAT", ("batch", "seq", width)),),
        outputs=(Port("y", "FLOAT", ("tokens", width)),),
        ir_version=10,
        length="seq",
    )
    recordings = {"clip": random.standard_normal((5, width)).astype(np.float32)}
    return Subject(folder / "constant.onnx", contract, recordings)


def test_what_no_input_can_alter_is_computed_anew_in_each_segment(
    tmp_path: Path, witness: Witness, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = _constant_shapes(tmp_path)
    whole = subject.observe()
    witness.opened.clear()
    monkeypatch.setattr(segments, "SEGMENT_BYTES", 8 * 8 * 4 + 2 * 8)  # a matrix and the shape

    cut = subject.observe()

    _assert_same(whole, cut)
    assert [opened.inputs for opened in witness.opened] == [["x"], ["v"]] * 2
    assert all({"rows", "columns"} <= opened.initializers for opened in witness.opened)
