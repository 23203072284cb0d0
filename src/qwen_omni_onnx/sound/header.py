"""What the header of a sound file says of its length, held against what is there.

WAV, RF64, W64, AIFF and CAF are made of chunks, each with its length in front, and the length of the sound is written
last: a recorder that was killed leaves 0 or an old one, and in WAV a length above 4 GB wraps around. libsndfile
believes such a length, and gives less than was recorded.

Sources: "Multimedia Programming Interface and Data Specifications 1.0" (RIFF), EBU Tech 3306 (RF64), the Sony Wave64
description, Apple's "Audio Interchange File Format 1.3" and "Core Audio Format Specification".
"""

from __future__ import annotations

import mmap
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from io import SEEK_CUR, SEEK_END, SEEK_SET, FileIO

__all__ = ["SoundLength", "read_length"]

_STRAY = 256  # bytes; less than that behind the sound is a tag or padding (ID3v1 has 128), and at most 32 ms of sound
_TAIL = 1 << 24  # bytes at the end of a file in which metadata is looked for; an image in it may be large
_BLOCK = 1 << 20
_DS64 = 28  # bytes: lengths of the file, of the sound and of the samples, and of a table
_MOST_CHUNKS = 10_000  # a file of nothing but empty chunks would take hours
_METADATA = re.compile(
    rb"LIST|JUNK|PAD |FLLR|bext|iXML|axml|cue |plst|smpl|inst|fact|PEAK|id3 |DISP|_PMX|cart|afsp|acid|levl|chna|umid|"
    rb"NAME|AUTH|ANNO|\(c\) |MARK|COMT|APPL|CHAN|FVER|info|strg|uuid|free|pakt|kuki|regn|edct|ovvw|midi",
    re.IGNORECASE,
)
_W64_KINDS = (b"\x00\xc0\x4f\x8e\xdb\x8a", b"\x28\xdb\x04\xc1\x00\x00")  # what the GUIDs of its chunks end in


@dataclass(frozen=True)
class _Layout:
    """How a format lays out its chunks.

    Attributes:
        magic: What a file begins with.
        first: Where its first chunk begins.
        size: The length of a chunk, behind its name.
        open_ended: From this length on, the writer did not know how long the sound would be.
        id_bytes: Length of a chunk's name.
        counted: Bytes of its own name and length that a chunk's length counts.
        align: Chunks begin at multiples of so many bytes.
        sound: Name of the chunk that holds the sound.
    """

    magic: re.Pattern[bytes]
    first: int
    size: struct.Struct
    open_ended: int
    id_bytes: int = 4
    counted: int = 0
    align: int = 2
    sound: bytes = b"data"

    @property
    def header(self) -> int:
        """Bytes of a chunk's name and length."""
        return self.id_bytes + self.size.size


_PIPED_WAV = 0x7FFF_0000  # what is written to a pipe claims this much or more: SoX 0x7FFFF000, FFmpeg 0xFFFFFFFF
_PIPED_AIFF = 0x7EFF_0000  # SoX 0x7F000000, less a frame
_PIPED_LONG = 1 << 62  # of 64 bits, all are set
_RIFF = _Layout(re.compile(rb"RIFF....WAVE", re.DOTALL), 12, struct.Struct("<I"), _PIPED_WAV)
_RIFX = _Layout(re.compile(rb"RIFX....WAVE", re.DOTALL), 12, struct.Struct(">I"), _PIPED_WAV)
_RF64 = _Layout(re.compile(rb"RF64....WAVE", re.DOTALL), 12, struct.Struct("<I"), _PIPED_LONG)
_AIFF = _Layout(re.compile(rb"FORM....AIF[FC]", re.DOTALL), 12, struct.Struct(">I"), _PIPED_AIFF, sound=b"SSND")
_CAF = _Layout(re.compile(rb"caff"), 8, struct.Struct(">Q"), _PIPED_LONG, align=1)
_W64 = _Layout(
    re.compile(rb"riff.{20}wave", re.DOTALL), 40, struct.Struct("<Q"), _PIPED_LONG, id_bytes=16, counted=24, align=8
)


@dataclass(frozen=True)
class _Chunk:
    """A chunk: its name, where its content begins, and the length of that."""

    name: bytes
    start: int
    length: int

    @property
    def end(self) -> int:
        """Where its content ends."""
        return self.start + self.length


@dataclass(frozen=True)
class SoundLength:
    """What a header says of the length of a sound, in bytes, and what is there.

    Attributes:
        start: Where the sound begins in the file.
        promised: Its length, as the header has it.
        present: Its length, up to the metadata behind it, or to the end of the file.
        open_ended: Whether the header says that the length was not known when it was written.
    """

    start: int
    promised: int
    present: int
    open_ended: bool
    _corrections: tuple[tuple[int, bytes], ...]

    @property
    def is_cut(self) -> bool:
        """Whether the header promises more than is there."""
        return self.promised > self.present and not self.open_ended

    @property
    def is_right(self) -> bool:
        """Whether the header counts what is there."""
        return self.promised == self.present

    def corrected(self, file: FileIO) -> mmap.mmap:
        """Return the file as it would be with the right length in its header, and without what is behind the sound.

        It is mapped, not read, and the header is changed in what this process sees alone.
        """
        mapped = _Mapped(file.fileno(), self.start + self.present, access=mmap.ACCESS_COPY)
        for at, content in self._corrections:
            mapped[at : at + len(content)] = content
        return mapped


