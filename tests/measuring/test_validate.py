"""Stage 4 and 5: the gates' own tests break the artifacts on purpose and demand red."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from conftest import NAME, ROOT, build, build_here, tiny_params, write_params
from tamper import edit, flip_sign, reseal

from omni.params import load
from omni.reports import GateReport, SweepReport
from omni.resources import measure_module
from publish.__main__ import publish
from publish.evidence import gather
from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.common.agreement import FLOAT, QUANTIZED, Verdict
from qwen_omni_onnx.common.errors import UserError
from validate import contract, latency, parity
from validate.__main__ import run_contract, run_gate, run_latency, run_memory, run_parity, run_rebuild
from validate.measured import built_components, from_published

ONNX, INT8 = Path("models/onnx") / NAME, Path("models/quantized") / NAME
FLOAT_DATA, INT8_DATA = ONNX / "qwen25_7b_audio.onnx.data", INT8 / "qwen25_7b_audio_int8.onnx.data"
PUBLISHED = Path("models/published") / NAME / f"qwen2.5-omni-7b-{NAME}-onnx-synthetic"
CHECK = "audio_logits"


def _swap_channels(array: np.ndarray) -> None:
    array[:, [0, 1]] = array[:, [1, 0]]


def _drop(array: np.ndarray) -> None:
    array[...] = 0


def _put_nan(array: np.ndarray) -> None:
    array[0, 0] = np.nan


def _put_nan_into_vector(array: np.ndarray) -> None:
    array[0] = np.nan


def _truncate(folder: Path) -> None:
    (data,) = folder.glob("*.data")
    with data.open("r+b") as file:
        file.truncate(data.stat().st_size - 4)


def _stale(folder: Path) -> None:
    """The external data of a build from other weights."""
    (data,) = folder.glob("*.data")
    data.write_bytes(_from_other_weights()[data.name])


@functools.cache
def _from_other_weights() -> dict[str, bytes]:
    """External data of a tiny projection of another seed, by file name."""
    with tempfile.TemporaryDirectory() as other:
        build(Path(other), seed=1)
        return {path.name: path.read_bytes() for path in Path(other).rglob("*.data")}


WEIGHTS = {
    "flip a sign": {ONNX: ("val_0", flip_sign), INT8: ("thinker_to_talker_proj/MatMul.weight_int8", flip_sign)},
    "swap channels": {ONNX: ("val_2", _swap_channels), INT8: ("codec_head/MatMul.weight_int8", _swap_channels)},
    "drop the bias": {
        ONNX: ("thinker_to_talker_proj.bias", _drop),
        INT8: ("thinker_to_talker_proj.bias_smoothed", _drop),
    },
    "put a NaN": {ONNX: ("val_0", _put_nan), INT8: ("codec_head/MatMul.weight_scale", _put_nan_into_vector)},
}
FILES = {"stale data": _stale, "truncated data": _truncate}


def _break(mutation: str, folder: Path) -> None:
    if mutation in FILES:
        FILES[mutation](folder)
    else:
        edit(folder, *WEIGHTS[mutation][folder])


def _what_turns_red() -> list[str]:
    """Names of the checks and metrics that see what was broken; the rebuild runs only if nothing else does."""
    red: list[str] = []
    for measurements in ([run_contract, run_parity], [run_memory]):
        for measure in measurements:
            try:
                measure([NAME])
            except UserError as problem:
                red.append(str(problem))
        with pytest.raises(UserError):
            run_gate([NAME])
        red += [verdict.label for verdict in GateReport.read(NAME).verdicts if not verdict.ok]
        if red:
            break
    return red


def test_an_unbroken_artifact_passes_every_gate_and_is_published(gated: Path) -> None:
    report = GateReport.read(NAME)

    assert report.passed
    assert len(report.verdicts) == 12
    assert artifact.check(PUBLISHED)["synthetic_weights"] is True


@pytest.mark.parametrize("folder", [ONNX, INT8], ids=["float32", "quantized"])
@pytest.mark.parametrize("mutation", [*WEIGHTS, *FILES])
def test_a_broken_artifact_turns_the_contract_red_and_blocks_publishing(
    mutation: str, folder: Path, gated: Path, message: Callable[..., str]
) -> None:
    _break(mutation, folder)

    said = message(run_contract, [NAME])
    refused = message(publish, [NAME])

    data = FLOAT_DATA if folder == ONNX else INT8_DATA
    assert data.name in said
    assert str(data) in refused


@pytest.mark.parametrize("folder", [ONNX, INT8], ids=["float32", "quantized"])
@pytest.mark.parametrize("mutation", [*WEIGHTS, *FILES])
def test_a_broken_artifact_with_a_fitting_manifest_turns_a_gate_red_and_blocks_publishing(
    mutation: str, folder: Path, gated: Path, message: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a defective stage would have made. Metrics see it, or quantizing again for the memory measurement does."""
    monkeypatch.setattr("omni.resources.measure_module", build_here)
    _break(mutation, folder)
    reseal(folder)

    red = _what_turns_red()
    refused = message(publish, [NAME])

    assert red
    assert "not published, the gate is red" in refused or "made from" in refused


