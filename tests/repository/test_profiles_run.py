"""``python -m profiles.run``: what a build takes is told before it begins, and recorded of every stage."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from conftest import ROOT
from ruamel.yaml import YAML

from omni.params import load
from profiles import run as run_module
from profiles.__main__ import main as copy
from profiles.run import main
from profiles.watch import Watch, commands
from qwen_omni_onnx.common import artifact

MIB = 2**20
STAGE = """
import subprocess, sys, time
held = bytearray(int(sys.argv[1]) * 2**20)
if len(sys.argv) > 2:
    subprocess.run([sys.executable, "-m", "stage", *sys.argv[2:]])
time.sleep(0.5)
"""
DVC = """
import pathlib, subprocess, sys
for arguments in [["-m", "stage", "60", "80"], ["-m", "stage", "20"]]:
    subprocess.run([sys.executable, *arguments])
sys.exit(int(pathlib.Path("code").read_text()))
"""
STAGES = {("-m", "stage", "60", "80"): "export@thinker", ("-m", "stage", "20"): "report", ("-m", "other"): "inputs"}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the profile ``small`` in which another program stands for DVC; the current directory."""
    folder = tmp_path / "copy"
    copy("small", folder)
    monkeypatch.chdir(folder)
    Path("stage.py").write_text(STAGE)
    Path("stand_in.py").write_text(DVC)
    Path("code").write_text("0")
    start = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda command, **options: start([sys.executable, "stand_in.py"]))
    monkeypatch.setattr(run_module, "commands", lambda file, components: STAGES)
    return folder


def test_every_stage_of_the_pipeline_is_known_by_its_command(tmp_path: Path) -> None:
    params = load(ROOT / "params.yaml")

    found = commands(ROOT / "dvc.yaml", {"components": params.components, "composed": params.composed})

    listed = YAML(typ="safe", pure=True).load((ROOT / "dvc.yaml").read_text())["stages"]
    over = {"${components}": len(params.components), "${composed}": len(params.composed)}
    count = sum(over[stage["matrix"]["component"]] if "matrix" in stage else 1 for stage in listed.values())
    assert len(set(found.values())) == count
    assert found["-m", "quantize.compensate", "thinker"] == "compensate@thinker"
    assert found["-m", "validate", "parity", "audio_core"] == "release@audio_core"
    assert found["-m", "inputs"] == "inputs"


def test_memory_of_all_processes_of_a_stage_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("stage.py").write_text(STAGE)
    Path("stand_in.py").write_text(DVC)
    Path("code").write_text("0")
    began: list[str] = []
    watch = Watch(STAGES, began.append)

    with subprocess.Popen([sys.executable, "stand_in.py"]) as process:
        while process.poll() is None:
            watch.look(psutil.Process(process.pid))
            time.sleep(0.02)

    assert began == ["export@thinker", "report"]
    large, little = watch.ran["export@thinker"], watch.ran["report"]
    assert 140 * MIB < large.peak_bytes < 400 * MIB, "both processes"
    assert 20 * MIB < little.peak_bytes < 140 * MIB
    assert large.seconds > 0.9, "one after the other"
    assert little.seconds > 0.4


