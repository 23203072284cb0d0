"""Who has signed a published folder, and what is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from cli import verify as check
from conftest import ROOT
from keys import Authority, key_pair

from publish.sign import Signer
from qwen_omni_onnx.bundle import load
from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.trust import Trust, digests, require_signed

EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
FILES = {"README.md": b"A card.\n", "onnx/graph.onnx": b"\0graph", "golden/golden.safetensors": bytes(100)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that is published as far as hashes tell."""
    place = tmp_path / "published/model"
    with artifact.writing(place, kind="published", component="projection", name="model") as beside:
        for name, content in FILES.items():
            (beside / name).parent.mkdir(exist_ok=True)
            (beside / name).write_bytes(content)
    return place


def sign(folder: Path, signer: Signer) -> None:
    known = digests(folder, artifact.read_manifest(folder))
    (folder / artifact.SIGNATURE).write_bytes(signer.sign(folder.name, known))


def refused(message: Callable[..., str], folder: Path, trust: Trust) -> str:
    return message(require_signed, folder, artifact.read_manifest(folder), trust)


def test_what_a_key_has_signed_is_taken_for_that_key_alone(
    folder: Path, tmp_path: Path, message: Callable[..., str]
) -> None:
    private, public = key_pair(tmp_path)
    _, other = key_pair(tmp_path, "other")
    assert refused(message, folder, Trust(public)) == (
        f"{folder}: not signed: nobody has signed for these bytes; do not use it, or do not ask who has"
    )

    sign(folder, Signer(private))

    require_signed(folder, artifact.check(folder), Trust(public))
    assert refused(message, folder, Trust(other)).startswith(
        f"{folder}: not signed by the owner of {other} (Key mismatch"
    )
    assert artifact.unlisted(folder, artifact.read_manifest(folder)) == []


def test_another_program_that_knows_the_specification_takes_the_signature(folder: Path, tmp_path: Path) -> None:
    private, public = key_pair(tmp_path)
    sign(folder, Signer(private))
    (folder / ".gitattributes").write_text("*.onnx filter=lfs\n")  # by the hub
    command = [
        sys.executable, "-m", "model_signing", "verify", "key", str(folder),
        "--signature", str(folder / "model.sig"), "--public_key", str(public),
    ]  # fmt: skip

    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    (folder / "README.md").write_text("Another card.\n")
    assert subprocess.run(command, capture_output=True, check=False).returncode != 0


@pytest.mark.parametrize("name", [*FILES, artifact.MANIFEST])
def test_a_byte_that_was_changed_with_its_hash_is_found(
    name: str, folder: Path, tmp_path: Path, message: Callable[..., str]
) -> None:
    private, public = key_pair(tmp_path)
    sign(folder, Signer(private))
    manifest = artifact.read_manifest(folder)
    if name == artifact.MANIFEST:
        artifact.write_json(folder / name, {**manifest, "gates": []})
    else:
        (folder / name).write_bytes(FILES[name] + b"!")
        manifest["files"][name] = {
            "bytes": len(FILES[name]) + 1,
            "sha256": artifact.sha256(folder / name),
        }
        artifact.write_json(folder / artifact.MANIFEST, manifest)

    artifact.check(folder)  # hashes alone see nothing
    assert "Signature mismatch" in refused(message, folder, Trust(public))


def test_a_file_more_and_a_file_less_are_found(folder: Path, tmp_path: Path, message: Callable[..., str]) -> None:
    private, public = key_pair(tmp_path)
    sign(folder, Signer(private))
    manifest = artifact.read_manifest(folder)
    (folder / "extra").write_bytes(b"x")
    more = {"bytes": 1, "sha256": artifact.sha256(folder / "extra")}
    artifact.write_json(folder / artifact.MANIFEST, {**manifest, "files": {**manifest["files"], "extra": more}})
    assert "Extra files" in refused(message, folder, Trust(public))

    (folder / "extra").unlink()
    (folder / "README.md").unlink()
    manifest["files"].pop("README.md")
    artifact.write_json(folder / artifact.MANIFEST, manifest)
    assert "Missing files" in refused(message, folder, Trust(public))


def test_the_signature_of_another_folder_is_none(folder: Path, tmp_path: Path, message: Callable[..., str]) -> None:
    private, public = key_pair(tmp_path)
    other = folder.with_name("other")
    with artifact.writing(other, kind="published", component="encoder", name="other") as beside:
        (beside / "README.md").write_text("Another card.\n")
    sign(other, Signer(private))
    shutil.copyfile(other / artifact.SIGNATURE, folder / artifact.SIGNATURE)

    assert "Signature mismatch" in refused(message, folder, Trust(public))


