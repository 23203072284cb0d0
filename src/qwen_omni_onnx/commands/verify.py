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
    max_seconds: Annotated[
        float | None, typer.Option(help="Seconds that the graphs of one published folder may run; the default is "
                                   "generous, half an hour and more.")
    ] = None,
    max_gib: Annotated[
        float | None, typer.Option(help="Memory that they may take, in GiB; the default is 4 and 4 times the folder.")
    ] = None,
) -> None:  # fmt: skip
    """Check a download: who signed, every byte's hash, the interfaces, and the golden cases on this machine."""
    missed = []
    trust = trust_of(key, certificates, identity, issuer)
    for found in verification.verify(folder, trust, max_seconds=max_seconds, max_gib=max_gib):
        print(one_line(f"{found.folder}: {found.files} files, {found.nbytes / 1e6:,.1f} MB, each byte as published"))
        print(one_line(f"  {found.signed}"))
        print(one_line(f"  {', '.join(found.graphs)}: interface as published"))
        for drift in found.drifts:
            verdict, here = drift.verdict, f"{drift.here:.4g} {drift.verdict.unit}".rstrip()
            published = "no number" if verdict.value is None else f"{verdict.value:.4g}"
            line = (  # its words are of whoever published it
                f"  {'ok    ' if drift.ok else 'MISSED'} {verdict.of}: {verdict.label}: {here} here, "
                f"{published} where it was published (limit {verdict.comparison} {verdict.limit:g})"
            )
            print(one_line(line))
        missed += [f"{found.folder}: {d.verdict.of}: {d.verdict.label}" for d in found.drifts if not d.ok]
    if missed:
        raise UserError(f"{missed[0]} misses its limit on this machine")
