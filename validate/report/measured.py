"""What the reports say, as typed rows: the page's tables and figures know no JSON.

Every function here takes the content of one report and raises KeyError, TypeError, AttributeError or ValueError where
that is not what this version writes; pydantic's complaints about a value of another type are ValueErrors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from pydantic import TypeAdapter
from pydantic.dataclasses import dataclass

from omni.reports import checks_of, parts_of
from validate.gate import Verdict

__all__ = [
    "Build",
    "Case",
    "Check",
    "Curve",
    "Judged",
    "Point",
    "Series",
    "Session",
    "Tokens",
    "Variant",
    "accuracy",
    "builds",
    "contract",
    "curves",
    "judged",
    "sessions",
    "variants",
]

Content = Mapping[str, Any]
_BELOW = ("below_bfloat16_median_db", "below_bfloat16_p95_db")
_VERDICT = TypeAdapter(Verdict)


@dataclass(frozen=True)
class Check:
    """One promise of a graph's contract."""

    graph: str
    check: str
    detail: str
    ok: bool


@dataclass(frozen=True)
class Judged:
    """What the gate said: a verdict for every limit, and what else was wrong with the reports."""

    verdicts: tuple[Verdict, ...]
    wrong: tuple[str, ...]

    @property
    def green(self) -> int:
        return sum(verdict.ok for verdict in self.verdicts)

    @property
    def total(self) -> int:
        return len(self.verdicts) + len(self.wrong)


@dataclass(frozen=True)
class Case:
    """How one golden case came out against PyTorch; None where a metric was no number, or is not measured there."""

    case: str
    sqnr_db: float | None
    cosine: float | None
    max_abs: float | None
    top1: float | None
    top1_near_tie: float | None
    stft: float | None
    kl: float | None


@dataclass(frozen=True)
class Tokens:
    """How single tokens of all cases came out: the SQNR that half of them, and 95 % of them, reach, in dB.

    Attributes:
        below: by how much these two are below bfloat16's; None of what is not quantized.
        limits: of the gate on ``below``, where there are any.
    """

    median_db: float
    p95_db: float
    below: tuple[float, float] | None
    limits: tuple[float | None, float | None]


@dataclass(frozen=True)
class Series:
    """All golden cases of one check and kind; ``check`` is "" where a component has one check only.

    Attributes:
        kind: of graph, or ``bfloat16``: PyTorch in that.
        worst: over all cases, or over all rows of them; its ``case`` says which case was the worst by SQNR.
        limit: on the SQNR in dB, if the gate has one.
        tokens: None of a waveform.
    """

    check: str
    kind: str
    cases: tuple[Case, ...]
    worst: Case
    limit: float | None
    tokens: Tokens | None


@dataclass(frozen=True)
class Point:
    """Medians in ms by kind of graph, and what compares them where both kinds ran.

    Attributes:
        speedup: With the ends of its 95 % interval; so is ``share``.
        ceiling: The speed-up that this machine's own quantized kernels would give, were nothing else to change.
        share: Of that ceiling.
        attempts: How often the length was measured, beside other busy processes.
    """

    length: int
    rounds: int
    ms: dict[str, float]
    speedup: tuple[float, float, float] | None
    ceiling: float | None
    share: tuple[float, float, float] | None
    attempts: int


@dataclass(frozen=True)
class Curve:
    """Latency of one graph over length.

    Attributes:
        graph: file stem; "" of a component's only graph.
        axis: what ``length`` counts.
        fit: (ms each, ms) of a line through each kind's points.
        note: (ms each, ms) that the note this project starts from gives, if it does.
        busy: cores that other processes kept busy meanwhile.
        machine: fingerprint of where it ran.
    """

    graph: str
    axis: str
    points: tuple[Point, ...]
    fit: dict[str, tuple[float, float]]
    note: tuple[float, float] | None
    threads: int
    busy: float
    machine: dict[str, str | int]


@dataclass(frozen=True)
class Variant:
    """A way to solve the ODE: see ``validate.variants``."""

    graphs: str
    variant: str
    evaluations: int
    cost: float
    seconds_each: float
    mel_db: float
    waveform_db: float
    stft: float


@dataclass(frozen=True)
class Build:
    """Peak of a building stage in bytes, its libraries' share of it, and whether quantize gave the same bytes again."""

    stage: str
    libraries: int
    peak: int
    same: bool | None


