"""Mistakes that a user can mend, told in one line."""

from __future__ import annotations

import sys
from collections.abc import Callable

__all__ = ["Problem", "run_command"]


class Problem(Exception):
    """Something that the user can mend. The message names what was wrong and what to do, on one line."""


def run_command(command: Callable[[], object]) -> None:
    """Run a command-line entry point; a :class:`Problem` ends it with one line on stderr and exit code 1.

    An operating-system error (disk full, no permission) is told the same way. Anything else is a defect
    of this project and keeps its traceback.
    """
    try:
        command()
    except Problem as problem:
        print(f"error: {problem}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror or error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
