"""The README's figures are those of the reports that Git keeps."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable

import pytest
from conftest import ROOT

from benchmarks.readme import PAGES, written


def _committed(path: str) -> str:
    """Return a file as it was last committed: a build of one's own writes other reports, and takes nothing back."""
    shown = subprocess.run(["git", "show", f"HEAD:{path}"], cwd=ROOT, capture_output=True, text=True, check=False)
    if shown.returncode:
        pytest.skip(f"no {path} in a last commit here")
    return shown.stdout


@pytest.mark.parametrize("page", PAGES)
def test_the_table_of_a_page_is_what_the_committed_reports_say(page: str) -> None:
    text = _committed(page)

    assert written(page, text, _committed) == text


def test_another_figure_in_a_report_is_another_readme() -> None:
    readme = _committed("README.md")

    def read(path: str) -> str:
        content = json.loads(_committed(path))
        if path == "reports/encoder/summary.json":
            content["parity"]["audio_features"]["quantized"]["token_median_db"] = 12.3456
        return json.dumps(content)

    assert "12.3 dB" in written("README.md", readme, read)


def test_strict_and_near_tie_top1_are_told_apart() -> None:
    """Every top-1 in the README and the documents says which it is."""
    for path in (ROOT / "README.md", *ROOT.glob("docs/*.md")):
        blocks = ["", *path.read_text().lower().split("\n\n"), ""]
        for before, block, after in zip(blocks, blocks[1:], blocks[2:], strict=False):
            said = any(word in f"{before} {block} {after}" for word in ("strict", "near ties"))
            assert said or "top-1" not in block, f"{path.name}: {block}"


def test_a_page_without_its_table_is_told(message: Callable[..., str]) -> None:
    said = message(written, "README.md", "# Nothing", str)

    assert said == "README.md: tables none between comments, not components"
