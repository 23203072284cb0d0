"""The composed graph: the components' graphs, and between them, as nodes, the operations of their run-times.

``qwen_omni_onnx.direct`` computes the same in Python. It processes long audio in chunks to save memory; the graph does
not.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from components import component, encoder, frontend, token2wav
from components.audio_core import GRAPH
from compose.join import GraphComposer, port_value
from compose.loop import ode_loop_graph
from omni.stored import load_graph
from qwen_omni_onnx.common.configuration import read_config
from qwen_omni_onnx.common.contract import GraphContract
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.sampler import Variant, variants
from qwen_omni_onnx.token2wav.runtime import SETTINGS

__all__ = ["PREFIXES", "PROJECTION", "compose", "stems"]

PROJECTION = "projection"  # key of the projection, whose file stem depends on the checkpoint
PREFIXES = {  # prefix of the names of a graph's nodes and weights, by file stem or ``PROJECTION``
    frontend.GRAPH: "frontend",
    encoder.GRAPH: "encoder",
    PROJECTION: "projection",
    token2wav.CONDITION: token2wav.CONDITION,
    token2wav.STEP: "dit_ode",
    token2wav.VOCODER: token2wav.VOCODER,
}


def stems(name: str, folder: Path) -> dict[str, str]:
    """Return the file stems of a component's graphs, by their keys in ``PREFIXES``; ``folder`` is its artifact."""
    contracts = component(name).contracts(read_config(folder))
    return {name if name == PROJECTION else stem: stem for stem in contracts}


def compose(graphs: Mapping[str, Path], sampler: Mapping[str, Any], variant: str, contract: GraphContract) -> ir.Model:
    """Return the composed graph; its weights are copied when it is written.

    Args:
        graphs: File of each graph, float32 or quantized, by its key in ``PREFIXES``.
        sampler: Content of token2wav's ``sampler.json``.
        variant: Name of the sampler variant.
        contract: Interface of the composed graph.

    Raises:
        UserError: A graph has other inputs than expected, or the variant does not exist.
    """
    composer = GraphComposer()
    audio, cond, ref_mel, noise = (port_value(port) for port in contract.inputs)
    codes = _codes(composer, graphs, audio, int(sampler["codes"]))
    count = composer.op("Shape", [codes], "code_lens", start=1, end=2)  # [1]
    conditioning = {"codes": codes, "code_lens": count, "cond": cond, "ref_mel": ref_mel}
    condition = composer.add(PREFIXES[token2wav.CONDITION], load_graph(graphs[token2wav.CONDITION]), conditioning)
    frames = composer.op("Mul", [count, composer.constant("repeats", int(sampler["repeats"]))], "mel_frames")
    ode = ode_loop_graph(graphs[token2wav.STEP], _variant(sampler, variant), np.array(sampler["times"], np.float32))
    initial = {"noise": _blocked(composer, noise, frames, int(sampler["block"]), int(sampler["mels"])), **condition}
    solved = composer.add(PREFIXES[token2wav.STEP], ode, initial)["mel"]
    mel = _frames_last(composer, solved, frames, int(sampler["mels"]))
    vocoder = load_graph(graphs[token2wav.VOCODER])
    waveform = composer.add(PREFIXES[token2wav.VOCODER], vocoder, {"mel": mel})["waveform"]
    outputs = dict(zip((waveform, codes), contract.outputs, strict=True))
    return composer.model(GRAPH, [audio, cond, ref_mel, noise], outputs, contract.ir_version)


def _variant(sampler: Mapping[str, Any], name: str) -> Variant:
    """Return a sampler variant that token2wav was exported for.

    Raises:
        UserError: No variant has that name.
    """
    declared = variants(sampler["variants"])
    if name not in declared:
        raise UserError(f"params.yaml: audio_core.variant: {name!r} is none; {SETTINGS} has {', '.join(declared)}")
    return declared[name]


def _codes(composer: GraphComposer, graphs: Mapping[str, Path], audio: ir.Value, sounding: int) -> ir.Value:
    """Return the best of the first ``sounding`` codes, [1, codes], for audio [1, samples]: the rest are special."""
    lengths = composer.op("Shape", [audio], "audio_lens", start=1, end=2)
    features = composer.add(
        PREFIXES[frontend.GRAPH], load_graph(graphs[frontend.GRAPH]), {"audio": audio, "audio_lens": lengths}
    )
    embedded = composer.add(PREFIXES[encoder.GRAPH], load_graph(graphs[encoder.GRAPH]), features)
    logits = composer.add(
        PREFIXES[PROJECTION],
        load_graph(graphs[PROJECTION]),
        {"hidden_states": embedded["audio_features"]},
    )["audio_logits"]
    ends = (composer.constant("sounding.start", 0), composer.constant("sounding.end", sounding))
    chosen_from = composer.op("Slice", [logits, *ends, composer.constant("sounding.axis", 2)], "sounding")
    return composer.op("ArgMax", [chosen_from], "best", axis=2, keepdims=0)


def _blocked(composer: GraphComposer, noise: ir.Value, frames: ir.Value, block: int, mels: int) -> ir.Value:
    """Return noise [1, mel_frames, mels] as [1, blocks, block, mels], padded with zeros.

    The first Reshape keeps the shape: it fails for noise whose number of frames does not match the codes.
    """
    one, width = composer.constant("noise.batch", 1), composer.constant("noise.mels", mels)
    shape = composer.op("Concat", [one, frames, width], "noise.shape", axis=0)
    fitting = composer.op("Reshape", [noise, shape], "noise.fitting", allowzero=1)
    missing = composer.op(
        "Mod",
        [composer.op("Neg", [frames], "noise.negative"), composer.constant("noise.block", block)],
        "noise.missing",
    )
    before, after = composer.constant("noise.before", 0, 0, 0, 0), composer.constant("noise.after", 0)
    pads = composer.op("Concat", [before, missing, after], "noise.pads", axis=0)
    filled = composer.op("Pad", [fitting, pads], "noise.filled")
    return composer.op("Reshape", [filled, composer.constant("noise.blocks", 1, -1, block, mels)], "noise.blocked")


def _frames_last(composer: GraphComposer, solved: ir.Value, frames: ir.Value, mels: int) -> ir.Value:
    """Return mel frames [1, blocks, block, mels] as [1, mels, mel_frames], the layout of the vocoder."""
    flat = composer.op("Reshape", [solved, composer.constant("mel.shape", 1, -1, mels)], "mel.strung")
    start, axis = composer.constant("mel.start", 0), composer.constant("mel.axis", 1)
    cut = composer.op("Slice", [flat, start, frames, axis], "mel.cut")
    return composer.op("Transpose", [cut], "mel.turned", perm=[0, 2, 1])
