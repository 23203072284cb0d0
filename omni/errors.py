"""Mistakes that a user can mend, told in one line."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable

from omni import input_warning

__all__ = ["Problem", "run_command"]


class Problem(Exception):
    """Something that the user can mend. The message names what was wrong and what to do, on one line."""


def run_command(command: Callable[[], object]) -> None:
    """Run a command-line entry point; a :class:`Problem` ends it with one line on stderr and exit code 1.

    An operating-system error (disk full, no permission) is told the same way. Anything else is a defect
    of this project and keeps its traceback; unless the user has interrupted it: libraries written in C++ may turn that
    into an error of their own.
    """
    asked_to_stop = False

    def stop(number: int, frame: object) -> None:
        nonlocal asked_to_stop
        asked_to_stop = True
        raise KeyboardInterrupt

    input_warning.print_in_one_line()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, stop)
    try:
        command()
    except BaseException as error:
        if asked_to_stop or isinstance(error, KeyboardInterrupt):
            print("interrupted", file=sys.stderr)
            sys.exit(130)
        if isinstance(error, Problem):
            print(f"error: {error}", file=sys.stderr)
            sys.exit(1)
        if isinstance(error, OSError):
            where = f"{error.filename}: " if error.filename else ""
            print(f"error: {where}{error.strerror or error}", file=sys.stderr)
            sys.exit(1)
        raise
