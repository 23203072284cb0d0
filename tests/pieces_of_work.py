"""Works for tests of pools: what they do to pieces, and to the process that does them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from omni.pieces.work import Place
from qwen_omni_onnx.common.errors import UserError


@dataclass(frozen=True)
class Reading:
    """Gives a file's text, the piece, and which process it is."""

    folder: Path

    @property
    def needs(self) -> list[Path]:
        return [self.folder]

    def open(self, place: Place) -> Callable[[str], tuple[str, int]]:
        folder = place(self.folder)

        def read(piece: str) -> tuple[str, int]:
            time.sleep(0.2)  # or one process does them all
            return f"{(folder / 'sub/text').read_text()} {piece}", os.getpid()

        return read


@dataclass(frozen=True)
class Failing:
    """Fails as a piece says; ``killed FILE`` kills the process once, unless the file is there."""

    needs: tuple[Path, ...] = ()

    def open(self, place: Place) -> Callable[[str], str]:
        def fail(piece: str) -> str:
            what, _, path = piece.partition(" ")
            if what == "refused":
                raise UserError("that is not possible; do something else")
            if what == "broken":
                raise ZeroDivisionError("a defect")
            if what == "killed" and not (path and Path(path).exists()):
                if path:
                    Path(path).touch()
                os.kill(os.getpid(), signal.SIGKILL)
            if what == "slow":
                time.sleep(60)
            if what == "second":
                time.sleep(1)
            return what

        return fail