def test_a_flipped_weight_of_the_float_graph_is_seen_by_parity_itself(gated: Path) -> None:
    edit(ONNX, "val_0", flip_sign)
    reseal(ONNX)
    ((measured, params),) = built_components([NAME])

    found = parity.measure(measured, threads=1)["audio_logits"][FLOAT]

    limit = params.gates.check("audio_logits").float_sqnr_db
    assert limit is not None
    assert found.sqnr_db < limit


def test_a_nan_is_told_by_graph_and_place(gated: Path, message: Callable[..., str]) -> None:
    edit(ONNX, "val_0", _put_nan)
    reseal(ONNX)
    ((measured, _),) = built_components([NAME])

    said = message(parity.measure, measured, 1)

    assert "qwen25_7b_audio.onnx: case seq1: audio_logits: not finite at [0, 0, 0]" in said
    checks = {row.check: row for row in contract.check(measured) if row.graph == f"qwen25_7b_audio {FLOAT}"}
    assert checks["weights are finite"].detail == "val_0 holds NaN or infinity at [0, 0]"


def _contract_rows() -> dict[tuple[str, str], str]:
    ((measured, _),) = built_components([NAME])
    rows = [row for row in contract.check(measured) if not row.ok]
    return {(row.graph.removeprefix("qwen25_7b_audio "), row.check): row.detail for row in rows}


def test_the_contract_sees_links_modes_and_moved_data(gated: Path) -> None:
    check = "external data is reachable, plain and fully used"
    FLOAT_DATA.chmod(0o600)
    assert "mode 0600, not 0644" in _contract_rows()[FLOAT, check]

    moved = Path("elsewhere")
    FLOAT_DATA.rename(moved)
    assert (FLOAT, check) in _contract_rows()

    FLOAT_DATA.symlink_to(moved.absolute())
    assert "is a link" in _contract_rows()[FLOAT, check]


def _resaved(change: Callable[[ir.Model], object], graph: Path = ONNX / "qwen25_7b_audio.onnx") -> None:
    model = ir.load(graph)
    change(model)
    ir.save(model, graph)
    graph.chmod(0o644)


def test_the_contract_sees_overlapping_and_overlong_tensors(gated: Path) -> None:
    check = "external data is reachable, plain and fully used"

    def overlap(model: ir.Model) -> None:
        tensors = [v.const_value for v in model.graph.initializers.values()]
        first, last = min(tensors, key=lambda t: t.offset), max(tensors, key=lambda t: t.offset)
        moved = ir.ExternalTensor(
            last.location, first.offset, last.length, last.dtype, shape=last.shape, name=last.name, base_dir=str(ONNX)
        )
        model.graph.initializers[last.name].const_value = moved

    _resaved(overlap)
    assert "starts at byte" in _contract_rows()[FLOAT, check]

    with FLOAT_DATA.open("ab") as file:
        file.write(b"more")
    assert (FLOAT, check) in _contract_rows()


