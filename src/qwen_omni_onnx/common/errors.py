"""Mistakes that a user can mend, told in one line; and how a command ends, whatever happens to it."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import NoReturn

from qwen_omni_onnx.common import input_warning
from qwen_omni_onnx.common.console import one_line, open_streams

__all__ = ["UserError", "run_command", "undisturbed"]

_STOPPING = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated", signal.SIGHUP: "hung up"}
_READER_LEFT = 128 + signal.SIGPIPE  # as of a program that SIGPIPE ends: scripts know it, and tell it from a mistake


class UserError(Exception):
    """Something that the user can mend. The message names what was wrong and what to do, on one line."""


def run_command(command: Callable[[], object], *, needs_reader: bool = True) -> None:
    """Run a command-line entry point, and end the process with one line on stderr if anything is wrong.

    - A :class:`UserError`, or an operating-system error (disk full, no permission), ends it with exit code 1. Any other
      exception is a defect of this project and keeps its traceback.
    - SIGINT, SIGTERM and SIGHUP raise an exception where the command is, so that it cleans up what it has begun, and
      end it with 128 and their number: 130, 143, 129. What is ignored when the process starts (``nohup``) stays so.
    - What cannot be printed is no reason for a traceback: see :func:`qwen_omni_onnx.common.console.open_streams`.

    Args:
        command: The entry point.
        needs_reader: Whether the command is there for what it prints. It then ends as soon as that cannot be written,
            with exit code 1, or, quietly, with 141 if the reader left (``| head -1``). If not, it does first what it is
            there for; then a full disk behind stdout is told all the same, and a reader who left is no fault.
    """
    stdout, stderr = open_streams(raises=needs_reader)
    input_warning.print_in_one_line()
    stop, hindered = _Stop(), False
    _running[:] = [stop]
    try:
        failure = _failure(command)
        hindered, stdout.raises = needs_reader and stdout.lost is not None, False
        if stop.number is not None:
            stdout.drop(if_stuck=True)
        sys.stdout.flush()
    except _Stopped as stopped:
        failure = stopped
        stdout.drop()
    stop.end()
    well = failure is None or (isinstance(failure, SystemExit) and not failure.code)
    if stop.number is not None and not well:  # whatever a library written in C++ has made of the exception
        stderr.drop(if_stuck=True)
        _end(128 + stop.number, _STOPPING[signal.Signals(stop.number)])
    if stdout.lost is not None and (well or hindered):
        _end_unread(stdout.lost, needs_reader)
    if isinstance(failure, UserError):
        _end(1, f"error: {failure}")
    if isinstance(failure, OSError):
        where = f"{os.fsdecode(failure.filename)}: " if isinstance(failure.filename, str | bytes) else ""
        _end(1, f"error: {where}{failure.strerror or failure}")
    if failure is not None:
        raise failure


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Let signals wait while something is made or removed that must be cleaned up; they raise at the end.

    What is made in here is to be noted in here, and this is to stand inside the ``try`` that cleans up.
    """
    # Signals are heeded by the main thread: to another one, the exception would mean nothing.
    stops = list(_running) if threading.current_thread() is threading.main_thread() else []
    for stop in stops:
        stop.held += 1
    try:
        yield
    finally:
        for stop in stops:
            stop.let_go()


def _failure(command: Callable[[], object]) -> BaseException | None:
    try:
        command()
    except BaseException as error:
        return error
    return None


def _end_unread(lost: OSError, needs_reader: bool) -> None:
    if not isinstance(lost, BrokenPipeError):
        _end(1, f"error: stdout: {lost.strerror}")
    if needs_reader:
        sys.exit(_READER_LEFT)


def _end(code: int, line: str) -> NoReturn:
    print(one_line(line), file=sys.stderr)
    sys.exit(code)


class _Stopped(BaseException):
    """A signal asks the command to stop. No KeyboardInterrupt: libraries do things of their own with that."""


class _Stop:
    """Raises :class:`_Stopped` when a signal comes.

    Attributes:
        number: Of the first signal that came; None if none did.
        held: Blocks that signals wait for: see :func:`undisturbed`.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self.held = 0
        self._waiting: int | None = None
        self._done = False
        here = threading.current_thread() is threading.main_thread()
        self._heeded = [number for number in _STOPPING if here and signal.getsignal(number) is not signal.SIG_IGN]
        for number in self._heeded:
            signal.signal(number, self._heed)

    def end(self) -> None:
        """Ignore signals from now on. A handler would not do: Python takes it away before it has exited."""
        self._done = True
        for number in self._heeded:
            signal.signal(number, signal.SIG_IGN)

    def let_go(self) -> None:
        """Leave a block; raise for the signal that waited for the last one, if one did."""
        self.held -= 1
        number = self._waiting
        if not self.held and number is not None:
            self._waiting = None
            self._heed(number, None)

    def _heed(self, number: int, frame: object) -> None:
        if self.held:
            self._waiting = number
            return
        if self._done or (self.number is not None and sys.exception() is not None):
            return  # a second one, while the first has things cleaned up; what a finalizer has swallowed raises again
        self.number = self.number or number
        raise _Stopped


_running: list[_Stop] = []  # the command of this process, if it is one
