"""The first token of a sequence is its attention sink: metrics of decoders with and without it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from qwen_omni_onnx.common import golden
from qwen_omni_onnx.common.agreement import BFLOAT16, FLOAT, QUANTIZED, CheckAgreement, of_bfloat16, of_runtime
from qwen_omni_onnx.common.metrics import kl_divergence, token_db, top1
from qwen_omni_onnx.decoder_golden import complete

LENGTHS = {"seq1": [1], "seq3+2": [3, 2]}
CLASSES = 7


def _cases() -> dict[str, dict[str, np.ndarray]]:
    """Return logits of rows, one after another, and those of a noisier decoder, noisiest at each row's first token."""
    random = np.random.default_rng(0)
    found = {}
    for case, lengths in LENGTHS.items():
        expected = random.standard_normal((sum(lengths), CLASSES)).astype(np.float32)
        noise = 0.1 * random.standard_normal(expected.shape).astype(np.float32)
        noise[np.cumsum([0, *lengths[:-1]])] *= 20
        found[case] = {"tokens": np.array(lengths), "logits": expected, "given": expected + noise}
    return found


def _pairs(ports: Any, given: Any) -> Any:
    yield "prompt", ports["logits"], given["logits"] if "logits" in given else ports["given"]
    yield "steps", ports["logits"][-1:], ports["given"][-1:]


def _found(path: Path) -> dict[str, CheckAgreement]:
    golden.save(path, _cases())
    runtime: Any = SimpleNamespace(
        CHECKS=("prompt", "steps"), LOGITS=("prompt", "steps"), WAVEFORMS=(), SEQUENCES=("prompt",), complete=complete,
        open_graphs=lambda graphs, folder, threads: None, checks=lambda model, ports: _pairs(ports, {}),
    )  # fmt: skip
    return of_runtime(runtime, {}, path.parent, path, threads=1)


def test_metrics_without_first_tokens_are_those_of_the_other_rows(tmp_path: Path) -> None:
    found = _found(tmp_path / golden.FILE)["prompt"]

    ports = _cases()["seq3+2"]
    rest = [1, 2, 4]  # of rows 0, 1, 2 and 3, 4; the row of seq1 has nothing else
    expected, actual = ports["logits"][rest], ports["given"][rest]
    by_token = token_db(expected, actual)
    assert found.without_first_median_db == pytest.approx(np.median(by_token))
    assert found.without_first_p95_db == pytest.approx(np.percentile(by_token, 5))
    assert found.kl_without_first == pytest.approx(kl_divergence(expected, actual))
    assert found.top1_without_first == pytest.approx(top1(expected, actual))
    assert found.kl
    assert kl_divergence(expected, actual) < found.kl / 10
    alone, several = found.cases
    assert several.kl_without_first == found.kl_without_first
    assert (alone.case, alone.kl_without_first, alone.top1_without_first) == ("seq1", None, None)


def test_steps_hold_no_first_token_and_have_no_metrics_without_it(tmp_path: Path) -> None:
    found = _found(tmp_path / golden.FILE)["steps"]

    assert found.kl is not None
    assert (found.without_first_median_db, found.without_first_p95_db) == (None, None)
    assert (found.kl_without_first, found.top1_without_first) == (None, None)


def test_the_yardstick_has_them_too(tmp_path: Path) -> None:
    cases = _cases()
    golden.save(tmp_path / golden.FILE, cases, {case: {"logits": ports["given"]} for case, ports in cases.items()})
    runtime: Any = SimpleNamespace(LOGITS=("prompt",), SEQUENCES=("prompt",), yardstick=_pairs)

    found = of_bfloat16(runtime, ["logits"], tmp_path / golden.FILE)["prompt"]

    assert found.kl_without_first == pytest.approx(_found(tmp_path / "again")["prompt"].kl_without_first)


def test_a_decoder_s_report_has_them_and_an_encoder_s_has_not(gated_chain: Path) -> None:
    def parity(name: str) -> dict[str, dict[str, Any]]:
        return json.loads(Path(f"reports/{name}/parity.json").read_text())["checks"]

    for name in ("thinker", "talker"):
        for kind in (FLOAT, QUANTIZED, BFLOAT16):
            prompt, hidden = (parity(name)[check][kind] for check in ("prompt", "hidden"))
            assert prompt["kl_without_first"] is not None
            assert hidden["without_first_median_db"] is not None
            assert hidden["kl_without_first"] is None
    assert parity("encoder")["audio_features"][QUANTIZED]["without_first_median_db"] is None
