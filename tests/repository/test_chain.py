"""Front end and encoder through gates and publishing: what test_validate.py, with the projection, does not see."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from conftest import CHAIN, COMPOSED, EMBEDDING, MELS, ROOT, build_here, chained_params, write_params
from safetensors.numpy import load_file, save_file
from tamper import edit, flip_sign, reseal

from calibrate.__main__ import calibrate
from omni.params import load
from omni.reports import ContractReport, GateReport, LatencyReport, MemoryReport, ParityReport, SweepReport
from publish.__main__ import publish
from quantize.__main__ import main as quantize
from qwen_omni_onnx.common import artifact, golden
from qwen_omni_onnx.common.agreement import FLOAT, QUANTIZED
from qwen_omni_onnx.common.metrics import sqnr_db
from qwen_omni_onnx.common.session import open_session, run
from reference.__main__ import reference
from validate import parity
from validate.__main__ import run_contract, run_gate, run_latency, run_memory, run_parity
from validate.measured import built_components, from_published

STEMS = {"frontend": "log_mel", "encoder": "audio_encoder", "projection": "qwen25_7b_audio"}
ONNX, INT8 = Path("models/onnx/encoder"), Path("models/quantized/encoder")


def _published(name: str) -> Path:
    return Path(f"models/published/{name}/qwen2.5-omni-7b-{name}-onnx-synthetic")


def _report(name: str, measurement: str) -> dict:
    return json.loads(Path(f"reports/{name}/{measurement}.json").read_text())


def _measured_on(name: str, instructions: str) -> None:
    """Let latency have been measured on a processor with these instructions."""
    path = Path(f"reports/{name}/latency.json")
    report = json.loads(path.read_text())
    for found in report["graphs"].values():
        found["machine"]["instructions"] = instructions
    path.write_text(json.dumps(report))


# Green


def test_all_components_pass_every_gate(gated_chain: Path) -> None:
    count = {name: len(_report(name, "gate")["verdicts"]) for name in CHAIN}

    assert count == {"frontend": 3, "encoder": 13, "projection": 12, "thinker": 25, "talker": 25, "token2wav": 27}
    for name in CHAIN:
        assert _report(name, "gate")["passed"]
        assert artifact.check(_published(name))["component"] == name


def test_a_component_that_stays_float32_has_artifacts_without_a_graph(gated_chain: Path) -> None:
    assert set(artifact.check(Path("models/quantized/frontend"))["files"]) == set()
    assert set(artifact.check(Path("models/calibration/frontend"))["files"]) == set()
    assert list(ParityReport.read("frontend").checks["input_features"]) == [FLOAT]
    assert list(LatencyReport.read("frontend").graphs["log_mel"].files) == [FLOAT]
    assert list(MemoryReport.read("frontend").graphs["log_mel"]) == [FLOAT]
    assert set(_report("frontend", "summary")) == {FLOAT, "mb", "parity", "latency"}
    assert {row.graph for row in ContractReport.read("frontend").checks} == {"all", f"log_mel {FLOAT}"}


def test_golden_cases_are_named_by_the_lengths_of_their_rows(gated_chain: Path) -> None:
    assert golden.cases(Path("models/reference/encoder") / golden.FILE) == [
        "frames1", "frames17", "frames3", "frames83+1+16",
    ]  # fmt: skip
    assert "samples16000+161+7999" in golden.cases(Path("models/reference/frontend") / golden.FILE)
    for _, ports in golden.read(Path("models/reference/encoder") / golden.FILE):
        assert set(ports) == {"input_features", "feature_lens", "audio_features", "audio_lens"}


def test_the_gate_writes_the_table_of_all_golden_cases(gated_chain: Path) -> None:
    heading, *rows = Path("reports/encoder/sqnr.csv").read_text().splitlines()
    checks = ParityReport.read("encoder").checks

    assert heading == "check and case,SQNR dB"
    assert len(rows) == sum(len(found.cases) for kinds in checks.values() for found in kinds.values())
    assert rows[0].startswith("audio_features float32 frames")


def test_tables_for_plots_have_a_column_for_each_graph(gated_chain: Path) -> None:
    heads = {name: Path(f"reports/{name}/latency.csv").read_text().splitlines()[0] for name in CHAIN}

    assert heads["frontend"] == "graph,length,float32_ms"
    assert heads["encoder"] == heads["token2wav"] == "graph,length,float32_ms,quantized_ms"


def test_a_sweep_of_a_float_component_finds_the_best_session(gated_chain: Path) -> None:
    run_latency(["frontend"], sweep=True)
    publish(["frontend"])

    assert list(SweepReport.read("frontend").graphs["log_mel"].best) == [FLOAT]
    assert "The fastest session options" in (_published("frontend") / "README.md").read_text()


# Broken


@pytest.mark.parametrize(
    ("folder", "tensor"),
    [
        (ONNX, "layers.0.self_attn_layer_norm.weight"),
        (ONNX, "proj.bias"),
        (ONNX, "positions"),
        (INT8, "layers.1.fc1/MatMul.weight_int8"),
        (INT8, "layers.1.self_attn.v_proj.bias_shifted_smoothed"),
        (INT8, "proj/MatMul.weight_scale"),
        (Path("models/onnx/frontend"), "mel"),
    ],
    ids=lambda value: getattr(value, "parts", [value])[1 if isinstance(value, Path) else 0],
)
def test_a_flipped_weight_turns_a_gate_red_and_blocks_publishing(
    folder: Path, tensor: str, gated_chain: Path, message: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """First as somebody's edit, which hashes see; then as a defective stage would have made it."""
    name = folder.name
    edit(folder, tensor, flip_sign)
    assert "SHA-256" in message(run_contract, [name])
    assert "SHA-256" in message(publish, [name])

    reseal(folder)
    run_contract([name])
    run_parity([name])
    if folder == INT8:  # a bit of one weight drowns in what quantization does; a second build sees it
        monkeypatch.setattr("omni.resources.measure_module", build_here)
        run_memory([name])
    message(run_gate, [name])
    key = {ONNX: "sqnr_db", INT8: "same_bytes"}.get(folder, "max_abs")
    red = {(verdict.kind, verdict.metric) for verdict in GateReport.read(name).verdicts if not verdict.ok}
    assert (QUANTIZED if folder == INT8 else FLOAT, key) in red
    refused = message(publish, [name])
    assert "not published, the gate is red" in refused or "made from" in refused


