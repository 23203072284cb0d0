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
from rich.console import Console
from rich.table import Table

from omni.params import load
from omni.resources import machine
from profiles.__main__ import HERE, MARK
from profiles.watch import Ran, Watch, commands
from pull.estimate import disk, memory
from pull.source import plans_of, snapshot_of
from qwen_omni_onnx.common import artifact
from qwen_omni_onnx.common.command_line import run_app
from qwen_omni_onnx.common.errors import UserError

__all__ = ["main"]

PIPELINE, RECORD, MODELS = Path("dvc.yaml"), Path("reports/run.json"), Path("models")
_INTERVAL = 0.2  # seconds between two looks
_GEMM, _ROUNDS = 1536, 8
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print disk, memory and time, and stop.")] = False,
) -> None:
    """Build everything that params.yaml names, and record time, memory and bytes of each stage."""
    if not PIPELINE.is_file():
        raise UserError(f"{PIPELINE}: missing; run this in a folder that python -m profiles made")
    params = load()
    stages = commands(PIPELINE, {"components": params.components, "composed": params.composed})
    plans = plans_of(snapshot_of(params.model), params)
    needed = disk(plans, params)
    rate = _gigaflops()
    _print("disk", ["folder", "GB"], [[name, f"{count / 1e9:.1f}"] for name, count in needed.items()])
    _require_disk(sum(needed.values()))
    expected = _expected(rate, set(stages.values()))
    hours = f"about {sum(expected.values()) / 3600:.1f} hours" if expected else "never measured"
    print(f"disk: {sum(needed.values()) / 1e9:.1f} GB   memory: {memory(plans) / 1e9:.0f} GB at most   time: {hours}")
    if dry_run:
        return
    code = _run(stages, expected, rate)
    _summarize(stages)
    if code:
        raise UserError(f"dvc repro ended with exit code {code}; when that is mended, this command goes on from here")


def _run(stages: Mapping[tuple[str, ...], str], expected: Mapping[str, float], rate: float) -> int:
    """Run ``dvc repro`` and record what it does; return its exit code."""
    names, began = list(dict.fromkeys(stages.values())), time.monotonic()
    record = _record()
    before = set(record)

    def tell(name: str) -> None:
        _write(record | watch.ran, rate)
        done = before | watch.ran.keys() - {name}
        left = sum(expected.get(stage, 0.0) for stage in names if stage not in done)
        line = f"[{len(done & set(names)) + 1}/{len(names)}] {name}: {(time.monotonic() - began) / 60:.0f} min so far"
        print(f"{line}, about {left / 60:.0f} min left" if expected else line, flush=True)
        before.discard(name)  # it runs again

    watch = Watch(stages, tell)
    process = subprocess.Popen([sys.executable, "-m", "dvc", "repro", "--keep-going"])
    watched = psutil.Process(process.pid)
    try:
        while process.poll() is None:
            watch.look(watched)
            time.sleep(_INTERVAL)
    finally:
        if process.poll() is None:
            for each in [watched, *watched.children(recursive=True)]:
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
    held = sum(path.stat().st_size for path in MODELS.rglob("*") if path.is_file() and not path.is_symlink())
    missing = needed - held - psutil.disk_usage(".").free
    if missing > 0:
        raise UserError(
            f"{Path.cwd()}: a build of {needed / 1e9:.1f} GB lacks {missing / 1e9:.1f} GB of disk; free them, or build "
            "on another disk"
        )


def _expected(rate: float, names: set[str]) -> dict[str, float]:
    """Return the seconds that each stage should take here, by a recorded run and by how fast either machine is.

    There are none for a profile without a recorded run.
    """
    profile = MARK.read_text(encoding="utf-8").strip() if MARK.is_file() else ""
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


def _summarize(stages: Mapping[tuple[str, ...], str]) -> None:
    """Print time, memory and bytes of every stage that ran, now or in an earlier run."""
    record, rows = _record(), []
    for name in dict.fromkeys(stages.values()):
        if name in record:
            stage, _, component = name.partition("@")
            ran = record[name]
            rows.append(
                [stage, component, f"{ran.seconds / 60:.1f}", f"{ran.peak_bytes / 1e9:.1f}", _written(stage, component)]
            )
    seconds, peak = (
        sum(ran.seconds for ran in record.values()),
        max((ran.peak_bytes for ran in record.values()), default=0),
    )
    rows.append(["all", "", f"{seconds / 60:.1f}", f"{peak / 1e9:.1f}", ""])
    _print("stages", ["stage", "component", "minutes", "peak GB", "GB written"], rows)


def _cells(ran: Ran) -> list[str]:
    return [f"{ran.seconds / 60:.1f}", f"{ran.peak_bytes / 1e9:.1f}"]


def _written(stage: str, component: str) -> str:
    """Return the gigabytes of what a stage hands over; "" if that is a report."""
    folder = {"pull": "source", "export": "onnx", "compensate": "compensated", "quantize": "quantized",
              "calibrate": "calibration", "publish": "published"}.get(stage, stage)  # fmt: skip
    files = [path for path in (MODELS / folder / component).rglob("*") if path.is_file()]
    return f"{sum(path.stat().st_size for path in files) / 1e9:.2f}" if files else ""


def _print(title: str, columns: list[str], rows: list[list[str]]) -> None:
    table = Table(title=title, title_justify="left", title_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number < len(columns) - 3 or number == 0 else "right")
    for row in rows:
        table.add_row(*row)
    console = Console()
    (console if console.is_terminal else Console(width=150)).print(table)


if __name__ == "__main__":
    run_app(app)
