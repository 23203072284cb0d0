"""Constructed decoders beside transformers' own, and the run-time that holds their cache."""

from __future__ import annotations

import resource
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import tiny_decoder as tiny
from limited import in_a_process
from transformers import DynamicCache

from components import talker
from export.decoder import Schemes, write
from export.decoder.weights import Matrix, block_quantized
from omni import streamed
from omni.checkpoint import Checkpoint, TensorSpec, encode_header
from omni.decoder import past_names, present_names
from omni.inputs import feed_whole
from omni.params import QuantizeParams, Scheme
from omni.streamed import data_file
from omni.weight import matmuls
from quantize.apply import Calibration, quantize
from qwen_omni_onnx.common.artifact import write_json
from qwen_omni_onnx.common.contract import Port, differences
from qwen_omni_onnx.common.metrics import sqnr_db
from qwen_omni_onnx.common.session import run
from qwen_omni_onnx.decoder import CHUNK_SIZE, Decoder, DecodingSession
from qwen_omni_onnx.embedding import EmbeddingTable

FLOAT_DB = 100
AWQ: dict[str, Any] = {"quant_method": "awq", "bits": 4, "group_size": 128}
INT4 = Schemes("int4-block", 32, {"*_head*": "int8-block", "thinker_to_talker_proj/*": "int8-block"})
BLOCK_SCHEMES = {"int8-block": (Schemes("int8-block"), 30), "int4-block": (INT4, 10)}


@dataclass
class Pair:
    """A tiny decoder's graph, its checkpoint, and transformers' own."""

    name: str
    checkpoint: Checkpoint
    graph: Path
    original: Callable[..., tuple[np.ndarray, np.ndarray]]

    @property
    def decoder(self) -> Decoder:
        return tiny.open_decoder(self.graph)

    @property
    def table(self) -> EmbeddingTable:
        return EmbeddingTable(self.graph.parent / tiny.PARTS[self.name].DECODER.embedding)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """PyTorch's threads and ONNX Runtime's would wait for each other."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=tiny.PARTS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp(request.param)
    checkpoint = tiny.write_source(request.param, tiny.config(), folder)
    graph = tiny.write_graph(request.param, checkpoint, folder / "onnx")
    return Pair(request.param, checkpoint, graph, tiny.original(request.param, checkpoint))


def _embeds(decoder: Decoder, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((*shape, decoder.width), np.float32)


def _decibels_of_steps(conversation: DecodingSession, pair: Pair, said: np.ndarray, steps: int) -> list[float]:
    """Step with random embeddings; return the worst SQNR of each step's logits and hidden states."""
    found = []
    for step in range(steps):
        new = _embeds(pair.decoder, 1, 1, seed=step + 100)
        said = np.concatenate([said, new], 1)
        answer = conversation.step(new)
        logits, hidden = pair.original(said)
        found.append(min(sqnr_db(logits[:, -1], answer.logits), sqnr_db(hidden[:, -1:], answer.hidden)))
    return found


# The graph


def test_the_graph_is_valid_and_has_the_interface_that_is_promised(pair: Pair) -> None:
    onnx.checker.check_model(str(pair.graph))
    graph = ir.load(pair.graph).graph
    contract = tiny.PARTS[pair.name].COMPONENT.contracts(pair.checkpoint.config)[pair.name]

    for ports, values in ((contract.inputs, graph.inputs), (contract.outputs, graph.outputs)):
        assert (
            differences(ports, tuple(Port(v.name, v.dtype.name, tuple(_axis(a) for a in v.shape)) for v in values))
            == []
        )
    assert {node.domain for node in graph} == {"", "com.microsoft"}
    assert ir.load(pair.graph).ir_version == contract.ir_version


def _axis(axis: Any) -> int | str:
    return axis if isinstance(axis, int) else str(axis.value)


def test_examples_ask_for_the_last_tokens_logits_and_recordings_for_all(pair: Pair) -> None:
    contract = tiny.PARTS[pair.name].COMPONENT.contracts(pair.checkpoint.config)[pair.name]
    fed = contract.example(2, 7)
    recorded = feed_whole(contract, _embeds(pair.decoder, 5))

    np.testing.assert_array_equal(fed["logits_to_keep"], [[-1], [-1]])
    np.testing.assert_array_equal(recorded["logits_to_keep"], [np.arange(5)])
    said = [run(pair.decoder.session, given)["logits"].shape for given in (fed, recorded)]
    assert said == [(2, 1, pair.decoder.vocabulary), (1, 5, pair.decoder.vocabulary)]


