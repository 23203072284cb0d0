"""The yardstick: PyTorch in bfloat16 on the same golden cases, and what is judged beside it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, chained_params, write_params
from ruamel.yaml import YAML
from safetensors import safe_open
from tamper import edit, reseal

from benchmarks import recipes
from qwen_omni_onnx.common import artifact, golden
from qwen_omni_onnx.common.agreement import BFLOAT16, FLOAT, QUANTIZED, CheckAgreement, beside
from qwen_omni_onnx.common.metrics import EXACT_DB, token_db
from validate import gate
from validate.__main__ import run_gate, run_parity
from validate.measured import built_components

LIMITS = ("below_bfloat16_median_db", "below_bfloat16_p95_db")


def _golden(name: str) -> Path:
    return Path("models/reference") / name / golden.FILE


def _parity(name: str) -> dict[str, dict[str, Any]]:
    return artifact.read_json(Path("reports") / name / "parity.json")["checks"]


def _missed(name: str) -> str:
    """Return what the gate does not take, whatever other reports are about."""
    ((measured, params),) = built_components([name])
    return "; ".join(str(verdict) for verdict in gate.judge(measured, params.gates)[0] if not verdict.ok)


# The metric


def test_a_token_is_a_row_and_one_that_flips_moves_no_other() -> None:
    expected = np.ones((2, 3, 4), np.float32)
    actual = expected + np.float32(0.01)
    actual[1, 2] = -1

    found = token_db(expected, actual)

    assert found.shape == (6,)
    assert found[:5] == pytest.approx(40, abs=0.01)
    assert found[5] == pytest.approx(10 * np.log10(1 / 4))


def test_padding_is_no_token_unless_something_is_there() -> None:
    expected = np.zeros((1, 3, 4), np.float32)
    expected[0, 0] = 2
    actual = expected.copy()

    assert token_db(expected, actual).tolist() == [EXACT_DB]
    actual[0, 1, 3] = 1e-3
    assert token_db(expected, actual).tolist() == [EXACT_DB, -EXACT_DB]
    assert token_db(np.zeros((2, 0, 4)), np.zeros((2, 0, 4))).size == 0


def test_what_is_beside_the_yardstick_is_how_much_noisier_it_is() -> None:
    yardstick = _agreement(token_median_db=40.0, token_p95_db=35.0, kl=1e-4, top1=0.98)
    found = _agreement(token_median_db=36.0, token_p95_db=29.0, kl=5e-4, top1=0.95)

    compared = beside(found, yardstick)

    assert (compared.below_bfloat16_median_db, compared.below_bfloat16_p95_db) == (4.0, 6.0)
    assert compared.kl_over_bfloat16 == pytest.approx(5.0)
    assert compared.top1_below_bfloat16 == pytest.approx(0.03)
    assert beside(found, None) == found
    assert beside(replace(found, kl=None), yardstick).kl_over_bfloat16 is None


def _agreement(**metrics: float) -> CheckAgreement:
    nothing = {"sqnr_db": 30.0, "cosine": 1.0, "max_abs": 0.0, "top1": 1.0, "top1_near_tie": 1.0}
    return CheckAgreement(cases=(), worst="", **{**nothing, **metrics})


# The recording


def test_bfloat16_numbers_take_two_bytes_and_others_stay_what_they_are(tmp_path: Path) -> None:
    halves = np.array([[1.5, -(2.0**-120), 3.0e38]], np.float32).view(np.uint32) & np.uint32(0xFFFF0000)
    exact, inexact = halves.view(np.float32), np.array([0.1], np.float32)
    path = tmp_path / golden.FILE
    golden.save(path, {"seq1": {"x": inexact}}, {"seq1": {"y": exact, "z": inexact}}, {"yardstick": "how"})

    found = golden.read_yardstick(path, "seq1")

    assert np.array_equal(found["y"], exact)
    assert np.array_equal(found["z"], inexact)
    assert dict(golden.read(path))["seq1"].keys() == {"x"}
    with safe_open(path, "numpy") as file:
        assert file.get_tensor("seq1/bfloat16/y").dtype == np.uint16
        assert file.metadata() == {"yardstick": "how"}


@pytest.mark.parametrize("name", ["encoder", "projection", "thinker", "talker", "token2wav"])
def test_the_yardstick_travels_with_the_golden_cases(name: str, gated_chain: Path) -> None:
    (folder,) = (gated_chain / "models/published" / name).iterdir()
    for path in (_golden(name), folder / "golden" / golden.FILE):
        with safe_open(path, "numpy") as file:
            assert "in bfloat16, attention sdpa" in file.metadata()["yardstick"]
        for case, ports in golden.read(path):
            for port, given in golden.read_yardstick(path, case).items():
                assert given.shape == ports[port].shape
                if given.any():  # a clip that gives no token gives nothing
                    noise = np.abs(given - ports[port]).max() / np.abs(ports[port]).max()
                    assert 0 < noise < 0.2, (case, port)


def test_what_has_no_weights_has_no_yardstick(gated_chain: Path) -> None:
    for case in golden.cases(_golden("frontend")):
        assert golden.read_yardstick(_golden("frontend"), case) == {}
    assert BFLOAT16 not in _parity("frontend")["input_features"]


def test_a_report_shows_bfloat16_and_what_is_quantized_beside_it(gated_chain: Path) -> None:
    for name in ("encoder", "thinker", "talker"):
        for check, kinds in _parity(name).items():
            assert set(kinds) == {FLOAT, QUANTIZED, BFLOAT16}, (name, check)
            assert kinds[FLOAT]["token_median_db"] > 90 > kinds[BFLOAT16]["token_median_db"]
            below = kinds[BFLOAT16]["token_median_db"] - kinds[QUANTIZED]["token_median_db"]
            assert kinds[QUANTIZED]["below_bfloat16_median_db"] == pytest.approx(below)
    assert set(_parity("token2wav")["waveform"]) == {FLOAT, QUANTIZED}


# The gate


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("value", [None, 1000.0])
def test_a_graph_that_is_too_noisy_or_not_compared_is_red(
    limit: str, value: float | None, gated_chain: Path, message: Callable[..., str]
) -> None:
    path = Path("reports/encoder/parity.json")
    report = json.loads(path.read_text())
    report["checks"]["audio_features"][QUANTIZED][limit] = value
    path.write_text(json.dumps(report))

    assert "below bfloat16's: " + ("1000 dB" if value else "no number") in message(run_gate, ["encoder"])


def test_golden_cases_without_a_yardstick_judge_no_quantized_graph(gated_chain: Path) -> None:
    path = _golden("encoder")
    golden.save(path, dict(golden.read(path)))
    reseal(path.parent)
    run_parity(["encoder"])

    assert "below bfloat16's: no number" in _missed("encoder")


def test_one_spoiled_matrix_is_red_by_the_limits_of_the_full_build(gated_chain: Path) -> None:

    params, usual = chained_params(), YAML(typ="safe", pure=True).load((ROOT / "params.yaml").read_text())
    for limit in LIMITS:
        checks, usual_checks = (table["encoder"]["gates"]["checks"] for table in (params, usual))
        checks["audio_features"][limit] = usual_checks["audio_features"][limit]
    write_params(gated_chain, params)
    run_gate(["encoder"])

    folder = Path("models/quantized/encoder")
    edit(
        folder,
        "layers.0.fc1/MatMul.weight_scale",
        lambda scale: np.multiply(scale, 4, out=scale),
        "audio_encoder_int8",
    )
    reseal(folder)
    run_parity(["encoder"])

    assert "below bfloat16's" in _missed("encoder")


# Both sides of the gate


def _recipe(recipe: str, passes: bool, careless: bool = False) -> dict[str, Any]:
    missed = [] if passes else ["quantized: something"]
    return {
        "recipe": recipe,
        "graph": "",
        "careless": careless,
        "passes": passes,
        "missed": missed,
        "mb": 1,
        "checks": {},
    }


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([_recipe("as built", True), _recipe("quantize_dynamic", False, careless=True)], None),
        ([_recipe("as built", False), _recipe("quantize_dynamic", False, careless=True)], "ours is refused"),
        ([_recipe("as built", True), _recipe("quantize_dynamic", True, careless=True)], "its limits are too wide"),
    ],
)
def test_a_gate_that_takes_what_is_careless_or_refuses_ours_is_told(
    rows: list[dict[str, Any]],
    expected: str | None,
    gated_chain: Path,
    monkeypatch: pytest.MonkeyPatch,
    message: Callable[..., str],
) -> None:
    monkeypatch.setattr(recipes, "recipes", lambda *_: iter(rows))

    if expected:
        assert expected in message(recipes.main, ["encoder"])
    else:
        recipes.main(["encoder"], Path("found.json"))
        assert artifact.read_json(Path("found.json"))["components"] == {"encoder": rows}


@pytest.mark.parametrize("name", ["encoder", "talker", "thinker"])
def test_every_recipe_is_judged_beside_bfloat16(name: str, gated_chain: Path) -> None:
    ((measured, params),) = built_components([name])

    found = {row["recipe"]: row for row in recipes.recipes(measured, params, threads=1)}

    assert {"float32", "PyTorch bfloat16", "as built", "int8-block", "int4-block", "quantize_dynamic"} <= set(found)
    check = next(iter(found["as built"]["checks"]))
    below = {
        recipe: row["checks"][check]["below_bfloat16_median_db"]
        for recipe, row in found.items()
        if recipe != "PyTorch bfloat16"
    }
    assert below["float32"] < -30
    if name == "talker":  # every node has the scheme, and none is compensated
        assert found["as built"]["checks"] == found["int8-block"]["checks"]
    assert below["int4-block"] > below["int8-block"]
