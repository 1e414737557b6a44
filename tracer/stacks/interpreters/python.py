"""CPython 3.8 to 3.14: bpf/python.c walks its frames, this tells it where they are and reads what it sent.

Offsets are the target's own where it tells them: from 3.13 on ``_PyRuntime`` begins with _Py_DebugOffsets
(Include/internal/pycore_debug_offsets.h).  For older ones they are data, python_layouts.json.
"""

from __future__ import annotations

import contextlib
import json
import re
import struct
from functools import cache, partial
from importlib.resources import files

from tracer import records
from tracer.records import CodeRecord, Language
from tracer.stacks.elf import BadElf
from tracer.stacks.interpreters import python_walk
from tracer.stacks.interpreters.base import Code, Found, ModuleOf, bias
from tracer.stacks.interpreters.late import Memory, Walked
from tracer.stacks.interpreters.python_lines import line_of_lnotab, line_of_locations, line_of_pairs
from tracer.stacks.interpreters.threaded_code import ThreadedCode
from tracer.stacks.maps import AddressSpace, Mapping
from tracer.stacks.modules import Module
from tracer.stacks.symbols import find_symbols

name = "python"
MINORS = range(8, 15)
SUPPORTED = f"CPython 3.{MINORS[0]} to 3.{MINORS[-1]}"
_FILE = re.compile(r"(?:lib)?python(\d)\.?(\d+)?[a-z]*(?:\.so[.\d]*)?$")
_SYMBOLS = ("_PyRuntime", "PyCode_Type", "Py_Version")
_COOKIE = b"xdebugpy"
_SHIM_OWNER = 3  # FRAME_OWNED_BY_CSTACK (3.12, 3.13), FRAME_OWNED_BY_INTERPRETER (3.14)

# _Py_DebugOffsets behind cookie, version and free_threaded: its structs in order, a u64 a field.
_RUNTIME = ("runtime.size", "runtime.finalizing", "runtime.interpreters_head")
_REST = (
    "gc",
    "imports",
    "sysdict",
    "builtins",
    "gil",
    "gil_state",
    "gil_enabled",
    "gil_locked",
    "gil_holder",
)
_THREAD = (
    "size",
    "prev",
    "next",
    "interp",
    "current_frame",
    "thread_id",
    "native_thread_id",
    "datastack",
    "status",
)
_FRAME = ("size", "previous", "executable", "instr_ptr", "localsplus", "owner")
_CODE = (
    *("size", "filename", "name", "qualname", "linetable", "firstlineno"),
    *("argcount", "names", "kinds", "co_code_adaptive"),
)


