"""A build here, compared with what somebody has published."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import chained_params, write_params
from tamper import reseal

from omni.program import COPY
from publish.__main__ import publish
from qwen_omni_onnx.common import artifact
from validate.__main__ import run_rebuild
from validate.against import compare

COMMIT = "c0ffee" * 6 + "beef"


def copied_from(commit: str | None, *, modified: bool = False) -> None:
    """Make the current directory a copy of the program at this commit."""
    COPY.parent.mkdir(exist_ok=True)
    COPY.write_text(json.dumps({"profile": "small", "program": {"commit": commit, "modified": modified}}))


@pytest.fixture
def release(gated_chain: Path) -> str:
    """A release of the projection, which a known program has built."""
    copied_from(COMMIT)
    publish(["projection"])
    publish(["projection"], to="release")
    return "release"


def test_a_second_build_by_the_same_program_gives_what_was_published(
    release: str, message: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    run_rebuild(against=release)
    assert "projection: 5 of 5 files are the bytes that were published\n" in capsys.readouterr().out

    data = Path("models/quantized/projection/qwen25_7b_audio_int8.onnx.data")
    content = bytearray(data.read_bytes())
    content[0] ^= 1
    data.write_bytes(content)
    reseal(data.parent)
    (found,) = compare(release, ["projection"])
    assert found.different == ["onnx/qwen25_7b_audio_int8.onnx.data"]
    assert message(run_rebuild, against=release) == (
        "projection: onnx/qwen25_7b_audio_int8.onnx.data is another one than was published"
    )


def test_another_program_other_weights_and_other_parameters_are_told(release: str, message: Callable[..., str]) -> None:
    copied_from("0" * 40)
    assert message(compare, release, None) == (
        f"projection: built by {COMMIT}, here is {'0' * 40}: check that commit out, and build"
    )
    copied_from(COMMIT, modified=True)
    assert "here is a modified program" in message(compare, release, None)
    copied_from(COMMIT)
    params = chained_params()
    params["projection"]["quantize"]["*_audio"]["block"] = 64
    write_params(Path(), params)
    assert message(compare, release, None) == (
        "projection: params.yaml: quantize.*_audio.block was 32, and is 64 here; change it, and build again"
    )
    write_params(Path(), chained_params())
    source = Path("models/onnx/projection/source.json")
    artifact.write_json(source, {**artifact.read_json(source), "seed": 7})
    assert message(compare, release, None).startswith("projection: weights: seed was 0, and is 7 here")
    assert message(compare, release, ["talker"]) == "release: no talker in it; there are: projection"


def test_what_nobody_can_build_again_is_told(gated_chain: Path, message: Callable[..., str]) -> None:
    publish(["projection"])
    publish(["projection"], to="release")
    assert message(compare, "release", None) == (
        "projection: built by a program that is no commit; nobody can build it again"
    )
