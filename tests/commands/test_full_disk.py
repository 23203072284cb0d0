"""Every stage on a full disk: one line that names what was to be written, and what was there before is as it was."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from stages import run

from omni.component import artifact_path
from qwen_omni_onnx.common import artifact

KINDS = {"pull": "source", "export": "onnx", "inputs": "inputs", "reference": "reference", "calibrate": "calibration",
         "quantize": "quantized", "compose": "onnx"}  # fmt: skip
BUILT = [
    pytest.param("pull", "talker", marks=pytest.mark.slow),
    ("pull", "token2wav"),
    ("export", "projection"),
    pytest.param("export", "talker", marks=pytest.mark.slow),
    ("inputs", "token2wav"),
    pytest.param("inputs", "frontend", marks=pytest.mark.slow),
    pytest.param("reference", "projection", marks=pytest.mark.slow),
    pytest.param("calibrate", "projection", marks=pytest.mark.slow),
    pytest.param("calibrate", "token2wav", marks=pytest.mark.slow),
    ("quantize", "projection"),
    pytest.param("quantize", "talker", marks=pytest.mark.slow),
    pytest.param("compose", "audio_core", marks=pytest.mark.slow),
]


def state(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, but for what pulls go on from, and the memory that exports took."""
    paths = (path for path in folder.rglob("*") if path.is_file() and not path.parent.name.endswith(".part"))
    return {str(path): path.read_bytes() for path in paths if path.name not in ("export.json", "quantize.json")}


def limits(folder: Path) -> list[int]:
    """The first byte, the middle and the last byte of the largest file of a folder."""
    largest = max(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return [1, largest // 2, largest - 1]


@pytest.mark.parametrize(("stage", "name"), BUILT)
def test_a_stage_on_a_full_disk_says_so_in_a_line_and_changes_nothing(chain: Path, stage: str, name: str) -> None:
    with_composed = stage in ("export", "quantize", "compose")
    folder = artifact_path(KINDS[stage], name) if with_composed else Path("models") / KINDS[stage] / name
    assert run(stage, name) == (0, "")
    before = state(Path())

    for limit in limits(folder):
        code, said = run(stage, name, limit)

        assert said == (
            f"error: {folder}: cannot be written (File too large: raise the limit of file sizes, or write to another "
            "disk); what was there before is as it was\n"
        ), limit
        assert code == 1
        assert state(Path()) == before, limit
    assert run(stage, name) == (0, "")
    assert artifact.check(folder)
    assert state(Path()) == before
    assert not [path for path in Path().rglob(".*") if path.name.endswith((".writing", ".part", ".folder"))]


@pytest.mark.parametrize("stage", ["contract", "parity", "gate", "report", "publish"])
def test_what_judges_and_publishes_says_so_too(gated: Path, stage: str) -> None:
    if stage == "report":
        run(stage, "projection")
    before = state(Path())

    for limit in (1, 300):
        code, said = run(stage, "projection", limit)

        assert re.fullmatch(
            r"error: (reports|models/published)/\S+: cannot be written \(File too large: .*\); .* as it was\n", said
        ), (limit, said)
        assert code == 1
        assert state(Path()) == before, limit
    assert not [path for path in Path().rglob(".*") if path.name.endswith((".writing", ".folder"))]
