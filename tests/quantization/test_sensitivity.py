"""``python -m quantize COMPONENT --sensitivity``: what nodes cost alone, what they cost together, what is proposed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from conftest import ROOT
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file

from calibrate.__main__ import calibrate
from omni.inputs import feed
from omni.params import QuantizeParams, load
from omni.pieces.work import OneProcess
from omni.streamed import save_graph
from quantize.__main__ import main
from quantize.apply import Calibration
from quantize.sensitivity import bench as benches
from quantize.sensitivity.assignment import Option, apply, choose, decibels, frontier, plan, totals
from quantize.sensitivity.bench import Bench, Profile, recordings
from quantize.sensitivity.savings import kind, options
from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.common.contract import GraphContract, Port
from qwen_omni_onnx.common.metrics import EXACT_DB, sqnr_db
from qwen_omni_onnx.common.session import open_session, run

NAME, STEM = "projection", "qwen25_7b_audio"
CHANNELS, WIDE, OUT, LAYERS = 32, 64, 48, 3
KEYS = ("encoder", "quantize", "audio_encoder", "nodes")
WORST = "layers.1.fc2/MatMul"
SCHEMES = ("int8-token", "int8-tensor", "int8-static", "int8-block", "int4-block")


def _graph(file: Path, *, worst: bool = False) -> Path:
    """Three layers of x + fc2(gelu(fc1(norm(x)))), then a head.

    With ``worst``, what one matrix reads is large in all its channels alike, and cancels in what it gives: only the
    rounding is left of it, and no factor for a channel helps.
    """
    random = np.random.default_rng(0)
    weights = {"head": random.standard_normal((CHANNELS, OUT)) / 6}
    nodes, x = [], "hidden_states"
    for layer in (f"layers.{number}" for number in range(LAYERS)):
        weights |= {
            f"{layer}.norm": 1 + random.random(CHANNELS),
            f"{layer}.fc1": random.standard_normal((CHANNELS, WIDE)) / 6,
            f"{layer}.fc1.bias": random.standard_normal(WIDE),
            f"{layer}.fc2": random.standard_normal((WIDE, CHANNELS)) / 8,
        }
        nodes += [
            helper.make_node("LayerNormalization", [x, f"{layer}.norm"], [f"{layer}.n"], name=f"{layer}.norm"),
            helper.make_node("MatMul", [f"{layer}.n", f"{layer}.fc1"], [f"{layer}.u"], name=f"{layer}.fc1/MatMul"),
            helper.make_node("Add", [f"{layer}.u", f"{layer}.fc1.bias"], [f"{layer}.b"], name=f"{layer}.fc1/Add"),
            helper.make_node("Gelu", [f"{layer}.b"], [f"{layer}.g"], name=f"{layer}.gelu"),
            helper.make_node("MatMul", [f"{layer}.g", f"{layer}.fc2"], [f"{layer}.d"], name=f"{layer}.fc2/MatMul"),
            helper.make_node("Add", [x, f"{layer}.d"], [f"{layer}.x"], name=f"{layer}.residual"),
        ]
        x = f"{layer}.x"
    nodes.append(helper.make_node("MatMul", [x, "head"], ["audio_logits"], name="head/MatMul"))
    if worst:
        weights["layers.1.fc1.bias"] += 20
        weights["layers.1.fc2"] -= weights["layers.1.fc2"].mean(0)
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", "seq", width])
        for name, width in (("hidden_states", CHANNELS), ("audio_logits", OUT))
    ]
    constants = [numpy_helper.from_array(w.astype(np.float32), n) for n, w in weights.items()]
    model = helper.make_model(
        helper.make_graph(nodes, "g", ports[:1], ports[1:], constants),
        opset_imports=[helper.make_opsetid("", 21)],
        ir_version=10,
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    save_graph(ir.from_proto(onnx.shape_inference.infer_shapes(model)), file.parent, file.stem)
    return file


CONTRACT = GraphContract(
    inputs=(Port("hidden_states", "FLOAT", ("batch", "seq", CHANNELS)),),
    outputs=(Port("audio_logits", "FLOAT", ("batch", "seq", OUT)),),
    ir_version=10,
    length="seq",
)


def _clips() -> dict[str, np.ndarray]:
    sizes = enumerate((30, 90, 80, 70))
    return {f"clip-{i}": np.random.default_rng(i).standard_normal((n, CHANNELS)).astype(np.float32) for i, n in sizes}


def _bench(folder: Path, *, smoothed: bool = False, worst: bool = False) -> Bench:
    """A bench whose calibration does nothing, or, ``smoothed``, changes every activation's channels."""
    graph = _graph(folder / "onnx" / "float.onnx", worst=worst)
    activations = {"head": f"layers.{LAYERS - 1}.x"}
    widths = {activations["head"]: CHANNELS}
    for number in range(LAYERS):
        widths |= {f"layers.{number}.n": CHANNELS, f"layers.{number}.g": WIDE}
    random = np.random.default_rng(3)
    factors = {name: np.exp(0.3 * random.standard_normal(n)) if smoothed else np.ones(n) for name, n in widths.items()}
    return Bench(
        graph_file=graph,
        output="audio_logits",
        params=QuantizeParams(scheme="int8-token", block=32, nodes={}),
        calibration={name: Calibration(f.astype(np.float32), 6.0) for name, f in factors.items()},
        fed=recordings(CONTRACT, _clips(), 200),
        fed_long=feed(CONTRACT, list(_clips().values()), [200]),
        threads=1,
    )


