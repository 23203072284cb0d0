"""Check that the gate tells good recipes from careless ones: ``python -m benchmarks.recipes [COMPONENT...]``.

After a build, every quantized graph is quantized anew: as built but for a part of the recipe, by each scheme
throughout, and by the tools that people reach for first (``quantize_dynamic``; for a graph of 4 bits, ONNX Runtime's
own blocks of 4 bits throughout). Each result is judged by the accuracy limits of ``params.yaml``, timed in turns with
the graph as built, and shown beside PyTorch in bfloat16. The command fails where ours, as built, is refused, or
``quantize_dynamic`` is not: a gate that takes what is careless is no gate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, get_args

import numpy as np
import typer

from benchmarks.measure import Variant, take_turns
from benchmarks.report import JsonFile, Overwrite, json_file, number, print_table
from benchmarks.variants import calibration_of, disk_bytes, write_blocks, write_dynamic, write_ours
from omni.params import GraphParams, MeasuredParams, QuantizeParams, Scheme, load
from omni.quiet import quiet
from omni.resources import machine, progress
from quantize.apply import Calibration
from qwen_omni_onnx.common import artifact, output
from qwen_omni_onnx.common.agreement import (
    BFLOAT16,
    FLOAT,
    QUANTIZED,
    CheckAgreement,
    beside,
    of_bfloat16,
    of_component,
)
from qwen_omni_onnx.common.command_line import run_app
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.common.session import open_session
from qwen_omni_onnx.runtimes import RUNTIMES
from validate.gate import parity_verdicts
from validate.latency import speedup_interval
from validate.measured import MeasuredComponent, built_components

__all__ = ["main", "recipes"]

OURS = "as built"
UNCOMPENSATED = "as built, uncompensated"
UNCHANGED = "as built, activations as they are"  # nor compensated
_ROUNDS, _PATIENCE, _FEWEST = 40, 4.0, 5  # of the turns that a recipe's graph takes with the built one
_USUAL_BLOCK = 128  # ONNX Runtime's and most other tools' default
_SHOWN = ("token_median_db", "token_p95_db", "sqnr_db", "kl", "top1", "top1_near_tie", "stft")
Agreements = Mapping[str, CheckAgreement]  # by check
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
    for measured, params in built_components(names or []):
        if measured.component.composed_of or QUANTIZED not in measured.kinds:
            continue
        rows = list(recipes(measured, params, load().sessions.threads))
        found[measured.name] = rows
        _print(measured.name, rows)
        for row in rows:
            if row["recipe"] == OURS and not row["passes"]:
                wrong.append(f"{measured.name}: ours is refused: {row['missed'][0]}")
            if row["careless"] and row["passes"]:
                graph = f"{measured.name}: {row['graph']}"
                wrong.append(f"{graph}: the gate takes {row['recipe']}: its limits are too wide")
    if json:
        artifact.write_json(json, {"machine": machine(), "components": found})
    if wrong:
        raise UserError("; ".join(wrong))


def recipes(measured: MeasuredComponent, params: MeasuredParams, threads: int) -> Iterator[dict[str, Any]]:
    """Yield a row of float32, of bfloat16, of ours as built, and of every other recipe of each quantized graph.

    Args:
        measured: Component as built under ``models/``.
        params: Its parameters.
        threads: Intra-op threads; 0 lets ONNX Runtime choose.
    """
    yardsticks = of_bfloat16(RUNTIMES.get(measured.name), measured.ports[1], measured.golden)
    judge = partial(_judged, measured, params, threads, yardsticks)
    yield {**judge({}), "recipe": FLOAT, "graph": "", "careless": False}
    yield {
        "recipe": f"PyTorch {BFLOAT16}", "graph": "", "careless": False, "passes": None, "missed": [], "mb": None,
        "checks": _shown(yardsticks),
    }  # fmt: skip
    built = {stem: graph.files[QUANTIZED] for stem, graph in measured.graphs.items() if QUANTIZED in graph.files}
    yield {**judge(built), "recipe": OURS, "graph": "", "careless": False}
    for stem in built:
        others, works_at = _others(measured, stem, params.graph(stem)), params.graph(stem).latency.works_at
        with progress(f"{measured.name} {stem}", len(others)) as advance:
            for name, (careless, write) in others.items():
                with output.temporary_folder() as folder:
                    with quiet():
                        graph = write(folder)
                    row = {**judge({**built, stem: graph}), "recipe": name, "graph": stem, "careless": careless}
                    yield {**row, "time": _time(measured, stem, works_at, built[stem], graph, threads)}
                advance(1)


def _others(
    measured: MeasuredComponent, stem: str, params: GraphParams
) -> dict[str, tuple[bool, Callable[[Path], Path]]]:
    """Return by name whether a recipe is careless, and a function that writes its graph into a folder."""
    graph, block = measured.graphs[stem].files[FLOAT], params.quantize
    assert block is not None, "only graphs that are quantized are compared"
    found: dict[str, tuple[bool, Callable[[Path], Path]]] = {}
    if not any(node["operator"] == "QLinearConv" for node in measured.graphs[stem].quantization.values()):
        rounded = block.model_copy(update={"compensation": {}})
        if block.compensation:
            found[UNCOMPENSATED] = False, partial(_ours, measured, stem, rounded)
        if params.calibrate is not None:
            found[UNCHANGED] = False, partial(_ours, measured, stem, rounded, changed=False)
        for scheme in _schemes(params):
            everywhere = rounded.model_copy(update={"scheme": scheme, "nodes": {}})
            found[scheme] = False, partial(_ours, measured, stem, everywhere)
        found["quantize_dynamic"] = True, partial(write_dynamic, graph)
    if block.scheme == "int4-block":
        name = f"4 bits throughout, blocks of {_USUAL_BLOCK}"
        found[name] = False, partial(write_blocks, graph, bits=4, block=_USUAL_BLOCK)  # random weights take it well
    return found


def _schemes(params: GraphParams) -> list[Scheme]:
    """Return the schemes that the whole graph can have with the calibration that there is."""
    left_out = {"int4-import", "float32"}
    if params.calibrate is None:
        left_out |= {"int8-token", "int8-tensor", "int8-static"}
    elif params.calibrate.headroom is None:
        left_out |= {"int8-static"}
    return [scheme for scheme in get_args(Scheme) if scheme not in left_out]


def _ours(
    measured: MeasuredComponent, stem: str, params: QuantizeParams, folder: Path, *, changed: bool = True
) -> Path:
    """Quantize a graph by other parameters; ``changed`` tells whether activations are changed as calibration says."""
    calibration = calibration_of(measured, stem)
    if not changed:
        calibration = {name: _unchanged(found) for name, found in calibration.items()}
    return write_ours(measured, stem, params, folder, calibration)


def _unchanged(found: Calibration) -> Calibration:
    """Return a calibration that changes nothing. Its static range stays: no recipe without changes is static."""
    return replace(found, factors=np.ones_like(found.factors), shift=None, run=0)


def _time(measured: MeasuredComponent, stem: str, length: int, built: Path, graph: Path, threads: int) -> float:
    """Return the time of a graph at a length, as a multiple of the built graph's, with which it takes turns."""
    fed = measured.graphs[stem].contract.example(1, length)
    first, second = (
        Variant.of_run(path.stem, partial(open_session(path, threads=threads, stop_spinning=True).run, None, fed))
        for path in (built, graph)
    )
    median, _, _ = speedup_interval(*take_turns(first, second, _ROUNDS, _PATIENCE, _FEWEST))
    return 1 / median


