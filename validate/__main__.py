"""Measure and judge: ``python -m validate contract|parity|latency|memory|gate|rebuild|report|speech|text``."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Annotated

import typer

from omni.params import ComponentParams, MeasuredParams, SampledParams, load
from omni.reports import REPORTS, ContractCheck, ContractReport, GateReport, LatencyReport, ParityReport, SweepReport
from qwen_omni_onnx.common import artifact, output
from qwen_omni_onnx.common.agreement import FLOAT, NEAR_TIE
from qwen_omni_onnx.common.command_line import run_app
from qwen_omni_onnx.common.console import one_line
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.common.session import require_provider
from validate import contract, gate, latency, memory, overfitting, parity, rebuild, tables, variants
from validate.against import compare
from validate.confined import published_contract, published_parity
from validate.ear import command as ear
from validate.measured import MeasuredComponent, built_components
from validate.patience import Patience
from validate.summary import sqnr_rows, summary
from validate.text import command as text

PAGE = REPORTS / "report.html"
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
Components = Annotated[
    list[str] | None, typer.Argument(metavar="[COMPONENT...]", help="Components; all that are built if none is given.")
]
ComponentsOrFolders = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[COMPONENT|FOLDER...]",
        help="Components or published folders; all components that are built if none is given.",
    ),
]


@app.command("contract")
def run_contract(names: ComponentsOrFolders = None) -> None:
    """Check interfaces, files and operators of the graphs, and that they run."""
    broken: list[str] = []
    for folder in _folders(names):
        component, checks = published_contract(folder)
        tables.contract(component, checks)
        broken += _broken(checks)
    for measured, _ in _built(names):
        checks = contract.check(measured)
        tables.contract(measured.name, checks)
        ContractReport(component=measured.name, artifacts=measured.fingerprints(), checks=checks).write()
        broken += _broken(checks)
    _fail(broken)


@app.command("parity")
def run_parity(names: ComponentsOrFolders = None) -> None:
    """Compare the graphs with the golden cases; a published folder is judged by the limits in its manifest."""
    missed: list[str] = []
    for folder in _folders(names):
        missed += _published_parity(folder)
    for measured, params in _built(names):
        threads = load().sessions.threads
        checks = parity.measure(measured, threads)
        tables.parity(measured.name, measured.component.compared_with, checks, params.gates)
        fits = overfitting.measure(measured, params, threads)
        tables.overfitting(measured.name, fits)
        ParityReport(
            component=measured.name,
            artifacts=measured.fingerprints(),
            near_tie=NEAR_TIE,
            checks=checks,
            overfitting=fits,
        ).write()
    _fail(missed)


@app.command("latency")
def run_latency(
    names: Components = None,
    sweep: Annotated[bool, typer.Option("--sweep", help="Time session options instead, and record the best.")] = False,
    provider: Annotated[str, typer.Option(help="Execution provider.")] = "CPUExecutionProvider",
) -> None:
    """Time the graphs; compare the quantized one with the float32 one, and with this machine's ceiling."""
    require_provider(provider)
    for measured, params in built_components(names or []):
        if sweep:
            _sweep(measured, params)
        else:
            _latency(measured, params, provider)


def _sweep(measured: MeasuredComponent, params: MeasuredParams) -> None:
    swept = {}
    for stem, graph in measured.graphs.items():
        swept[stem] = latency.sweep(graph, params.graph(stem).latency)
        tables.sweep(f"{measured.name}: {stem}", swept[stem])
    SweepReport(component=measured.name, artifacts=measured.fingerprints(), graphs=swept).write()


def _latency(measured: MeasuredComponent, params: MeasuredParams, provider: str) -> None:
    sessions, notes = load().sessions, measured.component.original_latency
    threads, patience = sessions.threads, Patience(sessions.patience_seconds)
    timed, costs = {}, []
    for stem, graph in measured.graphs.items():
        block = params.graph(stem).latency
        timed[stem] = latency.measure(graph, block, threads, provider, patience, notes.get(stem))
        tables.latency(f"{measured.name}: {stem}", timed[stem])
    if isinstance(params, ComponentParams) and isinstance(params.export, SampledParams):  # only these declare variants
        costs = variants.measure(measured, threads)
        tables.variants(measured.name, costs)
    artifacts = measured.fingerprints()
    LatencyReport(component=measured.name, artifacts=artifacts, graphs=timed, variants=costs).write()
    rows = [
        [stem, str(entry.length), *("nan" if ms is None else f"{ms:.4f}" for ms in map(entry.ms, measured.kinds))]
        for stem, graph_latency in timed.items()
        for entry in graph_latency.lengths
    ]
    _write_csv(measured.name, "latency", ["graph", "length", *(f"{kind}_ms" for kind in measured.kinds)], rows)