def _nodes(bench: Bench) -> list[str]:
    return [node for group in bench.groups().values() for node in group]


def _even(node: str, noise: float) -> dict[str, Option]:
    return {"float32": Option(0, 4000, 1.0), "int8-token": Option(noise, 1000, 0.5)}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every node take the same time in every graph: what is proposed must not depend on the machine's mood."""

    def profile(self: Bench, graph: Path) -> Profile:
        run(open_session(graph, threads=1), self.fed_long)
        nodes = dict.fromkeys(_nodes(self), 1.0 if graph == self.graph_file else 0.5)
        return Profile(nodes, sum(nodes.values()))

    def joint(self: Bench, schemes: Mapping[str, str], *args: Any, **kwargs: Any) -> benches.Joint:
        found = original(self, schemes, *args, **kwargs)
        times = {node: 0.5 if schemes.get(node, "float32") != "float32" else 1.0 for node in _nodes(self)}
        profiled = Profile(times, sum(times.values())) if found.profile else None
        return benches.Joint(found.sqnr_db, found.bytes, profiled)

    original = Bench.joint
    monkeypatch.setattr(Bench, "profile", profile)
    monkeypatch.setattr(Bench, "joint", joint)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the repository's params.yaml, and a projection whose graph has one node much worse than others."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "params.yaml", "params.yaml")
    config = {"talker_config": {"embedding_size": CHANNELS, "hidden_size": WIDE, "vocab_size": OUT}}
    with artifact.writing(Path("models/onnx") / NAME, kind="onnx") as folder:
        _graph(folder / f"{STEM}.onnx", worst=True)
        artifact.write_json(folder / "config.json", config)
        artifact.write_json(folder / "source.json", {"model": {"name": "Qwen2.5-Omni-7B"}})
    with artifact.writing(Path("models/inputs") / NAME, kind="inputs") as folder:
        save_file(_clips(), folder / "calibration.safetensors")
    with artifact.writing(Path("models/onnx/frontend"), kind="onnx") as folder:
        artifact.write_json(folder / "config.json", config)
    calibrate(NAME)
    return tmp_path


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_node_alone_costs_what_the_whole_graph_with_it_alone_costs(scheme: str, tmp_path: Path) -> None:
    bench = _bench(tmp_path, smoothed=True)
    nodes = _nodes(bench)[::2]

    noise = bench.alone([(node, scheme) for node in nodes], OneProcess())

    for node in nodes:
        whole = bench.joint({node: scheme})
        assert decibels(noise[node, scheme]) == pytest.approx(whole.sqnr_db, abs=0.05), node


