"""Build everything, watched: ``python -m profiles.run [--dry-run]`` in a copy that ``python -m profiles`` made.

It tells the disk before anything is written, and refuses if there is too little; runs ``dvc repro``; says at each stage
what is left; and ends with a table of time, memory and bytes. Whatever ends it, it goes on where it was.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import psutil
import typer

from omni.params import load
from omni.program import COPY
from omni.resources import machine
from omni.terminal import print_table
from profiles.__main__ import HERE
from profiles.watch import Ran, Watch, caches, commands, descendants, outputs
from pull.estimate import disk, memory
from pull.source import plans_of, snapshot_of
from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.common.command_line import run_app
from qwen_omni_onnx.common.errors import UserError

__all__ = ["main"]

PIPELINE, RECORD, MODELS, CACHE = Path("dvc.yaml"), Path("reports/run.json"), Path("models"), Path(".dvc/cache")
_UNSHARED = ("models/published", "for the time of a stage")
_INTERVAL = 0.2  # seconds between two looks
_GEMM, _ROUNDS = 1536, 8
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print disk, memory and time, and stop.")] = False,
    pull: Annotated[
        bool, typer.Option("--pull", help="Fetch from DVC's remote what another machine has built and shared.")
    ] = False,
) -> None:
    """Build everything that params.yaml names, and record time, memory and bytes of each stage."""
    if not PIPELINE.is_file():
        raise UserError(f"{PIPELINE}: missing; run this in a folder that python -m profiles made")
    params = load()
    components = {"components": params.components, "composed": params.composed}
    stages = commands(PIPELINE, components)
    plans = plans_of(snapshot_of(params.model), params)
    needed = disk(plans, params)
    if caches(PIPELINE):
        needed[str(CACHE)] = sum(count for name, count in needed.items() if name not in _UNSHARED)
    rate = _gigaflops()
    print_table("disk", ["folder", "GB"], [[name, f"{count / 1e9:.1f}"] for name, count in needed.items()])
    _require_disk(sum(needed.values()))
    expected = _expected(rate, set(stages.values()))
    hours = f"about {sum(expected.values()) / 3600:.1f} hours" if expected else "never measured"
    print(f"disk: {sum(needed.values()) / 1e9:.1f} GB   memory: {memory(plans) / 1e9:.0f} GB at most   time: {hours}")
    if dry_run:
        return
    code = _run(stages, expected, rate, ["--pull"] if pull else [])
    _summarize(outputs(PIPELINE, components))
    if code:
        raise UserError(f"dvc repro ended with exit code {code}; when that is mended, this command goes on from here")


def _run(stages: Mapping[tuple[str, ...], str], expected: Mapping[str, float], rate: float, options: list[str]) -> int:
    """Run ``dvc repro`` with options and record what it does; return its exit code."""
    names, began = list(dict.fromkeys(stages.values())), time.monotonic()
    record = _record()

    def tell(name: str) -> None:
        _write(record | watch.ran, rate)
        done = {*record, *watch.ran} - {name}
        left = sum(expected.get(stage, 0.0) for stage in names if stage not in done)
        line = f"[{len(done & set(names)) + 1}/{len(names)}] {name}: {(time.monotonic() - began) / 60:.0f} min so far"
        print(f"{line}, about {left / 60:.0f} min left" if expected else line, flush=True)

    watch = Watch(stages, tell)
    process = subprocess.Popen([sys.executable, "-m", "dvc", "repro", "--keep-going", *options])
    watched = psutil.Process(process.pid)
    try:
        while process.poll() is None:
            watch.look(watched)
            time.sleep(_INTERVAL)
    finally:
        if process.poll() is None:
            for each in [watched, *descendants(watched)]:
                with contextlib.suppress(psutil.Error):
                    each.terminate()
            process.wait()
        _write(record | watch.ran, rate)
    return process.returncode


def _require_disk(needed: float) -> None:
    """Refuse to begin what the disk has no room for; what an earlier run wrote is counted.

    Raises:
        UserError: There is too little.
    """
    missing = needed - _bytes(MODELS) - _bytes(CACHE) - psutil.disk_usage(".").free
    if missing > 0:
        raise UserError(
            f"{Path.cwd()}: a build of {needed / 1e9:.1f} GB lacks {missing / 1e9:.1f} GB of disk; free them, or build "
            "on another disk"
        )


def _expected(rate: float, names: set[str]) -> dict[str, float]:
    """Return the seconds that each stage should take here, by a recorded run and by how fast either machine is.

    There are none for a profile without a recorded run.
    """
    profile = artifact.read_json(COPY)["profile"] if COPY.is_file() else ""
    expected = HERE / f"{profile}.json"
    if not profile or not expected.is_file():
        return {}
    recorded = artifact.read_json(expected)
    slower = recorded["gigaflops"] / rate
    return {name: ran["seconds"] * slower for name, ran in recorded["stages"].items() if name in names}


def _gigaflops() -> float:
    """Measure how fast this machine multiplies matrices in float32: the best of several rounds."""
    left = np.ones((_GEMM, _GEMM), np.float32)
    times = []
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        left @ left
        times.append(time.perf_counter() - began)
    return 2 * _GEMM**3 / min(times) / 1e9


def _record() -> dict[str, Ran]:
    if not RECORD.is_file():
        return {}
    return {name: Ran(**ran) for name, ran in artifact.read_json(RECORD)["stages"].items()}


def _write(ran: Mapping[str, Ran], rate: float) -> None:
    content: dict[str, Any] = {"machine": machine(), "gigaflops": round(rate, 1)}
    artifact.write_json(RECORD, content | {"stages": {name: asdict(stage) for name, stage in ran.items()}})


def _summarize(written: Mapping[str, list[Path]]) -> None:
    """Print time, memory and bytes of every stage that ran, now or in an earlier run.

    Args:
        written: What each stage hands over, by its name.
    """
    record = {name: ran for name, ran in _record().items() if name in written}
    rows = [
        [*name.partition("@")[::2], *_cells(record[name]), f"{sum(map(_bytes, paths)) / 1e9:.2f}"]
        for name, paths in written.items()
        if name in record
    ]
    together = Ran(
        sum(ran.seconds for ran in record.values()), max((ran.peak_bytes for ran in record.values()), default=0)
    )
    print_table(
        "stages",
        ["stage", "component", "minutes", "peak GB", "GB written"],
        [*rows, ["all", "", *_cells(together), ""]],
    )


def _cells(ran: Ran) -> list[str]:
    return [f"{ran.seconds / 60:.1f}", f"{ran.peak_bytes / 1e9:.1f}"]


def _bytes(path: Path) -> int:
    """Return the size of a file, or of all files in a folder; 0 if there is none."""
    files = [path] if path.is_file() or path.is_symlink() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file() and not file.is_symlink())


if __name__ == "__main__":
    run_app(app)
