"""A quantized graph that fits its calibration alone warns; one that is as close elsewhere does not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import chained_params, write_params
from safetensors.numpy import load_file, save_file
from tamper import reseal

from omni.inputs import CALIBRATION, FOLDER, HELD_OUT, feed_whole
from omni.overfitting import MOST_DB, MOST_KL, Overfitting, SplitAgreement
from omni.reports import GateReport, ParityReport
from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.common.agreement import FLOAT, QUANTIZED
from qwen_omni_onnx.common.metrics import token_db
from qwen_omni_onnx.common.session import open_session, run
from validate import overfitting
from validate.__main__ import run_gate, run_parity, run_report
from validate.measured import built_components

PROMPT = SplitAgreement(outputs=3, sqnr_db=20.0, token_median_db=20.0, token_p95_db=15.0, kl=0.1, top1=0.9)


def _measured(name: str) -> dict[str, Overfitting]:
    ((measured, params),) = built_components([name])
    return overfitting.measure(measured, params, threads=1)


def _with_other_held_out(name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Let the held-out recordings be others, as if the golden cases had been cut from them."""
    path = FOLDER / name / f"{HELD_OUT}.safetensors"
    save_file({clip: change(array) for clip, array in load_file(path).items()}, path)
    reseal(path.parent)
    manifest = Path("models/reference") / name / artifact.MANIFEST
    content = artifact.read_json(manifest)
    content["made_from"]["inputs"] = artifact.fingerprint(path.parent)
    artifact.write_json(manifest, content)


# The verdict


@pytest.mark.parametrize(
    ("held_out", "warns"),
    [
        (PROMPT, False),
        (replace(PROMPT, token_median_db=20 - 2 * MOST_DB), False),  # the SQNR of logits depends on the text
        (replace(PROMPT, kl=0.99 * MOST_KL * 0.1), False),
        (replace(PROMPT, kl=1.01 * MOST_KL * 0.1), True),
    ],
)
def test_logits_are_judged_by_their_divergence(held_out: SplitAgreement, warns: bool) -> None:
    assert Overfitting(True, PROMPT, held_out).warns == warns
    assert not Overfitting(False, PROMPT, held_out).warns  # nothing was calibrated: nothing can fit


@pytest.mark.parametrize("waveform", [False, True])
@pytest.mark.parametrize(("lost", "warns"), [(-9.0, False), (0.9 * MOST_DB, False), (1.1 * MOST_DB, True)])
def test_other_outputs_are_judged_by_the_median_token_and_waveforms_as_a_whole(
    waveform: bool, lost: float, warns: bool
) -> None:
    found = replace(PROMPT, kl=None, top1=None)
    found = replace(found, token_median_db=None, token_p95_db=None) if waveform else found

    worse = replace(found, token_median_db=20 - lost) if found.token_median_db else replace(found, sqnr_db=20 - lost)
    fit = Overfitting(True, found, worse)

    assert fit.warns == warns
    assert len(overfitting.warnings({"hidden": fit})) == warns


def test_a_warning_is_a_line_with_both_figures_that_says_what_to_do() -> None:
    (line,) = overfitting.warnings({"prompt": Overfitting(True, PROMPT, replace(PROMPT, token_median_db=19.0, kl=0.2))})

    assert line == (
        "prompt fits its calibration better than other data: calibration 20.0 dB, KL 0.1; held out 19.0 dB, KL 0.2; "
        "calibrate on more or other recordings (inputs), or with more damping"
    )


# The measurement


def test_figures_are_those_of_the_graphs_on_each_split(chain: Path) -> None:
    ((measured, _),) = built_components(["encoder"])
    (graph,) = measured.graphs.values()
    sessions = [open_session(graph.files[kind], threads=1) for kind in (FLOAT, QUANTIZED)]

    found = _measured("encoder")["audio_features"]

    for split, agreement in ((CALIBRATION, found.calibration), (HELD_OUT, found.held_out)):
        clips = sorted(load_file(FOLDER / "encoder" / f"{split}.safetensors").items())[:2]  # there are two held out
        by_token = []
        for _, recording in clips:
            fed = feed_whole(graph.contract, recording[:, :83])  # frames of the longest golden case
            by_token.append(token_db(*(run(session, fed)["audio_features"] for session in sessions)))
        assert agreement.outputs == len(clips)
        assert agreement.token_median_db == pytest.approx(np.median(np.concatenate(by_token)))
        assert agreement.token_p95_db == pytest.approx(np.percentile(np.concatenate(by_token), 5))


