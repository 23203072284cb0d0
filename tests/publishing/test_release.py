"""Releases: what was published, put where receivers find it, pulled, and verified."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from cli import call
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from keys import Authority, key_pair
from tamper import reseal

from publish.__main__ import app
from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.download import download
from qwen_omni_onnx.trust import Trust


def publish(*arguments: str) -> None:
    """Run ``python -m publish`` with these arguments."""
    app(list(arguments), standalone_mode=False)


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_was_published_states_what_it_is_and_what_it_passed(gated_chain: Path) -> None:
    for component in ("talker", "token2wav"):
        (folder,) = Path("models/published", component).iterdir()
        manifest = artifact.read_manifest(folder)

        bom = (folder / "evidence/bom.cdx.json").read_text()
        assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(bom) is None
        read = json.loads(bom)
        card = read["metadata"]["component"]["modelCard"]
        assert len(card["quantitativeAnalysis"]["performanceMetrics"]) == len(manifest["gates"]) > 0
        assert {file["name"]: file["hashes"][0]["content"] for file in read["components"]} == {
            name: entry["sha256"]
            for name, entry in manifest["files"].items()
            if not name.startswith("evidence/") and name != "SHA256SUMS"
        }

        gates = json.loads((folder / "evidence/gates.intoto.json").read_text())
        assert gates["predicate"]["result"] == "PASSED"
        assert len(gates["predicate"]["passedTests"]) == len(manifest["gates"])
        built = json.loads((folder / "evidence/provenance.intoto.json").read_text())
        assert built["predicate"]["buildDefinition"]["externalParameters"]["parameters"] == manifest["parameters"]
        for statement in (gates, built):
            assert {entry["name"]: entry["digest"]["sha256"] for entry in statement["subject"]} == {
                file["name"]: file["hashes"][0]["content"] for file in read["components"]
            }


def test_a_release_is_published_pulled_and_verified_by_its_key(
    gated_chain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], message: Callable[..., str]
) -> None:
    private, public = key_pair(tmp_path)
    _, other = key_pair(tmp_path, "other")
    names = ["projection", "talker"]
    share, here = tmp_path / "share", tmp_path / "here"

    publish(*names, "--to", str(share), "--sign-key", str(private), "--dry-run")
    assert not share.exists()
    publish(*names, "--to", str(share), "--sign-key", str(private))
    published = files(share)
    assert {path for path in published if path.endswith("/model.sig")} == {
        f"{name}/{next(Path('models/published', name).iterdir()).name}/model.sig" for name in names
    }
    times = {path: path.stat().st_mtime_ns for path in share.rglob("*")}
    capsys.readouterr()
    publish(*names, "--to", str(share), "--sign-key", str(private))
    assert capsys.readouterr().out.endswith("up to date: nothing was sent\n")
    assert {path: path.stat().st_mtime_ns for path in share.rglob("*")} == times

    said = message(call, "pull", str(share), "--to", str(here), "--key", str(other))
    (projection,) = Path("models/published/projection").iterdir()
    assert said.startswith(f"projection/{projection.name}: not signed by the owner of {other} (Key mismatch")
    assert not here.exists()
    call("pull", str(share), "--to", str(here), "--components", "talker", "--key", str(public))
    assert f"  signed by the owner of {public}\n" in capsys.readouterr().out
    (talker,) = (here / "talker").iterdir()
    assert {path.name for path in (talker / "onnx").iterdir()} == {"talker_int8.onnx", "talker_int8.onnx.data"}
    call("verify", str(here), "--key", str(public))
    assert "  talker_int8.onnx: interface as published" in capsys.readouterr().out
    call("pull", str(share), "--to", str(here), "--float32")
    assert {path: content for path, content in published.items() if path.count("/") > 1} == files(here)
    capsys.readouterr()
    call("pull", str(share), "--to", str(here), "--float32", "--key", str(public))
    assert capsys.readouterr().out.count(": there already, each byte as published\n") == 2


def test_a_download_that_was_cut_off_goes_on(
    gated_chain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, message: Callable[..., str]
) -> None:
    share, here = tmp_path / "share", tmp_path / "here"
    publish("projection", "--to", str(share))
    (folder,) = (share / "projection").iterdir()
    whole = (folder / "onnx/qwen25_7b_audio_int8.onnx.data").read_bytes()
    (folder / "onnx/qwen25_7b_audio_int8.onnx.data").write_bytes(whole[: len(whole) // 2])

    said = message(lambda: list(download(str(share), here)))
    assert said.endswith(f"only {len(whole) // 2} of {len(whole)} bytes came; pull again to go on")
    assert not (here / "projection" / folder.name).exists()
    (folder / "onnx/qwen25_7b_audio_int8.onnx.data").write_bytes(whole)
    (found,) = download(str(share), here)
    assert found.fetched < len(whole) // 2 + 50_000
    artifact.check(found.folder, optional={"onnx/qwen25_7b_audio.onnx", "onnx/qwen25_7b_audio.onnx.data"})
    assert sorted(os.listdir(here / "projection")) == [folder.name]


def test_a_byte_that_was_rewritten_on_the_way_is_found(
    gated_chain: Path, tmp_path: Path, message: Callable[..., str]
) -> None:
    share, here = tmp_path / "share", tmp_path / "here"
    publish("projection", "--to", str(share))
    (folder,) = (share / "projection").iterdir()
    content = bytearray((folder / "README.md").read_bytes())
    content[10] ^= 1
    (folder / "README.md").write_bytes(content)

    said = message(lambda: list(download(str(share), here)))
    assert said == f"projection/{folder.name}/README.md: arrived with other bytes than were published; pull again"
    assert not (here / "projection" / folder.name).exists()


def test_nothing_is_released_but_what_the_gate_has_judged(
    gated_chain: Path, tmp_path: Path, message: Callable[..., str]
) -> None:
    (folder,) = Path("models/published/projection").iterdir()
    (folder / "README.md").write_text("Another card.\n")
    said = message(publish, "projection", "--to", str(tmp_path / "share"))
    assert said.startswith(f"{folder / 'README.md'}: 14 bytes, the manifest says ")
    with (folder / "onnx/qwen25_7b_audio_int8.onnx.data").open("r+b") as file:
        file.write(b"!")
    reseal(folder)
    said = message(publish, "projection", "--to", str(tmp_path / "share"))
    assert said == f"{folder}: not what the gate has judged; run python -m publish projection"
    shutil.rmtree(folder)
    assert message(publish, "projection", "--to", str(tmp_path / "share")).startswith(f"{folder}: not there")
    assert not (tmp_path / "share").exists()


def test_a_certificate_signs_a_release(gated_chain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = Authority(tmp_path, "root")
    signer = root.issue("signer")
    options = ("--sign-key", str(signer.key), "--certificate", str(signer.certificate))
    publish("frontend", "--to", str(tmp_path / "share"), *options)
    publish("frontend", "--to", str(tmp_path / "share"), *options)
    assert capsys.readouterr().out.endswith("up to date: nothing was sent\n")
    (found,) = download(str(tmp_path / "share"), tmp_path / "here", trust=Trust(certificates=root.certificate))
    assert found.signed


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--sign-key", "KEY"], "signing: what stays here needs no signature; give --to"),
        (["--to", "share", "--sigstore", "--sign-key", "KEY"], "--sigstore: signs without a key"),
        (["--to", "share", "--certificate", "CERT"], "--certificate: nothing without its key"),
        (["--to", "share", "--sign-key", "nowhere.pem"], "nowhere.pem: no such file"),
        (["--to", "ftp://somewhere/else"], "--to ftp://somewhere/else: give a folder"),
        (["--to", "a-file"], "a-file: not a folder"),
    ],
)
def test_options_that_do_not_fit_get_one_line(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, message: Callable[..., str]
) -> None:
    monkeypatch.chdir(tmp_path)
    private, _ = key_pair(tmp_path)
    (tmp_path / "a-file").touch()
    given = [str(private) if argument in ("KEY", "CERT") else argument for argument in arguments]

    assert message(publish, *given).startswith(said)


def test_a_release_that_is_none_gets_one_line(tmp_path: Path, message: Callable[..., str]) -> None:
    def pulled(source: Path | str, *components: str) -> str:
        return message(lambda: list(download(str(source), tmp_path / "here", components or None)))

    assert pulled(tmp_path / "nowhere").startswith(f"{tmp_path / 'nowhere'}: no such folder")
    assert pulled("ftp://somewhere").startswith("ftp://somewhere: give a folder, hf://")
    share = tmp_path / "share"
    share.mkdir()
    assert pulled(share).startswith(f"{share}: nothing published there")
    for name in ("one", "two"):
        with artifact.writing(share / "encoder" / name, kind="published", component="encoder", name=name) as beside:
            (beside / "README.md").write_text("A card.\n")
    assert pulled(share).startswith(f"{share}: two of encoder: ")
    (share / "encoder/two").rename(share / "renamed")
    shutil.move(share / "encoder/one", share / "encoder/other")
    assert pulled(share, "talker") == f"{share}: no talker in it; there are: encoder"
    assert pulled(share) == "encoder/other: its manifest is that of another folder; do not use it"
    assert not any((tmp_path / "here").rglob("README.md"))
