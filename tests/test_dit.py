"""token2wav's diffusion transformer: transformers' own, as a graph for the condition and one for each evaluation."""

from __future__ import annotations

import functools
import itertools
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from conftest import tiny_config, write_configs

from components.token2wav import CONDITION, DIT, STEP, dit_config
from omni.checkpoint import Checkpoint
from omni.component import component
from omni.metrics import sqnr_db
from omni.params import ExportParams
from omni.session import open_session, run
from omni.streamed import save_graph
from pull import synthetic

PART = component("token2wav")
TINY = dit_config(tiny_config())
SETTINGS = ExportParams.model_validate(
    {
        "guidance_scale": 0.5,
        "variants": {
            "reference": {"solver": "rk4", "intervals": 3, "guidance": "evaluation"},
            "midpoint": {"solver": "midpoint", "intervals": 2, "guidance": "interval"},
        },
    }
)
TIMES = 13  # rows of the tables: 4 ends and 6 points between for the first, 3 more for the second
Fed = dict[str, np.ndarray]


def export_graph(source: Path, folder: Path, stem: str) -> Path:
    """Write one of the two graphs of the DiT from pulled tensors."""
    from export.token2wav import condition, step
    from export.trace import trace
    from export.weights import bind

    checkpoint = Checkpoint(source)
    traced = {CONDITION: condition.TRACED, STEP: step.TRACED}[stem]
    model = trace(lambda: traced.build(checkpoint.config, SETTINGS), PART.contracts(checkpoint.config)[stem])
    bind(model, checkpoint, traced, SETTINGS)
    folder.mkdir(exist_ok=True)
    save_graph(model, folder, stem)
    return folder / f"{stem}.onnx"


def _transformers(source: Path) -> Any:
    """Transformers' own DiT with the checkpoint's weights."""
    import torch
    from transformers.models.qwen2_5_omni.configuration_qwen2_5_omni import Qwen2_5OmniDiTConfig
    from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import Qwen2_5OmniToken2WavDiTModel

    checkpoint = Checkpoint(source)
    config = Qwen2_5OmniDiTConfig(**dit_config(checkpoint.config))
    config._attn_implementation = "sdpa"
    model = Qwen2_5OmniToken2WavDiTModel(config)
    model.load_state_dict(
        {name: torch.from_numpy(checkpoint.read(f"{DIT}.{name}")) for name, _ in model.named_parameters()}, assign=True
    )
    return model.eval()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dit")
    synthetic.write(PART, 0, "full", folder / "source", write_configs(folder / "configs"))
    return folder / "source"


@pytest.fixture(scope="module")
def graphs(source: Path) -> dict[str, Path]:
    return {stem: export_graph(source, source.parent / "onnx", stem) for stem in (CONDITION, STEP)}


@pytest.fixture(scope="module")
def original(source: Path) -> Any:
    return _transformers(source)


@functools.cache
def _session(graph: Path) -> ort.InferenceSession:
    return open_session(graph, threads=1)


def _utterance(lengths: list[int], dit: dict[str, Any] = TINY) -> tuple[Fed, np.ndarray]:
    """Inputs of the condition graph, and mel frames [batch, frames, mels] of a state of the ODE."""
    random, batch, longest = np.random.default_rng(sum(lengths)), len(lengths), max(lengths)
    fed = {
        "codes": random.integers(0, dit["num_embeds"], (batch, longest)),
        "code_lens": np.array(lengths),
        "cond": random.standard_normal((batch, dit["enc_emb_dim"]), np.float32),
        "ref_mel": random.standard_normal((batch, 29, dit["mel_dim"]), np.float32) - 3,
    }
    return fed, random.standard_normal((batch, dit["repeats"] * longest, dit["mel_dim"]), np.float32)


def _blocks(mel: np.ndarray, block: int = TINY["block_size"]) -> np.ndarray:
    filled = np.pad(mel, ((0, 0), (0, -mel.shape[1] % block), (0, 0)))
    return filled.reshape(len(mel), -1, block, mel.shape[2])


def _evaluate(graphs: dict[str, Path], fed: Fed, mel: np.ndarray, evaluation: int, branches: int = 2) -> Fed:
    """Velocity and guidance [batch, frames, mels] by the two graphs."""
    told = run(_session(graphs[CONDITION]), fed)
    told["condition"] = told["condition"][:branches]
    block = told["key_bias"].shape[2]
    found = run(_session(graphs[STEP]), {"mel": _blocks(mel, block), "evaluation": np.array(evaluation), **told})
    return {name: value.reshape(len(mel), -1, mel.shape[2])[:, : mel.shape[1]] for name, value in found.items()}


def _expected(original: Any, fed: Fed, mel: np.ndarray, time: float, guided: bool = True) -> Fed:
    """The same by transformers, combined as its ``sample`` does; all rows have the same length."""
    import torch

    cond = torch.from_numpy(fed["cond"]).unsqueeze(1).repeat(1, mel.shape[1], 1)
    with torch.inference_mode():
        both = original(
            hidden_states=torch.from_numpy(mel),
            condition_vector=torch.from_numpy(fed["ref_mel"]),
            speaker_embedding=cond,
            quantized_code=torch.from_numpy(fed["codes"]),
            time_step=torch.tensor(time),
            apply_cfg=guided,
        ).numpy()
    conditioned, null = np.split(both, 2) if guided else (both, both)
    guidance = (conditioned - null) * SETTINGS.guidance_scale
    return {"velocity": conditioned + guidance, "guidance": guidance}


def _times() -> np.ndarray:
    from export.token2wav.modulation import table_times

    return table_times(SETTINGS)


