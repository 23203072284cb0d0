"""Export and quantize take the libraries' memory, two tensors and a little: the kernel refuses them any more.

A control under the same limit loads the checkpoint all at once, as other exporters do, and fails.
"""

from __future__ import annotations

import resource
import shutil
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from limited import in_a_process

from omni.checkpoint import DTYPES, Checkpoint, TensorSpec, encode_header
from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.common.contract import GraphContract, Port

if TYPE_CHECKING:  # a process that is measured imports no more than it needs
    from omni.params import Scheme

MIB = 2**20
STEM = "stack"
BLOCK_VALUES = 8 * MIB  # of the checkpoint, drawn at a time
TIMES_THE_HEADROOM = 4  # so much larger than what building may take beside the libraries is every checkpoint here
# Of float32's bytes; a block of 32 has a float32 scale and a zero point of four bits.
SHARE = {"int8-token": 1 / 4, "int4-block": 1 / 8 + 1 / 32 + 1 / 256}


@dataclass(frozen=True)
class Stack:
    """Linear layers, narrow to wide to narrow and so on, and what building them may take beside two tensors."""

    narrow: int
    wide: int
    layers: int
    headroom: int

    @property
    def largest(self) -> int:
        """Bytes of the largest tensor in float32."""
        return 4 * self.narrow * self.wide

    @property
    def float32_bytes(self) -> int:
        return sum(2 * spec.nbytes for spec in self.specs().values())

    def specs(self) -> dict[str, TensorSpec]:
        """The checkpoint's tensors, [out, in] as PyTorch stores them."""
        table = {}
        for layer in range(self.layers):
            out, into = (self.wide, self.narrow) if layer % 2 == 0 else (self.narrow, self.wide)
            table[f"{layer}.weight"] = TensorSpec("BF16", (out, into))
            table[f"{layer}.bias"] = TensorSpec("BF16", (out,))
        return table

    def contract(self) -> GraphContract:
        shape = ("batch", "seq", self.narrow)
        ports = (Port("input", "FLOAT", shape),), (Port("output", "FLOAT", shape),)
        return GraphContract(*ports, ir_version=10, length="seq")

    def build(self) -> Any:
        from torch import nn

        return nn.Sequential(*(nn.Linear(*spec.shape[::-1]) for spec in self.specs().values() if len(spec.shape) == 2))


TINY = Stack(narrow=8, wide=16, layers=2, headroom=0)
SMALL = Stack(narrow=2048, wide=2048, layers=24, headroom=48 * MIB)
FULL = Stack(narrow=2048, wide=8192, layers=48, headroom=256 * MIB)


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Path]:
    """A folder that is gone afterwards: pytest would keep gigabytes of the last three runs."""
    yield tmp_path
    shutil.rmtree(tmp_path)


