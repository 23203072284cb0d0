"""Peak memory of processes, load of other processes, description of the machine, and progress bars."""

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

__all__ = [
    "INSTRUCTIONS",
    "WHOLE_BYTES",
    "machine",
    "measure_module",
    "others_load",
    "peak_bytes",
    "progress",
    "workers",
]

INSTRUCTIONS = ("amx_int8", "avx512_bf16", "avx512_vnni", "avx_vnni", "avx512f", "avx2")  # the fastest for INT8 first
# Float32 weights of a graph that is opened whole: a session holds them twice while it lays them out for its kernels,
# and no process of a stage is to take more than 12 GB.
WHOLE_BYTES = 5 * 2**30
_MEASURE = "omni.resources"


def peak_bytes(process: int | None = None) -> int:
    """Return the peak resident memory of this process since its start, in bytes.

    It is read from ``VmHWM``: ``getrusage`` would count the memory of the parent that forked this process.

    Args:
        process: Id of another process. Where the system does not tell its peak, or it has ended, that is 0.
    """
    status = Path(f"/proc/{process or 'self'}/status")
    with contextlib.suppress(OSError):
        told = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        return int(told[0].split()[1]) * 1024 if told else 0
    if process is not None:
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def measure_module(module: str, *arguments: str) -> int:
    """Run ``python -m module arguments`` in a process of its own; return its peak resident memory in bytes.

    Raises:
        UserError: The process failed or was killed; the message says which, and ends with its last line on stderr.
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
                process.terminate()  # it could run for minutes; leaving the context waits for it
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
    """Return a description of this machine: processor, physical cores, memory, and versions of the run-time."""
    import numpy
    import onnxruntime
    import psutil

    flags = _processor_field("flags").split()
    return {
        "processor": _processor_field("model name") or platform.processor() or platform.machine(),
        "instructions": " ".join(name for name in INSTRUCTIONS if name in flags),
        "cores": min(psutil.cpu_count(logical=False) or 1, workers()),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "onnxruntime": onnxruntime.__version__,
        "numpy": numpy.__version__,
    }


@contextlib.contextmanager
def others_load() -> Iterator[Callable[[], float]]:
    """Yield a function that returns the mean number of cores that other processes have kept busy since.

    Only cores that this process may run on are counted; time that a hypervisor gave to other machines counts as busy.
    """
    import psutil

    def busy() -> float:
        own = psutil.Process().cpu_times()
        cores = _own_cores(psutil.cpu_times(percpu=True))
        idle = sum(core.idle + getattr(core, "iowait", 0.0) for core in cores)
        return sum(sum(core[:8]) for core in cores) - idle - own.user - own.system

    began, busy_before = time.perf_counter(), busy()
    yield lambda: max(0.0, (busy() - busy_before) / (time.perf_counter() - began))


@contextlib.contextmanager
def progress(title: str, total: int, *, in_bytes: bool = False) -> Iterator[Callable[[int], None]]:
    """Show a progress bar on stderr if that is a terminal; yield a function that advances it by a step's size."""
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


def workers() -> int:
    """Return the number of cores that this process may run on: as many threads compute at once."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _own_cores(cores: list[Any]) -> list[Any]:
    """Return the cores that this process may run on; all of them where a container numbers cores differently."""
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
            raise  # the interpreter prints the code if it is a message
    os.write(write_end, str(peak_bytes()).encode())


if __name__ == "__main__":
    _end, _module = int(sys.argv[1]), sys.argv[2]
    sys.argv = sys.argv[2:]
    _run_and_report(_end, _module)
