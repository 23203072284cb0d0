"""The exporter of each component, by name."""

from __future__ import annotations

from export.exporter import Exporter

__all__ = ["exporter"]


def exporter(name: str) -> Exporter:
    """Return how a component becomes graphs: PyTorch is imported with it, unless its graphs are constructed.

    Imports are written out, each where it is needed: the stage of one component imports no other one's file, and DVC
    need not run it again where another's file changes.

    Raises:
        KeyError: There is none of that name.
    """
    match name:
        case "encoder":
            from export import encoder

            return encoder.EXPORTER
        case "frontend":
            from export import frontend

            return frontend.EXPORTER
        case "projection":
            from export import projection

            return projection.EXPORTER
        case "talker":
            from export import talker

            return talker.EXPORTER
        case "thinker":
            from export import thinker

            return thinker.EXPORTER
        case "token2wav":
            from export import token2wav

            return token2wav.EXPORTER
    raise KeyError(name)
