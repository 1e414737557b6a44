"""Registers and a copy of the stack -> raw frames, by the files' unwind tables.

Below it ``cfi`` says where a caller's registers are, ``modules`` what a pc belongs to; above it the probe brings
stacks and ``symbolize`` names the frames.

The result is a function of a few words of the stack and a few registers.  The kernel's side recognises a known
stack by comparing exactly these, so each read here is recorded.  Saved registers are therefore read when a later
frame needs them and not before: most never are.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from tracer.stacks.cfi import Kind, Row, Rule
from tracer.stacks.elf import BadElf
from tracer.stacks.expression import BadExpression, evaluate
from tracer.stacks.maps import AddressSpace, Mapping
from tracer.stacks.modules import Module
from tracer.stacks.perfmap import PerfName
from tracer.stacks.registers import BP, PAGE_SIZE, RA, SP

MAX_FRAMES = 128
MAX_STEPS = 1 << 16  # steps kept a module

_MASK = (1 << 64) - 1
_WORD = struct.Struct("<Q")

ModuleOf = Callable[[Mapping], Module | None]


class RawFrame(NamedTuple):
    """A tuple because twenty are made for each fork, and dataclasses take three times as long.

    vaddr: address within the module as linked, of the call rather than of what follows it; the pc without a module.
    pc: address in memory, of what runs next in this frame.  name: what a perf map says of code without a module.
    """

    module: Module | None
    vaddr: int
    pc: int
    name: PerfName | None = None


@dataclass(frozen=True, slots=True)
class Unwound:
    """frames: leaf first.  cut: a sentence; None when the frames reach the thread's start.

    The frames are what they are because of ``words``, (byte offset from the stack pointer, value), of ``registers``,
    DWARF numbers of entry registers, and of the entry's stack pointer and pc, which are in neither.
    """

    frames: tuple[RawFrame, ...]
    cut: str | None
    words: tuple[tuple[int, int], ...]
    registers: frozenset[int]


class Step(NamedTuple):
    """A row made ready for the loop.

    Simple rows: CFA = register + offset, the return address saved at CFA + ra_offset, other registers saved at
    CFA + offset.  For all others ``row`` is not None.
    """

    cfa_register: int
    cfa_offset: int
    ra_offset: int
    saved: tuple[tuple[int, int], ...]
    row: Row | None


@dataclass(frozen=True, slots=True)
class Code:
    """What is behind an executable mapping.  bias: address in memory minus virtual address in the file.

    steps: the module's, where it has an unwind table; ``problem`` completes "it ..." where it has none.
    """

    module: Module | None
    bias: int
    name: str
    steps: dict[int, Step | None] | None
    problem: str


class _Cut(Exception):
    """Unwinding ends here, for this reason."""


class _Value(NamedTuple):
    """A register's value that was computed, with what it was computed from."""

    value: int
    words: dict[int, int]
    registers: set[int]


class _Lost(NamedTuple):
    """A register whose value cannot be known, why, and what that was found out from."""

    reason: str
    words: dict[int, int] = {}  # noqa: RUF012 - never changed
    registers: frozenset[int] | set[int] = frozenset()


