"""Node 18 to 24: bpf/node.c walks V8's frames, this tells it where V8 keeps things and reads what it sent.

Node's file says so itself: it holds constants of V8 for post-mortem debuggers, symbols that begin with v8dbg_.  What
they leave out (three fields) is told from the others.  A build with pointer compression is refused.

A frame of compiled code (hot functions), and one whose source positions V8 has not kept, has no line; the line that the
function begins at is then a part of its name.
"""

from __future__ import annotations

import re
import struct
from functools import partial
from urllib.parse import unquote

from tracer import records
from tracer.records import CodeRecord, Language
from tracer.stacks.elf import BadElf
from tracer.stacks.files import FileRefused
from tracer.stacks.interpreters.base import Code, Found, ModuleOf, bias
from tracer.stacks.interpreters.v8_positions import line_at, line_starts, position_at, units_of
from tracer.stacks.maps import AddressSpace
from tracer.stacks.modules import Module
from tracer.stacks.symbols import find_prefixed

name = "javascript"
SUPPORTED = "Node 18 to 24"
NO_POSITION = 0xFFFFFFFF
MAX_SOURCE = 16 << 20  # bytes
MAX_SOURCES = 64  # whose lines are kept, of each file of Node

_FILE = re.compile(r"(?:node|nodejs|libnode\.so[.\d]*)$")
_PREFIX = "v8dbg_"
_TRAMPOLINE = "Builtins_InterpreterEntryTrampoline"
_TAG = 1
_SMI_SHIFT = 31  # SmiShiftSize without pointer compression
_SOURCE = struct.Struct("<QII8Q")
_NAME_ONE_BYTE, _FILE_ONE_BYTE = 1, 2

# Of the fields of bpf/node.c's layout that are offsets from a tagged pointer: constants, the first that the file has.
_OFFSETS = (
    ("class_Map__instance_type__",),
    ("class_JSFunction__shared__",),
    ("class_SharedFunctionInfo__name_or_scope_info__",),
    ("class_SharedFunctionInfo__script_or_debug_info__", "class_SharedFunctionInfo__script__"),
    ("class_Script__name__",),
    ("class_Script__source__",),
)
_STRINGS = (
    ("class_String__length__",),
    ("class_SeqOneByteString__chars__",),
    ("class_ThinString__actual__",),
    ("class_ConsString__second__",),
)
_TYPES = (
    "FirstNonstringType",
    "FirstContextType",
    "LastContextType",
    "type_SharedFunctionInfo__SHARED_FUNCTION_INFO_TYPE",
    "type_Script__SCRIPT_TYPE",
    "type_ScopeInfo__SCOPE_INFO_TYPE",
    "type_BytecodeArray__BYTECODE_ARRAY_TYPE",
)


class _Unsupported(Exception):
    """``str()`` completes "it ..."."""


def find(space: AddressSpace, modules: ModuleOf) -> Found | None:
    """The first mapped file that is a Node."""
    refused = None
    for mapping in space.mappings:
        if not _FILE.match(mapping.path.rpartition("/")[2]):
            continue
        module = modules(mapping)
        if module is None or module.elf is None:
            continue
        try:
            at = bias(mapping, module)
            layout = _layout(module)
        except (BadElf, _Unsupported) as error:
            problem = f"no JavaScript frames of {module.path}: it {error}; {SUPPORTED} are supported"
            refused = Found(Language.NODE, "", module, b"", problem)
            continue  # a program that has its V8 in libnode
        value = records.INTERPRETER.pack(
            Language.NODE, 0, at, 0, *layout, *(0,) * (records.MAX_LAYOUT - len(layout))
        )
        return Found(
            Language.NODE,
            "",
            module,
            value,
            decoder=partial(decode_in, Sources(module, at)),
            is_loop_at=_is_nameless_code,
        )
    return refused


def _layout(module: Module) -> tuple[int, ...]:
    """In the order of enum node_layout.  Remembered with the module: the symbol table is large."""
    known = module.layouts.get(name)
    if known is None:
        known = module.layouts[name] = _read_layout(module)
    return known


def _read_layout(module: Module) -> tuple[int, ...]:
    assert module.elf is not None
    elf = module.elf
    constants: dict[str, int] = {}
    for symbol, (address, _) in find_prefixed(elf, _PREFIX).items():
        try:
            constants[symbol.removeprefix(_PREFIX)] = int.from_bytes(
                elf.read_at(address, 4), "little", signed=True
            )
        except BadElf:  # in .bss, where the zeros are
            constants[symbol.removeprefix(_PREFIX)] = 0
    text = elf.section(".text")
    if not constants or text is None:
        raise _Unsupported("has no symbols that tell how V8 lays out its objects")

    def get(*prefixes: str) -> int:
        for prefix in prefixes:
            for constant, value in constants.items():
                if constant.startswith(prefix):
                    return value
        raise _Unsupported(f"lacks V8's constant {prefixes[0].rstrip('_')}")

    if get("SmiShiftSize") != _SMI_SHIFT:
        raise _Unsupported("was built with pointer compression")
    data = get("class_BytecodeArray__data__")
    wrapped = any(constant.startswith("class_BytecodeArray__wrapper__") for constant in constants)
    first = get("scopeinfo_idx_first_vars")
    layout = (
        text.address,
        text.address + text.size,
        -get("off_fp_context"),
        -get("off_fp_function"),
        -get("off_fp_bytecode_array"),
        -get("off_fp_bytecode_offset"),
        *(get(*prefixes) - _TAG for prefixes in _OFFSETS),
        (24 if wrapped else 32) - _TAG,  # BytecodeArray.source_position_table: behind the wrapper since V8 12
        data - _TAG,
        get("class_FixedArrayBase__length__") - _TAG,
        get("class_FixedArray__data__") - _TAG,
        8 + 8 * get("scopeinfo_idx_ncontextlocals") - _TAG,
        8 + 8 * first - _TAG,
        8 + 8 * 3 - _TAG if first >= 5 else 0,  # ScopeInfo.position_info: before the locals since V8 13
        *(get(*prefixes) - _TAG for prefixes in _STRINGS),
        get("class_ExternalString__resource__") + 8 - _TAG,  # ExternalString.resource_data
        *(get(constant) for constant in _TYPES),
    )
    if not all(0 <= each < 1 << 32 for each in layout):
        raise _Unsupported("has constants of V8 that cannot be")
    return layout