def _with_lengths_off_by_one(folder: Path) -> None:
    """Add one to the lengths that the graph gives; the signal stays what it is."""
    (path,) = folder.glob("*.onnx")
    model = ir.load(path)
    lengths = model.graph.outputs[1]
    one = ir.Value(name="one_more", const_value=ir.tensor(np.array([1], np.int64), name="one_more"),
                   shape=ir.Shape([1]), type=ir.TensorType(ir.DataType.INT64))  # fmt: skip
    model.graph.register_initializer(one)
    node = ir.node("Add", [lengths, one])
    name, lengths.name = lengths.name, "lengths_before"
    node.outputs[0].name, node.outputs[0].shape, node.outputs[0].type = name, lengths.shape, lengths.type
    model.graph.append(node)
    model.graph.outputs[1] = node.outputs[0]
    ir.save(model, path)
    path.chmod(0o644)


@pytest.mark.parametrize(
    ("folder", "said"),
    [
        (ONNX, "audio_encoder.onnx: case frames1: audio_lens: [1], expected [0]"),
        (INT8, "audio_encoder_int8.onnx: case frames1: audio_lens: [1], expected [0]"),
        (Path("models/onnx/frontend"), "log_mel.onnx: case samples160: feature_lens: [2], expected [1]"),
    ],
    ids=["encoder", "encoder quantized", "frontend"],
)
def test_wrong_lengths_turn_parity_red_and_block_publishing(
    folder: Path, said: str, gated_chain: Path, message: Callable[..., str]
) -> None:
    _with_lengths_off_by_one(folder)
    reseal(folder)

    assert said in message(run_parity, [folder.name])
    assert "made from other artifacts" in message(run_gate, [folder.name])
    assert any("parity.json: made from" in line for line in _report(folder.name, "gate")["wrong"])
    assert "made from" in message(publish, [folder.name])


def test_a_wrong_golden_case_turns_a_gate_red(gated_chain: Path, message: Callable[..., str]) -> None:
    path = Path("models/reference/encoder") / golden.FILE
    tensors = load_file(path)
    tensors["frames17/audio_features"][0, 0, 0] += 1
    save_file(tensors, path)
    reseal(path.parent)

    run_parity(["encoder"])

    assert "frames17" in ParityReport.read("encoder").checks["audio_features"][FLOAT].worst
    assert "made from other artifacts" in message(run_gate, ["encoder"])
    red = [(v.kind, v.subject, v.metric) for v in GateReport.read("encoder").verdicts if not v.ok]
    assert red == [(FLOAT, "audio_features", "sqnr_db")]


def test_a_golden_case_that_lacks_a_port_is_told(gated_chain: Path, message: Callable[..., str]) -> None:
    path = Path("models/reference/encoder") / golden.FILE
    tensors = load_file(path)
    del tensors["frames3/audio_lens"]
    save_file(tensors, path)
    ((measured, _),) = built_components(["encoder"])

    assert "case frames3 has no 'audio_lens'; record the golden cases again" in message(parity.measure, measured, 1)


