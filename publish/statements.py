"""What is stated of a published folder: which tests it passed, and what it was built from, as in-toto statements.

https://in-toto.io/attestation/test-result/v0.1 and https://slsa.dev/provenance/v1, checked by in-toto-attestation. The
folder's signature covers them, as all files. They hang on the content alone: two builds state the same bytes.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from google.protobuf.json_format import ParseDict
from in_toto_attestation.predicates.provenance.v1 import provenance_pb2
from in_toto_attestation.predicates.test_result.v0 import test_result_pb2
from in_toto_attestation.v1 import statement_pb2
from in_toto_attestation.v1.statement import Statement

from publish.evidence import Evidence
from publish.manifest import Facts
from qwen_omni_onnx.common.identity import MODEL

__all__ = ["provenance", "tests"]

_STATEMENT = "https://in-toto.io/Statement/v1"
_TESTS, _PROVENANCE = "https://in-toto.io/attestation/test-result/v0.1", "https://slsa.dev/provenance/v1"
_PIPELINE = "urn:qwen-omni-onnx:dvc-repro"  # what was run; who ran it, a signature tells


def tests(evidence: Evidence, hashes: Mapping[str, str]) -> str:
    """Return the content of ``evidence/gates.intoto.json``: every limit that was kept, for these files.

    Args:
        evidence: Artifacts and reports of the component; its gate is green.
        hashes: SHA-256 of the files that were judged, by their paths in the folder.
    """
    limits = json.dumps(evidence.gate.limits, sort_keys=True).encode()
    predicate = {
        "result": "PASSED",
        "configuration": [
            {
                "name": f"params.yaml: {evidence.component.name}.gates",
                "digest": {"sha256": hashlib.sha256(limits).hexdigest()},
                "content": base64.b64encode(limits).decode(),
                "mediaType": "application/json",
            }
        ],
        "passedTests": [
            f"{verdict.of}: {verdict.label} {verdict.comparison} {verdict.limit:g} {verdict.unit}".rstrip()
            for verdict in evidence.gate.verdicts
        ],
        "warnedTests": [],
        "failedTests": [],
    }
    ParseDict(predicate, test_result_pb2.TestResult())
    return _statement(hashes, _TESTS, predicate)


def provenance(facts: Facts, hashes: Mapping[str, str]) -> str:
    """Return the content of ``evidence/provenance.intoto.json``: checkpoint, program, tools, and parameters.

    Args:
        facts: The manifest's facts.
        hashes: SHA-256 of the files that were built, by their paths in the folder.
    """
    model, program = facts["source"][MODEL], facts["program"]
    checkpoint: dict[str, Any] = {"name": f"checkpoint {model['name']}"}
    if repository := model.get("repository"):
        checkpoint["uri"] = f"pkg:huggingface/{repository}"
        if revision := model.get("revision"):
            checkpoint["digest"] = {"gitCommit": revision}
    own: dict[str, Any] = {"name": "qwen-omni-onnx"}
    if program["commit"]:
        own["digest"] = {"gitCommit": program["commit"]}
    tools = [{"name": name, "uri": f"pkg:pypi/{name.lower()}@{at}"} for name, at in sorted(facts["tools"].items())]
    predicate = {
        "buildDefinition": {
            "buildType": f"{_PIPELINE}:v1",
            "externalParameters": {"component": facts["component"], "parameters": facts["parameters"]},
            "internalParameters": {"source": facts["source"], "modified": program["modified"]},
            "resolvedDependencies": [checkpoint, own, *tools],
        },
        "runDetails": {"builder": {"id": _PIPELINE}},
    }
    ParseDict(predicate, provenance_pb2.Provenance())
    return _statement(hashes, _PROVENANCE, predicate)


def _statement(hashes: Mapping[str, str], kind: str, predicate: dict[str, Any]) -> str:
    content = {
        "_type": _STATEMENT,
        "subject": [{"name": name, "digest": {"sha256": sha256}} for name, sha256 in sorted(hashes.items())],
        "predicateType": kind,
        "predicate": predicate,
    }
    Statement.copy_from_pb(ParseDict(content, statement_pb2.Statement())).validate()
    return json.dumps(content, indent=2, sort_keys=True) + "\n"
