"""Stages that machines share through a DVC remote: the real stage graph, of commands that only note that they ran.

A machine is a clone with a ``python`` of its own, first on the path. It writes what ``dvc.yaml`` says of the stage:
the parameters, and of what a machine measures itself, the machine's name.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
from conftest import COMPOSED, ROOT, write_params
from ruamel.yaml import YAML

from profiles.__main__ import main as copy_profile
from profiles.watch import outputs
from qwen_omni_onnx.common import artifact

BUILT = "encoder"
GIVEN = ("frontend", "projection", "token2wav")  # components that lie there from the start: DVC takes its time a stage
ALL = (*GIVEN, BUILT, "thinker", "talker", *COMPOSED)
OWN = ("snapshot", "latency", "memory", "gate", "publish", "release", "report")  # stages that no machine takes over
SHARED = (
    "pull", "export", "inputs", "reference", "calibrate", "compensate", "quantize", "contract", "parity", "compose",
)  # fmt: skip
OFF, ON = "&shared {cache: false, persist: true}", "&shared {cache: true, persist: false}"
TABLES = ("inputs", "export", "cases", "calibrate", "quantize", "latency", "memory", "gates", "variant")
PYTHON = """#!/bin/sh
echo "$DVC_STAGE" >> ran
while read -r out; do
  case $out in *.*) file=$out ;; *) file=$out/data ;; esac
  mkdir -p "$(dirname "$file")"
  case $DVC_STAGE in {own}) machine=$(cat machine) ;; *) machine= ;; esac
  {{ echo "$out $machine"; cat params.yaml; }} > .beside && mv .beside "$file"
done < "{outs}/$DVC_STAGE"
"""


class Machine:
    """A clone with the switch as it stands there.

    Attributes:
        folder: The clone.
    """

    def __init__(self, folder: Path, tools: Path) -> None:
        self.folder, self._tools = folder, tools
        (folder / "machine").write_text(folder.name)
        for kind in ("onnx", "quantized"):
            for name in GIVEN:
                (folder / "models" / kind / name).mkdir(parents=True)
                (folder / "models" / kind / name / "data").write_text(name)

    def run(self, *command: str) -> str:
        environment = {**os.environ, "PATH": f"{self._tools}{os.pathsep}{os.environ['PATH']}", "SHELL": "/bin/sh"}
        environment["DVC_SITE_CACHE_DIR"] = str(self._tools / self.folder.name)
        done = subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def dvc(self, *arguments: str) -> set[str]:
        """Run DVC; return the stages whose commands it ran."""
        (self.folder / "ran").write_text("")
        self.run(sys.executable, "-m", "dvc", *arguments)
        return set((self.folder / "ran").read_text().split())

    def change(self, table: str) -> None:
        """Change a table of the component that is built."""
        params = YAML(typ="safe", pure=True).load((self.folder / "params.yaml").read_text())
        params[BUILT][table] = "changed"
        write_params(self.folder, params)

    def switch(self, to: str) -> None:
        pipeline = (self.folder / "dvc.yaml").read_text()
        assert pipeline.count("&shared {") == 1
        (self.folder / "dvc.yaml").write_text(re.sub(r"&shared \{.*?\}", to, pipeline))

    def read(self, name: str) -> str:
        return (self.folder / name).read_text()

    def cached(self) -> list[Path]:
        return [path for path in (self.folder / ".dvc/cache").rglob("*") if path.is_file()]


@pytest.fixture
def first(tmp_path: Path, request: pytest.FixtureRequest) -> Machine:
    """A committed repository with a default remote, and the switch as the test has it."""
    folder, tools, switch = tmp_path / "first", tmp_path / "tools", getattr(request, "param", ON)
    for name in (".dvcignore", ".gitignore", ".dvc/config", ".dvc/.gitignore", "dvc.yaml"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / name)
    tables = {name: dict.fromkeys(TABLES if name in (BUILT, *COMPOSED) else TABLES[:1], "as it was") for name in ALL}
    shared = {"components": [BUILT], "composed": list(COMPOSED), "model": {"source": "synthetic"}, "sessions": {}}
    write_params(folder, shared | tables)
    _lay_out_dependencies(folder)
    _write_python(tools, folder / "dvc.yaml")
    (folder / ".gitignore").open("a").write("/machine\n/ran\n")
    machine = Machine(folder, tools)
    machine.switch(switch)
    machine.run("git", "init", "--quiet")
    machine.dvc("remote", "add", "--default", "storage", str(tmp_path / "remote"))
    machine.run("git", "add", ".")
    author = ("-c", "user.name=one", "-c", "user.email=one@example.org")
    machine.run("git", *author, "commit", "--quiet", "--message", "all")
    return machine


def _lay_out_dependencies(folder: Path) -> None:
    """Write a file for each that the stages depend on, and what Git keeps of earlier reports."""
    stages = YAML(typ="safe", pure=True).load((folder / "dvc.yaml").read_text())["stages"].values()
    named = {dep.replace("${item.component}", name) for stage in stages for dep in stage["deps"] for name in ALL}
    files = [Path(name) for name in named if not name.startswith(("models/", "reports/"))]
    for path in files:
        place = folder / path if path.suffix else folder / path / "code.py"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(str(path))
    for name in ALL:
        for table in ("sqnr.csv", "latency.csv", "summary.json"):
            place = folder / "reports" / name / table
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text("of an earlier build")


def _write_python(tools: Path, pipeline: Path) -> None:
    """Write the program that stands for every stage's, and what each of them has to write."""
    outs = tools / "outs"
    outs.mkdir(parents=True)
    for stage, paths in outputs(pipeline, {"components": [BUILT], "composed": list(COMPOSED)}).items():
        name, _, component = stage.partition("@")
        metrics = [Path("reports", component, "summary.json")] if name in ("gate", "release") else []
        folders = [path / each for path in paths for each in (*GIVEN, BUILT)] if name == "inputs" else paths
        (outs / stage).write_text("".join(f"{path}\n" for path in [*folders, *metrics]))
    own = "|".join(f"{name}*" for name in OWN if name != "snapshot")  # whose link is the same everywhere
    (tools / "python").write_text(PYTHON.format(own=own, outs=outs))
    (tools / "python").chmod(0o755)


