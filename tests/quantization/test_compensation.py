"""Codes of four bits with zero points, parts of a matrix, and error compensation (GPTQ)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import tiny_decoder as tiny
from conftest import build_here, chained_params, write_params
from safetensors.numpy import load_file, save_file
from tamper import reseal

from calibrate.activations import observe
from components import component
from omni import block_fit, nbits
from omni.params import CalibrateParams, QuantizeParams, load
from omni.streamed import save_graph
from quantize import gptq
from quantize.__main__ import main
from quantize.apply import Calibration, quantize
from quantize.codes import Codes
from quantize.compensate import compensate_graph
from quantize.compensate import main as compensate_component
from quantize.gptq import Gram, compensate
from quantize.sources import bound_codes
from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.common.metrics import kl_divergence
from qwen_omni_onnx.common.session import open_session, run
from validate.measured import built_components
from validate.rebuild import different

MIXED = {"lm_head*": "int8-block", "*.v_proj": "int8-block"}


# Scales and zero points


def _blocks(seed: int, blocks: int = 3, outputs: int = 50) -> np.ndarray:
    random = np.random.default_rng(seed)
    return (random.standard_normal((blocks, 32, outputs)) + random.standard_normal((blocks, 1, outputs))).astype(
        np.float32
    )


def _error(blocked: np.ndarray, scales: np.ndarray, zeros: np.ndarray, importance: np.ndarray | None = None) -> float:
    codes = block_fit.round_blocks(blocked, scales, zeros, 4).astype(np.float32)
    errors = np.square((codes - zeros[:, None]) * scales[:, None] - blocked)
    return float((errors if importance is None else errors * importance[..., None]).sum())


def test_fitted_scales_leave_less_error_than_those_of_the_range() -> None:
    blocked = _blocks(0)
    low, high = np.minimum(blocked.min(1), 0), np.maximum(blocked.max(1), 0)
    scales = (high - low) / 15
    plain = _error(blocked, scales, np.rint(-low / scales).astype(np.uint8))
    symmetric = nbits.block_scales(blocked, 4, axis=1)

    found = _error(blocked, *block_fit.fit(blocked, 4))

    assert found < 0.95 * plain
    assert found < 0.9 * _error(blocked, symmetric, np.full(symmetric.shape, 8, np.uint8))


def test_important_inputs_are_fitted_best() -> None:
    blocked = _blocks(1)
    importance = np.exp(2 * np.random.default_rng(2).standard_normal((3, 32)))

    weighted, alike = block_fit.fit(blocked, 4, importance), block_fit.fit(blocked, 4)

    assert _error(blocked, *weighted, importance) < 0.9 * _error(blocked, *alike, importance)
    assert _error(blocked, *alike) < _error(blocked, *weighted)


def test_a_fit_does_not_depend_on_pieces_or_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = _blocks(3, 5, 40)
    expected = block_fit.fit(blocked, 4, np.ones((5, 32)))

    monkeypatch.setattr(block_fit, "_CACHED", 300)
    monkeypatch.setattr(block_fit, "workers", lambda: 7)

    for one, other in zip(block_fit.fit(blocked, 4, np.ones((5, 32))), expected, strict=True):
        np.testing.assert_array_equal(one, other)
    alone, _ = block_fit.fit(blocked[:, :, :1], 4, np.ones((5, 32)))
    np.testing.assert_array_equal(alone, expected[0][:, :1])


def test_zeros_and_constants_are_exact() -> None:
    blocked = np.zeros((1, 32, 3), np.float32)
    blocked[..., 1], blocked[..., 2] = 5, -5

    scales, zeros = block_fit.fit(blocked, 4)

    assert np.isfinite(scales).all()
    assert _error(blocked, scales, zeros) < 1e-9


# Compensation


def _correlated(seed: int, tokens: int, channels: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    mixing = np.random.default_rng(0).standard_normal((channels // 4, channels))
    noise = random.standard_normal((tokens, channels))
    return (random.standard_normal((tokens, channels // 4)) @ mixing + 0.3 * noise).astype(np.float32)


def _gram(tokens: np.ndarray) -> Gram:
    gram = Gram(tokens.shape[1])
    for part in np.array_split(tokens, 3):
        gram.add(part)
    return gram


def _columns(matrix: np.ndarray) -> np.ndarray:
    return (np.abs(matrix).max(0) / 7)[None].astype(np.float32)  # coarse, so that rounding shows


def _noise(matrix: np.ndarray, codes: np.ndarray, tokens: np.ndarray) -> float:
    return float(np.square(tokens @ (codes * _columns(matrix) - matrix)).sum() / np.square(tokens @ matrix).sum())


def _codes(matrix: np.ndarray, gram: Gram, damping: float) -> np.ndarray:
    scales = _columns(matrix)
    return compensate(matrix, gram, damping, scales, np.zeros_like(scales), len(matrix), (-7, 7))


def test_later_rows_make_up_for_the_rounding_of_earlier_ones() -> None:
    matrix = np.random.default_rng(1).standard_normal((64, 30)).astype(np.float32)
    tokens, others = _correlated(2, 500, 64), _correlated(3, 500, 64)

    codes = _codes(matrix, _gram(tokens), 0.01)

    nearest = np.clip(np.rint(matrix / _columns(matrix)), -7, 7)
    assert np.abs(codes).max() <= 7
    assert _noise(matrix, codes, tokens) < 0.5 * _noise(matrix, nearest, tokens)
    assert _noise(matrix, codes, others) < 0.6 * _noise(matrix, nearest, others)  # and on tokens that it has not seen


def test_a_large_damping_leaves_the_nearest_codes() -> None:
    matrix = np.random.default_rng(1).standard_normal((64, 30)).astype(np.float32)

    codes = _codes(matrix, _gram(_correlated(2, 500, 64)), 1e6)

    np.testing.assert_array_equal(codes, np.clip(np.rint(matrix / _columns(matrix)), -7, 7))


def test_damping_keeps_few_tokens_from_being_fitted() -> None:
    """With fewer tokens than channels, what compensation gains on them is lost on others."""
    matrix = np.random.default_rng(1).standard_normal((128, 30)).astype(np.float32)
    gram, others = _gram(_correlated(2, 24, 128)), _correlated(3, 500, 128)

    weak, strong = (_noise(matrix, _codes(matrix, gram, damping), others) for damping in (1e-4, 1.0))

    assert strong < weak


def test_codes_do_not_depend_on_workers_or_on_how_many_outputs_are_compensated_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    matrix, tokens = np.random.default_rng(1).standard_normal((64, 50)).astype(np.float32), _correlated(2, 300, 64)
    expected = _codes(matrix, _gram(tokens), 0.1)

    monkeypatch.setattr(gptq, "workers", lambda: 5)

    np.testing.assert_array_equal(_codes(matrix, _gram(tokens), 0.1), expected)


def test_blocks_of_a_wide_gram_matrix_are_compensated_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix, tokens = np.random.default_rng(1).standard_normal((64, 30)).astype(np.float32), _correlated(2, 500, 64)
    whole = _codes(matrix, _gram(tokens), 0.01)

    monkeypatch.setattr(gptq, "GRAM_CHANNELS", 24)
    gram = _gram(tokens)
    cut = _codes(matrix, gram, 0.01)

    assert [len(block) for block in gram.blocks] == [24, 24, 16]
    np.testing.assert_allclose(gram.diagonal(), np.square(tokens).mean(0), rtol=1e-4)
    nearest = np.clip(np.rint(matrix / _columns(matrix)), -7, 7)
    assert _noise(matrix, whole, tokens) < _noise(matrix, cut, tokens) < _noise(matrix, nearest, tokens)


# Graphs


class TinyThinker:
    """A tiny Thinker with its calibration, quantized in several ways."""

    def __init__(self, folder: Path) -> None:
        checkpoint = tiny.write_source("thinker", tiny.config(), folder)
        self.folder, self.graph = folder, tiny.write_graph("thinker", checkpoint, folder / "onnx")
        self.contract = component("thinker").contracts(checkpoint.config)["thinker"]
        width = int(self.contract.inputs[0].shape[-1])
        self.recordings = {f"clip-{seed}": _correlated(seed, 60, width) for seed in range(6)}
        self.held_out = [_correlated(seed, 60, width) for seed in (10, 11)]
        calibrate: dict[str, Any] = {
            "smoothing": "rms^0.4",
            "headroom": 1.0,
            "nodes": {"lm_head*": {"smoothing": "none"}},
        }
        seen = observe(self.graph, self.contract, CalibrateParams.model_validate(calibrate), self.recordings)
        self.calibration = {name: Calibration(o.factors, 1.0, None, o.shift, o.run, o.rms) for name, o in seen.items()}

    def params(self, compensation: dict[str, float] | None = None, **changes: Any) -> QuantizeParams:
        table = {"scheme": "int4-block", "block": 32, "nodes": MIXED, "compensation": compensation or {}, **changes}
        return QuantizeParams.model_validate(table)

    def compensated(self, name: str, params: QuantizeParams) -> Codes:
        codes = Codes(self.folder / name)
        compensate_graph(self.graph, self.contract, params, self.calibration, self.recordings, codes)
        return codes

    def built(self, name: str, params: QuantizeParams, codes: Codes | None = None) -> tuple[Path, dict[str, Any]]:
        model, record = quantize(self.graph, params, self.calibration, None, codes)
        save_graph(model, self.folder, name)
        return self.folder / f"{name}.onnx", record

    def kl(self, graph: Path) -> float:
        """KL divergence of a graph's logits from those of float32, on clips that did not calibrate."""
        float32, other = open_session(self.graph), open_session(graph)
        return float(np.mean([kl_divergence(self._logits(float32, x), self._logits(other, x)) for x in self.held_out]))

    def _logits(self, session: Any, x: np.ndarray) -> np.ndarray:
        length = len(x)
        fed = {"inputs_embeds": x[None], **self.contract.every_place(1, length)}
        return run(session, self.contract.example(1, length, fed))["logits"][0]


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> TinyThinker:
    return TinyThinker(tmp_path_factory.mktemp("thinker"))