@pytest.mark.parametrize("smoothed", [False, True])
def test_the_sum_of_single_noises_predicts_the_joint_noise(smoothed: bool, tmp_path: Path) -> None:
    bench = _bench(tmp_path, smoothed=smoothed)
    for scheme in ("int8-token", "int8-tensor"):
        noise = bench.alone([(node, scheme) for node in _nodes(bench)], OneProcess())

        joint = bench.joint(dict.fromkeys(_nodes(bench), scheme))

        assert decibels(sum(noise.values())) == pytest.approx(joint.sqnr_db, abs=2)


def test_measuring_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benches, "_SECONDS", 0.05)
    bench = _bench(tmp_path)

    bench.joint(dict.fromkeys(_nodes(bench), "int8-token"), timed=True)

    assert [path.name for path in tmp_path.iterdir()] == ["onnx"]


def test_times_and_sizes_are_the_graphs_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benches, "_SECONDS", 0.05)
    bench = _bench(tmp_path)
    candidates = [(node, scheme) for node in _nodes(bench) for scheme in ("int8-token", "int8-block")]
    joints = {
        scheme: bench.joint(dict.fromkeys(_nodes(bench), scheme), timed=True)
        for scheme in ("float32", "int8-token", "int8-block")
    }
    profiles = {scheme: joint.profile for scheme, joint in joints.items() if joint.profile is not None}
    before = profiles.pop("float32")

    table = options(bench, candidates, dict.fromkeys(candidates, 0.0), before, profiles)

    assert table["head/MatMul"]["float32"].bytes == 4 * CHANNELS * OUT
    assert table["head/MatMul"]["int8-token"].bytes == CHANNELS * OUT + 4 * OUT
    assert table["head/MatMul"]["int8-block"].bytes == CHANNELS * OUT + 4 * OUT * CHANNELS // 32
    assert table["layers.0.fc1/MatMul"]["int8-token"].ms == table["layers.2.fc1/MatMul"]["int8-token"].ms
    assert all(0 < option.ms < before.total for of in table.values() for option in of.values())


def test_what_the_optimizer_renamed_shares_the_rest_by_its_work(tmp_path: Path) -> None:
    bench = _bench(tmp_path)
    nodes = _nodes(bench)
    candidates = [(node, "int8-token") for node in nodes]
    before, after = Profile({"head/MatMul": 4.0}, 20.0), Profile({"head/MatMul": 1.0}, 11.0)

    table = options(bench, candidates, dict.fromkeys(candidates, 0.0), before, {"int8-token": after})

    saved = {node: of["float32"].ms - of["int8-token"].ms for node, of in table.items()}
    assert saved["head/MatMul"] == pytest.approx(3)
    assert saved["layers.0.fc1/MatMul"] == pytest.approx(1)  # six equal matrices share 9 - 3


def test_recordings_are_the_middles_of_the_longest_clips() -> None:
    clips = _clips()

    (batch,) = recordings(CONTRACT, clips, 200).values()

    assert batch.shape == (3, 40, CHANNELS)
    np.testing.assert_array_equal(batch[0], clips["clip-1"][25:65])


def test_kinds_have_no_layer_numbers() -> None:
    assert kind("layers.12.self_attn.q_proj/MatMul") == "layers.*.self_attn.q_proj/MatMul"
    assert kind("3.fc2/MatMul") == "*.fc2/MatMul"
    assert kind("layers.1.2.conv1/MatMul") == "layers.*.*.conv1/MatMul"


def test_a_plan_takes_the_nodes_that_bring_most_and_no_more() -> None:
    table = {name: _even(name, noise) for name, noise in (("a", 1e-3), ("b", 1e-4), ("c", 1e-2), ("d", 1e-5))}

    assert set(plan(table, 15, "int8-token").values()) == {"int8-token"}
    assert [n for n, s in plan(table, 25, "int8-token").items() if s == "float32"] == ["c"]
    assert [n for n, s in plan(table, 35, "int8-token").items() if s == "float32"] == ["a", "c"]
    assert set(plan(table, 100, "int8-token").values()) == {"float32"}


