"""The wire format of protocol buffers, as much of it as a writer needs (https://protobuf.dev/programming-guides/encoding/)."""

from __future__ import annotations

from collections.abc import Iterable

_VARINT, _LENGTH = 0, 2


def varint(number: int) -> bytes:
    """An int64 or uint64; negative ones in two's complement, as int64 wants them."""
    number &= (1 << 64) - 1
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def number(field: int, value: int) -> bytes:
    """A field of kind int64, uint64 or bool; nothing for 0, which is what a reader takes a missing one for."""
    return varint(field << 3 | _VARINT) + varint(value) if value else b""


def block(field: int, content: bytes) -> bytes:
    """A string, bytes or embedded message."""
    return varint(field << 3 | _LENGTH) + varint(len(content)) + content


def packed(field: int, values: Iterable[int]) -> bytes:
    """A repeated field of integers."""
    return block(field, b"".join(map(varint, values)))
