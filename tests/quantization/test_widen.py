"""``python -m quantize COMPONENT --sensitivity`` for decoders: what each node gains at the logits, what is proposed."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tiny_decoder as tiny
from conftest import ROOT
from safetensors.numpy import load_file, save_file

from calibrate.__main__ import calibrate, observe
from omni.params import CalibrateParams, QuantizeParams, load
from omni.pieces.work import OneProcess
from quantize.__main__ import main
from quantize.apply import Calibration, quantize
from quantize.compensate import main as compensate
from quantize.sensitivity import logits as logits_module
from quantize.sensitivity.logits import Gain, LogitsBench, prompts
from quantize.sensitivity.request import Request
from quantize.sensitivity.widen import fewest, ranked, within
from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.common.contract import GraphContract
from qwen_omni_onnx.common.metrics import kl_divergence
from qwen_omni_onnx.common.session import open_session, run

NAME = "thinker"
WORST = "model.layers.1.mlp.down_proj/MatMul"
NODES = [f"model.layers.{i}.{name}_proj/MatMul" for i in range(3) for name in
         ("self_attn.qkv", "self_attn.o", "mlp.gate", "mlp.up", "mlp.down")]  # fmt: skip
HEAD = {"lm_head*": "int8-block"}
COMPENSATED = "compensation: {model.*: 1.0}"
INT4 = QuantizeParams(scheme="int4-block", block=32, nodes=HEAD)


def _clips(width: int = 64) -> dict[str, np.ndarray]:
    sizes = enumerate((12, 30, 25, 40))
    return {f"clip-{i}": np.random.default_rng(i).standard_normal((n, width)).astype(np.float32) for i, n in sizes}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny Thinker, one of whose matrices is much harder to round to four bits than the others.

    One weight of each block of 32 is large, and multiplies a channel that is always zero.
    """
    folder = tmp_path_factory.mktemp("source")
    checkpoint = tiny.write_source(NAME, tiny.config(), folder)
    (file,) = (folder / "source").glob("*.safetensors")
    arrays = load_file(file)
    arrays["thinker.model.layers.1.mlp.up_proj.weight"][::32] = 0
    down = arrays["thinker.model.layers.1.mlp.down_proj.weight"]
    down[:, ::32] = 12 * np.abs(down).max()
    save_file(arrays, file)
    tiny.write_graph(NAME, checkpoint, folder / "models" / "onnx" / NAME)
    artifact.write_json(folder / "models" / "onnx" / NAME / "config.json", dict(checkpoint.config))
    return folder


@pytest.fixture(scope="module")
def graph(source: Path) -> Path:
    return source / "models" / "onnx" / NAME / f"{NAME}.onnx"


def _contract() -> GraphContract:
    return tiny.PARTS[NAME].COMPONENT.contracts(tiny.config())[NAME]


def _bench(graph: Path, folder: Path, params: QuantizeParams = INT4, scheme: str = "int8-block") -> LogitsBench:
    calibration = {}
    if params.calibrated:
        settings = CalibrateParams(smoothing=0.5, headroom=1.3, nodes={})
        seen = observe(graph, _contract(), settings, _clips())
        calibration = {name: Calibration(o.factors, o.histogram.best_range() * 1.3) for name, o in seen.items()}
    build = partial(quantize, graph, calibration=calibration)
    return LogitsBench(graph, _contract(), params, build, scheme, _clips(), folder)


@pytest.fixture
def place(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the repository's params.yaml, but for smoothing and compensation, and the tiny Thinker."""
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "params.yaml").read_text()
    assert COMPENSATED in text
    text = re.sub(r"  calibrate:\n    thinker: .*\n", "  calibrate: {}\n", text)  # smoothing would hide what is planted
    Path("params.yaml").write_text(text.replace(COMPENSATED, "compensation: {}"))
    with artifact.writing(Path("models/onnx") / NAME, kind="onnx") as folder:
        shutil.copytree(source / "models" / "onnx" / NAME, folder, dirs_exist_ok=True)
    with artifact.writing(Path("models/inputs") / NAME, kind="inputs") as folder:
        save_file(_clips(), folder / "calibration.safetensors")
    calibrate(NAME)
    return tmp_path


