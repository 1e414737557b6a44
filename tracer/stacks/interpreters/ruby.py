"""Ruby 2.6 to 3.4: bpf/ruby.c walks its frames, this tells it where they are and reads what it sent.

Offsets are data, ruby_layouts.json: Ruby tells none of them itself.  Addresses come from the file's symbols, and where
those are hidden (ruby_current_ec and ruby_global_symbols in a stripped 3.3) from what the file shows all the same: the
relocations of its thread-local block, and the code of a function that is exported.
"""

from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from typing import Any

from tracer import records
from tracer.records import CodeRecord, Language
from tracer.stacks.elf import BadElf, ElfFile, Section
from tracer.stacks.interpreters import ruby_walk
from tracer.stacks.interpreters.base import Code, Found, ModuleOf, bias
from tracer.stacks.interpreters.late import Memory, Walked
from tracer.stacks.interpreters.ruby_walk import KIND_BITS, KIND_C_METHOD, KIND_SINGLETON, MAX_CLASS
from tracer.stacks.interpreters.threaded_code import ThreadedCode
from tracer.stacks.maps import AddressSpace
from tracer.stacks.modules import Module
from tracer.stacks.symbols import MAX_TABLE, find_symbols

name = "ruby"
SUPPORTED = "Ruby 2.6 to 3.4"
_FILE = re.compile(r"(?:lib)?ruby[-.\d]*(?:so[-.\d]*)?")
_VERSION = re.compile(rb"(\d+)\.(\d+)\.\d+\0")
_VM, _CONTEXT, _SYMBOLS, _EXAMPLE = (
    "ruby_current_vm_ptr",
    "ruby_current_ec",
    "ruby_global_symbols",
    "rb_sym_all_symbols",
)
_LOOPS = ("rb_vm_exec", "vm_exec")
_NAMES = ("ruby_version", _VM, _CONTEXT, _SYMBOLS, "global_symbols", _EXAMPLE, *_LOOPS)
_ADDRESSES = ("CURRENT_VM", "TLS_MODULE", "GLOBAL_SYMBOLS", "TLS_CONTEXT", "TLS_WORDS", "DTV_SIZE")
_DTV_GLIBC, _DTV_MUSL = 16, 8  # bytes of an entry
_MAX_TLS_WORDS = 16
_MAX_EXAMPLE = 192  # bytes of rb_sym_all_symbols looked through: it has some 150
_OPERANDS = (0, 1, 4)  # bytes of an instruction behind the address that it loads from
_RELA = struct.Struct("<QQq")  # offset, info, addend
_DTPMOD64 = 16  # R_X86_64_DTPMOD64
_SYMBOL_SIZE = 24


def find(space: AddressSpace, modules: ModuleOf) -> Found | None:
    """The first mapped file that is a Ruby."""
    for mapping in space.mappings:
        if not _FILE.fullmatch(mapping.path.rpartition("/")[2]):
            continue
        module = modules(mapping)
        if module is None or module.elf is None:
            continue
        try:
            symbols = find_symbols(module.elf, _NAMES)
            if "ruby_version" not in symbols:  # a program that is linked to libruby
                continue
            musl = any(each.path.rpartition("/")[2].startswith("ld-musl") for each in space.mappings)
            return _found(module, bias(mapping, module), symbols, _DTV_MUSL if musl else _DTV_GLIBC)
        except (BadElf, struct.error) as error:
            return Found(Language.RUBY, "", module, b"", f"no Ruby frames of {module.name}: it {error}")
    return None


def _found(module: Module, at: int, symbols: dict[str, int], dtv_size: int) -> Found:
    assert module.elf is not None
    match = _VERSION.match(module.elf.read_at(symbols["ruby_version"], 16))
    version = match[0][:-1].decode() if match else "unknown"
    layout = _layouts().get(".".join(version.split(".")[:2]))
    if match is None or layout is None:
        problem = f"no Ruby frames of {module.name}: it is version {version}, {SUPPORTED} are supported"
        return Found(Language.RUBY, version, module, b"", problem)
    addresses = _addresses(module.elf, symbols, listed=bool(layout[0]))
    if addresses is None:
        problem = f"no Ruby frames of {module.name}: it does not tell where its threads are"
        return Found(Language.RUBY, version, module, b"", problem)
    numbers = (*addresses, dtv_size, *layout)
    value = records.INTERPRETER.pack(
        Language.RUBY,
        int(match[1]) << 8 | int(match[2]),
        at,
        0,
        *numbers,
        *(0,) * (records.MAX_LAYOUT - len(numbers)),
    )
    nameless = None if symbols.keys() & set(_LOOPS) else ThreadedCode(module)  # vm_exec_core
    return Found(Language.RUBY, version, module, value, is_loop_at=nameless)