class _Stack:
    """The copy, the registers of the current frame, and the record of what was read and found."""

    __slots__ = (
        "_data",
        "_gap",
        "_gap_size",
        "_holes",
        "_regs",
        "_resumes",
        "_size",
        "frames",
        "registers",
        "sp",
        "where",
        "words",
    )

    def __init__(
        self, regs: dict[int, int], sp: int, data: bytes | memoryview, holes: int, gap: tuple[int, int]
    ) -> None:
        self._data = data
        self._regs = regs
        self.sp = sp
        self._gap, self._gap_size = gap
        self._resumes = self._gap + self._gap_size  # the offset at which the copy goes on
        self._size = len(data) + self._gap_size
        self._holes = holes
        self.frames: list[RawFrame] = []
        self.words: dict[int, int] = {}
        self.registers: set[int] = set()
        # by DWARF number: offset of the saved value in the copy, or what else is known; absent: as on entry
        self.where: dict[int, int | _Value | _Lost] = {}

    def word(self, offset: int) -> int:
        """The word at an offset from the entry's stack pointer.  Raises _Cut outside of the copy."""
        value = self.words.get(offset)
        if value is None:
            if not self.holds(offset):
                raise _Cut(self._outside(offset))
            at = offset if offset < self._gap else offset - self._gap_size
            value = self.words[offset] = _WORD.unpack_from(self._data, at)[0]
        return value

    def holds(self, offset: int) -> bool:
        if self._gap - 8 < offset < self._resumes:
            return False
        return 0 <= offset <= self._size - 8 and not (self._holes and self._in_hole(offset))

    def _in_hole(self, offset: int) -> bool:
        start = (self.sp + self._resumes) % PAGE_SIZE + offset - self._resumes
        if start < 0:  # ahead of the gap
            return False
        return bool((self._holes >> start // PAGE_SIZE | self._holes >> (start + 7) // PAGE_SIZE) & 1)

    def read(self, address: int, size: int) -> int:
        """1 to 8 bytes at an address, for an expression.  The words that hold them are recorded."""
        offset = address - self.sp
        first = offset & -8
        value = self.word(first) >> 8 * (offset - first)
        if offset + size > first + 8:
            value |= self.word(first + 8) << 8 * (first + 8 - offset)
        return value & ((1 << 8 * size) - 1)

    def register(self, number: int) -> int:
        """A register's value in the current frame.  Raises _Cut where it is not known."""
        where = self.where.get(number)
        if where is None:
            try:
                value = self._regs[number]
            except KeyError:
                raise _Cut(f"register {number} is not known") from None
            self.registers.add(number)
            return value
        if isinstance(where, int):
            return self.word(where)
        self.words.update(where.words)
        self.registers.update(where.registers)
        if isinstance(where, _Lost):
            raise _Cut(where.reason)
        return where.value

    def computed(self, compute: Callable[[], int]) -> _Value | _Lost:
        """A value for later: what it is read from counts only once somebody uses it."""
        words, registers = self.words, self.registers
        self.words, self.registers = {}, set()
        try:
            return _Value(compute() & _MASK, self.words, self.registers)
        except _Cut as cut:
            return _Lost(str(cut), self.words, self.registers)
        except BadExpression as error:
            return _Lost(str(error), self.words, self.registers)
        finally:
            self.words, self.registers = words, registers

    def _outside(self, offset: int) -> str:
        if offset < 0:
            return "a frame lies below the stack pointer, on another stack"
        if offset <= self._size - 8:
            return f"the stack's page {offset} bytes above the stack pointer is not in memory"
        if offset < self._size + (1 << 20):
            return f"stack copy ends at {len(self._data)} bytes"
        return "a frame lies far above the stack pointer, on another stack"


def unwind(
    space: AddressSpace,
    modules: ModuleOf,
    regs: dict[int, int],
    sp: int,
    stack: bytes | memoryview,
    holes: int = 0,
    gap: tuple[int, int] = (0, 0),
    *,
    max_frames: int = MAX_FRAMES,
) -> Unwound:
    """The frames of one stack, leaf first.

    modules: for the process the space belongs to, as ``partial(modules.of, pid)``; asked once a mapping, the answer
    stays with the space.  regs: by DWARF number, with 16 (the pc).  sp: where the copy ``stack`` starts.
    gap: where in it how many bytes of no interest were left out.  holes: bit n is set when the n-th page, counted from
    sp's or the gap's end, is not in the copy.
    Never raises for what the target did: a reason to stop is ``Unwound.cut``.
    """
    memory = _Stack(regs, sp, stack, holes, gap)
    try:
        _walk(space, modules, memory, regs[RA], max_frames)
        cut = None
    except _Cut as reason:
        cut = str(reason)
    return Unwound(
        tuple(memory.frames), cut, tuple(sorted(memory.words.items())), frozenset(memory.registers)
    )


def _walk(space: AddressSpace, modules: ModuleOf, memory: _Stack, pc: int, max_frames: int) -> None:
    """Append frames until the thread's start.  Raises _Cut where it cannot be reached."""
    starts, ends, codes = space.starts, space.ends, space.code
    frames, where, word = memory.frames, memory.where, memory.word
    sp = entry = memory.sp
    exact = (
        True  # pc is where the frame stands: on entry and after a signal; else it is what follows the call
    )
    while True:
        if len(frames) >= max_frames:
            raise _Cut(f"more than {max_frames} frames")
        address = pc if exact else pc - 1
        index = bisect_right(starts, address) - 1
        if index < 0 or address >= ends[index]:
            raise _Cut(f"pc {pc:#x} is not mapped as code")
        code = codes[index] or _attach(space, index, modules)
        vaddr = address - code.bias
        frames.append(RawFrame(code.module, vaddr, pc))
        steps = code.steps
        if steps is None:
            step = None
        else:
            try:
                step = steps[vaddr]
            except KeyError:
                step = _look_up(code, vaddr)
        if step is None:
            pc, cfa, exact = *_without_table(space, memory, code, len(frames) == 1, sp), False
        elif step.row is not None:
            found = _general(step.row, memory, pc, sp)
            if found is None:
                return
            if (
                step.row.signal
            ):  # nothing called the trampoline: the "return address" is its first instruction
                frames[-1] = RawFrame(code.module, pc - code.bias, pc)
            pc, cfa, exact = found
        else:
            number = step.cfa_register
            cfa = (sp if number == SP else memory.register(number)) + step.cfa_offset
            base = cfa - entry
            pc = word(base + step.ra_offset)
            for register, offset in step.saved:
                where[register] = base + offset
            exact = False
        if pc == 0:
            return
        if cfa < sp or (cfa == sp and len(frames) > 1):
            raise _Cut("the frames run in a loop")
        sp = cfa


def frame_at(space: AddressSpace, modules: ModuleOf, address: int) -> RawFrame:
    """The code at an address, as if a stack stood there; a frame without a module where none is mapped."""
    index = bisect_right(space.starts, address) - 1
    if index < 0 or address >= space.ends[index]:
        return RawFrame(None, address, address)
    code = space.code[index] or _attach(space, index, modules)
    return RawFrame(code.module, address - code.bias, address)


def _attach(space: AddressSpace, index: int, modules: ModuleOf) -> Code:
    """Find out what is behind a mapping, once for all stacks in this address space."""
    mapping = space.mappings[index]
    module = modules(mapping)
    if module is None:
        code = Code(None, 0, mapping.path or "[anon]", None, "")
    else:
        bias = mapping.start - mapping.offset
        problem, steps = module.problem, None
        if module.elf is not None:
            try:
                bias = mapping.start - module.elf.vaddr(mapping.offset)
                steps = module.steps
            except BadElf as error:
                problem = str(error)
        code = Code(module, bias, module.name, steps, problem)
    space.code[index] = code
    return code


def _look_up(code: Code, vaddr: int) -> Step | None:
    """The step at an address not seen before; None when no entry covers it."""
    assert code.module is not None and code.module.cfi is not None and code.steps is not None
    try:
        row = code.module.cfi.row(vaddr)
    except BadElf as error:
        raise _Cut(f"unwind table of {code.name} is malformed: it {error}") from None
    step = None if row is None else prepare(row)
    if len(code.steps) >= MAX_STEPS:
        code.steps.clear()
    code.steps[vaddr] = step
    return step


def prepare(row: Row) -> Step:
    """A row as the loop wants it."""
    address = row.rules.get(row.return_column)
    rest = {number: rule for number, rule in row.rules.items() if number != row.return_column}
    simple = (
        row.cfa_block is None
        and not row.signal
        and row.return_column == RA
        and address is not None
        and address.kind is Kind.OFFSET
        and SP not in rest
        and all(rule.kind is Kind.OFFSET for rule in rest.values())
    )
    if not simple or address is None:
        return Step(0, 0, 0, (), row)
    saved = tuple((number, rule.number) for number, rule in rest.items())
    return Step(row.cfa_register, row.cfa_offset, address.number, saved, None)


def _general(row: Row, memory: _Stack, pc: int, sp: int) -> tuple[int, int, bool] | None:
    """One frame by any row: the caller's pc, stack pointer, and whether that pc is exact.  None: no caller."""

    def register(number: int) -> int:
        return sp if number == SP else pc if number == RA else memory.register(number)

    def by(rule: Rule) -> int:
        if rule.kind is Kind.OFFSET:
            return memory.word(cfa + rule.number - memory.sp)
        if rule.kind is Kind.VAL_OFFSET:
            return cfa + rule.number
        if rule.kind is Kind.REGISTER:
            return register(rule.number)
        value = evaluate(rule.block, (cfa,), register, memory.read)
        return memory.read(value, 8) if rule.kind is Kind.EXPRESSION else value

    try:
        if row.cfa_block is None:
            cfa = register(row.cfa_register) + row.cfa_offset
        else:
            cfa = evaluate(row.cfa_block, (), register, memory.read)
        cfa &= _MASK
        rule = row.rules.get(row.return_column, Rule(Kind.SAME))
        if rule.kind is Kind.UNDEFINED:
            return None
        if rule.kind is Kind.SAME and row.return_column == RA:
            raise _Cut("the unwind table gives no return address")
        caller = register(row.return_column) if rule.kind is Kind.SAME else by(rule) & _MASK
        stack_pointer = by(row.rules[SP]) & _MASK if SP in row.rules else cfa
    except BadExpression as error:
        raise _Cut(str(error)) from None
    changed: dict[int, int | _Value | _Lost] = {}
    for number, rule in row.rules.items():  # all by this frame's registers, so change none in between
        if number in (SP, RA) or rule.kind is Kind.SAME:
            continue
        if rule.kind is Kind.OFFSET:
            changed[number] = cfa + rule.number - memory.sp
        elif rule.kind is Kind.UNDEFINED:
            changed[number] = _Lost(f"register {number} was not saved")
        else:
            changed[number] = memory.computed(lambda rule=rule: by(rule))  # type: ignore[misc]
    memory.where.update(changed)
    return caller, stack_pointer, row.signal


def _without_table(space: AddressSpace, memory: _Stack, code: Code, leaf: bool, sp: int) -> tuple[int, int]:
    """The caller's pc and stack pointer where no unwind table covers the code.  Raises _Cut.

    On entry in a file with a table: glibc's __clone and __clone3 end theirs before the system call, when the stack
    pointer stands at the return address again.  Else the code may keep a frame pointer, as Go and many JITs do.
    Either is a guess; a return address that is no code disproves it.
    """
    if leaf and code.module is not None and code.module.cfi is not None and code.module.cfi.indexed:
        pc = memory.word(sp - memory.sp)
        if space.find(pc - 1) is not None:
            return pc, sp + 8
    why = f"no unwind table for {code.name}" + (f": it {code.problem}" if code.problem else "")
    frame = memory.register(BP)
    offset = frame - memory.sp
    if frame < sp or frame & 7 or not memory.holds(offset + 8):
        raise _Cut(why)
    pc = memory.word(offset + 8)
    if pc and space.find(pc - 1) is None:
        raise _Cut(why)
    # Which registers such code saves, and where, nobody knows.
    for number in (0, 1, 2, 3, 4, 5, *range(8, 16)):
        memory.where[number] = _Lost(why)
    memory.where[BP] = offset
    return pc, frame + 16
