"""Does the gate tell good recipes from careless ones? ``python -m benchmarks.recipes [COMPONENT...]``, after a build.

Every graph that is quantized is quantized again: by each scheme of this project, and by the tools that people reach for
first (``quantize_dynamic``; for a graph of 4 bits, ONNX Runtime's own blocks of 4 bits throughout). Each result is
judged by the accuracy limits of ``params.yaml``, and shown beside PyTorch in bfloat16. The command fails where ours, as
built, is refused, or ``quantize_dynamic`` is not: a gate that takes what is careless is no gate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from validate.subject import BFLOAT16, FLOAT, QUANTIZED, Subject, subjects

from benchmarks.options import JsonFile, Overwrite, json_file
from benchmarks.report import number, print_table
from benchmarks.variants import disk_bytes, write_blocks, write_dynamic
from omni.command_line import run_app
from omni.params import GraphParams, MeasuredParams, QuantizeParams, Scheme, load
from omni.quiet import quiet
from omni.resources import machine, progress
from omni.streamed import save_graph
from quantize.apply import quantize, read_calibration
from qwen_omni_onnx.common import artifact, output
from qwen_omni_onnx.common.agreement import beside, of_bfloat16, of_graph, of_runtime
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.common.runtime import GoldenRuntime
from qwen_omni_onnx.runtimes import RUNTIMES
from validate.gate import parity_verdicts

__all__ = ["main", "recipes"]

OURS = "as built"
_USUAL_BLOCK = 128  # ONNX Runtime's and most other tools' default
_SHOWN = ("token_median_db", "token_p95_db", "sqnr_db", "kl", "top1", "top1_near_tie", "stft")
Agreements = Mapping[str, Mapping[str, Any]]  # by check
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[COMPONENT...]", help="Components; all that are quantized if none.")
    ] = None,
    json: JsonFile = None,
    overwrite: Overwrite = False,
) -> None:
    """Print how noisy each recipe is beside bfloat16, and whether the gate takes it."""
    json = json_file(json, overwrite=overwrite)
    found, wrong = {}, []
    for subject, params in subjects(names or []):
        if subject.component.composed_of or QUANTIZED not in subject.kinds:
            continue
        rows = list(recipes(subject, params, load().sessions.threads))
        found[subject.name] = rows
        _print(subject.name, rows)
        for row in rows:
            if row["recipe"] == OURS and not row["passes"]:
                wrong.append(f"{subject.name}: ours is refused: {row['missed'][0]}")
            if row["careless"] and row["passes"]:
                wrong.append(f"{subject.name}: {row['graph']}: the gate takes {row['recipe']}: its limits are too wide")
    if json:
        artifact.write_json(json, {"machine": machine(), "components": found})
    if wrong:
        raise UserError("; ".join(wrong))


def recipes(subject: Subject, params: MeasuredParams, threads: int) -> Iterator[dict[str, Any]]:
    """Yield float32, bfloat16, ours as built, and, for each quantized graph, every other recipe with its verdict."""
    yardsticks = of_bfloat16(_runtime(subject), _ports(subject)[1], subject.golden)
    judge = partial(_judged, subject, params, threads, yardsticks)
    yield {**judge({}), "recipe": FLOAT, "graph": "", "careless": False}
    yield {
        "recipe": f"PyTorch {BFLOAT16}", "graph": "", "careless": False, "passes": None, "missed": [], "mb": None,
        "checks": _shown(yardsticks),
    }  # fmt: skip
    built = {stem: part.graphs[QUANTIZED] for stem, part in subject.each.items() if QUANTIZED in part.graphs}
    yield {**judge(built), "recipe": OURS, "graph": "", "careless": False}
    for stem in built:
        others = _others(subject, stem, params.of(stem))
        with progress(f"{subject.name} {stem}", len(others)) as advance:
            for name, (careless, write) in others.items():
                with output.temporary_folder() as folder:
                    with quiet():
                        graph = write(folder)
                    yield {**judge({**built, stem: graph}), "recipe": name, "graph": stem, "careless": careless}
                advance(1)


def _others(subject: Subject, stem: str, params: GraphParams) -> dict[str, tuple[bool, Callable[[Path], Path]]]:
    """Return, by name, whether a recipe is careless, and what writes its graph into a folder."""
    graph, how = subject.each[stem].graphs[FLOAT], params.quantize
    assert how is not None, "only graphs that are quantized are compared"
    found: dict[str, tuple[bool, Callable[[Path], Path]]] = {}
    if not any(node["operator"] == "QLinearConv" for node in subject.each[stem].quantization.values()):
        for scheme in get_args(Scheme):
            if scheme not in ("int4-import", "float32") and (params.calibrate or scheme.endswith("-block")):
                found[scheme] = False, partial(_by_scheme, subject, stem, how, scheme)
        found["quantize_dynamic"] = True, partial(write_dynamic, graph)
    if how.scheme == "int4-block":
        name = f"4 bits throughout, blocks of {_USUAL_BLOCK}"
        found[name] = False, partial(write_blocks, graph, bits=4, block=_USUAL_BLOCK)  # random weights take it well
    return found


def _by_scheme(subject: Subject, stem: str, how: QuantizeParams, scheme: Scheme, folder: Path) -> Path:
    """Quantize all of a graph by one scheme of this project."""
    calibration = read_calibration(Path("models/calibration") / subject.name, subject.folders["onnx"], stem)
    params = how.model_copy(update={"scheme": scheme, "nodes": {}})
    model, _ = quantize(subject.each[stem].graphs[FLOAT], params, calibration)
    save_graph(model, folder, scheme)
    return folder / f"{scheme}.onnx"


def _judged(
    subject: Subject, params: MeasuredParams, threads: int, yardsticks: Agreements, quantized: Mapping[str, Path]
) -> dict[str, Any]:
    """Return how a component with these graphs in place of its float32 ones agrees, and what its gate says of that."""
    graphs = {stem: quantized.get(stem, part.graphs[FLOAT]) for stem, part in subject.each.items()}
    runtime, (inputs, outputs) = _runtime(subject), _ports(subject)
    if runtime is None:
        found = {"": of_graph(next(iter(graphs.values())), inputs, outputs, subject.golden, threads)}
    else:
        found = of_runtime(runtime, graphs, subject.companions, subject.golden, threads)
    beside_them = {
        check: {**agreement, **beside(agreement, yardsticks.get(check))} for check, agreement in found.items()
    }
    checks = {check: {FLOAT: agreement, QUANTIZED: agreement} for check, agreement in beside_them.items()}
    verdicts = [verdict for verdict in parity_verdicts(checks, params.gates) if verdict.graph == QUANTIZED]
    missed = [str(verdict) for verdict in verdicts if not verdict.ok]
    return {
        "passes": not missed if quantized else None,
        "missed": missed,
        "mb": sum(map(disk_bytes, graphs.values())) / 1e6,
        "checks": _shown(beside_them),
    }


def _shown(found: Agreements) -> dict[str, dict[str, float]]:
    return {
        check: {key: value for key, value in agreement.items() if key in _SHOWN or "bfloat16" in key}
        for check, agreement in found.items()
    }


def _runtime(subject: Subject) -> GoldenRuntime | None:
    return RUNTIMES.get(subject.name)


def _ports(subject: Subject) -> tuple[list[str], list[str]]:
    contract = subject.contract
    return [port.name for port in contract.inputs], [port.name for port in contract.outputs]


def _print(name: str, rows: list[dict[str, Any]]) -> None:
    """Print a Markdown table: a line for each recipe and check."""
    table = [["recipe", "MB", "check", "median token dB", "95 % of tokens dB", "below bfloat16", "KL", "top-1", "gate"]]
    for row in rows:
        mark = {True: "green", False: "red", None: ""}[row["passes"]]
        title = f"{row['graph']} {row['recipe']}".lstrip() + " (careless)" * row["careless"]
        for check, found in row["checks"].items():
            below = [number(found.get(f"below_bfloat16_{which}_db"), 1) for which in ("median", "p95")]
            kl = f"{found['kl']:.2g}" if "kl" in found else ""
            top1 = number(found["top1"], 3) if "kl" in found else ""
            tokens = [number(found.get(key), 1) for key in ("token_median_db", "token_p95_db")]
            table.append([title, number(row["mb"], 1), check, *tokens, " / ".join(filter(None, below)), kl, top1, mark])
            title, mark = "", ""
    print(f"\n{name}")
    print_table(table)


if __name__ == "__main__":
    run_app(app)