def test_values_of_attention_may_have_a_scheme_of_their_own(thinker: TinyThinker) -> None:
    graph, record = thinker.built("mixed", thinker.params())
    alike, _ = thinker.built("alike", thinker.params(nodes={"lm_head*": "int8-block"}))

    packed = "model.layers.0.self_attn.qkv_proj/MatMul"
    assert record[f"{packed}.v_proj"]["scheme"] == "int8-block"
    assert record[f"{packed}.q_proj.k_proj"]["scheme"] == "int4-block"
    assert packed not in record
    nodes = {node.name: node for node in ir.load(graph).graph}
    bits = {name: node.attributes.get_int("bits") for name, node in nodes.items() if node.op_type == "MatMulNBits"}
    assert bits[f"{packed}.v_proj"] == 8
    assert bits[f"{packed}.q_proj.k_proj"] == 4
    assert nodes[packed].op_type == "Concat"
    assert thinker.kl(graph) < thinker.kl(alike)


def test_four_bits_have_zero_points_and_eight_have_none(thinker: TinyThinker) -> None:
    graph, _ = thinker.built("zero", thinker.params())

    for node in ir.load(graph).graph:
        if node.op_type == "MatMulNBits":
            assert len(node.inputs) == (4 if node.attributes.get_int("bits") == 4 else 3)


