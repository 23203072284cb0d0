"""The 7B as the hub holds it, all names and sizes: by transformers' model, made up, and served by a hub."""

from __future__ import annotations

import copy
import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CHAIN, ROOT, tiny_config
from hub_server import COMMIT, REPOSITORY, Hub, Vast, hub_with, point_huggingface_hub_at

from components import component
from omni.params import load
from pull import speakers
from pull.__main__ import pull as command
from pull.hub import HubSnapshot
from pull.plan import config_of, plan
from pull.shards import INDEX
from pull.synthetic import CONFIGS, SyntheticSnapshot
from pull.write import fetch
from qwen_omni_onnx.common import artifact

CONFIG = json.loads((CONFIGS["7b"] / "config.json").read_text())
TOKEN2WAV = 449_051_264  # parameters, stored in float32; all else in bfloat16
DISK_BYTES = 2 * 10_732_225_408 + 2 * TOKEN2WAV + 4 * 32  # the last are the rotary embedding's frequencies


@pytest.fixture(scope="module")
def by_transformers() -> dict[str, tuple[str, tuple[int, ...]]]:
    """Dtype and shape of every parameter of transformers' 7B, by the hub's names."""
    from transformers import Qwen2_5OmniConfig, Qwen2_5OmniForConditionalGeneration
    from transformers.utils import logging

    logging.set_verbosity_error()
    with torch.device("meta"):
        model = Qwen2_5OmniForConditionalGeneration(Qwen2_5OmniConfig(**copy.deepcopy(CONFIG)))

    def named(name: str) -> str:
        for module, on_the_hub in (("language_model", "model"), ("audio_tower", "audio_tower"), ("visual", "visual")):
            name = name.replace(f"thinker.model.{module}.", f"thinker.{on_the_hub}.")
        return name

    return {
        named(name): ("F32" if name.startswith("token2wav.") else "BF16", tuple(tensor.shape))
        for name, tensor in model.named_parameters()
    }


@pytest.fixture(scope="module")
def made_up() -> SyntheticSnapshot:
    return SyntheticSnapshot(CONFIGS["7b"], 0, "full")


def headers(snapshot: SyntheticSnapshot) -> dict[str, dict[str, Any]]:
    """The header of each shard, read as the format says."""
    weight_map = json.loads(snapshot.small_file(INDEX) or b"")["weight_map"]
    found = {}
    for shard in sorted(set(weight_map.values())):
        length = int.from_bytes(read(snapshot, shard, 0, 8), "little")
        found[shard] = json.loads(read(snapshot, shard, 8, 8 + length))
    return found


def read(snapshot: Any, name: str, start: int, end: int) -> bytes:
    blocks: dict[int, bytes] = {}
    snapshot.read(name, start, end, lambda at, block: blocks.__setitem__(at, bytes(block)))
    assert sorted(blocks) == list(blocks)
    content = b"".join(blocks.values())
    assert len(content) == end - start
    return content


def test_the_made_up_checkpoint_has_every_tensor_of_the_real_one(
    made_up: SyntheticSnapshot, by_transformers: dict[str, tuple[str, tuple[int, ...]]]
) -> None:
    specs = {
        name: (entry["dtype"], tuple(entry["shape"]))
        for header in headers(made_up).values()
        for name, entry in header.items()
    }

    extra = specs.pop("token2wav.code2wav_dit_model.rotary_embed.inv_freq")  # probably: see pull.synthetic_tensors
    assert specs == by_transformers
    assert extra == ("F32", (32,))
    assert len(specs) + 1 == 2448


def test_it_is_in_five_shards_of_the_real_sizes(made_up: SyntheticSnapshot) -> None:
    index = json.loads(made_up.small_file(INDEX) or b"")
    shards = sorted(set(index["weight_map"].values()))

    assert shards == [f"model-0000{number}-of-00005.safetensors" for number in range(1, 6)]
    assert index["metadata"]["total_size"] == DISK_BYTES
    sizes = [made_up.file_bytes(shard) for shard in shards]
    assert all(size == pytest.approx(5e9, rel=0.02) for size in sizes[:4])
    assert sizes[4] == pytest.approx(2.4e9, rel=0.03)
    for shard, header in headers(made_up).items():
        assert {index["weight_map"][name] for name in header} == {shard}


def test_its_small_files_are_the_hubs(made_up: SyntheticSnapshot) -> None:
    assert json.loads(made_up.small_file("config.json") or b"") == CONFIG
    assert set(json.loads(made_up.small_file("generation_config.json") or b"")) == {
        "_from_model_config", "transformers_version",
    }  # fmt: skip
    assert "<|im_start|>" in json.loads(made_up.small_file("chat_template.json") or b"")["chat_template"]
    assert made_up.small_file("chat_template.jinja") is None
    assert "chat_template" not in json.loads(made_up.small_file("tokenizer_config.json") or b"")
    assert json.loads(made_up.small_file("preprocessor_config.json") or b"")["feature_size"] == 128