def test_past_and_present_have_optimums_names() -> None:
    assert past_names(3) == ("past_key_values.3.key", "past_key_values.3.value")
    assert present_names(3) == ("present.3.key", "present.3.value")


def test_nodes_have_the_names_of_the_checkpoints_modules(pair: Pair) -> None:
    nodes = [node.name for node in ir.load(pair.graph).graph]

    assert len(set(nodes)) == len(nodes)
    wanted = {"model.layers.2.mlp.down_proj/MatMul", "model.layers.0.self_attn.qkv_proj/MatMul"}
    assert wanted <= set(nodes)
    assert ("thinker_to_talker_proj/MatMul" in nodes) == (pair.name == "talker")


def test_a_large_head_is_cut_into_slices_no_larger_than_a_layers_matrix(pair: Pair) -> None:
    graph = ir.load(pair.graph).graph
    matrices = {node.name: node.inputs[1].shape.numpy() for node in graph if node.op_type == "MatMul"}

    head = [shape for name, shape in matrices.items() if "_head" in name]
    assert head == ([(64, 100)] * 3 if pair.name == "thinker" else [(64, 100)] * 2)
    assert sum(node.op_type == "Concat" for node in graph) == 1
    assert matrices["model.layers.0.mlp.up_proj/MatMul"] == (64, 112)


