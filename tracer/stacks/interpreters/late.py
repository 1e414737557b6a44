"""A script's frames read from user space, for a fork that the kernel's walker missed: the process is some milliseconds
older by then.

So for the first fork of a process that nobody had looked at, before its walker is loaded, and where the kernel's
side could not read a page (it cannot fetch one from the disk).  ``store`` believes what is found only if it fits the
native stack, which is the fork's own, and says that it was read late.

The process goes on meanwhile, and nothing stops it: each value may be anything.
"""

from __future__ import annotations

import os
import struct
from bisect import bisect_right
from pathlib import Path
from typing import NamedTuple

from tracer.records import CodeRecord, Walk
from tracer.stacks.maps import AddressSpace, readable

_WORD = struct.Struct("<Q")


class Unreadable(Exception):
    """Nothing can be read at an address."""


class Walked(NamedTuple):
    """frames: (what it executes, position, flags) as a walker of bpf/ sends them, innermost first."""

    frames: tuple[tuple[CodeRecord, int, int], ...]
    walk: Walk


class Memory:
    """The memory of a process; a context manager.

    Only anonymous memory and the files that hold code: a page of any other file may be on a file system that its owner
    serves himself, and then reading it lasts as long as he likes.
    """

    def __init__(self, pid: int, space: AddressSpace) -> None:
        """Raises ``OSError`` when the process is gone."""
        code_files = {(mapping.dev, mapping.inode) for mapping in space.mappings if mapping.inode}
        text = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8", errors="surrogateescape")
        kept = [m for m in readable(text) if not m.inode or (m.dev, m.inode) in code_files]
        self._starts = [mapping.start for mapping in kept]
        self._ends = [mapping.end for mapping in kept]
        self._fd = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)

    def read(self, address: int, size: int) -> bytes:
        """Exactly so many bytes.  Raises ``Unreadable``."""
        data = b""
        at = address
        while len(data) < size:
            index = bisect_right(self._starts, at) - 1
            room = self._ends[index] - at if index >= 0 else 0
            if room <= 0:
                raise Unreadable
            try:
                part = os.pread(self._fd, min(room, size - len(data)), at)
            except (OSError, OverflowError):
                raise Unreadable from None
            if not part:
                raise Unreadable
            data += part
            at += len(part)
        return data

    def word(self, address: int) -> int:
        value: int = _WORD.unpack(self.read(address, 8))[0]
        return value

    def close(self) -> None:
        os.close(self._fd)

    def __enter__(self) -> Memory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
