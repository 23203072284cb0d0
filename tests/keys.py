"""Keys and certificates made for a test."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

__all__ = ["Authority", "Issued", "key_pair"]

_TODAY = datetime.datetime.now(datetime.UTC)
_PEM = serialization.Encoding.PEM


def key_pair(folder: Path, name: str = "signer") -> tuple[Path, Path]:
    """Write a private and a public key; return both files."""
    key = ec.generate_private_key(ec.SECP256R1())
    return _write_key(folder / f"{name}.pem", key), _write(folder / f"{name}.pub", _public(key))


@dataclass(frozen=True)
class Issued:
    """A key, and its certificate."""

    key: Path
    certificate: Path


class Authority:
    """Issues certificates, to signers and to authorities between.

    Args:
        folder: Folder of its files.
        name: Its name.
        by: Who has issued its own certificate; None: itself.
    """

    def __init__(self, folder: Path, name: str, by: Authority | None = None) -> None:
        self._folder, self._key = folder, ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        issuer = by or self
        built = self._builder(self._name, self._key, 3650, issuer).add_extension(
            x509.BasicConstraints(ca=True, path_length=None), critical=True
        )
        self.certificate = self._issue(built, name, issuer)

    def issue(self, name: str, *, days: int = 30, signs: bool = True, identity: str | None = None) -> Issued:
        """Issue a certificate that ends in so many days; it is 100 days old.

        Args:
            name: Name of the signer.
            days: Days from now on.
            signs: Whether it may be used to sign.
            identity: Address of a workflow that it names.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        usage = x509.KeyUsage(
            digital_signature=signs, content_commitment=False, key_encipherment=not signs, data_encipherment=False,
            key_agreement=False, key_cert_sign=False, crl_sign=False, encipher_only=False, decipher_only=False,
        )  # fmt: skip
        built = self._builder(subject, key, days, self).add_extension(usage, critical=True)
        if identity is not None:
            names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(identity)])
            built = built.add_extension(names, critical=False)
        return Issued(_write_key(self._folder / f"{name}.pem", key), self._issue(built, name, self))

    def _builder(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, days: int, issuer: Authority
    ) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(_TODAY - datetime.timedelta(days=100))
            .not_valid_after(_TODAY + datetime.timedelta(days=days))
        )

    def _issue(self, built: x509.CertificateBuilder, name: str, issuer: Authority) -> Path:
        signed = built.sign(issuer._key, hashes.SHA256())
        return _write(self._folder / f"{name}.crt", signed.public_bytes(_PEM))


def _public(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(_PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def _write_key(place: Path, key: ec.EllipticCurvePrivateKey) -> Path:
    kind = serialization.PrivateFormat.PKCS8
    return _write(place, key.private_bytes(_PEM, kind, serialization.NoEncryption()))


def _write(place: Path, content: bytes) -> Path:
    place.write_bytes(content)
    return place
