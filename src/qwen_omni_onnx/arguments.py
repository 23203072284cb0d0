"""Arguments of a command line: a parser that tells a mistake in one line, and checks that several commands share."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from qwen_omni_onnx.common.console import one_line
from qwen_omni_onnx.common.errors import UserError

__all__ = ["Parser", "require_seed"]


class Parser(argparse.ArgumentParser):
    """``argparse``'s, with one line for a mistake, and no abbreviations: a new option could change what one means."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """End with exit code 2 and one line, where ``argparse`` would first print how all options are used."""
        self.exit(2, f"error: {one_line(message)}; {self.prog} --help tells more\n")


def require_seed(seed: int) -> None:
    """Refuse a seed that no generator takes.

    Raises:
        UserError: it is negative.
    """
    if seed < 0:
        raise UserError(f"--seed: {seed}; give 0 or more")
