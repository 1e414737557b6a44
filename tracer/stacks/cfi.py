"""A file's unwind table (.eh_frame) -> the rule for one address: where the caller's registers are.

Between ``elf`` and ``unwind``.  Lazy: an address is looked up in .eh_frame_hdr's sorted table and the one frame
description entry (FDE) found is decoded; decoding whole files costs seconds.  Sources: DWARF 5 section 6.4, and
the Linux Standard Base core specification, "Exception Frames", for what .eh_frame does differently.
"""

from __future__ import annotations

import struct
import sys
from array import array
from bisect import bisect_right
from dataclasses import dataclass
from enum import Enum, auto
from functools import cached_property
from typing import NamedTuple

from tracer.stacks.elf import BadElf, ElfFile
from tracer.stacks.expression import read_sleb, read_uleb
from tracer.stacks.registers import COUNT, SP

MAX_TABLE = 32 << 20  # bytes of the sorted table: 4 million functions
MAX_SCAN = 64 << 20  # bytes of .eh_frame decoded when there is no sorted table
MAX_ENTRY = 1 << 20  # bytes of one entry
MAX_REMEMBERED = 64  # depth of DW_CFA_remember_state
MAX_ROWS = 1 << 16  # rows kept a file

_CHUNK = 1024  # most entries are shorter, so one read does
_MASK = (1 << 64) - 1
_SDATA4_DATAREL = 0x3B
_OMIT = 0xFF


class Kind(Enum):
    """How to find a register of the caller."""

    OFFSET = auto()  # saved at CFA + number
    VAL_OFFSET = auto()  # its value is CFA + number
    REGISTER = auto()  # in the register of that number
    EXPRESSION = auto()  # saved at the address the block computes
    VAL_EXPRESSION = auto()  # its value is what the block computes
    UNDEFINED = auto()  # gone; for the return address: no caller
    SAME = auto()  # not touched; for the CFA never used


class Rule(NamedTuple):
    kind: Kind
    number: int = 0
    block: bytes = b""


@dataclass(frozen=True, slots=True)
class Row:
    """What holds at one address.

    cfa: either REGISTER-like (``cfa_register`` + ``cfa_offset``) or, when ``cfa_block`` is not None, an expression.
    rules: by DWARF number; a register without one is unchanged.  return_column: the number that stands for the
    return address.  signal: the caller was interrupted, not called.
    """

    cfa_register: int
    cfa_offset: int
    cfa_block: bytes | None
    rules: dict[int, Rule]
    return_column: int
    signal: bool


class Cie(NamedTuple):
    code_align: int
    data_align: int
    return_column: int
    encoding: int
    augmented: bool
    signal: bool
    program: bytes


class Fde(NamedTuple):
    start: int
    end: int
    cie: Cie
    program: bytes


