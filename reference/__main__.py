"""Record what PyTorch gives on the golden cases: ``python -m reference COMPONENT``.

It runs twice: in float32, which graphs are compared with, and in bfloat16, which the checkpoint is published in. How
far the second is from the first is the yardstick of quantized graphs, for any weights and any depth.
The only place where the model runs in PyTorch. Everything after it compares with these recordings.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from components import require_own
from omni.checkpoint import Checkpoint
from omni.command_line import run_app
from omni.component import Component, artifact_path
from omni.inputs import FOLDER, HELD_OUT, case_name, feed, read
from omni.params import ComponentParams, load
from omni.resources import progress
from qwen_omni_onnx.common import artifact, golden
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.runtimes import RUNTIMES
from reference.original import ATTENTION, Record
from reference.originals import original

__all__ = ["record", "require_sound_transformers"]

_FIRST_BROKEN, _FIRST_MENDED = (5, 0), (5, 15)
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def require_sound_transformers(version: str) -> None:
    """Refuse a transformers whose reference is itself wrong: 5.0 to 5.14 lay the DiT's rotary embedding out wrongly.

    Raises:
        UserError: ``version`` is one of those. Parity with them passes, and the audio is silently worse.
    """
    numbers = tuple(int(number) for number in version.split(".")[:2])
    if _FIRST_BROKEN <= numbers < _FIRST_MENDED:
        raise UserError(
            f"transformers {version} lays the DiT's rotary embedding out wrongly; install 5.15 or later "
            "(pip install -c constraints.txt transformers)"
        )


Cases = dict[str, dict[str, np.ndarray]]


def record(
    component: Component, params: ComponentParams, checkpoint: Checkpoint, recordings: list[np.ndarray]
) -> tuple[Cases, Cases]:
    """Run transformers' own computation on every golden case, in float32 and then in bfloat16.

    Args:
        component: Its description.
        params: names the cases.
        checkpoint: its weights.
        recordings: held-out ones, from which the cases are cut.

    Returns:
        ``{case: {port: array}}``: inputs and float32 outputs; and outputs in bfloat16, none of what has no weights.
    """
    import torch

    from omni.quiet import quiet

    transformers_own = original(component.name)
    contract = component.interface(checkpoint.config)
    with quiet():
        module = transformers_own.make(checkpoint.config)
    if isinstance(module, torch.nn.Module):
        weights = {
            name: torch.from_numpy(checkpoint.read(transformers_own.tensor_name(name)).astype(np.float32))
            for name, _ in module.named_parameters()
        }
        module.load_state_dict(weights, assign=True)
        module.eval()
    fed = {}
    for number, lengths in enumerate(params.cases):
        ports = feed(contract, recordings, lengths)
        if runtime := RUNTIMES.get(component.name):
            ports = runtime.complete(ports, checkpoint.folder, contract, number)
        fed[case_name(contract, lengths)] = dict(ports)

    def outputs(ports: Mapping[str, np.ndarray], record: Record | None) -> dict[str, np.ndarray]:
        with quiet():
            if record:
                return record(module, ports, params.export)
            assert transformers_own.run is not None, "an original has one of the two"
            arrays = transformers_own.run(module, ports)
        return {port.name: array for port, array in zip(contract.outputs, arrays, strict=True)}

    recorded: Cases = {}
    yardstick: Cases = {}
    with progress("reference", 2 * len(fed)) as advance:
        for case, ports in fed.items():
            recorded[case] = {**ports, **outputs(ports, transformers_own.record)}
            advance(1)
        if isinstance(module, torch.nn.Module):
            transformers_own.lower(module)
            for case, ports in fed.items():
                given = outputs(ports, transformers_own.record_yardstick or transformers_own.record)
                yardstick[case] = {name: array for name, array in given.items() if array.dtype == np.float32}
                advance(1)
    return recorded, yardstick


@app.command()
def reference(
    name: Annotated[str, typer.Argument(metavar="COMPONENT", help="which component")],
) -> None:
    """Write models/reference/COMPONENT from models/source/COMPONENT and models/inputs/COMPONENT."""
    description, params = require_own(name), load().component(name)
    source, inputs = Path("models/source") / name, FOLDER / name
    artifact.check(source)

    import torch
    import transformers

    require_sound_transformers(transformers.__version__)
    artifact.check(inputs)
    made_from = {"source": artifact.fingerprint(source), "inputs": artifact.fingerprint(inputs)}
    where = artifact_path("reference", name)
    # What is in the way is known before anything is recorded, which may take hours.
    with artifact.writing(where, kind="reference", component=name, made_from=made_from) as out:
        recordings = list(read(name, HELD_OUT).values())
        recorded, yardstick = record(description, params, Checkpoint(source), recordings)
        how = {"yardstick": f"PyTorch {torch.__version__} in bfloat16, attention {ATTENTION}"} if yardstick else {}
        golden.save(out / golden.FILE, recorded, yardstick, how)


if __name__ == "__main__":
    run_app(app)
