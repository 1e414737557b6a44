"""The name of the function at a virtual address, from a file's symbol tables.

Called by ``symbolize``.  Tables, best first: .symtab of the file, of its separate debug file, then .dynsym, then
the one compressed into .gnu_debugdata (all functions of a stripped Fedora file).  Entries are decoded here:
one at a time through pyelftools, libjvm's 50,000 take seconds.
"""

from __future__ import annotations

import lzma
import struct
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from tracer.stacks.elf import BadElf, ElfFile, Section, string_at
from tracer.stacks.source import BytesSource

MAX_TABLE = 128 << 20  # bytes of symbols, and of their names
MAX_DEBUG_DATA = 128 << 20  # bytes of .gnu_debugdata when decompressed
MAX_PREFIXED = 8192  # symbols of one prefix
MAX_NAME = 8192  # characters; longer mangled names are cut
_LZMA_MEMORY = 256 << 20
_LOOK_BACK = 64  # symbols before an address looked at: aliases, and labels within a function

_ENTRY = struct.Struct("<IBBHQQ")  # name, info, other, section, value, size
_FUNCTION_TYPES = (0, 2, 10)  # NOTYPE (labels in assembly), FUNC, GNU_IFUNC
_LOCAL = 0


class Symbol(NamedTuple):
    """end: exclusive; for a symbol without a size the end of its section, and ``sized`` is false."""

    start: int
    end: int
    name: str
    local: bool
    sized: bool


class SymbolTable:
    """One table's functions, by address.  Raises BadElf when it is malformed."""

    def __init__(self, elf: ElfFile, section: Section) -> None:
        self._data = elf.contents(section, MAX_TABLE)
        if len(self._data) % _ENTRY.size or section.link >= len(elf.sections):
            raise BadElf(f"has a malformed {section.name}")
        self._names = elf.contents(elf.sections[section.link], MAX_TABLE)
        # In a separate debug file the code sections are there by name and address only.
        self._section_ends = {
            index: part.address + part.size for index, part in enumerate(elf.sections) if part.executable
        }
        found = []
        for index, entry in enumerate(_ENTRY.iter_unpack(self._data)):
            if entry[1] & 0xF in _FUNCTION_TYPES and entry[3] in self._section_ends and entry[4] < 1 << 63:
                found.append((entry[4], index))
        found.sort()
        self._starts = array("Q", [start for start, _ in found])
        self._indexes = array("L", [index for _, index in found])

    def covering(self, address: int, sized: bool) -> Symbol | None:
        """The best symbol over an address; ``sized``: among those with a size, else among those without one."""
        best: Symbol | None = None
        last = bisect_right(self._starts, address) - 1
        for at in range(last, max(last - _LOOK_BACK, -1), -1):
            if best is not None and self._starts[at] != best.start:
                break  # the innermost symbol was found, with all its aliases
            symbol = self._symbol(self._indexes[at])
            if symbol.name and symbol.sized == sized and address < symbol.end:
                best = symbol if best is None or better(symbol, best) else best
        return best

    def _symbol(self, index: int) -> Symbol:
        name, info, _, section, value, size = _ENTRY.unpack_from(self._data, index * _ENTRY.size)
        end = value + size if size else self._section_ends[section]
        text = string_at(self._names[name : name + MAX_NAME], 0)
        if info & 0xF == 0 and text.startswith((".", "$")):
            text = ""  # an assembler's local label, not a function
        return Symbol(value, end, text.partition("@")[0], info >> 4 == _LOCAL, size > 0)


def better(a: Symbol, b: Symbol) -> bool:
    """Of two names for one place: exported before local, then the one that people write (fork, not __libc_fork)."""
    return _rank(a) < _rank(b)


def _rank(symbol: Symbol) -> tuple[bool, int, int, str]:
    name = symbol.name
    return symbol.local, len(name) - len(name.lstrip("_")), len(name), name


