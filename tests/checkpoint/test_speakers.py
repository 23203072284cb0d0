"""The checkpoint's speakers: out of a pickle that may want to run code, into a safetensors file."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT
from hub_server import COMMIT, REPOSITORY, TOKEN, Hub, error, hub_with, point_huggingface_hub_at, safetensors
from hub_server import checkpoint as projection_checkpoint
from safetensors.numpy import load_file

from components import component
from omni.edit import set_value
from omni.params import load
from pull import speakers, synthetic
from pull.__main__ import pull as command
from pull.folder import FolderSnapshot
from pull.hub import HubSnapshot
from pull.plan import Plan, config_of, plan
from pull.snapshot import Snapshot
from pull.speakers import speakers_of
from pull.write import already_here, fetch
from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.common.configuration import completed
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.common.speakers import VOICES, Widths
from qwen_omni_onnx.voices import read_voices

WIDTHS = Widths(cond=12, ref_mel=8)
PART = component("token2wav")


def token2wav_config() -> dict[str, Any]:
    """The 7B's configuration with a narrow token2wav."""
    config = json.loads((ROOT / "pull/qwen2_5_omni_7b/config.json").read_text())
    config["token2wav_config"]["dit_config"] |= {
        "hidden_size": 32, "num_attention_heads": 2, "head_dim": 16, "num_hidden_layers": 2, "num_embeds": 40,
        "dim": 32, "heads": 2, "depth": 2, "look_backward_layers": [0], "look_ahead_layers": [1], "emb_dim": 16,
        "block_size": 6, "mel_dim": 8,
        "enc_channels": [16, 16, 16, 16, 48], "enc_dim": 8, "enc_emb_dim": 12, "enc_attention_channels": 8,
        "enc_se_channels": 8,
    }  # fmt: skip
    config["token2wav_config"]["bigvgan_config"] |= {
        "mel_dim": 8, "upsample_initial_channel": 64, "upsample_rates": [5, 3, 2], "upsample_kernel_sizes": [11, 7, 4],
        "resblock_kernel_sizes": [3, 7], "resblock_dilation_sizes": [[1, 3, 5], [1, 3, 5]],
    }  # fmt: skip
    return config


def voice(seed: int = 0, frames: int = 20, **changed: Any) -> dict[str, Any]:
    """One voice as the checkpoint's file holds it; what is changed to ``...`` is left out."""
    random = torch.Generator().manual_seed(seed)
    fields = {
        "bos_token": 151870 + seed,
        "cond": torch.randn(1, WIDTHS.cond, generator=random),
        "ref_mel": torch.randn(1, frames, WIDTHS.ref_mel, generator=random),
    }
    return {key: value for key, value in {**fields, **changed}.items() if value is not ...}


