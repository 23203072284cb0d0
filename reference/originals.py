"""What each component is compared with, by name."""

from __future__ import annotations

from reference.original import Original

__all__ = ["original"]


def original(name: str) -> Original:
    """Return transformers' own computation of a component; PyTorch is imported with it.

    Imports are written out, each where it is needed: the stage of one component imports no other one's file, and DVC
    need not run it again where another's file changes.

    Raises:
        KeyError: There is none of that name.
    """
    match name:
        case "encoder":
            from reference import encoder

            return encoder.ORIGINAL
        case "frontend":
            from reference import frontend

            return frontend.ORIGINAL
        case "projection":
            from reference import projection

            return projection.ORIGINAL
        case "talker":
            from reference import talker

            return talker.ORIGINAL
        case "thinker":
            from reference import thinker

            return thinker.ORIGINAL
        case "token2wav":
            from reference import token2wav

            return token2wav.ORIGINAL
    raise KeyError(name)
