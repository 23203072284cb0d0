"""Is a published folder what it says, and does it compute here what it computed there? ``qwen-omni-onnx verify``.

Every byte is hashed, every graph's interface compared, and every golden case run on this machine. What comes out is
judged by the limits that the folder was published with.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen_omni_onnx.bundle import published
from qwen_omni_onnx.checked import check_published
from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.common.agreement import Verdict, within_limit
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.graph_checks import Agreements, limits_of, measure
from qwen_omni_onnx.published import graphs_of
from qwen_omni_onnx.published_manifest import require_types
from qwen_omni_onnx.trust import Trust, in_words, require_signed

__all__ = ["Drift", "Verified", "verify"]


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


def verify(
    folder: str | Path, trust: Trust | None = None, *, max_seconds: float | None = None, max_gib: float | None = None
) -> list[Verified]:
    """Verify a published folder, or every one below a folder.

    Graphs are opened and run in a process of its own: one that computes without end or fills the memory is refused.

    Args:
        folder: The folder.
        trust: Whom each folder has to be signed by; None does not ask.
        max_seconds: Time that the graphs of one published folder may take; None: so much that no honest folder takes
            more, see :func:`qwen_omni_onnx.graph_checks.limits_of`.
        max_gib: Memory that they may take, in GiB; None: as generous.

    Raises:
        UserError: There is no published folder; a file or a graph is not what its manifest says; a folder is not signed
            by whom it has to be; the graphs meet a limit; or a limit is not above 0.
    """
    for name, limit in (("max_seconds", max_seconds), ("max_gib", max_gib)):
        if limit is not None and not 0 < limit < math.inf:
            raise UserError(f"{name}: {limit:g}; give a number above 0")
    places = published(Path(folder)) if Path(folder).is_dir() else {}
    if not places:
        raise UserError(f"{folder}: nothing published there; give a published folder, or one that holds some")
    if trust is not None:
        for place, manifest in places.items():  # before a byte of a stranger's is looked at
            require_signed(place, manifest, trust)
    return [_verify(place, trust, max_seconds, max_gib) for place in places]


def _verify(folder: Path, trust: Trust | None, max_seconds: float | None, max_gib: float | None) -> Verified:
    manifest = check_published(folder)
    graphs = _graphs(folder, manifest)
    names = sorted({path.name for by_stem in graphs.values() for path in by_stem.values()})
    sizes = [entry["bytes"] for name, entry in manifest["files"].items() if (folder / name).exists()]
    verdicts = _verdicts(folder, manifest)
    found = measure(folder, manifest, graphs, limits_of(sum(sizes), max_seconds, max_gib))
    drifts, component = _drifts(folder, verdicts, found), str(manifest["component"])
    signed = in_words((folder / artifact.SIGNATURE).exists(), trust)
    return Verified(folder, component, len(sizes), sum(sizes), names, drifts, signed)


def _graphs(folder: Path, manifest: Mapping[str, Any]) -> dict[str, dict[str, Path]]:
    """Return the graph files of each kind, by stem; of the quantized kind, the float32 one where there is no other.

    A folder that was published without a float32 graph of a quantized one has no float32 kind.
    """
    require_types(folder, manifest)
    stems, quantized = list(manifest["interface"]), manifest["quantization"]
    found = {"float32": graphs_of(folder, stems, ())}
    if any(stem in quantized and not path.is_file() for stem, path in found["float32"].items()):
        del found["float32"]
    if quantized:
        found["quantized"] = graphs_of(folder, stems, quantized)
    for path in (path for by_stem in found.values() for path in by_stem.values()):
        if path.relative_to(folder).as_posix() not in manifest["files"]:
            raise UserError(f"{path}: not in the manifest, which names its interface; download the folder again")
    return found


def _verdicts(folder: Path, manifest: Mapping[str, Any]) -> list[Verdict]:
    try:
        return [Verdict.read(content) for content in manifest["gates"]]
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{folder}: its manifest holds no gates that this version can read; publish again") from None


def _drifts(folder: Path, verdicts: Sequence[Verdict], found: Agreements) -> list[Drift]:
    """Return each metric that was judged when the folder was published, and that golden cases tell again.

    Raises:
        UserError: There is none of a kind of graphs: a folder whose limits were taken out would pass all of them.
    """
    drifts = []
    for verdict in verdicts:
        here = found.get(verdict.kind, {}).get(verdict.subject, {}).get(verdict.metric)
        if here is not None:
            drifts.append(Drift(verdict, here))
    for kind in found:
        if not any(drift.verdict.kind == kind for drift in drifts):
            raise UserError(f"{folder}: its manifest has no limit for its {kind} graphs' golden cases; do not use it")
    return drifts
