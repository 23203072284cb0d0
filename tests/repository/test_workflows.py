"""The workflows of GitHub and the jobs of GitLab: pinned, with least permissions, and with commands that there are."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from parsers import parse_make, parse_module
from ruamel.yaml import YAML

WORKFLOWS = sorted((ROOT / ".github/workflows").iterdir())
GITLAB = ROOT / "docs/gitlab-ci.yml"
RUN = ROOT / ".ci/run"
# Programs and words of the shell that are not this project's.
OTHERS = {"cd", "echo", "exit", "export", "fi", "if", "mkdir", "read", "rm", "source", "tar"}
_PINNED = re.compile(r"uses: ([\w-]+/[\w-]+)@([0-9a-f]{40}) # v\d+\.\d+\.\d+$", re.M)
_PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def read(path: Path) -> dict[str, Any]:
    return YAML(typ="safe", pure=True).load(path.read_text())


def jobs() -> dict[str, dict[str, Any]]:
    """Every job of GitHub, by its file's stem and its name."""
    return {f"{path.stem} {name}": job for path in WORKFLOWS for name, job in read(path)["jobs"].items()}


def scripts() -> list[str]:
    """What each step of GitHub runs, and each job of GitLab."""
    github = [step["run"] for job in jobs().values() for step in job["steps"] if "run" in step]
    return [*github, *("\n".join(job["script"]) for job in read(GITLAB).values() if "script" in job)]


def commands() -> list[str]:
    """Every line of every script."""
    return sorted({line.strip() for script in scripts() for line in script.splitlines()})


def parts(lines: list[str]) -> list[str]:
    """Parts of ``.ci/run`` that are called."""
    return sorted(part for line in lines if line.startswith(".ci/run ") for part in line.split()[1:])


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_every_action_is_pinned_by_its_commit_and_says_its_version(workflow: Path) -> None:
    lines = [line.strip().removeprefix("- ") for line in workflow.read_text().splitlines()]

    used = [line for line in lines if line.startswith("uses:")]
    assert used
    assert [line for line in used if not _PINNED.match(line)] == []


def test_an_action_has_one_commit_everywhere() -> None:
    found = {match.groups() for path in WORKFLOWS for match in _PINNED.finditer(path.read_text())}

    assert len({action for action, _ in found}) == len(found)


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_has_no_permission_and_each_job_says_its_own(workflow: Path) -> None:
    content = read(workflow)

    assert content["permissions"] == {}
    assert [name for name, job in content["jobs"].items() if "permissions" not in job] == []


def test_only_the_job_that_publishes_writes_anything_or_has_an_identity() -> None:
    writing = {name: job["permissions"] for name, job in jobs().items() if "write" in job["permissions"].values()}

    assert writing == {"publish publish": {"contents": "read", "id-token": "write", "attestations": "write"}}
    assert [name for name, job in read(GITLAB).items() if "id_tokens" in job] == ["publish"]


def test_what_publishes_waits_for_an_approval_and_shares_no_cache() -> None:
    publish = ROOT / ".github/workflows/publish.yml"

    assert jobs()["publish publish"]["environment"] == "release"
    assert "cache:" not in publish.read_text()
    assert "pull_request" not in read(publish)["on"]


@pytest.mark.parametrize("script", scripts())
def test_a_script_is_one_that_bash_takes(script: str) -> None:
    subprocess.run(["bash", "-n", "-c", script], check=True)


