"""Options and checks that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.sampler import DEFAULT, REFERENCE
from qwen_omni_onnx.trust import Trust

__all__ = ["Certificates", "Identity", "Issuer", "Key", "Overwrite", "Seed", "Variant", "require_seed", "trust_of"]

Overwrite = Annotated[bool, typer.Option("--overwrite", help="OUT may replace a file that is there already.")]
Seed = Annotated[
    int, typer.Option(help="Seed for sampling and for the initial noise; the same seed gives the same sound.")
]
Variant = Annotated[
    str | None,
    typer.Option(help=f"Way to solve token2wav's ODE, {DEFAULT} if there is one; {REFERENCE} is that of transformers."),
]
Key = Annotated[
    Path | None,
    typer.Option(metavar="KEY.pub", help="Public key whose owner must have signed: an elliptic curve's, PEM."),
]
Certificates = Annotated[
    Path | None,
    typer.Option(metavar="ROOTS.pem", help="Certificates of the authorities that must have issued the signer's."),
]
Identity = Annotated[
    str | None,
    typer.Option(help="Identity that must have signed, by Sigstore: a mail address, or a workflow's; with --issuer."),
]
Issuer = Annotated[
    str | None,
    typer.Option(metavar="URL", help="Who has identified it, such as https://token.actions.githubusercontent.com."),
]


def trust_of(key: Path | None, certificates: Path | None, identity: str | None, issuer: str | None) -> Trust | None:
    """Return whom the options say to trust; None if they do not ask who has signed.

    Raises:
        UserError: They do not fit together, or a file is missing.
    """
    if key is None and certificates is None and identity is None and issuer is None:
        return None
    return Trust(key, certificates, identity, issuer)


def require_seed(seed: int) -> None:
    """Refuse a seed that no generator takes.

    Raises:
        UserError: It is negative.
    """
    if seed < 0:
        raise UserError(f"--seed: {seed}; give 0 or more")
