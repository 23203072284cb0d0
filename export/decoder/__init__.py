"""Decoders, Thinker and Talker, as graphs that are constructed and not traced, whatever the size, in little memory."""

from __future__ import annotations

from export.decoder.builder import FLOAT32, build, constructed, write
from export.decoder.linear import Schemes

__all__ = ["FLOAT32", "Schemes", "build", "constructed", "write"]