def _named(prefix: str, fields: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{prefix}.{field}" for field in fields)


_TAIL = {"type": 4, "tuple": 3, "list": 3, "set": 4, "dict": 3, "float": 2, "long": 3}


def _debug_fields(minor: int) -> tuple[str, ...]:
    """Names of the fields in their order; those of no interest have numbers."""
    newer = minor >= 14
    order = ["type", "tuple", "list", *(["set"] if newer else []), "dict", "float", "long"]
    return (
        *_RUNTIME,
        *_named("interp", ("size", "id", "next", "threads_head", *(("threads_main",) if newer else ()))),
        *_named("interp", _REST),
        *(_named("interp", ("code_generation", "tlbc_generation")) if newer else ()),
        *_named("thread", _THREAD),
        *_named("frame", (*_FRAME, *(("stackpointer", "tlbc_index") if newer else ()))),
        *_named("code", (*_CODE, *(("tlbc",) if newer else ()))),
        "object.size",
        "object.ob_type",
        *(f"{each}.{index}" for each in order for index in range(_TAIL[each])),
        "bytes.size",
        "bytes.ob_size",
        "bytes.ob_sval",
        "unicode.size",
        "unicode.state",
        "unicode.length",
        "unicode.asciiobject_size",
    )


def find(space: AddressSpace, modules: ModuleOf) -> Found | None:
    """A file with CPython's or libpython's name, else the program itself, which may have CPython built in."""
    named = [mapping for mapping in space.mappings if _match(mapping)]
    for mapping in (*named, *space.mappings[:1]):
        module = modules(mapping)
        if module is None or module.elf is None:
            continue
        try:
            symbols = find_symbols(module.elf, _SYMBOLS)
            if "_PyRuntime" not in symbols:
                continue
            addresses = _addresses(mapping, module, symbols) | _copies(space.mappings[0], modules)
            return _found(module, symbols, addresses, _match(mapping))
        except (BadElf, struct.error) as error:
            if _match(mapping):
                return Found(Language.PYTHON, "", module, b"", f"{module.name} {error}")
    return None


def _match(mapping: Mapping) -> re.Match[str] | None:
    return _FILE.match(mapping.path.rpartition("/")[2])


def _copies(mapping: Mapping, modules: ModuleOf) -> dict[str, int]:
    """The program's own: where it refers to a variable of libpython, the linker gave it a copy, which all use."""
    program = modules(mapping)
    if program is None or program.elf is None:
        return {}
    try:
        return _addresses(mapping, program, find_symbols(program.elf, _SYMBOLS))
    except (BadElf, struct.error):
        return {}


def _addresses(mapping: Mapping, module: Module, symbols: dict[str, int]) -> dict[str, int]:
    at = bias(mapping, module)
    return {name: at + value for name, value in symbols.items()}


def _found(
    module: Module, symbols: dict[str, int], addresses: dict[str, int], match: re.Match[str] | None
) -> Found:
    assert module.elf is not None
    runtime = symbols["_PyRuntime"]
    version = ""
    if "Py_Version" in symbols:  # since 3.11
        packed = int.from_bytes(module.elf.read_at(symbols["Py_Version"], 8), "little")
        version = f"{packed >> 24}.{packed >> 16 & 0xFF}.{packed >> 8 & 0xFF}"
    elif match and match[2]:
        version = f"{match[1]}.{match[2]}"
    head = b""
    with contextlib.suppress(BadElf):  # up to 3.12 it may be in .bss
        head = module.elf.read_at(runtime, 24)
    minor = int(version.split(".")[1]) if version.startswith("3.") else 0
    if head[:8] == _COOKIE and minor in (13, 14):
        if int.from_bytes(head[16:24], "little"):
            problem = (
                f"no Python frames of {module.name}: it is {version} without a GIL, {SUPPORTED} are supported"
            )
            return Found(Language.PYTHON, version, module, b"", problem)
        layout = _own_layout(module, runtime, minor)
    else:
        layout = _layouts().get(f"3.{minor}", ())
    if not layout or "PyCode_Type" not in symbols:
        problem = f"no Python frames of {module.name}: it is version {version or 'unknown'}, {SUPPORTED} are supported"
        return Found(Language.PYTHON, version, module, b"", problem)
    value = records.INTERPRETER.pack(
        Language.PYTHON,
        3 << 8 | minor,
        addresses["_PyRuntime"],
        addresses["PyCode_Type"],
        *layout,
        *(0,) * (records.MAX_LAYOUT - len(layout)),
    )
    return Found(Language.PYTHON, version, module, value, is_loop_at=ThreadedCode(module))


def _own_layout(module: Module, runtime: int, minor: int) -> tuple[int, ...]:
    assert module.elf is not None
    names = _debug_fields(minor)
    data = module.elf.read_at(runtime + 24, 8 * len(names))
    told = dict(zip(names, struct.unpack(f"<{len(names)}Q", data), strict=True))
    by_name = {
        "RUNTIME_INTERPRETERS": told["runtime.interpreters_head"],
        "INTERP_THREADS": told["interp.threads_head"],
        "INTERP_NEXT": told["interp.next"],
        "THREAD_NEXT": told["thread.next"],
        "THREAD_ID": told["thread.thread_id"],
        "THREAD_FRAME": told["thread.current_frame"],
        "FRAME_CODE": told["frame.executable"],
        "FRAME_BACK": told["frame.previous"],
        "FRAME_INSTR": told["frame.instr_ptr"],
        "FRAME_OWNER": told["frame.owner"],
        "CODE_FILENAME": told["code.filename"],
        "CODE_NAME": told["code.qualname"],
        "CODE_FIRSTLINENO": told["code.firstlineno"],
        "CODE_TABLE": told["code.linetable"],
        "CODE_INSTRUCTIONS": told["code.co_code_adaptive"],
        "OBJECT_TYPE": told["object.ob_type"],
        "STRING_LENGTH": told["unicode.length"],
        "STRING_STATE": told["unicode.state"],
        "STRING_STATE_SHIFT": 2,  # behind "interned"
        "STRING_ASCII": told["unicode.asciiobject_size"],
        "STRING_COMPACT": told["unicode.size"] - 8,
        "BYTES_SIZE": told["bytes.ob_size"],
        "BYTES_DATA": told["bytes.ob_sval"],
        "SHIM_OWNER": _SHIM_OWNER,
        "CODE_TAG": 7 if minor >= 14 else 0,  # _PyStackRef
    }
    layout = tuple(by_name.get(field, 0) for field in _fields())
    return layout if all(0 <= offset < 1 << 20 for offset in layout) else ()


@cache
def _data() -> dict[str, list[int]]:
    text = files(__package__).joinpath("python_layouts.json").read_text(encoding="utf-8")
    data: dict[str, list[int]] = json.loads(text)
    return data


def _fields() -> tuple[str, ...]:
    return tuple(str(field) for field in _data()["fields"])


def _layouts() -> dict[str, tuple[int, ...]]:
    return {version: tuple(layout) for version, layout in _data().items() if version[0].isdigit()}


def walk(memory: Memory, value: bytes, thread: int) -> Walked:
    """The frames of a thread as they are now; value: what ``find`` gave for the kernel's walker."""
    _, _, runtime, code_type, *layout = records.INTERPRETER.unpack(value)
    return python_walk.walk(memory, dict(zip(_fields(), layout, strict=False)), runtime, code_type, thread)


def decode(record: CodeRecord, version: str) -> Code:
    """Never raises for what the target sent."""
    minor = int(version.split(".")[1])
    file = _text(record.file, record.file_length, records.MAX_FILE, record.kinds & 0xFF, tail=True)
    function = _text(record.name, record.name_length, records.MAX_NAME, record.kinds >> 8, tail=False)
    if minor >= 11:
        line = partial(line_of_locations, record.table, record.first_line)
    elif minor == 10:
        line = partial(_from_index, record.table, record.first_line)
    else:
        line = partial(line_of_lnotab, record.table, record.first_line)
    return Code(file, function, line)


def _from_index(table: bytes, first_line: int, index: int) -> int | None:
    """3.10 counts f_lasti in instructions of two bytes."""
    return line_of_pairs(table, first_line, index * 2)


def _text(raw: bytes, length: int, size: int, kind: int, tail: bool) -> str:
    """kind: bytes a character (PEP 393), with one byte Latin-1."""
    data = raw[: min(length, size - 1)]
    encoding = {1: "latin-1", 2: "utf-16-le", 4: "utf-32-le"}.get(kind, "latin-1")
    if kind in (2, 4):
        excess = len(data) % kind
        data = data[excess:] if tail else data[: len(data) - excess]
    try:
        text = data.decode(encoding, "surrogatepass")  # stray bytes of a path, as os.fsdecode has them
    except UnicodeDecodeError:
        text = data.decode(encoding, "replace")
    if length < size:
        return text
    return f"…{text}" if tail else f"{text}…"


def is_loop(function: str) -> bool:
    return function.startswith("_PyEval_EvalFrameDefault")
