"""CPython's line tables: from a bytecode position to the source line.

Three encodings: co_lnotab (3.8, 3.9; Objects/lnotab_notes.txt), the pairs of PEP 626 (3.10), and the location table
(3.11 on; Objects/locations.md, InternalDocs/code_objects.md).
"""

from __future__ import annotations

NO_LINE = -128
_NONE, _LONG, _NO_COLUMNS, _ONE_LINE = 15, 14, 13, 10


def line_of_lnotab(table: bytes, first_line: int, position: int) -> int | None:
    """position: bytes of bytecode."""
    address, line = 0, first_line
    for at in range(0, len(table) - 1, 2):
        address += table[at]
        if address > position:
            break
        line += _signed(table[at + 1])
    return line


def line_of_pairs(table: bytes, first_line: int, position: int) -> int | None:
    """position: bytes of bytecode."""
    end, line = 0, first_line
    for at in range(0, len(table) - 1, 2):
        start, end = end, end + table[at]
        step = _signed(table[at + 1])
        if step != NO_LINE:
            line += step
        if start <= position < end:
            return None if step == NO_LINE else line
    return None


def line_of_locations(table: bytes, first_line: int, position: int) -> int | None:
    """position: bytes of bytecode.  None in a table that ends early."""
    at, end, line = 0, 0, first_line
    try:
        while at < len(table):
            head = table[at]
            at += 1
            if not head & 0x80:
                return None  # not the start of an entry
            end += ((head & 7) + 1) * 2
            kind = head >> 3 & 15
            if kind == _LONG:
                step, at = _signed_varint(table, at)
                for _ in range(3):
                    _, at = _varint(table, at)
                line += step
            elif kind == _NO_COLUMNS:
                step, at = _signed_varint(table, at)
                line += step
            elif kind != _NONE:
                line += kind - _ONE_LINE if kind >= _ONE_LINE else 0
                at += 2 if kind >= _ONE_LINE else 1
            if position < end:
                return None if kind == _NONE else line
    except IndexError:
        pass
    return None


def _signed(byte: int) -> int:
    return byte - 256 if byte >= 128 else byte


def _varint(table: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = table[at]
        at += 1
        value |= (byte & 63) << shift
        if not byte & 64:
            return value, at
        shift += 6


def _signed_varint(table: bytes, at: int) -> tuple[int, int]:
    value, at = _varint(table, at)
    return (-(value >> 1) if value & 1 else value >> 1), at
