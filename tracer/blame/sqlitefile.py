"""Single rows out of an SQLite file that an untrusted process can write.

Under ``rpm``.  SQLite itself believes what a file says of its own structure, and runs what its schema says; here
rows are read and nothing else, every number is checked, and the work of a look-up is bounded.  A write-ahead log
beside the file is not read: what it holds is not seen before the next checkpoint.

Format: https://www.sqlite.org/fileformat2.html (tables and indices with one BINARY column, UTF-8).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import NamedTuple

MAX_WORK = 20_000  # of one look-up, in pages read, or 64 cells of them
MAX_DEPTH = 20
MAX_PAYLOAD = 32 << 20
MAX_MATCHES = 10_000

_MAGIC = b"SQLite format 3\0"
_TABLE_INNER, _TABLE_LEAF, _INDEX_INNER, _INDEX_LEAF = 5, 13, 2, 10
_INTEGER_SIZES = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8}

Value = int | float | bytes | None  # texts are bytes


class BadDatabase(ValueError):
    """Not as SQLite writes it."""


class _Cell(NamedTuple):
    """child: page of the smaller keys, 0 in a leaf.  rowid: of a table's cell."""

    child: int
    rowid: int
    payload: bytes


class SqliteFile:
    """Holds the file open.  State: the work that the present look-up may still make."""

    def __init__(self, fd: int) -> None:
        """Takes the descriptor over.  Raises BadDatabase."""
        self._fd = fd
        self._left = MAX_WORK
        head = os.pread(fd, 100, 0)
        if len(head) < 100 or not head.startswith(_MAGIC) or head[59] > 1:
            raise BadDatabase("no SQLite file in UTF-8")
        size = int.from_bytes(head[16:18], "big")
        self._page_size = 65_536 if size == 1 else size
        self._usable = self._page_size - head[20]
        if self._page_size < 512 or self._page_size & (self._page_size - 1) or self._usable < 480:
            raise BadDatabase("a page size that is none")
        self._roots = {
            row[1]: row[3]
            for _, row in self._rows(1)
            if len(row) == 5 and isinstance(row[1], bytes) and isinstance(row[3], int)
        }

    def begin(self) -> None:
        """A look-up, of as many rows as it takes."""
        self._left = MAX_WORK

    def row(self, table: str, rowid: int) -> tuple[Value, ...] | None:
        """A table's row; its INTEGER PRIMARY KEY is None in it.  Raises BadDatabase."""
        page = self._root(table)
        for _ in range(MAX_DEPTH):
            inner, cells, last = self._page(page)
            found = next((cell for cell in cells if cell.rowid >= rowid), None)
            if not inner:
                return _record(found.payload) if found and found.rowid == rowid else None
            page = found.child if found else last
        raise BadDatabase("a tree that is too deep")

    def rowids(self, index: str, key: bytes) -> list[int]:
        """Of the rows that an index has under a text.  Raises BadDatabase."""
        found: list[int] = []
        for record in self._matches(self._root(index), key, MAX_DEPTH):
            if len(record) == 2 and isinstance(record[1], int) and len(found) < MAX_MATCHES:
                found.append(record[1])
        return found

    def _root(self, name: str) -> int:
        page = self._roots.get(name.encode())
        if page is None:
            raise BadDatabase(f"nothing is called {name}")
        return page

    def _rows(self, page: int, depth: int = MAX_DEPTH) -> Iterator[tuple[int, tuple[Value, ...]]]:
        """All rows of a table, with their ids."""
        if not depth:
            raise BadDatabase("a tree that is too deep")
        inner, cells, last = self._page(page)
        for cell in cells:
            if inner:
                yield from self._rows(cell.child, depth - 1)
            else:
                yield cell.rowid, _record(cell.payload)
        if inner:
            yield from self._rows(last, depth - 1)

    def _matches(self, page: int, key: bytes, depth: int) -> Iterator[tuple[Value, ...]]:
        if not depth:
            raise BadDatabase("a tree that is too deep")
        inner, cells, last = self._page(page)
        for cell in cells:
            record = _record(cell.payload)
            here = record[0] if record and isinstance(record[0], bytes) else b""
            if here < key:
                continue
            if inner:
                yield from self._matches(cell.child, key, depth - 1)
            if here > key:
                return
            yield record
        if inner:
            yield from self._matches(last, key, depth - 1)

    def _page(self, number: int) -> tuple[bool, list[_Cell], int]:
        """(has children, cells, the child of the largest keys)"""
        data = self._read(number)
        at = 100 if number == 1 else 0  # the file's own header
        try:
            kind, _, count, _, _ = struct.unpack_from(">BHHHB", data, at)
            inner = kind in (_TABLE_INNER, _INDEX_INNER)
            if not inner and kind not in (_TABLE_LEAF, _INDEX_LEAF):
                raise BadDatabase("a page that is none of a tree")
            self._spend(count // 64)
            pointers = struct.unpack_from(f">{count}H", data, at + (12 if inner else 8))
            last = int.from_bytes(data[at + 8 : at + 12], "big") if inner else 0
        except struct.error:
            raise BadDatabase("a page that is too short") from None
        return inner, [self._cell(data, pointer, kind) for pointer in pointers], last

    def _cell(self, data: bytes, at: int, kind: int) -> _Cell:
        child = rowid = 0
        if kind in (_TABLE_INNER, _INDEX_INNER):
            child = int.from_bytes(data[at : at + 4], "big")
            at += 4
        if kind == _TABLE_INNER:
            return _Cell(child, _varint(data, at)[0], b"")
        size, at = _varint(data, at)
        if kind == _TABLE_LEAF:
            rowid, at = _varint(data, at)
        return _Cell(child, rowid, self._payload(data, at, size, kind == _TABLE_LEAF))

    def _payload(self, data: bytes, at: int, size: int, is_table: bool) -> bytes:
        """What does not fit into the page goes on in a chain of others."""
        if size > MAX_PAYLOAD:
            raise BadDatabase("a row that is too large")
        usable = self._usable
        most = usable - 35 if is_table else (usable - 12) * 64 // 255 - 23
        least = (usable - 12) * 32 // 255 - 23
        local = size
        if size > most:
            local = least + (size - least) % (usable - 4)
            local = local if local <= most else least
        parts = [data[at : at + local]]
        left = size - local
        following = int.from_bytes(data[at + local : at + local + 4], "big") if left else 0
        while left:
            page = self._read(following)
            following = int.from_bytes(page[:4], "big")
            part = page[4 : min(usable, 4 + left)]
            parts.append(part)
            left -= len(part)
        return b"".join(parts)

    def _read(self, number: int) -> bytes:
        self._spend(1)
        data = os.pread(self._fd, self._page_size, max(number - 1, 0) * self._page_size)
        if len(data) != self._page_size:
            raise BadDatabase("a page beyond the end")
        return data

    def _spend(self, work: int) -> None:
        self._left -= work
        if self._left < 0:
            raise BadDatabase("pages without end")

    def __del__(self) -> None:
        os.close(self._fd)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """(number, where it ends): seven bits a byte, the ninth has eight."""
    value = 0
    for n, byte in enumerate(data[at : at + 9], 1):
        if n == 9:
            return value << 8 | byte, at + 9
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, at + n
    raise BadDatabase("a number that is cut off")


def _record(payload: bytes) -> tuple[Value, ...]:
    """The columns: a header of their types, then their values."""
    header, at = _varint(payload, 0)
    if header > len(payload):
        raise BadDatabase("a row that is cut off")
    values: list[Value] = []
    where = header
    while at < header:
        kind, at = _varint(payload, at)
        size = _INTEGER_SIZES.get(kind, 8 if kind == 7 else (kind - 12) // 2 if kind >= 12 else 0)
        data = payload[where : where + size]
        if len(data) != size:
            raise BadDatabase("a row that is cut off")
        where += size
        if kind in _INTEGER_SIZES:
            values.append(int.from_bytes(data, "big", signed=True))
        elif kind == 7:
            values.append(struct.unpack(">d", data)[0])
        else:
            values.append(data if kind >= 12 else {8: 0, 9: 1}.get(kind))
    return tuple(values)
