"""Measures whether a quantized graph fits the recordings that calibrated it better than others.

Whatever calibration chooses (ranges, smoothing, compensated codes) can fit its own recordings and nothing else. The
quantized graph is therefore compared with the float32 one, both in ONNX Runtime, on calibration's recordings and on
held-out ones: as many of each, and no longer ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from omni.inputs import CALIBRATION, FOLDER, HELD_OUT, feed, read
from omni.overfitting import Overfitting, SplitAgreement
from omni.params import MeasuredParams
from omni.resources import progress
from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.common.agreement import FLOAT, QUANTIZED
from qwen_omni_onnx.common.case_stats import CaseStats
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.common.session import open_session, run
from qwen_omni_onnx.runtimes import DECODERS, SEVERAL_GRAPHS
from validate import segmented
from validate.measured import MeasuredComponent

__all__ = ["measure", "warnings"]

_RECORDINGS = 8  # of a split
_TOKENS = 128  # of a recording that a decoder reads: each of them has a vocabulary of logits
_SPOKEN, _CODES = 2, 24  # recordings that are spoken, and codes of each, in whole blocks: an ODE and a vocoder
Fed = list[tuple[str, Mapping[str, np.ndarray]]]  # the split of each recording, and inputs


@dataclass(frozen=True)
class _Output:
    """One output of a graph for a recording.

    Attributes:
        split: Split of the recording.
        check: Name of the check, or of the graph where there are several.
        array: The output, [..., channels], or [batch, samples] of a waveform.
        logits: Whether these are logits.
        waveform: Whether this is a waveform.
    """

    split: str
    check: str
    array: np.ndarray
    logits: bool = False
    waveform: bool = False


def measure(measured: MeasuredComponent, params: MeasuredParams, threads: int) -> dict[str, Overfitting]:
    """Return how far quantized graphs are from float32 ones on both splits, by check; by graph where there are several.

    A decoder's steps are left out: they see what its prompts see. Of several graphs, each is compared by itself, on
    what it sees while the float32 graphs run; what their errors add up to is not measured.

    Args:
        measured: Component as built.
        params: Its parameters; of no recording, more is read than the longest golden case has.
        threads: Intra-op threads of the sessions; 0 lets ONNX Runtime choose.

    Returns:
        Nothing for a component that stays float32, or that is composed of others and has no recordings.

    Raises:
        UserError: The recordings are missing, or not those that the golden cases were cut from; or an output is not
            finite.
    """
    if QUANTIZED not in measured.kinds or measured.component.composed_of:
        return {}
    _require_same_recordings(measured)
    fed = _inputs(measured, max(max(lengths) for lengths in params.cases), threads)
    with progress("parity on calibration's recordings", 2) as advance:
        floating = list(_outputs(measured, FLOAT, fed, threads))  # one kind of graphs is in memory at a time
        advance(1)
        stats: dict[str, dict[str, CaseStats]] = {}
        for expected, actual in zip(floating, _outputs(measured, QUANTIZED, fed, threads), strict=True):
            cases = stats.setdefault(actual.check, {}).setdefault(actual.split, CaseStats())
            try:
                cases.add("", expected.array, actual.array, waveform=actual.waveform, logits=actual.logits)
            except ValueError as error:
                raise UserError(f"{measured.name} {QUANTIZED}: {actual.split}: {actual.check}: {error}") from None
        advance(1)
    return {
        check: Overfitting(
            _calibrated(measured, params, check), *(_agreement(splits[name]) for name in (CALIBRATION, HELD_OUT))
        )
        for check, splits in stats.items()
    }


def warnings(found: Mapping[str, Overfitting]) -> list[str]:
    """Return a sentence for each check that comes out worse on held-out recordings than chance explains."""
    return [
        f"{check} fits its calibration better than other data: {overfitting}; calibrate on more or other recordings "
        "(inputs), or with more damping"
        for check, overfitting in found.items()
        if overfitting.warns
    ]


def _require_same_recordings(measured: MeasuredComponent) -> None:
    folder, reference = FOLDER / measured.name, measured.folders["reference"]
    if artifact.read_manifest(reference)["made_from"]["inputs"] != artifact.fingerprint(folder):
        raise UserError(f"{folder}: other recordings than {reference} was made from; run dvc repro")


def _inputs(measured: MeasuredComponent, longest: int, threads: int) -> dict[str, Fed]:
    """Return the inputs of each graph, by file stem: the beginnings of as many recordings of each split."""
    contract, recordings = measured.contract, {split: read(measured.name, split) for split in (CALIBRATION, HELD_OUT)}
    several = SEVERAL_GRAPHS.get(measured.name)
    count = min(_SPOKEN if several else _RECORDINGS, *map(len, recordings.values()))
    longest = min(longest, _CODES if several else _TOKENS if measured.name in DECODERS else longest)
    chosen: Fed = []
    for split, by_clip in recordings.items():
        clips = sorted(by_clip)
        for place in range(count):
            recording = by_clip[clips[place * len(clips) // count]]
            length = min(longest, recording.shape[contract.axis])
            chosen.append((split, feed(contract, [recording], [length])))
    if several is None:
        (stem,) = measured.graphs
        return {stem: chosen}
    return _seen(measured, several, chosen, count, threads)


def _seen(measured: MeasuredComponent, runtime: Any, chosen: Fed, count: int, threads: int) -> dict[str, Fed]:
    """Return what each quantized graph sees while the float32 graphs run, with the same noise in both splits."""
    model = runtime.open_graphs(measured.files(FLOAT), measured.companions, threads)
    found: dict[str, Fed] = {stem: [] for stem, graph in measured.graphs.items() if QUANTIZED in graph.files}
    for number, (split, ports) in enumerate(chosen):
        whole = runtime.complete(ports, measured.companions, measured.contract, number % count)
        for stem, _, inputs in runtime.feeds(model, whole):
            if stem in found:
                found[stem].append((split, inputs))
    return found


def _outputs(measured: MeasuredComponent, kind: str, fed: Mapping[str, Fed], threads: int) -> Iterator[_Output]:
    """Yield what the graphs of a kind give, always in the same order."""
    graphs = measured.files(kind)
    if runtime := DECODERS.get(measured.name):
        (rows,) = fed.values()
        if kind == FLOAT and segmented.needed(measured):
            yield from segmented.ask(measured, partial(_decoded, rows))
        else:
            yield from _decoded(rows, runtime.open_graphs(graphs, measured.companions, threads))
        return
    for stem, inputs in fed.items():
        session, output = open_session(graphs[stem], threads=threads), measured.graphs[stem].contract.outputs[0]
        check = stem if len(graphs) > 1 else output.name
        for split, ports in inputs:
            found = run(session, ports)[output.name]
            yield _Output(split, check, found, waveform=isinstance(output.shape[-1], str))  # samples, no channels


def _decoded(rows: Fed, model: Any) -> list[_Output]:
    """Return logits and hidden states of a decoder, Thinker or Talker."""
    found = []
    for split, ports in rows:
        logits, hidden = model.decoder.forward(ports["inputs_embeds"], ports["tokens"])
        found += [_Output(split, "prompt", logits, logits=True), _Output(split, "hidden", hidden)]
    return found


def _agreement(stats: CaseStats) -> SplitAgreement:
    found = stats.summary()
    return SplitAgreement(
        outputs=len(found.cases),
        sqnr_db=float(np.median([case.sqnr_db for case in found.cases])),
        token_median_db=found.token_median_db,
        token_p95_db=found.token_p95_db,
        kl=found.kl,
        top1=None if found.kl is None else found.top1,
    )


def _calibrated(measured: MeasuredComponent, params: MeasuredParams, check: str) -> bool:
    """Return whether the graph that a check is of, or any of a component with a run-time for several, is calibrated."""
    stems = [check] if check in measured.graphs else list(measured.graphs)
    return any(params.graph(stem).calibrate is not None for stem in stems)