def test_two_builds_give_the_same_bytes_whatever_the_size_of_a_block(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = tiny.write_graph(pair.name, pair.checkpoint, tmp_path / "one", INT4 if pair.name == "talker" else Schemes())
    monkeypatch.setattr(streamed, "BLOCK_BYTES", 1000)
    other = tiny.write_graph(
        pair.name, pair.checkpoint, tmp_path / "other", INT4 if pair.name == "talker" else Schemes()
    )

    for file in one.parent.iterdir():
        assert file.read_bytes() == (other.parent / file.name).read_bytes(), file.name


# Against transformers


@pytest.mark.parametrize("tokens", [1, 2, 67])
def test_a_prompt_agrees_with_transformers(pair: Pair, tokens: int) -> None:
    decoder = pair.decoder
    embeds = _embeds(decoder, 1, tokens)

    answer = decoder.begin().prefill(embeds)
    logits, hidden = pair.original(embeds)

    assert sqnr_db(logits[:, -1], answer.logits) >= FLOAT_DB
    assert sqnr_db(hidden, answer.hidden) >= FLOAT_DB


def test_the_logits_of_every_token_agree_with_transformers(pair: Pair) -> None:
    decoder = pair.decoder
    embeds = _embeds(decoder, 2, 11)
    empty = np.zeros((2, decoder.kv_heads, 0, decoder.head_dim), np.float32)
    every = np.tile(np.arange(11), (2, 1))
    fed = {"inputs_embeds": embeds, "attention_mask": np.ones((2, 11), np.int64), "logits_to_keep": every}

    logits, present = decoder.session.run(["logits", "present.0.key"], {**fed, **dict.fromkeys(decoder.caches, empty)})

    assert sqnr_db(pair.original(embeds)[0], logits) >= FLOAT_DB
    assert present.shape == (2, decoder.kv_heads, 11, decoder.head_dim)


@pytest.mark.parametrize("scheme", ["float32", *BLOCK_SCHEMES])
def test_wanted_logits_are_those_rows_of_all_logits(pair: Pair, scheme: str, tmp_path: Path) -> None:
    graph = tiny.write_graph(pair.name, pair.checkpoint, tmp_path / "onnx", Schemes(scheme))
    decoder = tiny.open_decoder(graph)
    embeds, mask = _embeds(decoder, 2, 11), np.arange(11) < np.array([[11], [7]])
    fed = decoder.feeds(embeds, mask)
    everything, hidden = decoder.session.run(["logits", "hidden_states"], fed)

    for places in ([[10], [6]], [[-1], [-5]], [[0, 10, 3], [6, 2, 2]]):
        wanted = np.array(places)
        logits, states = decoder.session.run(["logits", "hidden_states"], {**fed, "logits_to_keep": wanted})
        assert logits.shape == (2, wanted.shape[1], decoder.vocabulary)
        assert sqnr_db(np.take_along_axis(everything, wanted[..., None] % 11, 1), logits) >= FLOAT_DB
        np.testing.assert_array_equal(states, hidden)  # of every token, whatever logits are wanted


def test_64_greedy_steps_give_the_same_tokens(pair: Pair) -> None:
    decoder, table = pair.decoder, pair.table
    said = _embeds(decoder, 1, 9)
    conversation = decoder.begin()
    ours, theirs = [], []

    logits = conversation.prefill(said).logits
    for _ in range(64):
        ours.append(int(logits.argmax()))
        theirs.append(int(pair.original(said)[0][0, -1].argmax()))
        new = table(theirs[-1])[None, None]
        said = np.concatenate([said, new], 1)
        logits = conversation.step(new).logits

    assert ours == theirs
    assert len(set(ours)) > 8


def test_a_batch_padded_on_the_right_agrees_row_by_row(pair: Pair) -> None:
    decoder, lengths = pair.decoder, [40, 13, 27]
    embeds = _embeds(decoder, 3, 40)
    mask = np.arange(40) < np.array(lengths)[:, None]
    conversation = decoder.begin(3)
    said = [embeds[row : row + 1, :length] for row, length in enumerate(lengths)]

    answers = [conversation.prefill(embeds, mask)]
    for step in range(5):
        new = _embeds(decoder, 3, 1, seed=step + 1)
        answers.append(conversation.step(new))
        said = [np.concatenate([row, new[number : number + 1]], 1) for number, row in enumerate(said)]

    assert list(conversation.lengths) == [45, 18, 32]
    for row, length in enumerate(lengths):
        logits, hidden = pair.original(said[row])
        assert sqnr_db(hidden[0, :length], answers[0].hidden[row, :length]) >= FLOAT_DB
        for step, answer in enumerate(answers):
            assert sqnr_db(logits[0, length - 1 + step], answer.logits[row]) >= FLOAT_DB


@pytest.mark.parametrize("piece", [1, 7, 39, 40, 100])
def test_a_prompt_in_pieces_is_the_whole_prompt(pair: Pair, piece: int) -> None:
    decoder = pair.decoder
    embeds = _embeds(decoder, 1, 43)
    mask = np.arange(43)[None] < 40  # padding of a single row is left out

    whole, pieces = decoder.begin(), decoder.begin()
    expected, answer = whole.prefill(embeds[:, :40], chunk_size=40), pieces.prefill(embeds, mask, piece)

    assert sqnr_db(expected.logits, answer.logits) >= FLOAT_DB
    assert sqnr_db(expected.hidden, answer.hidden[:, :40]) >= FLOAT_DB
    assert not answer.hidden[:, 40:].any()
    assert list(pieces.lengths) == [40]


@pytest.mark.parametrize("tokens", [CHUNK_SIZE - 1, CHUNK_SIZE, CHUNK_SIZE + 1, 2 * CHUNK_SIZE + 9])
def test_a_long_prompt_is_taken_in_in_pieces_and_only_its_last_logits_are_made(
    pair: Pair, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = pair.decoder
    embeds = _embeds(decoder, 1, tokens)
    logits, hidden = decoder.forward(embeds, np.array([tokens]))
    conversation, shapes = decoder.begin(), list[tuple[str, tuple[int, ...]]]()
    bind = conversation._bind_output

    def noted(name: str, array: np.ndarray) -> None:
        shapes.append((name, array.shape))
        bind(name, array)

    monkeypatch.setattr(conversation, "_bind_output", noted)
    answer = conversation.prefill(embeds)

    assert sqnr_db(logits[:, -1], answer.logits) >= FLOAT_DB
    assert sqnr_db(hidden, answer.hidden) >= FLOAT_DB
    runs = -(-tokens // CHUNK_SIZE)
    made = {name: [shape for found, shape in shapes if found == name] for name in ("logits", "hidden_states")}
    assert made["logits"] == [(1, 1, decoder.vocabulary)] * runs
    assert max(shape[1] for shape in made["hidden_states"]) == min(tokens, CHUNK_SIZE)
    assert len(shapes) == 2 * runs + len(decoder.caches) * (tokens > CHUNK_SIZE)  # reserved once, for the whole prompt


def test_room_for_a_known_prompt_is_made_once_and_no_larger(pair: Pair) -> None:
    conversation = pair.decoder.begin(reserve=2000 + 10)

    conversation.prefill(_embeds(pair.decoder, 1, 2000))

    assert conversation.capacity == 2048


def test_a_prompt_goes_on_after_steps(pair: Pair) -> None:
    decoder = pair.decoder
    said = _embeds(decoder, 1, 30)
    conversation = decoder.begin()

    conversation.prefill(said[:, :12])
    conversation.step(said[:, 12])
    answer = conversation.prefill(said[:, 13:])

    assert sqnr_db(pair.original(said)[0][:, -1], answer.logits) >= FLOAT_DB


def test_a_past_of_2000_tokens_agrees(pair: Pair) -> None:
    decoder = pair.decoder
    said = _embeds(decoder, 1, 2000)
    conversation = decoder.begin()

    conversation.prefill(said, chunk_size=512)

    assert min(_decibels_of_steps(conversation, pair, said, 3)) >= FLOAT_DB


# The cache


def test_shared_buffers_give_the_same_bits_as_copies(pair: Pair) -> None:
    """The copies are the present that the graph gave, fed as the past of the next step."""
    decoder = pair.decoder
    embeds = _embeds(decoder, 1, 20)
    conversation = decoder.begin()
    past = dict.fromkeys(decoder.caches, np.zeros((1, decoder.kv_heads, 0, decoder.head_dim), np.float32))
    outputs = [port.name for port in decoder.session.get_outputs()]

    for start, stop in ((0, 12), (12, 13), (13, 14), (14, 20)):
        new, mask = embeds[:, start:stop], np.ones((1, stop), np.int64)
        answer = conversation.prefill(new)
        fed = {"inputs_embeds": new, "attention_mask": mask, "logits_to_keep": np.array([[-1]]), **past}
        got = decoder.session.run(outputs, fed)
        results = dict(zip(outputs, got, strict=True))
        past = {name: results[name.replace("past_key_values", "present")] for name in decoder.caches}
        np.testing.assert_array_equal(answer.logits, results["logits"][:, -1])
        np.testing.assert_array_equal(answer.hidden, results["hidden_states"])


def test_the_buffers_grow_and_nothing_is_lost(pair: Pair) -> None:
    decoder = pair.decoder
    said = _embeds(decoder, 1, 600)
    grown, roomy = decoder.begin(), decoder.begin(reserve=600)
    capacities = []

    for start, stop in ((0, 250), (250, 255), (255, 256), (256, 257), (257, 600)):
        one, other = grown.prefill(said[:, start:stop]), roomy.prefill(said[:, start:stop])
        capacities.append(grown.capacity)
        np.testing.assert_array_equal(one.logits, other.logits)

    assert capacities == [256, 256, 256, 512, 1024]
    assert roomy.capacity == 768


def test_conversations_do_not_disturb_each_other(pair: Pair) -> None:
    decoder = pair.decoder
    one, other = _embeds(decoder, 1, 6, seed=1), _embeds(decoder, 1, 9, seed=2)
    first, second = decoder.begin(), decoder.begin()

    first.prefill(one[:, :5])
    second.prefill(other[:, :8])
    answers = [first.step(one[:, 5]), second.step(other[:, 8])]

    for said, answer in zip((one, other), answers, strict=True):
        assert sqnr_db(pair.original(said)[0][:, -1], answer.logits) >= FLOAT_DB


def test_a_conversation_cut_back_goes_on_as_if_nothing_had_followed(pair: Pair) -> None:
    decoder = pair.decoder
    said = _embeds(decoder, 1, 300)
    conversation, fresh = decoder.begin(reserve=300), decoder.begin()
    for one in (conversation, fresh):
        one.prefill(said[:, :12])
    conversation.prefill(said[:, 12:])

    conversation.rewind(12)
    np.testing.assert_array_equal(conversation.step(said[:, 100]).logits, fresh.step(said[:, 100]).logits)
    assert list(conversation.lengths) == [13]

    conversation.rewind(0)
    again, anew = (one.prefill(said[:, 50:90]) for one in (conversation, decoder.begin(reserve=300)))
    np.testing.assert_array_equal(again.logits, anew.logits)
    np.testing.assert_array_equal(again.hidden, anew.hidden)


def test_rows_are_cut_back_each_to_its_own_length(pair: Pair) -> None:
    decoder, kept = pair.decoder, [9, 4]
    embeds, new = _embeds(decoder, 2, 11), _embeds(decoder, 2, 1, seed=1)
    conversation = decoder.begin(2)
    conversation.prefill(embeds)
    conversation.step(embeds[:, 0])

    conversation.rewind(np.array(kept))
    answer = conversation.step(new)

    assert list(conversation.lengths) == [10, 5]
    for row, length in enumerate(kept):
        logits, _ = pair.original(np.concatenate([embeds[row : row + 1, :length], new[row : row + 1]], 1))
        assert sqnr_db(logits[0, -1], answer.logits[row]) >= FLOAT_DB


# Mistakes


def test_padding_that_is_not_on_the_right_is_refused(pair: Pair, message: Callable[..., str]) -> None:
    decoder = pair.decoder
    embeds = _embeds(decoder, 2, 4)

    for mask in ([[1, 1, 1, 1], [0, 1, 1, 1]], [[1, 1, 1, 1], [1, 0, 1, 1]]):
        said = message(decoder.begin(2).prefill, embeds, np.array(mask))
        assert said == "attention_mask: row 1 is padded before its last token; put all padding on the right"
    assert "row 0 has no token" in message(decoder.begin(2).prefill, embeds, np.array([[0] * 4, [1] * 4]))
    assert "attention_mask is [2, 3], not [2, 4]" in message(decoder.begin(2).prefill, embeds, np.ones((2, 3)))


def test_several_tokens_for_several_rows_with_a_past_are_refused(pair: Pair, message: Callable[..., str]) -> None:
    decoder = pair.decoder
    conversation = decoder.begin(2)
    conversation.prefill(_embeds(decoder, 2, 4))

    assert "run one row at a time" in message(conversation.prefill, _embeds(decoder, 2, 3))
    assert list(conversation.lengths) == [4, 4]


def test_more_tokens_than_positions_are_refused(pair: Pair, message: Callable[..., str]) -> None:
    conversation = Decoder(pair.graph, 300, threads=1).begin(reserve=5000)
    conversation.prefill(_embeds(pair.decoder, 1, 299))
    conversation.step(_embeds(pair.decoder, 1))

    said = message(conversation.step, _embeds(pair.decoder, 1))

    assert said == "301 tokens are more than the 300 positions that the decoder has"
    assert conversation.capacity == 300


def test_a_conversation_is_not_cut_back_to_what_was_never_said(pair: Pair, message: Callable[..., str]) -> None:
    decoder = pair.decoder
    conversation = decoder.begin(2)
    conversation.prefill(_embeds(decoder, 2, 4), np.arange(4) < [[4], [3]])

    assert message(conversation.rewind, 4) == "row 1 has 3 tokens: it cannot be cut back to 4"
    assert "row 0 has 4 tokens: it cannot be cut back to -1" in message(conversation.rewind, np.array([-1, 0]))
    assert "lengths are [3], not one number, or [2]" in message(conversation.rewind, np.array([1, 1, 1]))
    assert list(conversation.lengths) == [4, 3]


def test_other_shapes_are_refused(pair: Pair, message: Callable[..., str]) -> None:
    decoder = pair.decoder
    conversation, width = decoder.begin(), decoder.width

    for shape in ((1, 0, width), (2, 3, width), (1, 3, width + 1), (3, width)):
        assert f"not [1, seq, {width}]" in message(conversation.prefill, np.zeros(shape, np.float32))
    assert "one token a row" in message(conversation.step, np.zeros((1, 2, width), np.float32))
    assert "chunk_size must be" in message(conversation.prefill, _embeds(decoder, 1, 3), None, 0)


def test_another_graph_is_refused(tmp_path: Path, message: Callable[..., str]) -> None:
    ports = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy"]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "other", ports[:1], ports[1:])
    opset = onnx.helper.make_opsetid("", 21)
    onnx.save(onnx.helper.make_model(graph, ir_version=10, opset_imports=[opset]), tmp_path / "other.onnx")

    said = message(Decoder, tmp_path / "other.onnx", 10)

    assert "other.onnx: not a decoder with a cache and inputs_embeds, attention_mask, logits_to_keep" in said


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"use_sliding_window": True}, "use_sliding_window is True"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "rotary embedding of type 'yarn'"),
        ({"num_key_value_heads": 3}, "4 heads cannot share 3"),
        ({"head_dim": 24}, "head_dim must be a multiple of 16, not 24"),
        ({"vocab_size": None}, "widths must be positive integers"),
    ],
)
def test_a_configuration_that_the_graph_cannot_follow_is_refused(
    pair: Pair, message: Callable[..., str], changes: dict, said: str
) -> None:
    assert said in message(tiny.PARTS[pair.name].COMPONENT.tensors, tiny.config(**changes))


