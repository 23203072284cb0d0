"""Is a published folder what it says, and does it compute here what it computed there? ``qwen-omni-onnx verify``.

Every byte is hashed, every graph's interface compared, and every golden case run on this machine. What comes out is
judged by the limits that the folder was published with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen_omni_onnx.bundle import published
from qwen_omni_onnx.checked import check_published
from qwen_omni_onnx.common import artifact, golden
from qwen_omni_onnx.common.agreement import (
    CheckAgreement,
    Verdict,
    beside,
    of_bfloat16,
    of_component,
    within_limit,
)
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.common.session import open_session
from qwen_omni_onnx.published import graphs_of
from qwen_omni_onnx.runtimes import RUNTIMES
from qwen_omni_onnx.trust import Trust, require_signed

__all__ = ["Drift", "Verified", "verify"]

_TYPES = {"FLOAT": "tensor(float)", "INT64": "tensor(int64)"}


@dataclass(frozen=True)
class Drift:
    """A verdict on parity as published, and what this machine gives.

    Attributes:
        verdict: The limit, and what was found where the folder was published.
        here: What was found on this machine.
    """

    verdict: Verdict
    here: float

    @property
    def ok(self) -> bool:
        """Whether the limit is kept here."""
        return within_limit(self.here, self.verdict.comparison, self.verdict.limit)


@dataclass(frozen=True)
class Verified:
    """What was found of a published folder.

    Attributes:
        folder: The folder.
        component: Its component.
        files: Number of files that are as published.
        nbytes: Their bytes.
        graphs: Names of the graph files whose interfaces are as published.
        drifts: Metrics of the golden cases, there and here.
        signed: What is known of a signature: who has signed, where that was asked; else whether anybody says so.
    """

    folder: Path
    component: str
    files: int
    nbytes: int
    graphs: list[str]
    drifts: list[Drift]
    signed: str


def verify(folder: str | Path, trust: Trust | None = None) -> list[Verified]:
    """Verify a published folder, or every one below a folder.

    Args:
        folder: The folder.
        trust: Whom each folder has to be signed by; None does not ask.

    Raises:
        UserError: There is no published folder; a file or a graph is not what its manifest says; or a folder is not
            signed by whom it has to be.
    """
    places = published(Path(folder)) if Path(folder).is_dir() else {}
    if not places:
        raise UserError(f"{folder}: nothing published there; give a published folder, or one that holds some")
    if trust is not None:
        for place, manifest in places.items():  # before a byte of a stranger's is looked at
            require_signed(place, manifest, trust)
    return [_verify(place, trust) for place in places]


def _verify(folder: Path, trust: Trust | None) -> Verified:
    manifest = check_published(folder)
    graphs = _graphs(folder, manifest)
    stem_of = {path: stem for by_stem in graphs.values() for stem, path in by_stem.items()}
    for path, stem in stem_of.items():
        _require_interface(path, manifest["interface"][stem])
    files = {name: entry for name, entry in manifest["files"].items() if (folder / name).exists()}
    names = sorted(path.name for path in stem_of)
    drifts = _drifts(
        folder, manifest, {kind: _agreement(folder, manifest, by_stem) for kind, by_stem in graphs.items()}
    )
    nbytes = sum(entry["bytes"] for entry in files.values())
    return Verified(folder, manifest["component"], len(files), nbytes, names, drifts, _signed(folder, trust))


def _signed(folder: Path, trust: Trust | None) -> str:
    if trust is not None:
        return f"signed by {trust.whom}"
    if (folder / artifact.SIGNATURE).exists():
        return "signed, but nobody asked by whom: see --key, --certificates and --identity"
    return "not signed: whoever replaced its files and their hashes would go unnoticed"


def _graphs(folder: Path, manifest: Mapping[str, Any]) -> dict[str, dict[str, Path]]:
    """Return the graph files of each kind, by stem; of the quantized kind, the float32 one where there is no other.

    A folder that was published without a float32 graph of a quantized one has no float32 kind.
    """
    try:
        stems, quantized = list(manifest["interface"]), manifest["quantization"]
    except KeyError as error:
        raise UserError(
            f"{folder}: its manifest has no {error}: published by an older version; publish again"
        ) from None
    found = {"float32": graphs_of(folder, stems, ())}
    if any(stem in quantized and not path.is_file() for stem, path in found["float32"].items()):
        del found["float32"]
    if quantized:
        found["quantized"] = graphs_of(folder, stems, quantized)
    return found


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


def _verdicts(folder: Path, manifest: Mapping[str, Any]) -> list[Verdict]:
    try:
        return [Verdict.read(content) for content in manifest["gates"]]
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{folder}: its manifest holds no gates that this version can read; publish again") from None


def _drifts(
    folder: Path, manifest: Mapping[str, Any], found: Mapping[str, Mapping[str, CheckAgreement]]
) -> list[Drift]:
    """Return each metric that was judged when the folder was published, and that golden cases tell again."""
    drifts = []
    for verdict in _verdicts(folder, manifest):
        agreement = found.get(verdict.kind, {}).get(verdict.subject)
        here = getattr(agreement, verdict.metric, None)
        if isinstance(here, float):
            drifts.append(Drift(verdict, here))
    return drifts