def test_what_is_no_signature_gets_one_line(folder: Path, tmp_path: Path, message: Callable[..., str]) -> None:
    private, public = key_pair(tmp_path)
    sign(folder, Signer(private))
    signature = folder / artifact.SIGNATURE
    whole = json.loads(signature.read_text())
    forged = [
        b"", b"\xff\xfe", b"3", b"[]", b"{}", b"[" * 100_000, b"null", signature.read_bytes()[:-40],
        json.dumps({**whole, "dsseEnvelope": {}}).encode(),
        json.dumps({**whole, "dsseEnvelope": {**whole["dsseEnvelope"], "signatures": []}}).encode(),
        json.dumps({**whole, "dsseEnvelope": {**whole["dsseEnvelope"], "payload": "\x1b[2J"}}).encode(),
    ]  # fmt: skip
    for content in forged:
        signature.write_bytes(content)
        said = refused(message, folder, Trust(public))
        assert said.isprintable()
        assert said.startswith(f"{folder}: not signed by the owner of ")
    with signature.open("wb") as file:
        file.truncate(2**30)
    assert "no signature is that large" in refused(message, folder, Trust(public))
    signature.unlink()
    signature.symlink_to(tmp_path / "elsewhere.sig")
    assert "nobody has signed" in refused(message, folder, Trust(public))


def test_a_certificate_is_trusted_by_who_has_issued_it(
    folder: Path, tmp_path: Path, message: Callable[..., str]
) -> None:
    root, other = Authority(tmp_path, "root"), Authority(tmp_path, "stranger")
    between = Authority(tmp_path, "between", root)
    signer = between.issue("signer")

    sign(folder, Signer(signer.key, signer.certificate, between.certificate))

    require_signed(folder, artifact.read_manifest(folder), Trust(certificates=root.certificate))
    said = refused(message, folder, Trust(certificates=other.certificate))
    assert said.startswith(f"{folder}: not signed by somebody whom {other.certificate} vouches for (")
    sign(folder, Signer(signer.key, signer.certificate))
    assert "not signed by somebody" in refused(
        message, folder, Trust(certificates=root.certificate)
    )  # a gap in the chain


def test_a_certificate_that_expired_or_is_for_something_else_is_none(
    folder: Path, tmp_path: Path, message: Callable[..., str]
) -> None:
    root = Authority(tmp_path, "root")
    trust = Trust(certificates=root.certificate)
    expired, sealed = root.issue("expired", days=-1), root.issue("sealed", signs=False)
    sign(folder, Signer(expired.key, expired.certificate))
    assert "the signer's certificate has expired on " in refused(message, folder, trust)
    sign(folder, Signer(sealed.key, sealed.certificate))
    assert "cannot be used for signing" in refused(message, folder, trust)


def test_keys_that_are_none_get_one_line(folder: Path, tmp_path: Path, message: Callable[..., str]) -> None:
    private, public = key_pair(tmp_path)
    (tmp_path / "text").write_text("no key")
    sign(folder, Signer(private))
    assert "cannot be used to check signatures" in refused(message, folder, Trust(tmp_path / "text"))
    assert "cannot be used to check signatures" in refused(message, folder, Trust(certificates=tmp_path / "text"))
    assert "cannot be used to sign" in message(Signer, tmp_path / "text")
    assert "cannot be used to sign" in message(Signer, public)
    assert "no such file" in message(Signer, tmp_path / "nowhere.pem")
    assert "cannot be used to sign" in message(Signer, private, Authority(tmp_path, "root").certificate)


def test_one_way_to_trust_is_given(tmp_path: Path, message: Callable[..., str]) -> None:
    _, public = key_pair(tmp_path)
    one = "trust: give one of a public key, certificates, and an identity with its issuer"
    assert message(Trust) == message(Trust, public, public) == message(Trust, public, None, "me", "https://you") == one
    assert message(Trust, None, None, "me") == "trust: an identity is that of an issuer: give both"
    assert message(Trust, tmp_path / "none").endswith("no such file; give one in PEM format")


def test_without_model_signing_one_line_tells_what_to_install(
    folder: Path, tmp_path: Path, message: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    private, public = key_pair(tmp_path)
    sign(folder, Signer(private))
    monkeypatch.setitem(sys.modules, "model_signing", None)
    assert refused(message, folder, Trust(public)).endswith(f"pip install {' '.join(map(repr, EXTRAS['trust']))}")


def test_load_and_verify_ask_who_has_signed(
    gated_chain: Path, tmp_path: Path, message: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    private, public = key_pair(tmp_path)
    (projection,) = Path("models/published/projection").iterdir()
    check([str(projection)])
    assert "  not signed: whoever replaced its files" in capsys.readouterr().out
    assert "nobody has signed" in message(check, [str(projection), "--key", str(public)])
    assert "nobody has signed" in message(load, "models/published", needed=["projection"], trust=Trust(public))

    sign(projection, Signer(private))

    check([str(projection), "--key", str(public)])
    assert f"\n  signed by the owner of {public}\n" in capsys.readouterr().out
    check([str(projection)])
    assert "  signed, but nobody asked by whom" in capsys.readouterr().out
    assert load("models/published", needed=["projection"], trust=Trust(public)).folders["projection"] == projection