def test_compensation_halves_what_rounding_costs(thinker: TinyThinker) -> None:
    params = thinker.params({"model.*": 0.3})

    plain, _ = thinker.built("plain", thinker.params())
    better, record = thinker.built("better", params, thinker.compensated("codes", params))

    assert {name for name, entry in record.items() if "compensation" in entry} == {
        name for name in record if not name.startswith("lm_head")
    }
    assert thinker.kl(better) < 0.7 * thinker.kl(plain)


def test_int8_columns_are_compensated_too(thinker: TinyThinker) -> None:
    params = thinker.params({"model.*": 0.1}, scheme="int8-token", nodes={"lm_head*": "float32"})

    graph, record = thinker.built("int8", params, thinker.compensated("int8-codes", params))
    plain, _ = thinker.built("int8-plain", params)

    assert record["model.layers.1.mlp.down_proj/MatMul"]["compensation"] == 0.1
    assert thinker.kl(graph) < 1.1 * thinker.kl(plain)
    assert _files(thinker.folder / "int8.onnx.data") != _files(thinker.folder / "int8-plain.onnx.data")


def test_codes_are_the_same_in_every_run(thinker: TinyThinker) -> None:
    params = thinker.params({"model.layers.0.*": 1.0})
    for name in ("first", "second"):
        thinker.compensated(name, params)

    first, second = (sorted((thinker.folder / name).iterdir()) for name in ("first", "second"))

    assert len(first) == 6  # q and k, v, o, gate, up, down
    assert [_files(path) for path in first] == [_files(path) for path in second]


