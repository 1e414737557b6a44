"""DWARF expressions: each operation by hand, and no input that does anything but answer or BadExpression."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracer.stacks.expression import BadExpression, evaluate, read_sleb, read_uleb

MASK = (1 << 64) - 1


def run(block: bytes, *initial: int) -> int:
    return evaluate(block, initial, lambda number: 1000 + number, lambda address, size: address * 10 + size)


@pytest.mark.parametrize(
    ("block", "value"),
    [
        (b"\x77\x08", 1007 + 8),  # breg7 +8
        (b"\x76\x78", 1006 - 8),  # breg6 -8
        (b"\x92\x10\x02", 1016 + 2),  # bregx 16 +2
        (b"\x33", 3),  # lit3
        (b"\x03\x01\x02\x03\x04\x05\x06\x07\x08", 0x0807060504030201),  # addr
        (b"\x09\xff", MASK),  # const1s
        (b"\x0a\x34\x12", 0x1234),  # const2u
        (b"\x10\x80\x01", 128),  # constu
        (b"\x11\x7f", MASK),  # consts -1
        (b"\x35\x12\x22", 10),  # lit5 dup plus
        (b"\x35\x32\x14\x1c\x1c", 5 - (2 - 5) & MASK),  # over, minus
        (b"\x31\x32\x33\x17\x1c", (1 - 2) & MASK),  # rot: 3 1 2
        (b"\x31\x32\x16\x1c", 1),  # swap, minus
        (b"\x31\x32\x33\x15\x02", 1),  # pick 2
        (b"\x35\x13\x31\x13", 7),  # drop leaves the initial value
        (b"\x39\x06", 98),  # deref
        (b"\x39\x94\x04", 94),  # deref_size 4
        (b"\x38\x1f\x19", 8),  # neg abs
        (b"\x30\x20", MASK),  # not
        (b"\x38\x1f\x33\x1b", -2 & MASK),  # -8 div 3, towards zero
        (b"\x38\x33\x1d", 2),  # mod
        (b"\x38\x33\x1e", 24),  # mul
        (b"\x38\x1f\x31\x26", -4 & MASK),  # shra
        (b"\x38\x1f\x31\x25", (MASK - 7) >> 1),  # shr
        (b"\x31\x08\x40\x24", 0),  # shl by 64
        (b"\x38\x1f\x31\x2d", 1),  # -8 < 1
        (b"\x31\x28\x01\x00\x35\x36", 6),  # bra over lit5
        (b"\x2f\x01\x00\x35\x36", 6),  # skip over lit5
        (b"\x23\x05", 12),  # plus_uconst on the initial value
        (b"\x96", 7),  # nop
        # the procedure linkage table's: sp + 8 + ((pc & 15) >= 11) * 8
        (b"\x77\x08\x80\x00\x3f\x1a\x3b\x2a\x33\x24\x22", 1007 + 8),
    ],
)
def test_operations(block: bytes, value: int) -> None:
    assert run(block, 7) == value


@pytest.mark.parametrize(
    "block",
    [
        b"",
        b"\x06",
        b"\x22",
        b"\x0e\x01",
        b"\x31\x30\x1b",  # divides by zero
        b"\x2f\xfd\xff",  # jumps to itself for ever
        b"\x2f\x7f\x00",  # jumps out
        b"\x31\x15\x09",  # picks below the stack
        b"\xe0",
        b"\x9c",  # call_frame_cfa: not allowed here
        b"\x31\x94\x09",  # reads 9 bytes
        b"\x31\x12\x12" * 40,  # too deep
        b"\x77",
    ],
)
def test_malformed(block: bytes) -> None:
    with pytest.raises(BadExpression):
        run(block)


@given(st.binary(max_size=60))
def test_any_bytes(block: bytes) -> None:
    with suppress(BadExpression):
        assert 0 <= run(block, 7) <= MASK


@given(st.integers(-(1 << 63), (1 << 63) - 1))
def test_leb128(value: int) -> None:
    rest, encoded = value, bytearray()
    while True:
        byte, rest = rest & 0x7F, rest >> 7
        if (rest == 0 and not byte & 0x40) or (rest == -1 and byte & 0x40):
            encoded.append(byte)
            break
        encoded.append(byte | 0x80)
    assert read_sleb(bytes(encoded), 0) == (value, len(encoded))
    if value >= 0:
        assert read_uleb(bytes(encoded), 0) == (value, len(encoded))