def _judged(
    measured: MeasuredComponent,
    params: MeasuredParams,
    threads: int,
    yardsticks: Agreements,
    quantized: Mapping[str, Path],
) -> dict[str, Any]:
    """Return accuracy and verdict of a component with these graphs in place of its float32 ones."""
    graphs = {stem: quantized.get(stem, graph.files[FLOAT]) for stem, graph in measured.graphs.items()}
    runtime = RUNTIMES.get(measured.name)
    found = of_component(runtime, graphs, measured.companions, measured.ports, measured.golden, threads)
    with_yardsticks = {check: beside(agreement, yardsticks.get(check)) for check, agreement in found.items()}
    checks = {check: {FLOAT: agreement, QUANTIZED: agreement} for check, agreement in with_yardsticks.items()}
    verdicts = [verdict for verdict in parity_verdicts(checks, params.gates) if verdict.kind == QUANTIZED]
    missed = [str(verdict) for verdict in verdicts if not verdict.ok]
    return {
        "passes": not missed if quantized else None,
        "missed": missed,
        "mb": sum(map(disk_bytes, graphs.values())) / 1e6,
        "checks": _shown(with_yardsticks),
    }


def _shown(found: Agreements) -> dict[str, dict[str, float]]:
    return {
        check: {
            key: value
            for key, value in asdict(agreement).items()
            if (key in _SHOWN or "bfloat16" in key) and value is not None
        }
        for check, agreement in found.items()
    }


def _print(name: str, rows: list[dict[str, Any]]) -> None:
    """Print a Markdown table: a line for each recipe and check."""
    head = [
        "recipe",
        "MB",
        "time",
        "check",
        "median token dB",
        "95 % of tokens dB",
        "below bfloat16",
        "KL",
        "top-1",
        "gate",
    ]
    table = [head]
    for row in rows:
        mark = {True: "green", False: "red", None: ""}[row["passes"]]
        title = f"{row['graph']} {row['recipe']}".lstrip() + " (careless)" * row["careless"]
        time = number(row.get("time", 1.0 if row["recipe"] == OURS else None), 2)
        for check, found in row["checks"].items():
            below = [number(found.get(f"below_bfloat16_{which}_db"), 1) for which in ("median", "p95")]
            kl = f"{found['kl']:.2g}" if "kl" in found else ""
            top1 = number(found["top1"], 3) if "kl" in found else ""
            tokens = [number(found.get(key), 1) for key in ("token_median_db", "token_p95_db")]
            accuracy = [*tokens, " / ".join(filter(None, below)), kl, top1]
            table.append([title, number(row["mb"], 1), time, check, *accuracy, mark])
            title, time, mark = "", "", ""
    print(f"\n{name}")
    print_table(table)


if __name__ == "__main__":
    run_app(app)
