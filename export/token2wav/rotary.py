"""Rotary positions of the DiT: only head 0 has them, and what counts is how far two frames are apart.

Su et al. 2021, RoFormer (arXiv 2104.09864). Positions count from the start of the block that asks: its own frames are
at 0 to 23, those of the block before at -24 to -1, those of the block after at 24 to 47. So three tables serve clips of
any length. The checkpoint rotates pairs of neighbouring channels; rows of the projections are reordered to rotate
halves, as :func:`deinterleaved` says.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers.models.qwen2_5_omni.configuration_qwen2_5_omni import Qwen2_5OmniDiTConfig

__all__ = ["AFTER", "BEFORE", "OWN", "Rotary", "deinterleaved", "rotary_constants"]

OWN, BEFORE, AFTER = 0, -1, 1  # which block a table is for


class Rotary(torch.nn.Module):
    """Turn head 0 of queries or keys [..., 24, width] as frames of the block ``which``."""

    def __init__(self, dit: dict[str, Any]) -> None:
        super().__init__()
        self.head = dit["head_dim"]
        for name in rotary_constants(dit):
            setattr(self, name, torch.nn.Buffer(torch.empty(dit["block_size"], self.head)))

    def forward(self, hidden: torch.Tensor, which: int = OWN) -> torch.Tensor:
        first, rest = hidden[..., : self.head], hidden[..., self.head :]
        low, high = hidden[..., : self.head // 2], hidden[..., self.head // 2 : self.head]
        turned = first * getattr(self, f"cos{which}") + torch.cat([high, low], -1) * getattr(self, f"sin{which}")
        return torch.cat([turned, rest], -1)


def rotary_constants(dit: dict[str, Any]) -> dict[str, np.ndarray]:
    """Return cosines and sines [24, head] for each block; sines of the first half are negative, as rotation wants."""
    head, block = dit["head_dim"], dit["block_size"]
    theta = Qwen2_5OmniDiTConfig(**dit).rope_parameters["rope_theta"]
    frequency = theta ** -(np.arange(0, head, 2) / head)
    tables = {}
    for which in (OWN, BEFORE, AFTER):
        angle = (np.arange(block) + which * block)[:, None] * frequency
        tables[f"cos{which}"] = np.concatenate([np.cos(angle), np.cos(angle)], 1).astype(np.float32)
        tables[f"sin{which}"] = np.concatenate([-np.sin(angle), np.sin(angle)], 1).astype(np.float32)
    return tables


def deinterleaved(rows: np.ndarray, head: int) -> np.ndarray:
    """Return rows [width, ...] of a projection with those of head 0 in the order 0, 2, 4, ..., 1, 3, 5, ...

    Queries and keys reordered alike give the same scores.
    """
    order = np.arange(len(rows))
    order[:head] = np.concatenate([np.arange(0, head, 2), np.arange(1, head, 2)])
    return rows[order]
