"""PHP 7.4 to 8.4 without thread safety, as distributions build it: bpf/php.c walks its frames, this tells it where.

The structs are those of Zend/zend_compile.h and zend_globals.h.  What a walk needs of them has stayed where it is since
7.4, but for op_array.filename.  Where that is, the code of zend_get_executed_filename in the file says.
"""

from __future__ import annotations

import re
from dataclasses import replace

from tracer import records
from tracer.records import CodeRecord, Language
from tracer.stacks.elf import BadElf, ElfFile
from tracer.stacks.interpreters import cstrings
from tracer.stacks.interpreters.base import Code, Found, ModuleOf, bias
from tracer.stacks.maps import AddressSpace
from tracer.stacks.symbols import find_symbols

name = "php"
SUPPORTED = "7.4 to 8.4 without thread safety"
_FILE = re.compile(r"(?:php(?:-fpm|-cgi|-cli|dbg)?[\d.]*|libphp[\d.]*\.so.*)$")
_GETTERS = ("zend_get_executed_filename_ex", "zend_get_executed_filename")
_SYMBOLS = ("executor_globals", *_GETTERS)
_VERSION = re.compile(rb"X-Powered-By: PHP/(\d+)\.(\d+)\.(\d+)")
_CURRENT = 488  # offsetof(zend_executor_globals, current_execute_data)
_PREVIOUS = 48
# mov 48(%rax),%rax (prev_execute_data), and behind the loop mov FILENAME(register),%rax
_CODE = re.compile(
    rb"\x48\x8b\x40\x30.{2,32}?\x48\x8b[\x80-\x83\x85-\x87](?P<offset>.{2}\x00\x00)", re.DOTALL
)
_LAYOUT = (0, 24, _PREVIOUS, 8, 16)  # opline, func, prev_execute_data; function_name, scope
_REST = (8, 24, 24)  # zend_class_entry.name, zend_string.val, zend_op.lineno


def find(space: AddressSpace, modules: ModuleOf) -> Found | None:
    """The first mapped file that is a PHP."""
    for mapping in space.mappings:
        if not _FILE.match(mapping.path.rpartition("/")[2]):
            continue
        module = modules(mapping)
        if module is None or module.elf is None:
            continue
        try:
            version = _version(module.elf)
            symbols = find_symbols(module.elf, _SYMBOLS)
            at = bias(mapping, module)
            filename = _filename_offset(module.elf, symbols)
        except BadElf as error:
            return Found(Language.PHP, "", module, b"", f"no PHP frames of {module.path}: it {error}")
        found = Found(Language.PHP, ".".join(map(str, version)), module, b"")
        if "executor_globals" not in symbols or not (7, 4) <= version[:2] <= (8, 4) or filename is None:
            what = found.version or "of an unknown version"
            return replace(
                found, problem=f"no PHP frames of {module.name}: it is {what}, {SUPPORTED} is supported"
            )
        layout = (symbols["executor_globals"] + _CURRENT, *_LAYOUT, filename, *_REST)
        value = records.INTERPRETER.pack(
            Language.PHP,
            version[0] << 8 | version[1],
            at,
            0,
            *layout,
            *(0,) * (records.MAX_LAYOUT - len(layout)),
        )
        return replace(found, value=value)
    return None


def _version(elf: ElfFile) -> tuple[int, ...]:
    section = elf.section(".rodata")
    match = _VERSION.search(elf.contents(section, 64 << 20)) if section else None
    return tuple(map(int, match.groups())) if match else ()


def _filename_offset(elf: ElfFile, symbols: dict[str, int]) -> int | None:
    for getter in _GETTERS:
        if getter in symbols and (match := _CODE.search(elf.read_at(symbols[getter], 128))):
            offset = int.from_bytes(match["offset"], "little")
            return offset if 128 <= offset <= 256 and not offset % 8 else None
    return None


def decode(record: CodeRecord, version: str) -> Code:
    """A function without a file is PHP's own, written in C."""
    code = cstrings.read(record, "::")
    return replace(code, file=code.file or None)


def is_loop(function: str) -> bool:
    return function.startswith(("execute_ex", "zend_execute"))
