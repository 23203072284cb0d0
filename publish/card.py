"""The model card, generated from the reports: it contains only measured figures."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec

from omni.reports import GraphLatency, LengthLatency
from publish.evidence import Evidence
from publish.imported import imported_section
from publish.provenance import front_matter, hub_tags, made_from
from qwen_omni_onnx.common.agreement import BFLOAT16, CheckAgreement, Verdict
from qwen_omni_onnx.common.contract import GraphContract, once_a_layer
from qwen_omni_onnx.common.quantized import quantized_graph
from qwen_omni_onnx.sampler import default_variant

__all__ = ["render"]

_COMPARED = ["quantized ms", "speed-up", "ceiling", "share of it"]
_CEILING = (
    "The ceiling is the speed-up that this machine's own quantized kernels would give if nothing but the "
    "multiplications changed, measured in the same run; on another machine it is another."
)


def render(evidence: Evidence, contracts: Mapping[str, GraphContract]) -> str:
    """Return the content of a published folder's ``README.md``.

    Args:
        evidence: Artifacts and reports of the component.
        contracts: Interface of each graph, by file stem.
    """
    sections = [
        front_matter(evidence, _tags(evidence)),
        f"# {evidence.name}",
        _warnings(evidence),
        evidence.component.summary,
        *(_interface(evidence, stem, contract) for stem, contract in contracts.items()),
        _use_together(evidence) if evidence.component.runtime else "",
        *([_use(evidence, *next(iter(contracts.items())))] if not evidence.component.runtime else []),
        imported_section(evidence),
        _measured(evidence),
        _variants(evidence),
        _gates(evidence),
        _verify(),
        made_from(evidence),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _tags(evidence: Evidence) -> list[str]:
    bits = {_quantized(evidence, stem).removesuffix(".onnx").rpartition("_")[2] for stem in evidence.quantization}
    return hub_tags([evidence.model], bits)


def _warnings(evidence: Evidence) -> str:
    warnings, model = [], evidence.model.name
    if evidence.synthetic:
        warnings.append(
            "**Synthetic weights.** This was built from seeded random weights of the real shapes, to prove the "
            f"pipeline. It computes nothing useful; every figure below is about these weights, not about {model}."
        )
    if evidence.component.caveat:
        warnings.append(f"**{evidence.component.caveat}**")
    if absent := [stem for stem in evidence.quantization if stem not in evidence.floating]:
        graphs = ", ".join(f"`{stem}.onnx`" for stem in absent)
        warnings.append(
            f"**Quantized alone.** {graphs} in float32 is not in this folder. Figures on float32 below were measured "
            "when this was built; golden cases hold what PyTorch gives, and judge the quantized graph without it."
        )
    return "\n>\n".join(f"> {warning}" for warning in warnings)


def _interface(evidence: Evidence, stem: str, contract: GraphContract) -> str:
    names = [f"{stem}.onnx"] if stem in evidence.floating else []
    names += [_quantized(evidence, stem)] if stem in evidence.quantization else []
    rows = [f"| {direction} | `{p.name}` | {p.dtype} | [{', '.join(map(str, p.shape))}] |"
            for direction, ports in (("input", contract.inputs), ("output", contract.outputs))
            for p in once_a_layer(ports)]  # fmt: skip
    files = " and ".join(f"`{name}`" for name in names)
    return f"## Interface of {files}\n\n| | name | type | shape |\n|---|---|---|---|\n" + "\n".join(rows)


def _quantized(evidence: Evidence, stem: str) -> str:
    return quantized_graph(evidence.folders["quantized"], stem).name


def _use(evidence: Evidence, stem: str, contract: GraphContract) -> str:
    quantized = bool(evidence.quantization)
    file = _quantized(evidence, stem) if quantized else f"{stem}.onnx"
    options = evidence.sessions.get(stem, {}).get("quantized" if quantized else "float32")
    paragraphs = ["Stock ONNX Runtime 1.31 or later; no PyTorch."]
    if quantized:
        paragraphs[0] += (
            " The INT8 kernels need a processor with VNNI (or ARM dot-product) instructions to be as fast as they can; "
            "x86 without them saturates its 16-bit sums unless the option in the comment above is set. With them, it "
            "would cost half the speed."
        )
    if options:
        paragraphs.append(
            f"The fastest session options for this graph on the machine below: {options['threads']} threads, "
            f"graph optimization `{options['optimization']}`, `{options['provider']}`."
        )
    length = evidence.params.graph(stem).latency.lengths[0]
    sizes = contract.sizes(1, length)
    signal, *lengths = contract.inputs
    lines = [f"{signal.name} = np.zeros({tuple(signal.sized(sizes))}, np.float32)"]
    lines += [f"{port.name} = np.array([{length}])  # of each row" for port in lengths]
    if quantized:
        lines += [
            "options = ort.SessionOptions()",
            '# options.add_session_config_entry("session.x64quantprecision", "1")  # on x86 without VNNI: exact sums',
        ]
    arguments = f'"onnx/{file}", {"options, " if quantized else ""}providers=["CPUExecutionProvider"]'
    results = ", ".join(port.name for port in contract.outputs) + ("," if len(contract.outputs) == 1 else "")
    inputs = ", ".join(f'"{port.name}": {port.name}' for port in contract.inputs)
    code = "\n".join(
        [*lines, f"session = ort.InferenceSession({arguments})", f"{results} = session.run(None, {{{inputs}}})"]
    )
    return f"""## Use

