"""The model card, generated from the reports: no figure in it that was not measured."""

from __future__ import annotations

from typing import Any

from omni.contract import GraphContract
from publish.evidence import Evidence

__all__ = ["render"]


def render(evidence: Evidence, stem: str, contract: GraphContract) -> str:
    """Return ``README.md`` of a published folder."""
    sections = [
        _front_matter(evidence),
        f"# {evidence.name}",
        _warnings(evidence),
        evidence.component.summary,
        _interface(stem, contract),
        _use(evidence, stem, contract),
        _measured(evidence),
        _gates(evidence),
        _verify(),
        _provenance(evidence),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _front_matter(evidence: Evidence) -> str:
    lines = ["license: apache-2.0", "library_name: onnxruntime", "tags: [onnx, int8, qwen2.5-omni, speech]"]
    if not evidence.synthetic:
        lines.append(f"base_model: {evidence.source['checkpoint']}")
    return "\n".join(["---", *lines, "---"])


def _warnings(evidence: Evidence) -> str:
    said = []
    if evidence.synthetic:
        said.append(
            "**Synthetic weights.** This was built from seeded random weights of the real shapes, to prove the "
            "pipeline. It computes nothing useful; every figure below is about these weights, not about Qwen2.5-Omni."
        )
    if evidence.component.caveat:
        said.append(f"**{evidence.component.caveat}**")
    return "\n>\n".join(f"> {line}" for line in said)


def _interface(stem: str, contract: GraphContract) -> str:
    rows = [f"| {way} | `{p.name}` | {p.dtype} | [{', '.join(map(str, p.shape))}] |"
            for way, ports in (("input", contract.inputs), ("output", contract.outputs)) for p in ports]  # fmt: skip
    head = f"## Interface of `{stem}.onnx` and `{stem}_int8.onnx`\n\n| | name | type | shape |\n|---|---|---|---|\n"
    return head + "\n".join(rows)


def _use(evidence: Evidence, stem: str, contract: GraphContract) -> str:
    options = evidence.sessions.get("quantized")
    swept = (
        f"\n\nThe fastest session options for the quantized graph on the machine below: {options['threads']} threads, "
        f"graph optimization `{options['optimization']}`, `{options['provider']}`."
        if options
        else ""
    )
    (port,) = contract.inputs
    (output,) = contract.outputs
    return f"""## Use

```python
import os
os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # ONNX Runtime's Linux builds report usage otherwise; before its import
import numpy as np, onnxruntime as ort

options = ort.SessionOptions()
options.add_session_config_entry("session.x64quantprecision", "1")  # exact INT8 sums on x86 without VNNI too
session = ort.InferenceSession("onnx/{stem}_int8.onnx", options, providers=["CPUExecutionProvider"])
{port.name} = np.zeros({tuple(port.sized({"batch": 1, "seq": 50}))}, np.float32)
({output.name},) = session.run(None, {{"{port.name}": {port.name}}})
```

Stock ONNX Runtime 1.31 or later; no PyTorch. The INT8 kernels need a processor with VNNI (or ARM dot-product)
instructions to be as fast as they can; x86 without them saturates its 16-bit sums unless the option above is set.{swept}"""


def _measured(evidence: Evidence) -> str:
    parity, latency = evidence.reports["parity"]["graphs"], evidence.reports["latency"]
    agreement = "\n".join(
        f"| {kind} | {found['sqnr_db']:.1f} | {found['cosine']:.6f} | {found['max_abs']:.2g} | {found['top1']:.4f} | "
        f"{found['top1_near_tie']:.4f} |"
        for kind, found in parity.items()
    )
    speed = "\n".join(
        f"| {e['seq']} | {e['float32_ms']:.2f} | {e['quantized_ms']:.2f} | {e['speedup']:.2f} "
        f"({e['speedup_low']:.2f} to {e['speedup_high']:.2f}) |"
        for e in latency["lengths"]
    )
    machine, threads = latency["machine"], latency["threads"] or latency["machine"]["cores"]
    return f"""## Measured

Against PyTorch in float32, on held-out inputs (the worst case; top-1 over all tokens):

| graph | SQNR dB | cosine | largest difference | top-1 | top-1, near ties equal |
|---|---|---|---|---|---|
{agreement}

Latency on {machine["processor"]} ({machine["instructions"]}), {threads} threads, ONNX Runtime \
{machine["onnxruntime"]}, medians of interleaved runs; speed-up with its 95 % interval:

| tokens | float32 ms | quantized ms | speed-up |
|---|---|---|---|
{speed}"""


def _gates(evidence: Evidence) -> str:
    rows = "\n".join(_gate(verdict) for verdict in evidence.reports["gate"]["verdicts"])
    head = "## Gates\n\nAll green when this was published:\n\n| graph | metric | value | limit |\n|---|---|---|---|\n"
    return head + rows


def _gate(verdict: dict[str, Any]) -> str:
    value = f"{verdict['value']:.4g} {verdict['unit']}".strip()
    return f"| {verdict['graph']} | {verdict['metric']} | {value} | {verdict['sense']} {verdict['limit']:g} |"


def _verify() -> str:
    return """## Verify

Download with `hf download --local-dir FOLDER` (a cache of links is refused: a link can be changed afterwards).

```sh
sha256sum -c SHA256SUMS                # every file as published
python -m validate parity FOLDER       # golden cases on your machine; from the project's repository, no PyTorch
```

`manifest.json` holds the SHA-256 of every file and tensor, all parameters, tool versions, gates and the machine."""


def _provenance(evidence: Evidence) -> str:
    source = evidence.source
    commit = f" at commit `{source['commit']}`" if "commit" in source else ""
    seed = f", seed {source['seed']}" if "seed" in source else ""
    schemes = sorted({entry["scheme"] for entry in evidence.quantization.values()})
    return f"""## Made from

Weights: {source["checkpoint"]}{commit}{seed}. Quantization: {", ".join(schemes)}. Qwen2.5-Omni-7B is published by \
the Qwen team under the Apache License 2.0."""
