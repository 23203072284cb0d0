"""Choose a scheme for each node from what each was measured to cost, and write the choice into ``params.yaml``.

Noises of single nodes add up nearly independently at the output, so that a choice's noise is predicted by their sum;
the prediction only steers the search. What counts is the graph that is built from the choice, and measured.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

from omni.edit import dump, set_value
from qwen_omni_onnx.common.metrics import EXACT_DB

__all__ = [
    "Choice", "Option", "Options", "apply", "choose", "counts", "decibels", "frontier", "offer", "plan", "totals",
    "yaml_block",
]  # fmt: skip

_PARAMS = Path("params.yaml")
_ALIKE = 0.1  # of a node's cost as float32: schemes this close cost the same, and the component's own is taken
_OVERSHOOT_DB = 0.3  # above the target that are not worth another build
_BUILDS = 6  # that a search may take before it asks for all that is missing at once


@dataclass(frozen=True)
class Option:
    """One scheme for one node.

    Attributes:
        noise: Energy that it adds at the output, as a share of the signal's.
        bytes: Bytes of its weights.
        ms: Time of its run at the longest measured length.
    """

    noise: float
    bytes: int
    ms: float


Options = Mapping[str, Mapping[str, Option]]
"""Options by node and scheme."""


@dataclass(frozen=True)
class Choice:
    """A scheme for each node, what the sum of single noises predicted, and what the built graph gave."""

    schemes: Mapping[str, str]
    predicted_db: float
    measured_db: float


def decibels(noise: float) -> float:
    """SQNR of a noise that is given as a share of the signal's energy."""
    return min(-10 * math.log10(noise), EXACT_DB) if noise > 0 else EXACT_DB


def totals(options: Options, schemes: Mapping[str, str]) -> Option:
    """Return the sums over all nodes: noise as the additive model predicts it, bytes of the weights, time."""
    chosen = [options[node][scheme] for node, scheme in schemes.items()]
    return Option(sum(o.noise for o in chosen), sum(o.bytes for o in chosen), sum(o.ms for o in chosen))


def plan(options: Options, target_db: float, default: str) -> dict[str, str]:
    """Return the cheapest schemes whose predicted SQNR is at least ``target_db``, as far as a greedy search finds them.

    Every node starts with its cheapest scheme; then steps follow, each the one that removes most noise for its cost;
    in the end, steps that turned out not to be needed are taken back, the dearest first. A cost counts size and time
    alike: each as a share of what all nodes take as float32.

    Args:
        options: Options of every node.
        target_db: SQNR at the output.
        default: Scheme of the component, preferred where another is not clearly cheaper.
    """
    all_float = totals(options, dict.fromkeys(options, "float32"))

    def cost(node: str, scheme: str) -> float:
        option = options[node][scheme]
        return option.bytes / all_float.bytes + option.ms / max(all_float.ms, 1e-9)

    def start(node: str) -> str:
        cheapest = min(options[node], key=lambda scheme: cost(node, scheme))
        alike = default in options[node] and cost(node, default) <= cost(node, cheapest) + _ALIKE * cost(
            node, "float32"
        )
        return default if alike else cheapest

    def gain(node: str, scheme: str) -> float:
        removed = options[node][chosen[node]].noise - options[node][scheme].noise
        more = cost(node, scheme) - cost(node, chosen[node])
        return removed / max(more, _ALIKE * cost(node, "float32"))  # a free step is still a line for a person to read

    allowed = 10 ** (-target_db / 10)
    chosen = {node: start(node) for node in options}
    steps: list[tuple[str, str, str]] = []
    while totals(options, chosen).noise > allowed:
        _, node, scheme = max((gain(node, scheme), node, scheme) for node in options for scheme in options[node])
        steps.append((node, chosen[node], scheme))
        chosen[node] = scheme
    for node, before, after in sorted(steps, key=lambda step: cost(step[0], step[1]) - cost(step[0], step[2])):
        without = chosen | {node: before}
        if chosen[node] == after and totals(options, without).noise <= allowed:
            chosen = without
    return chosen


