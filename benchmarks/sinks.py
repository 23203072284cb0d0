"""Measure what exact keys and values of a decoder's first tokens gain: ``python -m benchmarks.sinks``.

The first token of a sequence is its attention sink: every later token attends to it, so that noise in its keys and
values reaches all of them. A system prompt is always the same, and the exact keys and values of its tokens could be
shipped with a model. This command feeds those of a recording's first tokens, computed by the float32 graph, as past to
the quantized graph, and compares the logits of the other tokens with the float32 graph's: beside those that the
quantized graph gives of them when it has read the whole recording itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnx_ir as ir
import typer

from benchmarks.report import JsonFile, Overwrite, json_file, number, print_table
from benchmarks.variants import calibration_of, write_ours
from components import component
from omni.grouped_query import shared_channels
from omni.inputs import HELD_OUT, read
from omni.params import MeasuredParams, load
from omni.quiet import quiet
from omni.resources import machine, progress
from qwen_omni_onnx.common import artifact, output
from qwen_omni_onnx.common.agreement import FLOAT, QUANTIZED
from qwen_omni_onnx.common.command_line import run_app
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.common.metrics import token_kl, top1
from qwen_omni_onnx.common.session import run
from qwen_omni_onnx.decoder import Decoder
from qwen_omni_onnx.runtimes import DECODERS
from validate.measured import MeasuredComponent, built_components

__all__ = ["PREFIXES", "main"]

PREFIXES = (1, 4, 16, 64)  # tokens whose keys and values are exact
_OTHER = "int8-block"
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True)
class _Exact:
    """What the float32 graph gives for a recording.

    Attributes:
        embeds: The recording, [1, tokens, width].
        logits: Logits of every token, [tokens, vocabulary].
        past: Keys and values of as many first tokens as the longest prefix has, by the graph's input.
    """

    embeds: np.ndarray
    logits: np.ndarray
    past: dict[str, np.ndarray]


@app.command()
def main(
    name: Annotated[str, typer.Argument(metavar="COMPONENT", help="Decoder: thinker or talker.")] = "thinker",
    tokens: Annotated[int, typer.Option(min=2, max=4096, help="Tokens of each recording that are read.")] = 256,
    recordings: Annotated[int, typer.Option(min=1, max=64, help="Held-out recordings that are read.")] = 8,
    json: JsonFile = None,
    overwrite: Overwrite = False,
) -> None:
    """Print the KL divergence from float32 with and without exact keys and values of the first tokens."""
    json = json_file(json, overwrite=overwrite)
    if component(name).name not in DECODERS:
        raise UserError(f"{name}: no decoder, and has no keys and values; give one of {', '.join(DECODERS)}")
    ((measured, params),) = built_components([name])
    if QUANTIZED not in measured.kinds:
        raise UserError(f"{name} stays float32 (its block in params.yaml says quantize: {{}}); nothing to compare")
    clips = [recording[:tokens] for _, recording in sorted(read(name, HELD_OUT).items())][:recordings]
    if max(map(len, clips)) < 2:
        raise UserError(f"{name}: no held-out recording has a second token; record longer ones")
    found = {"machine": machine(), "component": name, **_measure(measured, params, clips, load().sessions.threads)}
    _print(found)
    if json:
        artifact.write_json(json, found)


def _measure(
    measured: MeasuredComponent, params: MeasuredParams, clips: Sequence[np.ndarray], threads: int
) -> dict[str, Any]:
    (graph,) = measured.graphs.values()
    runtime = DECODERS[measured.name]

    def opened(path: Path) -> Decoder:
        decoder: Decoder = runtime.open_graphs({graph.stem: path}, measured.companions, threads).decoder
        return decoder

    with output.temporary_folder() as folder, progress(measured.name, 3) as advance:
        decoder = opened(graph.files[FLOAT])
        token_bytes = 4 * len(decoder.caches) * int(decoder.kv_heads) * int(decoder.head_dim)
        divisors = _divisors(measured)
        exact = [_exact(decoder, clip, divisors) for clip in clips]
        del decoder  # one graph is in memory at a time
        advance(1)
        rows = [{"graph": "as built", **row} for row in _rows(opened(graph.files[QUANTIZED]), exact)]
        advance(1)
        with quiet():
            other = _quantized(measured, params, folder)
        rows += [{"graph": _OTHER, **row} for row in _rows(opened(other), exact)]
        advance(1)
    return {"token_bytes": token_bytes, "recordings": len(clips), "rows": rows}


def _quantized(measured: MeasuredComponent, params: MeasuredParams, folder: Path) -> Path:
    """Quantize the whole graph by the other scheme."""
    (stem,) = measured.graphs
    block = params.graph(stem).quantize
    assert block is not None, "only graphs that are quantized are compared"
    other = block.model_copy(update={"scheme": _OTHER, "nodes": {}, "compensation": {}})
    return write_ours(measured, stem, other, folder)


def _divisors(measured: MeasuredComponent) -> dict[str, np.ndarray]:
    """Return what a quantized graph's cached values are divided by, [value heads, 1, head width], by the cache's name.

    Smoothing of the output projection is folded into attention's values, and the cache holds these.
    """
    ((stem, graph),) = measured.graphs.items()
    calibration = calibration_of(measured, stem)
    found = {}
    for node in ir.load(graph.files[FLOAT]).graph:
        attended = node.outputs[0]
        if node.op_type == "GroupQueryAttention" and (changed := calibration.get(str(attended.name))):
            shared = shared_channels(attended, len(changed.factors))
            assert shared is not None, "attention over packed queries, keys and values"
            factors = np.ones(shared.max() + 1, np.float32)
            factors[shared] = changed.factors
            heads = node.attributes.get_int("kv_num_heads")
            found[str(node.inputs[4].name)] = factors.reshape(heads, 1, -1)
    return found


def _exact(decoder: Decoder, clip: np.ndarray, divisors: Mapping[str, np.ndarray]) -> _Exact:
    """Run a clip through the float32 graph; its cached values are divided as a quantized graph's are."""
    found = run(decoder.session, decoder.feeds(clip[None], np.ones((1, len(clip)), bool)))
    longest = max(PREFIXES)
    past = {name: found[name.replace("past_key_values", "present")][:, :, :longest].copy() for name in decoder.caches}
    divided = {name: array / divisors[name] if name in divisors else array for name, array in past.items()}
    return _Exact(clip[None], found["logits"][0], divided)


