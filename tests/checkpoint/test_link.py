"""The checkpoint's folder, as DVC sees it: other weights in it are pulled, and nothing is done where it is the same."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import snapshots
from conftest import CHAIN, ROOT
from hub_server import FIRST, WEIGHT, checkpoint, tensors
from ruamel.yaml import YAML
from safetensors import safe_open

from components import component
from profiles.__main__ import main as copy_profile
from pull.folder import FolderSnapshot
from pull.link import LINK, link
from pull.plan import config_of, plan
from pull.write import fetch
from qwen_omni_onnx.common import artifact

UP_TO_DATE = "Data and pipelines are up to date."
PULLED = Path("models/source/projection/model.safetensors")


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small copy of the repository beside a checkpoint's folder; the current directory of the test."""
    folder = tmp_path / "build"
    copy_profile("small", folder)
    monkeypatch.chdir(folder)
    return folder


def set_source(source: str) -> None:
    yaml = YAML(typ="safe", pure=True)
    params = yaml.load(Path("params.yaml").read_text())
    params["model"]["source"] = source
    with Path("params.yaml").open("w") as file:
        yaml.dump(params, file)


def lay_down(folder: Path, **changed: object) -> None:
    folder.mkdir(exist_ok=True)
    for name, content in checkpoint(**changed).items():  # type: ignore[arg-type]
        (folder / name).write_bytes(content)


def dvc(*arguments: str, fails: bool = False) -> str:
    environment = {**os.environ, "PYTHONPATH": f"{os.getcwd()}{os.pathsep}{os.getcwd()}/src"}  # the copy's own program
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # as users have it: what is compiled beside the source is none
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *arguments], env=environment, capture_output=True, text=True, check=False
    )
    assert bool(done.returncode) == fails, done.stdout + done.stderr
    return done.stderr if fails else done.stdout


def pulled() -> bytes:
    with safe_open(PULLED, framework="numpy") as file:
        return bytes(file.get_tensor(WEIGHT).tobytes())


def test_dvc_pulls_other_weights_of_the_same_folder_and_nothing_twice(build: Path) -> None:
    weight = tensors()[WEIGHT]
    lay_down(build.parent / "my-tune")
    set_source("../my-tune")

    dvc("repro", "pull@projection")
    first, again = pulled(), dvc("repro", "pull@projection")
    (build.parent / "my-tune/optimizer.bin").write_bytes(b"not what is pulled")
    beside = dvc("repro", "pull@projection")
    lay_down(build.parent / "my-tune", weight=-weight)
    other = dvc("repro", "pull@projection")

    assert (first, pulled()) == (weight.tobytes(), (-weight).tobytes())
    assert UP_TO_DATE in again
    assert UP_TO_DATE in beside
    assert "Running stage 'pull@projection'" in other


def test_a_folder_that_is_gone_is_told_and_what_was_pulled_can_be_kept(build: Path) -> None:
    lay_down(build.parent / "my-tune")
    set_source("../my-tune")
    dvc("repro", "pull@projection")
    (build.parent / "my-tune").rename(build.parent / "away")

    said = dvc("repro", "pull@projection", fails=True)
    LINK.unlink()  # as docs/pipeline.md says
    LINK.mkdir()
    dvc("commit", "--force", "snapshot", "pull@projection")

    assert f"No such file or directory: '{LINK.absolute()}'" in said
    assert UP_TO_DATE in dvc("repro", "pull@projection")


def test_dvc_has_nothing_to_do_a_second_time_where_the_weights_are_made_up(build: Path) -> None:
    dvc("repro", "pull@frontend")

    assert UP_TO_DATE in dvc("repro", "pull@frontend")
    assert artifact.check(LINK)["source"] == "synthetic"


def test_the_link_follows_the_source(build: Path) -> None:
    lay_down(build.parent / "my-tune")
    before = sorted((build.parent / "my-tune").iterdir())
    for source in ("synthetic", "../my-tune", str(build.parent / "my-tune"), "hub", "synthetic"):
        set_source(source)
        link()

        assert LINK.is_symlink() == ("tune" in source)
        assert (LINK / FIRST).exists() == ("tune" in source)
    assert sorted((build.parent / "my-tune").iterdir()) == before


def test_what_is_in_the_way_of_the_link_is_told_and_stays(build: Path, message: Callable[..., str]) -> None:
    lay_down(build / LINK.parent)
    LINK.mkdir()
    (LINK / "download").touch()
    set_source(".")

    assert message(link) == f"{LINK}: in the way of a link to the folder that model.source names; move it"
    assert (LINK / "download").exists()


def test_a_folder_that_is_not_there_is_told(build: Path, message: Callable[..., str]) -> None:
    set_source("../nowhere")

    assert "model.source: ../nowhere: no such folder" in message(link)


def test_dvc_watches_every_file_that_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: set[str] = set()
    for method in ("small_file", "file_bytes", "read"):
        usual = getattr(FolderSnapshot, method)

        def recorded(self: FolderSnapshot, name: str, *rest: object, usual: Callable = usual) -> object:
            read.add(name)
            return usual(self, name, *rest)

        monkeypatch.setattr(FolderSnapshot, method, recorded)
    folder = snapshots.lay_out(tmp_path / "my-tune", snapshots.hub_tensors(tmp_path), snapshots.saved(tmp_path)[1])
    snapshot = FolderSnapshot(folder)
    for name in CHAIN:
        fetch(snapshot, plan(snapshot, component(name), config_of(snapshot, component(name))), tmp_path / name)

    done = subprocess.run(
        [sys.executable, "-m", "dvc", "check-ignore", "--details", *(f"{LINK}/{name}" for name in sorted(read))],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip

    patterns = dict(line.split("\t")[::-1] for line in done.stdout.splitlines())
    assert len(read) > 10
    assert {f"{LINK}/{name}" for name in read} == {path for path, said in patterns.items() if ":!" in said}
