"""A DWARF expression as call frame information uses it -> one 64-bit value.

Called by ``unwind`` for rows of ``cfi``.  Source: DWARF 5, sections 2.5 and 6.4.2: operations that need debugging
information, a frame base or an object are not allowed there, and are refused here.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

MAX_STEPS = 1000  # the longest in glibc takes 9; DW_OP_skip and DW_OP_bra can loop
MAX_DEPTH = 64

_MASK = (1 << 64) - 1


class BadExpression(Exception):
    """It is malformed, or does what none may do here.  ``str()`` is one sentence without a final stop."""


def read_uleb(data: bytes, at: int) -> tuple[int, int]:
    """Value (modulo 2**64) and the position after it.  Raises IndexError at the end of the data."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        if shift < 64:  # longer numbers are padding; do not let them grow
            value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value & _MASK, at


def read_sleb(data: bytes, at: int) -> tuple[int, int]:
    """Value in [-2**63, 2**63) and the position after it.  Raises IndexError at the end of the data."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        if shift < 64:
            value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            if byte & 0x40 and shift < 64:
                value -= 1 << shift
            return _signed(value), at


def _signed(value: int) -> int:
    value &= _MASK
    return value - (1 << 64) if value >> 63 else value


_FIXED = {  # constants: operation -> layout
    0x03: struct.Struct("<Q"),  # addr
    0x08: struct.Struct("<B"),
    0x09: struct.Struct("<b"),
    0x0A: struct.Struct("<H"),
    0x0B: struct.Struct("<h"),
    0x0C: struct.Struct("<I"),
    0x0D: struct.Struct("<i"),
    0x0E: struct.Struct("<Q"),
    0x0F: struct.Struct("<q"),
}
_BRANCH = struct.Struct("<h")


def _divide(a: int, b: int) -> int:
    a, b = _signed(a), _signed(b)
    quotient = abs(a) // abs(b)
    return quotient if (a < 0) == (b < 0) else -quotient


_BINARY: dict[int, Callable[[int, int], int]] = {
    0x1A: lambda a, b: a & b,
    0x1B: _divide,
    0x1C: lambda a, b: a - b,
    0x1D: lambda a, b: a % b,
    0x1E: lambda a, b: a * b,
    0x21: lambda a, b: a | b,
    0x22: lambda a, b: a + b,
    0x24: lambda a, b: a << b if b < 64 else 0,
    0x25: lambda a, b: a >> b if b < 64 else 0,
    0x26: lambda a, b: _signed(a) >> min(b, 63),
    0x27: lambda a, b: a ^ b,
    0x29: lambda a, b: a == b,
    0x2A: lambda a, b: _signed(a) >= _signed(b),
    0x2B: lambda a, b: _signed(a) > _signed(b),
    0x2C: lambda a, b: _signed(a) <= _signed(b),
    0x2D: lambda a, b: _signed(a) < _signed(b),
    0x2E: lambda a, b: a != b,
}


def evaluate(
    block: bytes,
    initial: tuple[int, ...],
    register: Callable[[int], int],
    read: Callable[[int, int], int],
) -> int:
    """The value on top of the stack at the end, modulo 2**64.

    initial: the stack at the start, top last.  register: DWARF number -> value.  read: (address, size in bytes,
    1..8) -> unsigned value; both may raise what they like.  Raises BadExpression.
    """
    stack = list(initial)
    try:
        _run(block, stack, register, read)
        return stack[-1]
    except IndexError:
        raise BadExpression("an expression ends early or lacks an operand") from None
    except struct.error:
        raise BadExpression("an expression ends early") from None
    except ZeroDivisionError:
        raise BadExpression("an expression divides by zero") from None


def _run(
    block: bytes, stack: list[int], register: Callable[[int], int], read: Callable[[int, int], int]
) -> None:
    at, end = 0, len(block)
    for _ in range(MAX_STEPS):
        if at == end:
            return
        op = block[at]
        at += 1
        if 0x70 <= op <= 0x8F:  # breg0..31
            offset, at = read_sleb(block, at)
            stack.append(register(op - 0x70) + offset)
        elif 0x30 <= op <= 0x4F:  # lit0..31
            stack.append(op - 0x30)
        elif op == 0x06:  # deref
            stack.append(read(stack.pop(), 8))
        elif op in _BINARY:
            right = stack.pop()
            stack.append(_BINARY[op](stack.pop(), right))
        elif op == 0x23:  # plus_uconst
            operand, at = read_uleb(block, at)
            stack[-1] += operand
        elif op in _FIXED:
            layout = _FIXED[op]
            stack.append(layout.unpack_from(block, at)[0])
            at += layout.size
        elif op == 0x10:  # constu
            operand, at = read_uleb(block, at)
            stack.append(operand)
        elif op == 0x11:  # consts
            operand, at = read_sleb(block, at)
            stack.append(operand)
        elif op == 0x12:  # dup
            stack.append(stack[-1])
        elif op == 0x13:  # drop
            stack.pop()
        elif op == 0x14:  # over
            stack.append(_pick(stack, 1))
        elif op == 0x15:  # pick
            stack.append(_pick(stack, block[at]))
            at += 1
        elif op == 0x16:  # swap
            stack[-1], stack[-2] = stack[-2], stack[-1]
        elif op == 0x17:  # rot
            stack[-1], stack[-2], stack[-3] = stack[-2], stack[-3], stack[-1]
        elif op == 0x19:  # abs
            stack[-1] = abs(_signed(stack[-1]))
        elif op == 0x1F:  # neg
            stack[-1] = -stack[-1]
        elif op == 0x20:  # not
            stack[-1] = ~stack[-1]
        elif op in (0x28, 0x2F):  # bra, skip
            distance = _BRANCH.unpack_from(block, at)[0]
            at += 2
            if op == 0x2F or stack.pop():
                at += distance
                if not 0 <= at <= end:
                    raise BadExpression("an expression jumps out of itself")
        elif op == 0x92:  # bregx
            number, at = read_uleb(block, at)
            offset, at = read_sleb(block, at)
            stack.append(register(number) + offset)
        elif op == 0x94:  # deref_size
            size = block[at]
            at += 1
            if not 1 <= size <= 8:
                raise BadExpression(f"an expression reads {size} bytes at once")
            stack.append(read(stack.pop(), size))
        elif op != 0x96:  # nop
            raise BadExpression(f"an expression uses operation {op:#x}")
        if len(stack) > MAX_DEPTH:
            raise BadExpression("an expression needs a deeper stack than any compiler makes")
        if stack:
            stack[-1] = int(stack[-1]) & _MASK
    raise BadExpression(f"an expression takes more than {MAX_STEPS} steps")


def _pick(stack: list[int], depth: int) -> int:
    if depth >= len(stack):
        raise IndexError
    return stack[-1 - depth]