def test_the_contract_sees_a_renamed_port_another_ir_version_a_foreign_operator_and_a_private_path(gated: Path) -> None:
    def change(model: ir.Model) -> None:
        model.graph.inputs[0].name = "hidden"
        model.ir_version = 9
        model.opset_imports["my.domain"] = 1
        node = ir.node("Twice", [model.graph.outputs[0]], domain="my.domain")
        node.doc_string = "/home/somebody/model.py"
        model.graph.append(node)

    _resaved(change)
    rows = _contract_rows()

    assert "hidden FLOAT [batch, seq, 96] should be hidden_states FLOAT" in rows[FLOAT, "interface"]
    assert rows[FLOAT, "IR version"] == "9, promised was 10"
    assert rows[FLOAT, "operators are standard or com.microsoft"] == "operators of my.domain"
    assert "found /home/" in rows[FLOAT, "no path, user or host name inside"]
    assert "4 nodes, promised were 3" in rows[FLOAT, "size of graph and data"]


def test_a_graph_that_was_not_quantized_is_seen_in_what_runs(gated: Path) -> None:
    for suffix in ("", ".data"):
        shutil.copyfile(f"{ONNX}/qwen25_7b_audio.onnx{suffix}", f"{INT8}/qwen25_7b_audio_int8.onnx{suffix}")
    _resaved(
        lambda model: [setattr(v, "const_value", _relocated(v.const_value)) for v in model.graph.initializers.values()],
        INT8 / "qwen25_7b_audio_int8.onnx",
    )

    rows = _contract_rows()

    assert (
        "0 MatMulIntegerToFloat in the optimized graph, 2" in rows[QUANTIZED, "quantized operators after optimization"]
    )


def _relocated(tensor: ir.ExternalTensor) -> ir.ExternalTensor:
    return ir.ExternalTensor(
        "qwen25_7b_audio_int8.onnx.data", tensor.offset, tensor.length, tensor.dtype,
        shape=tensor.shape, name=tensor.name, base_dir=str(INT8),
    )  # fmt: skip


@pytest.mark.parametrize("measurement", ["contract", "parity", "latency", "memory"])
def test_a_missing_report_is_a_miss(measurement: str, gated: Path, message: Callable[..., str]) -> None:
    Path(f"reports/{NAME}/{measurement}.json").unlink()

    assert f"{measurement}.json: missing" in message(run_gate, [NAME])


def test_a_report_about_another_artifact_is_a_miss(gated: Path, message: Callable[..., str]) -> None:
    path = Path(f"reports/{NAME}/parity.json")
    report = json.loads(path.read_text())
    report["artifacts"]["quantized"] = "0" * 64
    path.write_text(json.dumps(report))

    assert "made from other artifacts" in message(run_gate, [NAME])
    assert "made from other artifacts" in message(gather, NAME, load())


@pytest.mark.parametrize(
    ("measurement", "place", "value", "expected"),
    [
        ("parity", ["checks", CHECK, "float32", "max_abs"], "much", "parity.json: is not what this version writes"),
        ("parity", ["checks", CHECK, "float32", "sqnr_db"], 0.5, f"{CHECK} float32: SQNR, worst case: 0.5 dB"),
        ("parity", ["checks"], {}, f"gates.checks.{CHECK}: there is none of that name to judge"),
        (
            "parity",
            ["checks", CHECK, "quantized", "top1"],
            0.1,
            f"{CHECK} quantized: top-1 agreement, strict: 0.1 (limit >= 0.6)",
        ),
        ("latency", ["graphs", "qwen25_7b_audio", "lengths"], [], "latency.json: is not what this version writes"),
        ("memory", ["build", "export", "peak_bytes"], 10**12, "float32: memory of export above the libraries'"),
        ("memory", ["build", "quantize", "rebuilt_the_same"], False, "second quantize gives the same bytes: 0"),
        ("memory", ["graphs"], None, "memory.json: is not what this version writes"),
        ("contract", ["checks"], [], "contract: the report holds no check"),
    ],
)
def test_a_bad_value_in_a_report_is_a_miss_that_names_it(
    measurement: str, place: list[str], value: object, expected: str, gated: Path, message: Callable[..., str]
) -> None:
    path = Path(f"reports/{NAME}/{measurement}.json")
    report = json.loads(path.read_text())
    table = report
    for key in place[:-1]:
        table = table[key]
    table[place[-1]] = value
    path.write_text(json.dumps(report))

    said = message(run_gate, [NAME])

    assert expected in said
    refused = message(publish, [NAME])
    assert "not published, the gate is red" in refused or "is not what this version writes" in refused


