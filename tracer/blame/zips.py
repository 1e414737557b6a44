"""Single small files out of a ZIP archive that an untrusted process uses: an egg, a jar.

Under ``python`` and ``jar``.  The standard library's reader takes whatever a file's directory says of sizes; here the
directory and each member are bounded before they are read.  Format: APPNOTE.TXT 6.3 of PKWARE, without ZIP64, whose
archives are larger than what is wanted of them.
"""

from __future__ import annotations

import os
import struct
import zlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tracer.stacks.files import Root

MAX_DIRECTORY = 8 << 20
MAX_MEMBER = 1 << 20
MAX_COMMENT = 0xFFFF

_END = struct.Struct("<4s4H2LH")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_STORED, _DEFLATED = 0, 8


class ZipFile:
    """names: of the members, in the directory's order.  Holds the file open."""

    def __init__(self, fd: int) -> None:
        """Takes the descriptor over.  A file that is no archive has no members."""
        self._fd = fd
        self._members: dict[str, tuple[int, int, int]] = {}  # name to method, compressed size, offset
        try:
            self._read_directory(os.fstat(fd).st_size)
        except (OSError, struct.error):
            self._members.clear()

    @classmethod
    def at(cls, root: Root | None, path: str) -> ZipFile | None:
        """None for what cannot be opened."""
        try:
            return cls(root.open(path)) if root else None
        except OSError:
            return None

    @property
    def names(self) -> list[str]:
        return list(self._members)

    def read(self, name: str) -> bytes | None:
        """The member's content; None when there is none, or it is larger than ``MAX_MEMBER`` or broken."""
        member = self._members.get(name)
        if member is None:
            return None
        method, size, offset = member
        try:
            magic, _, _, local_method, *_, name_length, extra_length = _LOCAL.unpack(
                os.pread(self._fd, _LOCAL.size, offset)
            )
            data = os.pread(self._fd, size, offset + _LOCAL.size + name_length + extra_length)
            if magic != b"PK\x03\x04" or method != local_method or len(data) != size:
                return None
            if method == _STORED:
                return data
            inflater = zlib.decompressobj(-zlib.MAX_WBITS)
            content = inflater.decompress(data, MAX_MEMBER)
            return content if inflater.eof else None
        except (OSError, OverflowError, struct.error, zlib.error):
            return None

    def _read_directory(self, size: int) -> None:
        tail_at = max(0, size - _END.size - MAX_COMMENT)
        tail = os.pread(self._fd, size - tail_at, tail_at)
        at = tail.rfind(b"PK\x05\x06")
        if at < 0:
            return
        *_, length, start, _ = _END.unpack_from(tail, at)
        if length > MAX_DIRECTORY:
            return
        # What stands before an archive (a script that starts it) moves it all.
        moved = tail_at + at - length - start
        if moved < 0:
            return
        directory = os.pread(self._fd, length, start + moved)
        at = 0
        while at + _ENTRY.size <= len(directory):
            magic, *fields = _ENTRY.unpack_from(directory, at)
            if magic != b"PK\x01\x02":
                return
            method, compressed = fields[3], fields[7]
            name_length, extra_length, comment_length = fields[9:12]
            offset = fields[-1]
            name = directory[at + _ENTRY.size :][:name_length].decode("utf-8", "replace")
            if method in (_STORED, _DEFLATED) and compressed <= MAX_MEMBER:
                self._members[name] = method, compressed, offset + moved
            at += _ENTRY.size + name_length + extra_length + comment_length

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        self.close()
