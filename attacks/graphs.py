"""Attempts by way of the graphs: their nodes, their bytes and their external data."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from attacks.attempt import Attempt, Target, reseal

__all__ = ["ATTEMPTS"]

_COMPONENT = "projection"  # a graph with one input, one output and few weights
_GRAPHS = 20  # damaged graphs: one for so many mutations, as each is opened
_FOREVER = 2**62
_PATIENCE = 4.0  # seconds for graphs that have no end


def _external_data(target: Target) -> list[str]:
    """Let weights lie outside the folder, beyond the end of the file, or in each other's place."""
    gave_way = []
    for name, entries in (
        ("a folder above", {"location": "../outside.data"}),
        ("a folder far above", {"location": "../../../../../../../../../../etc/passwd"}),
        ("an absolute path", {"location": "/etc/passwd"}),
        ("a device", {"location": "/dev/zero"}),
        ("beyond the end", {"offset": str(1 << 40)}),
        ("a negative offset", {"offset": "-8"}),
        ("a length beyond the end", {"length": str(1 << 62)}),
        ("an offset that wraps around", {"offset": str((1 << 64) - 4)}),
        ("no number", {"offset": "x"}),
        ("a folder", {"location": "."}),
        ("no file", {"location": ""}),
        ("in the place of others", {"offset": "0"}),
        ("the manifest", {"location": "../manifest.json"}),
    ):
        folder = target.copy(_COMPONENT)
        data = next(folder.glob("onnx/*.data"))
        (folder / "outside.data").write_bytes(data.read_bytes())  # what `../outside.data` leads to is right
        os.rename(folder / "outside.data", folder.parent / "outside.data")
        _change(folder, partial(_point_elsewhere, entries))
        outcome = target.try_folder(folder)
        if outcome.kind != "refused":
            gave_way.append(f"{name}: {outcome.kind}: {outcome.said}")
    return gave_way


def _point_elsewhere(entries: dict[str, str], model: onnx.ModelProto) -> None:
    stored = [tensor for tensor in model.graph.initializer if tensor.external_data]
    for tensor in stored:
        kept = {entry.key: entry.value for entry in tensor.external_data}
        del tensor.external_data[:]
        for key, value in {**kept, **entries}.items():
            tensor.external_data.add(key=key, value=value)


def _endless(target: Target) -> list[str]:
    """Let graphs compute without end."""
    return _graphs_that(target, _loop, _nested_loops, _doubling_functions, _deep_branches, seconds=_PATIENCE)


def _greedy(target: Target) -> list[str]:
    """Let graphs fill the memory."""
    return _graphs_that(target, _constant_of_shape, _growing_loop, _wide_range)


def _foreign(target: Target) -> list[str]:
    """Let graphs ask for operators that no one has."""
    return _graphs_that(target, _custom_operator, _unknown_operator, _wrong_types, _cycle, _twice_the_name)


def _graphs_that(target: Target, *changes: Callable[[onnx.ModelProto], None], seconds: float = 60) -> list[str]:
    gave_way = []
    for change in changes:
        folder = target.copy(_COMPONENT)
        _change(folder, change)
        outcome = target.try_folder(folder, seconds)
        if outcome.kind != "refused":
            gave_way.append(f"{change.__name__.strip('_')}: {outcome.kind}: {outcome.said}")
    return gave_way