def test_later_matrices_see_what_earlier_ones_have_become(
    thinker: TinyThinker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The activations of layer 1 come through the quantized layer 0: other codes there, other Gram matrices here."""
    seen: dict[str, list[np.ndarray]] = {}

    def grams(name: str, nodes: dict[str, str]) -> np.ndarray:
        seen[name] = []
        real = Gram.diagonal

        def diagonal(gram: Gram) -> np.ndarray:
            seen[name].append(real(gram))
            return seen[name][-1]

        monkeypatch.setattr(Gram, "diagonal", diagonal)
        thinker.compensated(name, thinker.params({"model.layers.1.mlp.down_proj/*": 1.0}, nodes=nodes))
        monkeypatch.setattr(Gram, "diagonal", real)
        return seen[name][0]

    float_before = grams("float", {"model.layers.0.*": "float32", **MIXED})
    quantized_before = grams("quantized", MIXED)

    assert not np.array_equal(float_before, quantized_before)
    np.testing.assert_allclose(float_before, quantized_before, rtol=1)


def test_codes_that_are_missing_are_told(thinker: TinyThinker, message: Callable[..., str]) -> None:
    params = thinker.params({"model.layers.0.*": 1.0})

    assert "run python -m quantize.compensate" in message(
        thinker.built, "missing", params, Codes(thinker.folder / "none")
    )


def test_a_compensated_node_that_is_not_there_is_named(thinker: TinyThinker, message: Callable[..., str]) -> None:
    said = message(thinker.built, "wrong", thinker.params({"model.layers.9.*": 1.0}))

    assert "quantize.compensation: no MatMul named model.layers.9.*" in said
    assert "MatMul.v_proj" in said


# The stage


def test_a_component_without_compensation_has_an_artifact_that_holds_nothing(chain: Path) -> None:
    assert artifact.check(Path("models/compensated/talker"))["files"] == {}
    assert len(artifact.check(Path("models/compensated/thinker"))["files"]) == 2 * 6  # two layers


def test_a_second_build_gives_the_same_codes_and_finds_others(chain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("omni.resources.measure_module", build_here)
    ((measured, _),) = built_components(["encoder"])
    assert different(measured) == []
    folder = Path("models/compensated/encoder")
    file = sorted((folder / "audio_encoder").iterdir())[0]
    arrays = load_file(file)
    arrays["int8"][0, 0] ^= 1
    save_file(arrays, file)
    reseal(folder)

    assert different(measured)


@pytest.mark.parametrize("spoilt", ["onnx", "calibration", "inputs"])
def test_codes_of_other_artifacts_are_refused(spoilt: str, chain: Path, message: Callable[..., str]) -> None:
    manifest = Path("models") / spoilt / "encoder" / artifact.MANIFEST
    manifest.write_text(manifest.read_text().replace('"component"', '"component" '))

    assert "models/compensated/encoder: made from another" in message(
        bound_codes, "encoder", "audio_encoder", _settings()
    )


def test_codes_made_by_other_parameters_are_refused(chain: Path, message: Callable[..., str]) -> None:
    params = chained_params()
    params["encoder"]["quantize"]["audio_encoder"]["compensation"] = {"*": 0.2}
    write_params(chain, params)

    said = message(main, "encoder")

    assert (
        said == "models/compensated/encoder: made by other parameters; run python -m quantize.compensate encoder again"
    )


def _settings() -> QuantizeParams:
    settings = load().component("encoder").graph("audio_encoder").quantize
    assert settings is not None
    return settings


def _files(path: Path) -> bytes:
    return path.read_bytes()


def test_a_killed_run_goes_on_and_comes_to_the_same_bytes(chain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, part = Path("models/compensated/thinker"), Path("models/compensated/.thinker.part")
    whole = artifact.read_manifest(place)["files"]
    written: list[str] = []
    write = Codes.write_blocks

    def write_or_die(codes: Codes, node: str, rows: nbits.BlockRows) -> None:
        if len(written) == 5:
            raise KeyboardInterrupt
        written.append(node)
        write(codes, node, rows)

    def write_and_note(codes: Codes, node: str, rows: nbits.BlockRows) -> None:
        written.append(node)
        write(codes, node, rows)

    monkeypatch.setattr(Codes, "write_blocks", write_or_die)
    with pytest.raises(KeyboardInterrupt):
        compensate_component("thinker")
    kept = sorted((part / "thinker").iterdir())
    assert len(kept) == 5
    assert artifact.read_manifest(place)["files"] == whole, "the earlier artifact stays"
    times = {file.name: file.stat().st_mtime_ns for file in kept}

    written.clear()
    monkeypatch.setattr(Codes, "write_blocks", write_and_note)
    compensate_component("thinker")

    assert len(written) == len(whole) - 5, "what was written is not computed again"
    assert artifact.check(place)["files"] == whole
    assert all((place / "thinker" / name).stat().st_mtime_ns == time for name, time in times.items())
    assert not part.exists()


def test_what_a_killed_run_of_other_parameters_left_is_dropped(chain: Path) -> None:
    part = Path("models/compensated/.thinker.part")
    (part / "thinker").mkdir(parents=True)
    (part / "plan.json").write_text("{}")
    (part / "thinker/model.layers.0.mlp.down_proj.MatMul.safetensors").write_text("not of this run")

    compensate_component("thinker")

    assert len(artifact.check(Path("models/compensated/thinker"))["files"]) == 2 * 6
    assert not part.exists()
