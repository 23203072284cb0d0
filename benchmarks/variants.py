"""Make the variants that run in ONNX Runtime: ours, those of its own quantization tools, and the machine's ceiling."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
import onnxruntime.quantization as tools
from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

from benchmarks.measure import Feeds, Variant
from omni.inputs import CALIBRATION, calibration_inputs, feed, read
from omni.params import CalibrateParams, GraphParams, QuantizeParams, Scheme
from omni.resources import machine
from omni.streamed import data_file, save_graph
from quantize.apply import Calibration, quantize, read_calibration
from quantize.codes import Codes
from quantize.compensate import compensate_graph
from qwen_omni_onnx.common.agreement import FLOAT, QUANTIZED
from qwen_omni_onnx.common.session import open_session
from validate.ceiling import BareKernels, kernels
from validate.measured import MeasuredComponent, MeasuredGraph

__all__ = [
    "Builder",
    "Setting",
    "built",
    "calibration_of",
    "ceiling",
    "disk_bytes",
    "dynamic",
    "float32",
    "onnxruntime_tools",
    "ours",
    "write_blocks",
    "write_dynamic",
    "write_ours",
]

_BLOCK = 32  # weights that share a scale in MatMulNBits
SCHEMES: tuple[Scheme, ...] = tuple(
    scheme
    for scheme in get_args(Scheme)
    if scheme not in ("int4-import", "float32")  # the former is not made here
)
_BATCH = 64  # tokens of a calibration batch of quantize_static


Builder = Callable[[], Variant]


@dataclass(frozen=True)
class Setting:
    """What every variant of a component is made from.

    Attributes:
        measured: Component as built under ``models/``.
        params: Parameters of its graph in ``params.yaml``.
        threads: Number of threads of every variant, as ``params.yaml`` says; 0 for one per core. ONNX Runtime is given
            the 0: only then does it tie its threads to cores, without which its short runs take one time or three times
            that.
        folder: Temporary folder of graphs that are made on the way.
    """

    measured: MeasuredComponent
    params: GraphParams
    threads: int
    folder: Path

    @property
    def graph(self) -> Path:
        """File of our float32 graph."""
        return self.measured_graph.files[FLOAT]

    @property
    def measured_graph(self) -> MeasuredGraph:
        """The component's only graph."""
        (graph,) = self.measured.graphs.values()
        return graph

    @property
    def cores(self) -> int:
        """Number of threads for runtimes that want one: ``threads``, or all physical cores that may be used."""
        return self.threads or int(machine()["cores"])

    @property
    def calibrated(self) -> CalibrateParams:
        """Parameters of calibration."""
        assert self.params.calibrate is not None, "only components that are quantized are compared"
        return self.params.calibrate

    @property
    def quantized(self) -> QuantizeParams:
        """Parameters of quantization."""
        assert self.params.quantize is not None, "only components that are quantized are compared"
        return self.params.quantize

    def clips(self) -> list[Feeds]:
        """Return the calibration clips as batches of one clip."""
        recordings = list(read(self.measured.name, CALIBRATION).values())
        return [feed(self.measured.contract, [clip], [self._length(clip)]) for clip in recordings]

    def batches(self) -> list[Feeds]:
        """Return the calibration clips, strung together and cut into batches of one length, as histograms want."""
        recordings = list(read(self.measured.name, CALIBRATION).values())
        total = sum(map(self._length, recordings))
        length = min(_BATCH, total)
        rows = feed(self.measured.contract, recordings, [length] * (total // length))
        return [{name: array[row : row + 1] for name, array in rows.items()} for row in range(total // length)]

    def _length(self, recording: np.ndarray) -> int:
        contract = self.measured.contract
        return recording.shape[contract.axis]


def float32(setting: Setting) -> Variant:
    """Return our float32 graph, which every other variant is compared with."""
    return _from_graph("ours float32", setting.graph, setting.threads)


def built(setting: Setting) -> Variant:
    """Return our quantized graph, as built with ``params.yaml``."""
    return _from_graph("ours as built", setting.measured_graph.files[QUANTIZED], setting.threads)


def ours(setting: Setting, schemes: Sequence[Scheme] = SCHEMES) -> list[Builder]:
    """List the quantized graph as built, and one for every scheme."""
    return [partial(built, setting), *(partial(_scheme, setting, scheme) for scheme in schemes)]


def onnxruntime_tools(setting: Setting) -> list[Builder]:
    """List what ONNX Runtime's own quantization tools make of our float32 graph, with the options best for a CPU."""
    methods = [tools.CalibrationMethod[name] for name in ("MinMax", "Percentile", "Entropy")]
    return [
        partial(dynamic, setting),
        *(partial(_static, setting, method) for method in methods),
        *(partial(_blocks, setting, bits) for bits in (8, 4)),
    ]


def dynamic(setting: Setting) -> Variant:
    """Return what ``quantize_dynamic`` makes of our float32 graph."""
    return _from_graph("ORT quantize_dynamic", write_dynamic(setting.graph, setting.folder), setting.threads)


def write_dynamic(graph: Path, folder: Path) -> Path:
    """Let ``quantize_dynamic`` quantize each MatMul with a constant matrix to INT8, per output channel.

    Args:
        graph: File of the float32 graph.
        folder: Folder of the quantized graph.

    Returns:
        The file of the quantized graph.
    """
    out = folder / "dynamic.onnx"
    tools.quantize_dynamic(
        graph,
        out,
        op_types_to_quantize=["MatMul"],
        per_channel=True,
        weight_type=tools.QuantType.QInt8,
        use_external_data_format=True,  # it cannot read a graph above 2 GB otherwise
        extra_options={"MatMulConstBOnly": True},
    )
    return out


def ceiling(setting: Setting) -> Variant:
    """Return the quantized matrix multiplications alone, on ready activations, against the float32 ones alone.

    No quantized graph of this model can gain more than that in ONNX Runtime on this machine: see ``validate.ceiling``.
    """
    float_kernels = Variant("bare float kernels", _bare(setting, FLOAT), 0)
    int8_kernels = _bare(setting, QUANTIZED)
    return Variant("ceiling: bare INT8 kernels over bare float kernels", int8_kernels, 0, against=float_kernels)


def _from_graph(name: str, graph: Path, threads: int) -> Variant:
    session = open_session(graph, threads=threads, stop_spinning=True)
    return Variant(name, lambda fed: session.run(None, dict(fed))[0], disk_bytes(graph))


def disk_bytes(graph: Path) -> int:
    """Return the size of a graph with its external data, if it has any."""
    return sum(file.stat().st_size for file in (graph, data_file(graph)) if file.exists())


def calibration_of(measured: MeasuredComponent, stem: str) -> dict[str, Calibration]:
    """Return the calibration of one of a component's graphs, by activation."""
    return read_calibration(Path("models/calibration") / measured.name, measured.folders["onnx"], stem)


def write_ours(
    measured: MeasuredComponent,
    stem: str,
    params: QuantizeParams,
    folder: Path,
    calibration: Mapping[str, Calibration] | None = None,
) -> Path:
    """Quantize one of a component's graphs; return its file, which the scheme names.

    Args:
        measured: The component as built.
        stem: File stem of the graph.
        params: How it is quantized. Nodes that are compensated are compensated here, which takes all calibration clips.
        folder: Folder to write into.
        calibration: Calibration by activation; None takes the component's.
    """
    calibration = calibration_of(measured, stem) if calibration is None else calibration
    graph, codes = measured.graphs[stem], None
    if params.compensation:
        codes = Codes(folder / "codes")
        recordings = calibration_inputs(measured.name, stem, several=len(measured.graphs) > 1)
        compensate_graph(graph.files[FLOAT], graph.contract, params, calibration, recordings, codes)
    model, _ = quantize(graph.files[FLOAT], params, calibration, codes=codes)
    save_graph(model, folder, params.scheme)
    return folder / f"{params.scheme}.onnx"


def _scheme(setting: Setting, scheme: Scheme) -> Variant:
    params = setting.quantized.model_copy(update={"scheme": scheme, "nodes": {}, "compensation": {}})
    graph = write_ours(setting.measured, setting.graph.stem, params, setting.folder)
    return _from_graph(f"ours {scheme}", graph, setting.threads)


class _Batches(tools.CalibrationDataReader):
    """Reads calibration batches for ONNX Runtime's tools."""

    def __init__(self, setting: Setting) -> None:
        self._feeds: Iterator[dict[str, np.ndarray]] = (dict(fed) for fed in setting.batches())

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Return the next batch; None after the last one."""
        return next(self._feeds, None)


def _static(setting: Setting, method: Any) -> Variant:
    """Quantize activations with fixed ranges, in the form that becomes MatMulIntegerToFloat.

    Only MatMuls, and not their outputs: the tool's defaults quantize every output and run the bias in 8 bits, as
    QLinearMatMul and QLinearAdd, which came out no closer and no faster.
    """
    out = setting.folder / f"static-{method.name}.onnx"
    tools.quantize_static(
        setting.graph,
        out,
        _Batches(setting),
        quant_format=tools.QuantFormat.QDQ,
        op_types_to_quantize=["MatMul"],
        per_channel=True,
        activation_type=tools.QuantType.QUInt8,
        weight_type=tools.QuantType.QInt8,
        calibrate_method=method,
        extra_options={"OpTypesToExcludeOutputQuantization": ["MatMul"]},
    )
    return _from_graph(f"ORT quantize_static {method.name}", out, setting.threads)


def _blocks(setting: Setting, bits: int) -> Variant:
    out = write_blocks(setting.graph, setting.folder, bits, _BLOCK)
    return _from_graph(f"ORT MatMulNBitsQuantizer {bits} bits, block {_BLOCK}", out, setting.threads)


def write_blocks(graph: Path, folder: Path, bits: int, block: int) -> Path:
    """Let ``MatMulNBitsQuantizer`` round each MatMul's matrix to blocks that share a scale.

    Args:
        graph: File of the float32 graph.
        folder: Folder of the quantized graph.
        bits: Bits of a weight: 4 or 8.
        block: Number of weights that share a scale.

    Returns:
        The file of the quantized graph.
    """
    out = folder / f"blocks-{bits}-{block}.onnx"
    config = DefaultWeightOnlyQuantConfig(block_size=block, is_symmetric=True, accuracy_level=4, bits=bits)
    quantizer = MatMulNBitsQuantizer(onnx.load(graph), algo_config=config)
    quantizer.process()
    quantizer.model.save_model_to_file(str(out), use_external_data_format=True)
    return out


def _bare(setting: Setting, kind: str) -> Callable[[Feeds], None]:
    """Return a function that runs the matrix multiplications alone, at the length of what it is fed."""

    @lru_cache(maxsize=1)
    def session(length: int) -> BareKernels:
        return BareKernels(kernels(setting.measured_graph, length), kind, setting.threads, "CPUExecutionProvider")

    return lambda fed: session(next(iter(fed.values())).shape[1]).run()