```python
import os
os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # ONNX Runtime's Linux builds report usage otherwise; before its import
import numpy as np, onnxruntime as ort

{code}
```

{" ".join(paragraphs[:1])}""" + "".join(f"\n\n{paragraph}" for paragraph in paragraphs[1:])


def _use_together(evidence: Evidence) -> str:
    assert evidence.component.runtime
    module = evidence.component.runtime
    command = f"; `python -m {module} --help` explains" if find_spec(f"{module}.__main__") else ""
    return f"""## Use

```python
{evidence.component.example}
```

Stock ONNX Runtime 1.31 or later; no PyTorch. What runs the graphs is `{module}`, which comes with `pip install` of \
the project's repository{command}. It is NumPy and ONNX Runtime, and short enough to read where you want to do the \
same in another language. On x86 without VNNI, the INT8 graphs need the \
session option `session.x64quantprecision` = `1`, or their sums saturate: the run-time sets it there."""


def _measured(evidence: Evidence) -> str:
    checks, limits = evidence.parity.checks, evidence.params.gates
    classes = {check for check in checks if limits.check(check).judges_classes}
    everything = [found for kinds in checks.values() for found in kinds.values()]
    waveforms = any(found.stft is not None for found in everything)
    logits = any(found.kl is not None for found in everything)
    head = ["", "SQNR dB", "median token dB", "95 % of tokens dB", "cosine", "largest difference"]
    head += ["STFT distance"] * waveforms + ["KL"] * logits
    head += ["top-1, strict", "near ties equal"] if classes else []

    def row(check: str, kind: str, found: CheckAgreement) -> list[str]:
        cells = [f"{check} {kind}", _number(found.sqnr_db, ".1f")]
        cells += [_number(found.token_median_db, ".1f"), _number(found.token_p95_db, ".1f")]
        cells += [_number(found.cosine, ".6f"), _number(found.max_abs, ".2g")]
        cells += [_number(found.stft, ".3f")] if waveforms else []
        cells += [_number(found.kl, ".2g")] if logits else []
        top1 = (found.top1, found.top1_near_tie) if check in classes else (None, None)
        return cells + [_number(share, ".4f") for share in top1 if classes]

    agreement = [row(check, kind, found) for check, kinds in checks.items() for kind, found in kinds.items()]
    latency = "\n\n".join(_latency(stem, found) for stem, found in evidence.latency.graphs.items())
    return f"""## Measured

{_compared(evidence)}, on held-out inputs: the worst case; by token, the SQNR that half of all tokens reach, and 95 % \
of them{"; top-1 and KL over all tokens" if classes else ""}:

{_table(head, agreement)}{_yardstick(checks)}

{latency}"""


def _number(value: float | None, shape: str) -> str:
    return "" if value is None else format(value, shape)


def _yardstick(checks: Mapping[str, Mapping[str, CheckAgreement]]) -> str:
    """Return the explanation of the rows of bfloat16; "" if there are none."""
    if not any(BFLOAT16 in kinds for kinds in checks.values()):
        return ""
    return (
        "\n\n`bfloat16` is no graph but PyTorch in the checkpoint's own dtype, the yardstick that quantized graphs are "
        "judged by: what it loses on the same inputs, the model's own users hear. One token that flips can make half "
        "of the noise of a case, so gates look at the median token and at 95 % of them."
    )


