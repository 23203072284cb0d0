"""The bill of materials of a published folder: CycloneDX 1.6 with a model card, filled from the record of the gate.

https://cyclonedx.org/docs/1.6/json/
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from publish.evidence import Evidence
from publish.manifest import Facts, Interface
from qwen_omni_onnx.common.agreement import Verdict
from qwen_omni_onnx.common.console import one_line
from qwen_omni_onnx.common.errors import UserError

__all__ = ["FILE", "render", "require_valid"]

FILE = "evidence/bom.cdx.json"

_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_DNS, "qwen-omni-onnx")  # of serial numbers that hang on the content alone
_SPDX = {"apache-2.0": "Apache-2.0", "mit": "MIT", "bsd-3-clause": "BSD-3-Clause", "cc-by-4.0": "CC-BY-4.0"}
_OWN_LICENCE = "Apache-2.0"


def render(evidence: Evidence, facts: Facts, hashes: Mapping[str, str]) -> str:
    """Return the content of this file, the same for the same folder.

    Args:
        evidence: Artifacts and reports of the component.
        facts: The manifest's facts.
        hashes: SHA-256 of every file that it lists, by its path in the folder.
    """
    checkpoint, files = _checkpoint(evidence), [_file(name, sha256) for name, sha256 in sorted(hashes.items())]
    model = {
        "type": "machine-learning-model",
        "bom-ref": evidence.name,
        "name": evidence.name,
        "description": evidence.component.summary,
        "licenses": [_licence(evidence)],
        "pedigree": {"ancestors": [checkpoint], "notes": "exported to ONNX, and quantized"},
        "modelCard": _card(evidence, facts),
    }
    tools = [
        {"type": "library", "name": name, "version": version, "purl": f"pkg:pypi/{name.lower()}@{version}"}
        for name, version in sorted(facts["tools"].items())
    ]
    program = {"type": "application", "name": "qwen-omni-onnx", "licenses": [{"license": {"id": _OWN_LICENCE}}]}
    if commit := facts["program"]["commit"]:
        program["version"] = commit
    content = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"tools": {"components": [program, *tools]}, "component": model},
        "components": files,
        "dependencies": [{"ref": evidence.name, "dependsOn": [str(file["bom-ref"]) for file in files]}],
    }
    content["serialNumber"] = f"urn:uuid:{uuid.uuid5(_NAMESPACE, json.dumps(content, sort_keys=True))}"
    return json.dumps(content, indent=2, sort_keys=True) + "\n"


def require_valid(place: Path) -> None:
    """Refuse a bill of materials that the schema does not allow, by what cyclonedx-python-lib brings.

    Args:
        place: The file.

    Raises:
        UserError: It is none.
    """
    from cyclonedx.schema import SchemaVersion  # seconds, which a stage of the pipeline does not spend
    from cyclonedx.validation.json import JsonStrictValidator

    if wrong := JsonStrictValidator(SchemaVersion.V1_6).validate_str(place.read_text(encoding="utf-8")):
        raise UserError(f"{place}: no bill of materials by CycloneDX 1.6 ({one_line(str(wrong))}); publish again")


def _card(evidence: Evidence, facts: Facts) -> dict[str, Any]:
    interfaces = facts["interface"].items()
    schemes = ", ".join(sorted(evidence.schemes)) or "float32"
    limits = [evidence.component.caveat] if evidence.component.caveat else []
    if evidence.synthetic:
        limits.append("The weights are synthetic: it computes, and means nothing.")
    card: dict[str, Any] = {
        "modelParameters": {
            "task": evidence.component.name,
            "modelArchitecture": f"{evidence.model.name}, {evidence.component.name}",
            "inputs": [{"format": port} for stem, found in interfaces for port in _ports(stem, found, "inputs")],
            "outputs": [{"format": port} for stem, found in interfaces for port in _ports(stem, found, "outputs")],
        },
        "quantitativeAnalysis": {"performanceMetrics": [_metric(verdict) for verdict in facts["gates"]]},
        "properties": [
            {"name": "qwen-omni-onnx:quantization", "value": schemes},
            *(
                {"name": f"qwen-omni-onnx:machine:{key}", "value": str(value)}
                for key, value in facts["machine"].items()
            ),
        ],
    }
    if limits:
        card["considerations"] = {"technicalLimitations": limits}
    return card


def _ports(stem: str, interface: Interface, direction: str) -> list[str]:
    ports = interface["inputs"] if direction == "inputs" else interface["outputs"]
    return [f"{stem}: {port['name']} {port['dtype']} [{', '.join(map(str, port['shape']))}]" for port in ports]


def _metric(verdict: Verdict) -> dict[str, str]:
    """Return a metric that was judged, and its limit."""
    unit = f" {verdict.unit}" if verdict.unit else ""
    value = "none" if verdict.value is None else f"{verdict.value:.6g}{unit}"
    return {
        "type": f"{verdict.metric}: {verdict.label}",
        "value": f"{value} (limit {verdict.comparison} {verdict.limit:g}{unit})",
        "slice": verdict.of,
    }


def _checkpoint(evidence: Evidence) -> dict[str, Any]:
    model = evidence.model
    found: dict[str, Any] = {"type": "machine-learning-model", "name": model.name, "licenses": [_licence(evidence)]}
    if evidence.synthetic:
        found["description"] = f"synthetic weights in the shapes of {model.name}, seed {evidence.source['seed']}"
    elif model.repository:
        at = f"@{model.revision}" if model.revision else ""
        found["purl"] = f"pkg:huggingface/{model.repository}{at}"
        found["externalReferences"] = [{"type": "distribution", "url": f"https://huggingface.co/{model.repository}"}]
    return found


def _licence(evidence: Evidence) -> dict[str, Any]:
    model = evidence.model
    if evidence.synthetic:
        return {"license": {"id": _OWN_LICENCE}}
    if known := _SPDX.get(model.license):
        return {"license": {"id": known}}
    return {"license": {"name": model.license_name or model.license}}


def _file(name: str, sha256: str) -> dict[str, Any]:
    return {"type": "file", "bom-ref": name, "name": name, "hashes": [{"alg": "SHA-256", "content": sha256}]}