@pytest.mark.parametrize("evaluation", [0, 4, TIMES - 1])
@pytest.mark.parametrize("codes", [1, 2, 11, 12, 13, 25, 113])
def test_an_evaluation_agrees_with_transformers(
    codes: int, evaluation: int, graphs: dict[str, Path], original: Any
) -> None:
    fed, mel = _utterance([codes])

    found = _evaluate(graphs, fed, mel, evaluation)

    expected = _expected(original, fed, mel, float(_times()[evaluation]))
    assert len(_times()) == TIMES
    for name in ("velocity", "guidance"):
        assert np.isfinite(found[name]).all()
        assert sqnr_db(expected[name], found[name]) >= 100


def test_every_row_of_the_tables_is_another_time(graphs: dict[str, Path]) -> None:
    fed, mel = _utterance([7])

    velocities = [_evaluate(graphs, fed, mel, evaluation)["velocity"] for evaluation in range(TIMES)]

    assert min(sqnr_db(velocities[0], velocity) for velocity in velocities[1:]) < 60
    assert all(not np.array_equal(a, b) for a, b in itertools.pairwise(velocities))


def test_without_the_second_branch_there_is_no_guidance(graphs: dict[str, Path], original: Any) -> None:
    fed, mel = _utterance([13])

    found = _evaluate(graphs, fed, mel, 4, branches=1)

    assert not found["guidance"].any()
    assert (
        sqnr_db(_expected(original, fed, mel, float(_times()[4]), guided=False)["velocity"], found["velocity"]) >= 100
    )


def test_guidance_of_one_evaluation_completes_another_ones_single_branch(graphs: dict[str, Path]) -> None:
    fed, mel = _utterance([13])

    both, single = (_evaluate(graphs, fed, mel, 4, branches=branches) for branches in (2, 1))

    assert sqnr_db(both["velocity"], single["velocity"] + both["guidance"]) >= 100


@pytest.mark.parametrize("lengths", [[1, 25], [12, 13, 2], [9, 9], [40, 3, 39]], ids=str)
def test_rows_of_a_ragged_batch_agree_with_transformers_on_each_alone(
    lengths: list[int], graphs: dict[str, Path], original: Any
) -> None:
    fed, mel = _utterance(lengths)

    found = _evaluate(graphs, fed, mel, 4)

    for row, length in enumerate(lengths):
        alone = {name: value[row : row + 1] for name, value in fed.items()} | {
            "codes": fed["codes"][row, None, :length]
        }
        frames = TINY["repeats"] * length
        expected = _expected(original, alone, mel[row : row + 1, :frames], float(_times()[4]))
        assert sqnr_db(expected["velocity"][0], found["velocity"][row, :frames]) >= 100
    assert np.isfinite(found["velocity"]).all()


@pytest.mark.parametrize("frames", [5, 6, 300])
def test_a_reference_of_any_length_is_heard_as_by_transformers(
    frames: int, graphs: dict[str, Path], original: Any
) -> None:
    fed, mel = _utterance([4])
    fed["ref_mel"] = np.random.default_rng(frames).standard_normal((1, frames, TINY["mel_dim"]), np.float32)

    found = _evaluate(graphs, fed, mel, 0)

    assert sqnr_db(_expected(original, fed, mel, 0.0)["velocity"], found["velocity"]) >= 100


def test_transformers_own_rotary_positions_are_relative(original: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Versions 5.0 to 5.14 laid them out wrongly: a graph that agrees with those speaks worse, and no test fails."""
    import torch
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    seen: list[torch.Tensor] = []

    def look(_: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **__: Any) -> tuple[Any, None]:
        seen.append(query @ key.transpose(2, 3))
        return value.transpose(1, 2), None

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "look", look)
    attention = original.transformer_blocks[0].attn
    monkeypatch.setattr(attention.config, "_attn_implementation", "look")
    same = torch.randn(1, 1, TINY["hidden_size"], generator=torch.Generator().manual_seed(0)).expand(1, 50, -1)

    with torch.inference_mode():
        attention(same, original.rotary_embed(same, torch.arange(50)[None]))

    first = seen[0][0, 0].numpy()
    assert np.ptp(first) > 0.1 * np.abs(first).max()
    assert sqnr_db(first[:-1, :-1], first[1:, 1:]) > 100


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
        fed, mel = _utterance([codes])
        told = run(_session(graphs[CONDITION]), fed)
        found = run(session, {"mel": _blocks(mel), "evaluation": np.array(0), **told})
        return {name: value.size for name, value in found.items()}

    short, long = sizes(30), sizes(60)

    assert len(short) > 100
    assert all(long[name] <= 2 * size for name, size in short.items())


@pytest.fixture
def full_depth(tmp_path: Path) -> Iterator[Path]:
    """The whole of token2wav's weights; gone afterwards: pytest would keep gigabytes of the last three runs."""
    synthetic.write(PART, 0, "full", tmp_path / "source")
    yield tmp_path / "source"
    shutil.rmtree(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("codes", [[12], [100]])
def test_at_full_width_and_depth_an_evaluation_agrees_with_transformers(full_depth: Path, codes: list[int]) -> None:
    graphs = {stem: export_graph(full_depth, full_depth.parent / "onnx", stem) for stem in (CONDITION, STEP)}
    fed, mel = _utterance(codes, dit_config(Checkpoint(full_depth).config))

    found = _evaluate(graphs, fed, mel, 4)

    expected = _expected(_transformers(full_depth), fed, mel, float(_times()[4]))
    for name in ("velocity", "guidance"):
        assert sqnr_db(expected[name], found[name]) >= 100
