"""``validate contract`` and ``parity`` of a published folder, which may be a stranger's: in a process of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from tamper import reseal

from attacks import graphs as hostile
from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.common.confined import Limits
from validate import parity
from validate.__main__ import run_contract, run_parity
from validate.confined import published_parity
from validate.measured import from_published

COMMANDS = [run_contract, run_parity]


def _folder(component: str) -> Path:
    (folder,) = Path("models/published", component).iterdir()
    return folder


@pytest.mark.parametrize("component", ["projection", "talker", "token2wav"])
def test_what_is_found_there_is_what_is_found_here(gated_chain: Path, component: str) -> None:
    folder = _folder(component)

    found = published_parity(folder)

    measured, manifest = from_published(folder)
    assert found.checks == parity.measure(measured, threads=0)
    assert (found.compared_with, found.kinds) == (measured.component.compared_with, measured.kinds)
    assert found.limits.model_dump(mode="json") == manifest["parameters"]["gates"]


def test_both_commands_print_what_they_find(gated_chain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(_folder("projection"))

    run_contract([folder])
    run_parity([folder])

    printed = capsys.readouterr().out
    assert "no path, user or host name inside" in printed
    assert "audio_logits" in printed


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("change", "limits", "why"),
    [
        (hostile._loop, Limits(4, 4e9), "took longer than 4 s"),
        (hostile._growing_loop, Limits(120, 1.5e9), "took more than 1.5 GB of memory"),
    ],
)
def test_graphs_without_end_are_stopped(
    gated_chain: Path,
    message: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    command: Callable[..., None],
    change: Callable[[onnx.ModelProto], None],
    limits: Limits,
    why: str,
) -> None:
    folder = _folder("projection")
    for file in folder.glob("onnx/*.onnx"):
        model = onnx.load(file, load_external_data=False)
        change(model)
        onnx.save(model, file)
    reseal(folder)
    monkeypatch.setattr("validate.confined.limits_of", lambda _: limits)

    assert message(command, [str(folder)]) == f"{folder}: running its graphs {why}; do not use it"


def test_limits_that_cannot_be_read_are_named(gated_chain: Path, message: Callable[..., str]) -> None:
    folder = _folder("projection")
    manifest = artifact.read_manifest(folder)
    manifest["parameters"]["gates"]["checks"]["audio_logits"]["quantized_sqnr_db"] = "a lot"
    artifact.write_json(folder / artifact.MANIFEST, manifest)

    said = message(run_parity, [str(folder)])
    assert said.startswith(f"{folder}: its manifest's limits.checks.audio_logits.quantized_sqnr_db")
    assert said.endswith("cannot be read by this version; publish it again")


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("change", "why"),
    [
        (
            lambda manifest, _: manifest.pop("quantization"),
            "its manifest has no 'quantization': published by an older version",
        ),
        (
            lambda manifest, _: manifest.update(quantization=["int8"]),
            "quantization in its manifest is not what it must be",
        ),
        (lambda manifest, _: manifest.update(source={}), "(no 'model')"),
        (lambda _, config: config.pop("talker_config"), "config.json: no talker_config with"),
        (lambda _, config: config.update(talker_config=[]), "config.json: talker_config is [], not a table"),
    ],
)
def test_what_a_manifest_or_a_configuration_lacks_is_named(
    gated_chain: Path,
    message: Callable[..., str],
    command: Callable[..., None],
    change: Callable[[dict, dict], object],
    why: str,
) -> None:
    folder = _folder("projection")
    manifest, config = artifact.read_manifest(folder), artifact.read_json(folder / "config.json")
    change(manifest, config)
    artifact.write_json(folder / "config.json", config)
    artifact.write_json(folder / artifact.MANIFEST, manifest)
    reseal(folder)

    said = message(command, [str(folder)])

    assert why in said
    assert "running its graphs" not in said


def test_a_manifest_without_limits_is_named(gated_chain: Path, message: Callable[..., str]) -> None:
    folder = _folder("projection")
    manifest = artifact.read_manifest(folder)
    oddities: tuple[object, ...] = ({}, [], None)
    for odd in oddities:
        artifact.write_json(folder / artifact.MANIFEST, manifest | {"parameters": odd})

        assert "its manifest has no limits (parameters, gates); publish it again" in message(run_parity, [str(folder)])


@pytest.mark.parametrize("command", COMMANDS)
def test_a_folder_that_is_not_there_is_named(
    gated_chain: Path, message: Callable[..., str], command: Callable[..., None]
) -> None:
    assert "no/such" in message(command, ["no/such"])
