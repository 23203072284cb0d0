"""Make the variants that run in PyTorch and in OpenVINO."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import Feeds, Variant
from benchmarks.variants import Builder, Setting, disk_bytes
from omni.checkpoint import Checkpoint
from omni.resources import machine
from reference.originals import original as original_of

__all__ = [
    "OPENVINO_SPINS",
    "PYTORCH_SPINS",
    "compiled",
    "openvino",
    "openvino_installed",
    "original",
    "pytorch",
    "sums_saturate",
]

PYTORCH_SPINS, OPENVINO_SPINS = 0.005, 0.002  # seconds; 3 and 1 were measured


def pytorch(setting: Setting) -> list[Builder]:
    """List transformers' own module, in the precision of our float32 graph and in the checkpoint's."""
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


def original(name: str, cores: int, precision: str = "float32") -> Any:
    """Return transformers' own module of a component, with the weights under ``models/source``.

    Args:
        name: Name of the component.
        cores: Number of threads that PyTorch may use from now on.
        precision: Dtype of the weights, as PyTorch calls it.
    """
    import torch

    own = original_of(name)
    checkpoint = Checkpoint(Path("models/source") / name)
    torch.set_num_threads(cores)
    module = own.make(checkpoint.config).eval()
    weights = {
        parameter: torch.from_numpy(checkpoint.read(own.tensor_name(parameter)).astype(np.float32)).to(
            getattr(torch, precision)
        )
        for parameter, _ in module.named_parameters()
    }
    module.load_state_dict(weights, assign=True)
    return module


def _pytorch(setting: Setting, precision: str) -> Variant:
    import torch

    run = original_of(setting.measured.name).run
    assert run is not None, "only single graphs are measured here"
    module = original(setting.measured.name, setting.cores, precision)
    _take_and_give_float32(module, getattr(torch, precision))
    nbytes = sum(weight.nbytes for weight in module.parameters())
    return Variant(f"PyTorch {precision}", lambda fed: run(module, fed)[0], nbytes, PYTORCH_SPINS)


def _take_and_give_float32(module: Any, dtype: Any) -> None:
    """Convert a module's inputs to the dtype that it computes in, and a tensor that it returns to float32."""
    import torch

    def convert_inputs(_: Any, args: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return args, {name: value.to(dtype) if value.is_floating_point() else value for name, value in named.items()}

    def convert_output(_: Any, args: tuple[Any, ...], output: Any) -> Any:
        return output.float() if isinstance(output, torch.Tensor) else output

    module.register_forward_pre_hook(convert_inputs, with_kwargs=True)
    module.register_forward_hook(convert_output)


def _precision(setting: Setting, name: str, hint: str) -> Variant:
    run, runs_in = compiled(setting.graph, setting.cores, hint)
    note = "" if runs_in == hint else f" asked for; it runs {runs_in} here"
    return Variant(f"OpenVINO {name}{note}", run, disk_bytes(setting.graph), OPENVINO_SPINS)


def _compressed(setting: Setting, name: str, compress: Callable[[Any, Setting], Any]) -> Variant:
    import openvino

    model = compress(openvino.Core().read_model(setting.graph), setting)
    out = setting.folder / f"{compress.__name__}.xml"
    openvino.save_model(model, out, compress_to_fp16=False)
    nbytes = out.stat().st_size + out.with_suffix(".bin").stat().st_size
    return Variant(name, compiled(out, setting.cores, "f32")[0], nbytes, OPENVINO_SPINS)


def _smooth_quantized(model: Any, setting: Setting) -> Any:
    """Quantize weights and activations, with the smoothing exponent that this project uses."""
    import nncf
    from nncf.quantization.advanced_parameters import AdvancedSmoothQuantParameters, OverflowFix

    clips = [dict(fed) for fed in setting.clips()]
    smoothing = setting.calibrated.smoothing
    alphas = AdvancedSmoothQuantParameters(matmul=0.5 if isinstance(smoothing, str) else smoothing)
    return nncf.quantize(
        model,
        nncf.Dataset(clips),
        subset_size=len(clips),
        model_type=nncf.ModelType.TRANSFORMER,  # what switches SmoothQuant on
        advanced_parameters=nncf.AdvancedQuantizationParameters(
            smooth_quant_alphas=alphas,
            overflow_fix=OverflowFix.ENABLE if sums_saturate() else OverflowFix.DISABLE,
        ),
    )


def sums_saturate() -> bool:
    """Say whether the processor adds pairs of INT8 products in 16 bits: x86 without VNNI.

    NNCF then has to keep weights in 7 bits, as it documents; with 8, the encoder of two layers lost 7 dB. What
    ``qwen_omni_onnx.common.session`` does against it in ONNX Runtime, OpenVINO does not.
    """
    has = str(machine()["instructions"]).split()
    return "avx2" in has and not {"avx_vnni", "avx512_vnni", "amx_int8"} & set(has)


def _weights_only(model: Any, setting: Setting) -> Any:
    import nncf

    return nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM)


def compiled(graph: Path, threads: int, precision: str) -> tuple[Callable[[Feeds], np.ndarray], str]:
    """Compile a graph in OpenVINO.

    Args:
        graph: ONNX file, or OpenVINO's own XML file.
        threads: Number of threads.
        precision: ``f32`` or ``bf16``.

    Returns:
        A function that runs the graph, and the precision that it runs in: ``f32`` where the processor lacks bf16.
    """
    import openvino

    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": precision,
    }
    model = openvino.Core().compile_model(graph, "CPU", options)
    request = model.create_infer_request()
    runs_in = model.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    # Shared as in ONNX Runtime, which does not copy its inputs and outputs either.
    return lambda fed: request.infer(dict(fed), share_inputs=True, share_outputs=True)[0], runs_in
