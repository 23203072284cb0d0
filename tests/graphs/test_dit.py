"""token2wav's diffusion transformer: transformers' own, as a graph for the condition and one for each evaluation."""

from __future__ import annotations

import itertools
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from dit_graphs import (
    LOOK_BACK,
    PART,
    TIMES,
    TINY,
    Fed,
    blocked,
    evaluate,
    expected_by,
    export_graph,
    graphs_in,
    session_of,
    times,
    tiny_dit,
    transformers_dit,
    utterance,
)

from components.token2wav import CONDITION, STEP, dit_config
from omni.checkpoint import Checkpoint
from pull import synthetic
from qwen_omni_onnx.common.metrics import sqnr_db
from qwen_omni_onnx.common.session import open_session, run
from qwen_omni_onnx.token2wav.velocity import without_past


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_dit(tmp_path_factory)


@pytest.fixture(scope="module")
def graphs(built: Path) -> dict[str, Path]:
    return graphs_in(built)


@pytest.fixture(scope="module")
def original(built: Path) -> Any:
    return transformers_dit(built / "source")


@pytest.mark.parametrize("evaluation", [0, 4, TIMES - 1])
@pytest.mark.parametrize("codes", [1, 2, 11, 12, 13, 25, 113])
def test_an_evaluation_agrees_with_transformers(
    codes: int, evaluation: int, graphs: dict[str, Path], original: Any
) -> None:
    fed, mel = utterance([codes])

    found = evaluate(graphs, fed, mel, evaluation)

    expected = expected_by(original, fed, mel, float(times()[evaluation]))
    assert len(times()) == TIMES
    assert set(found) == {"velocity"}
    assert np.isfinite(found["velocity"]).all()
    assert sqnr_db(expected["velocity"], found["velocity"]) >= 100


def test_every_row_of_the_tables_is_another_time(graphs: dict[str, Path]) -> None:
    fed, mel = utterance([7])

    velocities = [evaluate(graphs, fed, mel, evaluation)["velocity"] for evaluation in range(TIMES)]

    assert min(sqnr_db(velocities[0], velocity) for velocity in velocities[1:]) < 60
    assert all(not np.array_equal(a, b) for a, b in itertools.pairwise(velocities))


def test_without_the_second_branch_there_is_no_guidance(graphs: dict[str, Path], original: Any) -> None:
    fed, mel = utterance([13])

    found = evaluate(graphs, fed, mel, 4, branches=1)

    assert (
        sqnr_db(expected_by(original, fed, mel, float(times()[4]), guided=False)["velocity"], found["velocity"]) >= 100
    )


@pytest.mark.parametrize("lengths", [[1, 25], [12, 13, 2], [9, 9], [40, 3, 39]], ids=str)
def test_rows_of_a_ragged_batch_agree_with_transformers_on_each_alone(
    lengths: list[int], graphs: dict[str, Path], original: Any
) -> None:
    fed, mel = utterance(lengths)

    found = evaluate(graphs, fed, mel, 4)

    for row, length in enumerate(lengths):
        alone = {name: value[row : row + 1] for name, value in fed.items()} | {
            "codes": fed["codes"][row, None, :length]
        }
        frames = TINY["repeats"] * length
        expected = expected_by(original, alone, mel[row : row + 1, :frames], float(times()[4]))
        assert sqnr_db(expected["velocity"][0], found["velocity"][row, :frames]) >= 100
    assert np.isfinite(found["velocity"]).all()