@app.command("memory")
def run_memory(names: Components = None) -> None:
    """Measure peak memory of export, quantize and sessions, and whether quantizing twice gives the same bytes."""
    for measured, params in built_components(names or []):
        found = memory.measure(measured, params, load().sessions.threads)
        tables.memory(found)
        found.write()


@app.command("rebuild")
def run_rebuild(
    names: Components = None,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="RELEASE", help="Compare what was built here with a release: hf://..., oci://..., or a folder."
        ),
    ] = None,
) -> None:
    """Export and quantize a second time, and compare the bytes; the artifacts stay unchanged."""
    different: list[str] = []
    if against is not None:
        for found in compare(against, names or None):
            same = f"{found.files - len(found.different)} of {found.files} files are the bytes that were published"
            print(f"{found.component}: {same}")
            moved = f", on {one_line(found.there)}, here is {found.here}" if found.there != found.here else ""
            different += [
                f"{found.component}: {name} is another one than was published{moved}" for name in found.different
            ]
        _fail(different)
        return
    for measured, _ in built_components(names or []):
        files = rebuild.different(measured)
        print(f"{measured.name}: {'other bytes' if files else 'the same bytes again'}")
        different += files
    _fail([f"{path}: a second build gives other bytes" for path in different])


@app.command("gate")
def run_gate(names: Components = None) -> None:
    """Judge the reports by the limits in params.yaml."""
    missed: list[str] = []
    for measured, params in built_components(names or []):
        verdicts, wrong = gate.judge(measured, params.gates)
        warnings = gate.warnings(measured)
        tables.gate(measured.name, verdicts, wrong, warnings)
        artifact.write_json(REPORTS / measured.name / "summary.json", summary(measured, verdicts))
        _write_csv(measured.name, "sqnr", ["check and case", "SQNR dB"], sqnr_rows(measured.name))
        red = [*wrong, *(str(verdict) for verdict in verdicts if not verdict.ok)]
        GateReport(
            component=measured.name,
            artifacts=measured.fingerprints(),
            passed=not red,
            verdicts=verdicts,
            wrong=wrong,
            limits=params.gates.model_dump(mode="json"),
            warnings=warnings,
        ).write()
        missed += [f"{measured.name}: {line}" for line in red]
    _fail(missed)


@app.command("report")
def run_report(
    out: Annotated[Path, typer.Option(metavar="FILE", help="File that is written.")] = PAGE,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Let --out replace a file that already exists.")
    ] = False,
) -> None:
    """Write one self-contained HTML page with all reports, and a golden case to listen to."""
    if out.resolve() != PAGE.resolve():  # the stage may always replace its own output
        inputs = [Path("params.yaml"), Path("models"), *REPORTS.glob("*/*")]
        output.require_writable(out, inputs=inputs, overwrite=overwrite)
    from validate.report import page  # matplotlib takes a second to import, which the measurements do not need

    page.write(out)
    print(f"{out}  ({out.stat().st_size / 1e6:.1f} MB)")


app.command("speech")(ear.run)
app.command("text")(text.run)


def _published_parity(folder: Path) -> list[str]:
    found = published_parity(folder)
    tables.parity(str(folder), found.compared_with, found.checks, found.limits)
    verdicts = list(gate.parity_verdicts(found.checks, found.limits, floating=FLOAT in found.kinds))
    tables.gate(str(folder), verdicts, [])
    return [f"{folder}: {verdict}" for verdict in verdicts if not verdict.ok]


def _is_folder(name: str) -> bool:
    return (Path(name) / artifact.MANIFEST).is_file() or os.sep in name


def _built(names: list[str] | None) -> list[tuple[MeasuredComponent, MeasuredParams]]:
    built = [name for name in names or [] if not _is_folder(name)]
    return built_components(built) if built or not names else []


def _folders(names: list[str] | None) -> list[Path]:
    return [Path(name) for name in names or [] if _is_folder(name)]


def _broken(checks: list[ContractCheck]) -> list[str]:
    return [f"{row.graph}: {row.check}: {row.detail}" for row in checks if not row.ok]


def _write_csv(name: str, table: str, columns: list[str], rows: list[list[str]]) -> None:
    """Write a table for ``dvc plots``; the file is replaced atomically."""
    path = REPORTS / name / f"{table}.csv"
    with output.writing(path) as beside, beside.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([columns, *rows])


def _fail(lines: list[str]) -> None:
    if lines:
        more = f" (and {len(lines) - 1} more above)" if len(lines) > 1 else ""
        raise UserError(lines[0] + more)


if __name__ == "__main__":
    run_app(app)