class _Mapped(mmap.mmap):
    """A mapped file in which one can go beyond the end, as in any file; libsndfile does."""

    def seek(self, offset: int, whence: int = SEEK_SET) -> None:
        at = {SEEK_SET: 0, SEEK_CUR: self.tell(), SEEK_END: len(self)}[whence] + offset
        super().seek(min(max(at, 0), len(self)))


def read_length(file: FileIO) -> SoundLength | None:
    """Return what a file's header says of the length of its sound; None where it is no format that is known here.

    What is behind the sound that the header counts is metadata if it is a chain of chunks up to the end of the file,
    and padding if it is nothing but zeros; else it is sound, but for a chain of chunks at its end.

    Args:
        file: A sound file; one can go back and forth in it.
    """
    magic = _read(file, 0, 40)
    for layout in (_RIFF, _RIFX, _RF64, _AIFF, _CAF, _W64):
        if layout.magic.match(magic):
            return _Chunks(file, layout).sound_length()
    return None


class _Chunks:
    """The chunks of one file."""

    def __init__(self, file: FileIO, layout: _Layout) -> None:
        self._file, self._layout = file, layout
        self._end = file.seek(0, SEEK_END)

    def sound_length(self) -> SoundLength | None:
        """Return what the header says of the length of the sound, or None if there is no chunk of sound."""
        layout, long = self._layout, None
        for chunk in self._from(layout.first):
            if layout is _RF64 and chunk.name == b"ds64" and chunk.length >= _DS64:
                long = chunk
            if chunk.name.startswith(layout.sound):
                return self._held_against_the_file(chunk, long)
        return None

    def _held_against_the_file(self, sound: _Chunk, long: _Chunk | None) -> SoundLength:
        start, promised, there = sound.start, sound.length, self._end - sound.start
        if long is not None and promised == 0xFFFF_FFFF:
            (promised,) = struct.unpack("<Q", _read(self._file, long.start + 8, 8))
        open_ended = promised >= self._layout.open_ended
        if promised <= there and self._is_no_sound(start + promised):
            present = promised
        elif promised > there and not open_ended:
            present = there
        else:
            present = self._last_chain(start) - start
        return SoundLength(start, promised, present, open_ended, self._corrections(start, present, long))

    def _corrections(self, start: int, present: int, long: _Chunk | None) -> tuple[tuple[int, bytes], ...]:
        """Return what to write where, so that libsndfile reads all of a file that ends where the sound does."""
        size = self._layout.size
        at = start - size.size
        if self._layout in (_RIFF, _RIFX):  # what libsndfile takes for a WAV that was not closed, of any length
            return (4, size.pack(8)), (at, size.pack(0))
        if self._layout is _AIFF:  # a chunk of 0 bytes is taken to go on to the end of the file
            return ((at, size.pack(0)),)
        if long is not None:
            return (long.start + 8, struct.pack("<Q", present)), (at, size.pack(0xFFFF_FFFF))
        return ((at, size.pack(present + self._layout.counted)),)

    def _is_no_sound(self, at: int) -> bool:
        """Return whether what is left of the file is stray bytes, padding or metadata."""
        if self._end - at < _STRAY or self._is_zero(at):
            return True
        chunks = list(self._from(at))
        # Sound that begins like a chunk of any name hardly goes on with chunks up to its end.
        return bool(chunks) and bool(_METADATA.match(chunks[0].name) or 0 <= self._end - chunks[-1].end < _STRAY)

    def _last_chain(self, start: int) -> int:
        """Return where the chain of chunks begins that ends with the file; the file's end if there is none."""
        begin = max(start, self._end - _TAIL)
        for found in _METADATA.finditer(_read(self._file, begin, self._end - begin)):
            chunks = list(self._from(begin + found.start()))
            if chunks and 0 <= self._end - chunks[-1].end < self._layout.align:
                return begin + found.start()
        return self._end

    def _from(self, at: int) -> Iterator[_Chunk]:
        """Yield the chunks that follow one another, up to what does not look like one."""
        for _ in range(_MOST_CHUNKS):
            # Some writers leave out the padding of a chunk of odd length.
            chunk = self._chunk(at + -at % self._layout.align) or self._chunk(at)
            if chunk is None:
                return
            yield chunk
            at = chunk.end

    def _chunk(self, at: int) -> _Chunk | None:
        layout = self._layout
        if at + layout.header > self._end:
            return None
        head = _read(self._file, at, layout.header)
        name = head[: layout.id_bytes]
        if not re.fullmatch(rb"[ -~]{4}", name[:4]) or (layout is _W64 and not name.endswith(_W64_KINDS)):
            return None
        (length,) = layout.size.unpack(head[layout.id_bytes :])
        return _Chunk(name, at + layout.header, max(0, length - layout.counted))

    def _is_zero(self, at: int) -> bool:
        while block := _read(self._file, at, _BLOCK):
            if block.count(0) < len(block):
                return False
            at += len(block)
        return True


def _read(file: FileIO, at: int, size: int) -> bytes:
    file.seek(at)
    return file.read(size)