class SymbolTables:
    """All tables of a module.  Each is read when the ones before it do not have the name."""

    def __init__(self, files: Sequence[ElfFile], note: Callable[[str], None]) -> None:
        """files: the mapped file, then its separate debug file.  A table that cannot be read goes to ``note``."""
        self._pending = self._tables(files, note)
        self._tables_read: list[SymbolTable] = []

    def name(self, address: int) -> str | None:
        """The mangled name of the function at a virtual address."""
        for sized in (True, False):
            for table in self._all():
                symbol = table.covering(address, sized)
                if symbol is not None:
                    return symbol.name
        return None

    def _all(self) -> Iterator[SymbolTable]:
        yield from self._tables_read
        for table in self._pending:
            self._tables_read.append(table)
            yield table

    def _tables(self, files: Sequence[ElfFile], note: Callable[[str], None]) -> Iterator[SymbolTable]:
        for kind in ("SHT_SYMTAB", "SHT_DYNSYM"):
            for elf in files:
                try:
                    for section in elf.sections:
                        if section.kind == kind:
                            yield SymbolTable(elf, section)
                except BadElf as error:
                    note(f"{elf.name} {error}")
        for elf in files[:1]:
            try:
                mini = mini_debug_file(elf)
                if mini is not None:
                    yield from (SymbolTable(mini, s) for s in mini.sections if s.kind == "SHT_SYMTAB")
            except BadElf as error:
                note(f"{elf.name} {error}")


def mini_debug_file(elf: ElfFile) -> ElfFile | None:
    """The ELF file within .gnu_debugdata, None without one.  Raises BadElf."""
    section = elf.section(".gnu_debugdata")
    if section is None:
        return None
    packed = elf.contents(section, MAX_DEBUG_DATA)
    try:
        unpacker = lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=_LZMA_MEMORY)
        data = unpacker.decompress(packed, max_length=MAX_DEBUG_DATA)
    except (lzma.LZMAError, MemoryError) as error:
        raise BadElf("has a malformed .gnu_debugdata") from error
    if not unpacker.eof:
        raise BadElf("has a .gnu_debugdata that is too large or ends early")
    return ElfFile(BytesSource(data), f"{elf.name} (.gnu_debugdata)")


def find_symbols(elf: ElfFile, names: Sequence[str]) -> dict[str, int]:
    """Virtual addresses of the named symbols, functions or data, that the file defines.  Raises BadElf."""
    found: dict[str, int] = {}
    for section in elf.sections:
        if section.kind not in ("SHT_DYNSYM", "SHT_SYMTAB") or section.link >= len(elf.sections):
            continue
        strings = elf.contents(elf.sections[section.link], MAX_TABLE)
        wanted: dict[int, str] = {}
        for name in names:
            at = strings.find(name.encode() + b"\0")
            while at >= 0:
                wanted[at] = name
                at = strings.find(name.encode() + b"\0", at + 1)
        if not wanted:
            continue
        data = elf.contents(section, MAX_TABLE)
        for offset, _, _, index, value, _ in _ENTRY.iter_unpack(
            data[: len(data) // _ENTRY.size * _ENTRY.size]
        ):
            if index and value and offset in wanted:
                found.setdefault(wanted[offset], value)
    return found


def find_prefixed(elf: ElfFile, prefix: str) -> dict[str, tuple[int, int]]:
    """(virtual address, size) of the symbols that the file defines under names with a prefix.  Raises BadElf."""
    found: dict[str, tuple[int, int]] = {}
    sought = b"\0" + prefix.encode()
    for section in elf.sections:
        if section.kind not in ("SHT_DYNSYM", "SHT_SYMTAB") or section.link >= len(elf.sections):
            continue
        strings = elf.contents(elf.sections[section.link], MAX_TABLE)
        wanted: dict[int, str] = {}
        at = strings.find(sought)
        while at >= 0 and len(wanted) < MAX_PREFIXED:
            wanted[at + 1] = string_at(strings[at + 1 : at + 1 + MAX_NAME], 0)
            at = strings.find(sought, at + 1)
        if not wanted:
            continue
        data = elf.contents(section, MAX_TABLE)
        for offset, _, _, index, value, size in _ENTRY.iter_unpack(
            data[: len(data) // _ENTRY.size * _ENTRY.size]
        ):
            if index and value and offset in wanted:
                found.setdefault(wanted[offset], (value, size))
    return found
