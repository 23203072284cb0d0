"""Parameters of how a graph is calibrated and quantized."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from omni.forms import Share, Strict
from omni.patterns import first_match

__all__ = ["RMS", "ROTATIONS", "CalibrateParams", "NodeCalibration", "QuantizeParams", "Scheme"]

Scheme = Literal["int8-token", "int8-tensor", "int8-static", "int8-block", "int4-block", "int4-import", "float32"]
_UNCALIBRATED = ("int8-block", "int4-block", "int4-import", "float32")


def _smoothing_kind(value: Any) -> str:
    """Return the tag of a smoothing by name or by number: pydantic would report the errors of both."""
    return "[name]" if isinstance(value, str) else "[alpha]"


RMS = "rms^"  # begins the name of a smoothing by a power of each channel's root mean square
Smoothing = Annotated[
    Annotated[Share, Tag("[alpha]")]
    | Annotated[str, Field(pattern=r"^(none|search|rms\^(0|1|0\.\d+))$"), Tag("[name]")],
    Discriminator(_smoothing_kind),
]
ROTATIONS = (16, 32, 64, 128)
Rotation = Literal[0, 16, 32, 64, 128]


class NodeCalibration(Strict):
    """Exact changes of an activation before it is quantized; settings that are not given are the graph's.

    Attributes:
        smoothing: ``none``; a number, the alpha of SmoothQuant (arXiv 2211.10438); ``search``, the alpha and the
            measure of loudness with the least error; or ``rms^0.4``, that power of each channel's root mean square.
        shift: Whether each channel's mean is subtracted.
        rotation: Number of channels that a Hadamard rotation mixes; 0 for none.
    """

    smoothing: Smoothing = "none"
    shift: bool = False
    rotation: Rotation = 0


class CalibrateParams(NodeCalibration):
    """Calibration of a graph's activations.

    Attributes:
        headroom: Factor by which static ranges are wider than the calibrated ones. Only ``int8-static`` needs static
            ranges; None measures none, and takes one pass over the clips in place of two.
        nodes: Other settings for single nodes, by name or pattern; the first that matches counts.
    """

    headroom: Annotated[float, Field(ge=1)] | None
    nodes: dict[str, NodeCalibration]

    @property
    def everywhere(self) -> NodeCalibration:
        """The settings of nodes that ``nodes`` does not name."""
        return NodeCalibration(smoothing=self.smoothing, shift=self.shift, rotation=self.rotation)

    def named(self, node: str) -> NodeCalibration | None:
        """Return the settings of a node that ``nodes`` names; None for another node."""
        found = first_match(self.nodes, node)
        return found and self.everywhere.model_copy(update=found.model_dump(exclude_unset=True))


class QuantizeParams(Strict):
    """Quantization of a graph.

    Attributes:
        scheme: Scheme of all matrix multiplications and convolutions.
        block: Number of weights that share a scale in the block schemes; ``int4-import`` has the checkpoint's groups.
        nodes: Other schemes for single nodes, by name or pattern; the first that matches counts. A node that holds the
            queries, keys and values of attention has parts with names of their own, such as ``*.v_proj``.
        compensation: Nodes whose rounding errors are compensated (GPTQ, arXiv 2210.17323), by name or pattern, each
            with its damping, a multiple of the Gram matrix's mean diagonal, or None for nodes that are not; the first
            that matches counts.
    """

    scheme: Scheme
    block: Literal[16, 32, 64, 128, 256]
    nodes: dict[str, Scheme]
    compensation: dict[str, Annotated[float, Field(gt=0, le=100)] | None] = Field(default_factory=dict)

    @property
    def calibrated(self) -> bool:
        """Whether any scheme needs calibrated activations."""
        return any(scheme not in _UNCALIBRATED for scheme in (self.scheme, *self.nodes.values()))

    @property
    def static(self) -> bool:
        """Whether any scheme needs static ranges."""
        return "int8-static" in (self.scheme, *self.nodes.values())

    @property
    def imports(self) -> bool:
        """Whether any scheme imports the checkpoint's 4-bit weights."""
        return "int4-import" in (self.scheme, *self.nodes.values())