def saved(table: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(table, file, **options)
    return file.getvalue()


def two_voices() -> dict[str, Any]:
    return {"Chelsie": voice(2), "Ethan": voice(0, frames=25)}


def checkpoint() -> dict[str, bytes]:
    """Files of a tiny checkpoint with a token2wav."""
    config, random = token2wav_config(), np.random.default_rng(3)
    specs = PART.tensors(completed(config))
    tensors = {name: random.standard_normal(spec.shape, np.float32) for name, spec in specs.items()}
    return {
        "config.json": json.dumps(config).encode(),
        "LICENSE": b"Apache License 2.0\n",
        "model.safetensors": safetensors(tensors),
        speakers.FILE: saved(two_voices()),
    }


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def assert_voices(path: Path) -> None:
    """The file holds exactly the two voices, value for value."""
    found = read_voices(path)
    assert list(found) == ["Chelsie", "Ethan"]
    for name, expected in two_voices().items():
        np.testing.assert_array_equal(found[name].cond, expected["cond"].numpy())
        np.testing.assert_array_equal(found[name].ref_mel, expected["ref_mel"].numpy())
        assert found[name].bos_token == expected["bos_token"]


# Reading


def test_voices_are_read_value_for_value(tmp_path: Path) -> None:
    content = saved(two_voices())

    voices = speakers.read(content, sha256(content), WIDTHS)

    (tmp_path / VOICES).write_bytes(speakers.encode(voices))
    assert_voices(tmp_path / VOICES)
    assert {name: (a.dtype.name, a.shape) for name, a in load_file(tmp_path / VOICES).items()} == {
        "Chelsie/cond": ("float32", (1, 12)),
        "Chelsie/ref_mel": ("float32", (1, 20, 8)),
        "Chelsie/bos_token": ("int64", (1,)),
        "Ethan/cond": ("float32", (1, 12)),
        "Ethan/ref_mel": ("float32", (1, 25, 8)),
        "Ethan/bos_token": ("int64", (1,)),
    }


def test_a_tensor_may_be_a_view_with_steps(tmp_path: Path) -> None:
    mel = torch.randn(1, WIDTHS.ref_mel, 20).transpose(1, 2)

    voices = speakers.read(saved({"Ethan": voice(ref_mel=mel)}), None, WIDTHS)

    np.testing.assert_array_equal(voices["Ethan"]["ref_mel"], mel.numpy())
    speakers.encode(voices)


def test_the_same_voices_give_the_same_bytes_in_any_order() -> None:
    table = two_voices()

    one, other = (
        speakers.encode(speakers.read(saved(voices), None, WIDTHS))
        for voices in (table, dict(reversed(list(table.items()))))
    )

    assert one == other


def test_another_hash_than_the_pinned_one_is_told_before_anything_is_opened(
    monkeypatch: pytest.MonkeyPatch, message: Callable[..., str]
) -> None:
    def opened(*_: object, **__: object) -> None:
        raise AssertionError("opened")

    monkeypatch.setattr(torch, "load", opened)
    monkeypatch.setattr(zipfile, "ZipFile", opened)
    content = saved(two_voices())

    said = message(speakers.read, content, "a" * 64, WIDTHS)

    assert f"its SHA-256 is {sha256(content)}, params.yaml pins {'a' * 64}" in said
    assert "set model.speakers_sha256 to null" in said


class Run:
    """Creates a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.marker}",)


def _in_an_archive(run: Run) -> bytes:
    return saved({"Ethan": voice(), "Chelsie": voice(cond=run)})


def _before_archives_came(run: Run) -> bytes:
    return saved({"Chelsie": voice(cond=run)}, _use_new_zipfile_serialization=False)


def _bare(run: Run) -> bytes:
    return pickle.dumps({"Chelsie": {"cond": run}})


def _as_a_name(run: Run) -> bytes:
    return saved({run: voice()})


@pytest.mark.parametrize("write", [_in_an_archive, _before_archives_came, _bare, _as_a_name])
def test_a_pickle_that_wants_to_run_code_is_refused_and_the_code_does_not_run(
    write: Callable[[Run], bytes], tmp_path: Path, message: Callable[..., str]
) -> None:
    marker = tmp_path / "ran"
    content = write(Run(marker))

    said = message(speakers.read, content, sha256(content), WIDTHS)

    assert said.startswith("spk_dict.pt: ")
    assert not marker.exists()
    if zipfile.is_zipfile(io.BytesIO(content)):
        assert "asks for 'posix.system'" in said
        torch.load(io.BytesIO(content), weights_only=False)
    else:
        assert "not an archive as torch.save writes it" in said
        pickle.loads(content) if write is _bare else torch.load(io.BytesIO(content), weights_only=False)
    assert marker.exists(), "the file was harmless: nothing was tested"


class Tensor(torch.Tensor):
    """Not quite one."""


REFUSED: dict[str, tuple[Any, str]] = {
    "a list": ([voice()], "holds a builtins.list, not a table of voices"),
    "no voices": ({}, "not a table of voices"),
    "a number as a name": ({3: voice()}, "3 is no name of a voice"),
    "a path as a name": ({"../Ethan": voice()}, "'../Ethan' is no name of a voice: up to 64 letters, digits, _ and -"),
    "two lines as a name": ({"Et\nhan": voice()}, r"'Et\nhan' is no name"),
    "an empty name": ({"": voice()}, "'' is no name"),
    "an endless name": ({"E" * 65: voice()}, "is no name of a voice"),
    "a slash at its end": ({"Ethan/": voice()}, "'Ethan/' is no name"),
    "a tensor as a voice": ({"Ethan": torch.zeros(1)}, "Ethan: holds a torch.Tensor; it must hold exactly cond"),
    "a field too few": ({"Ethan": voice(cond=...)}, "holds 'bos_token', 'ref_mel'; it must hold exactly"),
    "a field too many": ({"Ethan": voice(more=1)}, "'more'; it must hold exactly cond, ref_mel, bos_token"),
    "a parameter": ({"Ethan": voice(cond=torch.nn.Parameter(torch.zeros(1, 12)))}, "Parameter; it must be a plain"),
    "a subclass": (
        {"Ethan": voice(cond=torch.zeros(1, 12).as_subclass(Tensor))},
        "Tensor', as no table of tensors does",
    ),
    "an array": ({"Ethan": voice(cond=np.zeros((1, 12), np.float32))}, "asks for 'numpy."),
    "a list as a tensor": ({"Ethan": voice(cond=[0.0] * 12)}, "cond is a builtins.list; it must be a plain tensor"),
    "a sparse tensor": ({"Ethan": voice(cond=torch.zeros(1, 12).to_sparse())}, "cond is a torch.Tensor; it must be a"),
    "no values": ({"Ethan": voice(cond=torch.zeros(1, 12, device="meta"))}, "it must be a plain tensor"),
    "halves": ({"Ethan": voice(cond=torch.zeros(1, 12).half())}, "cond is torch.float16; it must be torch.float32"),
    "another width": ({"Ethan": voice(cond=torch.zeros(1, 13))}, "cond is float32 [1, 13]; it must be float32 [1, 12]"),
    "no batch axis": ({"Ethan": voice(cond=torch.zeros(12))}, "cond is float32 [12]; it must be"),
    "another mel": ({"Ethan": voice(ref_mel=torch.zeros(1, 9, 7))}, "[1, 9, 7]; it must be float32 [1, frames, 8]"),
    "a batch": ({"Ethan": voice(ref_mel=torch.zeros(2, 9, 8))}, "[2, 9, 8]; it must be float32 [1, frames, 8]"),
    "few frames": ({"Ethan": voice(frames=4)}, "ref_mel has 4 frames; give at least 5"),
    "NaN": ({"Ethan": voice(cond=torch.full((1, 12), torch.nan))}, "Ethan: cond holds NaN or infinity"),
    "infinity": ({"Ethan": voice(ref_mel=torch.full((1, 9, 8), -torch.inf))}, "ref_mel holds NaN or infinity"),
    "a float as a token": ({"Ethan": voice(bos_token=3.0)}, "bos_token is 3.0; it must be a token's number"),
    "a truth as a token": ({"Ethan": voice(bos_token=True)}, "bos_token is True"),
    "a negative token": ({"Ethan": voice(bos_token=-1)}, "bos_token is -1"),
    "an endless token": ({"Ethan": voice(bos_token=2**2000)}, f"bos_token is {str(2**2000)[:77]}...; it must"),
    "a tensor as a token": ({"Ethan": voice(bos_token=torch.tensor(3))}, "bos_token is a torch.Tensor"),
    "a view beyond all memory": (
        {"Ethan": voice(ref_mel=torch.zeros(1).expand(1, 10**11, 8))},
        "ref_mel is [1, 100000000000, 8], larger than the whole file may be",
    ),
    "many large views": (
        {f"v{n}": voice(ref_mel=torch.zeros(1).expand(1, 30_000, 8)) for n in range(100)},
        ": ref_mel is [1, 30000, 8], larger than the whole file may be",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_no_voice_is_refused(what: str, message: Callable[..., str]) -> None:
    table, expected = REFUSED[what]

    assert expected in message(speakers.read, saved(table), None, WIDTHS)


def test_a_good_voice_does_not_let_a_bad_one_in(message: Callable[..., str]) -> None:
    table = {"Chelsie": voice(), "Ethan": voice(frames=3)}

    assert "Ethan: ref_mel has 3 frames" in message(speakers.read, saved(table), None, WIDTHS)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.9, 0.999])
def test_a_file_that_is_cut_off_is_refused(share: float, message: Callable[..., str]) -> None:
    content = saved(two_voices())

    said = message(speakers.read, content[: int(len(content) * share)], None, WIDTHS)

    assert "cut off, or not an archive" in said


def test_a_flipped_byte_is_refused_or_does_no_harm() -> None:
    content = saved(two_voices())
    random = np.random.default_rng(0)
    said: list[str] = []

    for place in random.integers(0, len(content), 300):
        broken = bytearray(content)
        broken[place] ^= int(random.integers(1, 256))
        try:
            speakers.encode(speakers.read(bytes(broken), None, WIDTHS))
        except UserError as problem:
            said.append(str(problem))

    assert len(said) > 30
    assert not [text for text in said if len(text.splitlines()) != 1]


def repacked(content: bytes, change: Callable[[str, bytes], bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """The same archive with other contents."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(out, "w", compression) as new:
        for member in old.infolist():
            new.writestr(member.filename, change(member.filename, old.read(member)))
    return out.getvalue()


def test_a_bomb_is_refused_without_being_unpacked(monkeypatch: pytest.MonkeyPatch, message: Callable[..., str]) -> None:
    bomb = repacked(
        saved({"Ethan": voice()}),
        lambda name, data: bytes(2**27) if name.endswith("data/0") else data,
        zipfile.ZIP_DEFLATED,
    )
    assert len(bomb) < 2**20
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("opened"))

    assert "its archive is packed" in message(speakers.read, bomb, None, WIDTHS)