@dataclass(frozen=True)
class Session:
    """Peak in bytes of a process that loads a graph and runs it at a length, and the bytes of the graph's data."""

    graph: str
    length: int
    data: int
    peak: int


def contract(content: Content) -> tuple[Check, ...]:
    return tuple(Check(row["graph"], row["check"], row["detail"], row["ok"]) for row in content["checks"])


def judged(content: Content) -> Judged:
    """Read ``gate.json``; whether a verdict is green is seen from its value and limit, not taken from the file."""
    names = [field.name for field in fields(Verdict)]
    rows = ({name: row[name] for name in names} for row in content["verdicts"])
    return Judged(tuple(_VERDICT.validate_python(row) for row in rows), tuple(content["wrong"]))


def accuracy(content: Content, verdicts: tuple[Verdict, ...]) -> tuple[Series, ...]:
    """Read ``parity.json``; the limits are those that the gate judged by."""
    limits = {(verdict.graph, verdict.key): verdict.limit for verdict in verdicts}
    return tuple(
        Series(
            check,
            kind,
            tuple(_case(case["case"], case) for case in sorted(found["cases"], key=_by_lengths)),
            _case(found["worst"].partition(",")[0], found),
            limits.get((kind, f"{check}_sqnr_db".lstrip("_"))),
            _tokens(found, [limits.get((kind, f"{check}_{key}".lstrip("_"))) for key in _BELOW]),
        )
        for check, graphs in checks_of(dict(content)).items()
        for kind, found in graphs.items()
    )


def curves(content: Content) -> tuple[Curve, ...]:
    """Read ``latency.json``, a curve for each graph."""
    return tuple(
        Curve(
            graph,
            found["axis"],
            tuple(_point(entry) for entry in found["lengths"]),
            {kind: (line["ms_each"], line["ms"]) for kind, line in found["fit"].items()},
            (note["ms_per_token"], note["ms"]) if (note := found["original_note"]) else None,
            found["threads"],
            found["cores_busy_with_other_processes"],
            dict(found["machine"]),
        )
        for graph, found in parts_of(dict(content)).items()
    )


def variants(content: Content) -> tuple[Variant, ...]:
    """Read what ``latency.json`` says of the ways to solve the ODE, if the component has any."""
    names = [field.name for field in fields(Variant)]
    return tuple(Variant(**{name: row[name] for name in names}) for row in content.get("variants", []))


def builds(content: Content) -> tuple[Build, ...]:
    return tuple(
        Build(stage, built["libraries_bytes"], built["peak_bytes"], built.get("rebuilt_the_same"))
        for stage, built in content["build"].items()
    )


def sessions(content: Content) -> tuple[Session, ...]:
    return tuple(
        Session(graph, content["lengths"][graph], entry["data_bytes"], entry["peak_bytes"])
        for graph, entry in content["session"].items()
    )


def _tokens(found: Content, limits: list[float | None]) -> Tokens | None:
    if "token_median_db" not in found:
        return None
    median, p95 = _BELOW
    below = (found[median], found[p95]) if median in found else None
    return Tokens(found["token_median_db"], found["token_p95_db"], below, (limits[0], limits[1]))


def _by_lengths(case: Content) -> tuple[int, list[int]]:
    """Single rows before batches, and the short before the long: a case's name ends in the lengths of its rows."""
    lengths = [int(number) for number in re.findall(r"\d+", case["case"])]
    return len(lengths), lengths


def _case(name: str, found: Content) -> Case:
    always = {key: found[key] for key in ("sqnr_db", "cosine", "max_abs", "top1", "top1_near_tie")}
    return Case(name, **always, stft=found.get("stft"), kl=found.get("kl"))


def _point(entry: Content) -> Point:
    ms = {key.removesuffix("_ms"): value for key, value in entry.items() if key.endswith("_ms")}
    speedup, share = _interval(entry, "speedup"), _interval(entry, "share")
    return Point(entry["length"], entry["rounds"], ms, speedup, entry.get("ceiling"), share, entry["attempts"])


def _interval(entry: Content, key: str) -> tuple[float, float, float] | None:
    return (entry[key], entry[f"{key}_low"], entry[f"{key}_high"]) if key in entry else None
