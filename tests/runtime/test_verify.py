"""``python -m qwen_omni_onnx verify``: what a user finds out about a download on their own machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from cli import verify as check
from conftest import CHAIN, COMPOSED
from tamper import edit, reseal

from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.common.agreement import Verdict
from qwen_omni_onnx.graph_checks import limits_of
from qwen_omni_onnx.verification import verify


def _folder(component: str) -> Path:
    (folder,) = Path("models/published", component).iterdir()
    return folder


def test_everything_published_verifies_and_says_how_far_it_drifts(gated_chain: Path) -> None:
    found = {each.component: each for each in verify(Path("models/published"))}

    assert set(found) == {*CHAIN, *COMPOSED}
    for component, each in found.items():
        judged = [row for row in artifact.read_manifest(each.folder)["gates"] if _told_by_golden_cases(row["metric"])]
        assert len(each.drifts) == len(judged) > 0, component
        for drift, verdict in zip(each.drifts, judged, strict=True):
            assert drift.verdict == Verdict.read(verdict)
            assert drift.ok
            assert drift.here == pytest.approx(drift.verdict.value, rel=1e-3)  # the same machine
        assert each.files == len(artifact.read_manifest(each.folder)["files"])
    assert found["talker"].graphs == ["talker.onnx", "talker_int8.onnx"]
    assert found["frontend"].graphs == ["log_mel.onnx"]


def _told_by_golden_cases(key: str) -> bool:
    return "bfloat16" in key or key.endswith(
        ("sqnr_db", "token_median_db", "max_abs", "stft", "top1", "top1_near_tie", "kl")
    )


def test_the_command_prints_a_line_for_each(gated_chain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = _folder("talker")
    check([str(folder)])

    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{folder}: ")
    assert lines[0].endswith("MB, each byte as published")
    assert lines[1] == "  not signed: whoever replaced its files and their hashes would go unnoticed"
    assert lines[2] == "  talker.onnx, talker_int8.onnx: interface as published"
    assert all(line.startswith("  ok ") for line in lines[3:])
    assert "prompt quantized: SQNR, median token, below bfloat16's: " in "\n".join(lines)
    assert len(lines) == 3 + 16


def test_a_flipped_byte_is_found(gated_chain: Path, message: Callable[..., str]) -> None:
    data = _folder("encoder") / "onnx/audio_encoder_int8.onnx.data"
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 4
    data.write_bytes(content)

    assert message(check, [str(data.parents[1])]) == (
        f"{data}: its SHA-256 is not the manifest's; download the folder again, or publish it again"
    )


def test_a_graph_that_computes_something_else_under_a_manifest_that_fits_is_found(
    gated_chain: Path, message: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = _folder("projection")
    edit(folder / "onnx", "thinker_to_talker_proj.bias", lambda bias: np.negative(bias, out=bias), "qwen25_7b_audio")
    reseal(folder)

    said = message(check, [str(folder)])
    assert said == f"{folder}: audio_logits float32: SQNR, worst case misses its limit on this machine"
    assert "  MISSED audio_logits float32: SQNR, worst case: " in capsys.readouterr().out


def test_another_interface_is_found(gated_chain: Path, message: Callable[..., str]) -> None:
    folder = _folder("projection")
    graph = folder / "onnx/qwen25_7b_audio.onnx"
    model = ir.load(graph)
    model.graph.inputs[0].name = "states"
    ir.save(model, graph)
    reseal(folder)

    assert f"{graph}: inputs: ('states', " in message(check, [str(folder)])


def test_a_manifest_names_no_module_that_is_imported(gated_chain: Path, message: Callable[..., str]) -> None:
    folder = _folder("token2wav")
    manifest = artifact.read_manifest(folder)
    for name in ("os", "qwen_omni_onnx.token2wav", ["os"]):
        artifact.write_json(folder / artifact.MANIFEST, manifest | {"component": name, "runtime": "os"})
        assert f"nothing here runs the graphs of component {str(name)!r} together" in message(check, [str(folder)])


def test_graphs_under_the_name_of_another_component_are_told(gated_chain: Path, message: Callable[..., str]) -> None:
    folder = _folder("encoder")
    manifest = artifact.read_manifest(folder)
    artifact.write_json(folder / artifact.MANIFEST, manifest | {"component": "thinker"})

    said = message(check, [str(folder)])
    assert said == f"{folder}: no graph 'thinker' in it, as a thinker has; do not use the folder"


def test_a_folder_of_an_older_version_and_none_at_all_are_told(gated_chain: Path, message: Callable[..., str]) -> None:
    folder = _folder("talker")
    manifest = artifact.read_manifest(folder)
    interface = manifest.pop("interface")
    artifact.write_json(folder / artifact.MANIFEST, manifest)

    assert "published by an older version; publish again" in message(check, [str(folder)])
    for spoiled in ({}, {"kind": "float32"}, {**manifest["gates"][0], "limit": "none"}, 3):
        artifact.write_json(folder / artifact.MANIFEST, manifest | {"interface": interface, "gates": [spoiled]})
        assert "holds no gates that this version can read" in message(check, [str(folder)])
    assert message(check, ["nowhere"]).startswith("nowhere: nothing published there")
    assert message(check, ["models/onnx"]).startswith("models/onnx: nothing published there")


@pytest.mark.parametrize("kept", [[], ["float32"], ["quantized"]])
def test_a_folder_whose_limits_were_taken_out_is_refused(
    gated_chain: Path, message: Callable[..., str], kept: list[str]
) -> None:
    folder = _folder("projection")
    manifest = artifact.read_manifest(folder)
    gates = [gate for gate in manifest["gates"] if gate["kind"] in kept]
    artifact.write_json(folder / artifact.MANIFEST, manifest | {"gates": gates})

    missing = "quantized" if kept == ["float32"] else "float32"
    said = message(verify, folder)
    assert said == f"{folder}: its manifest has no limit for its {missing} graphs' golden cases; do not use it"


@pytest.mark.parametrize("stem", ["../../outside", "/outside", "..", "", "a\nb", "a/b", "no_such"])
def test_a_manifest_that_leads_to_a_graph_elsewhere_is_refused(
    gated_chain: Path, message: Callable[..., str], stem: str
) -> None:
    folder = _folder("frontend")
    (graph,) = folder.glob("onnx/*.onnx")
    (folder.parent / "outside.onnx").write_bytes(graph.read_bytes())
    manifest = artifact.read_manifest(folder)
    (interface,) = manifest["interface"].values()
    artifact.write_json(folder / artifact.MANIFEST, manifest | {"interface": {stem: interface}})

    said = message(verify, folder)
    assert "interface in its manifest is not what it must be" in said or "no_such.onnx: not in the manifest" in said


def test_graphs_that_meet_a_limit_are_told_with_what_would_raise_it(
    gated_chain: Path, message: Callable[..., str]
) -> None:
    folder = _folder("frontend")

    for limits, what in (
        ({"max_seconds": 1e-9}, "took longer than 1e-09 s"),
        ({"max_gib": 1e-9}, "took more than 1.07e-09 GB of memory"),
    ):
        assert message(verify, folder, **limits) == (
            f"{folder}: running its graphs {what}; do not use it, unless you trust it and --max-seconds or --max-gib "
            "is too low for this machine"
        )
    for wrong in (0, -1, float("nan"), float("inf")):
        assert message(verify, folder, max_seconds=wrong) == f"max_seconds: {wrong:g}; give a number above 0"


def test_what_a_folder_may_take_grows_with_it_and_with_nothing_else() -> None:
    small, large = limits_of(0), limits_of(5 * 10**9)

    assert (small.seconds, large.seconds) == (1800, 6300)
    assert small.nbytes >= 4 << 30
    assert large.nbytes - small.nbytes == 20 * 10**9