def test_a_checkpoint_without_the_decoder_is_refused(message: Callable[..., str]) -> None:
    assert "the checkpoint has no Talker" in message(talker.COMPONENT.tensors, {})


# Embedding tables


@pytest.mark.parametrize("stored", ["bfloat16", "float16", "float32"])
def test_an_embedding_table_is_the_checkpoints(stored: str, tmp_path: Path, message: Callable[..., str]) -> None:
    checkpoint = tiny.write_source("talker", {**tiny.config(), "torch_dtype": stored}, tmp_path)
    expected = checkpoint.read("talker.model.embed_tokens.weight").astype(np.float32)
    graph = tiny.write_graph("talker", checkpoint, tmp_path / "onnx")

    file = graph.with_name("codec_embedding.npy")
    table = EmbeddingTable(file)

    assert (table.vocabulary, table.width) == expected.shape
    np.testing.assert_array_equal(table(np.array([[3, 199], [0, 3]])), expected[[[3, 199], [0, 3]]])
    np.testing.assert_array_equal(table(7), expected[7])
    assert file.stat().st_size == expected.size * (4 if stored == "float32" else 2) + 128
    assert "no row 200; it has 200" in message(table, np.array([1, 200]))
    assert "no row -1" in message(table, -1)


def test_what_is_no_embedding_table_is_refused(tmp_path: Path, message: Callable[..., str]) -> None:
    (tmp_path / "text.npy").write_text("no array")
    np.save(tmp_path / "ids.npy", np.arange(3))

    for name in ("nowhere.npy", "text.npy"):
        assert f"{name}: cannot be read" in message(EmbeddingTable, tmp_path / name)
    assert "int64 [3] is no embedding table" in message(EmbeddingTable, tmp_path / "ids.npy")