@pytest.mark.parametrize(
    ("stack", "schemes", "times_the_limit"),
    [
        pytest.param(SMALL, ["int8-token"], 0.7, id="small"),
        pytest.param(FULL, ["int8-token", "int4-block"], 3, id="full", marks=pytest.mark.slow),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_exported_and_quantized_all_the_same(
    room: Path, stack: Stack, schemes: list[Scheme], times_the_limit: float
) -> None:
    write_checkpoint(room / "source", stack)

    base, limit, failure = under_limit(load_at_once, room, stack)
    assert failure.startswith("MemoryError"), failure
    assert stack.float32_bytes > times_the_limit * limit
    assert stack.float32_bytes > TIMES_THE_HEADROOM * (limit - base)

    *_, failure = under_limit(export_in_a_stream, room, stack)
    assert failure == ""
    exported = room / "onnx" / f"{STEM}.onnx.data"
    assert stack.float32_bytes <= exported.stat().st_size < stack.float32_bytes + MIB
    assert_same_weights(room, stack)

    for scheme in schemes:
        *_, failure = under_limit(partial(quantize_in_a_stream, scheme=scheme), room, stack)
        assert failure == "", scheme
        written = room / scheme / f"{STEM}.onnx.data"
        assert written.stat().st_size < stack.float32_bytes * SHARE[scheme] * 1.01  # biases and factors stay float32
        shutil.rmtree(written.parent)


def write_checkpoint(folder: Path, stack: Stack) -> None:
    """Write a seeded checkpoint, block by block."""
    folder.mkdir()
    artifact.write_json(folder / "config.json", {})
    random = np.random.default_rng(0)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(encode_header(stack.specs()))
        for spec in stack.specs().values():
            left = spec.nbytes // 2
            while left:
                block = random.random(min(left, BLOCK_VALUES), dtype=np.float32) - np.float32(0.5)
                file.write(block.astype(DTYPES["BF16"]).tobytes())
                left -= len(block)


def assert_same_weights(room: Path, stack: Stack) -> None:
    """Compare the exported weights of the last layer with the checkpoint's."""
    import onnx_ir as ir

    graph = ir.load(room / "onnx" / f"{STEM}.onnx").graph
    last = [node for node in graph if node.op_type == "MatMul"][-1].inputs[1].const_value.numpy()
    stored = Checkpoint(room / "source").read(f"{stack.layers - 1}.weight")
    np.testing.assert_array_equal(last, stored.T.astype(np.float32))


def under_limit(work: Callable[[Path, Stack], None], room: Path, stack: Stack) -> tuple[int, int, str]:
    """Do something in a process of its own that may take no more memory than is promised.

    Returns:
        Bytes that the libraries take, the limit, and why the process failed; "" if it did not.
    """
    return in_a_process(_limited, work, room, stack)


# What follows runs in the limited process.


def _limited(result: Connection, work: Callable[[Path, Stack], None], room: Path, stack: Stack) -> None:
    _load_libraries(work)
    base = _data_bytes()
    limit = base + 2 * stack.largest + stack.headroom
    resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.RLIM_INFINITY))
    failure = ""
    try:
        work(room, stack)
    except MemoryError as error:
        failure = f"MemoryError: {error}"
    except Exception:
        failure = traceback.format_exc()
    resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    result.send((base, limit, failure))


def _load_libraries(work: Callable[[Path, Stack], None]) -> None:
    """Import what the work imports; PyTorch's exporter loads much of itself only when it first traces something."""
    if work is export_in_a_stream:
        import export.weights  # noqa: F401
        from export.trace import trace

        trace(TINY.build, TINY.contract())
    else:
        import quantize.apply  # noqa: F401
    import omni.streamed  # noqa: F401


def _data_bytes() -> int:
    """Private writable memory of this process: what RLIMIT_DATA limits."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmData")).split()[1]) * 1024


def load_at_once(room: Path, stack: Stack) -> None:
    """What the promise rules out; in the stored dtype even, half of float32."""
    checkpoint = Checkpoint(room / "source")
    tensors = [checkpoint.read(name) for name in checkpoint.entries]
    raise AssertionError(f"{len(tensors)} tensors fit")


def export_in_a_stream(room: Path, stack: Stack) -> None:
    """What ``python -m export`` does."""
    from export.exporter import Traced
    from export.trace import trace
    from export.weights import bind
    from omni.streamed import save_graph

    with artifact.writing(room / "onnx") as folder:
        model = trace(stack.build, stack.contract())
        bind(model, Checkpoint(room / "source"), Traced(lambda *_: stack.build()), None)
        save_graph(model, folder, STEM)


def quantize_in_a_stream(room: Path, stack: Stack, scheme: Scheme) -> None:
    """What ``python -m quantize`` does, with a calibration that was made up."""
    import onnx_ir as ir

    from omni.params import QuantizeParams
    from omni.streamed import save_graph
    from omni.weight import matmuls
    from quantize.apply import Calibration, quantize

    graph_file = room / "onnx" / f"{STEM}.onnx"
    seen = {
        str(value.name): Calibration(np.linspace(0.5, 2, nodes[0].inputs[1].shape[0], dtype=np.float32), 1.0)
        for value, nodes in matmuls(ir.load(graph_file).graph).items()
    }
    model, _ = quantize(graph_file, QuantizeParams(scheme=scheme, block=32, nodes={}), seen)
    with artifact.writing(room / scheme) as folder:
        save_graph(model, folder, STEM)
