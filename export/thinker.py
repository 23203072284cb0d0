"""The Thinker's graph, constructed."""

from __future__ import annotations

from components.thinker import DECODER
from export.decoder import constructed
from export.exporter import Exporter

__all__ = ["EXPORTER"]

EXPORTER = Exporter({DECODER.graph: constructed(DECODER)})