class CfiTable:
    """``row`` is what unwinding needs.  ``indexed``: the file has a sorted table that this can use."""

    def __init__(self, elf: ElfFile) -> None:
        self._elf = elf
        self._cies: dict[int, Cie] = {}
        self._rows: dict[int, Row | None] = {}

    def row(self, address: int) -> Row | None:
        """The row at a virtual address; None when no entry covers it.  Raises BadElf for a malformed table."""
        try:
            return self._rows[address]
        except KeyError:
            pass
        try:
            fde = self._find(address)
            row = None if fde is None else row_at(fde, address)
        except (IndexError, struct.error):
            raise BadElf("has an unwind table that ends early") from None
        if len(self._rows) >= MAX_ROWS:
            self._rows.clear()
        self._rows[address] = row
        return row

    def function(self, address: int) -> tuple[int, int] | None:
        """Start and end of the code around a virtual address that one entry covers.  Raises BadElf."""
        try:
            fde = self._find(address)
        except (IndexError, struct.error):
            raise BadElf("has an unwind table that ends early") from None
        return None if fde is None else (fde.start, fde.end)

    @property
    def indexed(self) -> bool:
        return self._elf.eh_frame_hdr is not None

    def _find(self, address: int) -> Fde | None:
        starts, entries = self._index
        at = bisect_right(starts, address - self._base) - 1
        if at < 0:
            return None
        fde = self._fde(self._base + entries[at])
        return fde if fde is not None and fde.start <= address < fde.end else None

    @cached_property
    def _base(self) -> int:
        """What the numbers in the index are relative to: they are 32 bits wide in a file of any size."""
        header = self._elf.eh_frame_hdr
        return header.address if header else 0

    @cached_property
    def _index(self) -> tuple[array[int], array[int]]:
        """Start addresses, sorted, and the addresses of their entries; both relative to ``_base``."""
        return self._sorted_table() or self._scan()

    def _sorted_table(self) -> tuple[array[int], array[int]] | None:
        header = self._elf.eh_frame_hdr
        if header is None:
            return None
        head = self._elf.read_at(header.address, 64)
        if len(head) < 4:
            raise BadElf("has a malformed .eh_frame_hdr")
        version, frame_encoding, count_encoding, table_encoding = head[:4]
        if version != 1 or table_encoding != _SDATA4_DATAREL or count_encoding == _OMIT:
            return None
        _, at = _pointer(head, 4, frame_encoding, header.address + 4, header.address)
        count, at = _pointer(head, at, count_encoding, header.address + at, header.address)
        if count * 8 > min(MAX_TABLE, header.size - at):
            raise BadElf("has a malformed .eh_frame_hdr")
        words = array("i", self._elf.read(header.offset + at, count * 8))
        if sys.byteorder != "little":
            words.byteswap()
        starts = words[0::2]
        return (starts, words[1::2]) if _ascending(starts) else None

    def _scan(self) -> tuple[array[int], array[int]]:
        """Without a usable header: all entries' headers, once."""
        section = self._elf.section(".eh_frame")
        if section is None or section.size > MAX_SCAN:
            return array("q"), array("q")
        data = self._elf.read(section.offset, section.size)
        found = []
        at = 0
        while at + 4 <= len(data):
            size, body = _entry_size(data, at)
            if size == 0:
                break
            if struct.unpack_from("<I", data, body)[0]:
                fde = self._fde(section.address + at)
                if fde is not None and fde.end > fde.start:
                    found.append((fde.start - self._base, section.address + at - self._base))
            at = body + size
        found.sort()
        return array("q", [start for start, _ in found]), array("q", [entry for _, entry in found])

    def _entry(self, address: int) -> tuple[bytes, int, int]:
        """The bytes of an entry at a virtual address, where its body starts and ends in them."""
        data = self._elf.read_at(address, _CHUNK)
        size, body = _entry_size(data, 0)
        if size > MAX_ENTRY:
            raise BadElf("has an unwind table with an entry of absurd length")
        if body + size > len(data):
            data = self._elf.read_at(address, body + size)
            if body + size > len(data):
                raise BadElf("has an unwind table that ends early")
        return data, body, body + size

    def _fde(self, address: int) -> Fde | None:
        data, body, end = self._entry(address)
        distance = struct.unpack_from("<I", data, body)[0]
        if end - body < 4 or distance == 0:
            return None
        cie = self._cie(address + body - distance)
        at = body + 4
        start, at = _pointer(data, at, cie.encoding, address + at, self._base)
        length, at = _pointer(data, at, cie.encoding & 0x0F, 0, 0)
        if cie.augmented:
            size, at = read_uleb(data, at)
            at += size
        return Fde(start, start + length, cie, data[at:end])

    def _cie(self, address: int) -> Cie:
        cie = self._cies.get(address)
        if cie is None:
            if len(self._cies) >= MAX_ROWS:
                self._cies.clear()
            cie = self._cies[address] = parse_cie(*self._entry(address), address)
        return cie


def _entry_size(data: bytes, at: int) -> tuple[int, int]:
    """Length of an entry's body, and where the body starts."""
    size: int = struct.unpack_from("<I", data, at)[0]
    if size != 0xFFFFFFFF:
        return size, at + 4
    return struct.unpack_from("<Q", data, at + 4)[0], at + 12


def _ascending(numbers: array[int]) -> bool:
    return numbers.tolist() == sorted(numbers)


