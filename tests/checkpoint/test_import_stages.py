"""A packed Thinker through the stages: taken over from its source, checked, measured and published like any other."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, build_here, chained_params, write_params
from packed_checkpoints import LAYOUTS, pack

from calibrate.__main__ import calibrate
from export.__main__ import export
from inputs.__main__ import main as inputs
from omni.checkpoint import Checkpoint
from omni.inputs import HELD_OUT, read
from publish.__main__ import publish
from quantize.__main__ import main as quantize
from quantize.compensate import main as compensate
from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.thinker.golden import open_graphs
from reference.__main__ import reference
from validate.__main__ import run_contract, run_gate, run_latency, run_memory, run_parity
from validate.ceiling import kernels
from validate.measured import built_components

SOURCE = Path("models/source/thinker")
NODES = {"lm_head*": "int8-block", "*.down_proj/*": "int4-block"}  # 112 inputs of down_proj are no whole groups


@pytest.fixture
def packed(chain: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Pack the Thinker of the chain in a layout, and build it up to its quantized graph."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr("omni.resources.measure_module", build_here)

    def make(layout: str) -> None:
        pack(Checkpoint(SOURCE), LAYOUTS[layout], Path("packed/thinker"))
        shutil.rmtree(SOURCE)
        Path("packed/thinker").rename(SOURCE)
        _choose("int4-import", NODES)
        export("thinker")
        inputs(["thinker"])
        for stage in (reference, calibrate, compensate, quantize):
            stage("thinker")

    return make


def _choose(scheme: str, nodes: dict[str, str], name: str = "thinker") -> None:
    params = chained_params()
    key = "*_audio" if name == "projection" else name
    params[name]["quantize"] = {key: {"scheme": scheme, "block": 32, "nodes": nodes}}
    params[name]["calibrate"] = {}
    write_params(Path(), params)


@pytest.mark.parametrize("layout", ["awq", "act-order-apart"])
def test_a_packed_thinker_goes_through_every_stage(layout: str, packed: Callable[[str], None]) -> None:
    packed(layout)

    for step in (run_contract, run_parity, run_latency, run_memory, run_gate, publish):
        step(["thinker"])

    manifest = artifact.read_manifest(Path("models/quantized/thinker"))
    assert manifest["graphs"] == ["thinker_int4"]
    assert manifest["made_from"]["onnx"] == artifact.fingerprint(Path("models/onnx/thinker"))
    record = manifest["quantization"]["thinker"]["model.layers.0.self_attn.qkv_proj/MatMul"]
    split = {"nodes": 3} if layout == "act-order-apart" else {}
    assert record == {"scheme": "int4-import", "operator": "MatMulNBits", "smoothing": "none", **split}
    card = next(Path("models/published/thinker").glob("*/README.md")).read_text()
    assert "Seed-TTS test-hard WER 8.88 AWQ, 10.3 GPTQ-Int4, 8.7 bfloat16" in card
    assert "accuracy level 4 also quantizes activations" in card
    assert "Quantization: int4-block, int4-import, int8-block." in card


def test_the_ceiling_is_of_kernels_with_the_checkpoints_groups(packed: Callable[[str], None]) -> None:
    packed("act-order-apart")

    ((measured, _),) = built_components(["thinker"])
    found = [kernel for kernel in kernels(measured.graphs["thinker"], 3) if kernel.scheme == "int4-import"]

    assert {kernel.block for kernel in found} == {32}
    assert (96, 96 + 2 * 32) in {kernel.weight for kernel in found}


def test_one_pass_and_the_stages_give_the_same_graph(packed: Callable[[str], None]) -> None:
    packed("awq")
    export("thinker", out=Path("models/direct"), quantized=True)

    rows = next(iter(read("thinker", HELD_OUT).values()))[None]
    staged, direct = (Path("models") / kind / "thinker_int4.onnx" for kind in ("quantized/thinker", "direct"))
    said = [
        open_graphs({"thinker": graph}, Path("models/onnx/thinker"), 1).decoder.forward(rows, np.array([rows.shape[1]]))
        for graph in (staged, direct)
    ]
    for one, other in zip(*said, strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_is_left_to_no_import_is_not_asked_of_the_source(chain: Path) -> None:
    shutil.rmtree(SOURCE)

    quantize("thinker")


def test_a_source_that_is_not_what_was_exported_is_told(
    packed: Callable[[str], None], message: Callable[..., str]
) -> None:
    pack(Checkpoint(SOURCE), LAYOUTS["gptq"], Path("other/thinker"))
    packed("awq")
    shutil.rmtree(SOURCE)
    Path("other/thinker").rename(SOURCE)

    assert "models/onnx/thinker: made from another models/source/thinker; run python -m export" in message(
        quantize, "thinker"
    )


def test_what_cannot_be_imported_is_told(chain: Path, message: Callable[..., str]) -> None:
    _choose("int4-import", NODES)
    assert "models/source/thinker: no tensor named qweight in it" in message(quantize, "thinker")
    _choose("int4-import", {}, "projection")
    assert message(quantize, "projection").startswith("projection: int4-import is for the language models")


def test_a_neighbours_smoothing_does_not_touch_imported_weights(
    packed: Callable[[str], None], message: Callable[..., str]
) -> None:
    packed("awq")
    params = chained_params()
    nodes = {"*.gate_proj/*": "int8-token", **NODES}
    params["thinker"]["quantize"] = {"thinker": {"scheme": "int4-import", "block": 32, "nodes": nodes}}
    params["thinker"]["calibrate"] = {"thinker": {"smoothing": 0.5, "headroom": 1.3, "nodes": {}}}
    write_params(Path(), params)
    calibrate("thinker")

    assert "up_proj/MatMul: smoothing for a neighbour would change its weights" in message(quantize, "thinker")
