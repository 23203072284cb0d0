"""Stage 2: the graph that is promised, the same bytes always."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from conftest import EMBEDDING, HIDDEN, NAME, ROOT, VOCABULARY, build

from export.__main__ import export
from omni.checkpoint import Checkpoint
from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.common.session import open_session, run
from reference.__main__ import require_sound_transformers

GRAPH = Path("models/onnx") / NAME / "qwen25_7b_audio.onnx"


def test_the_graph_is_the_three_nodes_of_the_note(workplace: Path) -> None:
    model = ir.load(GRAPH)

    assert [node.op_type for node in model.graph] == ["MatMul", "Add", "MatMul"]
    assert list(model.graph.initializers) == ["thinker_to_talker_proj.bias", "val_0", "val_2"]
    assert model.ir_version == 10
    assert GRAPH.with_suffix(".onnx.data").stat().st_size == 4 * (EMBEDDING * HIDDEN + HIDDEN + HIDDEN * VOCABULARY)


def test_the_graph_computes_the_two_linear_layers(workplace: Path) -> None:
    checkpoint = Checkpoint(Path("models/source") / NAME)
    weight, bias, head = (
        checkpoint.read(f"talker.{name}").astype(np.float64)
        for name in ("thinker_to_talker_proj.weight", "thinker_to_talker_proj.bias", "codec_head.weight")
    )
    hidden_states = np.random.default_rng(0).standard_normal((2, 5, EMBEDDING)).astype(np.float32)

    logits = run(open_session(GRAPH), {"hidden_states": hidden_states})["audio_logits"]

    np.testing.assert_allclose(logits, (hidden_states @ weight.T + bias) @ head.T, atol=1e-5)


def test_two_builds_at_different_places_give_the_same_bytes(built_once: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "another" / "checkout"
    elsewhere.mkdir(parents=True)

    build(elsewhere)

    for kind in ("source", "onnx", "inputs", "calibration", "quantized"):  # PyTorch's sums depend on where memory lies
        one, other = (folder / "models" / kind / NAME for folder in (built_once, elsewhere))
        assert artifact.check(one) == artifact.check(other)


def test_exporting_over_an_existing_artifact_leaves_the_same_bytes(workplace: Path) -> None:
    before = artifact.fingerprint(GRAPH.parent)

    export(NAME)

    artifact.check(GRAPH.parent)
    assert artifact.fingerprint(GRAPH.parent) == before


def test_files_are_readable_by_all_whatever_the_umask(workplace: Path) -> None:
    before = os.umask(0o077)
    try:
        export(NAME)
    finally:
        os.umask(before)

    assert {path.stat().st_mode & 0o777 for path in GRAPH.parent.iterdir()} == {0o644}
    assert GRAPH.parent.stat().st_mode & 0o777 == 0o755


def test_nothing_of_the_machine_is_inside(workplace: Path) -> None:
    content = GRAPH.read_bytes()

    for trace in (str(workplace), str(Path.home()), "site-packages", "torch/nn", "stack_trace"):
        assert trace.encode() not in content


def test_small_tensors_are_written_to_their_end_or_not_at_all(tmp_path: Path) -> None:
    """NumPy's own way to a file, which onnx_ir takes for them, loses up to a block at the end of a full disk unseen."""
    script = (
        "import resource, sys; import numpy as np; import onnx_ir as ir; from pathlib import Path\n"
        "from omni.streamed import save_graph\n"
        "values = [ir.Value(name=n, const_value=ir.tensor(a, name=n)) for n, a in (\n"
        "    ('a', np.array(True)), ('b', np.zeros(0, np.int64)), ('c', np.full((2, 50), 3, np.float32)))]\n"
        "graph = ir.Graph([], [], nodes=[], initializers=values, opset_imports={'': 20}, name='g')\n"
        "limit = int(sys.argv[1]); resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))\n"
        "save_graph(ir.Model(graph, ir_version=10), Path(sys.argv[2]), 'g')\n"
    )

    def save(limit: int) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", script, str(limit), str(tmp_path)],
            env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
        )  # fmt: skip

    assert save(10_000).returncode == 0
    data = (tmp_path / "g.onnx.data").read_bytes()
    assert data == np.full(100, 3, np.float32).tobytes()
    assert "File too large" in save(len(data) - 1).stderr