def test_a_speed_that_was_missed_on_a_busy_machine_says_so(gated: Path, message: Callable[..., str]) -> None:
    path = Path(f"reports/{NAME}/latency.json")
    report = json.loads(path.read_text())
    busy = {"share": 0.0, "cores_busy_with_other_processes": 1.25, "attempts": 3, "seconds": 62.5}
    report["graphs"]["qwen25_7b_audio"]["lengths"][1] |= busy
    path.write_text(json.dumps(report))

    said = message(run_gate, [NAME])

    assert (
        "other processes kept 1.25 cores busy through 3 attempts in 62.5 s: run it again on a quieter machine" in said
    )


def test_limits_that_were_changed_after_the_gate_block_publishing(gated: Path, message: Callable[..., str]) -> None:
    params = tiny_params()
    params[NAME]["gates"]["quantized_share"] = 0.9
    write_params(gated, params)

    assert "params.yaml has other limits than the gate judged by" in message(publish, [NAME])


def test_a_second_build_is_the_same_bytes(
    gated: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("omni.resources.measure_module", build_here)
    before = [artifact.fingerprint(folder) for folder in (ONNX, INT8)]

    run_rebuild([NAME])

    assert capsys.readouterr().out == "projection: the same bytes again\n"
    assert [artifact.fingerprint(folder) for folder in (ONNX, INT8)] == before
    assert sorted(path.name for path in Path("models").glob(".*")) == []


@pytest.mark.parametrize(
    ("folder", "tensor", "data"),
    [(ONNX, "val_0", FLOAT_DATA), (INT8, "codec_head/MatMul.weight_int8", INT8_DATA)],
    ids=["float32", "quantized"],
)
def test_a_second_build_names_the_file_that_it_makes_otherwise(
    folder: Path, tensor: str, data: Path, gated: Path, message: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("omni.resources.measure_module", build_here)
    edit(folder, tensor, flip_sign)
    reseal(folder)

    assert message(run_rebuild, [NAME]) == f"{data}: a second build gives other bytes"


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda path: path.unlink(), "export.json: missing"),
        (
            lambda path: path.write_text("{}"),
            "export.json: is not what this version writes (component: Field required)",
        ),
        (
            lambda path: artifact.write_json(path, json.loads(path.read_text()) | {"artifacts": {"onnx": "0"}}),
            "of another build",
        ),
    ],
    ids=["missing", "other", "stale"],
)
def test_what_export_took_is_to_be_of_the_graph_that_is_there(
    spoil: Callable[[Path], object], expected: str, gated: Path, message: Callable[..., str]
) -> None:
    spoil(Path(f"reports/{NAME}/export.json"))

    assert expected in message(run_memory, [NAME])


