"""Is there memory for it? Some ways need as much as the square of the length: ``python -m benchmarks.token2wav.probe``.

What may not fit runs once in a process of its own that may have no more than is free. It is refused the memory, and
says so; without the limit, the kernel would kill whatever it likes.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from benchmarks.building import ROOT
from benchmarks.token2wav.utterance import utterance
from benchmarks.token2wav.ways import Bench, builders
from omni.errors import Problem, run_command
from omni.resources import measure_module
from validate.subject import subjects

__all__ = ["reason_not_to_run", "require_room_for_pytorch"]

# How many tensors of the mask's size, [2, heads, frames, frames] float32, are in memory at most. At 3000 frames PyTorch
# took 2; at 1000 the exported graph took 14, which grow: ONNX Runtime doubles what it asks for.
_PYTORCH_MASKS, _EXPORTED_MASKS = 3, 32
_BESIDE = 5 * 2**30  # bytes for what else is in memory: the way that takes turns with this one, and its inner tensors


def require_room_for_pytorch(heads: int, frames: int) -> None:
    """Refuse a length at which transformers' own DiT, which every other way is compared with, would not fit.

    Raises:
        Problem: it would not.
    """
    needed, free = _PYTORCH_MASKS * _mask_bytes(heads, frames) + _BESIDE, _available()
    if needed > free:
        raise Problem(
            f"--seconds: PyTorch takes {needed / 1e9:.0f} GB for {frames} mel frames, {free / 1e9:.0f} are free; "
            "give a shorter length"
        )


def reason_not_to_run(bench: Bench, way: str, heads: int, codes: int, frames: int) -> str | None:
    """Return why an exported graph cannot evaluate an utterance in the memory that is free; None if it can."""
    limit = _available() - _BESIDE
    if _EXPORTED_MASKS * _mask_bytes(heads, frames) < limit:
        return None
    return _reason(bench, way, codes, limit)


def _reason(bench: Bench, way: str, codes: int, limit: int) -> str | None:
    """Let it run once with at most ``limit`` bytes of data."""
    asked = {"folder": str(bench.folder), "threads": bench.threads, "cores": bench.cores}
    asked |= {"models": str(Path.cwd()), "way": way, "codes": codes, "limit": limit}
    try:
        with contextlib.chdir(ROOT):
            measure_module("benchmarks.token2wav.probe", json.dumps(asked))
    except Problem as problem:
        return f"does not run in {limit / 1e9:.1f} GB: {str(problem).rpartition('}: ')[2]}"
    return None


def _mask_bytes(heads: int, frames: int) -> int:
    return 2 * heads * frames * frames * 4


def _available() -> int:
    import psutil

    return psutil.virtual_memory().available


def _run(asked: dict[str, Any]) -> None:
    import resource

    os.chdir(asked["models"])
    ((subject, _),) = subjects(["token2wav"])
    bench = Bench(subject, asked["threads"], asked["cores"], Path(asked["folder"]))
    fed = utterance(bench, asked["codes"])
    resource.setrlimit(resource.RLIMIT_DATA, (asked["limit"], asked["limit"]))
    try:
        builders(bench)[asked["way"]]().evaluation(fed)()
    except Exception as error:  # each runtime raises classes of its own; the parent prints the message
        raise Problem(" ".join(str(error).rpartition("Status Message: ")[2].split())) from None


if __name__ == "__main__":
    run_command(lambda: _run(json.loads(sys.argv[1])))