def _rows(decoder: Decoder, exact: Sequence[_Exact]) -> Iterator[dict[str, Any]]:
    """Yield a row for each prefix that leaves tokens to compare."""
    alone = [_logits(decoder, recording, 0) for recording in exact]
    yield {"prefix": 0, **_compared("alone", exact, alone, 0)}
    for prefix in PREFIXES:
        longer = [place for place, recording in enumerate(exact) if len(recording.logits) > prefix]
        if longer:
            chosen = [exact[place] for place in longer]
            with_exact = [_logits(decoder, recording, prefix) for recording in chosen]
            yield {
                "prefix": prefix,
                **_compared("alone", chosen, [alone[place][prefix:] for place in longer], prefix),
                **_compared("exact", chosen, with_exact, prefix),
            }


def _logits(decoder: Decoder, recording: _Exact, prefix: int) -> np.ndarray:
    """Return the logits of the tokens after a prefix whose keys and values are exact, [tokens - prefix, vocabulary]."""
    rest = recording.embeds[:, prefix:]
    fed = decoder.feeds(rest, np.ones(rest.shape[:2], bool))
    if prefix:
        fed["attention_mask"] = np.ones(recording.embeds.shape[:2], np.int64)
        fed |= {name: np.ascontiguousarray(array[:, :, :prefix]) for name, array in recording.past.items()}
    logits: np.ndarray = run(decoder.session, fed)["logits"][0]
    return logits


def _compared(which: str, exact: Sequence[_Exact], logits: Sequence[np.ndarray], prefix: int) -> dict[str, Any]:
    """Return KL divergence and top-1 over the tokens after a prefix of all recordings, and how many these are."""
    pairs = [(recording.logits[prefix:], given) for recording, given in zip(exact, logits, strict=True)]
    kl = np.concatenate([token_kl(wanted, given) for wanted, given in pairs])
    same = float(np.average([top1(*pair) for pair in pairs], weights=[len(given) for _, given in pairs]))
    return {"tokens": len(kl), f"{which}_kl": float(kl.mean()), f"{which}_top1": same}


def _print(found: dict[str, Any]) -> None:
    print(", ".join(f"{name} {value}" for name, value in found["machine"].items()))
    print(f"{found['component']}: {found['recordings']} held-out recordings; {found['token_bytes']:,} bytes a token")
    table = [["graph", "exact tokens", "kB", "tokens compared", "KL alone", "KL", "KL saved", "top-1 alone", "top-1"]]
    for row in found["rows"]:
        cells = [row["graph"], str(row["prefix"]), number(row["prefix"] * found["token_bytes"] / 1e3, 0)]
        kl, top1_ = row.get("exact_kl"), row.get("exact_top1")
        saved = "" if kl is None else f"{1 - kl / max(row['alone_kl'], np.finfo(float).tiny):.1%}"
        cells += [str(row["tokens"]), number(row["alone_kl"], 4), number(kl, 4), saved]
        table.append([*cells, number(row["alone_top1"], 3), number(top1_, 3)])
    print_table(table)


if __name__ == "__main__":
    run_app(app)