def test_a_killed_measurement_is_told(
    gated: Path, message: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (gated / "sitecustomize.py").write_text(
        "import os, signal, sys\nif 'quantize' in sys.argv: os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(gated), str(ROOT)]))
    monkeypatch.setattr(
        "omni.resources.measure_module",
        lambda module, *rest: (measure_module if module == "quantize" else build_here)(module, *rest),
    )

    said = message(run_memory, [NAME])

    assert "python -m quantize projection" in said
    assert "SIGKILL" in said


def test_speed_up_is_the_median_ratio_and_its_interval_holds_it() -> None:
    random = np.random.default_rng(0)
    slow = list(3 * (1 + 0.01 * random.standard_normal(60)))
    fast = list(1 + 0.01 * random.standard_normal(60))

    speedup, low, high = latency.speedup_interval(slow, fast)

    assert speedup == pytest.approx(3, rel=0.01)
    assert low < speedup < high
    assert high - low < 0.05


def test_a_burst_that_slows_the_machine_down_does_not_change_the_speed_up() -> None:
    times = np.ones(60)
    times[10:30] *= 7

    assert latency.speedup_interval(list(2 * times), list(times)) == pytest.approx((2, 2, 2))


@pytest.mark.parametrize(
    ("each", "seconds", "rounds"),
    [
        (0.125, 1.0, 20),
        (0.125, 4.0, 32),
        (0.125, 0.5, 20),
        (1.5, 1.0, 20),
        (2.0, 1.0, 16),
        (4.0, 1.0, 10),
        (9.0, 1.0, 10),
        (0.125, 99, 400),
    ],
)
def test_as_many_rounds_are_timed_as_an_interval_needs(
    each: float, seconds: float, rounds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs of whole seconds are timed half as often: 20 rounds of a large graph would take minutes."""
    now = [0.0]
    monkeypatch.setattr(latency.time, "perf_counter", lambda: now[0])

    def run() -> None:
        now[0] += each / 2

    times = latency._interleaved({"float32": run, "quantized": run}, 20, seconds)

    assert {name: len(each) for name, each in times.items()} == {"float32": rounds, "quantized": rounds}


def test_the_sweep_records_the_best_of_what_it_tried(gated: Path) -> None:
    run_latency([NAME], sweep=True)

    found = SweepReport.read(NAME).graphs["qwen25_7b_audio"]
    for kind, tried in found.tried.items():
        assert found.best[kind]["ms"] == min(entry["ms"] for entry in tried)
        assert {entry["optimization"] for entry in tried} == {"disabled", "basic", "extended", "all"}
    publish([NAME])
    best = artifact.read_manifest(PUBLISHED)["best_session_options"]["qwen25_7b_audio"]
    assert best["quantized"]["provider"] == "CPUExecutionProvider"


def test_a_provider_that_is_not_here_is_named(gated: Path, message: Callable[..., str]) -> None:
    assert "no CUDAExecutionProvider here" in message(run_latency, [NAME], provider="CUDAExecutionProvider")


def test_nothing_built_is_told_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, message: Callable[..., str]
) -> None:
    monkeypatch.chdir(tmp_path)

    assert "make repro" in message(run_parity, [])
    write_params(tmp_path, tiny_params())
    assert "make repro" in message(publish, [])


def _without_torch(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run ``python -m validate`` where torch, transformers and the whole of the exporter cannot be imported."""
    code = (
        "import runpy, sys\n"
        "sys.modules.update(dict.fromkeys(['torch', 'transformers', 'onnxscript']))\n"
        "sys.argv = ['validate', *sys.argv[1:]]\n"
        "runpy.run_module('validate', run_name='__main__', alter_sys=True)"
    )
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def test_a_published_folder_is_checked_without_torch_and_without_the_build(gated: Path, tmp_path: Path) -> None:
    downloaded = tmp_path / "downloaded"
    shutil.copytree(PUBLISHED, downloaded)
    for name in ("models", "reports", "params.yaml"):
        path = gated / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    done = _without_torch("parity", str(downloaded))

    assert done.returncode == 0, done.stderr
    assert "top-1, strict" in done.stdout
    assert "MISS" not in done.stdout


def test_one_flipped_bit_in_a_published_folder_is_found(gated: Path) -> None:
    data = PUBLISHED / "onnx" / "qwen25_7b_audio_int8.onnx.data"
    content = bytearray(data.read_bytes())
    content[100] ^= 1
    data.write_bytes(content)

    done = _without_torch("parity", str(PUBLISHED))

    assert done.returncode == 1
    assert "its SHA-256 is not the manifest's" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_published_folder_is_judged_by_the_limits_it_was_published_with(gated: Path) -> None:
    manifest = artifact.read_manifest(PUBLISHED)
    manifest["parameters"]["gates"]["checks"]["audio_logits"]["quantized_sqnr_db"] = 90
    artifact.write_json(PUBLISHED / artifact.MANIFEST, manifest)

    done = _without_torch("parity", str(PUBLISHED))

    assert done.returncode == 1
    assert "audio_logits quantized: SQNR, worst case" in done.stderr


def test_the_published_folder_holds_what_the_layout_promises(gated: Path) -> None:
    names = {str(path.relative_to(PUBLISHED)) for path in PUBLISHED.rglob("*") if path.is_file()}

    assert names == {
        "README.md", "SHA256SUMS", "config.json", "golden/golden.safetensors", "manifest.json",
        "onnx/qwen25_7b_audio.onnx", "onnx/qwen25_7b_audio.onnx.data",
        "onnx/qwen25_7b_audio_int8.onnx", "onnx/qwen25_7b_audio_int8.onnx.data",
        "evidence/bom.cdx.json", "evidence/gates.intoto.json", "evidence/provenance.intoto.json",
    }  # fmt: skip
    checked = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=PUBLISHED, capture_output=True, check=False)
    assert checked.returncode == 0
    manifest = artifact.check(PUBLISHED)
    source = json.loads((ONNX / "source.json").read_text())
    assert manifest["source"] == source
    assert manifest["tensors"]["qwen25_7b_audio.onnx"]["val_0"]["shape"] == [96, 72]
    assert all(Verdict.read(verdict).ok for verdict in manifest["gates"])
    assert set(manifest["program"]) == {"commit", "modified"}


def test_the_card_says_what_the_artifact_is_and_what_it_is_not(gated: Path) -> None:
    card = (PUBLISHED / "README.md").read_text()

    assert card.startswith("---\nlicense: apache-2.0\n")
    assert "base_model" not in card
    assert "**Synthetic weights.**" in card
    assert "This is a shortcut through the Talker, not a Talker" in card
    assert "| input | `hidden_states` | FLOAT | [batch, seq, 96] |" in card
    assert "| audio_logits quantized | SQNR, worst case |" in card
    measured, manifest = from_published(PUBLISHED)
    assert manifest["name"] in card
    assert measured.name == NAME


def published_as(name: str) -> Path:
    """Let what is published look as if it had been published under another name."""
    other = PUBLISHED.with_name(name)
    shutil.copytree(PUBLISHED, other)
    manifest = artifact.read_json(other / artifact.MANIFEST)
    artifact.write_json(other / artifact.MANIFEST, {**manifest, "name": name})
    return other


def test_publishing_from_other_weights_replaces_what_was_published_under_another_name(gated: Path) -> None:
    published_as("qwen2.5-omni-7b-projection-onnx")

    publish([NAME])

    assert [path.name for path in PUBLISHED.parent.iterdir()] == [PUBLISHED.name]


def test_a_copy_of_what_was_published_stays_and_is_told(gated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = PUBLISHED.with_name(f"{PUBLISHED.name}-backup")
    shutil.copytree(PUBLISHED, copy)
    before = artifact.check(copy)

    publish([NAME])

    assert artifact.check(copy) == before
    said = (
        "another published projection, and not as it was written here; move it away, or qwen_omni_onnx.load finds two"
    )
    assert capsys.readouterr().err == f"{copy}: {said}\n"


@pytest.mark.parametrize("own", ["notes.txt", "onnx/notes.txt", ".git/HEAD", "link"])
def test_an_earlier_publication_with_a_file_of_the_user_s_stays(
    gated: Path, capsys: pytest.CaptureFixture[str], own: str
) -> None:
    other = published_as("qwen2.5-omni-7b-projection-onnx")
    (other / own).parent.mkdir(exist_ok=True)
    (other / own).symlink_to("nowhere") if own == "link" else (other / own).write_text("mine")

    publish([NAME])

    assert (other / "onnx").is_dir()
    assert (other / own).is_symlink() or (other / own).read_text() == "mine"
    assert capsys.readouterr().err.startswith(f"{other}: another published projection")


def test_what_is_no_publication_of_this_component_stays_and_is_not_told(
    gated: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = PUBLISHED.parent
    for name, facts in (("other", {"kind": "published", "component": "encoder"}), ("built", {"kind": "onnx"})):
        with artifact.writing(place / name, **facts, name=name) as beside:
            (beside / "graph.onnx").write_text("graph")
    (place / "notes").mkdir()
    (place / "notes" / "manifest.json").write_text("{}")
    (place / "a link").symlink_to("notes")
    before = sorted(path.name for path in place.iterdir())

    publish([NAME])

    assert sorted(path.name for path in place.iterdir()) == before
    assert capsys.readouterr().err == ""


def test_a_file_of_the_user_s_in_what_is_published_is_not_lost(gated: Path, message: Callable[..., str]) -> None:
    (PUBLISHED / "notes.txt").write_text("mine")

    for dry_run in (True, False):
        assert message(publish, [NAME], dry_run=dry_run) == (
            f"{PUBLISHED}: 'notes.txt' is not of the artifact, and would be lost with it; move it"
        )

    assert (PUBLISHED / "notes.txt").read_text() == "mine"


def test_a_dry_run_writes_nothing(gated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(PUBLISHED)

    publish([NAME], dry_run=True)

    assert str(PUBLISHED) in capsys.readouterr().out
    assert not PUBLISHED.exists()
