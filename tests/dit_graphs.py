"""A tiny diffusion transformer of token2wav, its two graphs, and transformers' own: for the tests of all three."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from conftest import _once, tiny_config, write_configs

from components import component
from components.token2wav import CONDITION, DIT, STEP, dit_config
from omni.checkpoint import Checkpoint
from omni.params import SampledParams
from omni.streamed import save_graph
from pull import synthetic
from qwen_omni_onnx.common.contract import GraphContract
from qwen_omni_onnx.common.session import open_session, run
from qwen_omni_onnx.token2wav.velocity import without_past

PART = component("token2wav")
TINY = dit_config(tiny_config())
SETTINGS = SampledParams.model_validate(
    {
        "store": "float32",
        "guidance_scale": 0.5,
        "variants": {
            "reference": {"solver": "rk4", "intervals": 3},
            "rk4-2": {"solver": "rk4", "intervals": 2},
            "abm2-5": {"solver": "abm2", "intervals": 5},
            "abm2-1": {"solver": "abm2", "intervals": 1},
        },
    }
)
LOOK_BACK = len(TINY["look_backward_layers"])
TIMES = 19  # rows of the tables: of 3 intervals, 4 ends and 6 points between; of 2, 5 new ones; and 4 of abm2's
Fed = dict[str, np.ndarray]


def tiny_dit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with ``source``, the tiny checkpoint, and ``onnx``, both graphs. Not to be changed."""

    def make(folder: Path) -> None:
        synthetic.write(PART, 0, "full", folder / "source", write_configs(folder / "configs"))
        for stem in (CONDITION, STEP):
            export_graph(folder / "source", folder / "onnx", stem)

    return _once(tmp_path_factory, "dit", make)


def graphs_in(folder: Path) -> dict[str, Path]:
    return {stem: folder / "onnx" / f"{stem}.onnx" for stem in (CONDITION, STEP)}


def contract_of(stem: str) -> GraphContract:
    return PART.contracts(tiny_config())[stem]


def export_graph(source: Path, folder: Path, stem: str) -> Path:
    """Write one of the two graphs of the DiT from pulled tensors."""
    from export.dit import TRACED
    from export.trace import trace
    from export.weights import bind

    checkpoint = Checkpoint(source)
    traced = TRACED[stem]
    model = trace(lambda: traced.build(checkpoint.config, SETTINGS), PART.contracts(checkpoint.config)[stem])
    bind(model, checkpoint, traced, SETTINGS)
    folder.mkdir(exist_ok=True)
    save_graph(model, folder, stem)
    return folder / f"{stem}.onnx"


def transformers_dit(source: Path) -> Any:
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


@functools.cache
def session_of(graph: Path) -> ort.InferenceSession:
    return open_session(graph, threads=1)


def utterance(lengths: list[int], dit: dict[str, Any] = TINY) -> tuple[Fed, np.ndarray]:
    """Inputs of the condition graph, and mel frames [batch, frames, mels] of a state of the ODE."""
    random, batch, longest = np.random.default_rng(sum(lengths)), len(lengths), max(lengths)
    fed = {
        "codes": random.integers(0, dit["num_embeds"], (batch, longest)),
        "code_lens": np.array(lengths),
        "cond": random.standard_normal((batch, dit["enc_emb_dim"]), np.float32),
        "ref_mel": random.standard_normal((batch, 29, dit["mel_dim"]), np.float32) - 3,
    }
    return fed, random.standard_normal((batch, dit["repeats"] * longest, dit["mel_dim"]), np.float32)


def blocked(mel: np.ndarray, block: int = TINY["block_size"]) -> np.ndarray:
    filled = np.pad(mel, ((0, 0), (0, -mel.shape[1] % block), (0, 0)))
    return filled.reshape(len(mel), -1, block, mel.shape[2])


def evaluate(graphs: dict[str, Path], fed: Fed, mel: np.ndarray, evaluation: int, branches: int = 2) -> Fed:
    """Velocity [batch, frames, mels] by the two graphs."""
    told = run(session_of(graphs[CONDITION]), fed)
    told["condition"] = told["condition"][:branches]
    block = told["key_bias"].shape[2]
    fed = {"mel": blocked(mel, block), "evaluation": np.array(evaluation), **told, **without_past(told, LOOK_BACK)}
    velocity = run(session_of(graphs[STEP]), fed)["velocity"]
    return {"velocity": velocity.reshape(len(mel), -1, mel.shape[2])[:, : mel.shape[1]]}


def expected_by(original: Any, fed: Fed, mel: np.ndarray, time: float, guided: bool = True) -> Fed:
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
    return {"velocity": conditioned + guidance}


def times() -> np.ndarray:
    from export.dit_weights import table_times

    return table_times(SETTINGS)
