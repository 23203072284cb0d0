"""What the whole is compared with: the graphs of its parts, one by one, in the run-times that their users have.

PyTorch does not run again: each of the float32 graphs is held to it by a gate of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from components import encoder, frontend
from components.audio_core import COMPONENT, PARTS
from export.audio_core.graph import PROJECTION, stems
from omni.component import artifact_path
from qwen_omni_onnx.audio_core.runtime import SETTINGS as WHOLE
from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.common.configuration import read_config
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.common.quantized import quantized_graph
from qwen_omni_onnx.common.session import open_session
from qwen_omni_onnx.direct import Direct
from qwen_omni_onnx.listen import Listener
from qwen_omni_onnx.sound.audio import SAMPLE_RATE
from qwen_omni_onnx.token2wav.runtime import GRAPHS, SETTINGS, Token2Wav

__all__ = ["fingerprints", "record", "require_parts"]


def fingerprints(kind: str) -> dict[str, str]:
    """Return the fingerprint of each part's artifact of a kind: what the whole is bound to."""
    return {part: artifact.fingerprint(artifact_path(kind, part)) for part in PARTS}


def require_parts(whole: Path, key: str, kind: str) -> None:
    """Refuse a whole that is composed of other graphs than are here now.

    Args:
        whole: its artifact.
        key: under which its manifest says what it was made from.
        kind: of the parts' artifacts.

    Raises:
        UserError: it is.
    """
    if artifact.read_manifest(whole)["made_from"][key] != fingerprints(kind):
        command = {"onnx": "export", "int8": "quantize"}[kind]
        raise UserError(
            f"{whole}: composed of other graphs than are here now; run python -m {command} {COMPONENT.name}"
        )


def record(fed: list[Mapping[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
    """Return what each golden case holds beside its inputs: what the parts give, float32 and quantized.

    Raises:
        UserError: the whole is composed of other graphs than are here now, or a part is not whole.
    """
    whole = artifact_path("onnx", COMPONENT.name)
    require_parts(whole, "source", "onnx")
    require_parts(artifact_path("int8", COMPONENT.name), "parts", "int8")
    recorded: list[dict[str, np.ndarray]] = [{} for _ in fed]
    for kind, prefix in (("onnx", ""), ("int8", "quantized_")):
        for part in PARTS:
            artifact.check(artifact_path(kind, part))
        apart = _Apart(kind, artifact.read_json(whole / WHOLE)["variant"])
        for number, (ports, outputs) in enumerate(zip(fed, recorded, strict=True)):
            outputs.update({f"{prefix}{name}": array for name, array in apart.say(ports, number).items()})
    return recorded


class _Apart:
    """The graphs of the parts in their run-times.

    Args:
        kind: of graphs: ``onnx`` or ``int8``; float32 ones where a part has no other.
        variant: name of the way to solve the ODE.
    """

    def __init__(self, kind: str, variant: str) -> None:
        folders = {part: artifact_path("onnx", part) for part in PARTS}
        config = read_config(folders["encoder"])
        graphs = {key: _graph(kind, part, stem) for part in PARTS for key, stem in stems(part, folders[part]).items()}
        block = 2 * config["thinker_config"]["audio_config"]["n_window"]
        sampler = artifact.read_json(folders["token2wav"] / SETTINGS)
        self._variant = variant
        self._direct = Direct(
            Listener.of_graphs(graphs[frontend.GRAPH], graphs[encoder.GRAPH], block),
            open_session(graphs[PROJECTION], stop_spinning=True),
            Token2Wav({stem: graphs[stem] for stem in GRAPHS}, sampler),
        )

    def say(self, fed: Mapping[str, np.ndarray], seed: int) -> dict[str, np.ndarray]:
        """Return the outputs of the whole for its inputs but the noise, which ``seed`` stands for."""
        codes = self._direct.codes(fed["audio"][0], SAMPLE_RATE)
        voice = fed["cond"], fed["ref_mel"]
        waveform = self._direct.token2wav.speak(codes, *voice, seed=seed, variant=self._variant)
        return {"codes": codes[None], "waveform": waveform[None]}


def _graph(kind: str, part: str, stem: str) -> Path:
    if kind == "int8" and stem in artifact.read_manifest(artifact_path("int8", part))["quantization"]:
        return quantized_graph(artifact_path("int8", part), stem)
    return artifact_path("onnx", part) / f"{stem}.onnx"