def test_every_quantized_component_is_measured_by_check_or_by_graph(chain: Path) -> None:
    names = ("frontend", "encoder", "projection", "thinker", "talker", "token2wav", "audio_core")

    found = {name: _measured(name) for name in names}

    assert {name: list(checks) for name, checks in found.items()} == {
        "frontend": [],
        "encoder": ["audio_features"],
        "projection": ["audio_logits"],
        "thinker": ["prompt", "hidden"],
        "talker": ["prompt", "hidden"],
        "token2wav": ["dit_step", "bigvgan"],
        "audio_core": [],
    }
    for checks in found.values():
        for check, fit in checks.items():
            assert fit.calibration.outputs == fit.held_out.outputs > 0
            assert (fit.calibration.kl is not None) == (check == "prompt")
            assert (fit.calibration.token_median_db is None) == (check == "bigvgan")
            assert fit.calibrated


def test_other_recordings_than_the_golden_cases_are_of_are_refused(chain: Path, message: Callable[..., str]) -> None:
    path = FOLDER / "encoder" / f"{HELD_OUT}.safetensors"
    save_file({clip: 2 * array for clip, array in load_file(path).items()}, path)
    reseal(path.parent)

    said = message(run_parity, ["encoder"])

    assert said == "models/inputs/encoder: other recordings than models/reference/encoder was made from; run dvc repro"


# What is planted


def _static(params: dict[str, Any]) -> dict[str, Any]:
    """Let the encoder's ranges be the calibration's, with no room beyond them: louder inputs are clipped."""
    params["encoder"]["quantize"]["audio_encoder"]["scheme"] = "int8-static"
    params["encoder"]["quantize"]["audio_encoder"]["compensation"] = {}
    params["encoder"]["calibrate"]["audio_encoder"]["headroom"] = 1.0
    return params


def test_ranges_that_fit_the_calibration_alone_warn_everywhere_and_an_honest_graph_does_not(
    gated_chain: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from calibrate.__main__ import calibrate
    from quantize.__main__ import main as quantize

    run_gate(["encoder"])
    assert GateReport.read("encoder").warnings == []

    write_params(gated_chain, _static(chained_params()))
    _with_other_held_out("encoder", lambda features: 6 * features)  # louder than all that calibrates
    calibrate("encoder")
    quantize("encoder")
    capsys.readouterr()
    run_parity(["encoder"])
    assert "warning" in capsys.readouterr().out
    assert ParityReport.read("encoder").overfitting["audio_features"].warns

    with pytest.raises(Exception, match=r"encoder"):  # other reports are about the graph before; warnings fail nothing
        run_gate(["encoder"])
    assert "fits its calibration" in " ".join(capsys.readouterr().out.split())
    (line,) = GateReport.read("encoder").warnings
    assert line.startswith("audio_features fits its calibration better than other data: calibration ")
    summary = artifact.read_json(Path("reports/encoder/summary.json"))["overfitting"]["audio_features"]
    assert summary["calibration"]["token_median_db"] - summary["held_out"]["token_median_db"] > MOST_DB
    run_report()
    assert line in Path("reports/report.html").read_text()


def test_a_warning_leaves_the_gate_green(gated_chain: Path) -> None:
    report = ParityReport.read("encoder")
    held_out = replace(report.overfitting["audio_features"].held_out, token_median_db=1.0)
    fits = {"audio_features": replace(report.overfitting["audio_features"], held_out=held_out)}
    replace(report, overfitting=fits).write()

    run_gate(["encoder"])

    gate = GateReport.read("encoder")
    assert gate.passed
    assert len(gate.warnings) == 1


def test_a_report_of_an_older_version_has_no_such_figures_and_stays_readable(gated_chain: Path) -> None:
    for path, key in ((ParityReport.path("encoder"), "overfitting"), (GateReport.path("encoder"), "warnings")):
        content = artifact.read_json(path)
        del content[key]
        artifact.write_json(path, content)

    assert ParityReport.read("encoder").overfitting == {}
    assert GateReport.read("encoder").warnings == []
    run_gate(["encoder"])
    assert GateReport.read("encoder").passed