def test_an_archive_that_lies_about_a_tensor_s_size_is_refused(message: Callable[..., str]) -> None:
    """More values than its storage holds: older versions of PyTorch would have read beyond it."""
    honest = saved({"Ethan": voice(cond=torch.zeros(1, 7))})
    lying = repacked(honest, lambda name, data: data.replace(b"K\x07", b"K\x0c") if "data.pkl" in name else data)

    assert "damaged, or no table of tensors (RuntimeError)" in message(speakers.read, lying, None, WIDTHS)


def test_a_file_that_is_far_too_large_is_refused(message: Callable[..., str]) -> None:
    assert "67,108,865 bytes; more than 67,108,864 cannot be" in message(speakers.read, bytes(2**26 + 1), None, WIDTHS)


@pytest.mark.parametrize("version", ["2.9.1", "2.10.0a0+git123", "1.13"])
def test_a_pytorch_that_is_too_old_is_told(
    version: str, monkeypatch: pytest.MonkeyPatch, message: Callable[..., str]
) -> None:
    monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion(version))
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("opened"))

    said = message(speakers.read, saved(two_voices()), None, WIDTHS)

    assert said == f"spk_dict.pt: PyTorch {version} does not open it safely; install torch>=2.10"


# Pulling from a folder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder with the tiny checkpoint."""
    place = tmp_path / "snapshot"
    place.mkdir()
    for name, content in checkpoint().items():
        (place / name).write_bytes(content)
    return place


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "models" / "source" / "token2wav"


