"""``qwen-omni-onnx pull SOURCE --to FOLDER``: downloads what was published, and asks who has signed it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qwen_omni_onnx.commands.shared import Certificates, Identity, Issuer, Key, trust_of
from qwen_omni_onnx.common.console import one_line
from qwen_omni_onnx.download import download
from qwen_omni_onnx.trust import in_words

__all__ = ["pull"]


def pull(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE", help="hf://OWNER/REPO[@REVISION], oci://HOST/NAME[:TAG|@DIGEST], or a folder."
        ),
    ],
    to: Annotated[Path, typer.Option(help="Folder that the components are put into.")] = Path("models/published"),
    components: Annotated[
        str | None, typer.Option(metavar="COMPONENT,...", help="Components to download; all if not given.")
    ] = None,
    float32: Annotated[
        bool, typer.Option("--float32", help="Download the float32 graphs of what is quantized, too.")
    ] = False,
    key: Key = None,
    certificates: Certificates = None,
    identity: Identity = None,
    issuer: Issuer = None,
) -> None:
    """Download what was published, and compare every byte. Cut off, it goes on where it was."""
    trust = trust_of(key, certificates, identity, issuer)
    names = None if components is None else [name.strip() for name in components.split(",")]
    for found in download(source, to, names, float32=float32, trust=trust):
        what = f"{found.fetched / 1e6:,.1f} MB fetched" if found.fetched else "there already"
        print(one_line(f"{found.folder}: {what}, each byte as published"), flush=True)
        print(one_line(f"  {in_words(found.signed, trust)}"))
