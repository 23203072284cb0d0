"""Measure and judge: ``python -m validate contract|parity|latency|memory|gate|rebuild [COMPONENT...]``; ``report``."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from omni.command_line import run_app
from omni.params import ComponentParams, GateParams, load
from qwen_omni_onnx.common import artifact, output
from qwen_omni_onnx.common.agreement import NEAR_TIE
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.common.session import require_provider
from validate import contract, gate, latency, memory, parity, rebuild, tables, variants
from validate.patience import Patience
from validate.subject import REPORTS, Subject, from_published, subjects
from validate.summary import summary

PAGE = REPORTS / "report.html"
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
Components = Annotated[
    list[str] | None, typer.Argument(metavar="[COMPONENT...]", help="components; all that are built if none is given")
]
ComponentsOrFolders = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[COMPONENT|FOLDER...]", help="components, or published folders; all built if none is given"
    ),
]


@app.command("contract")
def run_contract(names: ComponentsOrFolders = None) -> None:
    """Interface, files, operators, and whether the graphs run at all."""
    broken: list[str] = []
    for subject in _any(names):
        checks = contract.check(subject)
        tables.contract(subject.name, checks)
        if "published" not in subject.folders:
            subject.write_report("contract", {"checks": checks})
        broken += [f"{row['graph']}: {row['check']}: {row['detail']}" for row in checks if not row["ok"]]
    _fail(broken)


@app.command("parity")
def run_parity(names: ComponentsOrFolders = None) -> None:
    """Both graphs against PyTorch's golden cases. A published folder is judged by the limits it was published with."""
    missed: list[str] = []
    for name in names or []:
        if _is_folder(name):
            missed += _published_parity(Path(name))
    for subject, params in _built_ones(names):
        checks = parity.measure(subject, load().sessions.threads)
        _show(subject.name, subject, checks, params.gates)
        content = {"checks": checks} if subject.parts else {"graphs": checks[""]}
        subject.write_report("parity", {**content, "near_tie": NEAR_TIE})
        rows = [
            [f"{check} {kind} {case['case']}".lstrip(), f"{case['sqnr_db']:.2f}"]
            for check, graphs in checks.items()
            for kind, graph in graphs.items()
            for case in graph["cases"]
        ]
        _write_csv(subject, "sqnr", ["graph and case", "SQNR dB"], rows)
    _fail(missed)


@app.command("latency")
def run_latency(
    names: Components = None,
    sweep: Annotated[bool, typer.Option("--sweep", help="try session options instead; record the best")] = False,
    provider: Annotated[str, typer.Option(help="execution provider")] = "CPUExecutionProvider",
) -> None:
    """Speed of the quantized graph beside the float32 one and this machine's ceiling; or a float32 component's time."""
    require_provider(provider)
    for subject, params in subjects(names or []):
        sessions = load().sessions
        threads, patience = sessions.threads, Patience(sessions.patience_seconds)
        found = {}
        for stem, part in subject.each.items():
            title = f"{subject.name}: {stem}" if len(subject.each) > 1 else subject.name
            block = params.of(stem).latency
            if sweep:
                found[stem] = latency.sweep(part, block)
                tables.sweep(title, found[stem])
            else:
                found[stem] = latency.measure(part, block, threads, provider, patience)
                tables.latency(title, found[stem])
        if sweep:
            subject.write_report("sessions", _joined(subject, found))
            continue
        content = _joined(subject, found)
        if isinstance(params, ComponentParams) and params.export:  # it declares variants
            content["variants"] = variants.measure(subject, threads)
            tables.variants(subject.name, content["variants"])
        subject.write_report("latency", content)
        _write_csv(subject, "latency", *_latency_rows(subject, found))


@app.command("memory")
def run_memory(names: Components = None) -> None:
    """Peaks of export, quantize and of a loaded session; and whether quantizing again gives the same bytes."""
    for subject, params in subjects(names or []):
        found = memory.measure(subject, params, load().sessions.threads)
        tables.memory(subject.name, found)
        subject.write_report("memory", found)


@app.command("rebuild")
def run_rebuild(names: Components = None) -> None:
    """Export and quantize again: are those the same bytes? What is there stays as it is."""
    other: list[str] = []
    for subject, _ in subjects(names or []):
        found = rebuild.different(subject)
        print(f"{subject.name}: {'other bytes' if found else 'the same bytes again'}")
        other += found
    _fail([f"{path}: a second build gives other bytes" for path in other])


