"""What is unusual about something that a user gave, told in one line: ``warning: ...``."""

from __future__ import annotations

import warnings

__all__ = ["InputWarning", "print_in_one_line"]


class InputWarning(UserWarning):
    """Something that the user may not expect of an input, and that a result is to be read with.

    The message names the input and what was done about it, on one line.
    """


def print_in_one_line() -> None:
    """Let ``warnings`` print an :class:`InputWarning` without the line of code that it comes from."""
    warnings.formatwarning = _formatted


_with_its_place = warnings.formatwarning


def _formatted(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    if issubclass(category, InputWarning):
        return f"warning: {message}\n"
    return _with_its_place(message, category, filename, lineno, line)