@pytest.mark.parametrize("first", [1, 2, 5])
@pytest.mark.parametrize("lengths", [[25], [26, 13]], ids=str)
def test_an_utterance_in_two_parts_is_what_it_is_at_once(
    lengths: list[int], first: int, graphs: dict[str, Path]
) -> None:
    """The first part sees one block more than its own, because a layer looks ahead; the second one only its past."""
    fed, mel = utterance(lengths)
    told, state = run(session_of(graphs[CONDITION]), fed), blocked(mel)
    step, none = session_of(graphs[STEP]), without_past(told, LOOK_BACK)

    def part(start: int, end: int, past: Fed) -> Fed:
        seen = {"condition": told["condition"][:, :, start:end], "key_bias": told["key_bias"][:, start:end]}
        return run(step, {"mel": state[:, start:end], "evaluation": np.array(4), **seen, **past})

    whole = part(0, state.shape[1], none)["velocity"]
    one = part(0, first + 1, none | {"present_block": np.array(first - 1)})
    past = {"past": one["present"], "past_bias": told["key_bias"][:, first - 1], "present_block": np.array(0)}
    other = part(first, state.shape[1], past)["velocity"]

    inside = np.arange(state.shape[1]) < -(-np.array(lengths)[:, None] * TINY["repeats"] // TINY["block_size"])
    together = np.concatenate([one["velocity"][:, :first], other], 1)
    assert sqnr_db(whole[inside], together[inside]) >= 100
    forgotten = part(first, state.shape[1], none)["velocity"]
    assert sqnr_db(whole[0, first], forgotten[0, 0]) < 60


@pytest.mark.parametrize("frames", [5, 6, 300])
def test_a_reference_of_any_length_is_heard_as_by_transformers(
    frames: int, graphs: dict[str, Path], original: Any
) -> None:
    fed, mel = utterance([4])
    fed["ref_mel"] = np.random.default_rng(frames).standard_normal((1, frames, TINY["mel_dim"]), np.float32)

    found = evaluate(graphs, fed, mel, 0)

    assert sqnr_db(expected_by(original, fed, mel, 0.0)["velocity"], found["velocity"]) >= 100


def test_transformers_own_rotary_positions_turn_neighbouring_channels_by_the_distance(
    original: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Versions 5.0 to 5.14 laid them out wrongly: a graph that agrees with those speaks worse, and no test fails."""
    import torch
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    scores: list[np.ndarray] = []

    def look(_: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **__: Any) -> tuple[Any, None]:
        scores.append((query @ key.transpose(2, 3))[0, 0].numpy())
        return value.transpose(1, 2), None

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "look", look)
    attention, head = original.transformer_blocks[0].attn, TINY["head_dim"]
    monkeypatch.setattr(attention.config, "_attn_implementation", "look")
    frame = torch.randn(TINY["hidden_size"], generator=torch.Generator().manual_seed(0))
    same = frame.expand(1, 50, -1)

    with torch.inference_mode():
        attention(same, original.rotary_embed(same, torch.arange(50)[None]))
        query, key = (project(frame)[:head].numpy() for project in (attention.to_q, attention.to_k))

    pairs = (query[::2] + 1j * query[1::2]) * np.conj(key[::2] + 1j * key[1::2])
    distance = np.arange(50)[:, None, None] - np.arange(50)[:, None]
    turn = np.exp(1j * distance * 10_000.0 ** -(np.arange(0, head, 2) / head))
    assert sqnr_db((pairs * turn).real.sum(2), scores[0]) > 100


def test_the_graph_keeps_what_onnx_runtime_has_kernels_for(graphs: dict[str, Path]) -> None:
    nodes = list(ir.load(graphs[STEP]).graph)

    operators, layers = Counter(node.op_type for node in nodes), TINY["num_hidden_layers"]
    assert operators["LayerNormalization"] == 2 * layers + 1
    assert operators["Gelu"] == operators["Softmax"] == layers
    assert not {"ReduceMean", "Tanh", "Pow", "SplitToSequence"} & set(operators)
    named = {node.name for node in nodes if node.op_type == "MatMul"}
    for layer in range(layers):
        inside = ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "ff.ff.0", "ff.ff.3")
        assert {f"transformer_blocks.{layer}.{name}/MatMul" for name in inside} <= named
    assert {"input_embed.proj/MatMul", "proj_out/MatMul"} <= named


def test_every_tensor_of_an_evaluation_grows_at_most_linearly_with_the_length(graphs: dict[str, Path]) -> None:
    model = ir.load(graphs[STEP])
    inner = [value for node in model.graph for value in node.outputs if not value.is_graph_output()]
    model.graph.outputs.extend(inner)
    session = open_session(ir.to_proto(model).SerializeToString(), data_folder=graphs[STEP].parent, threads=1)

    def sizes(codes: int) -> dict[str, int]:
        fed, mel = utterance([codes])
        told = run(session_of(graphs[CONDITION]), fed)
        past = without_past(told, LOOK_BACK)
        found = run(session, {"mel": blocked(mel), "evaluation": np.array(0), **told, **past})
        return {name: value.size for name, value in found.items()}

    short, middle, long = sizes(30), sizes(60), sizes(90)

    assert len(short) > 100
    assert all(long[name] - middle[name] <= middle[name] - size for name, size in short.items())


@pytest.fixture
def full_depth(tmp_path: Path) -> Iterator[Path]:
    """The whole of token2wav's weights; gone afterwards: pytest would keep gigabytes of the last three runs."""
    synthetic.write(PART, 0, "full", tmp_path / "source")
    yield tmp_path / "source"
    shutil.rmtree(tmp_path)


@pytest.mark.slow
def test_at_full_width_and_depth_an_evaluation_agrees_with_transformers(full_depth: Path) -> None:
    graphs = {stem: export_graph(full_depth, full_depth.parent / "onnx", stem) for stem in (CONDITION, STEP)}
    original, dit = transformers_dit(full_depth), dit_config(Checkpoint(full_depth).config)

    for codes in (12, 100):
        fed, mel = utterance([codes], dit)
        found, expected = evaluate(graphs, fed, mel, 4), expected_by(original, fed, mel, float(times()[4]))
        assert sqnr_db(expected["velocity"], found["velocity"]) >= 100
