"""Synthetic weights: the same bytes everywhere, and the shapes of the real checkpoint."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from conftest import tiny_config, tiny_preprocessor, write_configs
from hub_server import BIAS, HEAD, WEIGHT
from safetensors import safe_open

from components import component
from omni.checkpoint import Checkpoint
from pull import synthetic, synthetic_tensors
from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.common.configuration import read_config

# SHA-256 of tensors of [64, 24], [64] and [96, 64] with seed 3, on any machine. 24 has no exact square root.
PINNED = {
    WEIGHT: "096fb40faf605be9495605d463a35a819842ce95b58f80d70bf83765a4e9ed79",
    BIAS: "305a34cef1a7146f5232e48653da8baba50f5c4f66cba88cc89b36370cdc760f",
    HEAD: "78856330df77c101e117ba7ae952cb855c5b6f6435ffd57131b2d2fe492529da",
}


def write(folder: Path, *, seed: int = 0, **widths: int) -> Path:
    """Write a tiny synthetic source."""
    config = tiny_config()
    config["talker_config"] |= {"embedding_size": 24, "hidden_size": 64, "vocab_size": 96, **widths}
    configs = folder.parent / f"{folder.name}-configs"
    configs.mkdir(parents=True)
    (configs / "config.json").write_text(json.dumps(config))
    synthetic.write(component("projection"), seed, "full", folder, configs)
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
    monkeypatch.setattr(synthetic_tensors, "_BLOCK_VALUES", 101)

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
    config = read_config(synthetic.CONFIG)

    specs = component("projection").tensors(config)

    assert {name: (spec.dtype, spec.shape) for name, spec in specs.items()} == {
        WEIGHT: ("BF16", (896, 3584)),
        BIAS: ("BF16", (896,)),
        HEAD: ("BF16", (8448, 896)),
    }
    assert sum(spec.nbytes for spec in specs.values()) == 21_563_136


def test_the_whole_7b_source_is_written(tmp_path: Path) -> None:
    synthetic.write(component("projection"), 0, 2, tmp_path / "projection")

    written = Checkpoint(tmp_path / "projection")
    assert written.spec(HEAD).shape == (8448, 896)
    assert sum(entry.spec.nbytes for entry in written.entries.values()) == 21_563_136


# Components with layers


def encoder(folder: Path, *, seed: int = 0, layers: int | str = "full") -> Path:
    """Write a tiny synthetic encoder."""
    configs = folder.parent / "configs"
    if not configs.exists():
        write_configs(configs)
    synthetic.write(component("encoder"), seed, layers, folder, configs)
    return folder


def depth(folder: Path) -> tuple[int, int]:
    """Layers by the configuration, and by the tensors."""
    said = json.loads((folder / "config.json").read_text())["thinker_config"]["audio_config"]["encoder_layers"]
    return said, len({name.split(".layers.")[1].split(".")[0] for name in read(folder) if ".layers." in name})


@pytest.mark.parametrize(("layers", "expected"), [(1, 1), (2, 2), (7, 2), ("full", 2)])
def test_there_are_as_many_layers_as_asked_for_and_at_most_the_checkpoint_s(
    layers: int | str, expected: int, tmp_path: Path
) -> None:
    folder = encoder(tmp_path / "source", layers=layers)

    assert depth(folder) == (expected, expected)
    assert Checkpoint(folder).entries.keys() == component("encoder").tensors(read_config(folder)).keys()


def test_fewer_layers_are_the_first_ones_byte_for_byte(tmp_path: Path) -> None:
    shallow, deep = (facts(encoder(tmp_path / str(n), layers=n))["tensors"] for n in (1, 2))

    assert set(shallow) < set(deep)
    assert all(deep[name] == entry for name, entry in shallow.items())


def test_all_layers_leave_the_configuration_as_it_is(tmp_path: Path) -> None:
    configs = write_configs(tmp_path / "configs")
    synthetic.write(component("projection"), 0, "full", tmp_path / "projection", configs)

    assert json.loads((tmp_path / "projection/config.json").read_text()) == tiny_config()


def test_fewer_layers_are_said_under_every_name_that_says_how_many(tmp_path: Path) -> None:
    synthetic.write(component("projection"), 0, 1, tmp_path / "projection", write_configs(tmp_path / "configs"))

    config = read_config(tmp_path / "projection")
    thinker, dit = config["thinker_config"], config["token2wav_config"]["dit_config"]
    assert [thinker["audio_config"][key] for key in ("encoder_layers", "num_hidden_layers")] == [1, 1]
    assert [dit[key] for key in ("num_hidden_layers", "depth")] == [1, 1]
    assert thinker["text_config"]["num_hidden_layers"] == config["talker_config"]["num_hidden_layers"] == 1
    assert thinker["vision_config"]["depth"] == 1


def test_an_encoder_is_the_same_bytes_each_time(tmp_path: Path) -> None:
    one, again, other = (encoder(tmp_path / name, seed=seed) for name, seed in (("a", 3), ("b", 3), ("c", 4)))

    assert artifact.sha256(one / "model.safetensors") == artifact.sha256(again / "model.safetensors")
    ours, theirs = facts(one)["tensors"], facts(other)["tensors"]
    assert all(ours[name]["sha256"] != theirs[name]["sha256"] for name in ours)


def test_rows_stand_out_where_the_component_says_so(tmp_path: Path) -> None:
    """Each is a factor, in the range that is given, above the largest that its distribution allows."""
    values = {
        name.partition("audio_tower.")[2]: v.astype(np.float64) for name, v in read(encoder(tmp_path / "s")).items()
    }

    for name in ("layers.0.self_attn_layer_norm.weight", "layers.1.final_layer_norm.weight"):
        loud = np.abs(values[name]) > 1.25 * 1.01
        assert loud.sum() == 8
        assert (values[name][loud] >= 20 * 0.75 * 0.99).all()
        assert (values[name][loud] <= 60 * 1.25 * 1.01).all()
    rows = np.abs(values["proj.weight"]).max(1) * math.sqrt(64)
    assert (rows > 1.01).sum() == 12
    assert rows[rows > 1.01].min() >= 30 * 0.8
    assert rows.max() <= 150 * 1.01
    bound = 1 / math.sqrt(64)
    for name in ("layers.0.fc1.weight", "layers.0.self_attn.q_proj.weight", "proj.bias"):
        assert np.abs(values[name]).max() <= max(bound, 1 / math.sqrt(len(values[name]))) * 1.01


def test_other_rows_stand_out_in_other_tensors(tmp_path: Path) -> None:
    values = read(encoder(tmp_path / "source"))

    chosen = [
        tuple(np.argsort(-np.abs(v.astype(np.float64)))[:8])
        for name, v in values.items()
        if name.endswith("_layer_norm.weight")
    ]
    assert len(set(chosen)) == len(chosen) == 4


def test_weights_of_normalizations_lie_around_one_and_biases_around_zero(tmp_path: Path) -> None:
    values = {
        name.partition("audio_tower.")[2]: v.astype(np.float64) for name, v in read(encoder(tmp_path / "s")).items()
    }

    plain = values["ln_post.weight"]
    assert 0.75 <= plain.min() < plain.max() <= 1.25
    assert plain.mean() == pytest.approx(1, abs=0.1)
    assert np.abs(values["ln_post.bias"]).max() <= 1 / math.sqrt(64)


def test_fan_in_of_a_convolution_counts_its_kernel(tmp_path: Path) -> None:
    kernel = read(encoder(tmp_path / "source"))["thinker.audio_tower.conv2.weight"].astype(np.float64)

    bound = 1 / math.sqrt(64 * 3)
    assert 0.99 * bound < np.abs(kernel).max() <= bound * 1.01


def test_a_gain_multiplies_the_bound_of_a_matrix_and_is_the_bound_of_a_vector(tmp_path: Path) -> None:
    configs = write_configs(tmp_path / "configs")
    gains = {"*.conv2.weight": 3.0, "*.conv2.*": 0.7, "*.layers.0.*.bias": 0.05}

    synthetic.write(dataclasses.replace(component("encoder"), gains=gains), 0, "full", tmp_path / "source", configs)

    values = {
        name.partition("audio_tower.")[2]: np.abs(v.astype(np.float64)).max()
        for name, v in read(tmp_path / "source").items()
    }
    assert values["conv2.weight"] == pytest.approx(3 / math.sqrt(64 * 3), rel=0.01)
    assert values["conv2.bias"] == pytest.approx(0.7, rel=0.1)
    assert values["layers.0.fc1.bias"] == pytest.approx(0.05, rel=0.1)
    assert values["layers.1.fc1.bias"] == pytest.approx(1 / math.sqrt(96), rel=0.1)
    assert values["layers.0.fc1.weight"] == pytest.approx(1 / math.sqrt(64), rel=0.01)


def test_a_source_without_tensors_is_written_with_its_companions(tmp_path: Path) -> None:
    configs = write_configs(tmp_path / "configs")
    synthetic.write(component("frontend"), 0, "full", tmp_path / "frontend", configs)

    manifest = artifact.check(tmp_path / "frontend")
    assert set(manifest["files"]) == {"config.json", "preprocessor_config.json", "model.safetensors", "source.json"}
    assert json.loads((tmp_path / "frontend/preprocessor_config.json").read_text()) == tiny_preprocessor()
    assert Checkpoint(tmp_path / "frontend").entries == {}
    assert facts(tmp_path / "frontend")["tensors"] == {}


def test_the_7b_encoder_has_the_7b_shapes() -> None:
    specs = component("encoder").tensors(read_config(synthetic.CONFIG))

    assert len(specs) == 8 + 32 * 15
    assert specs["thinker.audio_tower.layers.31.fc1.weight"].shape == (5120, 1280)
    assert specs["thinker.audio_tower.proj.weight"].shape == (3584, 1280)
    assert "thinker.audio_tower.layers.0.self_attn.k_proj.bias" not in specs
    assert {spec.dtype for spec in specs.values()} == {"BF16"}
