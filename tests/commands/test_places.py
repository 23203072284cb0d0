"""Where the repository may lie and who may build in it: odd paths, archives without Git, users without a home."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from omni.program import program
from profiles.__main__ import main as copy_profile

ODD = ["a b", "größe", "it's", 'say "x"', "$HOME", "#1", "100%", "a&b;c", "back\\slash", "(x) [y] {z}", "x" * 140]


def script(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture(params=ODD)
def odd(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    folder = tmp_path / request.param / "repository"
    folder.mkdir(parents=True)
    return folder


def installed(folder: Path) -> Path:
    """Lay down the Makefile with an environment that is ready, whose Python notes what it is asked to run."""
    shutil.copyfile(ROOT / "Makefile", folder / "Makefile")
    for name in ("pyproject.toml", "constraints.txt", ".venv/bin/pip", ".venv/.build", ".venv/.test"):
        script(folder / name, "")
    script(folder / ".venv/bin/python", 'echo "$* in $PWD for $LOGNAME at $HOME" >> "${0%/.venv/*}/asked"')
    return folder


def make(folder: Path, *targets: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {"PATH": os.environ["PATH"], "HOME": "/home", "LOGNAME": "me"} | environment
    return subprocess.run(
        ["make", *targets], cwd=folder, env=inherited, capture_output=True, text=True, timeout=60, check=False
    )


def asked(folder: Path) -> list[str]:
    return (folder / "asked").read_text().splitlines()


def test_make_runs_the_environment_s_own_python_wherever_it_lies(odd: Path) -> None:
    installed(odd)

    done = make(odd, "repro")

    assert done.returncode == 0, done.stderr
    assert asked(odd) == [f"-m dvc repro in {odd} for me at /home"]


def test_what_is_shared_is_fetched_built_and_pushed(tmp_path: Path) -> None:
    installed(tmp_path)
    (tmp_path / "dvc.yaml").write_text("  - shared: &shared {cache: true, persist: false}\n")

    done = make(tmp_path, "shared")

    assert done.returncode == 0, done.stderr
    words = [line.partition(" in ")[0] for line in asked(tmp_path)]
    assert words == ["-m dvc remote default", "-m dvc repro --pull", "-m dvc push --run-cache"]


def test_what_cannot_be_shared_is_told_before_anything_is_built(tmp_path: Path) -> None:
    installed(tmp_path)
    shutil.copyfile(ROOT / "dvc.yaml", tmp_path / "dvc.yaml")

    off = make(tmp_path, "shared")
    (tmp_path / "dvc.yaml").write_text("  - shared: &shared {cache: true, persist: false}\n")
    script(tmp_path / ".venv/bin/python", 'echo "$*" >> asked; exit 1')
    alone = make(tmp_path, "shared")

    assert (off.returncode, alone.returncode) == (2, 2)
    said = "error: dvc.yaml shares nothing; set shared: &shared {cache: true, persist: false}"
    assert off.stderr.splitlines()[0] == said
    assert alone.stderr.splitlines()[0] == "error: DVC has no default remote; dvc remote add --default NAME URL"
    assert asked(tmp_path) == ["-m dvc remote default"]


@pytest.mark.parametrize("name", ['größe it\'s $HOME #1 100% "x" &;', pytest.param("x" * 140, marks=pytest.mark.slow)])
def test_a_copy_is_made_and_built_in_wherever_it_lies(tmp_path: Path, name: str) -> None:
    odd = tmp_path / name
    copy_profile("small", odd)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"}

    def run(*command: str, folder: Path) -> str:
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run(sys.executable, "-m", "profiles", "small", "build/small", folder=odd)
    planned = run("make", "--dry-run", "--file=profiles/lanes.mk", folder=odd / "build/small")
    run(sys.executable, "-m", "dvc", "repro", "pull@frontend", folder=odd / "build/small")

    assert "--single-item snapshot" in planned
    assert (odd / "build/small/models/source/frontend/config.json").is_file()


def test_a_colon_in_the_path_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "a:b").mkdir()

    done = make(installed(tmp_path / "a:b"), "repro")

    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "a colon separates folders in PATH; move the repository" in done.stderr


@pytest.mark.parametrize("kind", ["archive", "clone"])
def test_an_archive_is_told_to_dvc_once_it_is_installed(tmp_path: Path, kind: str) -> None:
    installed(tmp_path)
    (tmp_path / ".venv/.build").unlink()
    if kind == "clone":
        (tmp_path / ".git").touch()  # a file, as in a worktree and in a submodule

    done = make(tmp_path, "repro")

    assert done.returncode == 0, done.stderr
    said = [line.partition(" in ")[0] for line in asked(tmp_path)][1:]  # the first is pip
    assert said == ["-m dvc config --local core.no_scm true"] * (kind == "archive") + ["-m dvc repro"]


@pytest.mark.parametrize("home", ["", "here"])
def test_a_user_without_a_home_and_a_name_is_given_both(tmp_path: Path, home: str) -> None:
    installed(tmp_path)
    script(tmp_path / "bin/id", 'test "$1" = -u && echo 12345')

    make(tmp_path, "repro", HOME=home, LOGNAME="", PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}")

    assert asked(tmp_path) == [f"-m dvc repro in {tmp_path} for user-12345 at {tmp_path / '.venv'}"]


def test_lanes_stop_where_dvc_lists_no_stages(tmp_path: Path) -> None:
    """Without names, each lane would build everything, both at once."""
    shutil.copyfile(ROOT / "profiles/lanes.mk", tmp_path / "Makefile")
    script(tmp_path / "bin/python", "exit 1")

    done = make(tmp_path, PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}")

    assert done.returncode == 2
    assert "DVC lists no stages" in done.stderr


def test_clean_removes_artifacts_and_leaves_the_page_and_the_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "repository"
    folder.mkdir()
    installed(folder)
    script(tmp_path / "checkpoint/model.safetensors", "")
    for name in ("README.md", "onnx/encoder/a.onnx", ".partial/a.onnx"):
        script(folder / "models" / name, "")
    (folder / "models/snapshot").symlink_to(tmp_path / "checkpoint")

    done = make(folder, "clean")

    assert done.returncode == 0, done.stderr
    assert [path.name for path in (folder / "models").iterdir()] == ["README.md"]
    assert (tmp_path / "checkpoint/model.safetensors").is_file()
    assert not (folder / ".venv").exists()


def test_clean_needs_no_models(tmp_path: Path) -> None:
    assert make(installed(tmp_path), "clean").returncode == 0


def test_git_keeps_one_page_of_models_and_nothing_else() -> None:
    def ignored(path: str) -> bool:
        command = ["git", "check-ignore", "--quiet", "--no-index", path]
        return subprocess.run(command, cwd=ROOT, check=False).returncode == 0

    if not (ROOT / ".git").exists():
        pytest.skip("no Git here")
    assert not ignored("models/README.md")
    for path in ("models/onnx/README.md", "models/snapshot", "models/published/a/b/README.md", "models/.partial"):
        assert ignored(path), path


# Which program published


def git(folder: Path, *arguments: str) -> str:
    named = ["-c", "user.name=n", "-c", "user.email=e@e", "-c", "init.defaultBranch=main"]
    done = subprocess.run(["git", *named, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with a commit; the current directory of the test."""
    folder = tmp_path / "clone"
    folder.mkdir()
    git(folder, "init", "--quiet")
    (folder / "file").write_text("1")
    git(folder, "add", "file")
    git(folder, "commit", "--quiet", "-m", "one")
    monkeypatch.chdir(folder)
    return folder


