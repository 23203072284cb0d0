"""``qwen-omni-onnx verify FOLDER``: who signed a download, and whether it is that, and computes the same here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qwen_omni_onnx import verification
from qwen_omni_onnx.commands.shared import Certificates, Identity, Issuer, Key, trust_of
from qwen_omni_onnx.common.console import one_line
from qwen_omni_onnx.common.errors import UserError

__all__ = ["verify"]


def verify(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="A published folder, or a folder that holds several.")
    ],
    key: Key = None,
    certificates: Certificates = None,
    identity: Identity = None,
    issuer: Issuer = None,
) -> None:
    """Check a download: who signed, every byte's hash, the interfaces, and the golden cases on this machine."""
    missed = []
    for found in verification.verify(folder, trust_of(key, certificates, identity, issuer)):
        print(f"{found.folder}: {found.files} files, {found.nbytes / 1e6:,.1f} MB, each byte as published")
        print(f"  {one_line(found.signed)}")
        print(f"  {', '.join(found.graphs)}: interface as published")
        for drift in found.drifts:
            verdict, here = drift.verdict, f"{drift.here:.4g} {drift.verdict.unit}".rstrip()
            published = "no number" if verdict.value is None else f"{verdict.value:.4g}"
            print(
                f"  {'ok    ' if drift.ok else 'MISSED'} {verdict.of}: {verdict.label}: {here} here, "
                f"{published} where it was published (limit {verdict.comparison} {verdict.limit:g})"
            )
        missed += [f"{found.folder}: {d.verdict.of}: {d.verdict.label}" for d in found.drifts if not d.ok]
    if missed:
        raise UserError(f"{missed[0]} misses its limit on this machine")
