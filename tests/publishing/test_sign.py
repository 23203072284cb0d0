"""When a signature that is there already is kept."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from keys import Authority, key_pair

from publish.sign import Signer

DIGESTS = {"manifest.json": "0" * 64, "README.md": "1" * 64}
WORKFLOW = "someone/omni/.github/workflows/publish.yml@refs/"


def test_a_key_keeps_its_own_signature_over_the_same_files(tmp_path: Path) -> None:
    private, _ = key_pair(tmp_path)
    other, _ = key_pair(tmp_path, "other")
    signature = Signer(private).sign("model", DIGESTS)

    assert Signer(private).has_signed(signature, DIGESTS)
    assert not Signer(other).has_signed(signature, DIGESTS)
    assert not Signer(private).has_signed(signature, {**DIGESTS, "README.md": "2" * 64})
    assert not Signer(private).has_signed(signature, {"manifest.json": "0" * 64})
    for content in (b"", b"{}", b"[]", b"3", signature[:-30], b"[" * 100_000):
        assert not Signer(private).has_signed(content, DIGESTS)


def test_a_certificate_keeps_its_own_signature(tmp_path: Path) -> None:
    root = Authority(tmp_path, "root")
    one, other = root.issue("one"), root.issue("other")
    signature = Signer(one.key, one.certificate).sign("model", DIGESTS)

    assert Signer(one.key, one.certificate).has_signed(signature, DIGESTS)
    assert not Signer(other.key, other.certificate).has_signed(signature, DIGESTS)
    assert not Signer(one.key).has_signed(signature, DIGESTS)


@pytest.mark.parametrize(
    ("claims", "kept"),
    [
        ({"job_workflow_ref": f"{WORKFLOW}heads/main", "sub": "repo:someone/omni"}, True),
        ({"job_workflow_ref": f"{WORKFLOW}tags/v1", "sub": "repo:someone/omni"}, False),
        ({"job_workflow_ref": "n@refs/heads/main", "actor": "main"}, False),
        ({}, False),
        (None, False),
    ],
)
def test_the_identity_of_a_workflow_keeps_what_it_signed_for_the_same_branch(
    claims: dict[str, str] | None, kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    issued = Authority(tmp_path, "root").issue("one", identity=f"https://github.com/{WORKFLOW}heads/main")
    bundle = json.loads(Signer(issued.key, issued.certificate).sign("model", DIGESTS))
    raw = x509.load_pem_x509_certificate(issued.certificate.read_bytes()).public_bytes(Encoding.DER)
    bundle["verificationMaterial"] = {"certificate": {"rawBytes": base64.b64encode(raw).decode()}}  # as Sigstore has it
    payload = base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b"=").decode()
    monkeypatch.setattr("publish.sign.detect_credential", lambda: None if claims is None else f"e30.{payload}.e30")

    assert Signer().has_signed(json.dumps(bundle).encode(), DIGESTS) is kept