def test_a_clone_says_its_commit_and_whether_it_was_modified(clone: Path) -> None:
    commit = git(clone, "rev-parse", "HEAD")

    assert program() == {"commit": commit, "modified": False}
    (clone / "file").write_text("2")
    assert program() == {"commit": commit, "modified": True}


@pytest.mark.parametrize("kind", ["worktree", "shallow", "submodule"])
def test_other_kinds_of_clones_say_it_too(clone: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    other = clone.parent / "other"
    if kind == "worktree":
        git(clone, "worktree", "add", "--quiet", "--detach", str(other))
    elif kind == "shallow":
        git(clone, "clone", "--quiet", "--depth=1", f"file://{clone}", str(other))
    else:
        git(clone.parent, "init", "--quiet", "outer")
        git(
            clone.parent / "outer", "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(clone), "sub"
        )
        other = clone.parent / "outer/sub"
    monkeypatch.chdir(other)

    assert program() == {"commit": git(clone, "rev-parse", "HEAD"), "modified": False}


@pytest.mark.parametrize("kind", ["archive", "within another repository", "another user's", "no git", "no commit"])
def test_where_git_does_not_say_the_commit_is_unknown(clone: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    if kind == "archive":
        shutil.rmtree(clone / ".git")
    elif kind == "within another repository":
        (clone / "archive").mkdir()
        monkeypatch.chdir(clone / "archive")
    elif kind == "another user's":
        monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    elif kind == "no git":
        monkeypatch.setenv("PATH", "/nowhere")
    else:
        shutil.rmtree(clone / ".git")
        git(clone, "init", "--quiet")

    assert program() == {"commit": None, "modified": None}
