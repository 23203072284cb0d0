"""Sessions in stock ONNX Runtime."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from qwen_omni_onnx.common.cores import restricted, usable_cores
from qwen_omni_onnx.common.errors import UserError

__all__ = ["OPTIMIZATIONS", "node_events", "open_session", "profile", "require_provider", "run", "sums_saturate"]

_LEVELS = {
    "disabled": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
OPTIMIZATIONS = tuple(_LEVELS)
_COMPUTED = "_kernel_time"  # ends the name of the profiler's event about a node's computation
# x86 without VNNI adds pairs of UINT8 x INT8 products in 16 bits, and saturates: half the decibels are lost. With this,
# ONNX Runtime turns INT8 weights to UINT8, whose products it adds in 32 bits. It does so with VNNI too, where all sums
# are exact and UINT8 weights up to 2.6 times slower: so it is set only where sums do saturate.
_EXACT_INT8 = "session.x64quantprecision"
_PRODUCT = (  # a graph of one MatMulInteger: a UINT8, b INT8 -> y INT32
    b'\x08\x05\x12\x00:P\n\x18\n\x01a\n\x01b\x12\x01y"\rMatMulInteger\x12\x01gZ\x0f\n\x01a\x12\n\n\x08'
    b"\x08\x02\x12\x04\n\x00\n\x00Z\x0f\n\x01b\x12\n\n\x08\x08\x03\x12\x04\n\x00\n\x00b\x0f\n\x01y\x12\n\n\x08\x08\x06\x12\x04\n\x00\n\x00B\x04\n\x00\x10\n"
)


def require_provider(provider: str) -> None:
    """Refuse an execution provider that this ONNX Runtime was built without.

    Raises:
        UserError: It was.
    """
    if provider not in ort.get_available_providers():
        raise UserError(f"no {provider} here; this ONNX Runtime has {', '.join(ort.get_available_providers())}")


def open_session(
    graph: Path | bytes,
    *,
    threads: int = 0,
    optimization: str = "all",
    provider: str = "CPUExecutionProvider",
    optimized_to: Path | None = None,
    data_folder: Path | None = None,
    stop_spinning: bool = False,
    low_memory: bool = False,
    profiled_to: Path | None = None,
    prepack: bool = True,
) -> ort.InferenceSession:
    """Open a session.

    Args:
        graph: File of a graph, or a serialized graph.
        threads: Intra-op threads; 0 lets ONNX Runtime choose: one tied to each physical core. With a number they are
            not tied, and short runs take one time or three times that. ONNX Runtime counts the machine's cores: a
            process that may use only some of them gets one thread for each of those.
        optimization: Level of optimization: disabled, basic, extended or all.
        provider: An execution provider that this installation has.
        optimized_to: File to write the graph to, as ONNX Runtime optimized it.
        data_folder: Folder where a serialized graph's external data lies.
        stop_spinning: Whether to stop this session's threads from spinning after each run, so that they do not take the
            cores from another session of the process that runs next. Without it, two sessions slow each other down.
        low_memory: Whether to free each tensor after its last use, where ONNX Runtime would keep its memory for later
            ones: half the peak of a long input, for up to a tenth more time.
        profiled_to: Beginning of the path of the file that each node's times are written to, for :func:`profile`.
        prepack: Whether to lay weights out anew for the kernels when the session opens. Without it, a session that runs
            once is over sooner; the block schemes then skip the quantization of activations.

    Raises:
        UserError: The provider is not there, or the graph does not load; the message repeats ONNX Runtime's.
    """
    require_provider(provider)
    options = ort.SessionOptions()
    options.log_severity_level = 3  # warnings of the optimizer are for its developers
    options.intra_op_num_threads = threads or (usable_cores() if restricted() else 0)
    options.graph_optimization_level = _LEVELS[optimization]
    if optimized_to:
        options.optimized_model_filepath = str(optimized_to)
    if sums_saturate():
        options.add_session_config_entry(_EXACT_INT8, "1")
    if stop_spinning:
        options.add_session_config_entry("session.force_spinning_stop", "1")
    if low_memory:
        options.enable_cpu_mem_arena = options.enable_mem_reuse = False
    if profiled_to:
        options.enable_profiling, options.profile_file_prefix = True, str(profiled_to)
    if not prepack:
        options.add_session_config_entry("session.disable_prepacking", "1")
    if data_folder:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(data_folder))
    try:
        opened = ort.InferenceSession(graph if isinstance(graph, bytes) else str(graph), options, providers=[provider])
    except Exception as error:  # ONNX Runtime raises classes of its own for each status
        name = graph.name if isinstance(graph, Path) else "graph"
        what = f"load it, or write {optimized_to}" if optimized_to else "load it"
        raise UserError(f"{name}: ONNX Runtime cannot {what}: {' '.join(str(error).split())[:300]}") from None
    _give_memory_back()
    return opened


def _give_memory_back() -> None:
    """Return what a session held while it laid its weights out: 0.5 of 1.2 GB for the encoder's INT8 at full depth.

    glibc keeps freed memory for what the process asks for next; nothing as large comes. Other C libraries return it.
    """
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@functools.cache
def _malloc_trim() -> Callable[[int], int] | None:
    with contextlib.suppress(OSError, AttributeError, TypeError):  # no such function; on Windows, no such library
        return ctypes.CDLL(None).malloc_trim
    return None


def run(session: ort.InferenceSession, feeds: Mapping[str, Any]) -> dict[str, Any]:
    """Run once; return the outputs by name.

    Raises:
        UserError: The inputs do not fit the graph, or an operator failed.
    """
    wanted = [output.name for output in session.get_outputs()]
    try:
        return dict(zip(wanted, session.run(wanted, dict(feeds)), strict=True))
    except Exception as error:
        raise UserError(f"ONNX Runtime cannot run the graph: {' '.join(str(error).split())[:300]}") from None


def profile(session: ort.InferenceSession) -> list[dict[str, Any]]:
    """End the profiling of a session; return its events, and remove the file that they were in.

    Raises:
        UserError: That file is not whole: ONNX Runtime does not tell that it could not write it.
    """
    path = Path(session.end_profiling())
    try:
        events: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise UserError(
            f"{path}: cut short; is the disk full? Free some space, or set TMPDIR to another disk"
        ) from None
    path.unlink()
    return events


def node_events(events: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield those of a profile's events that are about the computation of a node, under the node's own name."""
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(_COMPUTED):
            yield {**event, "name": event["name"].removesuffix(_COMPUTED)}


@functools.cache
def sums_saturate() -> bool:
    """Return whether ONNX Runtime's UINT8 x INT8 kernels saturate here, by sums whose pairs do not fit 16 bits."""
    session = ort.InferenceSession(_PRODUCT, providers=["CPUExecutionProvider"])
    a, b = np.full((8, 64), 255, np.uint8), np.full((64, 16), 127, np.int8)
    (sums,) = session.run(None, {"a": a, "b": b})
    return bool((sums != 64 * 255 * 127).any())
