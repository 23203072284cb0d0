"""What a computation costs and where it ran: peak memory, machine fingerprint, progress."""

from __future__ import annotations

import contextlib
import os
import platform
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from qwen_omni_onnx.common.errors import UserError

__all__ = ["INSTRUCTIONS", "machine", "measure_module", "others_load", "peak_bytes", "progress"]

INSTRUCTIONS = ("amx_int8", "avx512_bf16", "avx512_vnni", "avx_vnni", "avx512f", "avx2")  # the best for INT8 first
_MEASURE = "omni.resources"


def peak_bytes() -> int:
    """Peak resident memory of this process since it was started, in bytes.

    Read from ``VmHWM``: ``getrusage`` would count the memory of the parent that forked this process.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def measure_module(module: str, *arguments: str) -> int:
    """Run ``python -m module arguments`` in a process of its own and return its peak resident memory in bytes.

    Raises:
        UserError: the process failed or was killed; the message says which and repeats its last line.
    """
    read_end, write_end = os.pipe()
    command = [sys.executable, "-m", _MEASURE, str(write_end), module, *arguments]
    with open(read_end) as report:
        with subprocess.Popen(
            command, pass_fds=[write_end], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        ) as process:
            os.close(write_end)
            try:
                errors = process.communicate()[1]
            except BaseException:
                process.terminate()  # else it would go on for minutes; on leaving, it is waited for
                raise
        peak = report.read()
    if process.returncode:
        ended = f"exit code {process.returncode}"
        if process.returncode < 0:
            ended = f"killed by {signal.Signals(-process.returncode).name}"
        last = errors.strip().splitlines()[-1] if errors.strip() else "no message"
        raise UserError(f"python -m {module} {' '.join(arguments)}: {ended}: {last}")
    return int(peak)


def machine() -> dict[str, str | int]:
    """What latency and memory were measured on: processor, physical cores, memory, and the versions that matter."""
    import numpy
    import onnxruntime
    import psutil

    flags = _processor_field("flags").split()
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {
        "processor": _processor_field("model name") or platform.processor() or platform.machine(),
        "instructions": " ".join(name for name in INSTRUCTIONS if name in flags),
        "cores": min(psutil.cpu_count(logical=False) or 1, usable),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "onnxruntime": onnxruntime.__version__,
        "numpy": numpy.__version__,
    }


@contextlib.contextmanager
def others_load() -> Iterator[Callable[[], float]]:
    """Yield a function that says how many cores other processes have kept busy since: what spoils a timing.

    Only cores that this process may run on count; what a hypervisor gave to other machines counts as busy.
    """
    import psutil

    def busy() -> float:
        own = psutil.Process().cpu_times()
        cores = _usable(psutil.cpu_times(percpu=True))
        idle = sum(core.idle + getattr(core, "iowait", 0.0) for core in cores)
        return sum(sum(core[:8]) for core in cores) - idle - own.user - own.system

    began, before = time.perf_counter(), busy()
    yield lambda: max(0.0, (busy() - before) / (time.perf_counter() - began))


@contextlib.contextmanager
def progress(title: str, total: int, *, in_bytes: bool = False) -> Iterator[Callable[[int], None]]:
    """Show a progress bar on stderr while attached to a terminal; call what it yields with each step's size."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    amount = [DownloadColumn(), TransferSpeedColumn()] if in_bytes else [MofNCompleteColumn()]
    columns = [TextColumn("{task.description}"), BarColumn(), *amount, TimeRemainingColumn()]
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=total)
        yield lambda step: bar.advance(task, step)


def _usable(cores: list[Any]) -> list[Any]:
    """Return those of all cores that this process may run on; all, where a container counts them in its own way."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(len(cores))
    return [cores[number] for number in sorted(allowed)] if max(allowed) < len(cores) else cores


def _processor_field(name: str) -> str:
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return ""
    return next((line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith(name)), "")


def _run_and_report(write_end: int, module: str) -> None:
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as ending:
        if ending.code not in (None, 0):
            raise  # and let the interpreter print the message, where the code is one
    os.write(write_end, str(peak_bytes()).encode())


if __name__ == "__main__":
    _end, _module = int(sys.argv[1]), sys.argv[2]
    sys.argv = sys.argv[2:]
    _run_and_report(_end, _module)
