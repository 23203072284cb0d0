"""Profiles: other parameters, built in a copy of the repository."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import CHAIN, COMPOSED, ROOT
from ruamel.yaml import YAML

from omni.params import load
from omni.program import COPY, program
from profiles import __main__ as profiles
from profiles.__main__ import COPIED, HERE, laid_over, main, with_profile

load_yaml = YAML(typ="safe", pure=True).load
_LOCAL = b"['remote \"storage\"']\n    secret_access_key = a:b=c\n"
PROFILES = sorted(path.stem for path in HERE.glob("*.yaml"))


def test_tables_are_joined_and_all_else_is_replaced() -> None:
    params: dict[str, Any] = {"a": {"b": 1, "c": [1, 2], "quantize": {"bigvgan": {"nodes": {"fast": 3}}}}, "d": 4}

    assert laid_over(params, {"a": {"c": [9], "quantize": {"bigvgan": {"nodes": {"other": 1}}}}}) == {
        "a": {"b": 1, "c": [9], "quantize": {"bigvgan": {"nodes": {"other": 1}}}}, "d": 4
    }  # fmt: skip
    assert params["a"]["c"] == [1, 2]
    assert laid_over(params, {"a": {"quantize": {}}})["a"]["quantize"] == {}


def test_what_a_profile_misspells_is_told(message: Callable[..., str]) -> None:
    assert message(laid_over, {"a": {"b": 1}}, {"a": {"x": 1}}) == "profile: a.x: params.yaml has none"
    assert message(with_profile, {}, "large") == f"no profile 'large'; there are: {', '.join(PROFILES)}"


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_gives_parameters_that_the_pipeline_takes(name: str, tmp_path: Path) -> None:
    main(name, tmp_path / "copy")

    params, usual = load(tmp_path / "copy/params.yaml"), load(ROOT / "params.yaml")
    assert params.components == [part for part in usual.components if part in params.components]


def test_a_profile_may_change_what_the_one_that_it_extends_leaves_alone() -> None:
    params = load_yaml(ROOT / "params.yaml")

    full, speech = with_profile(params, "full"), with_profile(params, "speech")

    assert speech["model"] == full["model"] == {**params["model"], "layers": "full"}
    assert speech["frontend"]["cases"] != full["frontend"]["cases"] == params["frontend"]["cases"]


def test_the_report_of_a_profile_misses_nothing_of_components_that_it_does_not_build(tmp_path: Path) -> None:
    main("trained", tmp_path / "copy")

    unbuilt = {*CHAIN, *COMPOSED} - set(load(tmp_path / "copy/params.yaml").components)
    assert {path.name for path in (tmp_path / "copy/reports").iterdir()} == unbuilt


def test_no_profile_names_a_place_of_this_machine() -> None:
    for path in (*HERE.rglob("*.yaml"), *HERE.rglob("*.txt")):
        assert not re.search(r"(^|[\s:\"'])/\w|://", path.read_text()), path


def test_a_copy_is_a_repository_of_its_own_and_only_what_changed_is_copied_again(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    main("small", copy)
    (copy / "reports/encoder").mkdir(parents=True)
    (copy / "reports/encoder/gate.json").write_text("of this build")
    before = (copy / "dvc.yaml").stat().st_mtime_ns
    (copy / "src/qwen_omni_onnx/common/metrics.py").write_text("changed")

    main("small", copy)

    assert not (copy / ".git").exists()
    assert (copy / "dvc.yaml").stat().st_mtime_ns == before
    assert (copy / "src/qwen_omni_onnx/common/metrics.py").read_bytes() == (
        ROOT / "src/qwen_omni_onnx/common/metrics.py"
    ).read_bytes()
    assert (copy / "reports/encoder/gate.json").read_text() == "of this build"
    assert load_yaml(copy / "params.yaml")["model"]["widths"] == "tiny"
    assert load_yaml(ROOT / "params.yaml")["model"]["widths"] == "7b"


def test_a_copy_has_the_remote_and_the_credentials_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, message: Callable[..., str]
) -> None:
    here, copy = tmp_path / "here", tmp_path / "copy"
    for name in (".dvc/config.local", "params.yaml"):
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_bytes((ROOT / name).read_bytes() if name == "params.yaml" else _LOCAL)
    shutil.copytree(HERE, here / "profiles")
    (here / ".dvc/config").write_text("['remote \"storage\"']\n    url = s3://bucket/path\n")
    monkeypatch.setattr(profiles, "HERE", here / "profiles")

    main("small", copy)

    done = subprocess.run(
        [sys.executable, "-m", "dvc", "config", "--list"], cwd=copy, capture_output=True, text=True, check=True
    )
    said = {"remote.storage.url=s3://bucket/path", "remote.storage.secret_access_key=a:b=c", "core.no_scm=true"}
    assert said <= set(done.stdout.split())
    assert (copy / ".dvc/config.local").stat().st_mode & 0o777 == 0o600
    (here / ".dvc/config.local").write_text("secret")
    assert f"{here / '.dvc/config.local'}: not settings of DVC" in message(main, "small", copy)


def test_modules_that_are_gone_are_gone_from_an_earlier_copy_too(tmp_path: Path) -> None:
    main("small", tmp_path)
    gone, own = tmp_path / "export/encoder/__init__.py", tmp_path / "export/notes.txt"
    gone.parent.mkdir()
    gone.write_text("EXPORTER = None")
    own.write_text("a user's")
    (tmp_path / "models").mkdir()

    main("small", tmp_path)

    assert not gone.exists()
    assert own.is_file()
    assert (tmp_path / "models").is_dir()


def test_what_is_copied_is_all_that_a_stage_depends_on() -> None:
    stages = load_yaml(ROOT / "dvc.yaml")["stages"].values()
    needed = {Path(dependency) for stage in stages for dependency in stage["deps"]}

    for path in needed:
        assert path.parts[0] in ("models", "reports") or any(path.is_relative_to(name) for name in COPIED), path


def test_the_lanes_hold_every_component_once() -> None:
    lanes = re.findall(r"^LANE_\d := (.+)$", (HERE / "lanes.mk").read_text(), re.M)

    assert len(lanes) == 2
    assert sorted(" ".join(lanes).split()) == sorted(CHAIN)


def test_a_copy_notes_which_program_it_is_a_copy_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    main("small", tmp_path / "copy")
    monkeypatch.chdir(ROOT)
    here = program()
    monkeypatch.chdir(tmp_path / "copy")
    assert program() == here
    COPY.write_text("small\n")  # by an older version
    assert program() == {"commit": None, "modified": None}
