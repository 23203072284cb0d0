"""Variants that run in PyTorch and in OpenVINO."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.variants import Builder, Setting, Variant
from omni.checkpoint import Checkpoint
from omni.streamed import data_file

__all__ = ["openvino", "openvino_installed", "pytorch"]

_PYTORCH_SPINS, _OPENVINO_SPINS = 0.005, 0.002  # seconds; 3 and 1 were measured


def pytorch(setting: Setting) -> list[Builder]:
    """List transformers' own layers, in the precision of our float32 graph and in the checkpoint's."""
    return [partial(_pytorch, setting, name) for name in ("float32", "bfloat16")]


def openvino_installed() -> bool:
    """Say whether OpenVINO and its quantizer NNCF can be imported."""
    return all(importlib.util.find_spec(name) for name in ("openvino", "nncf"))


def openvino(setting: Setting) -> list[Builder]:
    """List OpenVINO on our float32 graph, as it is and quantized by NNCF."""
    return [
        partial(_precision, setting, "fp32", "f32"),
        partial(_precision, setting, "bf16", "bf16"),
        partial(_compressed, setting, "OpenVINO, NNCF INT8 with SmoothQuant", _smooth_quantized),
        partial(_compressed, setting, "OpenVINO, NNCF INT8 weights only", _weights_only),
    ]


def _pytorch(setting: Setting, precision: str) -> Variant:
    import torch

    from export.projection import build, tensor_name

    checkpoint = Checkpoint(Path("models/source") / setting.subject.name)
    torch.set_num_threads(setting.cores)
    dtype = getattr(torch, precision)
    module = build(checkpoint.config).eval()
    weights = {
        name: torch.from_numpy(checkpoint.read(tensor_name(name)).astype(np.float32)).to(dtype)
        for name, _ in module.named_parameters()
    }
    module.load_state_dict(weights, assign=True)

    @torch.inference_mode()
    def run(hidden_states: np.ndarray) -> np.ndarray:
        return module(torch.from_numpy(hidden_states).to(dtype)).float().numpy()

    return Variant(f"PyTorch {precision}", run, sum(weight.nbytes for weight in weights.values()), _PYTORCH_SPINS)


def _precision(setting: Setting, name: str, hint: str) -> Variant:
    data = data_file(setting.graph)
    nbytes = setting.graph.stat().st_size + data.stat().st_size
    return Variant(f"OpenVINO {name}", _compiled(setting.graph, setting.cores, hint), nbytes, _OPENVINO_SPINS)


def _compressed(setting: Setting, name: str, compress: Callable[[Any, Setting], Any]) -> Variant:
    import openvino

    model = compress(openvino.Core().read_model(setting.graph), setting)
    out = setting.folder / f"{compress.__name__}.xml"
    openvino.save_model(model, out, compress_to_fp16=False)
    nbytes = out.stat().st_size + out.with_suffix(".bin").stat().st_size
    return Variant(name, _compiled(out, setting.cores, "f32"), nbytes, _OPENVINO_SPINS)


def _smooth_quantized(model: Any, setting: Setting) -> Any:
    """Weights and activations, with the smoothing exponent that this project uses."""
    import nncf
    from nncf.quantization.advanced_parameters import AdvancedSmoothQuantParameters

    batches = setting.batches()
    alphas = AdvancedSmoothQuantParameters(matmul=setting.params.calibrate.smoothing)
    return nncf.quantize(
        model,
        nncf.Dataset(batches),
        subset_size=len(batches),
        model_type=nncf.ModelType.TRANSFORMER,  # what switches SmoothQuant on
        advanced_parameters=nncf.AdvancedQuantizationParameters(smooth_quant_alphas=alphas),
    )


def _weights_only(model: Any, setting: Setting) -> Any:
    import nncf

    return nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM)


def _compiled(graph: Path, threads: int, precision: str) -> Callable[[np.ndarray], np.ndarray]:
    import openvino

    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": precision,
    }
    request = openvino.Core().compile_model(graph, "CPU", options).create_infer_request()
    # Shared as in ONNX Runtime, which does not copy its inputs and outputs either.
    return lambda hidden_states: request.infer([hidden_states], share_inputs=True, share_outputs=True)[0]