def test_a_run_is_recorded_and_goes_on(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    earlier = {"seconds": 120.0, "peak_bytes": 3 * 10**9}
    artifact.write_json(run_module.RECORD, {"gigaflops": 1.0, "stages": {"inputs": earlier}})
    (place / "models/inputs").mkdir(parents=True)
    (place / "models/inputs/array").write_bytes(bytes(20_000_000))

    main()

    recorded = artifact.read_json(run_module.RECORD)
    assert set(recorded["stages"]) == {"export@thinker", "report", "inputs"}
    assert recorded["stages"]["inputs"] == earlier
    assert recorded["stages"]["export@thinker"]["peak_bytes"] > 140 * MIB
    assert recorded["machine"]["cores"] >= 1
    said = capsys.readouterr().out
    assert "[2/3] export@thinker: 0 min so far" in said, "one had run before"
    (row,) = [line for line in said.splitlines() if line.startswith("│ inputs")]
    assert re.findall(r"\d+\.\d+", row) == ["2.0", "3.0", "0.02"], "minutes, GB of memory, GB written"


def test_what_fails_is_told_and_recorded(place: Path, message: Callable[..., str]) -> None:
    Path("code").write_text("7")

    assert message(main) == "dvc repro ended with exit code 7; when that is mended, this command goes on from here"
    assert set(artifact.read_json(run_module.RECORD)["stages"]) == {"export@thinker", "report"}


def test_a_disk_that_is_too_full_is_told_before_anything_is_written(
    place: Path, message: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module.psutil, "disk_usage", lambda path: SimpleNamespace(free=1000))

    said = message(main)

    assert said.startswith(f"{place}: a build of 0.0 GB lacks 0.0 GB of disk; free them, or build on another disk")
    assert not (place / "models").exists()
    (place / "models").mkdir()
    with (place / "models/held").open("wb") as held:
        held.truncate(10**9)
    main()


def test_what_a_build_takes_is_told_without_building(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copy("full", tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    monkeypatch.setattr(run_module.psutil, "disk_usage", lambda path: SimpleNamespace(free=10**12))
    artifact.write_json(tmp_path / "full.json", {"gigaflops": 100.0, "stages": {"report": {"seconds": 7200.0}}})
    monkeypatch.setattr(run_module, "HERE", tmp_path)
    monkeypatch.setattr(run_module, "_gigaflops", lambda: 50.0)

    main(dry_run=True)

    said = capsys.readouterr().out
    assert "│ models/source           │ 21.0 │" in said
    assert "about 4.0 hours" in said
    total = float(said.rpartition("disk: ")[2].split()[0])
    assert 60 < total <= 75, "the promise"
    assert not Path("models").exists()


def test_a_cache_that_is_shared_counts_as_disk(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(dry_run=True)
    alone = capsys.readouterr().out
    switched = Path("dvc.yaml").read_text().replace("&shared {cache: false", "&shared {cache: true")
    Path("dvc.yaml").write_text(switched)

    main(dry_run=True)

    assert ".dvc/cache" not in alone
    assert ".dvc/cache" in capsys.readouterr().out


def test_what_others_have_built_is_fetched_where_that_is_asked_for(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, stand_in = [], subprocess.Popen

    def start(command: list[str]) -> subprocess.Popen[bytes]:
        asked.append(command[2:])
        return stand_in(command)

    monkeypatch.setattr(subprocess, "Popen", start)

    main()
    main(pull=True)

    assert asked == [["dvc", "repro", "--keep-going"], ["dvc", "repro", "--keep-going", "--pull"]]


def test_the_record_of_another_profile_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy("small", tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    artifact.write_json(tmp_path / "full.json", {"gigaflops": 100.0, "stages": {"report": {"seconds": 7200.0}}})
    monkeypatch.setattr(run_module, "HERE", tmp_path)

    assert run_module._expected(50.0, {"report"}) == {}


def test_a_source_is_named_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, message: Callable[..., str]
) -> None:
    copy("full", tmp_path / "copy", source="hub")
    assert load(tmp_path / "copy/params.yaml").model.source == "hub"
    monkeypatch.chdir(tmp_path)
    Path("checkpoint").mkdir()
    copy("full", tmp_path / "copy", source="checkpoint")
    assert load(tmp_path / "copy/params.yaml").model.folder == tmp_path / "checkpoint"
    said = message(copy, "full", tmp_path / "copy", source="nowhere")
    assert said == "--source 'nowhere': hub, synthetic, or a folder that is there"


def test_elsewhere_it_says_where_to_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, message: Callable[..., str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message(main) == "dvc.yaml: missing; run this in a folder that python -m profiles made"
