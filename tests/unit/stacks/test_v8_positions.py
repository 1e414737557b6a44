"""V8's source positions and line ends, against tables written by hand from V8's own description of them."""

from __future__ import annotations

import pytest

from tracer.stacks.interpreters.v8_positions import line_at, line_starts, position_at, units_of


def number(value: int) -> bytes:
    zigzag = value << 1 if value >= 0 else (-value << 1) - 1
    out = bytearray()
    while zigzag > 0x7F:
        out.append(zigzag & 0x7F | 0x80)
        zigzag >>= 7
    return bytes((*out, zigzag))


def table(*entries: tuple[int, int, bool]) -> bytes:
    """(offset in the bytecode, character of the source, whether a statement begins there)"""
    out, code, value = b"", 0, 0
    for offset, character, statement in entries:
        raw = (character + 1) << 1
        step = offset - code
        out += number(step if statement else -step - 1) + number(raw - value)
        code, value = offset, raw
    return out


TABLE = table((0, 10, True), (4, 500, False), (4, 510, True), (90, 20, False))


@pytest.mark.parametrize(
    ("offset", "character"), [(0, 10), (3, 10), (4, 510), (89, 510), (90, 20), (1000, 20)]
)
def test_the_last_entry_up_to_an_offset(offset: int, character: int) -> None:
    assert position_at(TABLE, offset) == character


@pytest.mark.parametrize("raw", [b"", b"\x80", b"\x80" * 1000, b"\xff" * 9 + b"\x01", b"\x00"])
def test_what_is_no_table(raw: bytes) -> None:
    assert position_at(raw, 5) is None


def test_lines_as_javascript_counts_them() -> None:
    text = "a\n\U0001f600\r\nb\rc\u2028d"
    starts = line_starts(text)
    assert starts == [0, 2, 6, 8, 10]
    assert units_of(text) == 11
    assert [line_at(starts, position) for position in (0, 1, 2, 5, 6, 10)] == [1, 1, 2, 2, 3, 5]
