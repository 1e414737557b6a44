"""bash 4.0 to 5.3: bpf/bash.c reads its line and its arrays of functions, this tells it where they are.

Offsets are those of variables.h, hashlib.h and array.h, which have not changed since 4.0 but for one: ARRAY lost its
first field in 5.2.  The version is what the file itself says of its compatibility level.
"""

from __future__ import annotations

from tracer import records
from tracer.records import CodeRecord, Language
from tracer.stacks.elf import BadElf
from tracer.stacks.interpreters import cstrings
from tracer.stacks.interpreters.base import Code, Found, ModuleOf, bias
from tracer.stacks.interpreters.command import SHELL
from tracer.stacks.maps import AddressSpace
from tracer.stacks.symbols import find_symbols

name = "bash"
syntax = SHELL
_VARIABLES = ("line_number", "command_execution_string", "global_variables")
_LEVEL = "shell_compatibility_level"
_CONTEXT_TABLE = 32  # offsetof(VAR_CONTEXT, table)
_VARIABLE_VALUE = 8  # offsetof(SHELL_VAR, value)
_ARRAYS = ("FUNCNAME", "BASH_SOURCE", "BASH_LINENO")


def find(space: AddressSpace, modules: ModuleOf) -> Found | None:
    """The program itself, when it is a bash."""
    if not space.mappings:
        return None
    mapping = space.mappings[0]
    file = mapping.path.rpartition("/")[2]
    if "bash" not in file and file != "sh":
        return None
    module = modules(mapping)
    if module is None or module.elf is None:
        return None
    try:
        symbols = find_symbols(module.elf, (*_VARIABLES, _LEVEL))
        if len(symbols) <= len(_VARIABLES):
            return None
        level = int.from_bytes(module.elf.read_at(symbols[_LEVEL], 4), "little")
        at = bias(mapping, module)
    except BadElf as error:
        return Found(Language.BASH, "", module, b"", f"no shell functions of {module.path}: it {error}")
    version = f"{level // 10}.{level % 10}"
    if not 40 <= level <= 53:
        problem = f"no shell functions of {module.name}: it is version {version}, 4.0 to 5.3 are supported"
        return Found(Language.BASH, version, module, b"", problem)
    layout = (
        *(symbols[variable] for variable in _VARIABLES),
        _CONTEXT_TABLE,
        _VARIABLE_VALUE,
        16 if level >= 52 else 24,
        *map(hash_of, _ARRAYS),
    )
    value = records.INTERPRETER.pack(
        Language.BASH,
        level // 10 << 8 | level % 10,
        at,
        0,
        *layout,
        *(0,) * (records.MAX_LAYOUT - len(layout)),
    )
    return Found(Language.BASH, version, module, value)


def hash_of(variable: str) -> int:
    """hash_string() of hashlib.c: FNV-1, 32 bits."""
    value = 2166136261
    for byte in variable.encode():
        value = value * 16777619 & 0xFFFFFFFF ^ byte
    return value


def decode(record: CodeRecord, version: str) -> Code:
    """No function: the outermost code of -c and of standard input."""
    return cstrings.read(record)


def is_loop(function: str) -> bool:
    return function.startswith("execute_command")