def clone(machine: Machine, name: str) -> Machine:
    folder = machine.folder.with_name(name)
    machine.run("git", "clone", "--quiet", str(machine.folder), str(folder))
    return Machine(folder, machine._tools)


def of(stages: Iterable[str], names: Iterable[str]) -> set[str]:
    """Names of stages, as DVC has them, whose part before the @ is given."""
    return {stage for stage in stages if stage.partition("@")[0] in names}


def test_a_second_machine_builds_nothing_that_was_shared_and_only_what_a_changed_parameter_changes(
    first: Machine,
) -> None:
    own = {"snapshot", *(f"{stage}@{BUILT}" for stage in OWN[1:5]), f"release@{COMPOSED[0]}", "report"}
    ran = first.dvc("repro", f"contract@{BUILT}", f"parity@{BUILT}", f"latency@{BUILT}", f"compose@{COMPOSED[0]}")
    first.dvc("push", "--run-cache")
    second = clone(first, "second")

    assert of(ran, SHARED) | {"snapshot", f"latency@{BUILT}"} == ran
    assert len(of(ran, SHARED)) == len(SHARED)
    assert second.dvc("repro", "--pull") == own
    for name in ("quantized/encoder/data", "composed/onnx/audio_core/data", "inputs/encoder/data"):
        assert second.read(f"models/{name}") == first.read(f"models/{name}")
    for name in ("contract", "parity", "export"):
        assert second.read(f"reports/{BUILT}/{name}.json") == first.read(f"reports/{BUILT}/{name}.json")
    for machine in (first, second):
        assert machine.read(f"reports/{BUILT}/latency.json").splitlines()[0].endswith(machine.folder.name)
    assert second.run("git", "ls-files", "--others", "--exclude-standard") == "dvc.lock\n"

    second.change("quantize")

    assert second.dvc("repro", "--pull") == own - {"snapshot"} | {
        *(f"{stage}@{BUILT}" for stage in ("compensate", "quantize", "contract", "parity")),
        f"compose@{COMPOSED[0]}",
    }


