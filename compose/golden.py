"""Reference outputs of the composed graph: those of the separate graphs, run by the components' run-times.

PyTorch does not run: each of the float32 graphs has a gate that compares it with PyTorch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from components import encoder, frontend
from components.audio_core import COMPONENT, COMPONENTS
from compose.graph import PROJECTION, stems
from omni.component import artifact_path
from qwen_omni_onnx.audio_core.runtime import SETTINGS as COMPOSED_SETTINGS
from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.common.configuration import read_config
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.common.quantized import quantized_graph
from qwen_omni_onnx.common.session import open_session
from qwen_omni_onnx.direct import Direct
from qwen_omni_onnx.listen import Listener
from qwen_omni_onnx.sound.audio import INPUT_SAMPLE_RATE
from qwen_omni_onnx.token2wav.runtime import GRAPHS, SETTINGS, Token2Wav

__all__ = ["Ports", "fingerprints", "made_from", "require_current", "separate_outputs"]

Ports = Mapping[str, np.ndarray]


def fingerprints(kind: str) -> dict[str, str]:
    """Return the fingerprint of each component's artifact of a kind, which the composed artifact records."""
    return {name: artifact.fingerprint(artifact_path(kind, name)) for name in COMPONENTS}


def made_from(name: str) -> dict[str, dict[str, str]]:
    """Return the fingerprints of the graphs that both composed artifacts record, which golden cases record as well."""
    float32, quantized = (artifact.read_manifest(artifact_path(kind, name)) for kind in ("onnx", "quantized"))
    return {"source": float32["made_from"]["source"], "quantized": quantized["made_from"]["components"]}


def require_current(whole: Path, key: str, kind: str) -> None:
    """Check that a composed artifact contains the components' current graphs.

    Args:
        whole: The composed artifact.
        key: Key of the components' fingerprints in its manifest's ``made_from``.
        kind: Kind of the components' artifacts.

    Raises:
        UserError: A component was built anew since.
    """
    if artifact.read_manifest(whole)["made_from"][key] != fingerprints(kind):
        raise UserError(f"{whole}: composed of other graphs than are here now; run python -m compose {COMPONENT.name}")


def separate_outputs(cases: Sequence[Ports]) -> list[dict[str, np.ndarray]]:
    """Return, for each golden case's inputs, the outputs of the separate graphs, float32 and quantized.

    Raises:
        UserError: The composed artifacts contain other graphs than the current ones, or an artifact is damaged.
    """
    whole = artifact_path("onnx", COMPONENT.name)
    require_current(whole, "source", "onnx")
    require_current(artifact_path("quantized", COMPONENT.name), "components", "quantized")
    recorded: list[dict[str, np.ndarray]] = [{} for _ in cases]
    for kind, prefix in (("onnx", ""), ("quantized", "quantized_")):
        for name in COMPONENTS:
            artifact.check(artifact_path(kind, name))
        graphs = _SeparateGraphs(kind, artifact.read_json(whole / COMPOSED_SETTINGS)["variant"])
        for number, (ports, outputs) in enumerate(zip(cases, recorded, strict=True)):
            outputs.update({f"{prefix}{name}": array for name, array in graphs.run(ports, number).items()})
    return recorded


class _SeparateGraphs:
    """The separate graphs in their run-times.

    Args:
        kind: Kind of graphs, ``onnx`` or ``quantized``; a graph that is not quantized runs in float32.
        variant: Name of the sampler variant.
    """

    def __init__(self, kind: str, variant: str) -> None:
        folders = {name: artifact_path("onnx", name) for name in COMPONENTS}
        config = read_config(folders["encoder"])
        graphs = {
            key: _graph(kind, name, stem) for name in COMPONENTS for key, stem in stems(name, folders[name]).items()
        }
        block = 2 * config["thinker_config"]["audio_config"]["n_window"]
        sampler = artifact.read_json(folders["token2wav"] / SETTINGS)
        self._variant = variant
        self._direct = Direct(
            Listener.of_graphs(graphs[frontend.GRAPH], graphs[encoder.GRAPH], block),
            open_session(graphs[PROJECTION], stop_spinning=True),
            Token2Wav({stem: graphs[stem] for stem in GRAPHS}, sampler),
        )

    def run(self, inputs: Mapping[str, np.ndarray], seed: int) -> dict[str, np.ndarray]:
        """Return the composed graph's outputs for its inputs; ``seed`` draws the same noise as the input ``noise``."""
        codes = self._direct.codes(inputs["audio"][0], INPUT_SAMPLE_RATE)
        voice = inputs["cond"], inputs["ref_mel"]
        waveform = self._direct.token2wav.speak(codes, *voice, seed=seed, variant=self._variant)
        return {"codes": codes[None], "waveform": waveform[None]}


def _graph(kind: str, name: str, stem: str) -> Path:
    if kind == "quantized" and stem in artifact.read_manifest(artifact_path("quantized", name))["quantization"]:
        return quantized_graph(artifact_path("quantized", name), stem)
    return artifact_path("onnx", name) / f"{stem}.onnx"