def test_a_plan_takes_back_what_a_later_step_made_needless() -> None:
    table = {
        "small": {"float32": Option(0, 400, 0.1), "int8-token": Option(1e-4, 100, 0.05)},
        "large": {"float32": Option(0, 40000, 10.0), "int8-token": Option(3e-3, 10000, 5.0)},
    }

    assert plan(table, 39.5, "int8-token") == {"small": "int8-token", "large": "float32"}


@pytest.mark.parametrize("off_by", [-3.0, -0.5, 0.0, 2.0])
def test_a_choice_is_built_until_it_is_measured_to_meet_the_target(off_by: float) -> None:
    table = {f"n{i}": _even(f"n{i}", 10 ** (-3 - i / 10)) for i in range(20)}
    built = []

    def measure(schemes: Mapping[str, str]) -> float:
        built.append(schemes)
        return min(decibels(totals(table, schemes).noise) + off_by, EXACT_DB)

    choice = choose(table, 30, "int8-token", measure)

    assert len(built) < 10
    assert choice.measured_db == measure(choice.schemes) >= 30
    enough = [schemes for schemes in built.copy() if measure(schemes) >= 30]
    assert totals(table, choice.schemes).bytes == min(totals(table, schemes).bytes for schemes in enough)


def test_a_choice_ends_at_float32_where_nothing_else_meets_the_target() -> None:
    table = {f"n{i}": _even(f"n{i}", 1e-3) for i in range(9)}

    choice = choose(table, 40, "int8-token", lambda schemes: EXACT_DB if set(schemes.values()) == {"float32"} else 10.0)

    assert set(choice.schemes.values()) == {"float32"}


def test_the_frontier_leads_from_the_scheme_everywhere_to_float32() -> None:
    table = {f"n{i}": _even(f"n{i}", 10 ** (-2 - i)) for i in range(5)}

    rows = frontier(table, "int8-token")

    assert [row["float32_nodes"] for row in rows] == [0, 1, 2, 4, 5]
    assert rows[1]["last"] == "n0"
    assert rows[-1]["predicted_db"] == EXACT_DB
    assert rows[-1]["more_mb"] == pytest.approx(5 * 3000 / 1e6)


def test_the_worst_node_is_ranked_first_and_left_float_and_the_target_met(
    place: Path, quick: None, capsys: pytest.CaptureFixture[str]
) -> None:
    main(NAME, sensitivity=True)
    report = artifact.read_json(Path("reports") / NAME / "sensitivity.qwen25_7b_audio.json")
    nodes = report["nodes"]["int8-token"]
    assert nodes[0]["name"] == WORST
    assert nodes[0]["share_of_noise"] > 0.8
    assert report["kinds"]["int8-token"][0]["name"] == "layers.*.fc2/MatMul"
    assert "proposal" not in report
    target = report["everywhere"]["int8-token"]["measured_db"] + 3
    capsys.readouterr()

    main(NAME, sensitivity=True, schemes="float32", target_db=target, apply=True)

    said = capsys.readouterr().out
    assert 'projection:\n  quantize:\n    "*_audio":\n      # predicted ' in said
    assert f"      nodes:\n        {WORST}: float32\n" in said
    assert load().component(NAME).graph(STEM).quantize.nodes == {WORST: "float32"}
    text = Path("params.yaml").read_text()
    main(NAME, sensitivity=True, schemes="float32", target_db=target, apply=True)
    assert Path("params.yaml").read_text() == text
    main(NAME)
    fed = recordings(CONTRACT, _clips(), 200)
    paths = (Path("models/onnx") / NAME / f"{STEM}.onnx", Path("models/quantized") / NAME / f"{STEM}_int8.onnx")
    expected, actual = (run(open_session(path), fed)["audio_logits"] for path in paths)
    assert sqnr_db(expected, actual) >= target


