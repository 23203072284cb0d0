"""The registry of the components' implementations in transformers."""

from __future__ import annotations

from reference.original import Original

__all__ = ["original"]


def original(name: str) -> Original:
    """Return a component's implementation in transformers; this imports PyTorch.

    Each file is imported only on demand: the stage of one component imports no other component's file, so that DVC need
    not rerun it when another file changes.

    Raises:
        KeyError: No implementation has that name.
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
