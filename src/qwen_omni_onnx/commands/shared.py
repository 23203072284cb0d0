"""Options and checks that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

from qwen_omni_onnx.common.errors import UserError
from qwen_omni_onnx.sampler import DEFAULT, REFERENCE

__all__ = ["Overwrite", "Seed", "Variant", "require_seed"]

Overwrite = Annotated[bool, typer.Option("--overwrite", help="OUT may replace a file that is there already.")]
Seed = Annotated[
    int, typer.Option(help="Seed for sampling and for the initial noise; the same seed gives the same sound.")
]
Variant = Annotated[
    str | None,
    typer.Option(help=f"Way to solve token2wav's ODE, {DEFAULT} if there is one; {REFERENCE} is that of transformers."),
]


def require_seed(seed: int) -> None:
    """Refuse a seed that no generator takes.

    Raises:
        UserError: It is negative.
    """
    if seed < 0:
        raise UserError(f"--seed: {seed}; give 0 or more")