def parse_cie(data: bytes, body: int, end: int, address: int) -> Cie:
    """A common information entry.  Raises BadElf, IndexError or struct.error."""
    if struct.unpack_from("<I", data, body)[0] != 0:
        raise BadElf("has an unwind table whose entry names no common entry")
    version = data[body + 4]
    if version not in (1, 3, 4):
        raise BadElf(f"has an unwind table of version {version}")
    terminator = data.index(b"\0", body + 5, end) if b"\0" in data[body + 5 : end] else end
    augmentation = data[body + 5 : terminator]
    at = terminator + 1
    if version == 4:
        at += 2  # address size and segment selector size
    if augmentation.startswith(b"eh"):
        at += 8
    code_align, at = read_uleb(data, at)
    data_align, at = read_sleb(data, at)
    if version == 1:
        column, at = data[at], at + 1
    else:
        column, at = read_uleb(data, at)
    encoding, signal, augmented = 0, False, augmentation.startswith(b"z")
    if augmented:
        size, at = read_uleb(data, at)
        program = at + size
        for letter in augmentation[1:]:
            if letter == ord("R"):
                encoding = data[at]
                at += 1
            elif letter == ord("P"):
                _, at = _pointer(data, at + 1, data[at], 0, 0)
            elif letter == ord("L"):
                at += 1
            elif letter == ord("S"):
                signal = True
            else:  # its data cannot be told from the next letter's
                break
        at = program
    elif augmentation not in (b"", b"eh"):
        raise BadElf("has an unwind table with an unknown augmentation")
    if column >= COUNT:
        raise BadElf("has an unwind table with an unknown return address column")
    return Cie(code_align, data_align, column, encoding, augmented, signal, data[at:end])


_LAYOUTS = {
    0x00: struct.Struct("<Q"),
    0x02: struct.Struct("<H"),
    0x03: struct.Struct("<I"),
    0x04: struct.Struct("<Q"),
    0x0A: struct.Struct("<h"),
    0x0B: struct.Struct("<i"),
    0x0C: struct.Struct("<q"),
}


def _pointer(data: bytes, at: int, encoding: int, here: int, base: int) -> tuple[int, int]:
    """A DW_EH_PE-encoded value and the position after it.

    here: virtual address of the value itself (pcrel); base: of .eh_frame_hdr (datarel).
    """
    if encoding == _OMIT:
        return 0, at
    form = encoding & 0x0F
    if encoding & 0x70 == 0x50:  # aligned
        at += -here % 8
        form = 0
    if form in _LAYOUTS:
        value: int = _LAYOUTS[form].unpack_from(data, at)[0]
        at += _LAYOUTS[form].size
    elif form == 0x01:
        value, at = read_uleb(data, at)
    elif form == 0x09:
        value, at = read_sleb(data, at)
    else:
        raise BadElf(f"has an unwind table with pointers of encoding {encoding:#x}")
    relative = encoding & 0x70
    if relative == 0x10:
        value += here
    elif relative == 0x30:
        value += base
    elif relative not in (0x00, 0x50):
        raise BadElf(f"has an unwind table with pointers of encoding {encoding:#x}")
    return value & _MASK, at


class _State:
    """The row under construction."""

    def __init__(self) -> None:
        self.location = 0
        self.register = SP
        self.offset = 0
        self.block: bytes | None = None
        self.rules: dict[int, Rule] = {}
        self.defined = False


def row_at(fde: Fde, address: int) -> Row:
    """Run the entry's program up to an address.  Raises BadElf, IndexError or struct.error."""
    state = _State()
    cie = fde.cie
    _run(cie.program, cie, state, _MASK + 1, {})
    state.location = fde.start
    _run(fde.program, cie, state, address, dict(state.rules))
    if not state.defined:
        raise BadElf("has an unwind table with an entry that defines no frame")
    return Row(state.register, state.offset, state.block, state.rules, cie.return_column, cie.signal)