# Quantized


@pytest.mark.parametrize("scheme", BLOCK_SCHEMES)
def test_a_quantized_graph_is_near_the_float_one(pair: Pair, scheme: str, tmp_path: Path) -> None:
    schemes, decibels = BLOCK_SCHEMES[scheme]
    if pair.name == "thinker":
        schemes = Schemes(schemes.default, schemes.block, {"lm_head*": "int8-block"})
    graph = tiny.write_graph(pair.name, pair.checkpoint, tmp_path / "onnx", schemes)
    embeds = _embeds(pair.decoder, 1, 32)

    answer = tiny.open_decoder(graph).begin().prefill(embeds)
    _, hidden = pair.original(embeds)

    onnx.checker.check_model(str(graph))
    assert sqnr_db(hidden, answer.hidden) > decibels
    found = {
        node.name: node.attributes["bits"].as_int() for node in ir.load(graph).graph if node.op_type == "MatMulNBits"
    }
    assert not any(node.op_type == "MatMul" for node in ir.load(graph).graph)
    for name, bits in found.items():
        assert bits == (8 if scheme == "int8-block" or "head" in name or "thinker_to_talker" in name else 4), name


def test_scales_are_the_same_whether_values_were_written_before_or_not(pair: Pair) -> None:
    matrix = Matrix(pair.checkpoint, (f"{pair.name}.model.layers.0.mlp.down_proj.weight",))
    values, scales, zero_points = block_quantized(matrix, 32, 4).tensors("down_proj")
    _, fresh, fresh_zero_points = block_quantized(matrix, 32, 4).tensors("down_proj")

    written = values.tobytes()

    assert len(written) == values.nbytes == 64 * 4 * 16  # 112 inputs make 4 blocks of 32
    assert scales.tobytes() == fresh.tobytes()
    assert zero_points.tobytes() == fresh_zero_points.tobytes()