@pytest.mark.parametrize("first", [OFF], indirect=True)
def test_nothing_is_cached_or_shared_while_the_switch_is_off(first: Machine) -> None:
    first.dvc("repro", f"contract@{BUILT}")
    first.dvc("push", "--run-cache")

    assert first.cached() == []
    assert not (first.folder.parent / "remote").exists()


@pytest.mark.slow
def test_the_first_machine_takes_over_what_the_second_has_changed(first: Machine) -> None:
    own = of(first.dvc("repro"), OWN)
    first.dvc("push", "--run-cache")
    second = clone(first, "second")
    second.change("quantize")
    second.dvc("repro", "--pull")
    second.dvc("push", "--run-cache")

    first.change("quantize")

    assert first.dvc("repro", "--pull") == own - {"snapshot"}


@pytest.mark.slow
@pytest.mark.parametrize("first", [OFF], indirect=True)
def test_what_was_built_before_can_be_shared_later(first: Machine) -> None:
    ran = first.dvc("repro")
    first.switch(ON)
    first.dvc("commit", "--force", *SHARED)  # as docs/sharing.md says
    first.dvc("push", "--run-cache")
    second = clone(first, "second")
    second.switch(ON)

    assert second.dvc("repro", "--pull") == of(ran, OWN)
    assert first.dvc("repro") == set()


def test_a_stage_is_shared_as_a_whole_or_not_at_all() -> None:
    """DVC keeps no run of a stage of which one output is not cached, and caches nothing that Git keeps."""
    stages = YAML(typ="safe", pure=True).load((ROOT / "dvc.yaml").read_text().replace(OFF, ON))["stages"]
    kept = {"summary.json", "sqnr.csv", "latency.csv"}

    for stage, block in stages.items():
        outs = {Path(path).name: flags for out in block["outs"] for path, flags in out.items()}
        assert {flags["cache"] for flags in outs.values()} == {stage in SHARED}, stage
        if stage in SHARED:
            assert not kept & outs.keys(), stage
            assert not any(flags.get("persist") for flags in outs.values()), stage


def test_every_stage_is_shared_or_a_machine_s_own() -> None:
    stages = YAML(typ="safe", pure=True).load((ROOT / "dvc.yaml").read_text())["stages"]

    assert sorted([*SHARED, *OWN]) == sorted(stages)


def test_artifacts_are_no_links_into_the_cache() -> None:
    """ONNX refuses weights in a file of several names, and a stage refuses symbolic links."""
    assert re.findall(r"type = (.*)", (ROOT / ".dvc/config").read_text()) == ['"reflink,copy"']


@pytest.mark.slow
def test_a_copy_of_a_profile_takes_over_what_another_copy_has_built(tmp_path: Path) -> None:
    first, second = (copied(tmp_path, name) for name in ("first", "second"))

    ran = running(first, "repro")
    running(first, "push", "--run-cache")
    there = running(second, "repro", "--pull")

    assert of(there, SHARED) == set()
    assert there == of(ran, OWN)
    assert {"latency@encoder", "memory@encoder", "publish@encoder"} <= there
    for kind in ("source", "onnx", "reference", "quantized"):
        artifact.check(second / "models" / kind / "encoder")
    assert running(second, "repro", "--pull") == set()


def copied(folder: Path, name: str) -> Path:
    """Return a copy of the profile ``small`` of two components, with the switch on and a default remote."""
    copy = folder / name
    copy_profile("small", copy)
    params = YAML(typ="safe", pure=True).load((copy / "params.yaml").read_text())
    for unbuilt in {*params["components"], *params["composed"]} - {"frontend", "encoder"}:
        (copy / "reports" / unbuilt).mkdir(parents=True)
    write_params(copy, params | {"components": ["frontend", "encoder"], "composed": []})
    (copy / "dvc.yaml").write_text((copy / "dvc.yaml").read_text().replace(OFF, ON))
    running(copy, "remote", "add", "--default", "storage", str(folder / "remote"))
    return copy


def running(copy: Path, *arguments: str) -> set[str]:
    """Run DVC in a copy; return the stages of which it says that it runs their commands."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    environment["PYTHONPATH"] = f"{copy}{os.pathsep}{copy}/src"  # the copy's own program
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *arguments],
        cwd=copy, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return set(re.findall(r"^Running stage '(.+)':$", done.stdout, re.M))