@pytest.mark.filterwarnings("ignore:.* found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize("command", commands())
def test_a_command_is_one_that_its_parser_takes(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program, *arguments = shlex.split(command)
    if program == "qwen-omni-onnx":
        parse_module("qwen_omni_onnx", arguments, monkeypatch)
    elif program == "make":
        parse_make(arguments)
    elif program == ".ci/run":
        assert set(arguments) <= set(known_parts())
    elif program == "python" and arguments[:2] == ["-m", "pip"]:
        extras = re.findall(r"\[([a-z,]+)\]", command)
        assert set(",".join(extras).split(",")) - {""} <= set(_PROJECT["optional-dependencies"])
    elif program == "python" and arguments[0] == "-m":
        parse_module(arguments[1], arguments[2:], monkeypatch)
    elif program == "python":
        compile(arguments[1], command, "exec")
    else:
        assert program in OTHERS or re.match(r"\w+=", program)


def known_parts() -> list[str]:
    """Parts that ``.ci/run`` lists where it is given one that there is not."""
    said = subprocess.run([RUN, "nonsense"], capture_output=True, text=True, check=False)
    assert said.returncode == 2
    return said.stderr.rpartition(":")[2].split()


def test_each_part_of_the_script_is_called_once_by_github_and_once_by_gitlab() -> None:
    github = [
        step["run"] for name, job in jobs().items() if name.startswith("ci ") for step in job["steps"] if "run" in step
    ]
    gitlab = [line for job in read(GITLAB).values() if "script" in job for line in job["script"]]

    assert parts(github) == parts(gitlab) == sorted(known_parts())


def test_tests_run_on_every_python_and_both_processors() -> None:
    minors = [f"3.{minor}" for minor in range(11, 15)]

    assert jobs()["ci test"]["strategy"]["matrix"] == {"runner": ["ubuntu-24.04", "ubuntu-24.04-arm"], "python": minors}
    assert read(GITLAB)["test"]["parallel"]["matrix"][0]["PYTHON"] == minors
    assert _PROJECT["requires-python"] == f">={minors[0]}"


def test_without_parts_the_script_runs_all_in_its_order(tmp_path: Path) -> None:
    called = in_a_copy(tmp_path, [])

    assert called == ["test", "repro", "repro", "test-browser", "small-3b", "test-cluster", "trained"]


def test_with_parts_the_script_runs_these_alone(tmp_path: Path) -> None:
    assert in_a_copy(tmp_path, ["trained", "tiny"]) == ["trained", "small-3b"]


def test_no_part_runs_where_one_is_unknown(tmp_path: Path) -> None:
    assert in_a_copy(tmp_path, ["trained", "nonsense"], returns=2) == []


def in_a_copy(folder: Path, given: list[str], returns: int = 0) -> list[str]:
    """Run a copy of ``.ci/run`` with programs that only note what they are given; return what ``make`` is given."""
    programs = folder / "programs"
    log = folder / "make.txt"
    (folder / ".ci").mkdir()
    for place in ("build/small-3b", "models/published/encoder/x", ".venv/bin"):
        (folder / place).mkdir(parents=True)
    (folder / "models/published/encoder/x/SHA256SUMS").write_text(f"{'0' * 64}  none\n")
    programs.mkdir()
    made = {
        "make": f'echo "$1" >> {shlex.quote(str(log))}; echo "Data and pipelines are up to date."',
        "sha256sum": ":",
    }
    nothing = "#!/bin/sh\n"
    (folder / ".venv/bin/python").write_text(nothing)
    runtime = "".join(f'printf "#!/bin/sh\\n" > "$3/bin/{name}"\n' for name in ("pip", "python", "qwen-omni-onnx"))
    made["python3"] = f'mkdir -p "$3/bin"\n{runtime}chmod +x "$3"/bin/*'
    for name, does in made.items():
        (programs / name).write_text(f"{nothing}{does}\n")
    for path in [*programs.iterdir(), folder / ".venv/bin/python"]:
        path.chmod(0o755)
    # A browser is found, so that nothing is installed.
    (folder / ".ci/run").write_text(RUN.read_text().replace("/usr/bin/chromium", shlex.quote(str(programs / "make"))))
    log.touch()

    environment = {**os.environ, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", folder / ".ci/run", *given], env=environment, capture_output=True, text=True, check=False
    )

    assert done.returncode == returns, done.stderr
    return log.read_text().split()


def test_what_the_build_hands_on_is_enough_to_publish(
    gated_chain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from publish.__main__ import publish

    (pack,) = (step["run"] for step in jobs()["publish build"]["steps"] if "build.tar" in step.get("run", ""))
    (unpack,) = (step["run"] for step in jobs()["publish publish"]["steps"] if "build.tar" in step.get("run", ""))
    one, other = tmp_path / "one", tmp_path / "other"
    (one / "build").mkdir(parents=True)
    other.mkdir()
    (one / "build/full").symlink_to(gated_chain, target_is_directory=True)
    published = gated_chain / "models/published"
    names = {path.relative_to(published) for path in published.rglob("*") if path.is_file()}

    subprocess.run(["bash", "-ec", pack], cwd=one, check=True)
    (one / "build.tar").rename(other / "build.tar")
    subprocess.run(["bash", "-ec", unpack], cwd=other, check=True)
    monkeypatch.chdir(other / "build/full")
    publish(to=str(tmp_path / "release"))

    assert not Path("models/source").exists()
    assert {
        path.relative_to(tmp_path / "release") for path in tmp_path.glob("release/*/*/**/*") if path.is_file()
    } == names


def lint() -> list[str]:
    """Linters of workflows, as ``make lint`` calls them."""
    recipe = re.search(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.M)
    assert recipe
    return [line.strip() for line in recipe[1].splitlines() if re.match(r"\t(zizmor|check-jsonschema) ", line)]


def refuses(folder: Path, line: str) -> bool:
    """Return whether a linter, called by this line of ``make lint``, refuses what is in a folder."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    return bool(
        subprocess.run(shlex.split(line), cwd=folder, env=environment, capture_output=True, check=False).returncode
    )


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / ".github", tmp_path / ".github")
    (tmp_path / "docs").mkdir()
    shutil.copyfile(GITLAB, tmp_path / "docs/gitlab-ci.yml")
    return tmp_path


def test_the_linters_take_every_workflow_as_it_is(copied: Path) -> None:
    assert [line for line in lint() if refuses(copied, line)] == []
    assert all(str(path.relative_to(ROOT)) in "\n".join(lint()) for path in [*WORKFLOWS, GITLAB])


@pytest.mark.parametrize(
    ("file", "good", "bad", "linter"),
    [
        (".github/workflows/ci.yml", r"checkout@[0-9a-f]{40} # v6.0.2", "checkout@v6", "zizmor"),
        (".github/workflows/ci.yml", r"persist-credentials: false", "fetch-depth: 1", "zizmor"),
        (".github/workflows/ci.yml", r"^permissions: \{\}", "permissions: write-all", "zizmor"),
        (".github/workflows/publish.yml", r'pull "\$TARGET"', "pull ${{ inputs.target }}", "zizmor"),
        (".github/workflows/publish.yml", r'push:\n    tags: \["v\*"\]', "pull_request_target:", "zizmor"),
        (".github/workflows/publish.yml", r'(python-version: "3.11")', r"\1\n          cache: pip", "zizmor"),
        (".github/workflows/publish.yml", r"id-token: write", "id-token: sign", "check-jsonschema"),
        (".github/workflows/ci.yml", r"runs-on: ubuntu", "run-on: ubuntu", "check-jsonschema"),
        ("docs/gitlab-ci.yml", r"aud: sigstore", "audience: sigstore", "check-jsonschema"),
    ],
)
def test_a_linter_refuses_a_careless_workflow(copied: Path, file: str, good: str, bad: str, linter: str) -> None:
    text, count = re.subn(good, bad, (copied / file).read_text(), count=1, flags=re.M)
    (copied / file).write_text(text)

    assert count == 1
    assert any(refuses(copied, line) for line in lint() if line.startswith(linter))