def test_a_float_graph_that_misses_its_largest_difference_is_red(
    gated_chain: Path, message: Callable[..., str]
) -> None:
    params = chained_params()
    params["frontend"]["gates"]["checks"]["input_features"]["float_max_abs"] = 1e-9
    write_params(gated_chain, params)

    said = message(run_gate, ["frontend"])

    assert re.search(r"frontend: input_features float32: largest difference: \S+ \(limit <= 1e-09\)", said)
    assert "not published, the gate is red" in message(publish, ["frontend"])


def test_a_component_that_is_quantized_from_now_on_is_not_published_without_judgement(
    gated_chain: Path, message: Callable[..., str]
) -> None:
    """Its reports are about artifacts that had one graph; those of the second do not exist."""
    params = chained_params()
    for key in ("calibrate", "quantize"):
        params["frontend"][key] = {"log_mel": params["encoder"][key]["audio_encoder"]}
    gates = params["frontend"]["gates"]
    gates["checks"]["input_features"]["quantized_sqnr_db"] = 20
    gates["graphs"]["log_mel"]["latency_share"] = 0.001
    gates["quantized_share"] = 1.0
    write_params(gated_chain, params)

    assert "other limits than the gate judged by" in message(publish, ["frontend"])


def test_a_component_may_stay_float32_by_its_parameters_alone(gated_chain: Path) -> None:
    params = chained_params()
    params["encoder"] |= {"calibrate": {}, "quantize": {}}
    write_params(gated_chain, params)

    calibrate("encoder")
    quantize("encoder")

    assert artifact.check(INT8)["graphs"] == []
    ((measured, _),) = built_components(["encoder"])
    assert measured.kinds == [FLOAT]


def test_a_reference_of_other_inputs_is_another_artifact(gated_chain: Path, message: Callable[..., str]) -> None:
    folder = Path("models/inputs/encoder")
    tensors = load_file(folder / "held_out.safetensors")
    save_file({name: array * np.float32(0.5) for name, array in tensors.items()}, folder / "held_out.safetensors")
    reseal(folder)
    before = artifact.fingerprint(Path("models/reference/encoder"))

    reference("encoder")

    assert artifact.fingerprint(Path("models/reference/encoder")) != before
    assert "reference" in artifact.read_manifest(Path("models/reference/encoder"))["kind"]
    assert "made from other artifacts" in message(publish, ["encoder"])


# Published


def _files(name: str) -> set[str]:
    return {str(path.relative_to(_published(name))) for path in _published(name).rglob("*") if path.is_file()}


def test_the_page_on_the_format_names_every_key_of_a_manifest(gated_chain: Path) -> None:
    page = (ROOT / "docs/format.md").read_text(encoding="utf-8").partition("## manifest.json")[2].partition("\n### ")[0]
    told = {key for row in re.findall(r"^\| (`.+?`) \|", page, re.M) for key in re.findall(r"`(\w+)`", row)}

    manifests = [artifact.read_manifest(path.parent) for path in Path("models/published").glob("*/*/manifest.json")]

    assert set().union(*manifests) == told


def test_published_folders_hold_what_each_component_has(gated_chain: Path) -> None:
    common = {"README.md", "SHA256SUMS", "config.json", "golden/golden.safetensors", "manifest.json"}
    common |= {f"evidence/{name}" for name in ("bom.cdx.json", "gates.intoto.json", "provenance.intoto.json")}

    for name, stem in STEMS.items():
        stems = [stem] if name == "frontend" else [stem, f"{stem}_int8"]
        graphs = {f"onnx/{each}.onnx{suffix}" for each in stems for suffix in ("", ".data")}
        own = {"preprocessor_config.json"} if name == "frontend" else set()
        assert _files(name) == common | graphs | own


@pytest.mark.parametrize("instructions", ["amx_int8 avx512_bf16 avx512_vnni avx512f avx2", "avx2", ""])
def test_the_card_of_the_front_end_speaks_of_one_float32_graph(instructions: str, gated_chain: Path) -> None:
    _measured_on("frontend", instructions)
    publish(["frontend"])
    card = (_published("frontend") / "README.md").read_text()
    (machine,) = re.findall(
        rf"Latency of `log_mel` on .* \({instructions}\), .*", card
    )  # whose instructions may be for int8

    said = card.replace(machine, "")
    assert not re.search(r"int8|quantized|bfloat16|with VNNI|x64quantprecision|speed-up|top-1", said, re.IGNORECASE)
    assert "tags: [onnx, qwen2.5-omni, speech]" in card
    assert "## Interface of `log_mel.onnx`\n" in card
    assert f"| output | `input_features` | FLOAT | [batch, {MELS}, frames] |" in card
    assert "| input_features float32 | largest difference |" in card
    assert "| samples | float32 ms |" in card
    assert "Quantization: none" in card
    assert "**Synthetic weights.**" in card


