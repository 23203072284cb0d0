"""Record what PyTorch gives on the golden cases: ``python -m export.reference COMPONENT``.

It runs twice: in float32, which graphs are compared with, and in bfloat16, which the checkpoint is published in. How
far the second is from the first is the yardstick of quantized graphs, for any weights and any depth.
The only place where the model runs in PyTorch. Everything after it compares with these recordings. A component that is
composed of others is compared with their graphs, which are compared with PyTorch.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from export.exporter import ATTENTION, Exporter
from omni.checkpoint import Checkpoint
from omni.command_line import run_app
from omni.component import Component, artifact_path, component
from omni.inputs import FOLDER, HELD_OUT, feed, read
from omni.params import ComponentParams, ComposedParams, load
from omni.resources import progress
from qwen_omni_onnx.common import artifact, golden
from qwen_omni_onnx.common.configuration import read_config
from qwen_omni_onnx.common.contract import GraphContract
from qwen_omni_onnx.common.errors import UserError

__all__ = ["record", "require_sound_transformers"]

_FIRST_BROKEN, _FIRST_MENDED = (5, 0), (5, 15)
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def require_sound_transformers(version: str) -> None:
    """Refuse a transformers whose reference is itself wrong: 5.0 to 5.14 lay the DiT's rotary embedding out wrongly.

    Raises:
        UserError: ``version`` is one of those. Parity with them passes, and the audio is silently worse.
    """
    parts = tuple(int(part) for part in version.split(".")[:2])
    if _FIRST_BROKEN <= parts < _FIRST_MENDED:
        raise UserError(
            f"transformers {version} lays the DiT's rotary embedding out wrongly; install 5.15 or later "
            "(pip install -c constraints.txt transformers)"
        )


Cases = dict[str, dict[str, np.ndarray]]
Recorder = Callable[[Any, Mapping[str, np.ndarray], Any], dict[str, np.ndarray]]


def record(
    part: Component, params: ComponentParams, checkpoint: Checkpoint, recordings: list[np.ndarray]
) -> tuple[Cases, Cases]:
    """Run transformers' own computation on every golden case, in float32 and then in bfloat16.

    Args:
        part: the component.
        params: names the cases.
        checkpoint: its weights.
        recordings: held-out ones, from which the cases are cut.

    Returns:
        ``{case: {port: array}}``: inputs and float32 outputs; and outputs in bfloat16, none of what has no weights.
    """
    import torch

    from export.quiet import quiet

    exporter: Exporter = importlib.import_module(part.exporter).EXPORTER
    contract = part.interface(checkpoint.config)
    with quiet():
        original = exporter.original(checkpoint.config)
    if isinstance(original, torch.nn.Module):
        weights = {
            name: torch.from_numpy(checkpoint.read(exporter.tensor_name(name)).astype(np.float32))
            for name, _ in original.named_parameters()
        }
        original.load_state_dict(weights, assign=True)
        original.eval()
    fed = {}
    for number, lengths in enumerate(params.cases):
        ports = feed(contract, recordings, lengths)
        if part.runtime:
            ports = importlib.import_module(part.runtime).complete(ports, checkpoint.folder, contract, number)
        fed[_case(contract, lengths)] = dict(ports)

    def outputs(ports: Mapping[str, np.ndarray], record: Recorder | None) -> dict[str, np.ndarray]:
        with quiet():
            if record:
                return record(original, ports, params.export)
            arrays = exporter.run(original, ports)
        return {port.name: array for port, array in zip(contract.outputs, arrays, strict=True)}

    recorded: Cases = {}
    yardstick: Cases = {}
    with progress("reference", 2 * len(fed)) as advance:
        for case, ports in fed.items():
            recorded[case] = {**ports, **outputs(ports, exporter.record)}
            advance(1)
        if isinstance(original, torch.nn.Module):
            exporter.lower(original)
            for case, ports in fed.items():
                given = outputs(ports, exporter.record_yardstick or exporter.record)
                yardstick[case] = {name: array for name, array in given.items() if array.dtype == np.float32}
                advance(1)
    return recorded, yardstick


@app.command()
def reference(
    name: Annotated[str, typer.Argument(metavar="COMPONENT", help="which component")],
) -> None:
    """Write models/reference/COMPONENT from models/source/COMPONENT.

    Of a component that is composed of others, the golden cases are what their own graphs give, one after another.
    """
    part = component(name)
    if part.composed_of:
        _reference_of_whole(part, load().whole(name))
        return
    params = load().component(name)
    source = Path("models/source") / name
    artifact.check(source)

    import transformers

    require_sound_transformers(transformers.__version__)
    inputs = FOLDER / name
    artifact.check(inputs)
    made_from = {"source": artifact.fingerprint(source), "inputs": artifact.fingerprint(inputs)}
    _write(part, made_from, lambda: record(part, params, Checkpoint(source), list(read(name, HELD_OUT).values())))


def _reference_of_whole(part: Component, params: ComposedParams) -> None:
    """Write models/composed/reference/COMPONENT; its sound is what the first of its parts is judged by."""
    first = part.composed_of[0]
    folders = {kind: artifact_path(kind, part.name) for kind in ("onnx", "int8")}
    for folder in (*folders.values(), FOLDER / first):
        artifact.check(folder)
    onnx = folders["onnx"]
    contract = part.interface(read_config(onnx))
    recordings = list(read(first, HELD_OUT).values())
    complete = importlib.import_module(str(part.runtime)).complete
    fed = [
        complete(feed(contract, recordings, lengths), onnx, contract, number)
        for number, lengths in enumerate(params.cases)
    ]

    def record_parts() -> tuple[Cases, Cases]:
        given = importlib.import_module(part.exporter).record(fed)
        cases = [_case(contract, lengths) for lengths in params.cases]
        return {case: {**fed[index], **given[index]} for index, case in enumerate(cases)}, {}

    made_from = {
        "source": artifact.read_manifest(onnx)["made_from"]["source"],
        "int8": artifact.read_manifest(folders["int8"])["made_from"]["parts"],
        "inputs": artifact.fingerprint(FOLDER / first),
    }
    _write(part, made_from, record_parts)


def _case(contract: GraphContract, lengths: list[int]) -> str:
    return f"{contract.length}{'+'.join(map(str, lengths))}"


def _write(part: Component, made_from: dict[str, Any], recording: Callable[[], tuple[Cases, Cases]]) -> None:
    """Record the golden cases where nothing is in the way of them, which is known first: it may take hours."""
    where = artifact_path("reference", part.name)
    with artifact.writing(where, kind="reference", component=part.name, made_from=made_from) as out:
        recorded, yardstick = recording()
        how = {}
        if yardstick:
            import torch

            how = {"yardstick": f"PyTorch {torch.__version__} in bfloat16, attention {ATTENTION}"}
        golden.save(out / golden.FILE, recorded, yardstick, how)


if __name__ == "__main__":
    run_app(app)