def _damaged(target: Target) -> list[str]:
    """Change random bytes of a graph, and recompute the hashes."""
    folder, random, gave_way = target.copy(_COMPONENT), target.random("damaged"), []
    path = min(folder.glob("onnx/*.onnx"))
    before, accepted, count = path.read_bytes(), 0, max(2, target.mutations // _GRAPHS)
    for number in range(count):
        content = bytearray(before)
        for _ in range(random.choice((1, 1, 4))):
            content[random.randrange(len(content))] = random.randrange(256)
        path.write_bytes(content)
        reseal(folder)
        outcome = target.try_folder(folder)
        accepted += outcome.kind == "accepted"
        if outcome.kind == "failed":
            gave_way.append(f"{number}: {outcome.said}")
    target.notes.append(f"{count} graphs, {accepted} accepted: they compute the same")
    return gave_way


def _change(folder: Path, change: Callable[[onnx.ModelProto], object]) -> None:
    """Change the float32 graph of a folder, and recompute the hashes."""
    path = min(folder.glob("onnx/*.onnx"), key=lambda path: len(path.name))
    model = onnx.load(path, load_external_data=False)
    change(model)
    path.write_bytes(model.SerializeToString())
    reseal(folder)


def _append(model: onnx.ModelProto, nodes: list[onnx.NodeProto], scalar: str) -> None:
    """Add a scalar that nodes compute to the output of the graph, so that none of them is left out."""
    (output,) = model.graph.output
    for node in model.graph.node:
        for number, name in enumerate(node.output):
            if name == output.name:
                node.output[number] = "right"
    model.graph.node.extend([*nodes, helper.make_node("Add", ["right", scalar], [output.name])])


def _scalar(model: onnx.ModelProto, name: str, value: object, dtype: type = np.float32) -> str:
    model.graph.initializer.append(numpy_helper.from_array(np.array(value, dtype), name))
    return name


def _loop_of(
    model: onnx.ModelProto, name: str, begin: str, carried: list[int | None], body: Callable[[str, str], onnx.NodeProto]
) -> onnx.NodeProto:
    """Return a loop without end, which gives out ``name``.

    Args:
        model: The model.
        name: What it gives out, and beginning of the names inside.
        begin: What the state is at first.
        carried: Shape of the state.
        body: Function that returns the node that makes the next state, of that name, of a state of that name.
    """
    trips = _scalar(model, f"{name}_trips", _FOREVER, np.int64)
    goes = _scalar(model, f"{name}_goes", True, np.bool_)
    number, goes_on, state, still, after = (
        f"{name}_{what}" for what in ("number", "goes_on", "state", "still", "next")
    )
    graph = helper.make_graph(
        [helper.make_node("Identity", [goes_on], [still]), body(state, after)],
        f"{name}_body",
        [
            helper.make_tensor_value_info(number, TensorProto.INT64, []),
            helper.make_tensor_value_info(goes_on, TensorProto.BOOL, []),
            helper.make_tensor_value_info(state, TensorProto.FLOAT, carried),
        ],
        [
            helper.make_tensor_value_info(still, TensorProto.BOOL, []),
            helper.make_tensor_value_info(after, TensorProto.FLOAT, carried),
        ],
    )
    return helper.make_node("Loop", [trips, goes, begin], [name], body=graph)


def _sine(state: str, after: str) -> onnx.NodeProto:
    return helper.make_node("Sin", [state], [after])


def _loop(model: onnx.ModelProto) -> None:
    _append(model, [_loop_of(model, "looped", _scalar(model, "begin", 0.5), [], _sine)], "looped")


def _nested_loops(model: onnx.ModelProto) -> None:
    def inner(state: str, after: str) -> onnx.NodeProto:
        return _loop_of(model, after, state, [], _sine)

    _append(model, [_loop_of(model, "looped", _scalar(model, "begin", 0.5), [], inner)], "looped")


def _growing_loop(model: onnx.ModelProto) -> None:
    """Each trip doubles the state."""

    def doubled(state: str, after: str) -> onnx.NodeProto:
        return helper.make_node("Concat", [state, state], [after], axis=0)

    nodes = [
        _loop_of(model, "grown", _scalar(model, "begin", np.zeros(1 << 20)), [None], doubled),
        helper.make_node("ReduceSum", ["grown"], ["looped"], keepdims=0),
    ]
    _append(model, nodes, "looped")


def _constant_of_shape(model: onnx.ModelProto) -> None:
    """16 GB, of a shape of which no optimizer knows that it is constant."""
    sizes = _scalar(model, "sizes", [1 << 16, 1 << 16], np.int64)
    nodes = [
        helper.make_node("Shape", [model.graph.input[0].name], ["shape"], start=0, end=1),
        helper.make_node("Mul", ["shape", _scalar(model, "none", [0], np.int64)], ["nothing"]),
        helper.make_node("Add", [sizes, "nothing"], ["shapes"]),
        helper.make_node("ConstantOfShape", ["shapes"], ["filled"]),
        helper.make_node("ReduceSum", ["filled"], ["looped"], keepdims=0),
    ]
    _append(model, nodes, "looped")


def _wide_range(model: onnx.ModelProto) -> None:
    start, end, step = (_scalar(model, name, value) for name, value in (("a", 0.0), ("b", 2.0**62), ("c", 1.0)))
    nodes = [
        helper.make_node("Range", [start, end, step], ["wide"]),
        helper.make_node("ReduceSum", ["wide"], ["looped"], keepdims=0),
    ]
    _append(model, nodes, "looped")


def _doubling_functions(model: onnx.ModelProto) -> None:
    """Each function calls the one before twice: 2^40 nodes once they are inlined."""
    imports, domain = list(model.opset_import), "doubled"
    for depth in range(40):
        below = [("Sin", "")] * 2 if not depth else [(f"twice{depth - 1}", domain)] * 2
        nodes = [
            helper.make_node(operator, [into], [out], domain=where)
            for (operator, where), into, out in zip(below, ("x", "y"), ("y", "z"), strict=True)
        ]
        opsets = [*imports, helper.make_opsetid(domain, 1)]
        model.functions.append(helper.make_function(domain, f"twice{depth}", ["x"], ["z"], nodes, opsets))
    model.opset_import.append(helper.make_opsetid(domain, 1))
    _append(model, [helper.make_node("twice39", [_scalar(model, "x", 0.5)], ["looped"], domain=domain)], "looped")


def _deep_branches(model: onnx.ModelProto) -> None:
    """Branches within branches, deeper than a stack."""
    goes_on = _scalar(model, "goes", True, np.bool_)
    output = helper.make_tensor_value_info("looped", TensorProto.FLOAT, [])
    node = helper.make_node("Identity", [_scalar(model, "x", 0.5)], ["looped"])
    for depth in range(3_000):
        branch = helper.make_graph([node], f"branch{depth}", [], [output])
        try:
            node = helper.make_node("If", [goes_on], ["looped"], then_branch=branch, else_branch=branch)
        except Exception:  # the library takes no deeper message
            break
        if node.ByteSize() > 1 << 20:
            break
    _append(model, [node], "looped")


def _custom_operator(model: onnx.ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    _append(model, [helper.make_node("Run", [_scalar(model, "x", 0.5)], ["y"], domain="com.example")], "y")


def _unknown_operator(model: onnx.ModelProto) -> None:
    _append(model, [helper.make_node("\x1b[2JSystem", [_scalar(model, "x", 0.5)], ["y"])], "y")


def _wrong_types(model: onnx.ModelProto) -> None:
    _append(model, [helper.make_node("And", [_scalar(model, "x", 0.5), "x"], ["y"])], "y")


def _cycle(model: onnx.ModelProto) -> None:
    _append(model, [helper.make_node("Sin", ["y"], ["z"]), helper.make_node("Sin", ["z"], ["y"])], "y")


def _twice_the_name(model: onnx.ModelProto) -> None:
    _append(model, [helper.make_node("Sin", ["right"], ["right"])], "right")


ATTEMPTS = (
    Attempt(
        "external-data",
        "weights outside the folder, in a device, beyond the end of the file, at offsets that wrap around, or in each "
        "other's place, with hashes recomputed",
        "refused: ONNX Runtime opens nothing outside the graph's folder, and golden cases tell what was exchanged",
        _external_data,
    ),
    Attempt(
        "endless-graphs",
        "loops of 2^62 trips, one inside another; 2^40 nodes in functions; branches within branches",
        "refused: graphs are opened and run in a process of its own, with a limit on time",
        _endless,
    ),
    Attempt(
        "greedy-graphs",
        "16 GB of zeros, a loop that doubles a tensor, a range of 2^62 numbers",
        "refused: that process has a limit on memory, too",
        _greedy,
    ),
    Attempt(
        "foreign-operators",
        "operators that ONNX Runtime does not have, of wrong types, in a cycle, or under a name that is taken",
        "refused: nothing is loaded for them",
        _foreign,
    ),
    Attempt(
        "damaged-graphs",
        "random bytes of a graph are changed, with hashes recomputed, 50 times",
        "refused, or what is accepted computes the same; a crash would be that of a process of its own",
        _damaged,
    ),
)
