"""A BPF ring buffer, read from its mapping: no system call and no callback a record.

Layout (kernel/bpf/ringbuf.c): the first page holds the consumer's position, the next the producer's, then the data,
mapped twice in a row so that no record wraps.  A record is an 8-byte header (length with a busy and a discard bit, then
a page offset) and its payload, rounded up to 8 bytes.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from typing import Final

BUSY: Final = 1 << 31
DISCARDED: Final = 1 << 30
HEADER: Final = 8
_U32 = struct.Struct("=I")


class Ring:
    """size: bytes, a power of two and a multiple of the page."""

    def __init__(self, fd: int, size: int) -> None:
        page = mmap.PAGESIZE
        self.fd, self.size = fd, size
        self._consumer = mmap.mmap(fd, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        self._producer = mmap.mmap(fd, page + 2 * size, mmap.MAP_SHARED, mmap.PROT_READ, offset=page)
        self._data = memoryview(self._producer)[page:]
        # Native 8-byte items are loaded and stored whole; struct's "=Q" goes byte by byte.
        self._consumed = memoryview(self._consumer).cast("Q")
        self._produced = memoryview(self._producer)[:page].cast("Q")
        self._position = self._consumed[0]

    def produced(self) -> int:
        """How far the producers have reserved, in bytes since the ring was made."""
        return self._produced[0]

    def pending(self) -> int:
        """Bytes not consumed yet."""
        return self.produced() - self._position

    def fixed(self, end: int, record: int) -> memoryview:
        """All whole records up to ``end`` (a value of ``produced``), headers included, ``record`` bytes each.

        Ends before the first one that is still being written.  Valid until ``consume``.
        """
        start = self._position & (self.size - 1)
        length = end - self._position
        view = self._data[start : start + length]
        headers = view.cast("I")[:: record // 4]
        if length and max(headers) >= DISCARDED:  # a producer may be preempted between reserving and writing
            return view[: record * next(i for i, header in enumerate(headers) if header >= DISCARDED)]
        return view

    def records(self) -> Iterator[memoryview]:
        """Payloads of any size, oldest first; each is consumed when the next is asked for."""
        end = self.produced()
        while self._position < end:
            start = self._position & (self.size - 1)
            header = _U32.unpack_from(self._data, start)[0]
            if header & BUSY:
                return
            length = header & ~(BUSY | DISCARDED)
            if not header & DISCARDED:
                yield self._data[start + HEADER : start + HEADER + length]
            self.consume((length + HEADER + 7) & ~7)

    def consume(self, length: int) -> None:
        """Give so many bytes back to the producers."""
        self._position += length
        self._consumed[0] = self._position

    def close(self) -> None:
        for view in (self._data, self._consumed, self._produced):
            view.release()
        self._producer.close()
        self._consumer.close()