def planned(snapshot: Snapshot) -> Plan:
    return plan(snapshot, PART, config_of(snapshot, PART))


def pull(snapshot: Snapshot, folder: Path, pinned: str | None = None) -> None:
    fetch(snapshot, planned(snapshot), folder, pinned)


def test_a_pull_writes_the_voices_and_no_pickle(source: Path, folder: Path) -> None:
    pull(FolderSnapshot(source), folder)

    assert set(artifact.check(folder)["files"]) == {
        "LICENSE", "config.json", "model.safetensors", "source.json", VOICES,
    }  # fmt: skip
    assert_voices(folder / VOICES)
    recorded = json.loads((folder / "source.json").read_text())
    assert recorded["speakers_sha256"] == sha256((source / speakers.FILE).read_bytes())
    assert recorded["tensors"].keys() == PART.tensors(completed(token2wav_config())).keys()


def test_voices_of_other_widths_than_the_configuration_s_are_refused(
    source: Path, folder: Path, message: Callable[..., str]
) -> None:
    (source / speakers.FILE).write_bytes(saved({"Ethan": voice(cond=torch.zeros(1, 192))}))

    said = message(pull, FolderSnapshot(source), folder)

    assert "Ethan: cond is float32 [1, 192]; it must be float32 [1, 12]" in said
    assert list(folder.parent.iterdir()) == []


