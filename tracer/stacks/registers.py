"""The one place that knows the machine is x86-64: the kernel's saved registers and their DWARF numbers.

First step of ``stacks``: the probe's 168 bytes of ``struct pt_regs`` become a dict keyed by DWARF register number.
Layout: arch/x86/include/asm/ptrace.h; numbers: System V ABI for AMD64, "DWARF Register Number Mapping".
"""

from __future__ import annotations

import struct

PAGE_SIZE = 4096
BP = 6
SP = 7
DI = 5
RA = 16  # the return address column; as a register, the instruction pointer
COUNT = 17  # general registers and RA: all that call frame information can need to find a caller

# DWARF numbers in the order of struct pt_regs; None: not a register that unwinding knows (orig_ax, cs, flags, ss).
# r15 r14 r13 r12 bp bx r11 r10 r9 r8 ax cx dx si di orig_ax ip cs flags sp ss
_PT_REGS = (15, 14, 13, 12, 6, 3, 11, 10, 9, 8, 0, 2, 1, 4, 5, None, 16, None, None, 7, None)
_PICKS = tuple((number, index) for index, number in enumerate(_PT_REGS) if number is not None)
_LAYOUT = struct.Struct(f"<{len(_PT_REGS)}Q")

REGS_SIZE = _LAYOUT.size


def decode(regs: bytes | memoryview) -> dict[int, int]:
    """DWARF number -> value for the 17 registers of a ``struct pt_regs`` (168 bytes; struct.error otherwise)."""
    values = _LAYOUT.unpack(regs)
    return {number: values[index] for number, index in _PICKS}


def pt_regs_index(number: int) -> int:
    """Where a DWARF register stands in ``struct pt_regs``, counted in words."""
    return _PT_REGS.index(number)
