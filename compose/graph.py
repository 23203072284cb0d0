"""The graph: what the run-times of the components do between them, as nodes between their graphs' own.

``qwen_omni_onnx.direct`` does the same in Python. Where that works in pieces, to keep memory down, the graph sees the
whole.
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
from qwen_omni_onnx.common.configuration import read_config
from qwen_omni_onnx.common.contract import GraphContract
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.sampler import Variant, variants
from qwen_omni_onnx.token2wav.runtime import SETTINGS

__all__ = ["PREFIXES", "PROJECTION", "compose", "stems"]

PROJECTION = "projection"  # whose file stem depends on the checkpoint
PREFIXES = {  # by file stem, or ``PROJECTION``: what the names of a graph's nodes and weights begin with
    frontend.GRAPH: "frontend",
    encoder.GRAPH: "encoder",
    PROJECTION: "projection",
    token2wav.CONDITION: token2wav.CONDITION,
    token2wav.STEP: "dit_ode",
    token2wav.VOCODER: token2wav.VOCODER,
}


def stems(name: str, folder: Path) -> dict[str, str]:
    """Return the file stems of the graphs of a component that lies in a folder, by the keys of ``PREFIXES``."""
    found = component(name).contracts(read_config(folder))
    return {name if name == PROJECTION else stem: stem for stem in found}


def compose(graphs: Mapping[str, Path], sampler: Mapping[str, Any], variant: str, contract: GraphContract) -> ir.Model:
    """Return the whole as one graph, its weights still to be copied when it is written.

    Args:
        graphs: The file of each of ``PREFIXES``, float32 or quantized each.
        sampler: The content of token2wav's ``sampler.json``.
        variant: Name of the way to solve the ODE.
        contract: Names and shapes of inputs and outputs.

    Raises:
        UserError: A graph is not what it should be, or there is no such variant.
    """
    whole = GraphComposer()
    audio, cond, ref_mel, noise = (port_value(port) for port in contract.inputs)
    codes = _codes(whole, graphs, audio, int(sampler["codes"]))
    count = whole.op("Shape", [codes], "code_lens", start=1, end=2)  # [1]
    told = {"codes": codes, "code_lens": count, "cond": cond, "ref_mel": ref_mel}
    conditioned = whole.add(PREFIXES[token2wav.CONDITION], ir.load(graphs[token2wav.CONDITION]), told)
    frames = whole.op("Mul", [count, whole.constant("repeats", int(sampler["repeats"]))], "mel_frames")
    ode = ode_loop_graph(graphs[token2wav.STEP], _variant(sampler, variant), np.array(sampler["times"], np.float32))
    started = {"noise": _blocked(whole, noise, frames, int(sampler["block"]), int(sampler["mels"])), **conditioned}
    solved = whole.add(PREFIXES[token2wav.STEP], ode, started)["mel"]
    mel = _frames_last(whole, solved, frames, int(sampler["mels"]))
    waveform = whole.add(PREFIXES[token2wav.VOCODER], ir.load(graphs[token2wav.VOCODER]), {"mel": mel})["waveform"]
    outputs = dict(zip((waveform, codes), contract.outputs, strict=True))
    return whole.model(GRAPH, [audio, cond, ref_mel, noise], outputs, contract.ir_version)


def _variant(sampler: Mapping[str, Any], name: str) -> Variant:
    """Return one of the ways to solve the ODE that token2wav was exported for.

    Raises:
        UserError: there is none of that name.
    """
    declared = variants(sampler["variants"])
    if name not in declared:
        raise UserError(f"params.yaml: audio_core.variant: {name!r} is none; {SETTINGS} has {', '.join(declared)}")
    return declared[name]


def _codes(whole: GraphComposer, graphs: Mapping[str, Path], audio: ir.Value, sounding: int) -> ir.Value:
    """From sound [1, samples] to the best of the ``sounding`` first codes, [1, codes]: the others are no sound."""
    lengths = whole.op("Shape", [audio], "audio_lens", start=1, end=2)
    heard = whole.add(
        PREFIXES[frontend.GRAPH], ir.load(graphs[frontend.GRAPH]), {"audio": audio, "audio_lens": lengths}
    )
    embedded = whole.add(PREFIXES[encoder.GRAPH], ir.load(graphs[encoder.GRAPH]), heard)
    logits = whole.add(
        PREFIXES[PROJECTION],
        ir.load(graphs[PROJECTION]),
        {"hidden_states": embedded["audio_features"]},
    )["audio_logits"]
    ends = (whole.constant("sounding.start", 0), whole.constant("sounding.end", sounding))
    chosen_from = whole.op("Slice", [logits, *ends, whole.constant("sounding.axis", 2)], "sounding")
    return whole.op("ArgMax", [chosen_from], "best", axis=2, keepdims=0)


def _blocked(whole: GraphComposer, noise: ir.Value, frames: ir.Value, block: int, mels: int) -> ir.Value:
    """From noise [1, mel_frames, mels] to [1, blocks, block, mels], filled up with zeros.

    The first Reshape changes nothing: noise for another number of codes fails there.
    """
    one, width = whole.constant("noise.batch", 1), whole.constant("noise.mels", mels)
    shape = whole.op("Concat", [one, frames, width], "noise.shape", axis=0)
    fitting = whole.op("Reshape", [noise, shape], "noise.fitting", allowzero=1)
    missing = whole.op(
        "Mod", [whole.op("Neg", [frames], "noise.negative"), whole.constant("noise.block", block)], "noise.missing"
    )
    before, after = whole.constant("noise.before", 0, 0, 0, 0), whole.constant("noise.after", 0)
    pads = whole.op("Concat", [before, missing, after], "noise.pads", axis=0)
    filled = whole.op("Pad", [fitting, pads], "noise.filled")
    return whole.op("Reshape", [filled, whole.constant("noise.blocks", 1, -1, block, mels)], "noise.blocked")


def _frames_last(whole: GraphComposer, solved: ir.Value, frames: ir.Value, mels: int) -> ir.Value:
    """From mel [1, blocks, block, mels] to [1, mels, mel_frames], as the vocoder takes it."""
    strung = whole.op("Reshape", [solved, whole.constant("mel.shape", 1, -1, mels)], "mel.strung")
    start, axis = whole.constant("mel.start", 0), whole.constant("mel.axis", 1)
    cut = whole.op("Slice", [strung, start, frames, axis], "mel.cut")
    return whole.op("Transpose", [cut], "mel.turned", perm=[0, 2, 1])