def choose(options: Options, target_db: float, default: str, measure: Callable[[Mapping[str, str]], float]) -> Choice:
    """Return the cheapest choice that was built, measured, and found to have at least ``target_db``.

    Where the sum of single noises promised too much or too little, the next plan is made for what it was off by, within
    what is known to miss and what is known to meet.

    Args:
        options: Options of every node.
        target_db: SQNR at the output that the built graph must have.
        default: Scheme of the component.
        measure: Builds a graph with these schemes and returns its SQNR.
    """
    best: Choice | None = None
    asked, misses, builds = target_db, 0.0, 0
    while True:
        schemes = plan(options, asked, default)
        found = Choice(schemes, decibels(totals(options, schemes).noise), measure(schemes))
        builds += 1
        over = found.measured_db - target_db
        if over >= 0:
            best = found
        else:
            misses = found.predicted_db
        if best is None:  # asking for all that is missing ends at float32 everywhere, which has no noise
            asked = EXACT_DB if builds >= _BUILDS else misses - over + 0.05
            continue
        enough = best.measured_db - target_db <= _OVERSHOOT_DB or builds >= _BUILDS
        asked = found.predicted_db - over + 0.05
        if not misses < asked < best.predicted_db:
            asked = (misses + best.predicted_db) / 2
        next_plan = plan(options, asked, default)
        if enough or next_plan == best.schemes or next_plan == schemes:
            return best


def frontier(options: Options, scheme: str) -> list[dict[str, Any]]:
    """Say what is reached when only the k nodes that bring most for their cost stay float32, for some k.

    Args:
        options: Options of every node.
        scheme: Scheme of all the other nodes.
    """
    everywhere = {node: scheme if scheme in of else "float32" for node, of in options.items()}
    all_float = totals(options, dict.fromkeys(options, "float32"))

    def gain(node: str) -> float:
        now, then = options[node][everywhere[node]], options[node]["float32"]
        cost = (then.bytes - now.bytes) / all_float.bytes + (then.ms - now.ms) / max(all_float.ms, 1e-9)
        return (now.noise - then.noise) / max(cost, 1e-12)

    order = sorted(options, key=gain, reverse=True)
    base, rows = totals(options, everywhere), []
    for count in counts(len(order)):
        found = totals(options, everywhere | dict.fromkeys(order[:count], "float32"))
        rows.append(
            {
                "float32_nodes": count,
                "last": order[count - 1] if count else "",
                "predicted_db": decibels(found.noise),
                "more_mb": (found.bytes - base.bytes) / 1e6,
                "more_ms": found.ms - base.ms,
            }
        )
    return rows


def counts(nodes: int) -> list[int]:
    """Return the numbers of nodes that a table shows: none, the powers of two, and all."""
    return sorted({0, nodes, *(2**power for power in range(nodes.bit_length()))})


def offer(keys: tuple[str, ...], proposal: Mapping[str, Any], *, write: bool) -> None:
    """Print the proposed ``nodes`` as a block to paste; with ``write``, write them into ``params.yaml``."""
    nodes = proposal["nodes"]
    print(yaml_block(keys, nodes, proposal["summary"]))
    if write:
        apply(_PARAMS, keys, nodes)
        print(f"wrote {len(nodes)} nodes to {'.'.join(keys)} in {_PARAMS}")


def yaml_block(keys: tuple[str, ...], nodes: Mapping[str, str], comment: str) -> str:
    """Return the block to paste into ``params.yaml``, at the place that ``keys`` lead to."""
    *sections, last = keys
    lines = [f"{'  ' * depth}{_key(section)}:" for depth, section in enumerate(sections)]
    indent = "  " * len(sections)
    lines += [f"{indent}# {comment}", f"{indent}{last}:" if nodes else f"{indent}{last}: {{}}"]
    lines += [f"{indent}  {line}" for line in dump(YAML(), _block(nodes)).splitlines() if nodes]
    return "\n".join(lines) + "\n"


def apply(path: Path, keys: tuple[str, ...], nodes: Mapping[str, str]) -> None:
    """Write ``nodes`` into the value of a parameter file that ``keys`` lead to; nothing else in the file changes.

    Raises:
        UserError: The file is laid out in a way that would not survive; it is left as it is.
    """
    set_value(path, keys, _block(nodes), "paste the block above yourself")


def _key(name: str) -> str:
    """Return a key as YAML has it: a pattern that begins with an asterisk would be an alias."""
    return name if re.fullmatch(r"[\w.-]+", name) else json.dumps(name)


def _block(nodes: Mapping[str, str]) -> CommentedMap:
    block = CommentedMap(nodes)
    if not nodes:
        block.fa.set_flow_style()
    return block
