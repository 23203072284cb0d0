"""``publish.float32: false``: a folder without the float32 graphs of quantized ones is judged by its golden cases."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import chained_params, write_params

import qwen_omni_onnx
from profiles.__main__ import laid_over
from publish.__main__ import publish
from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.common.agreement import QUANTIZED
from qwen_omni_onnx.verification import verify
from validate.__main__ import run_contract, run_parity
from validate.measured import from_published

SHORT: dict[str, Any] = {"max_new_tokens": 3, "max_new_codes": 8, "seed": 3}
ALONE = {  # the graphs in each folder
    "thinker": {"thinker_int4.onnx"},
    "token2wav": {"dit_condition.onnx", "dit_step_int8.onnx", "bigvgan_int8.onnx"},
}


@pytest.fixture
def folders(gated_chain: Path) -> dict[str, Path]:
    write_params(Path(), laid_over(chained_params(), {name: {"publish": {"float32": False}} for name in ALONE}))
    publish(list(ALONE))
    return {name: next(Path("models/published", name).iterdir()) for name in ALONE}


def test_float32_graphs_of_quantized_ones_are_left_out(folders: dict[str, Path]) -> None:
    for name, graphs in ALONE.items():
        found = {path.name for path in (folders[name] / "onnx").iterdir()}
        assert found == {file for graph in graphs for file in (graph, f"{graph}.data")}
        card = (folders[name] / "README.md").read_text(encoding="utf-8")
        assert "**Quantized alone.**" in card
        manifest = artifact.read_manifest(folders[name])
        assert manifest["parameters"]["publish"] == {"float32": False}
        assert set(manifest["tensors"]) == graphs


def test_a_receiver_judges_the_quantized_graphs(folders: dict[str, Path]) -> None:
    for name, folder in folders.items():
        (found,) = verify(folder)
        assert set(found.graphs) == ALONE[name]
        assert {drift.verdict.kind for drift in found.drifts} == {QUANTIZED}
        assert all(drift.ok for drift in found.drifts)
        assert from_published(folder)[0].kinds == [QUANTIZED]
        run_parity([str(folder)])
        run_contract([str(folder)])


def test_the_runtime_takes_them_and_says_that_there_is_no_other(
    folders: dict[str, Path], message: Callable[..., str]
) -> None:
    bundle = qwen_omni_onnx.load("models/published")
    assert list(bundle.reply("Well?", **SHORT))
    bundle = qwen_omni_onnx.load("models/published", float32={"thinker"})
    said = message(lambda: list(bundle.reply("Well?", **SHORT)))
    assert said.endswith("thinker.onnx: not published, only the quantized graph is; run that, without float32")


@pytest.mark.parametrize(("component", "graph"), [("frontend", "log_mel"), ("token2wav", "dit_condition")])
def test_a_graph_that_has_no_quantized_form_may_not_be_missing(
    component: str, graph: str, gated_chain: Path, message: Callable[..., str]
) -> None:
    (folder,) = Path("models/published", component).iterdir()
    manifest = artifact.read_manifest(folder)
    for name in (f"onnx/{graph}.onnx", f"onnx/{graph}.onnx.data"):
        (folder / name).unlink()
        del manifest["files"][name]
    artifact.write_json(folder / artifact.MANIFEST, manifest)

    assert f"{graph}.onnx" in message(verify, folder)
    assert f"{graph}.onnx" in message(run_parity, [str(folder)])