def test_a_snapshot_without_speakers_is_told(source: Path, folder: Path, message: Callable[..., str]) -> None:
    (source / speakers.FILE).unlink()

    assert message(pull, FolderSnapshot(source), folder).startswith(
        "snapshot: no spk_dict.pt in it, which tools that merge or save a model leave out"
    )
    assert not folder.exists()


def test_a_file_of_speakers_that_is_far_too_large_is_not_read(
    source: Path, folder: Path, message: Callable[..., str]
) -> None:
    os.truncate(source / speakers.FILE, 2**40)  # a hole

    assert "more than 67,108,864 cannot be a few speakers" in message(pull, FolderSnapshot(source), folder)


def test_an_earlier_artifact_stays_when_the_speakers_are_refused(
    source: Path, folder: Path, message: Callable[..., str]
) -> None:
    pull(FolderSnapshot(source), folder)
    before = artifact.fingerprint(folder)
    (source / speakers.FILE).write_bytes(saved({"Ethan": voice(7)}))

    message(pull, FolderSnapshot(source), folder, json.loads((folder / "source.json").read_text())["speakers_sha256"])

    assert artifact.fingerprint(folder) == before


# Pulling from a hub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Any:
    with hub_with(checkpoint()) as server:
        point_huggingface_hub_at(monkeypatch, server.endpoint)
        yield server


def tensors_asked_for(hub: Hub) -> list[tuple[int, int] | None]:
    """Ranges behind a shard's header."""
    return [r.range for r in hub.asked("storage", "model.safetensors") if r.range and r.range[0] > 8]


