"""Of a checkpoint in 4 bits, what layers are packed into is pulled in place of their weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny_decoder as tiny
from packed_checkpoints import AWQ, GPTQ, LAYOUTS, Packed, pack, write_tensors

from components import component
from omni.checkpoint import Checkpoint, TensorSpec
from pull.folder import FolderSnapshot
from pull.layouts import with_packed
from pull.plan import config_of, plan
from pull.write import fetch
from qwen_omni_onnx.common import artifact

WIDTHS = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
MODULE = "thinker.model.layers.1.mlp.down_proj"
WANTED = {
    "a.weight": TensorSpec("F16", (64, 96)),
    "a.bias": TensorSpec("F16", (64,)),
    "b.weight": TensorSpec("F16", (8,)),
}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return tiny.write_source("thinker", tiny.config(**WIDTHS), tmp_path_factory.mktemp("original"))


@pytest.fixture(params=["awq", "act-order", "autoround-gptq"])
def snapshot(request: pytest.FixtureRequest, original: Checkpoint, tmp_path: Path) -> Packed:
    """A folder with a packed checkpoint; its manifest is an artifact's, which no snapshot has."""
    packed = pack(original, LAYOUTS[request.param], tmp_path / "snapshot")
    (tmp_path / "snapshot" / artifact.MANIFEST).unlink()
    return packed


def _pull(folder: Path, out: Path) -> Checkpoint:
    there, part = FolderSnapshot(folder), component("thinker")
    fetch(there, plan(there, part, config_of(there, part)), out)
    artifact.check(out)
    return Checkpoint(out)


# Names and specs


@pytest.mark.parametrize(
    ("quantization", "present"),
    [
        (AWQ, {"qweight": [96, 8], "qzeros": [3, 8], "scales": [3, 64]}),
        (GPTQ, {"qweight": [12, 64], "qzeros": [3, 8], "scales": [3, 64], "g_idx": [96]}),
        (GPTQ, {"qweight": [12, 64], "qzeros": [3, 8], "scales": [3, 64]}),
    ],
)
def test_a_packed_layers_tensors_take_its_weights_place(quantization: dict, present: dict[str, list[int]]) -> None:
    names = {"a.bias", "b.weight", *(f"a.{part}" for part in present)}

    found = with_packed(WANTED, names.__contains__, {"quantization_config": quantization})

    packed = {f"a.{part}": TensorSpec("F16" if part == "scales" else "I32", tuple(s)) for part, s in present.items()}
    assert found == packed | {"a.bias": WANTED["a.bias"], "b.weight": WANTED["b.weight"]}


def test_what_is_not_packed_is_wanted_as_it_is() -> None:
    everything = {*WANTED, "a.qweight"}  # a weight that is there counts

    assert with_packed(WANTED, everything.__contains__, {}) == WANTED
    assert with_packed(WANTED, set().__contains__, {}) == WANTED  # missing altogether: whoever plans says so


def test_a_layer_that_does_not_fill_words_is_refused(message: Callable[..., str]) -> None:
    odd = {"a.weight": TensorSpec("F16", (60, 96))}

    said = message(with_packed, odd, {"a.qweight"}.__contains__, {"quantization_config": GPTQ})

    assert said == "a: 60 outputs do not fill words of 8 codes, as gptq packs them"


# Pulling


def test_a_packed_checkpoint_is_pulled_as_it_is(snapshot: Packed, tmp_path: Path) -> None:
    pulled = _pull(snapshot.checkpoint.folder, tmp_path / "models/source/thinker")

    assert set(pulled.entries) == set(snapshot.checkpoint.entries)
    for name in pulled.entries:
        np.testing.assert_array_equal(pulled.read(name), snapshot.checkpoint.read(name))
    for module, codes in snapshot.layers.items():
        np.testing.assert_array_equal(pulled.read(f"{module}.weight"), codes.weight())


def test_a_thinker_that_was_saved_alone_is_pulled_too(original: Checkpoint, tmp_path: Path) -> None:
    folder = pack(original, LAYOUTS["awq"], tmp_path / "snapshot").checkpoint.folder
    (folder / artifact.MANIFEST).unlink()
    stored = Checkpoint(folder)
    config = json.loads((folder / "config.json").read_text())
    alone = {**config["thinker_config"], "model_type": "qwen2_5_omni_thinker"}
    (folder / "config.json").write_text(json.dumps({**alone, "quantization_config": config["quantization_config"]}))
    write_tensors(folder, {name.removeprefix("thinker."): stored.read(name) for name in stored.entries})

    pulled = _pull(folder, tmp_path / "models/source/thinker")

    assert f"{MODULE}.qweight" in pulled.entries
    assert pulled.read(f"{MODULE}.weight").shape == (64, 128)


@pytest.mark.parametrize(
    ("part", "change", "said"),
    [
        ("scales", None, "scales is missing; the checkpoint is not whole"),
        ("scales", lambda a: a[:2], "down_proj.scales is F16 [2, 64]; by config.json it should be of shape [4, 64]"),
        ("qweight", lambda a: a.astype(np.int64), "down_proj.qweight is I64; packed to 4 bits, it must be I32"),
        ("scales", lambda a: a.astype(np.int32), "down_proj.scales is I32; it must be one of BF16, F16, F32"),
        (
            "qweight",
            lambda a: a[:, :4],
            "down_proj.qweight is I32 [128, 4]; by config.json it should be of shape [128, 8]",
        ),
        ("scales", lambda a: a * np.float16(np.nan), "down_proj.scales holds nan at flat index 0"),
    ],
)
def test_packed_tensors_that_do_not_fit_are_refused_in_one_line(
    part: str, change: Callable[[np.ndarray], np.ndarray] | None, said: str, original: Checkpoint, tmp_path: Path,
    message: Callable[..., str],
) -> None:  # fmt: skip
    folder = pack(original, LAYOUTS["awq"], tmp_path / "snapshot").checkpoint.folder
    stored = Checkpoint(folder)
    tensors = {name: stored.read(name) for name in stored.entries}
    changed = tensors.pop(f"{MODULE}.{part}")
    write_tensors(folder, tensors | ({f"{MODULE}.{part}": change(changed)} if change else {}))

    assert said in message(_pull, folder, tmp_path / "models/source/thinker")


def test_a_format_that_is_not_read_is_refused_before_anything_is_fetched(
    original: Checkpoint, tmp_path: Path, message: Callable[..., str]
) -> None:
    folder = pack(original, LAYOUTS["awq"], tmp_path / "snapshot").checkpoint.folder
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["version"] = "gemv"
    (folder / "config.json").write_text(json.dumps(config))

    assert "version 'gemv' of awq" in message(_pull, folder, tmp_path / "models/source/thinker")
    assert not (tmp_path / "models").exists()
