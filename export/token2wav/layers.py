"""Linear layers of the DiT that have only some columns of a matrix of the checkpoint, or its rows in another order."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from components.token2wav import DIT
from omni.checkpoint import Checkpoint

__all__ = ["Projection", "input_columns"]


class Projection(torch.nn.Module):
    """[..., in] -> [..., out] by ``weight`` [in, out] and ``bias`` [out], if it has one."""

    def __init__(self, into: int, out: int, *, bias: bool = False) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(into, out))
        self.bias = torch.nn.Parameter(torch.empty(out)) if bias else None

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        product = hidden @ self.weight
        return product if self.bias is None else product + self.bias


def input_columns(checkpoint: Checkpoint, dit: dict[str, Any], part: str) -> np.ndarray:
    """Return what the input projection does to one part of its input, [in, hidden] float32.

    Args:
        checkpoint: where the projection is.
        dit: the DiT's configuration.
        part: ``mel``, ``voice`` (what the speaker encoder hears), ``code`` or ``speaker``.
    """
    widths = {"mel": dit["mel_dim"], "voice": dit["enc_dim"], "code": dit["emb_dim"], "speaker": dit["enc_emb_dim"]}
    parts = list(widths)
    start = sum(widths[before] for before in parts[: parts.index(part)])
    weight = checkpoint.read(f"{DIT}.input_embed.proj.weight")
    return weight[:, start : start + widths[part]].T.astype(np.float32, order="C")
