"""The graphs of a published folder, opened and run in a process of its own: the folder may be a stranger's.

Only what :mod:`qwen_omni_onnx.verification` has found to be as the manifest says gets here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from qwen_omni_onnx.common import golden
from qwen_omni_onnx.common.agreement import CheckAgreement, beside, of_bfloat16, of_component
from qwen_omni_onnx.common.confined import ConfinedProcess, Limits, StoppedError
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.common.session import open_session
from qwen_omni_onnx.runtimes import RUNTIMES

__all__ = ["Agreements", "limits_of", "measure"]

Agreements = Mapping[str, Mapping[str, Mapping[str, float]]]  # metrics by kind of graphs, by check, by name

_TYPES = {"FLOAT": "tensor(float)", "INT64": "tensor(int64)"}
# An honest folder never meets these: at full depth, 5 GB of Thinker and its golden cases take minutes on two cores, and
# a session at most twice its weights. Each core may work on a piece of its own.
_SECONDS, _SECONDS_A_GB = 1800, 900
_BYTES, _BYTES_A_BYTE, _BYTES_A_CORE = 4 << 30, 4, 1 << 29


def limits_of(nbytes: int, max_seconds: float | None = None, max_gib: float | None = None) -> Limits:
    """Return what the graphs of a folder may take.

    Args:
        nbytes: Bytes of the folder's files: weights, and golden cases.
        max_seconds: Time; None gives so much that an honest folder on a slow machine takes less.
        max_gib: Memory in GiB; None is as generous.
    """
    seconds = _SECONDS + _SECONDS_A_GB * nbytes / 1e9
    memory = _BYTES + _BYTES_A_BYTE * nbytes + _BYTES_A_CORE * (os.cpu_count() or 1)
    return Limits(seconds if max_seconds is None else max_seconds, memory if max_gib is None else max_gib * 2**30)


def measure(
    folder: Path, manifest: Mapping[str, Any], graphs: Mapping[str, Mapping[str, Path]], limits: Limits
) -> Agreements:
    """Open each graph, compare its interface with the manifest's, and run the golden cases; return how they come out.

    Args:
        folder: The published folder.
        manifest: Its manifest.
        graphs: Files of the graphs by kind, by stem.
        limits: What all of this may take.

    Raises:
        UserError: A graph is not what the manifest says, cannot be run, meets a limit, or crashes.
    """
    paths = {kind: {stem: str(path) for stem, path in by_stem.items()} for kind, by_stem in graphs.items()}
    of_graphs = {key: manifest[key] for key in ("component", "interface")}
    try:
        with ConfinedProcess(limits) as process:
            found: Agreements = process.call(_measure, str(folder), of_graphs, paths)
    except StoppedError as error:
        raise UserError(
            f"{folder}: running its graphs {error}; do not use it, unless you trust it and --max-seconds or --max-gib "
            "is too low for this machine"
        ) from None
    return found


def _measure(folder: str, manifest: dict[str, Any], graphs: dict[str, dict[str, str]]) -> Any:
    """Do the work of :func:`measure`, in the process."""
    place = Path(folder)
    by_kind = {kind: {stem: Path(path) for stem, path in by_stem.items()} for kind, by_stem in graphs.items()}
    for path, stem in {path: stem for by_stem in by_kind.values() for stem, path in by_stem.items()}.items():
        _require_interface(path, manifest["interface"][stem])
    return {kind: _metrics(_agreement(place, manifest, by_stem)) for kind, by_stem in by_kind.items()}


def _metrics(found: Mapping[str, CheckAgreement]) -> dict[str, dict[str, float]]:
    """Return the metrics that are numbers, by check."""
    return {
        check: {
            field.name: float(value)
            for field in fields(agreement)
            if isinstance(value := getattr(agreement, field.name), float)
        }
        for check, agreement in found.items()
    }


def _require_interface(graph: Path, interface: Mapping[str, list[dict[str, Any]]]) -> None:
    session = open_session(graph, optimization="disabled", prepack=False)  # it is looked at, not run
    for way, ports in (("inputs", session.get_inputs()), ("outputs", session.get_outputs())):
        expected = [(port["name"], _TYPES.get(port["dtype"]), port["shape"]) for port in interface[way]]
        actual = [(port.name, port.type, port.shape) for port in ports]
        for wanted, given in zip(expected, actual, strict=False):
            if wanted != given:
                raise UserError(f"{graph}: {way}: {given} should be {wanted}; do not use it")
        if len(expected) != len(actual):
            raise UserError(f"{graph}: {len(actual)} {way}, not {len(expected)}; do not use it")


def _agreement(folder: Path, manifest: Mapping[str, Any], graphs: Mapping[str, Path]) -> dict[str, CheckAgreement]:
    recorded = folder / "golden" / golden.FILE
    name = str(manifest["component"])
    runtime = RUNTIMES.get(name)
    if runtime is None and len(graphs) > 1:
        raise UserError(
            f"{folder}: nothing here runs the graphs of component {name!r} together; use a newer version of the package"
        )
    interface = next(iter(manifest["interface"].values()))  # a run-time knows that of its component itself
    inputs, outputs = ([port["name"] for port in interface[direction]] for direction in ("inputs", "outputs"))
    try:
        found = of_component(runtime, graphs, folder, (inputs, outputs), recorded, threads=0)
    except KeyError as error:
        raise UserError(f"{folder}: no graph {error} in it, as a {name} has; do not use the folder") from None
    yardsticks = of_bfloat16(runtime, outputs, recorded)
    return {check: beside(agreement, yardsticks.get(check)) for check, agreement in found.items()}