class Sources:
    """The lines of scripts: Node's own are in its file, others on disk.  State: those that were read."""

    def __init__(self, module: Module, at: int) -> None:
        """at: address in memory minus virtual address in the file."""
        self._module = module
        self._at = at
        self._starts: dict[tuple[str, int], list[int] | None] = {}

    def line(self, file: str, data: int, length: int, one_byte: bool, position: int) -> int | None:
        """data: address of the characters, for a string that V8 does not own.  length: in characters.  None where the
        source of that length is not to be had.
        """
        key = file, length
        if key not in self._starts:
            if len(self._starts) >= MAX_SOURCES:
                self._starts.clear()
            text = self._embedded(data, length, one_byte) if data else self._on_disk(file, length)
            self._starts[key] = None if text is None else line_starts(text)
        starts = self._starts[key]
        return None if starts is None or position > length else line_at(starts, position)

    def _embedded(self, data: int, length: int, one_byte: bool) -> str | None:
        size = length if one_byte else 2 * length
        if size > MAX_SOURCE or self._module.elf is None:
            return None
        try:
            raw = self._module.elf.read_at(data - self._at, size)
        except BadElf:
            return None
        return raw.decode("latin-1" if one_byte else "utf-16-le", "replace") if len(raw) == size else None

    def _on_disk(self, file: str, length: int) -> str | None:
        """Only what has the length that V8 has: else it was changed since, or translated."""
        if self._module.root is None or not file.startswith("/"):
            return None
        try:
            raw = self._module.root.read(file, MAX_SOURCE)
        except FileRefused:
            return None
        text = raw.decode("utf-8", "replace").removeprefix("\ufeff")
        return text if units_of(text) == length else None


def decode_in(sources: Sources, record: CodeRecord) -> Code:
    """Never raises for what the target sent."""
    if len(record.table) < _SOURCE.size:
        return Code(None, "", lambda position: None)
    data, length, one_byte, *words = _SOURCE.unpack_from(record.table)
    table = record.table[_SOURCE.size :]
    file = _text(record.file, record.file_length, records.MAX_FILE, record.kinds & _FILE_ONE_BYTE, tail=True)
    function = _text(
        record.name, record.name_length, records.MAX_NAME, record.kinds & _NAME_ONE_BYTE, tail=False
    )
    if file.startswith("file://"):
        file = unquote(file.removeprefix("file://"))
    line_of = partial(sources.line, file, data, length, bool(one_byte))

    def line(position: int) -> int | None:
        at = position_at(table, position) if position != NO_POSITION else None
        return None if at is None else line_of(at)

    begin = _begin(words, length)
    if not function:
        function = "(module)" if begin == 0 else "(anonymous)"
    return Code(file or None, function, line, line_of(begin) if begin else None)


def _begin(words: list[int], length: int) -> int | None:
    """The function's first character: the last two numbers in a row are where it begins and ends.

    words: the place where V8 13 has them (0, 0 in older ones), then what stands behind the scope's locals.
    """
    numbers = [None if word & 0xFFFFFFFF else word >> 32 for word in words]
    place, behind = numbers[:2], numbers[2:]
    if words[0] or words[1]:
        pairs = [(place[0], place[1])]
    else:
        pairs = [(behind[at], behind[at + 1]) for at in range(len(behind) - 2) if behind[at + 2] is None]
    for begin, end in pairs:
        if begin is not None and end is not None and begin < end <= length:
            return begin
    return None


def _text(raw: bytes, length: int, size: int, one_byte: int, tail: bool) -> str:
    data = raw[: min(length, size - 1)]
    if not one_byte:
        data = data[len(data) % 2 :] if tail else data[: len(data) - len(data) % 2]
    text = data.decode("latin-1" if one_byte else "utf-16-le", "replace")
    if length < size:
        return text
    return f"…{text}" if tail else f"{text}…"


def decode(record: CodeRecord, version: str) -> Code:
    """Without its process a record says too little: ``Found.decoder`` is used."""
    raise NotImplementedError


def is_loop(function: str) -> bool:
    return function.startswith(_TRAMPOLINE)


def _is_nameless_code(address: int) -> bool:
    """V8's own code has local symbols only: in a stripped file, what has no name is taken for it."""
    return True
