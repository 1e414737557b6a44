"""Bytes of a file by offset: what ``elf`` reads from, be it a descriptor or memory.

Target files are never mapped into memory: whoever truncates a mapped file kills its reader with SIGBUS.  ``pread``
of the ranges needed is short instead, which costs a note, and keeps no large file in memory.
"""

from __future__ import annotations

import os
from typing import Protocol


class Source(Protocol):
    """``read`` gives at most ``size`` bytes, fewer where the file ends.  Errors of the disk are OSError."""

    @property
    def size(self) -> int: ...

    def read(self, offset: int, size: int) -> bytes: ...


class FileSource:
    """Takes a descriptor over; it closes with the object."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.size = os.fstat(fd).st_size

    def read(self, offset: int, size: int) -> bytes:
        if not 0 <= offset < self.size or size <= 0:
            return b""
        return os.pread(self._fd, min(size, self.size - offset), offset)

    def __del__(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class BytesSource:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size = len(data)

    def read(self, offset: int, size: int) -> bytes:
        if offset < 0:
            return b""
        return self._data[offset : offset + max(size, 0)]


class Window:
    """A range of another source, such as a section of a file."""

    def __init__(self, source: Source, offset: int, size: int) -> None:
        self._source = source
        self._offset = offset
        self.size = max(min(size, source.size - offset), 0)

    def read(self, offset: int, size: int) -> bytes:
        return self._source.read(self._offset + offset, min(size, self.size - offset))


class Exhausted(Exception):
    """A parser read more than its budget: the file is built to keep it busy."""


class Budget:
    """What is left to a parser: reads and bytes.  Streams of one parser share it."""

    def __init__(self, reads: int, volume: int) -> None:
        self.reads = reads
        self.volume = volume


_BLOCK = 1 << 16


class Stream:
    """A source as the binary stream that pyelftools wants, with an end to its patience.

    pyelftools trusts counts, offsets and lengths in the file, and reads something in each of its loops: the budget
    bounds the time that a hostile file can take.  ``read`` raises Exhausted when it is spent.
    """

    def __init__(self, source: Source, budget: Budget) -> None:
        self._source = source
        self._budget = budget
        self._position = 0
        self._block = b""
        self._block_start = 0

    def read(self, size: int | None = -1) -> bytes:
        position = self._position
        left = self._source.size - position
        if left <= 0:
            size = 0
        elif size is None or not 0 <= size <= left:
            size = left
        budget = self._budget
        budget.reads -= 1
        budget.volume -= size
        if budget.reads < 0 or budget.volume < 0:
            raise Exhausted
        start = position - self._block_start
        if not 0 <= start <= start + size <= len(self._block):
            self._block = self._source.read(position, max(size, _BLOCK))
            self._block_start = position
            start = 0
        data = self._block[start : start + size]
        self._position = position + len(data)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = 0 if whence == os.SEEK_SET else self._position if whence == os.SEEK_CUR else self._source.size
        if base + offset < 0:
            raise ValueError("negative seek position")
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def close(self) -> None:
        """Nothing to do: the source closes with its last user."""
