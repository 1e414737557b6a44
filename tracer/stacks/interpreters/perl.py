"""Perl with threads, as distributions build it: bpf/perl.c walks its contexts, this tells it where they are.

Offsets of perl's structs are data, perl_layouts.json.
"""

from __future__ import annotations

import json
import re
from functools import cache
from importlib.resources import files

from tracer import records
from tracer.records import CodeRecord, Language
from tracer.stacks.elf import BadElf
from tracer.stacks.interpreters import cstrings
from tracer.stacks.interpreters.base import Code, Found, ModuleOf, bias
from tracer.stacks.interpreters.command import PERL
from tracer.stacks.maps import AddressSpace
from tracer.stacks.symbols import find_symbols

name = "perl"
syntax = PERL
SUPPORTED = "5.32 and 5.36 to 5.40, built with threads,"
_FILE = re.compile(r"(?:perl[\d.]*|libperl\.so.*)$")
_SYMBOLS = ("PL_curinterp", "PL_thr_key", "PL_version")


def find(space: AddressSpace, modules: ModuleOf) -> Found | None:
    """The first mapped file that is a Perl."""
    for mapping in space.mappings:
        if not _FILE.match(mapping.path.rpartition("/")[2]):
            continue
        module = modules(mapping)
        if module is None or module.elf is None:
            continue
        try:
            symbols = find_symbols(module.elf, _SYMBOLS)
            if "PL_version" not in symbols:
                continue  # a program that has its Perl in libperl
            version = f"5.{module.elf.read_at(symbols['PL_version'], 1)[0]}"
            at = bias(mapping, module)
        except (BadElf, IndexError) as error:
            return Found(Language.PERL, "", module, b"", f"no Perl frames of {module.path}: it {error}")
        layout = _layouts().get(version)
        if layout is None or len(symbols) < len(_SYMBOLS):
            built = "" if "PL_thr_key" in symbols else " without threads"
            problem = f"no Perl frames of {module.name}: it is {version}{built}, {SUPPORTED} are supported"
            return Found(Language.PERL, version, module, b"", problem)
        value = records.INTERPRETER.pack(
            Language.PERL,
            5 << 8 | int(version[2:]),
            at,
            0,
            symbols["PL_curinterp"],
            symbols["PL_thr_key"],
            *layout,
            *(0,) * (records.MAX_LAYOUT - len(layout) - 2),
        )
        return Found(Language.PERL, version, module, value)
    return None


@cache
def _layouts() -> dict[str, tuple[int, ...]]:
    text = files(__package__).joinpath("perl_layouts.json").read_text(encoding="utf-8")
    data: dict[str, list[int]] = json.loads(text)
    return {version: tuple(layout) for version, layout in data.items() if version[0].isdigit()}


def decode(record: CodeRecord, version: str) -> Code:
    """No function: code of a file, outside of its subs."""
    return cstrings.read(record, "::")


def is_loop(function: str) -> bool:
    return function.startswith("Perl_runops")
