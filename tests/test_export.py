"""Stage 2: the graph that is promised, the same bytes always."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from conftest import EMBEDDING, HIDDEN, NAME, VOCABULARY, build

from export.__main__ import export
from export.reference import require_sound_transformers
from omni import artifact
from omni.checkpoint import Checkpoint
from omni.session import open_session, run

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

    for kind in ("source", "onnx", "calibration", "int8"):
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


def test_the_rotary_embedding_of_the_dit_depends_on_relative_position_only() -> None:
    """What the broken versions violate: q(m) . k(n) may depend on m - n alone."""
    import torch
    from transformers.models.qwen2_5_omni import modeling_qwen2_5_omni as omni

    width, length = 64, 40
    embedding = omni.Qwen2_5OmniDiTRotaryEmbedding(
        omni.Qwen2_5OmniDiTConfig(head_dim=width) if hasattr(omni, "Qwen2_5OmniDiTConfig") else width
    )
    torch.manual_seed(0)
    query, key = torch.randn(2, width)
    rows = query.expand(1, 1, length, width), key.expand(1, 1, length, width)
    cos, sin = embedding(torch.zeros(1, length, width), torch.arange(length)[None])
    turned_query, turned_key = omni.apply_rotary_pos_emb(*rows, cos, sin)

    scores = (turned_query @ turned_key.transpose(-1, -2))[0, 0]

    for offset in (0, 1, 7, 23):
        diagonal = torch.diagonal(scores, offset)
        assert torch.allclose(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-4)
    assert not torch.allclose(scores[0, 0], scores[0, 7], atol=1e-3)
