"""What a language gives: where it is, what its code records say, and at which line a frame stands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from tracer.records import CodeRecord, Language
from tracer.stacks.interpreters.command import Script
from tracer.stacks.maps import AddressSpace, Mapping
from tracer.stacks.modules import Module

ModuleOf = Callable[[Mapping], Module | None]


@dataclass(frozen=True, slots=True)
class Found:
    """An interpreter in an address space.

    value: ``records.INTERPRETER`` for the walker; empty where this version cannot be walked, and ``problem`` says why.
    module: the mapped file that holds its C code.  script: what it was started with, where that is of use.
    decoder: in place of the language's ``decode``, where a record says too little without its process.
    is_loop_at: as the language's ``is_loop``, of a function without a name, by a virtual address in it.
    """

    language: Language
    version: str
    module: Module
    value: bytes
    problem: str = ""
    script: Script | None = None
    decoder: Callable[[CodeRecord], Code] | None = None
    is_loop_at: Callable[[int], bool] | None = None


@dataclass(frozen=True, slots=True)
class Code:
    """What frames execute.  line: from a frame's position to the source line, None where it is not known.
    begins: the line that the function begins at, for frames that have no other.

    file: None for a function of the language that is written in C.
    """

    file: str | None
    function: str
    line: Callable[[int], int | None]
    begins: int | None = None


class Interpreter(Protocol):
    """One language; its modules in this package satisfy it by their functions."""

    name: str  # as trace.Frame.language has it

    def find(self, space: AddressSpace, modules: ModuleOf) -> Found | None: ...

    def decode(self, record: CodeRecord, version: str) -> Code: ...

    def is_loop(self, function: str) -> bool:
        """A C function that executes the language's frames."""
        ...


def bias(mapping: Mapping, module: Module) -> int:
    """Address in memory minus virtual address in the file; ``module.elf`` must be there."""
    assert module.elf is not None
    return mapping.start - module.elf.vaddr(mapping.offset)