@pytest.mark.parametrize(
    ("params", "scheme"),
    [
        (INT4, "int8-block"),
        (INT4, "float32"),
        (QuantizeParams(scheme="int8-token", block=32, nodes={}), "float32"),  # what folded away from a node comes back
    ],
)
def test_a_node_gains_alone_what_the_whole_graph_gains_by_it(
    params: QuantizeParams, scheme: str, graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logits_module, "_RECORDED", 4)
    bench = _bench(graph, tmp_path, params, scheme)

    gains = bench.gains([], OneProcess())

    assert list(gains) == bench.nodes
    for node in NODES[::2]:
        whole = bench.whole([node])
        assert gains[node].kl == pytest.approx(bench.base.kl - whole.kl, abs=0.01 * bench.base.kl), node
        assert gains[node].bytes == pytest.approx(whole.bytes - bench.base.bytes, abs=2 * 4096), node


def test_the_node_that_is_hardest_to_round_gains_most(graph: Path, tmp_path: Path) -> None:
    bench = _bench(graph, tmp_path)

    gains = bench.gains([], OneProcess())

    assert bench.nodes == NODES  # the head has eight bits
    assert ranked(gains)[0] == max(gains, key=lambda node: gains[node].kl) == WORST
    assert sum(gain.kl for gain in gains.values()) == pytest.approx(bench.base.kl, rel=0.5)


def test_other_nodes_of_the_recipe_keep_their_schemes(graph: Path, tmp_path: Path) -> None:
    nodes = {WORST: "int4-block", "*o_proj*": "float32", **HEAD}
    bench = _bench(graph, tmp_path, INT4.model_copy(update={"nodes": nodes}))

    assert list(bench.widened([WORST]).items()) == [(WORST, "int8-block"), ("*o_proj*", "float32"), *HEAD.items()]
    assert not [node for node in bench.nodes if "o_proj" in node]


def test_prompts_are_the_beginnings_of_the_longest_clips_and_compare_tokens_evenly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clips = _clips()
    monkeypatch.setattr(logits_module, "_ROWS", 3)

    fed = prompts(_contract(), clips)

    assert fed["inputs_embeds"].shape == (3, 25, 64)
    np.testing.assert_array_equal(fed["inputs_embeds"][2], clips["clip-3"][:25])
    np.testing.assert_array_equal(fed["logits_to_keep"], np.tile(np.arange(25), (3, 1)))
    monkeypatch.setattr(logits_module, "_LOGITS_BYTES", 4 * 300 * 3 * 4)
    np.testing.assert_array_equal(prompts(_contract(), clips)["logits_to_keep"][1], [0, 8, 16, 24])


@pytest.mark.parametrize("off_by", [-0.02, -0.001, 0.0, 0.003, 0.02])
def test_the_fewest_nodes_reach_the_target_and_one_less_misses_it(off_by: float) -> None:
    gains = {f"n{i}": Gain(0.02 / (1 + i), 1000 + i) for i in range(40)}
    built = []

    def measure(nodes: Sequence[str]) -> float:
        built.append(nodes)
        return 0.1 - sum(gains[node].kl for node in nodes) + off_by * (len(nodes) < 40)

    chosen = fewest(gains, 0.1, 0.04, measure)

    assert len(built) < 12
    assert chosen == ranked(gains)[: len(chosen)]
    assert len(chosen) == 40 or measure(chosen) <= 0.04
    assert measure(chosen[:-1]) > 0.04


def test_what_gains_nothing_or_does_not_fit_is_left() -> None:
    gains = {"large": Gain(0.5, 900), "small": Gain(0.1, 100), "none": Gain(-0.1, 100), "rest": Gain(0.05, 100)}

    assert within(gains, 1000) == ["small", "large"]
    assert within(gains, 950) == ["small", "rest"]
    assert within(gains, 99) == []


