"""The hooks that run before a commit are the linters of ``make lint`` and the commands that write committed files."""

from __future__ import annotations

import re
from typing import Any

import pytest
from conftest import ROOT
from ruamel.yaml import YAML

WRITERS = ["python -m publish.schemas", "python -m benchmarks.readme"]
(REPOSITORY,) = YAML(typ="safe", pure=True).load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
HOOKS: list[dict[str, Any]] = REPOSITORY["hooks"]


def test_the_hooks_run_what_make_lint_runs_and_then_what_writes_committed_files() -> None:
    recipe = re.search(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.M)

    assert recipe
    assert [hook["entry"] for hook in HOOKS] == [*recipe[1].replace("\t", "").splitlines(), *WRITERS]


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook["id"])
def test_a_hook_needs_no_network_and_looks_at_the_whole_repository(hook: dict[str, Any]) -> None:
    assert REPOSITORY["repo"] == "local"
    assert hook["language"] == "system"
    assert hook["pass_filenames"] is False


def test_a_change_of_what_a_written_file_depends_on_runs_its_hook() -> None:
    schemas, readme = (re.compile(hook["files"]) for hook in HOOKS if "files" in hook)

    for path in ("omni/schema.py", "publish/manifest.py", "src/qwen_omni_onnx/common/agreement.py"):
        assert schemas.search(path)
    assert readme.search("reports/encoder/summary.json")
    assert readme.search("README.md")
    assert not readme.search("docs/README.md")
