"""A graph's interface: names, dtypes and symbolic shapes of its inputs and outputs."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

__all__ = ["GraphContract", "Port", "differences", "once_a_layer"]

_LAYER = re.compile(r"\.\d+\.")


@dataclass(frozen=True)
class Port:
    """One input or output: ONNX element type, and a shape of sizes and names of symbolic dimensions."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def sized(self, sizes: Mapping[str, int]) -> list[int]:
        """Return the shape with each symbolic dimension replaced by its size."""
        return [sizes[axis] if isinstance(axis, str) else axis for axis in self.shape]

    def __str__(self) -> str:
        return f"{self.name} {self.dtype} [{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class GraphContract:
    """What callers may rely on.

    Attributes:
        inputs: Inputs in order; the first is the signal, a second one of shape [batch] gives the length of each of its
            rows.
        outputs: Outputs in order; the first is the signal; those of shape [batch] give the length of each of its rows.
        ir_version: IR version of the ONNX file.
        length: The symbolic axis of the first input that says how much there is of it.
        least: Smallest size of ``length`` that the graph takes.
        derived: Sizes of the symbolic axes that follow from the size of ``length``.
        symbols: Number of different values of a first input of integers: they go from 0 to one less.
        filled: Inputs of integers that are no lengths, each with the value that examples hold, if not 0.
        free: Symbolic axes that follow from nothing, ``batch`` aside, each with a size for examples.
        places: Input of integers that picks places along ``length``, for which alone an output is computed.
        nodes: Exact number of nodes of the float32 graph, where that is part of the promise.
        data_bytes: Exact size of the float32 graph's external data, where that is part of the promise.
        filled_to: Multiple of ``length`` to which the graph fills up a row inside; its activations then hold places
            beyond the row's end.
    """

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    ir_version: int
    length: str
    least: int = 1
    derived: Mapping[str, Callable[[int], int]] = field(default_factory=dict)
    symbols: int | None = None
    filled: Mapping[str, int] = field(default_factory=dict)
    free: Mapping[str, int] = field(default_factory=dict)
    places: str | None = None
    nodes: int | None = None
    data_bytes: int | None = None
    filled_to: int = 1

    @property
    def axis(self) -> int:
        """Which axis of a recording, the first input without its batch axis, is ``length``."""
        return self.inputs[0].shape.index(self.length) - 1

    @property
    def ragged(self) -> bool:
        """Whether the rows of a batch may have different lengths."""
        return len(self.inputs) > 1 and self.inputs[1].shape == ("batch",)

    @property
    def batched(self) -> bool:
        """Whether the graph takes several rows at once."""
        return self.inputs[0].shape[:1] == ("batch",)

    def sizes(self, batch: int, length: int) -> dict[str, int]:
        """Return the size of every symbolic axis."""
        follow = {axis: size(length) for axis, size in self.derived.items()}
        return {"batch": batch, self.length: length, **self.free, **follow}

    def example(self, batch: int, length: int, given: Mapping[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
        """Return made-up inputs beside those that are given: normal values, and integers as :meth:`integer` says."""
        sizes, random = self.sizes(batch, length), np.random.default_rng(0)
        fed = dict(given or {})
        for port in self.inputs:
            if port.name in fed:
                continue
            shape = port.sized(sizes)
            if port.dtype == "FLOAT":
                fed[port.name] = random.standard_normal(shape, np.float32)
            else:
                fed[port.name] = np.full(shape, self.integer(port, length), np.int64)
        return fed

    def every_place(self, batch: int, length: int) -> dict[str, np.ndarray]:
        """Return the input that asks for the outputs of all places along ``length``; nothing where none is left out.

        That is for who judges or observes a graph by every token of a recording; examples ask for what callers do.
        """
        return {self.places: np.tile(np.arange(length), (batch, 1))} if self.places else {}

    def filled_places(self, length: int, places: int) -> int:
        """Return how many of an activation's ``places`` belong to a single row of this length; they come first."""
        whole = -(-length // self.filled_to) * self.filled_to
        return min(places, -(-length * places // whole))

    def integer(self, port: Port, length: int) -> int:
        """Return what fills an input of integers in examples: the length of each row, or what ``filled`` says, or 0."""
        return length if port.shape == ("batch",) else self.filled.get(port.name, 0)


def once_a_layer(ports: tuple[Port, ...]) -> list[Port]:
    """Return one port for those that differ in the number of a layer only, which is then written ``N``."""
    named = {_LAYER.sub(".N.", port.name): port for port in reversed(ports)}
    return [replace(port, name=name) for name, port in reversed(named.items())]


def differences(expected: tuple[Port, ...], actual: tuple[Port, ...]) -> list[str]:
    """Say what differs between two lists of ports, a sentence each; an empty list where nothing does."""
    said = []
    for index, port in enumerate(expected):
        if index >= len(actual):
            said.append(f"{port} is missing")
        elif actual[index] != port:
            said.append(f"{actual[index]} should be {port}")
    return said + [f"{port} is not in the contract" for port in actual[len(expected) :]]
