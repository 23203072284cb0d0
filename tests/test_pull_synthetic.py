"""Synthetic weights: the same bytes everywhere, and the shapes of the real checkpoint."""

from __future__ import annotations

import json
import math
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hub_server import BIAS, HEAD, WEIGHT
from safetensors import safe_open

from omni import artifact
from omni.checkpoint import Checkpoint
from omni.component import component
from pull import synthetic

# SHA-256 of tensors of [64, 24] and [96, 64] with seed 3, on any machine. A fan-in of 24 has no exact square root.
PINNED = {
    WEIGHT: "096fb40faf605be9495605d463a35a819842ce95b58f80d70bf83765a4e9ed79",
    HEAD: "78856330df77c101e117ba7ae952cb855c5b6f6435ffd57131b2d2fe492529da",
}


def write(folder: Path, *, seed: int = 0, **widths: int) -> Path:
    """Write a tiny synthetic source."""
    talker = {"embedding_size": 24, "hidden_size": 64, "vocab_size": 96, **widths}
    config = folder.parent / f"{folder.name}.json"
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text(json.dumps({"torch_dtype": "bfloat16", "talker_config": talker}))
    synthetic.write(component("projection"), seed, folder, config)
    return folder


def read(folder: Path) -> dict[str, np.ndarray]:
    with safe_open(folder / "model.safetensors", framework="numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary


def facts(folder: Path) -> dict:
    return json.loads((folder / "source.json").read_text())


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    one, other = write(tmp_path / "one", seed=3), write(tmp_path / "other", seed=3)

    assert artifact.sha256(one / "model.safetensors") == artifact.sha256(other / "model.safetensors")
    assert facts(one) == facts(other)


def test_every_machine_gives_the_same_bytes(tmp_path: Path) -> None:
    folder = write(tmp_path / "source", seed=3)

    written = facts(folder)["tensors"]
    assert {name: written[name]["sha256"] for name in PINNED} == PINNED


def test_blocks_of_any_size_give_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = write(tmp_path / "whole", seed=3)
    monkeypatch.setattr(synthetic, "_BLOCK_VALUES", 100)

    in_blocks = write(tmp_path / "blocks", seed=3)

    assert facts(in_blocks)["tensors"] == facts(whole)["tensors"]


def test_another_seed_gives_other_bytes_in_every_tensor(tmp_path: Path) -> None:
    one, other = facts(write(tmp_path / "one", seed=3)), facts(write(tmp_path / "other", seed=4))

    assert all(one["tensors"][name]["sha256"] != other["tensors"][name]["sha256"] for name in (WEIGHT, BIAS, HEAD))


def test_tensors_differ_from_each_other(tmp_path: Path) -> None:
    values = read(write(tmp_path / "source", embedding_size=64, vocab_size=64))

    assert (values[WEIGHT] != values[HEAD]).mean() > 0.9


def test_values_are_uniform_within_one_over_the_root_of_the_fan_in(tmp_path: Path) -> None:
    values = read(write(tmp_path / "source", vocab_size=2048))

    head = values[HEAD].astype(np.float64)
    bound = 1 / math.sqrt(64)
    assert np.abs(head).max() <= bound
    assert np.abs(head).max() > 0.99 * bound
    assert abs(head.mean()) < 0.01 * bound
    assert head.std() == pytest.approx(bound / math.sqrt(3), rel=0.01)
    assert np.histogram(head, 8, (-bound, bound))[0] == pytest.approx(np.full(8, head.size / 8), rel=0.05)


def test_values_are_bfloat16_and_finite(tmp_path: Path) -> None:
    values = read(write(tmp_path / "source"))

    assert {array.dtype for array in values.values()} == {np.dtype(ml_dtypes.bfloat16)}
    assert all(np.isfinite(array).all() for array in values.values())


def test_the_source_is_an_artifact_that_says_what_it_is(tmp_path: Path) -> None:
    folder = write(tmp_path / "source", seed=3)

    manifest = artifact.check(folder)
    assert (manifest["kind"], manifest["component"]) == ("source", "projection")
    assert set(manifest["files"]) == {"config.json", "model.safetensors", "source.json"}
    assert {key: facts(folder)[key] for key in ("checkpoint", "kind", "seed")} == {
        "checkpoint": "synthetic",
        "kind": "synthetic",
        "seed": 3,
    }


def test_the_7b_configuration_has_the_7b_shapes() -> None:
    config = json.loads(synthetic.CONFIG.read_text())

    specs = component("projection").tensors(config)

    assert {name: (spec.dtype, spec.shape) for name, spec in specs.items()} == {
        WEIGHT: ("BF16", (896, 3584)),
        BIAS: ("BF16", (896,)),
        HEAD: ("BF16", (8448, 896)),
    }
    assert sum(spec.nbytes for spec in specs.values()) == 21_563_136


def test_the_whole_7b_source_is_written(tmp_path: Path) -> None:
    synthetic.write(component("projection"), 0, tmp_path / "projection")

    written = Checkpoint(tmp_path / "projection")
    assert written.spec(HEAD).shape == (8448, 896)
    assert sum(entry.spec.nbytes for entry in written.entries.values()) == 21_563_136
