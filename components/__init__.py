"""Descriptions of the components, one file each: tensors, interfaces of the graphs, and text for the model card.

Each description is imported only on demand: the stage of one component imports no other description, so that DVC need
not rerun it when another description changes.
"""

from __future__ import annotations

from omni.component import COMPOSED_OF, NAMES, Component
from qwen_omni_onnx.common.errors import UserError

__all__ = ["component", "names", "require_own"]


def names() -> list[str]:
    """Return the names of all components that this version can build, sorted."""
    return sorted(NAMES)


def component(name: str) -> Component:
    """Return the description of a component.

    Raises:
        UserError: No component has that name.
    """
    match name:
        case "audio_core":
            from components import audio_core

            return audio_core.COMPONENT
        case "encoder":
            from components import encoder

            return encoder.COMPONENT
        case "frontend":
            from components import frontend

            return frontend.COMPONENT
        case "projection":
            from components import projection

            return projection.COMPONENT
        case "talker":
            from components import talker

            return talker.COMPONENT
        case "thinker":
            from components import thinker

            return thinker.COMPONENT
        case "token2wav":
            from components import token2wav

            return token2wav.COMPONENT
    raise UserError(f"no component {name!r}; there are: {', '.join(names())}")


def require_own(name: str) -> Component:
    """Return the description of a component that has tensors of its own.

    Raises:
        UserError: No component has that name, or it is composed of others.
    """
    if name in COMPOSED_OF:
        raise UserError(
            f"{name} has no weights of its own: it is composed of {', '.join(COMPOSED_OF[name])}; name these, or run "
            f"python -m compose {name}"
        )
    return component(name)