def test_the_card_of_the_encoder_gives_both_graphs_and_no_top1(gated_chain: Path) -> None:
    card = (_published("encoder") / "README.md").read_text()

    assert "tags: [onnx, int8, qwen2.5-omni, speech]" in card
    assert "## Interface of `audio_encoder.onnx` and `audio_encoder_int8.onnx`" in card
    assert f"| output | `audio_features` | FLOAT | [batch, tokens, {EMBEDDING}] |" in card
    assert "Blocks of 200 frames" in card
    assert "top-1" not in card
    assert "Quantization: float32, int8-token" in card


@pytest.mark.parametrize("name", [*CHAIN, *COMPOSED])
def test_the_code_of_the_card_runs_as_it_stands_in_the_published_folder(
    name: str, gated_chain: Path, tmp_path: Path
) -> None:
    downloaded = tmp_path / "downloaded"
    shutil.copytree(_published(name), downloaded)
    (code,) = re.findall(r"```python\n(.*?)```", (downloaded / "README.md").read_text(), re.DOTALL)
    signal, shape = {
        "frontend": ("input_features", (1, MELS, 10)),
        "encoder": ("audio_features", (1, 4, EMBEDDING)),
        "projection": ("audio_logits", (1, 1, 160)),
        "thinker": ("np.array(ids)", (8,)),
        "talker": ("np.array(codes)", None),  # it ends when it wants to
        "token2wav": ("waveform", (50 * 2 * 30,)),
        "audio_core": ("waveform", (25 * 2 * 30,)),
    }[name]

    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nprint({signal}.shape, np.isfinite({signal}).all())"],
        cwd=downloaded, capture_output=True, text=True, check=False,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(" True\n")
    assert shape is None or done.stdout.startswith(str(shape))


@pytest.mark.parametrize("name", [*CHAIN, pytest.param(*COMPOSED, marks=pytest.mark.slow)])
def test_a_published_folder_passes_its_own_parity_and_contract(name: str, gated_chain: Path) -> None:
    measured, manifest = from_published(_published(name))

    assert measured.kinds == ([FLOAT] if name == "frontend" else [FLOAT, QUANTIZED])
    run_parity([str(_published(name))])
    run_contract([str(_published(name))])
    files = {path.name for graph in measured.graphs.values() for path in graph.files.values()}
    assert set(manifest["tensors"]) == files


@pytest.mark.parametrize("saturates", [False, True])
def test_every_graph_opens_whether_sums_saturate_or_not(
    saturates: bool, gated_chain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime turns weights to UINT8 there, node by node, and fails where it finds what two of them share."""
    monkeypatch.setattr("qwen_omni_onnx.common.session.sums_saturate", lambda: saturates)
    graphs = sorted(Path("models/published").rglob("*.onnx"))

    assert {"bigvgan_int8.onnx", "dit_step_int8.onnx", "thinker_int4.onnx"} <= {graph.name for graph in graphs}
    for graph in graphs:
        open_session(graph)


def test_the_published_graphs_run_one_after_another_from_sound_to_logits(gated_chain: Path) -> None:
    """What a user does with the three folders; quantized where there is a quantized graph."""
    seconds = np.arange(24_000) / 16_000
    audio = (0.3 * np.sin(2 * np.pi * 300 * seconds * (1 + seconds))).astype(np.float32)
    logits = {}
    for suffix in ("", "_int8"):
        sessions = {
            name: open_session(_published(name) / "onnx" / f"{stem}{suffix if name != 'frontend' else ''}.onnx")
            for name, stem in STEMS.items()
        }
        heard = run(sessions["frontend"], {"audio": audio[None], "audio_lens": np.array([len(audio)])})
        spoken = run(sessions["encoder"], heard)
        logits[suffix] = run(sessions["projection"], {"hidden_states": spoken["audio_features"]})["audio_logits"]

    assert logits[""].shape == (1, 37, 160)
    assert sqnr_db(logits[""], logits["_int8"]) > 15


def test_everything_is_published_where_nothing_is_named(gated_chain: Path) -> None:
    shutil.rmtree("models/published")

    publish([])

    assert {path.name for path in Path("models/published").iterdir()} == {*CHAIN, *COMPOSED}
    assert load().components == list(CHAIN)
