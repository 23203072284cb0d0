"""The Talker's graph, constructed."""

from __future__ import annotations

from components.talker import DECODER
from export.decoder import constructed
from export.exporter import Exporter

__all__ = ["EXPORTER"]

EXPORTER = Exporter({DECODER.graph: constructed(DECODER)})
