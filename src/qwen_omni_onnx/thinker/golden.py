"""What the stages of the pipeline, and ``verify``, call of the Thinker."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from qwen_omni_onnx.decoder_golden import CHECKS, LOGITS, SEQUENCES, WAVEFORMS, checks, complete, yardstick
from qwen_omni_onnx.thinker.runtime import GRAPH, Thinker, open_graph

__all__ = ["CHECKS", "LOGITS", "SEQUENCES", "WAVEFORMS", "checks", "complete", "open_graphs", "yardstick"]


def open_graphs(graphs: Mapping[str, Path], folder: Path, threads: int) -> Thinker:
    """Return the run-time of a graph file; ``folder`` holds what was exported beside the float32 one."""
    return open_graph(graphs[GRAPH], folder, threads)
