"""Checks graphs against their contract: interface, files, operators, and that they run."""

from __future__ import annotations

import re
import stat
import timeit
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from omni.hadamard import matrix
from omni.quantization import ROTATIONS
from omni.reports import ContractCheck
from omni.segments import Segments, fits
from omni.stored import load_graph
from omni.streamed import data_file, initializers, tensor_blocks
from qwen_omni_onnx.common import artifact, output
from qwen_omni_onnx.common.agreement import FLOAT, QUANTIZED
from qwen_omni_onnx.common.contract import GraphContract, Port, differences, once_a_layer
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.common.session import open_session, run
from validate.measured import MeasuredComponent, MeasuredGraph

__all__ = ["check"]

_DOMAINS = {"", "ai.onnx", "com.microsoft"}
_PRIVATE = re.compile(rb"/(?:home|root|Users|tmp|usr)/|site-packages|[A-Za-z]:\\\\")
_MODE = 0o644
_TIMED_LENGTH = 10  # length of the run that is timed


class _Broken(Exception):
    """A check failed; the message gives the reason."""


def check(measured: MeasuredComponent) -> list[ContractCheck]:
    """Return the results of all checks on a component's files and on each of its graphs."""
    rows = [_row("all", "files are the manifest's", partial(_whole, measured))]
    for graph in measured.graphs.values():
        rows += _graph(graph, composed=bool(measured.component.composed_of))
    return rows


def _graph(graph: MeasuredGraph, *, composed: bool) -> list[ContractCheck]:
    rows = []
    for kind, path in graph.files.items():
        checks: dict[str, Callable[[], str]] = {
            "file is valid ONNX": partial(_valid, path),
            "external data is reachable, plain and fully used": partial(_external_data, path),
            "interface": partial(_interface, path, graph),
            "IR version": partial(_ir_version, path, graph.contract.ir_version),
            "operators are standard or com.microsoft": partial(_domains, path),
            "no path, user or host name inside": partial(_private, path),
            "weights are finite": partial(_finite, path),
            "inference works": partial(_inference, path, graph),
        }
        if kind == FLOAT:
            checks["size of graph and data"] = partial(_size, path, graph)
        if kind == QUANTIZED:
            checks["quantized operators after optimization"] = partial(_optimized, path, graph, composed=composed)
        rows += [_row(f"{graph.stem} {kind}", name, function) for name, function in checks.items()]
    return rows


def _row(graph: str, name: str, function: Callable[[], str]) -> ContractCheck:
    try:
        return ContractCheck(graph, name, True, function())
    except (_Broken, UserError, OSError) as broken:
        return ContractCheck(graph, name, False, str(broken))
    except Exception as error:  # libraries may raise any exception for a damaged file
        return ContractCheck(graph, name, False, f"{type(error).__name__}: {error}"[:300])


def _whole(measured: MeasuredComponent) -> str:
    count = sum(len(artifact.check(folder)["files"]) for folder in measured.folders.values())
    return f"{count} files"


def _valid(path: Path) -> str:
    onnx.checker.check_model(str(path))
    return path.name


def _interface(path: Path, graph: MeasuredGraph) -> str:
    contract, found = graph.contract, ir.load(path).graph
    for expected, actual in (
        (contract.inputs, tuple(_port(value) for value in found.inputs)),
        (contract.outputs, tuple(_port(value) for value in found.outputs)),
    ):
        if faults := differences(expected, actual):
            raise _Broken("; ".join(faults))
    return " -> ".join(map(str, once_a_layer((*contract.inputs, *contract.outputs))))


def _port(value: ir.Value) -> Port:
    shape = tuple(axis if isinstance(axis, int) else str(axis.value) for axis in value.shape)
    return Port(value.name, value.dtype.name, shape)


def _ir_version(path: Path, expected: int) -> str:
    version = ir.load(path).ir_version
    if version != expected:
        raise _Broken(f"{version}, promised was {expected}")
    return str(version)


def _external_data(path: Path) -> str:
    """Check that all tensors' bytes fill one regular file beside the graph, without overlaps and gaps."""
    ranges = []
    data = data_file(path)
    for tensor in _external(path):
        if tensor.location != data.name:
            raise _Broken(f"{tensor.name} lies in {tensor.location}, not in {data.name}")
        if tensor.length is not None and tensor.length != tensor.nbytes:
            raise _Broken(f"{tensor.name}: {tensor.length} bytes, its shape needs {tensor.nbytes}")
        ranges.append((tensor.offset or 0, (tensor.offset or 0) + tensor.nbytes, tensor.name))
    for file in (path, data):
        status = file.lstat()
        if not stat.S_ISREG(status.st_mode):
            raise _Broken(f"{file.name} is a link or no plain file; runtimes refuse it")
        if stat.S_IMODE(status.st_mode) != _MODE:
            raise _Broken(f"{file.name} has mode {stat.S_IMODE(status.st_mode):04o}, not {_MODE:04o}")
    size, position = data.stat().st_size, 0
    for start, end, name in sorted(ranges):
        if end > size:
            raise _Broken(f"{name} ends at byte {end} of {data.name}, which has {size}")
        if start != position:
            raise _Broken(f"{name} starts at byte {start}, the tensor before it ends at {position}")
        position = end
    if position != size:
        raise _Broken(f"{data.name} has {size} bytes, the tensors fill {position}")
    return f"{len(ranges)} tensors in {size:,} bytes"