def test_a_source_that_was_altered_is_refused(workplace: Path, message: Callable[..., str]) -> None:
    weights = Path("models/source") / NAME / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)

    assert "SHA-256" in message(export, NAME)


def test_a_component_that_was_not_pulled_is_named(workplace: Path, message: Callable[..., str]) -> None:
    shutil.rmtree(Path("models/source") / NAME)

    assert f"models/source/{NAME}: no artifact here" in message(export, NAME)


def test_an_unknown_component_is_named_with_those_there_are(message: Callable[..., str]) -> None:
    said = message(export, "visual")

    assert "'visual'" in said
    assert NAME in said


@pytest.mark.parametrize("version", ["5.0.0", "5.3.1", "5.14.1"])
def test_a_transformers_with_the_broken_rotary_embedding_is_refused(version: str, message: Callable[..., str]) -> None:
    said = message(require_sound_transformers, version)

    assert version in said
    assert "5.15" in said


@pytest.mark.parametrize("version", ["4.57.1", "5.15.0", "5.23.0", "6.0.0"])
def test_a_sound_transformers_is_accepted(version: str) -> None:
    require_sound_transformers(version)


def _attention() -> tuple:
    """The DiT's attention, its rotary embedding, and hidden states [1, 12, width]."""
    import torch
    from transformers.models.qwen2_5_omni import modeling_qwen2_5_omni as omni

    config = omni.Qwen2_5OmniDiTConfig(hidden_size=48, num_attention_heads=3, head_dim=16, dropout=0.0)
    config._attn_implementation = "sdpa"
    torch.manual_seed(0)
    return omni.DiTAttention(config).eval(), omni.Qwen2_5OmniDiTRotaryEmbedding(config), 3 * torch.randn(1, 12, 48)


def test_attention_of_the_dit_depends_on_relative_positions_only() -> None:
    """With a wrong layout of the rotary embedding, moving all positions by the same amount changes the result."""
    import torch

    attention, rotary, hidden = _attention()
    positions = torch.arange(12)[None]

    with torch.inference_mode():
        here, there, stretched = (
            attention(hidden, position_embeddings=rotary(hidden, where))
            for where in (positions, positions + 17, positions * 3)
        )

    assert torch.allclose(here, there, atol=1e-5)
    assert not torch.allclose(here, stretched, atol=1e-3)


def test_attention_of_the_dit_turns_neighbouring_pairs_of_its_first_head() -> None:
    """The checkpoint was trained with interleaved rotary embedding; 5.0 to 5.14 turned pairs half a head apart."""
    import torch

    attention, rotary, hidden = _attention()
    positions = torch.arange(12)

    with torch.inference_mode():
        query, key, value = (
            linear(hidden).view(12, 3, 16).transpose(0, 1)
            for linear in (attention.to_q, attention.to_k, attention.to_v)
        )
        turn = torch.polar(torch.ones(12, 8), positions[:, None] * 10000.0 ** (-torch.arange(0, 16, 2) / 16))
        for states in (query, key):
            pairs = torch.view_as_complex(states[0].reshape(12, 8, 2).contiguous())
            states[0] = torch.view_as_real(pairs * turn).reshape(12, 16)
        mixed = torch.softmax(query @ key.transpose(1, 2) / 4, -1) @ value
        expected = attention.to_out[0](mixed.transpose(0, 1).reshape(1, 12, 48))
        actual = attention(hidden, position_embeddings=rotary(hidden, positions[None]))

    assert torch.allclose(actual, expected, atol=1e-5)
