"""Compose the graphs of several components into one: ``python -m compose COMPONENT``.

Nothing is traced or quantized, and PyTorch does not run: weights are copied unchanged, and the composed graph is
compared with the separate graphs, each of which has a gate that compares it with PyTorch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Protocol

import numpy as np
import typer

from components import component
from compose import audio_core
from compose.golden import Ports, made_from
from omni import build_memory
from omni.component import COMPOSED_OF, Component, artifact_path
from omni.inputs import FOLDER, HELD_OUT, case_name, feed, read
from omni.params import ComposedParams, load
from omni.resources import peak_bytes
from qwen_omni_onnx.common import artifact, golden
from qwen_omni_onnx.common.command_line import run_app
from qwen_omni_onnx.common.configuration import read_config
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.runtimes import RUNTIMES

__all__ = ["COMPOSERS", "Composer", "compose", "record"]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class Composer(Protocol):
    """Composes a component from the graphs of others."""

    def compose_float32(self, params: ComposedParams, out: Path) -> None:
        """Write the composed float32 graph."""

    def compose_quantized(self, float32: Path, out: Path) -> None:
        """Write the composed quantized graph; ``float32`` is the artifact of the composed float32 graph."""

    def separate_outputs(self, cases: Sequence[Ports]) -> list[dict[str, np.ndarray]]:
        """Return, for each golden case's inputs, the outputs of the separate graphs, float32 and quantized."""


COMPOSERS: dict[str, Composer] = {"audio_core": audio_core}


@app.command()
def compose(
    name: Annotated[str, typer.Argument(metavar="COMPONENT", help="Component that is composed.")],
    out: Annotated[
        Path | None,
        typer.Option(help="New folder for the two graphs alone: OUT/onnx/COMPONENT and OUT/quantized/COMPONENT."),
    ] = None,
) -> None:
    """Write models/composed/{onnx,quantized,reference}/COMPONENT from models/onnx and models/quantized.

    The peak memory of composing the two graphs is recorded in reports/COMPONENT.
    """
    description = component(name)
    if name not in COMPOSED_OF:
        raise UserError(
            f"{name} has weights of its own: run python -m export {name}; composed: {', '.join(COMPOSED_OF)}"
        )
    if out is not None and (out.exists() or out.is_symlink()):
        raise UserError(f"{out}: in the way; give a folder that is not there yet")
    params, composer, libraries = load().whole(name), COMPOSERS[name], peak_bytes()
    float32, quantized = (out / kind / name if out else artifact_path(kind, name) for kind in ("onnx", "quantized"))
    for kind, folder in (("onnx", float32), ("quantized", quantized)):
        artifact.require_replaceable(folder, kind, name)
    composer.compose_float32(params, float32)
    if out is None:
        build_memory.record(name, "export", float32, libraries)
    composer.compose_quantized(float32, quantized)
    if out is None:
        build_memory.record(
            name, "quantize", quantized, libraries
        )  # the peak of both graphs, that is, of the larger one
        record(description, params)


def record(description: Component, params: ComposedParams) -> None:
    """Write models/composed/reference/COMPONENT, from the held-out recordings of the first component in it.

    Raises:
        UserError: The component is composed of other graphs than the current ones, or an artifact is damaged.
    """
    name, first = description.name, description.composed_of[0]
    float32, recorded = artifact_path("onnx", name), FOLDER / first
    for folder in (float32, artifact_path("quantized", name), recorded):
        artifact.check(folder)
    contract = description.interface(read_config(float32))
    recordings = list(read(first, HELD_OUT).values())
    facts: dict[str, Any] = {**made_from(name), "inputs": artifact.fingerprint(recorded)}
    where = artifact_path("reference", name)
    with artifact.writing(where, kind="reference", component=name, made_from=facts) as folder:
        inputs = [
            RUNTIMES[name].complete(feed(contract, recordings, lengths), float32, contract, number)
            for number, lengths in enumerate(params.cases)
        ]
        outputs = COMPOSERS[name].separate_outputs(inputs)
        cases = [case_name(contract, lengths) for lengths in params.cases]
        golden.save(folder / golden.FILE, {case: {**inputs[i], **outputs[i]} for i, case in enumerate(cases)})


if __name__ == "__main__":
    run_app(app)
