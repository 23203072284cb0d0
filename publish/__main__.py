"""Publish components that passed the gate: ``python -m publish [COMPONENT...] [--to TARGET] [--dry-run]``."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer

from omni.component import require_built
from omni.params import load
from omni.streamed import data_file
from publish import bom, card, manifest, statements
from publish.evidence import Evidence, gather
from publish.provenance import notice
from qwen_omni_onnx.common import artifact, golden
from qwen_omni_onnx.common.command_line import run_app
from qwen_omni_onnx.common.configuration import read_config
from qwen_omni_onnx.common.errors import UserError

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
PUBLISHED = Path("models/published")
_SUMS = "SHA256SUMS"


@app.command()
def publish(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[COMPONENT...]", help="Components; all that are built if none is given."),
    ] = None,
    to: Annotated[
        str | None,
        typer.Option(
            metavar="TARGET",
            help="Where to put what was published: a folder, hf://OWNER/REPO[@BRANCH] (a repository that is not there "
            "is made, and private), or oci://HOST/NAME:TAG.",
        ),
    ] = None,
    sign_key: Annotated[
        Path | None, typer.Option(metavar="KEY.pem", help="Private key that signs it: an elliptic curve's.")
    ] = None,
    certificate: Annotated[
        Path | None, typer.Option(metavar="CERT.pem", help="Certificate of that key; receivers trust its authority.")
    ] = None,
    chain: Annotated[
        Path | None, typer.Option(metavar="CHAIN.pem", help="Certificates between that one and the authority.")
    ] = None,
    sigstore: Annotated[
        bool, typer.Option("--sigstore", help="Sign it by the identity of the CI job, which Sigstore vouches for.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be published, and stop.")] = False,
) -> None:
    """Write models/published/COMPONENT/NAME, if every gate is green; with --to, put it where receivers find it."""
    if to is not None:
        _send(names, to, (sign_key, certificate, chain), sigstore=sigstore, dry_run=dry_run)
        return
    if sign_key or certificate or chain or sigstore:
        raise UserError("signing: what stays here needs no signature; give --to")
    gathered = _gathered(names)
    for folder, evidence in gathered.items():
        artifact.require_replaceable(folder, manifest.KIND, evidence.component.name)
    for folder, evidence in gathered.items():
        if dry_run:
            print(f"would write {folder}")
            continue
        _write(evidence, folder)
        _remove_earlier(evidence, folder)
        print(f"{folder}  ({sum(p.stat().st_size for p in folder.rglob('*') if p.is_file()) / 1e6:.1f} MB)")


def _gathered(names: list[str] | None) -> dict[Path, Evidence]:
    """Return the evidence for each component, by the folder that it is published in."""
    params = load()
    gathered = [gather(name, params) for name in names or require_built()]
    return {PUBLISHED / evidence.component.name / evidence.name: evidence for evidence in gathered}


def _send(names: list[str] | None, to: str, signing: tuple[Path | None, ...], *, sigstore: bool, dry_run: bool) -> None:
    """Put published folders where receivers find them.

    Args:
        names: Components; all that are built if none is given.
        to: Where.
        signing: Key, certificate and chain that sign.
        sigstore: Whether a CI job's identity signs.
        dry_run: Whether to print only what would be sent.
    """
    # What signs and what sends takes its time to import, and no stage of the pipeline does either.
    from publish.release import opened, release, require_current
    from publish.sign import Signer

    if sigstore and any(signing):
        raise UserError("--sigstore: signs without a key; give one of --sigstore and --sign-key")
    signer = Signer(*signing) if sigstore or any(signing) else None
    target = opened(to)
    gathered = _gathered(names)
    for folder, evidence in gathered.items():
        require_current(evidence, folder)
    release({folder.parent.name: folder for folder in gathered}, target, signer, dry_run=dry_run, name=to)


def _write(evidence: Evidence, folder: Path) -> None:
    onnx, quantized, reference = (evidence.folders[kind] for kind in ("onnx", "quantized", "reference"))
    contracts = evidence.component.contracts(read_config(onnx))
    stems = [(onnx, stem) for stem in evidence.floating]
    stems += [(quantized, name) for name in artifact.read_manifest(quantized)["graphs"]]
    files = {
        f"onnx/{path.name}": path
        for source, name in stems
        for path in (source / f"{name}.onnx", data_file(source / f"{name}.onnx"))
    }
    files[f"golden/{golden.FILE}"] = reference / golden.FILE
    files |= {path.name: path for path in onnx.iterdir() if _is_published(path)}
    listed = {source: artifact.read_manifest(source)["files"] for source in evidence.folders.values()}
    hashes = {name: listed[path.parent][path.name]["sha256"] for name, path in files.items()}  # checked by gather
    graphs = [path for name, path in files.items() if name.endswith(".onnx")]
    facts = manifest.facts(evidence, contracts, graphs)
    with artifact.writing(folder, **facts) as beside:
        for name, path in files.items():
            (beside / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(path, beside / name)  # no hard link: onnx_ir refuses files that have several names
        (beside / "README.md").write_text(card.render(evidence, contracts), encoding="utf-8")
        if notice_text := notice(evidence):
            (beside / "NOTICE").write_text(notice_text, encoding="utf-8")
        hashes |= {
            path.name: artifact.sha256(path) for path in beside.iterdir() if path.is_file() and path.name not in hashes
        }
        stated = {
            bom.FILE: bom.render(evidence, facts, hashes),
            "evidence/gates.intoto.json": statements.tests(evidence, hashes),
            "evidence/provenance.intoto.json": statements.provenance(facts, hashes),
        }
        (beside / "evidence").mkdir()
        for name, text in stated.items():
            (beside / name).write_text(text, encoding="utf-8")
            hashes[name] = artifact.sha256(beside / name)
        sums = "".join(f"{hashes[name]}  {name}\n" for name in sorted(hashes))
        (beside / _SUMS).write_text(sums, encoding="utf-8")


def _remove_earlier(evidence: Evidence, folder: Path) -> None:
    """Remove folders of the same component that were published earlier under another name; a user's copies stay."""
    component = evidence.component.name
    for other in sorted(folder.parent.glob("[!.]*")):
        try:
            published = artifact.read_manifest(other)
        except UserError:
            continue
        if other == folder or (published.get("kind"), published.get("component")) != (manifest.KIND, component):
            continue
        if published.get("name") != other.name or other.is_symlink() or artifact.unlisted(other, published):
            reason = f"another published {component}, and not as it was written here"
            print(f"{other}: {reason}; move it away, or qwen_omni_onnx.load finds two", file=sys.stderr)
            continue
        for name in published["files"]:
            (other / name).unlink(missing_ok=True)
        shutil.rmtree(other)  # removes the manifest last, so that a folder that a killed run leaves is recognized


def _is_published(path: Path) -> bool:
    """Return whether a file beside the graphs is published; the new manifest replaces the old one and source.json."""
    return path.suffix not in (".onnx", ".data") and path.name not in (artifact.MANIFEST, "source.json")


if __name__ == "__main__":
    run_app(app)