@pytest.mark.parametrize("scheme", BLOCK_SCHEMES)
def test_built_quantized_is_what_quantize_makes_of_the_float_graph(pair: Pair, scheme: Scheme, tmp_path: Path) -> None:
    """``python -m quantize`` serves as well; building at once spares the disk a float32 graph of 28 GB."""
    built = ir.load(tiny.write_graph(pair.name, pair.checkpoint, tmp_path / "onnx", Schemes(scheme))).graph
    activations = matmuls(ir.load(pair.graph).graph)
    unscaled = {
        str(value.name): Calibration(np.ones(nodes[0].inputs[1].shape[0], np.float32), 1.0)
        for value, nodes in activations.items()
    }

    model, _ = quantize(pair.graph, QuantizeParams(scheme=scheme, block=32, nodes={}), unscaled)

    theirs = {node.name: node for node in model.graph if node.op_type == "MatMulNBits"}
    ours = {node.name: node for node in built if node.op_type == "MatMulNBits"}
    assert ours.keys() == theirs.keys() == {node.name for nodes in activations.values() for node in nodes}
    for name, node in ours.items():
        assert node.attributes == theirs[name].attributes
        for one, other in zip(node.inputs[1:], theirs[name].inputs[1:], strict=True):
            assert one.const_value.tobytes() == other.const_value.tobytes()


