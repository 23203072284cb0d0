"""Who has signed a published folder: OpenSSF model signatures, which the package model-signing checks.

A signature lies beside the manifest, as ``model.sig``. It is a Sigstore bundle over the SHA-256 of every other file,
the manifest among them; since the manifest has those of all files, nothing is read twice to check it. Anybody can check
it without this package: ``model_signing verify key FOLDER --signature FOLDER/model.sig --public_key KEY.pub``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.common.console import one_line
from qwen_omni_onnx.common.errors import UserError

__all__ = ["Trust", "digests", "in_words", "model_signing", "require_signed", "signed_manifest"]

_LARGEST = 16 * 2**20  # bytes of a signature: a hundred for each file


@dataclass(frozen=True)
class Trust:
    """Whom published folders have to be signed by: a key, somebody whom an authority vouches for, or an identity.

    Attributes:
        key: Public key, an elliptic curve's, in a PEM file.
        certificates: PEM file with the certificates of authorities that may have issued the signer's.
        identity: Identity that Sigstore has vouched for: a mail address, or the address of a workflow.
        issuer: Address of the service that has identified it to Sigstore.
    """

    key: Path | None = None
    certificates: Path | None = None
    identity: str | None = None
    issuer: str | None = None

    def __post_init__(self) -> None:
        """Refuse everything but one way to trust.

        Raises:
            UserError: None is given, several are, an identity comes without its issuer, or a file is missing.
        """
        ways = [self.key, self.certificates, self.identity or self.issuer]
        if sum(way is not None for way in ways) != 1:
            raise UserError("trust: give one of a public key, certificates, and an identity with its issuer")
        if (self.identity is None) != (self.issuer is None):
            raise UserError("trust: an identity is that of an issuer: give both")
        for file in (self.key, self.certificates):
            if file is not None and not file.is_file():
                raise UserError(f"{file}: no such file; give one in PEM format")

    @property
    def whom(self) -> str:
        """Whom this trusts, in words."""
        if self.key is not None:
            return f"the owner of {self.key}"
        if self.certificates is not None:
            return f"somebody whom {self.certificates} vouches for"
        return f"{self.identity}, whom {self.issuer} has identified"


def require_signed(folder: Path, manifest: Mapping[str, Any], trust: Trust, name: str | None = None) -> None:
    """Refuse a published folder that is not signed by whom the user trusts.

    Args:
        folder: Folder with a ``manifest.json`` and a ``model.sig``. No other file is read: whether they are as the
            manifest says, :func:`qwen_omni_onnx.common.artifact.check` tells.
        manifest: Its manifest.
        trust: Whom to trust.
        name: What messages call it; None: the folder.

    Raises:
        UserError: It is not signed, or by somebody else, or other files were; or model-signing is not installed.
    """
    signature, name = folder / artifact.SIGNATURE, name or str(folder)
    if not signature.is_file() or signature.is_symlink():
        raise UserError(
            f"{folder}: not signed: nobody has signed for these bytes; do not use it, or do not ask who has"
        )
    if signature.stat().st_size > _LARGEST:
        raise UserError(
            f"{name}: a signature of {signature.stat().st_size} bytes; no signature is that large; do not use it"
        )
    config = _verifying(trust)
    try:
        config.set_hashing_config(signed_manifest(folder.name, digests(folder, manifest)))
        config.verify(folder, signature)
    except Exception as error:  # by a library for cryptography, for certificates, for JSON, or for the network
        said = one_line(str(error) or type(error).__name__).rstrip(". ")
        raise UserError(f"{name}: not signed by {trust.whom} ({said}); do not use it") from None
    if trust.certificates is not None:
        _require_valid(signature, name)


def in_words(signed: bool, trust: Trust | None) -> str:
    """Return what is known of who has signed a folder that was found to be as it has to be.

    Args:
        signed: Whether there is a signature.
        trust: Whom it had to be signed by; None: nobody asked.
    """
    if trust is not None:
        return f"signed by {trust.whom}"
    if signed:
        return "signed, but nobody asked by whom: see --key, --certificates and --identity"
    return "not signed: whoever replaced its files and their hashes would go unnoticed"


def digests(folder: Path, manifest: Mapping[str, Any]) -> dict[str, str]:
    """Return the SHA-256 of every file that is signed: those that a manifest lists, and the manifest itself.

    Args:
        folder: Published folder.
        manifest: Its manifest.
    """
    listed = {name: entry["sha256"] for name, entry in manifest["files"].items()}
    return {**listed, artifact.MANIFEST: artifact.sha256(folder / artifact.MANIFEST)}


def signed_manifest(name: str, known: Mapping[str, str]) -> Any:
    """Return a configuration of model-signing that takes known hashes for those of the files of a folder.

    Args:
        name: Name of the folder.
        known: SHA-256 of each file, in hexadecimal.
    """
    model_signing()
    from model_signing import hashing, manifest
    from model_signing._hashing.hashing import Digest

    # As model-signing's own command writes it, so that it leaves out the same when it hashes the folder itself.
    ignored = [artifact.SIGNATURE, ".git", ".gitattributes", ".github", ".gitignore"]
    described = {"method": "files", "hash_type": "sha256", "allow_symlinks": False, "ignore_paths": ignored}

    class Known(hashing.Config):
        """Hashes that are known."""

        def add_ignored_paths(self, **_: object) -> None:
            """Ignore nothing, whatever a signature says."""

        def hash(self, *_: object, **__: object) -> manifest.Manifest:
            """Return the hashes."""
            kind = manifest.SerializationType.from_args(described)
            items = [kind.new_item(file, Digest("sha256", bytes.fromhex(known[file]))) for file in sorted(known)]
            return manifest.Manifest(name, items, kind)

    return Known()


def model_signing() -> ModuleType:
    """Import model-signing.

    Raises:
        UserError: It is not installed.
    """
    try:
        import model_signing
        import model_signing.signing
        import model_signing.verifying
    except ImportError as error:
        needed = "pip install 'model-signing>=1.1,<1.2' 'pyOpenSSL>=26'"  # as the extra `trust`
        raise UserError(f"signatures: {error}: {needed}") from None
    return model_signing


def _verifying(trust: Trust) -> Any:
    config = model_signing().verifying.Config()
    try:
        if trust.key is not None:
            return config.use_elliptic_key_verifier(public_key=trust.key)
        if trust.certificates is not None:
            return config.use_certificate_verifier(certificate_chain=[trust.certificates])
        return config.use_sigstore_verifier(identity=trust.identity, oidc_issuer=trust.issuer)
    except Exception as error:  # a library's own, for a file that is no key; or the network's, for Sigstore's own keys
        what = trust.key or trust.certificates or "Sigstore's own keys, which need the network"
        said = one_line(str(error) or type(error).__name__).rstrip(". ")
        raise UserError(f"{what}: cannot be used to check signatures ({said})") from None


def _require_valid(signature: Path, name: str) -> None:
    """Refuse a signature whose certificate has expired: nothing tells whether it was made before that.

    model-signing looks at a certificate as of the day that it became valid.

    Raises:
        UserError: The certificate is not valid today.
    """
    from base64 import b64decode
    from datetime import UTC, datetime

    from cryptography import x509

    bundle = artifact.read_json(signature)
    (raw, *_) = bundle["verificationMaterial"]["x509CertificateChain"]["certificates"]
    certificate = x509.load_der_x509_certificate(b64decode(raw["rawBytes"]))
    if datetime.now(UTC) > certificate.not_valid_after_utc:
        until = certificate.not_valid_after_utc.date()
        raise UserError(f"{name}: the signer's certificate has expired on {until}; ask for a new signature")