def test_speakers_come_from_the_storage_host_without_the_token(
    hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.token = TOKEN
    monkeypatch.setenv("HF_TOKEN", TOKEN)

    pull(HubSnapshot(REPOSITORY, "main"), folder)

    assert_voices(folder / VOICES)
    asked = hub.asked("storage", speakers.FILE)
    assert [request.sent for request in asked] == [len(hub.files[speakers.FILE])]
    assert not any(request.authorized for request in asked)
    assert json.loads((folder / "source.json").read_text())["commit"] == COMMIT


def test_a_hub_without_speakers_is_told_before_any_tensor_is_fetched(
    hub: Hub, folder: Path, message: Callable[..., str]
) -> None:
    del hub.files[speakers.FILE]

    said = message(pull, HubSnapshot(REPOSITORY, "main"), folder)

    assert said.startswith(f"{REPOSITORY}: no spk_dict.pt in it, which tools that merge or save a model leave out")
    assert not tensors_asked_for(hub)


def test_speakers_that_a_hub_does_not_give_are_not_said_to_be_missing(
    hub: Hub, folder: Path, message: Callable[..., str]
) -> None:
    hub.misbehave(error(403), host="hub", method="HEAD", name=speakers.FILE)
    hub.misbehave(error(403), host="hub", name=speakers.FILE)

    said = message(pull, HubSnapshot(REPOSITORY, "main", retries=0), folder)

    assert "no spk_dict.pt in it" not in said
    assert "403" in said


def test_speakers_that_are_not_the_pinned_ones_are_told_before_any_tensor_is_fetched(
    hub: Hub, folder: Path, message: Callable[..., str]
) -> None:
    said = message(pull, HubSnapshot(REPOSITORY, "main"), folder, "b" * 64)

    assert sha256(hub.files[speakers.FILE]) in said
    assert "b" * 64 in said
    assert [r[0] for r in tensors_asked_for(hub) if r] == []
    assert not folder.exists()


def test_an_artifact_is_already_here_if_its_speakers_are_the_pinned_ones(hub: Hub, folder: Path) -> None:
    snapshot = HubSnapshot(REPOSITORY, "main")
    pull(snapshot, folder)

    def here(pinned: str | None) -> bool:
        return already_here(snapshot, planned(snapshot), folder, pinned)

    assert here(None)
    assert here(sha256(hub.files[speakers.FILE]))
    assert not here("b" * 64)
    recorded = json.loads((folder / "source.json").read_text())
    del recorded["speakers_sha256"]  # as of a version that knew no speakers
    with artifact.writing(folder, kind="source", component="token2wav") as beside:
        artifact.write_json(beside / "source.json", recorded)
    assert not here(None)


# The command


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to pull in; the current directory of the test."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_params(place: Path, source: str) -> Path:
    """Write the repository's own parameters, but for where the checkpoint comes from."""
    parameters = (ROOT / "params.yaml").read_text()
    for old, new in (("source: synthetic  ", f"source: {source}  "), ("Qwen/Qwen2.5-Omni-7B", REPOSITORY)):
        assert old in parameters
        parameters = parameters.replace(old, new, 1)
    (place / "params.yaml").write_text(parameters)
    return place / "params.yaml"


def test_the_first_pull_pins_what_it_finds_and_the_next_ones_take_nothing_else(
    hub: Hub, place: Path, capsys: pytest.CaptureFixture[str], message: Callable[..., str]
) -> None:
    params = write_params(place, "hub")
    before, found = params.read_text(), sha256(hub.files[speakers.FILE])

    command("token2wav")

    assert capsys.readouterr().out == (
        f"params.yaml: model.speakers_sha256 is now {found}, the SHA-256 of the spk_dict.pt that was pulled\n"
    )
    pinned = params.read_text()
    ((old, new),) = [(a, b) for a, b in zip(before.splitlines(), pinned.splitlines(), strict=True) if a != b]
    assert (old.split()[:2], new.split()[:2]) == (["speakers_sha256:", "null"], ["speakers_sha256:", found])
    assert old.partition("#")[2] == new.partition("#")[2]

    command("token2wav")

    assert capsys.readouterr().out == "models/source/token2wav: already here\n"

    hub.files[speakers.FILE] = saved({"Ethan": voice(9)})
    hub.revisions = {"main": "f" * 40, "f" * 40: "f" * 40}
    said = message(command, "token2wav")

    assert sha256(hub.files[speakers.FILE]) in said
    assert found in said
    assert params.read_text() == pinned


def test_an_artifact_that_is_already_here_is_pinned_too(
    hub: Hub, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    params = write_params(place, "hub")
    command("token2wav")
    pinned = params.read_text()
    write_params(place, "hub")
    capsys.readouterr()

    command("token2wav")

    said = capsys.readouterr().out
    assert said.startswith("models/source/token2wav: already here\nparams.yaml: model.speakers_sha256 is now")
    assert params.read_text() == pinned


def test_a_pull_from_a_folder_pins_too(source: Path, place: Path) -> None:
    params = write_params(place, source.name)

    command("token2wav")

    assert load(params).model.speakers_sha256 == sha256((source / speakers.FILE).read_bytes())
    assert_voices(place / "models/source/token2wav" / VOICES)


def test_parameters_that_would_lose_their_layout_are_left_alone(
    source: Path, place: Path, message: Callable[..., str]
) -> None:
    params = write_params(place, source.name)
    text = params.read_text().replace("  seed: 0 ", "  seed:   0 ")
    params.write_text(text)

    said = message(command, "token2wav")

    found = sha256((source / speakers.FILE).read_bytes())
    assert said.endswith(f"model.speakers_sha256; write model.speakers_sha256: {found} yourself")
    assert params.read_text() == text
    artifact.check(place / "models/source/token2wav")


def test_a_dry_run_names_the_speakers_and_pins_nothing(
    hub: Hub, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    params = write_params(place, "hub")

    command("token2wav", dry_run=True)

    size = len(hub.files[speakers.FILE])
    assert f"  spk_dict.pt  {size:,} bytes, checked and turned into speakers.safetensors\n" in capsys.readouterr().out
    assert not hub.asked("storage", speakers.FILE)
    assert load(params).model.speakers_sha256 is None
    assert not (place / "models").exists()


def test_a_component_without_voices_is_pulled_without_pytorch(place: Path) -> None:
    (place / "snapshot").mkdir()
    for name, content in projection_checkpoint().items():
        (place / "snapshot" / name).write_bytes(content)
    params = write_params(place, "snapshot")
    before = params.read_text()
    code = "import sys; sys.modules['torch'] = None; from pull.__main__ import pull; pull('projection', False)"

    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert not (place / "models/source/projection" / VOICES).exists()
    assert params.read_text() == before


@pytest.mark.parametrize("value", ["1" * 64, "1e" + "2" * 62, "0" * 64, "ab" * 32])
def test_a_hash_that_looks_like_a_number_stays_text(value: str, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text((ROOT / "params.yaml").read_text())

    set_value(path, ("model", "speakers_sha256"), value, "")

    assert load(path).model.speakers_sha256 == value
    set_value(path, ("model", "speakers_sha256"), None, "")
    assert re.sub(" +#", " #", path.read_text()) == re.sub(" +#", " #", (ROOT / "params.yaml").read_text())


# Speakers of another checkpoint


@pytest.mark.parametrize("where", ["base", "base/spk_dict.pt", "renamed.pt"])
def test_speakers_may_come_from_a_file_or_a_folder(source: Path, folder: Path, tmp_path: Path, where: str) -> None:
    (tmp_path / "base").mkdir()
    (source / speakers.FILE).rename(tmp_path / "base" / speakers.FILE)
    (tmp_path / "renamed.pt").write_bytes((tmp_path / "base" / speakers.FILE).read_bytes())

    pull(speakers_of(FolderSnapshot(source), str(tmp_path / where)), folder)

    assert_voices(folder / VOICES)
    assert json.loads((folder / "source.json").read_text())["checkpoint"] == "snapshot"


def test_speakers_may_come_from_a_repository(hub: Hub, source: Path, folder: Path) -> None:
    (source / speakers.FILE).unlink()

    pull(speakers_of(FolderSnapshot(source), REPOSITORY), folder)

    assert_voices(folder / VOICES)
    assert {request.name.rpartition("/")[2] for request in hub.asked("storage")} == {speakers.FILE}


def test_those_of_the_checkpoint_are_not_taken_where_others_are_named(
    source: Path, folder: Path, tmp_path: Path, message: Callable[..., str]
) -> None:
    (tmp_path / "base").mkdir()

    assert "no spk_dict.pt in it" in message(pull, speakers_of(FolderSnapshot(source), str(tmp_path / "base")), folder)


def test_a_repository_with_a_dot_in_its_name_is_one(hub: Hub, source: Path) -> None:
    with pytest.raises(UserError, match=r"Qwen/Qwen2\.5-Omni-7B: no such repository"):
        speakers_of(FolderSnapshot(source), "Qwen/Qwen2.5-Omni-7B")


@pytest.mark.parametrize("where", ["gone/spk_dict.pt", "gone.pt", "a/b/c", "nothing", "../base", "my tune/base"])
def test_speakers_that_are_nowhere_are_told(
    source: Path, where: str, monkeypatch: pytest.MonkeyPatch, message: Callable[..., str]
) -> None:
    monkeypatch.chdir(source)  # paths are relative: beside the repository there may be a folder of that name

    said = message(speakers_of, FolderSnapshot(source), where)

    assert said == f"model.speakers: {where}: no such file; give the path of the base model's spk_dict.pt"


# Synthetic speakers


def made(folder: Path, *, seed: int = 0, layers: int | str = "full") -> Path:
    configs = folder.parent / f"{folder.name}-configs"
    configs.mkdir()
    (configs / "config.json").write_text(json.dumps(token2wav_config()))
    synthetic.write(PART, seed, layers, folder, configs)
    return folder


def test_synthetic_speakers_have_the_names_and_widths_of_the_checkpoint(tmp_path: Path) -> None:
    folder = made(tmp_path / "token2wav")

    assert set(artifact.check(folder)["files"]) == {"config.json", "model.safetensors", "source.json", VOICES}
    voices = read_voices(folder / VOICES)
    assert {name: v.bos_token for name, v in voices.items()} == {"Chelsie": 151872, "Ethan": 151870}
    assert {(v.cond.shape, v.ref_mel.shape) for v in voices.values()} == {((1, 12), (1, 400, 8))}
    assert (voices["Chelsie"].ref_mel != voices["Ethan"].ref_mel).mean() > 0.9
    assert len(json.loads((folder / "source.json").read_text())["speakers_sha256"]) == 64


def test_synthetic_speakers_are_the_same_bytes_on_every_machine(tmp_path: Path) -> None:
    one, other = made(tmp_path / "one", seed=3), made(tmp_path / "other", seed=4)

    assert artifact.sha256(one / VOICES) == "86a58415fc107419f4c65ca4185683161359d938967f28f1fd29db4d40a6004d"
    assert artifact.sha256(other / VOICES) != artifact.sha256(one / VOICES)


def test_synthetic_mels_are_loud_and_soft_like_logarithms_of_mels_and_smooth(tmp_path: Path) -> None:
    for one in read_voices(made(tmp_path / "token2wav") / VOICES).values():
        mel = one.ref_mel[0].astype(np.float64)
        assert mel.mean() == pytest.approx(-5, abs=0.5)
        assert mel.std() == pytest.approx(2, abs=0.3)
        assert mel.min() >= -11.5
        assert 0.8 < np.corrcoef(mel[1:].ravel(), mel[:-1].ravel())[0, 1] < 0.95
        assert abs(np.corrcoef(mel[20:].ravel(), mel[:-20].ravel())[0, 1]) < 0.3
        assert 0.4 < one.cond.std() < 1.6


def test_fewer_layers_look_back_and_ahead_too(tmp_path: Path) -> None:
    shallow, whole = made(tmp_path / "shallow", layers=1), made(tmp_path / "whole", layers=2)

    dits = [json.loads((at / "config.json").read_text())["token2wav_config"]["dit_config"] for at in (shallow, whole)]
    keys = ("num_hidden_layers", "look_backward_layers", "look_ahead_layers")
    assert [[dit[key] for key in keys] for dit in dits] == [[1, [0], [0]], [2, [0], [1]]]
    PART.contracts(json.loads((shallow / "config.json").read_text()))
