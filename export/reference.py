"""Record what PyTorch gives on the golden cases: ``python -m export.reference COMPONENT``.

The only place where the model runs in PyTorch. Everything after it compares with these recordings.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from omni import artifact, golden
from omni.checkpoint import Checkpoint
from omni.component import Component, component
from omni.errors import Problem, run_command
from omni.params import ComponentParams, load

__all__ = ["record", "require_sound_transformers"]

_FIRST_BROKEN, _FIRST_MENDED = (5, 0), (5, 15)
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def require_sound_transformers(version: str) -> None:
    """Refuse a transformers whose reference is itself wrong: 5.0 to 5.14 lay the DiT's rotary embedding out wrongly.

    Raises:
        Problem: ``version`` is one of those. Parity with them passes, and the audio is silently worse.
    """
    parts = tuple(int(part) for part in version.split(".")[:2])
    if _FIRST_BROKEN <= parts < _FIRST_MENDED:
        raise Problem(
            f"transformers {version} lays the DiT's rotary embedding out wrongly; install 5.15 or later "
            "(pip install -c constraints.txt transformers)"
        )


def record(part: Component, params: ComponentParams, checkpoint: Checkpoint) -> dict[str, dict[str, np.ndarray]]:
    """Run the component's module in float32 on every golden case; return ``{case: {port: array}}``."""
    import torch

    from export.quiet import quiet

    exporter = importlib.import_module(part.exporter)
    (contract,) = part.contracts(checkpoint.config).values()
    with quiet():
        module = exporter.build(checkpoint.config).eval()
    weights = {
        name: torch.from_numpy(checkpoint.read(exporter.tensor_name(name)).astype(np.float32))
        for name, _ in module.named_parameters()
    }
    module.load_state_dict(weights, assign=True)
    recorded = {}
    for case, given in exporter.cases(checkpoint.config, params):
        with torch.inference_mode():
            result = module(**{port: torch.from_numpy(array) for port, array in given.items()})
        results = result if isinstance(result, tuple) else (result,)
        outputs = {port.name: array.numpy() for port, array in zip(contract.outputs, results, strict=True)}
        recorded[case] = {**given, **outputs}
    return recorded


@app.command()
def reference(
    name: Annotated[str, typer.Argument(metavar="COMPONENT", help="which component")],
) -> None:
    """Write models/reference/COMPONENT from models/source/COMPONENT."""
    part, params = component(name), load().component(name)
    source = Path("models/source") / name
    artifact.check(source)

    import transformers

    require_sound_transformers(transformers.__version__)
    recorded = record(part, params, Checkpoint(source))
    made_from = {"source": artifact.fingerprint(source)}
    with artifact.writing(
        Path("models/reference") / name, kind="reference", component=name, made_from=made_from
    ) as out:
        golden.save(out / golden.FILE, recorded)


if __name__ == "__main__":
    run_command(app)
