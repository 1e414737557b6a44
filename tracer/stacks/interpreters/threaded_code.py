"""An interpreter's loop that has no name: a stripped one, or the part of it that the compiler has put apart as cold."""

from __future__ import annotations

import re
from typing import Final

from tracer.stacks.elf import BadElf
from tracer.stacks.modules import Module

# jmp *reg, jmp *(reg), jmp *disp8(reg), jmp *(,reg,8); a 0xff before it is the end of a negative displacement
_INDIRECT_JUMP: Final = re.compile(rb"(?<!\xff)\xff[\x20-\x24\x26\x27\x60-\x67\xe0-\xe7]")
_MANY_JUMPS: Final = (
    100  # vm_exec_core has 120 to 150, CPython's loop 250; other functions of both have up to 40
)
_MAX_FUNCTION: Final = 1 << 20  # bytes


class ThreadedCode:
    """Whether the function at a virtual address is such a loop.

    Each instruction of a language in threaded code jumps to the next one by itself, so its loop is full of indirect
    jumps.
    """

    def __init__(self, module: Module) -> None:
        self._module = module
        self._known: dict[int, bool] = {}

    def __call__(self, address: int) -> bool:
        elf, table = self._module.elf, self._module.cfi
        if elf is None or table is None:
            return False
        try:
            function = table.function(address)
            if function is None:
                return False
            start, end = function
            if start not in self._known:
                code = elf.read_at(start, min(max(end - start, 0), _MAX_FUNCTION))
                self._known[start] = len(_INDIRECT_JUMP.findall(code)) >= _MANY_JUMPS
        except BadElf:
            return False
        return self._known[start]
