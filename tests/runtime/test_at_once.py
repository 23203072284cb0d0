"""Two runs at once: one writes, the other is told so at once; and what a killed one left is swept by the next."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from stages import run, start, wait_for

from qwen_omni_onnx.common import artifact

NAME = "projection"
FOLDERS = {
    "pull": Path("models/source") / NAME,
    "export": Path("models/onnx") / NAME,
    "inputs": Path("models/inputs") / NAME,
    "reference": Path("models/reference") / NAME,
    "calibrate": Path("models/calibration") / NAME,
    "compensate": Path("models/compensated") / NAME,
    "quantize": Path("models/quantized") / NAME,
    "publish": Path("models/published") / NAME / f"qwen2.5-omni-7b-{NAME}-onnx-synthetic",
}


@pytest.mark.parametrize("stage", list(FOLDERS))
def test_of_two_runs_at_once_one_writes_and_the_other_is_told(gated: Path, stage: str) -> None:
    folder = FOLDERS[stage]

    first = start(stage, NAME, until="go")
    wait_for(Path("go.waiting").exists)
    code, said = run(stage, NAME)
    Path("go").touch()

    assert said == f"error: {folder}: is being written by another process; wait until it is done, or stop it\n"
    assert code == 1
    assert first.end() == (0, "")
    artifact.check(folder)
    assert [path.name for path in folder.parent.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("stage", ["pull", pytest.param("export", marks=pytest.mark.slow), "publish"])
def test_what_a_killed_run_left_is_swept_by_the_next(gated: Path, stage: str) -> None:
    folder = FOLDERS[stage]
    before = artifact.fingerprint(folder)
    first = start(stage, NAME, until="go")
    wait_for(Path("go.waiting").exists)

    os.kill(first.process.pid or 0, signal.SIGKILL)
    first.process.join()

    assert [path.name for path in folder.parent.iterdir() if path.name.startswith(".")]
    assert artifact.fingerprint(folder) == before
    assert run(stage, NAME) == (0, "")
    artifact.check(folder)
    assert [path.name for path in folder.parent.iterdir() if path.name.startswith(".")] == []


def test_another_component_in_the_same_folder_is_not_waited_for(gated: Path) -> None:
    other = Path("models/onnx/encoder")
    with artifact.writing(other, kind="onnx", component="encoder") as beside:
        (beside / "graph.onnx").write_text("graph")

        assert run("export", NAME) == (0, "")

    artifact.check(other)