def _compared(evidence: Evidence) -> str:
    if not evidence.component.composed_of:
        return "Against PyTorch in float32"
    names = ", ".join(evidence.component.composed_of)
    return (
        f"Against the graphs of {names}, run one after another: `codes` against those in float32, as rows with a one "
        "where the code is, so that top-1 is the share of equal codes; `waveform` against those of the same kind, "
        "where the codes are the same; all"
    )


def _latency(stem: str, found: GraphLatency) -> str:
    compared = any(entry.speedup is not None for entry in found.lengths)
    columns = [found.axis, "float32 ms", *(_COMPARED if compared else [])]
    medians = "medians of interleaved runs, with 95 % intervals" if compared else "medians"
    if found.pieces > 1:
        whole = " and ".join(f"{entry.whole_ms:.1f} ms at {entry.length}" for entry in found.lengths if entry.whole_ms)
        medians += (
            f", sums over {found.pieces} pieces of the graph, because the float32 one does not fit into memory (the "
            f"quantized graph whole: {whole})"
        )
    ceiling = f"\n\n{_CEILING}" if compared else ""
    machine, threads = found.machine, found.threads or found.machine["cores"]
    return f"""Latency of `{stem}` on {machine["processor"]} ({machine["instructions"]}), {threads} threads, \
ONNX Runtime {machine["onnxruntime"]}, {medians}:

{_table(columns, [_times(entry) for entry in found.lengths])}{ceiling}"""


def _times(entry: LengthLatency) -> list[str]:
    cells = [str(entry.length), f"{entry.float32_ms:.2f}"]
    if entry.speedup is None:
        return cells

    def interval(value: float | None, low: float | None, high: float | None) -> str:
        return f"{_number(value, '.2f')} ({_number(low, '.2f')} to {_number(high, '.2f')})"

    return [
        *cells,
        _number(entry.quantized_ms, ".2f"),
        interval(entry.speedup, entry.speedup_low, entry.speedup_high),
        _number(entry.ceiling, ".2f"),
        interval(entry.share, entry.share_low, entry.share_high),
    ]


def _variants(evidence: Evidence) -> str:
    found = evidence.latency.variants
    if not found:
        return ""
    rows = [
        [cost.graphs, f"`{cost.variant}`", str(cost.evaluations), f"{cost.cost:.2f}", f"{cost.seconds_each:.2f}",
         f"{cost.mel_db:.1f}, {cost.mel_median_db:.1f}", f"{cost.finer_db:.1f}, {cost.finer_median_db:.1f}",
         f"{cost.waveform_db:.1f}", f"{cost.stft:.3f}"]
        for cost in found
    ]  # fmt: skip
    head = ["graphs", "variant", "evaluations", "cost", "s for 1 s", "mel dB, median frame", "of a finer solution"]
    head += ["waveform dB", "STFT distance"]
    return f"""## Variants

Ways to solve the ODE, by name: time as a share of the reference's, seconds for a second of speech, and the distance \
from the float32 reference with the same noise; of the mel, also from PyTorch's solution on twice as many intervals. \
`{default_variant([cost.variant for cost in found])}` speaks unless another one is asked for.

{_table(head, rows)}"""


def _table(columns: list[str], rows: list[list[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _gates(evidence: Evidence) -> str:
    rows = "\n".join(_gate(verdict) for verdict in evidence.gate.verdicts)
    head = "## Gates\n\nAll green when this was published:\n\n| graph | metric | value | limit |\n|---|---|---|---|\n"
    return head + rows


def _gate(verdict: Verdict) -> str:
    value = f"{_number(verdict.value, '.4g')} {verdict.unit}".strip()
    limit = f"{verdict.comparison} {verdict.limit:g}{verdict.note}"
    return f"| {verdict.of} | {verdict.label} | {value} | {limit} |"


def _verify() -> str:
    return """## Verify

Download with `hf download --local-dir FOLDER` (a cache of links is refused: a link can be changed afterwards).

```sh
sha256sum -c SHA256SUMS         # every file as published
qwen-omni-onnx verify FOLDER    # and interfaces, and golden cases on your machine: from the project's repository
```

`manifest.json` holds the SHA-256 of every file and tensor, all parameters, tool versions, gates and the machine."""
