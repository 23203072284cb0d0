"""What a component's run-time offers to whoever checks its graphs: the stages of the pipeline, and ``verify``.

The golden modules of the components implement it; ``qwen_omni_onnx.runtimes`` lists them by the component's name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from qwen_omni_onnx.common.contract import GraphContract

__all__ = ["GoldenRuntime", "SeveralGraphsRuntime"]

Ports = Mapping[str, np.ndarray]
Pairs = Iterator[tuple[str, np.ndarray, np.ndarray]]


class GoldenRuntime(Protocol):
    """How the graphs of a component run together, and how a golden case checks them.

    The model that ``open_graphs`` returns is the run-time's own: ``Thinker``, ``Talker``, ``Token2Wav``, ``AudioCore``.

    Attributes:
        CHECKS: Names of the checks of a golden case.
        LOGITS: Those of them that compare logits.
        WAVEFORMS: Those of them that compare sound.
        SEQUENCES: Those of them whose rows are all tokens of the case's sequences, one sequence after another; the port
            ``tokens`` has their lengths.
    """

    @property
    def CHECKS(self) -> tuple[str, ...]:  # noqa: N802 - a constant of a module
        """Names of its checks."""

    @property
    def LOGITS(self) -> tuple[str, ...]:  # noqa: N802
        """Names of the checks that compare logits."""

    @property
    def WAVEFORMS(self) -> tuple[str, ...]:  # noqa: N802
        """Names of the checks that compare waveforms."""

    @property
    def SEQUENCES(self) -> tuple[str, ...]:  # noqa: N802
        """Names of the checks that compare every token of sequences, whose first tokens are attention sinks."""

    def open_graphs(self, graphs: Mapping[str, Path], folder: Path, threads: int) -> Any:
        """Return the run-time of some graph files, by stem; ``folder`` holds what was exported beside them."""

    def complete(self, fed: Ports, folder: Path, contract: GraphContract, number: int) -> dict[str, np.ndarray]:
        """Return all inputs of a golden case: what it is fed, and what depends on the case's number alone."""

    def checks(self, model: Any, ports: Ports) -> Pairs:
        """Yield ``(check, what is expected, what the graphs give)`` for a golden case, for each of ``CHECKS``."""

    def yardstick(self, ports: Ports, given: Ports) -> Pairs:
        """Yield ``(check, what PyTorch gave in float32, what it gave in bfloat16)`` for a golden case."""


class SeveralGraphsRuntime(GoldenRuntime, Protocol):
    """A run-time that runs several graphs, which see each other's outputs."""

    def feeds(self, model: Any, ports: Ports) -> Iterator[tuple[str, str, dict[str, np.ndarray]]]:
        """Yield ``(graph, moment, inputs)`` of what the graphs see while a case runs through them, for calibration."""