@app.command("gate")
def run_gate(names: Components = None) -> None:
    """Judge the reports by the limits in params.yaml."""
    missed: list[str] = []
    for subject, params in subjects(names or []):
        verdicts, wrong = gate.judge(subject, params.gates)
        tables.gate(subject.name, verdicts, wrong)
        artifact.write_json(REPORTS / subject.name / "summary.json", summary(subject, verdicts))
        red = [*wrong, *(str(verdict) for verdict in verdicts if not verdict.ok)]
        content = {
            "passed": not red,
            "verdicts": [verdict.as_dict() for verdict in verdicts],
            "wrong": wrong,
            "limits": params.gates.model_dump(mode="json"),
        }
        subject.write_report("gate", content)
        missed += [f"{subject.name}: {line}" for line in red]
    _fail(missed)


@app.command("report")
def run_report(
    out: Annotated[Path, typer.Option(metavar="FILE", help="the file to write")] = PAGE,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="with --out: FILE may replace one that is there already")
    ] = False,
) -> None:
    """Write one HTML page, which needs no other file, with all that the reports say, and a golden case to listen to."""
    if out.resolve() != PAGE.resolve():  # that one is the stage's own
        read = [Path("params.yaml"), Path("models"), *REPORTS.glob("*/*")]
        output.require_writable(out, inputs=read, overwrite=overwrite)
    from validate.report import page  # what draws takes a second to import, which no measurement should wait for

    page.write(out)
    print(f"{out}  ({out.stat().st_size / 1e6:.1f} MB)")


def _published_parity(folder: Path) -> list[str]:
    subject, manifest = from_published(folder)
    limits = GateParams.model_validate(manifest["parameters"]["gates"], strict=False)
    checks = parity.measure(subject, threads=0)
    _show(str(folder), subject, checks, limits)
    verdicts = list(gate.parity_verdicts(checks, limits))
    tables.gate(str(folder), verdicts, [])
    return [f"{folder}: {verdict}" for verdict in verdicts if not verdict.ok]


def _show(title: str, subject: Subject, checks: dict[str, dict[str, Any]], gates: GateParams) -> None:
    for check, graphs in checks.items():
        name = f"{title}: {check}" if check else title
        tables.parity(name, subject.component.compared_with, graphs, gates.judges_classes)


def _joined(subject: Subject, found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return what was found of a component's only graph, or of each of its graphs."""
    return {"parts": found} if subject.parts else next(iter(found.values()))


def _latency_rows(subject: Subject, found: dict[str, dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Return head and rows of the table that ``dvc plots`` draws; of several graphs, a column says which."""
    columns = [f"{kind}_ms" for kind in subject.kinds]
    rows = [
        [
            *([stem] if subject.parts else []),
            str(entry["length"]),
            *(f"{entry.get(key, np.nan):.4f}" for key in columns),
        ]
        for stem, part in found.items()
        for entry in part["lengths"]
    ]
    return [*(["graph"] if subject.parts else []), "length", *columns], rows


def _is_folder(name: str) -> bool:
    return (Path(name) / artifact.MANIFEST).is_file() or os.sep in name


def _built_ones(names: list[str] | None) -> list[tuple[Subject, Any]]:
    built = [name for name in names or [] if not _is_folder(name)]
    return subjects(built) if built or not names else []


def _any(names: list[str] | None) -> list[Subject]:
    folders = [from_published(Path(name))[0] for name in names or [] if _is_folder(name)]
    return folders + [subject for subject, _ in _built_ones(names)]


def _write_csv(subject: Subject, name: str, columns: list[str], rows: list[list[str]]) -> None:
    """Write what ``dvc plots`` draws, beside its place and renamed."""
    path = REPORTS / subject.name / f"{name}.csv"
    with output.writing(path) as beside, beside.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([columns, *rows])


def _fail(lines: list[str]) -> None:
    if lines:
        more = f" (and {len(lines) - 1} more above)" if len(lines) > 1 else ""
        raise UserError(lines[0] + more)


if __name__ == "__main__":
    run_app(app)
