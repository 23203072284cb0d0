"""What ``--sensitivity`` is asked for, and which requests cannot be met whatever is measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from omni.params import QuantizeParams, Scheme
from qwen_omni_onnx.common.contract import GraphContract
from qwen_omni_onnx.common.errors import UserError

__all__ = ["Request", "gives_logits"]

_MOST_DB = 100.0  # float32's own rounding begins there
_TRIED = "int8-tensor"  # beside a graph's own scheme, if nothing else is asked for
_WIDER = "int8-block"  # of nodes in a graph with logits, likewise


def gives_logits(contract: GraphContract) -> bool:
    """Whether a graph's first output is logits of a language model, which KL divergence compares."""
    return contract.outputs[0].name == "logits"


@dataclass(frozen=True)
class Request:
    """Options of ``python -m quantize COMPONENT --sensitivity``.

    Attributes:
        schemes: Schemes to try, separated by commas; None leaves the choice to the graph.
        target_db: SQNR at the output that the proposed schemes must reach.
        target_kl: KL divergence at the logits, in nats, that they must not exceed.
        target_mb: Size in MB of the graph and its data that they must not exceed.
        write: Whether to write the proposed schemes into ``params.yaml``.
    """

    schemes: str | None = None
    target_db: float | None = None
    target_kl: float | None = None
    target_mb: float | None = None
    write: bool = False

    @property
    def targets(self) -> dict[str, float]:
        """The targets that are given, by option."""
        table = {"--target-db": self.target_db, "--target-kl": self.target_kl, "--target-mb": self.target_mb}
        return {option: value for option, value in table.items() if value is not None}

    def require_possible(self) -> None:
        """Refuse what is wrong for every graph, before one is opened.

        Raises:
            UserError: A scheme is unknown, a target is impossible, or there are several.
        """
        if len(self.targets) > 1:
            raise UserError(f"{' and '.join(self.targets)}: one target at a time; leave the others out")
        if self.target_db is not None and not 0 < self.target_db <= _MOST_DB:
            raise UserError(f"--target-db {self.target_db:g}: a number of decibels above 0, and at most {_MOST_DB:g}")
        for option, unit in (("--target-kl", "nats"), ("--target-mb", "megabytes")):
            value = self.targets.get(option)
            if value is not None and not 0 < value < float("inf"):
                raise UserError(f"{option} {value:g}: a number of {unit} above 0")
        known = get_args(Scheme)
        for scheme in self._named():
            if scheme not in known:
                raise UserError(f"--schemes: {scheme!r} is not one of {', '.join(known)}")

    def require_fits(self, graph: str, contract: GraphContract) -> None:
        """Refuse what is wrong for this graph, before anything is measured.

        Raises:
            UserError: Its outputs are no logits and a target is about these, or the other way round; or its nodes
                cannot each have several schemes.
        """
        if not gives_logits(contract):
            for option in ("--target-kl", "--target-mb"):
                if option in self.targets:
                    raise UserError(f"{option}: for graphs that give logits; {graph} does not, give it --target-db")
            return
        if self.target_db is not None:
            raise UserError(f"--target-db: {graph} gives logits; give it --target-kl or --target-mb")
        if len(self._named()) > 1:
            raise UserError(f"--schemes: {graph} gives logits; name one scheme, to which its nodes may widen")

    def require_calibrated(self, graph: str, params: QuantizeParams) -> None:
        """Refuse schemes that smooth, for a graph that was not calibrated because no scheme of its own needs that.

        Raises:
            UserError: A scheme smooths.
        """
        for scheme in self._named():
            if params.model_copy(update={"scheme": scheme, "nodes": {}}).calibrated:
                raise UserError(
                    f"--schemes: {scheme} needs calibrated activations, and {graph} has none; add the graph to "
                    "calibrate in params.yaml and run python -m calibrate, or name another scheme"
                )

    def to_try(self, *, calibrated: bool) -> list[str]:
        """Return the schemes to try beside a graph's own; by default none where the graph is not calibrated."""
        return self._named() or ([_TRIED] if calibrated else [])

    @property
    def wider(self) -> str:
        """Scheme that nodes of a graph with logits may widen to."""
        return next(iter(self._named()), _WIDER)

    def _named(self) -> list[str]:
        return [] if self.schemes is None else [scheme.strip() for scheme in self.schemes.split(",")]