def _run(program: bytes, cie: Cie, state: _State, until: int, initial: dict[int, Rule]) -> None:
    """Execute call frame instructions until one of them moves beyond an address."""
    remembered: list[tuple[int, int, bytes | None, dict[int, Rule]]] = []
    location, code_align, data_align = state.location, cie.code_align, cie.data_align
    at, end = 0, len(program)
    while at < end:
        op = program[at]
        at += 1
        low = op & 0x3F
        if op >= 0x40:
            if op < 0x80:  # advance_loc
                location += low * code_align
                if location > until:
                    return
            elif op < 0xC0:  # offset
                number, at = read_uleb(program, at)
                _set(state, low, Rule(Kind.OFFSET, number * data_align))
            else:
                _restore(state, low, initial)
        elif op == 0x00:  # nop
            pass
        elif op in _ADVANCES:
            layout = _ADVANCES[op]
            step = layout.unpack_from(program, at)[0]
            at += layout.size
            location += step * code_align
            if location > until:
                return
        elif op == 0x01:  # set_loc
            location, at = _pointer(program, at, cie.encoding & 0x0F, 0, 0)
            if cie.encoding & 0x70:
                raise BadElf("has an unwind table with a relative set_loc")
            if location > until:
                return
        elif op == 0x0A:  # remember_state
            if len(remembered) >= MAX_REMEMBERED:
                raise BadElf("has an unwind table that remembers too many states")
            remembered.append((state.register, state.offset, state.block, dict(state.rules)))
        elif op == 0x0B:  # restore_state
            if not remembered:
                raise BadElf("has an unwind table that restores a state it never kept")
            state.register, state.offset, state.block, state.rules = remembered.pop()
        elif op in (0x0C, 0x12):  # def_cfa, def_cfa_sf
            state.register, at = read_uleb(program, at)
            at = _cfa_offset(state, program, at, data_align if op == 0x12 else 0)
            state.block = None
            state.defined = True
        elif op == 0x0D:  # def_cfa_register
            state.register, at = read_uleb(program, at)
            state.block = None
        elif op in (0x0E, 0x13):  # def_cfa_offset, def_cfa_offset_sf
            at = _cfa_offset(state, program, at, data_align if op == 0x13 else 0)
        elif op == 0x0F:  # def_cfa_expression
            state.block, at = _block(program, at)
            state.defined = True
        elif op == 0x2E:  # GNU_args_size: matters to landing pads only
            _, at = read_uleb(program, at)
        else:
            register, at = read_uleb(program, at)
            if op in (0x05, 0x14, 0x2F):  # offset_extended, val_offset, GNU_negative_offset_extended
                number, at = read_uleb(program, at)
                kind = Kind.VAL_OFFSET if op == 0x14 else Kind.OFFSET
                _set(state, register, Rule(kind, number * (-data_align if op == 0x2F else data_align)))
            elif op in (0x11, 0x15):  # offset_extended_sf, val_offset_sf
                number, at = read_sleb(program, at)
                _set(
                    state, register, Rule(Kind.OFFSET if op == 0x11 else Kind.VAL_OFFSET, number * data_align)
                )
            elif op == 0x06:  # restore_extended
                _restore(state, register, initial)
            elif op == 0x07:
                _set(state, register, Rule(Kind.UNDEFINED))
            elif op == 0x08:
                _set(state, register, Rule(Kind.SAME))
            elif op == 0x09:  # register
                number, at = read_uleb(program, at)
                _set(state, register, Rule(Kind.REGISTER, number))
            elif op in (0x10, 0x16):  # expression, val_expression
                block, at = _block(program, at)
                _set(state, register, Rule(Kind.EXPRESSION if op == 0x10 else Kind.VAL_EXPRESSION, 0, block))
            else:
                raise BadElf(f"has an unwind table with instruction {op:#x}")


_ADVANCES = {0x02: struct.Struct("<B"), 0x03: struct.Struct("<H"), 0x04: struct.Struct("<I")}


def _set(state: _State, register: int, rule: Rule) -> None:
    """Vector and other high registers never help to find a caller: leaving them out bounds the row."""
    if register < COUNT:
        state.rules[register] = rule


def _restore(state: _State, register: int, initial: dict[int, Rule]) -> None:
    if register in initial:
        state.rules[register] = initial[register]
    else:
        state.rules.pop(register, None)


def _cfa_offset(state: _State, program: bytes, at: int, factor: int) -> int:
    """An unsigned offset, or a signed one to be multiplied (factor not 0)."""
    if factor:
        value, at = read_sleb(program, at)
        state.offset = value * factor
    else:
        state.offset, at = read_uleb(program, at)
    return at


def _block(program: bytes, at: int) -> tuple[bytes, int]:
    size, at = read_uleb(program, at)
    if at + size > len(program):
        raise BadElf("has an unwind table that ends early")
    return program[at : at + size], at + size
