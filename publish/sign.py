"""Signs published folders: OpenSSF model signatures, by a key, by a certificate, or by the identity of a CI job."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from sigstore.oidc import detect_credential

from omni.quiet import quiet
from qwen_omni_onnx.common import output
from qwen_omni_onnx.common.console import one_line
from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.trust import model_signing, signed_manifest

__all__ = ["Signer", "covers"]


@dataclass(frozen=True)
class Signer:
    """Who signs.

    Attributes:
        key: Private key, an elliptic curve's, in a PEM file without a password; None: the identity that the CI job has
            been given, which Sigstore vouches for.
        certificate: Certificate of that key, in a PEM file; receivers then trust who issued it.
        chain: PEM file with the certificates between that one and an authority that receivers know.
    """

    key: Path | None = None
    certificate: Path | None = None
    chain: Path | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot sign, before anything else is done.

        Raises:
            UserError: A file is missing, or holds no such thing; or the certificate is another key's.
        """
        if self.certificate is not None and self.key is None:
            raise UserError("--certificate: nothing without its key; give --sign-key")
        if self.chain is not None and self.certificate is None:
            raise UserError("--chain: nothing without the certificate that it leads to; give --certificate")
        for file in (self.key, self.certificate, self.chain):
            if file is not None and not file.is_file():
                raise UserError(f"{file}: no such file; give one in PEM format")
        if self.key is not None:
            self._config()

    def sign(self, name: str, digests: Mapping[str, str]) -> bytes:
        """Return the signature of a folder: the content of its ``model.sig``.

        Args:
            name: Name of the folder.
            digests: SHA-256 of each file, as :func:`qwen_omni_onnx.trust.digests` gives them.

        Raises:
            UserError: There is no identity to sign by, or Sigstore cannot be reached.
        """
        with output.temporary_folder() as folder:
            place = folder / "signature"
            try:
                with quiet():
                    self._config().set_hashing_config(signed_manifest(name, digests)).sign(folder, place)
            except UserError:
                raise
            except Exception as error:  # by a library for cryptography, or for the network
                raise UserError(f"{name}: not signed ({_said(error)})") from None
            return place.read_bytes()

    def has_signed(self, signature: bytes, digests: Mapping[str, str]) -> bool:
        """Return whether a signature that is there already will do: it is over these files, and by this signer.

        Args:
            signature: Content of a ``model.sig``.
            digests: As :meth:`sign` takes them.
        """
        if not covers(signature, digests):
            return False
        try:
            material = json.loads(signature)["verificationMaterial"]
            if self.certificate is not None:
                (first, *_) = material["x509CertificateChain"]["certificates"]
                own = x509.load_pem_x509_certificate(self.certificate.read_bytes())
                return bool(base64.b64decode(first["rawBytes"]) == own.public_bytes(serialization.Encoding.DER))
            if self.key is not None:
                return bool(material["publicKey"]["hint"] == _hint(self.key))
            return _is_own(x509.load_der_x509_certificate(base64.b64decode(material["certificate"]["rawBytes"])))
        except (ValueError, LookupError, TypeError, x509.ExtensionNotFound):
            return False

    def _config(self) -> Any:
        config = model_signing().signing.Config()
        try:
            if self.key is None:
                return config.use_sigstore_signer(use_ambient_credentials=True)
            if self.certificate is None:
                return config.use_elliptic_key_signer(private_key=self.key)
            chain = [self.chain or self.certificate]  # model-signing takes no empty chain
            return config.use_certificate_signer(
                private_key=self.key, signing_certificate=self.certificate, certificate_chain=chain
            )
        except Exception as error:  # a library's own, for a file that is no key, or has a password
            what = self.certificate or self.key or "Sigstore, which needs the network"
            raise UserError(f"{what}: cannot be used to sign ({_said(error)})") from None


def covers(signature: bytes, digests: Mapping[str, str]) -> bool:
    """Return whether a signature says that it is over these files, whoever has made it.

    Args:
        signature: Content of a ``model.sig``.
        digests: SHA-256 of each file.
    """
    try:
        statement = json.loads(base64.b64decode(json.loads(signature)["dsseEnvelope"]["payload"]))
        signed = {entry["name"]: entry["digest"] for entry in statement["predicate"]["resources"]}
    except (ValueError, LookupError, TypeError, RecursionError):
        return False
    return signed == dict(digests)


def _is_own(certificate: x509.Certificate) -> bool:
    """Return whether Sigstore has issued a certificate to the identity of this CI job.

    It names a mail address, or a workflow and the branch or tag that it ran for, each of which has an ``@``; the job's
    token has the same in one of its claims.
    """
    token = detect_credential()
    if token is None:
        return False
    claims = json.loads(base64.urlsafe_b64decode(f"{token.split('.')[1]}=="))
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    named = [*names.get_values_for_type(x509.RFC822Name), *names.get_values_for_type(x509.UniformResourceIdentifier)]
    identities = [claim for claim in claims.values() if isinstance(claim, str) and "@" in claim]
    return any(name == claim or name.endswith(f"/{claim}") for name in named for claim in identities)


def _hint(key: Path) -> str:
    """Return by what a signature names the key that it was made with: the SHA-256 of the public one, in PEM format."""
    public = serialization.load_pem_private_key(key.read_bytes(), None).public_key()
    pem = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(pem).hexdigest()


def _said(error: Exception) -> str:
    return one_line(str(error) or type(error).__name__).rstrip(". ")