def test_schemes_that_do_not_fit_are_refused(pair: Pair, tmp_path: Path, message: Callable[..., str]) -> None:
    wrong = Schemes(nodes={"*.donw_proj/*": "int8-block"})

    said = message(tiny.write_graph, pair.name, pair.checkpoint, tmp_path / "onnx", wrong)

    assert "no node of the graph fits '*.donw_proj/*'" in said
    assert "scheme 'int8-token'" in message(Schemes, "int8-token")


# Memory


@dataclass(frozen=True)
class Wide:
    """A decoder whose vocabulary is far larger than its layers, and the memory that it may take to build."""

    hidden: int = 1024
    inner: int = 4096
    vocabulary: int = 140_000
    headroom: int = 96 * 2**20

    @property
    def largest(self) -> int:
        return 4 * self.hidden * self.inner

    @property
    def head(self) -> int:
        return 4 * self.hidden * self.vocabulary

    def config(self) -> dict:
        widths = {"hidden_size": self.hidden, "intermediate_size": self.inner, "vocab_size": self.vocabulary}
        axes = {"mrope_section": [8, 12, 12], "rope_type": "default"}
        return tiny.config(**widths, num_attention_heads=16, head_dim=64, num_hidden_layers=2, rope_scaling=axes)


@pytest.mark.parametrize(
    ("scheme", "packed"),
    [
        pytest.param("int4-block", False, marks=pytest.mark.slow),
        ("int4-import", True),
        pytest.param("int8-block", False, marks=pytest.mark.slow),
        pytest.param("float32", False, marks=pytest.mark.slow),
        pytest.param("float32", True, marks=pytest.mark.slow),
    ],
)
def test_building_takes_two_matrices_of_a_layer_and_never_a_vocabularys(
    scheme: str, packed: bool, tmp_path: Path
) -> None:
    wide = Wide()
    config = {**wide.config(), "torch_dtype": "bfloat16"}
    specs = tiny.PARTS["thinker"].COMPONENT.tensors(config)
    parameters = sum(np.prod(spec.shape) for spec in specs.values()) - wide.head // 4  # the embedding's file is its own
    if packed:
        config["quantization_config"] = AWQ
        specs = _packed(specs)
    source = tmp_path / "source"
    source.mkdir()
    write_json(source / "config.json", config)
    with (source / "model.safetensors").open("wb") as file:  # zeros that take no disk
        header = encode_header(specs)
        file.write(header)
        file.truncate(len(header) + sum(spec.nbytes for spec in specs.values()))

    limit, failure = _under_limit(wide, source, tmp_path, scheme)

    assert failure == ""
    assert limit < wide.head / 4
    graph = tmp_path / "onnx/thinker.onnx"
    shares = {"float32": 1, "int8-block": 1 / 4 + 1 / 32, "int4-block": 1 / 8 + 1 / 32}
    shares["int4-import"] = shares["int8-block"]  # of which most is the head
    assert data_file(graph).stat().st_size < 4 * parameters * shares[scheme] * 1.02 + 2**21
    (tmp_path / "onnx/thinker.onnx.data").unlink()