def _size(path: Path, graph: MeasuredGraph) -> str:
    contract, model = graph.contract, ir.load(path)
    nodes, data = len(list(model.graph)), data_file(path).stat().st_size
    for quantity, actual, promised in (("nodes", nodes, contract.nodes), ("bytes of data", data, contract.data_bytes)):
        if promised is not None and actual != promised:
            raise _Broken(f"{actual:,} {quantity}, promised were {promised:,}")
    return f"{nodes} nodes, {data:,} bytes of data"


def _domains(path: Path) -> str:
    model = ir.load(path)
    foreign = {node.domain for node in model.graph.all_nodes()} - _DOMAINS
    if foreign or set(model.functions):
        raise _Broken(f"operators of {', '.join(sorted(foreign)) or 'local functions'}")
    counts = Counter(node.op_type for node in model.graph.all_nodes())
    return ", ".join(f"{count} {op}" for op, count in sorted(counts.items()))


def _private(path: Path) -> str:
    import getpass
    import platform

    content = path.read_bytes()
    found = _PRIVATE.search(content)
    names = [name.encode() for name in (platform.node(), _user(getpass.getuser)) if len(name) > 4]
    if found or any(name in content for name in names):
        raise _Broken(f"found {found.group().decode() if found else 'the name of this host or user'}")
    return "none"


def _user(ask: Callable[[], str]) -> str:
    try:
        return ask()
    except (KeyError, OSError):  # a container's user may have no name
        return ""


def _finite(path: Path) -> str:
    model = ir.load(path)
    values = 0
    for value in initializers(model):
        tensor = value.const_value
        values += tensor.size
        if not tensor.dtype.is_floating_point():
            continue
        for first_row, block in tensor_blocks(tensor):
            if not np.isfinite(block).all():
                index = np.argwhere(~np.isfinite(block))[0]
                if len(index):
                    index[0] += first_row
                raise _Broken(f"{value.name} holds NaN or infinity at {index.tolist()}")
    return f"{values:,} values"


def _inference(path: Path, graph: MeasuredGraph) -> str:
    contract = graph.contract
    sizes = [(batch, size * contract.least) for batch, size in ((1, 1), (2, 3), (1, _TIMED_LENGTH))]
    feeds = [contract.example(*size) for size in sizes]
    session = open_session(path) if fits(path) else None
    results = [run(session, fed) for fed in feeds] if session else _in_segments(path, contract, feeds)
    for (batch, length), result in zip(sizes, results, strict=True):
        for port in contract.outputs:
            shape = port.sized(contract.sizes(batch, length))
            if list(result[port.name].shape) != shape:
                raise _Broken(f"{port.name} came out as {list(result[port.name].shape)}, not {shape}")
            if not np.isfinite(result[port.name]).all():
                raise _Broken(f"{port.name} holds NaN or infinity for an input of normal values")
    batches = "batch 1 and 2" if contract.batched else "batch 1"
    if session is None:
        return f"{batches}; in segments, because the whole graph would take too much memory"
    best = min(timeit.repeat(partial(run, session, feeds[-1]), number=1, repeat=5))
    # The time is shown but not judged: it depends on the machine.
    return f"{batches}; {contract.length} {length} in {best * 1e3:.1f} ms"


def _in_segments(
    path: Path, contract: GraphContract, feeds: list[dict[str, np.ndarray]]
) -> list[dict[str, np.ndarray]]:
    results: list[dict[str, np.ndarray]] = [{} for _ in feeds]
    segments = Segments(path, [port.name for port in contract.outputs])
    runs = {str(number): fed for number, fed in enumerate(feeds)}
    segments.run(contract, runs, lambda number, values: results[int(number)].update(values))
    return results


def _optimized(path: Path, graph: MeasuredGraph, *, composed: bool) -> str:
    """Check that quantized operators run: count them in ONNX Runtime's optimized graph, not in the file."""
    expected: Counter[str] = Counter()
    for entry in graph.quantization.values():
        expected[entry["operator"]] += entry.get("nodes", 1)
    expected["MatMul"] += _never_quantized(path)
    with output.temporary_folder() as folder:
        optimized = folder / "optimized.onnx"
        open_session(path, optimized_to=optimized)
        operators = Counter(node.op_type for node in ir.load(optimized).graph.all_nodes())
    float_matmuls = sum(operators[op] for op in ("MatMul", "Gemm", "FusedMatMul", "FusedGemm"))
    for operator, count in expected.items():
        actual = float_matmuls if operator == "MatMul" else operators[operator]
        # Between composed graphs, both operands of some MatMuls are constants, and are folded.
        folded = operator == "MatMul" and actual < count and composed
        if actual != count and not folded:
            raise _Broken(f"{actual} {operator} in the optimized graph, {count} were quantized so")
    return ", ".join(f"{count} {operator}" for operator, count in sorted(expected.items()))


def _never_quantized(path: Path) -> int:
    """Count the MatMuls of two activations, as in attention, and the Hadamard rotations of activations."""
    matmuls = [node for node in load_graph(path).graph.all_nodes() if node.op_type == "MatMul"]
    between = sum(all(value.const_value is None for value in node.inputs) for node in matmuls)
    return between + sum(_rotates(node) for node in matmuls)


def _rotates(node: ir.Node) -> bool:
    tensor = node.inputs[1].const_value
    run = 0 if tensor is None else int(tensor.shape[0])
    return run in ROTATIONS and tensor.shape.numpy() == (run, run) and np.array_equal(tensor.numpy(), matrix(run))


def _external(path: Path) -> Iterator[ir.ExternalTensor]:
    for value in initializers(ir.load(path)):
        if isinstance(value.const_value, ir.ExternalTensor):
            yield value.const_value