def test_its_speakers_are_an_archive_of_float32_tensors(made_up: SyntheticSnapshot) -> None:
    content = made_up.small_file(speakers.FILE) or b""

    assert zipfile.is_zipfile(io.BytesIO(content))
    assert made_up.file_bytes(speakers.FILE) == len(content) == pytest.approx(259_544, rel=0.02)
    for voice in torch.load(io.BytesIO(content), weights_only=True).values():
        assert {key: (t.dtype, tuple(t.shape)) for key, t in voice.items() if key != "bos_token"} == {
            "cond": (torch.float32, (1, 192)),
            "ref_mel": (torch.float32, (1, 400, 80)),
        }


def test_a_pull_of_all_components_leaves_out_vision(made_up: SyntheticSnapshot) -> None:
    wanted = {
        name for part in CHAIN for name in plan(made_up, component(part), config_of(made_up, component(part))).tensors
    }

    everything = set(json.loads(made_up.small_file(INDEX) or b"")["weight_map"])
    left = {re.sub(r"\.blocks\.\d+.*|\.merger.*|\.patch_embed.*", "", name) for name in everything - wanted}
    assert left == {
        "thinker.visual",
        "thinker.audio_tower.audio_bos_eos_token.weight",
        "token2wav.code2wav_dit_model.rotary_embed.inv_freq",
    }


@pytest.mark.parametrize("seed", range(4))
def test_any_range_of_a_shard_is_that_range_of_the_whole(seed: int) -> None:
    snapshot = SyntheticSnapshot(CONFIGS["tiny"], 3, "full")
    shard = "model-00003-of-00005.safetensors"
    whole = read(snapshot, shard, 0, snapshot.file_bytes(shard))

    random = np.random.default_rng(seed)
    for _ in range(50):
        start, end = sorted(random.integers(0, len(whole) + 1, 2).tolist())
        assert read(snapshot, shard, start, end) == whole[start:end]


# A hub that serves all of it: headers as they are, and zeros behind them


@pytest.fixture(scope="module")
def files(made_up: SyntheticSnapshot) -> dict[str, Any]:
    names = ("config.json", INDEX, "generation_config.json", "chat_template.json", "tokenizer_config.json",
             "tokenizer.json", "preprocessor_config.json", speakers.FILE)  # fmt: skip
    found: dict[str, Any] = {name: made_up.small_file(name) for name in names}
    for shard in headers(made_up):
        length = int.from_bytes(read(made_up, shard, 0, 8), "little")
        found[shard] = Vast(read(made_up, shard, 0, 8 + length), made_up.file_bytes(shard))
    return found


@pytest.fixture
def hub(files: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub_with(files) as server:
        point_huggingface_hub_at(monkeypatch, server.endpoint)
        yield server


def test_the_projection_is_twenty_one_of_twenty_two_billion_bytes(hub: Hub, tmp_path: Path) -> None:
    snapshot, part = HubSnapshot(REPOSITORY, "main"), component("projection")

    fetch(snapshot, plan(snapshot, part, config_of(snapshot, part)), tmp_path / "projection")

    source = artifact.read_json(tmp_path / "projection/source.json")
    assert {name: entry["shape"] for name, entry in source["tensors"].items()} == {
        "talker.thinker_to_talker_proj.weight": [896, 3584],
        "talker.thinker_to_talker_proj.bias": [896],
        "talker.codec_head.weight": [8448, 896],
    }
    assert source["commit"] == COMMIT
    assert sum(request.sent for request in hub.asked("storage")) < 21_563_136 + 600_000  # the rest: headers


def test_a_dry_run_of_the_whole_model_is_one_table(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    params = (ROOT / "params.yaml").read_text()
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(
        params.replace("source: synthetic  ", "source: hub  ", 1).replace("Qwen/Qwen2.5-Omni-7B", REPOSITORY)
    )
    assert load(Path("params.yaml")).model.source == "hub"

    command(None, dry_run=True)

    said = capsys.readouterr().out
    rows = {line.split()[0]: line.split()[1:] for line in said.splitlines() if line and line[0] != " "}
    assert rows["thinker"][:2] == ["339", "15,231,233,024"]
    assert rows["encoder"][:2] == ["488", "1,279,280,128"]
    assert rows["projection"][:2] == ["3", "21,563,136"]
    assert rows["all"][:2] == ["1,928", "21,009,438,720"]  # the projection's tensors are the Talker's, too
    assert re.search(r"memory: about \d+ GB", said)
    assert sum(request.sent for request in hub.asked("storage")) < 1_000_000
    assert not Path("models").exists()

    Path("params.yaml").write_text(Path("params.yaml").read_text().replace("store: float32", "store: checkpoint"))
    command(None, dry_run=True)
    disk = [int(re.findall(r"disk: about (\d+) GB", text)[0]) for text in (said, capsys.readouterr().out)]
    halved = 2 * (15_231_233_024 + 1_279_280_128 + int(rows["talker"][1].replace(",", ""))) / 1e9
    assert disk[0] - disk[1] == pytest.approx(halved, abs=1.1)  # the graphs, and their published copies


def test_the_tiny_checkpoint_is_laid_out_the_same() -> None:
    snapshot = SyntheticSnapshot(CONFIGS["tiny"], 0, "full")

    assert len(headers(snapshot)) == 5
    assert json.loads(snapshot.small_file("config.json") or b"") == tiny_config()
    assert any(name.startswith("thinker.visual.") for header in headers(snapshot).values() for name in header)
