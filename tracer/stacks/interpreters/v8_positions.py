"""V8's table of source positions, and the lines of a source: from a place in the bytecode to a line.

Format: src/codegen/source-position-table.cc (pairs of deltas, each a variable-length number with its sign in the lowest
bit) and source-position.h of V8.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence

_LINE_END = re.compile("\r\n|[\n\r\u2028\u2029]")  # as ECMAScript has it
_SCRIPT_OFFSET_SHIFT, _SCRIPT_OFFSET_MASK = 1, (1 << 30) - 1  # of the value; the offset is one less
MAX_SHIFT = 63


def position_at(table: bytes, offset: int) -> int | None:
    """The character of the source that the bytecode at an offset belongs to."""
    found = None
    code, value = 0, 0
    numbers = _numbers(table)
    for delta, step in zip(numbers, numbers, strict=False):  # both take from the one iterator
        code += delta if delta >= 0 else -(delta + 1)
        if code > offset:
            break
        value += step
        found = (value >> _SCRIPT_OFFSET_SHIFT & _SCRIPT_OFFSET_MASK) - 1
    return found if found is not None and found >= 0 else None


def _numbers(table: bytes) -> Iterator[int]:
    value = shift = 0
    for byte in table:
        value |= (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            yield value >> 1 ^ -(value & 1)
            value = shift = 0
        elif shift > MAX_SHIFT:
            return


def line_starts(text: str) -> list[int]:
    """Where each line begins, in UTF-16 units."""
    starts, at, units = [0], 0, 0
    wide = len(text) != units_of(text)
    for match in _LINE_END.finditer(text):
        units += units_of(text[at : match.end()]) if wide else match.end() - at
        at = match.end()
        starts.append(units)
    return starts


def units_of(text: str) -> int:
    """Its length as JavaScript counts it."""
    return len(text) + sum(char > "\uffff" for char in text) if not text.isascii() else len(text)


def line_at(starts: Sequence[int], position: int) -> int:
    return bisect_right(starts, position)