def _packed(specs: dict[str, TensorSpec]) -> dict[str, TensorSpec]:
    """The same tensors with every layer's matrix as AutoAWQ packs it."""
    found = {}
    for name, spec in specs.items():
        if ".layers." not in name or len(spec.shape) != 2:
            found[name] = spec
            continue
        (out, into), module, groups = spec.shape, name.removesuffix(".weight"), spec.shape[1] // AWQ["group_size"]
        found[f"{module}.qweight"] = TensorSpec("I32", (into, out // 8))
        found[f"{module}.qzeros"] = TensorSpec("I32", (groups, out // 8))
        found[f"{module}.scales"] = TensorSpec("F16", (groups, out))
    return found


def _under_limit(wide: Wide, source: Path, folder: Path, scheme: str) -> tuple[int, str]:
    """Build in a process of its own; return what it may take beside its libraries, and why it failed."""
    return in_a_process(_build_limited, wide, source, folder, scheme)


def _build_limited(result: Connection, wide: Wide, source: Path, folder: Path, scheme: str) -> None:
    import rich.progress  # noqa: F401
    import torch

    torch.arange(8.0).cos()  # starts its threads
    status = Path("/proc/self/status").read_text().splitlines()
    base = int(next(line for line in status if line.startswith("VmData")).split()[1]) * 1024
    allowed = 2 * wide.largest + wide.headroom
    resource.setrlimit(resource.RLIMIT_DATA, (base + allowed, resource.RLIM_INFINITY))
    failure = ""
    try:
        (folder / "onnx").mkdir()
        spared = {"lm_head*": "int8-block"} if scheme == "int4-import" else {}
        schemes = Schemes(scheme, nodes=spared)
        write(tiny.PARTS["thinker"].DECODER, Checkpoint(source), folder / "onnx", schemes)
    except Exception:
        failure = traceback.format_exc()
    resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    result.send((allowed, failure))


# The real width


@pytest.fixture(scope="module", params=tiny.PARTS)
def real(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Two layers of the 7B's width, with a small vocabulary."""
    import shutil

    folder = tmp_path_factory.mktemp("real")
    table = tiny.config()
    published = tiny.published(request.param)
    tiny.section(table, request.param).update({**published, "num_hidden_layers": 2, "vocab_size": 2048})
    if request.param == "thinker":
        tiny.section(table, request.param).pop("head_dim", None)
    checkpoint = tiny.write_source(request.param, table, folder, tiny.PARTS[request.param].COMPONENT.outliers)
    graph = tiny.write_graph(request.param, checkpoint, folder / "onnx")
    yield Pair(request.param, checkpoint, graph, tiny.original(request.param, checkpoint))
    shutil.rmtree(folder)


@pytest.mark.slow
def test_64_greedy_steps_at_the_real_width_agree_with_transformers(real: Pair) -> None:
    decoder, table = real.decoder, real.table
    said = _embeds(decoder, 1, 60)
    conversation, cache = decoder.begin(), DynamicCache()

    answer = conversation.prefill(said, chunk_size=32)
    logits, hidden = real.original(said, cache)
    assert sqnr_db(hidden, answer.hidden) >= FLOAT_DB
    for _ in range(64):
        assert sqnr_db(logits[:, -1], answer.logits) >= FLOAT_DB
        assert answer.logits.argmax() == logits[0, -1].argmax()
        new = table(int(answer.logits.argmax()))[None, None]
        answer = conversation.step(new)
        logits, _ = real.original(new, cache)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", BLOCK_SCHEMES)
def test_the_real_width_quantized_is_near_the_float_one(real: Pair, scheme: str, tmp_path: Path) -> None:
    _, decibels = BLOCK_SCHEMES[scheme]
    graph = tiny.write_graph(
        real.name, real.checkpoint, tmp_path / "onnx", Schemes(scheme, 32, {"*_head*": "int8-block"})
    )
    embeds = _embeds(real.decoder, 1, 60)

    answer = tiny.open_decoder(graph).begin().prefill(embeds)

    assert sqnr_db(real.original(embeds)[1], answer.hidden) > decibels
    data_file(graph).unlink()