def _addresses(elf: ElfFile, symbols: dict[str, int], listed: bool) -> tuple[int, ...] | None:
    """CURRENT_VM to TLS_WORDS of enum ruby_layout; None if there is no way to a thread's frames."""
    names = symbols.get(_SYMBOLS) or symbols.get("global_symbols") or _hidden_symbols(elf, symbols) or 0
    if listed:
        return (symbols[_VM], 0, names, 0, 0) if _VM in symbols else None
    block = [section for section in elf.sections if section.name in (".tdata", ".tbss")]
    size = max((s.address + s.size for s in block), default=0) - min((s.address for s in block), default=0)
    if _CONTEXT in symbols:
        first, words = symbols[_CONTEXT], 1
    else:
        first, words = 0, min(size // 8, _MAX_TLS_WORDS)
    return (0, _tls_module(elf), names, first, words) if words else None


def _tls_module(elf: ElfFile) -> int:
    """Where the loader writes the number of the file's own TLS block; 0 where it is the program's: always 1."""
    for section in elf.sections:
        if section.kind != "SHT_RELA" or section.link >= len(elf.sections):
            continue
        symbols = elf.sections[section.link]
        for offset, info, _ in _entries(elf, section):
            if info & 0xFFFFFFFF == _DTPMOD64 and _is_own(elf, symbols, info >> 32):
                return offset
    return 0


def _entries(elf: ElfFile, section: Section) -> Iterator[tuple[int, int, int]]:
    data = elf.contents(section, MAX_TABLE)
    return _RELA.iter_unpack(data[: len(data) // _RELA.size * _RELA.size])


def _is_own(elf: ElfFile, table: Section, symbol: int) -> bool:
    """A relocation against a symbol that this file defines, or against none."""
    if not symbol:
        return True
    if (symbol + 1) * _SYMBOL_SIZE > table.size:
        raise BadElf("has a malformed symbol table")
    entry = elf.read(table.offset + symbol * _SYMBOL_SIZE, _SYMBOL_SIZE)
    return bool(int.from_bytes(entry[6:8], "little"))


def _hidden_symbols(elf: ElfFile, symbols: dict[str, int]) -> int | None:
    """ruby_global_symbols where it has no symbol: rb_sym_all_symbols loads from it, relative to the instruction.

    In the file it holds the number of the last identifier that the parser knows, some 200, and zeros.
    """
    data = elf.section(".data")
    if data is None or _EXAMPLE not in symbols:
        return None
    code = elf.read_at(symbols[_EXAMPLE], _MAX_EXAMPLE)
    initial = elf.contents(data, MAX_TABLE)
    for at in range(len(code) - 3):
        target = symbols[_EXAMPLE] + at + 4 + int.from_bytes(code[at : at + 4], "little", signed=True)
        for operand in _OPERANDS:
            for field in (0, 8):  # .str is the second one
                address = target + operand - field
                inside = address - data.address
                value = initial[inside : inside + 32] if inside >= 0 and address % 8 == 0 else b""
                last = int.from_bytes(value[:4], "little")
                if len(value) == 32 and 100 <= last < 1000 and not any(value[4:]):
                    return address
    return None


@cache
def _data() -> dict[str, Any]:
    text = files(__package__).joinpath("ruby_layouts.json").read_text(encoding="utf-8")
    data: dict[str, Any] = json.loads(text)
    return data


def _layouts() -> dict[str, tuple[int, ...]]:
    return {version: tuple(layout) for version, layout in _data()["layouts"].items()}


def walk(memory: Memory, value: bytes, thread: int) -> Walked:
    """The frames of a thread as they are now; value: what ``find`` gave for the kernel's walker."""
    _, _, base, _, *numbers = records.INTERPRETER.unpack(value)
    layout = dict(zip((*_ADDRESSES, *_data()["fields"]), numbers, strict=False))
    return ruby_walk.walk(memory, layout, base, thread)


def decode(record: CodeRecord, version: str) -> Code:
    """Never raises for what the target sent.

    Methods are named as Ruby 3.4 does it, with their class where that could be read.  Those in C have no file.
    """
    function = _bytes(record.name, record.name_length, records.MAX_NAME)
    owner = _bytes(record.table, record.table_length, MAX_CLASS)
    method = record.kinds >> KIND_BITS
    if owner and not owner.startswith(b"#") and 0 < method <= len(function) == record.name_length:
        separator = b"." if record.kinds & KIND_SINGLETON else b"#"
        function = function[:-method] + owner + separator + function[-method:]
    if len(function) < record.name_length:
        function += "…".encode()
    file: str | None = None
    if not record.kinds & KIND_C_METHOD:
        file = os.fsdecode(_bytes(record.file, record.file_length, records.MAX_FILE))
        if record.file_length >= records.MAX_FILE:
            file = f"…{file}"
    return Code(file, os.fsdecode(function), lambda position: position or None)


def _bytes(raw: bytes, length: int, size: int) -> bytes:
    """What was copied of a string: all but its end (a path's start) when it is longer than there is room."""
    data = raw[: min(length, size - 1)]
    return data if data.strip(b"\0") else b""  # it could not be read


def is_loop(function: str) -> bool:
    return function in _LOOPS
