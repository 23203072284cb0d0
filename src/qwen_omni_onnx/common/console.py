"""What a command says: standard streams that no command fails in the middle of, and messages of one printable line."""

from __future__ import annotations

import contextlib
import io
import os
import select
import sys
from collections.abc import Iterator
from typing import Any, TextIO

__all__ = ["Stream", "one_line", "open_streams", "without_commands"]


_LONGEST_LINE = 500  # characters; the longest messages of this project, with a path in them, are shorter


class Stream(io.BufferedWriter):
    """A standard stream to which nothing more is written once something could not be.

    Whoever reads it may go away, and the disk that it is written to may be full. Without this class each ``print`` from
    then on would raise, and Python once more at its exit.

    Args:
        number: The file descriptor.
        raises: Whether what cannot be written raises, the first time.

    Attributes:
        lost: Why something could not be written; None as long as all of it was.
        raises: See above.
    """

    def __init__(self, number: int, *, raises: bool) -> None:
        os.set_blocking(number, True)  # a parent may have left it otherwise, and a full pipe would raise
        super().__init__(io.FileIO(number, "w", closefd=False))
        self.lost: OSError | None = None
        self.raises = raises
        self._dropped = False

    def write(self, data: Any, /) -> int:
        """Take some bytes; return how many, which are all of them.

        Raises:
            OSError: They are the first ones that cannot be written, and the stream raises.
        """
        if self._is_open():
            with self._losing():
                return super().write(data)
        return len(data)

    def flush(self) -> None:
        """Write what was taken. Raises as ``write`` does."""
        if self._is_open():
            with self._losing():
                super().flush()

    def drop(self, *, if_stuck: bool = False) -> None:
        """Write nothing any more; or only if the reader does not take anything, who would be waited for."""
        self._dropped = self._dropped or not (if_stuck and select.select([], [self], [], 0)[1])

    def _is_open(self) -> bool:
        return self.lost is None and not self._dropped

    @contextlib.contextmanager
    def _losing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.lost = error
            if self.raises:
                raise


def open_streams(*, raises: bool) -> tuple[Stream, Stream]:
    """Put other streams into ``sys.stdout`` and ``sys.stderr``; return what lies below them.

    Characters that an encoding does not have are written as escapes. What is closed is opened to nowhere: the next file
    that is opened would get its number, and with it all that is printed.

    Args:
        raises: Whether what cannot be written to stdout raises, the first time. On stderr nothing ever does.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # gets the lowest number that is free: this one
    stdout, stderr = _stream(sys.stdout, 1, raises=raises), _stream(sys.stderr, 2, raises=False)
    sys.stdout, sys.stderr = _text(stdout, sys.stdout), _text(stderr, sys.stderr)
    return stdout, stderr


def one_line(text: str) -> str:
    """Return a text with escapes for what is not printable: line ends, terminal commands, bytes that are no UTF-8.

    The middle of a long text is left out: a message may repeat a value of a megabyte that a user has given.
    """
    if len(text) > _LONGEST_LINE:
        text = f"{text[: _LONGEST_LINE // 2]} ... {text[-_LONGEST_LINE // 2 :]}"
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii") for letter in text
    )


def without_commands(text: str) -> str:
    """Return a text as it is, but with escapes for what a terminal would obey: control characters but for line ends.

    A model may say anything, and whoever made its tokenizer chose what its tokens spell.
    """
    return "".join(
        letter.encode("unicode_escape").decode("ascii") if _is_command(letter) else letter for letter in text
    )


def _is_command(letter: str) -> bool:
    return (letter < " " and letter not in "\n\t") or "\x7f" <= letter <= "\x9f"


def _stream(opened: TextIO | None, number: int, *, raises: bool) -> Stream:
    """Return the stream of a number; to nowhere if Python found it closed, whatever has got the number since then."""
    return Stream(number if opened is not None else os.open(os.devnull, os.O_WRONLY), raises=raises)


def _text(stream: Stream, opened: TextIO | None) -> TextIO:
    """Return a text stream as Python had opened it, but for what it does with characters that its encoding lacks."""
    like = opened if isinstance(opened, io.TextIOWrapper) else io.TextIOWrapper(io.BytesIO(), "utf-8")
    return io.TextIOWrapper(
        stream,
        like.encoding,
        "backslashreplace",
        line_buffering=like.line_buffering,
        write_through=like.write_through,
    )