def test_a_divergence_is_met_by_what_is_then_built(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(NAME, sensitivity=True)
    report = artifact.read_json(Path("reports/thinker/sensitivity.thinker.json"))
    assert report["nodes"]["int8-block"][0]["name"] == WORST
    assert report["kinds"]["int8-block"][0]["name"] == "model.layers.*.mlp.down_proj/MatMul"
    assert "proposal" not in report
    target = 0.7 * report["recipe"]["kl"]
    capsys.readouterr()

    main(NAME, sensitivity=True, target_kl=target, apply=True)

    said = capsys.readouterr().out
    proposal = artifact.read_json(Path("reports/thinker/sensitivity.thinker.json"))["proposal"]
    assert proposal["widened"][0] == WORST
    assert len(proposal["widened"]) < len(NODES)
    assert f"      nodes:\n        {WORST}: int8-block\n" in said
    table = load().component(NAME).graph(NAME).quantize.nodes
    assert table == proposal["nodes"]
    assert list(table) == [*proposal["widened"], "lm_head*", "*.v_proj"]
    text = Path("params.yaml").read_text()
    main(NAME, sensitivity=True, target_kl=target, apply=True)  # already met
    assert Path("params.yaml").read_text() == text
    main(NAME)
    fed = prompts(_contract(), _clips())
    files = (Path("models/onnx") / NAME / f"{NAME}.onnx", Path("models/quantized") / NAME / f"{NAME}_int4.onnx")
    expected, actual = (run(open_session(file), fed)["logits"] for file in files)
    assert kl_divergence(expected, actual) <= target
    assert not list(Path("models").glob("*tmp*"))


def test_a_size_is_kept_by_what_is_then_built(place: Path) -> None:
    main(NAME, sensitivity=True)
    base = artifact.read_json(Path("reports/thinker/sensitivity.thinker.json"))["recipe"]
    limit = base["bytes"] + 12_000

    main(NAME, sensitivity=True, target_mb=limit / 1e6, apply=True)

    proposal = artifact.read_json(Path("reports/thinker/sensitivity.thinker.json"))["proposal"]
    assert 0 < len(proposal["widened"]) < len(NODES)
    assert proposal["measured_kl"] < base["kl"]
    main(NAME)
    files = [Path("models/quantized") / NAME / f"{NAME}_int4.onnx{end}" for end in ("", ".data")]
    assert sum(file.stat().st_size for file in files) <= limit


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ({"target_db": 30.0}, "--target-db: thinker gives logits; give it --target-kl or --target-mb"),
        ({"target_kl": 0.1, "target_mb": 3.0}, "--target-kl and --target-mb: one target at a time"),
        ({"target_kl": 0.0}, "--target-kl 0: a number of nats above 0"),
        ({"target_kl": float("nan")}, "--target-kl nan: a number of nats above 0"),
        ({"target_mb": float("inf")}, "--target-mb inf: a number of megabytes above 0"),
        ({"schemes": "int8-block,float32"}, "--schemes: thinker gives logits; name one scheme"),
        ({"schemes": "int4-block"}, "thinker: every node has the bits of int4-block; name a wider scheme"),
        ({"target_kl": 1e-9}, "--target-kl 1e-09: out of reach; int8-block at every node gives "),
        ({"target_mb": 0.01}, "--target-mb 0.01: out of reach; the graph takes "),
        ({"apply": True}, "--apply: needs --target-db, --target-kl or --target-mb"),
        ({"target_kl": 0.1, "sensitivity": False}, "go with --sensitivity; add it"),
        ({"target_mb": 3.0, "sensitivity": False}, "go with --sensitivity; add it"),
    ],
)
def test_what_a_decoder_cannot_be_asked_for_is_told_in_one_line(
    wrong: dict[str, object], expected: str, place: Path, message: Callable[..., str]
) -> None:
    assert expected in message(main, NAME, **{"sensitivity": True, **wrong})
    assert not Path("reports").exists()


def test_gains_are_measured_on_compensated_codes_and_a_widened_node_has_none(place: Path) -> None:
    main(NAME, sensitivity=True)
    rounded = artifact.read_json(Path("reports/thinker/sensitivity.thinker.json"))
    text = Path("params.yaml").read_text()
    Path("params.yaml").write_text(text.replace("compensation: {}\n", f"{COMPENSATED}\n"))
    compensate(NAME)

    main(NAME, sensitivity=True)

    found = artifact.read_json(Path("reports/thinker/sensitivity.thinker.json"))
    assert 0 < found["recipe"]["kl"] < rounded["recipe"]["kl"]
    assert {row["name"] for row in found["nodes"]["int8-block"]} == set(NODES)


def test_a_scheme_that_needs_calibration_is_refused_for_a_graph_that_has_none(message: Callable[..., str]) -> None:
    said = message(Request(schemes="int8-token").require_calibrated, "talker", INT4)

    assert said.startswith("--schemes: int8-token needs calibrated activations, and talker has none; ")
