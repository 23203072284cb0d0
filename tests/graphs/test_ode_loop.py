"""The ODE of token2wav as one graph: the same as the solver in Python around the step."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from dit_graphs import LOOK_BACK, SETTINGS, Fed, blocked, graphs_in, session_of, times, tiny_dit, utterance

from components.token2wav import CONDITION, STEP
from compose.loop import main, ode_loop_graph
from omni.params import QuantizeParams
from omni.streamed import data_file, save_graph
from quantize.apply import quantize
from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.common.metrics import sqnr_db
from qwen_omni_onnx.common.session import open_session, run
from qwen_omni_onnx.sampler import Variant, solve, variants
from qwen_omni_onnx.token2wav.velocity import without_past

VARIANTS = variants({name: entry.model_dump() for name, entry in SETTINGS.variants.items()})


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return graphs_in(tiny_dit(tmp_path_factory))


def _fed(graphs: dict[str, Path], lengths: list[int]) -> Fed:
    """Inputs of the graph of the ODE."""
    fed, noise = utterance(lengths)
    return {"noise": blocked(noise), **run(session_of(graphs[CONDITION]), fed)}


def _solved(step: Path, fed: Fed, variant: Variant) -> np.ndarray:
    """The solver in Python around the step, as the run-time does it."""
    told = {"condition": fed["condition"], "key_bias": fed["key_bias"]}
    told |= without_past(told, LOOK_BACK)

    def velocity(mel: np.ndarray, row: int) -> np.ndarray:
        return run(session_of(step), {"mel": mel, "evaluation": np.array(row), **told})["velocity"]

    return solve(velocity, fed["noise"], variant, times())


def _written(step: Path, variant: Variant, folder: Path) -> Path:
    save_graph(ode_loop_graph(step, variant, times()), folder, "dit_ode")
    return folder / "dit_ode.onnx"


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("lengths", [[1], [25, 7]], ids=str)
def test_the_loop_solves_as_python_does(name: str, lengths: list[int], graphs: dict[str, Path], tmp_path: Path) -> None:
    fed = _fed(graphs, lengths)

    graph = _written(graphs[STEP], VARIANTS[name], tmp_path)

    mel = run(open_session(graph, threads=1), fed)["mel"]
    assert mel.shape == fed["noise"].shape
    assert sqnr_db(_solved(graphs[STEP], fed, VARIANTS[name]), mel) >= 100


def test_a_quantized_step_is_looped_alike(graphs: dict[str, Path], tmp_path: Path) -> None:
    """Activations are rounded to 8 bits: a last bit that differed would come to 36 dB. The sums are the same ones."""
    model, _ = quantize(graphs[STEP], QuantizeParams(scheme="int8-block", block=32, nodes={}), {})
    save_graph(model, tmp_path, f"{STEP}_int8")
    fed = _fed(graphs, [25])

    graph = _written(tmp_path / f"{STEP}_int8.onnx", VARIANTS["abm2-5"], tmp_path)

    mel = run(open_session(graph, threads=1), fed)["mel"]
    assert sqnr_db(_solved(tmp_path / f"{STEP}_int8.onnx", fed, VARIANTS["abm2-5"]), mel) >= 100
    assert sqnr_db(_solved(graphs[STEP], fed, VARIANTS["abm2-5"]), mel) < 60


def test_ways_to_solve_differ(graphs: dict[str, Path]) -> None:
    fed = _fed(graphs, [25])

    solved = {name: _solved(graphs[STEP], fed, variant) for name, variant in VARIANTS.items()}

    for name, mel in solved.items():
        assert all(sqnr_db(other, mel) < 80 for another, other in solved.items() if another != name)


def test_weights_are_there_once_and_in_external_data(graphs: dict[str, Path], tmp_path: Path) -> None:
    graph = _written(graphs[STEP], VARIANTS["reference"], tmp_path)

    onnx.checker.check_model(str(graph), full_check=True)
    model = ir.load(graph)
    (loop,) = (node for node in model.graph if node.op_type == "Loop")
    body = loop.attributes["body"].as_graph()
    assert not body.initializers
    assert [value.name for value in model.graph.inputs] == ["noise", "condition", "key_bias"]
    assert data_file(graph).stat().st_size < 1.1 * data_file(graphs[STEP]).stat().st_size
    assert graph.stat().st_size < 200_000


def test_a_step_exported_for_other_variants_is_refused(graphs: dict[str, Path], message: Callable[..., str]) -> None:
    said = message(ode_loop_graph, graphs[STEP], Variant("rk4", 7), times())

    assert "dit_step has no row for time" in said
    assert "export token2wav again" in said


def test_the_command_writes_an_artifact(graphs: dict[str, Path], tmp_path: Path, message: Callable[..., str]) -> None:
    step = tmp_path / "onnx" / f"{STEP}.onnx"
    step.parent.mkdir()
    for file in (step, data_file(step)):
        file.write_bytes((graphs[STEP].parent / file.name).read_bytes())
    assert "sampler.json: missing" in message(main, step, tmp_path / "out")
    declared = {name: entry.model_dump() for name, entry in SETTINGS.variants.items()}
    said = {"times": [float(time) for time in times()], "variants": declared}
    (step.parent / "sampler.json").write_text(json.dumps(said))

    main(step, tmp_path / "out", variant="abm2-1")

    manifest = artifact.check(tmp_path / "out")
    assert manifest["graphs"] == ["dit_ode"]
    assert manifest["variant"] == "abm2-1"
    fed = _fed(graphs, [9])
    mel = run(open_session(tmp_path / "out/dit_ode.onnx", threads=1), fed)["mel"]
    assert sqnr_db(_solved(graphs[STEP], fed, VARIANTS["abm2-1"]), mel) >= 100
    assert "sampler.json has reference, rk4-2" in message(main, step, tmp_path / "out", variant="heun")
    assert "missing; run python -m export token2wav" in message(main, tmp_path / "none.onnx", tmp_path / "out")
    (step.parent / "sampler.json").write_text("{}")
    assert "not what this version of the project writes" in message(main, step, tmp_path / "out")
