"""Record PyTorch's outputs on the golden cases: ``python -m reference COMPONENT``.

The model runs twice: in float32, with which graphs are compared, and in bfloat16, in which the checkpoint is published.
The error of bfloat16 is the yardstick of quantized graphs, for any weights and any depth. No later stage runs the model
in PyTorch: all compare with these recordings.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from components import require_own
from omni.checkpoint import Checkpoint
from omni.component import Component, artifact_path
from omni.inputs import FOLDER, HELD_OUT, case_name, feed, read
from omni.params import ComponentParams, load
from omni.resources import progress
from qwen_omni_onnx.common import artifact, golden
from qwen_omni_onnx.common.command_line import run_app
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.runtimes import RUNTIMES
from reference.original import ATTENTION, Record
from reference.originals import original

__all__ = ["record", "require_sound_transformers"]

_FIRST_BROKEN, _FIRST_FIXED = (5, 0), (5, 15)
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def require_sound_transformers(version: str) -> None:
    """Refuse transformers 5.0 to 5.14, which lay the DiT's rotary embedding out wrongly, as a reference.

    Raises:
        UserError: ``version`` is one of those: parity with it would pass, and the audio would be worse.
    """
    numbers = tuple(int(number) for number in version.split(".")[:2])
    if _FIRST_BROKEN <= numbers < _FIRST_FIXED:
        raise UserError(
            f"transformers {version} lays the DiT's rotary embedding out wrongly; install 5.15 or later "
            "(pip install -c constraints.txt transformers)"
        )


Cases = dict[str, dict[str, np.ndarray]]


def record(
    component: Component, params: ComponentParams, checkpoint: Checkpoint, recordings: list[np.ndarray]
) -> tuple[Cases, Cases]:
    """Run transformers' implementation on every golden case, in float32 and then in bfloat16.

    Args:
        component: Description of the component.
        params: Parameters of the component, with the lengths of the cases.
        checkpoint: Checkpoint with the component's weights.
        recordings: Held-out recordings, from which the cases are cut.

    Returns:
        The cases as ``{case: {port: array}}``, with inputs and float32 outputs; and the float32 outputs computed in
        bfloat16, empty if the component has no weights.
    """
    import torch

    from omni.quiet import quiet

    implementation = original(component.name)
    contract = component.interface(checkpoint.config)
    with quiet():
        module = implementation.make(checkpoint.config)
    if isinstance(module, torch.nn.Module):
        from reference.weights import load_weights, stream_weights

        without_memory = any(parameter.is_meta for parameter in module.parameters())
        give = stream_weights if without_memory else load_weights
        give(module, lambda name: checkpoint.read(implementation.tensor_name(name)))
        module.eval()
    inputs_by_case = {}
    for number, lengths in enumerate(params.cases):
        ports = feed(contract, recordings, lengths)
        if runtime := RUNTIMES.get(component.name):
            ports = runtime.complete(ports, checkpoint.folder, contract, number)
        inputs_by_case[case_name(contract, lengths)] = dict(ports)

    def outputs(ports: Mapping[str, np.ndarray], record: Record | None) -> dict[str, np.ndarray]:
        with quiet():
            if record:
                return record(module, ports, params.export)
            assert implementation.run is not None, "an original has one of the two"
            arrays = implementation.run(module, ports)
        return {port.name: array for port, array in zip(contract.outputs, arrays, strict=True)}

    recorded: Cases = {}
    yardstick: Cases = {}
    largest = max(inputs_by_case, key=lambda case: inputs_by_case[case][contract.inputs[0].name].size)
    with progress("reference", 2 * len(inputs_by_case)) as advance:
        for case, ports in inputs_by_case.items():
            recorded[case] = {**ports, **outputs(ports, implementation.record)}
            if implementation.record_largest and case == largest:
                recorded[case] |= outputs(ports, implementation.record_largest)
            advance(1)
        if isinstance(module, torch.nn.Module):
            implementation.lower(module)
            for case, ports in inputs_by_case.items():
                arrays = outputs(ports, implementation.record_yardstick or implementation.record)
                yardstick[case] = {name: array for name, array in arrays.items() if array.dtype == np.float32}
                advance(1)
    return recorded, yardstick


@app.command()
def reference(
    name: Annotated[str, typer.Argument(metavar="COMPONENT", help="Component that is recorded.")],
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
    # The folder is opened first: recording may take hours, and whether it can be replaced is known before.
    with artifact.writing(where, kind="reference", component=name, made_from=made_from) as out:
        recordings = list(read(name, HELD_OUT).values())
        recorded, yardstick = record(description, params, Checkpoint(source), recordings)
        metadata = {"yardstick": f"PyTorch {torch.__version__} in bfloat16, attention {ATTENTION}"} if yardstick else {}
        golden.save(out / golden.FILE, recorded, yardstick, metadata)


if __name__ == "__main__":
    run_app(app)
