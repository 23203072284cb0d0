"""Compensate the rounding errors of a component's matrices: ``python -m quantize.compensate COMPONENT``.

Matrices are compensated in the graph's order, each on activations that come from what is already quantized. All
calibration clips run up to one activation, through quantized operators, before the matrices that read it get their
codes; then they run up to the next. One activation's Gram matrix, and the weights between two activations, are in
memory at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from components import require_own
from omni import nbits
from omni.block_fit import fit
from omni.imported import Importer
from omni.inputs import FOLDER, Feeds, calibration_inputs, tokens_of
from omni.params import QuantizeParams, load
from omni.patterns import first_match
from omni.resources import progress
from omni.segments import Segments
from quantize.apply import Calibration, Matrix, rewrite
from quantize.begun import begun
from quantize.codes import Codes
from quantize.gptq import Gram, compensate
from quantize.pack import LEVELS, column_scale
from quantize.schemes import BITS
from quantize.sources import bound_calibration, described, importer_of
from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.common.command_line import run_app
from qwen_omni_onnx.common.configuration import read_config
from qwen_omni_onnx.common.contract import GraphContract

__all__ = ["compensate_graph"]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def compensate_graph(
    graph_file: Path,
    contract: GraphContract,
    params: QuantizeParams,
    calibration: Mapping[str, Calibration],
    recordings: Mapping[str, np.ndarray] | Feeds,
    codes: Codes,
    importer: Importer | None = None,
) -> None:
    """Write the codes of all nodes that ``params.compensation`` names; nothing is written if it names none.

    Args:
        graph_file: The float32 graph.
        contract: Interface of the graph.
        params: Schemes, and nodes to compensate.
        calibration: Calibration by activation.
        recordings: Recordings of the first input, or of all inputs, by clip.
        codes: Where codes are written. A node that has codes there already keeps them.
        importer: Source of packed layers, needed for the scheme ``int4-import``.
    """
    quantized = rewrite(graph_file, params, calibration, importer, codes)
    readers: dict[str, list[str]] = {}
    for node, matrix in quantized.matrices.items():
        if matrix.damping is not None:
            readers.setdefault(matrix.activation, []).append(node)
    segments = Segments(quantized.model, readers, lambda names: [[name] for name in names])
    needed = {name for name, nodes in readers.items() if not all(map(codes.has, nodes))}
    grams: dict[str, Gram] = {}
    with progress(f"compensate {graph_file.stem}", segments.sessions * len(recordings)) as advance:

        def show(clip: str, found: Mapping[str, np.ndarray]) -> None:
            for name, array in found.items():
                if name not in needed:
                    continue
                if name not in grams:
                    grams[name] = Gram(array.shape[-1])
                grams[name].add(tokens_of(contract, recordings, clip, array))
            advance(1)

        def done(names: list[str]) -> None:
            for name in needed.intersection(names):
                gram = grams.pop(name)
                for node in readers[name]:
                    _write(codes, node, quantized.matrices[node], gram, params.block)

        segments.run(contract, recordings, show, done)


def _write(codes: Codes, node: str, matrix: Matrix, gram: Gram, block: int) -> None:
    """Compensate one matrix, and write its codes."""
    assert matrix.damping is not None
    whole, bits = matrix.weight.whole(), BITS.get(matrix.scheme)
    if bits is None:
        scale = column_scale(matrix.weight)[None]
        found = compensate(whole, gram, matrix.damping, scale, np.zeros_like(scale), len(whole), (-LEVELS, LEVELS))
        codes.write_columns(node, found.astype(np.int8))
        return
    blocked = nbits.in_blocks(whole, block, axis=0)
    if bits == 8:
        scales = nbits.block_scales(blocked, bits, axis=1)
        zero_points = np.full(scales.shape, 1 << (bits - 1), np.uint8)
    else:
        scales, zero_points = fit(blocked, bits, nbits.in_blocks(gram.diagonal()[None], block)[0])
    found = compensate(whole, gram, matrix.damping, scales, zero_points.astype(np.float32), block, (0, 2**bits - 1))
    blocked_codes = nbits.in_blocks(found.astype(np.uint8), block, axis=0)
    codes.write_blocks(node, nbits.block_rows(blocked_codes, scales, zero_points, bits))


@app.command()
def main(
    name: Annotated[str, typer.Argument(metavar="COMPONENT", help="Component whose matrices are compensated.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder to write; models/compensated/COMPONENT if not given.")
    ] = None,
) -> None:
    """Write models/compensated/COMPONENT from models/onnx, models/calibration and models/inputs/COMPONENT.

    Of a component without compensated nodes, that artifact holds nothing. A run that is killed leaves the codes that it
    wrote in ``.COMPONENT.part``; the next one goes on from there, and comes to the same bytes.
    """
    description, params = require_own(name), load().component(name)
    onnx, calibrated, inputs = Path("models/onnx") / name, Path("models/calibration") / name, FOLDER / name
    out = out or Path("models/compensated") / name
    artifact.require_replaceable(out, "compensated", name)
    for folder in (onnx, inputs):
        artifact.check(folder)
    contracts = description.contracts(read_config(onnx))
    params.require_graphs(name, contracts)
    facts = {
        "kind": "compensated",
        "component": name,
        "made_from": {folder.parent.name: artifact.fingerprint(folder) for folder in (onnx, calibrated, inputs)},
        "settings": {stem: described(first_match(params.quantize, stem)) for stem in contracts},
    }
    with begun(out, facts) as part, artifact.writing(out, **facts) as folder:
        for stem, contract in contracts.items():
            settings = first_match(params.quantize, stem)
            if settings is not None and settings.compensation:
                recordings = calibration_inputs(name, stem, several=len(contracts) > 1)
                calibration, importer = bound_calibration(name, stem), importer_of(description, settings)
                codes = Codes(part / stem)
                compensate_graph(onnx / f"{stem}.onnx", contract, settings, calibration, recordings, codes, importer)
                codes.link(folder / stem)


if __name__ == "__main__":
    run_app(app)
