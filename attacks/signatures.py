"""Attempts on a folder that is signed, as ``qwen-omni-onnx verify --key`` sees it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from attacks.attempt import Attempt, Target, reseal, try_mutations, verify_folder
from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.trust import Trust, digests, model_signing, require_signed, signed_manifest

__all__ = ["ATTEMPTS", "verify_signed"]

_SMALL, _OTHER = "projection", "frontend"
_KEY = "key.pub"  # beside the folder
_PEM = serialization.Encoding.PEM


def verify_signed(folder: str, seconds: float) -> None:
    """Refuse a published folder as ``qwen-omni-onnx verify --key`` does.

    Raises:
        UserError: It is not signed by the key beside it, not as published, or misses a limit.
    """
    place = Path(folder)
    require_signed(place, artifact.read_manifest(place), Trust(key=place.parent / _KEY))
    verify_folder(folder, seconds)


def _signed(target: Target, component: str = _SMALL) -> Path:
    """Return a copy of a published folder that is signed, with the public key beside it."""
    folder, key = target.copy(component), ec.generate_private_key(ec.SECP256R1())
    private = folder.parent / "key.pem"
    private.write_bytes(key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    public = key.public_key().public_bytes(_PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    (folder.parent / _KEY).write_bytes(public)
    config = model_signing().signing.Config().use_elliptic_key_signer(private_key=private)
    known = signed_manifest(folder.name, digests(folder, artifact.read_manifest(folder)))
    config.set_hashing_config(known).sign(folder, folder / artifact.SIGNATURE)
    private.unlink()
    return folder


def _mutations(target: Target) -> list[str]:
    """Change random bytes of all files of a signed folder, the manifest among them."""
    target, random = replace(target, accepts=verify_signed), target.random("signed")
    folder = _signed(target)
    manifest = folder / artifact.MANIFEST
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != artifact.SIGNATURE)
    return try_mutations(target, folder, lambda number: random.choice(files) if number % 4 else manifest, random)


def _forged(target: Target) -> list[str]:
    """Take another folder's signature, another key's, none, or one whose statement was changed."""
    target, gave_way = replace(target, accepts=verify_signed), []

    def other_files(folder: Path) -> None:
        (folder / "README.md").write_text("Another card.\n", encoding="utf-8")
        (folder / artifact.SIGNATURE).rename(folder.parent / "kept")
        reseal(folder)
        (folder.parent / "kept").rename(folder / artifact.SIGNATURE)

    def other_limits(folder: Path) -> None:
        manifest = artifact.read_manifest(folder)
        gates = [{**gate, "limit": -1e9 if gate["comparison"] == ">=" else 1e9} for gate in manifest["gates"]]
        artifact.write_json(folder / artifact.MANIFEST, {**manifest, "gates": gates})

    def no_signature(folder: Path) -> None:
        (folder / artifact.SIGNATURE).unlink()

    def of_another_folder(folder: Path) -> None:
        other = _signed(target, _OTHER)
        shutil.copy(other / artifact.SIGNATURE, folder)
        shutil.copy(other.parent / _KEY, folder.parent)

    def by_another_key(folder: Path) -> None:
        shutil.copy(_signed(target).parent / _KEY, folder.parent)

    def without_signatures(folder: Path) -> None:
        _rewrite(folder, {"signatures": []})

    def of_another_type(folder: Path) -> None:
        _rewrite(folder, {"payloadType": "text/plain"})

    for forge in (
        other_files, other_limits, no_signature, of_another_folder, by_another_key, without_signatures, of_another_type
    ):  # fmt: skip
        folder = _signed(target)
        assert target.try_folder(folder).kind == "accepted"
        forge(folder)
        outcome = target.try_folder(folder)
        if outcome.kind != "refused":
            gave_way.append(f"{forge.__name__}: {outcome.kind}: {outcome.said}")
    return gave_way


def _rewrite(folder: Path, changes: dict[str, object]) -> None:
    signature = folder / artifact.SIGNATURE
    bundle = json.loads(signature.read_text(encoding="utf-8"))
    bundle["dsseEnvelope"] |= changes
    signature.write_text(json.dumps(bundle), encoding="utf-8")


ATTEMPTS = (
    Attempt(
        "signed-mutations",
        "random bytes of all files of a signed folder, the manifest among them, are changed in the same ways, 1,000 "
        "times",
        "each is refused: the signature is over other bytes",
        _mutations,
    ),
    Attempt(
        "signed-forged",
        "a signed folder gets other files or limits with all hashes recomputed, another folder's signature, another "
        "key's, none, or one that was changed",
        "refused before a graph is opened",
        _forged,
    ),
)