def test_the_command_writes_only_the_nodes(place: Path) -> None:
    before = Path("params.yaml").read_text()
    command = [sys.executable, "-m", "quantize", NAME, "--sensitivity", "--target-db", "60", "--apply"]

    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False
    )

    assert done.returncode == 0, done.stderr
    assert "in params.yaml" in done.stdout
    table = load().component(NAME).graph(STEM).quantize.nodes
    assert table
    assert (
        json.loads((Path("reports") / NAME / "sensitivity.qwen25_7b_audio.json").read_text())["proposal"]["nodes"]
        == table
    )
    entries = [f"        {node}: {scheme}" for node, scheme in table.items()]
    rest = [line for line in Path("params.yaml").read_text().splitlines() if line not in entries]
    changed = [(a, b) for a, b in zip(before.splitlines(), rest, strict=True) if a != b]
    assert [(a.strip()[:9], b.strip()[:6]) for a, b in changed] == [("nodes: {}", "nodes:")]
    assert changed[0][0].partition("#")[2] == changed[0][1].partition("#")[2]


def test_applying_changes_the_nodes_alone_and_twice_is_once(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    original = (ROOT / "params.yaml").read_text()
    path.write_text(original)
    path.chmod(0o640)
    nodes = {"layers.0.fc2/MatMul": "float32", "proj/MatMul": "int8-tensor"}

    apply(path, KEYS, nodes)
    once = path.read_text()
    apply(path, KEYS, nodes)

    assert path.read_text() == once
    assert load(path).component("encoder").graph("audio_encoder").quantize.nodes == nodes
    assert path.stat().st_mode & 0o777 == 0o640
    assert [entry.name for entry in tmp_path.iterdir()] == ["params.yaml"]
    apply(path, KEYS, {})
    assert path.read_text() == original.replace("nodes: {layers.0.self_attn.*: float32}", "nodes: {}")


@pytest.mark.parametrize(
    ("mend", "expected"),
    [
        (
            lambda text: text.replace("  seed: 0 ", "  seed:   0 "),
            "would change more than encoder.quantize.audio_encoder.nodes",
        ),
        (
            lambda text: text.replace(
                "nodes: {layers.0.self_attn.*: float32}", "nodes:\n        # mine\n        a/MatMul: float32"
            ),
            "holds comments that would be lost",
        ),
    ],
)
def test_a_file_that_would_lose_something_is_left_alone(
    mend: Callable[[str], str], expected: str, tmp_path: Path, message: Callable[..., str]
) -> None:
    path = tmp_path / "params.yaml"
    text = mend((ROOT / "params.yaml").read_text())
    path.write_text(text)

    assert expected in message(apply, path, KEYS, {"b/MatMul": "float32"})

    assert path.read_text() == text


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ({"apply": True, "sensitivity": True}, "--apply: needs --target-db"),
        ({"target_db": 30.0}, "go with --sensitivity"),
        ({"schemes": "float32"}, "go with --sensitivity"),
        ({"sensitivity": True, "out": Path("x")}, "--out: --sensitivity writes no graph"),
        ({"sensitivity": True, "target_db": -3.0}, "--target-db -3: a number of decibels above 0, and at most 100"),
        ({"sensitivity": True, "target_db": float("nan")}, "--target-db nan: a number of decibels"),
        ({"sensitivity": True, "schemes": "int8-token,int9"}, "--schemes: 'int9' is not one of int8-token, "),
    ],
)
def test_options_that_do_not_fit_are_told_in_one_line(
    wrong: dict[str, object], expected: str, place: Path, message: Callable[..., str]
) -> None:
    assert expected in message(main, NAME, **wrong)


def test_a_component_that_stays_float32_has_nothing_to_quantize(place: Path, message: Callable[..., str]) -> None:
    assert "nothing to quantize" in message(main, "frontend", sensitivity=True)


@pytest.mark.parametrize("target", [["--target-db"], ["--target-db", "much"]])
def test_a_target_without_a_number_is_refused(target: list[str], place: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "quantize", NAME, "--sensitivity", *target],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )

    assert done.returncode == 2
    assert "--target-db" in done.stderr
    assert "Traceback" not in done.stderr
