"""Work on what comes from a stranger, in a process of its own that may take so much time and memory, and no more.

Native code that opens a graph may be led to compute without end, to fill the memory or to crash. Here that ends another
process than the caller's. Nothing but JSON goes back and forth: what has taken that process over can send back wrong
values, and no code.

The process begins as a new interpreter: nothing is forked, and no guard is needed in a script that calls this.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NoReturn

from qwen_omni_onnx.common.errors import UserError

__all__ = ["ConfinedProcess", "Limits", "StoppedError", "serve"]

_STEP = 0.02  # seconds between two looks at the memory; a core fills 0.2 GB meanwhile
_LONGEST_ANSWER = 1 << 26  # bytes
# `-P`: nothing is imported from the current folder, which may be the stranger's. What the caller imports from is given.
_BEGIN = "import json, sys; sys.path[:] = json.loads(sys.stdin.readline()); from {0} import serve; serve()"


class StoppedError(Exception):
    """The work came to no end of its own. The message says why, as in ``it`` + message: "took longer than 60 s"."""


@dataclass(frozen=True)
class Limits:
    """What a piece of work may take.

    Attributes:
        seconds: Time from the call to its answer.
        nbytes: Resident memory of the process. Systems without ``/proc`` do not tell it, and it is not limited there.
    """

    seconds: float
    nbytes: float


class ConfinedProcess:
    """A process that works on what comes from a stranger, one call after another. It ends with this object.

    Args:
        limits: What each call may take.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _BEGIN.format(__name__)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # libraries repeat what is in a graph, terminal commands too
        )
        self._waiting = bytearray()  # of the answer
        self._turn = threading.Lock()
        self.close = weakref.finalize(self, _end, self._process)
        self._send(sys.path)

    def call(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """Return what ``work(*arguments)`` returns in that process.

        Args:
            work: A function of a module that can be imported.
            arguments: What JSON can hold.

        Raises:
            UserError: The work raised it.
            StoppedError: The work met a limit, crashed, or raised anything else: it is not fit for what it was given.
                The process has ended, and takes no other call.
        """
        with self._turn:
            self._send([work.__module__, work.__qualname__, arguments])
            try:
                answer = json.loads(self._answer())
            except BaseException:
                self.close()
                raise
        if "mistake" in answer:
            raise UserError(str(answer["mistake"]))
        if "error" in answer:
            raise StoppedError(f"failed with {answer['error']}")
        return answer["value"]

    def __enter__(self) -> ConfinedProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _send(self, value: Any) -> None:
        pipe = self._process.stdin
        assert pipe is not None
        try:
            pipe.write(json.dumps(value).encode() + b"\n")
            pipe.flush()
        except (BrokenPipeError, ValueError):
            return  # it has ended, or was closed; that is told where its answer is read

    def _answer(self) -> bytes:
        """Return the next line that the process writes; look at its memory and at the clock meanwhile."""
        pipe = self._process.stdout
        assert pipe is not None
        if pipe.closed:
            raise StoppedError("was stopped before")
        deadline = time.monotonic() + self._limits.seconds
        waiting = select.poll()
        waiting.register(pipe, select.POLLIN)
        looked_at = 0
        while (end := self._waiting.find(b"\n", looked_at)) < 0:
            looked_at = len(self._waiting)
            if waiting.poll(1000 * _STEP):
                read = os.read(pipe.fileno(), 1 << 20)
                if not read:
                    raise StoppedError(_ended(self._process.wait()))
                self._waiting += read
            if len(self._waiting) > _LONGEST_ANSWER:
                raise StoppedError(f"answered with more than {_LONGEST_ANSWER / 1e6:.0f} MB")
            if _resident(self._process.pid) > self._limits.nbytes:
                raise StoppedError(f"took more than {self._limits.nbytes / 1e9:.3g} GB of memory")
            if time.monotonic() > deadline:
                raise StoppedError(f"took longer than {self._limits.seconds:g} s")
        line = bytes(self._waiting[:end])
        del self._waiting[: end + 1]
        return line


def serve() -> NoReturn:
    """Answer calls, in the process: one line of JSON each. It ends when whoever began it has ended."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what libraries print is no answer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to both; whoever began it ends it
    _yield_memory()
    calls: SimpleQueue[str] = SimpleQueue()
    threading.Thread(target=_read, args=(calls,), daemon=True).start()
    while True:
        module, name, arguments = json.loads(calls.get())
        answers.write(json.dumps(_answered(getattr(import_module(module), name), arguments)) + "\n")
        answers.flush()


def _answered(work: Callable[..., Any], arguments: list[Any]) -> dict[str, Any]:
    try:
        return {"value": work(*arguments)}
    except UserError as error:
        return {"mistake": str(error)}
    except BaseException as error:  # a panic of a library in Rust is no Exception
        (*_, last) = traceback.extract_tb(error.__traceback__)
        said = " ".join(traceback.format_exception_only(error)[-1].split())[:300]
        return {"error": f"{said} ({Path(last.filename).name}, line {last.lineno})"}


def _read(calls: SimpleQueue[str]) -> None:
    for line in sys.stdin:
        calls.put(line)
    os._exit(0)  # the work may be in the middle of something


def _yield_memory() -> None:
    """Let the system end this process before all others where it is short of memory, and leave no image of it."""
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    try:
        Path("/proc/self/oom_score_adj").write_text("1000")
    except OSError:
        return  # no Linux, or not allowed here: the limit holds all the same


def _resident(process: int) -> int:
    """Return the resident memory of a process in bytes; 0 where the system does not tell it, or it has ended."""
    try:
        told = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0
    lines = [line for line in told.splitlines() if line.startswith("VmRSS")]
    return int(lines[0].split()[1]) * 1024 if lines else 0


def _ended(code: int) -> str:
    """Return in words how a process ended that gave no answer."""
    if code == -signal.SIGKILL:
        return "was killed, as a system does that is short of memory"
    return f"crashed ({signal.Signals(-code).name})" if code < 0 else f"ended with exit code {code}"


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        try:
            pipe.close()
        except OSError:
            continue  # what was not sent has no reader
