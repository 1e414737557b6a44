"""The walk itself on made-up code: why it ends, and that it names every word and register it depends on."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracer.stacks.cfi import Kind, Row, Rule
from tracer.stacks.maps import AddressSpace, Mapping
from tracer.stacks.modules import Module
from tracer.stacks.registers import BP, DI, RA, REGS_SIZE, SP, decode
from tracer.stacks.unwind import Code, RawFrame, Step, Unwound, prepare, unwind

CODE = 0x400000
STACK = 0x7FFC0000
WORDS = 64
MODULE = Module("/opt/libmade.so", None)


def nothing(mapping: Mapping) -> Module | None:
    return None


def space(rows: dict[int, Row | None]) -> AddressSpace:
    """One mapping at CODE whose rows are these, by offset; elsewhere in it no entry covers the code."""
    made = AddressSpace([Mapping(CODE, CODE + 0x1000, 0, 1, 2, MODULE.path)])
    steps: dict[int, Step | None] = dict.fromkeys(range(0x1000))
    steps.update((at, row and prepare(row)) for at, row in rows.items())
    made.code[0] = Code(MODULE, CODE, "libmade.so", steps, "")
    return made


def anonymous() -> AddressSpace:
    return AddressSpace([Mapping(CODE, CODE + 0x1000, 0, 0, 0, "")])


def stack(words: dict[int, int], count: int = WORDS) -> bytes:
    return struct.pack(f"<{count}Q", *(words.get(8 * index, 0xDEAD0000 + index) for index in range(count)))


def regs(pc: int, **others: int) -> dict[int, int]:
    numbers = {"bp": BP, "di": DI, "bx": 3}
    return (
        dict.fromkeys(range(16), 0) | {SP: STACK, RA: CODE + pc} | {numbers[n]: v for n, v in others.items()}
    )


def by_sp(offset: int, saved: dict[int, int] | None = None, signal: bool = False) -> Row:
    rules = {RA: Rule(Kind.OFFSET, -8)} | {n: Rule(Kind.OFFSET, o) for n, o in (saved or {}).items()}
    return Row(SP, offset, None, rules, RA, signal)


END = Row(SP, 8, None, {RA: Rule(Kind.UNDEFINED)}, RA, False)


def pcs(unwound: Unwound) -> list[int]:
    return [frame.pc - CODE for frame in unwound.frames]


def test_registers_by_their_dwarf_numbers() -> None:
    assert REGS_SIZE == 168
    found = decode(struct.pack("<21Q", *range(100, 121)))
    # r15 r14 r13 r12 bp bx r11 r10 r9 r8 ax cx dx si di orig_ax ip cs flags sp ss
    assert found == {
        15: 100, 14: 101, 13: 102, 12: 103, 6: 104, 3: 105, 11: 106, 10: 107, 9: 108,
        8: 109, 0: 110, 2: 111, 1: 112, 4: 113, 5: 114, 16: 116, 7: 119,
    }  # fmt: skip


def test_callers_are_looked_up_at_their_call() -> None:
    """A call that never returns is the last instruction of its function: what follows belongs to another one."""
    code = space({0x10: by_sp(8), 0x1F: by_sp(16), 0x20: END, 0x2F: END})
    found = unwind(code, nothing, regs(0x10), STACK, stack({0: CODE + 0x20, 16: CODE + 0x30}))
    assert found.frames == (
        RawFrame(MODULE, 0x10, CODE + 0x10),
        RawFrame(MODULE, 0x1F, CODE + 0x20),
        RawFrame(MODULE, 0x2F, CODE + 0x30),
    )
    assert found.cut is None
    assert found.words == ((0, CODE + 0x20), (16, CODE + 0x30))
    assert found.registers == frozenset()


def test_a_return_address_of_zero_is_the_start() -> None:
    found = unwind(space({0x10: by_sp(16)}), nothing, regs(0x10), STACK, stack({8: 0}))
    assert (pcs(found), found.cut, found.words) == ([0x10], None, ((8, 0),))


def test_saved_registers_count_once_they_are_used() -> None:
    """rbp of entry is saved by the leaf; the caller's frame is by rbp."""
    by_bp = Row(
        BP,
        16,
        None,
        {RA: Rule(Kind.OFFSET, -8), BP: Rule(Kind.OFFSET, -16), 3: Rule(Kind.OFFSET, -24)},
        RA,
        False,
    )
    code = space({0x10: by_sp(32, {BP: -16, 3: -24}), 0x1F: by_bp, 0x2F: END})
    words = {8: 7777, 16: STACK + 64, 24: CODE + 0x20, 64: 8888, 72: CODE + 0x30}
    found = unwind(code, nothing, regs(0x10, bp=1), STACK, stack(words))
    assert (pcs(found), found.cut) == ([0x10, 0x20, 0x30], None)
    assert found.words == ((16, STACK + 64), (24, CODE + 0x20), (72, CODE + 0x30))
    assert found.registers == frozenset()


def test_vfork_keeps_its_return_address_in_a_register() -> None:
    vfork = Row(SP, 0, None, {RA: Rule(Kind.REGISTER, DI)}, RA, False)
    found = unwind(space({0x10: vfork, 0x1F: END}), nothing, regs(0x10, di=CODE + 0x20), STACK, stack({}))
    assert (pcs(found), found.cut) == ([0x10, 0x20], None)
    assert (found.words, found.registers) == ((), {DI})


def test_words_that_an_expression_reads_count() -> None:
    # CFA = *(rsp + 8) + rbx; an unaligned half of a word as well
    block = b"\x77\x08\x06\x73\x00\x22\x77\x14\x94\x08\x22"
    row = Row(0, 0, block, {RA: Rule(Kind.OFFSET, -8)}, RA, False)
    words = {8: STACK, 16: 0xFFFFFFFF, 24: 0xFFFFFFFF << 32, 56: CODE + 0x20}
    found = unwind(space({0x10: row, 0x1F: END}), nothing, regs(0x10, bx=64), STACK, stack(words))
    assert found.cut == "stack copy ends at 512 bytes" or found.words  # the value is huge or zero
    words[16] = words[24] = 0
    found = unwind(space({0x10: row, 0x1F: END}), nothing, regs(0x10, bx=64), STACK, stack(words))
    assert (pcs(found), found.cut) == ([0x10, 0x20], None)
    assert found.words == ((8, STACK), (16, 0), (24, 0), (56, CODE + 0x20))
    assert found.registers == {3}


def test_computed_registers_count_once_they_are_used() -> None:
    """rbp of the caller is *(rsp + 16) + rdi; only the caller's caller may depend on that."""
    rules = {RA: Rule(Kind.OFFSET, -8), BP: Rule(Kind.VAL_EXPRESSION, 0, b"\x77\x10\x06\x75\x00\x22")}
    leaf = Row(SP, 8, None, rules, RA, False)
    words = {0: CODE + 0x20, 16: STACK, 56: CODE + 0x30}
    unused = unwind(space({0x10: leaf, 0x1F: END}), nothing, regs(0x10, di=48), STACK, stack(words))
    assert (unused.words, unused.registers) == (((0, CODE + 0x20),), frozenset())
    by_bp = Row(BP, 16, None, {RA: Rule(Kind.OFFSET, -8)}, RA, False)
    used = unwind(
        space({0x10: leaf, 0x1F: by_bp, 0x2F: END}), nothing, regs(0x10, di=48), STACK, stack(words)
    )
    assert (pcs(used), used.cut) == ([0x10, 0x20, 0x30], None)
    assert (used.words, used.registers) == (((0, CODE + 0x20), (16, STACK), (56, CODE + 0x30)), {DI})


def test_after_a_signal_the_pc_is_exact() -> None:
    code = space({0x10: by_sp(8), 0x1F: by_sp(16, signal=True), 0x30: by_sp(8), 0x3F: END})
    words = {0: CODE + 0x20, 16: CODE + 0x30, 24: CODE + 0x40}
    found = unwind(code, nothing, regs(0x10), STACK, stack(words))
    assert [f.vaddr for f in found.frames] == [0x10, 0x20, 0x30, 0x3F]
    assert found.cut is None


def test_code_without_a_table_by_its_frame_pointer() -> None:
    words = {32: STACK + 64, 40: CODE + 0x20, 64: 0, 72: 0}
    found = unwind(anonymous(), nothing, regs(0x10, bp=STACK + 32), STACK, stack(words))
    assert found.frames == (
        RawFrame(None, CODE + 0x10, CODE + 0x10),
        RawFrame(None, CODE + 0x1F, CODE + 0x20),
    )
    assert found.cut is None
    assert found.words == ((32, STACK + 64), (40, CODE + 0x20), (72, 0))
    assert found.registers == {BP}


@pytest.mark.parametrize(
    ("code", "pc", "words", "bp", "cut", "depth"),
    [
        (space({0x10: by_sp(8)}), 0x10, {0: 0x1234}, 0, "pc 0x1234 is not mapped as code", 1),
        (space({}), 0x1000, {}, 0, "pc 0x401000 is not mapped as code", 0),
        (space({0x10: by_sp(1024)}), 0x10, {}, 0, "stack copy ends at 512 bytes", 1),
        (
            space({0x10: by_sp(1 << 40)}),
            0x10,
            {},
            0,
            "a frame lies far above the stack pointer, on another stack",
            1,
        ),
        (space({0x10: by_sp(-64)}), 0x10, {}, 0, "a frame lies below the stack pointer, on another stack", 1),
        (space({0x10: by_sp(8), 0x1F: by_sp(0)}), 0x10, {0: CODE + 0x20}, 0, "the frames run in a loop", 2),
        (
            space(
                {0x10: by_sp(64, {BP: -16}), 0x1F: Row(BP, 0, None, {RA: Rule(Kind.OFFSET, -8)}, RA, False)}
            ),
            0x10,
            {48: STACK + 16, 56: CODE + 0x20, 8: CODE + 0x20},
            0,
            "the frames run in a loop",
            2,
        ),
        (anonymous(), 0x10, {}, 0, "no unwind table for [anon]", 1),
        (anonymous(), 0x10, {32: 0, 40: 5}, STACK + 32, "no unwind table for [anon]", 1),
        (anonymous(), 0x10, {}, STACK + 33, "no unwind table for [anon]", 1),
        (space({0x10: by_sp(8)}), 0x10, {0: CODE + 0x90}, 0, "no unwind table for libmade.so", 2),
        (space({0x10: Row(40, 0, None, {}, RA, False)}), 0x10, {}, 0, "register 40 is not known", 1),
        (
            space({0x10: Row(SP, 8, None, {}, RA, False)}),
            0x10,
            {},
            0,
            "the unwind table gives no return address",
            1,
        ),
        (
            space({0x10: Row(0, 0, b"\xe0", {}, RA, False)}),
            0x10,
            {},
            0,
            "an expression uses operation 0xe0",
            1,
        ),
    ],
)
def test_why_it_ends_early(
    code: AddressSpace, pc: int, words: dict[int, int], bp: int, cut: str, depth: int
) -> None:
    found = unwind(code, nothing, regs(pc, bp=bp), STACK, stack(words))
    assert (found.cut, len(found.frames)) == (cut, depth)


def test_at_most_so_many_frames() -> None:
    words = {8 * index: CODE + 0x11 for index in range(WORDS)}
    found = unwind(space({0x10: by_sp(8)}), nothing, regs(0x10), STACK, stack(words), max_frames=20)
    assert (len(found.frames), found.cut) == (20, "more than 20 frames")


def test_a_page_that_was_not_in_memory_is_no_zeros() -> None:
    """The frame's return address lies in the second page; the third one was never touched."""
    row = by_sp(4096 + 16)
    words = stack({4096 + 8: CODE + 0x20}, 3 * 512)
    assert len(unwind(space({0x10: row, 0x1F: by_sp(16)}), nothing, regs(0x10), STACK, words).frames) > 1
    inside = unwind(space({0x10: row}), nothing, regs(0x10), STACK, words, 0b010)
    assert (len(inside.frames), inside.cut) == (
        1,
        "the stack's page 4104 bytes above the stack pointer is not in memory",
    )
    beyond = unwind(space({0x10: row, 0x1F: by_sp(16)}), nothing, regs(0x10), STACK, words, 0b100)
    assert len(beyond.frames) > 1


OFFSETS = st.sampled_from(range(-48, 64, 8))
RULES = st.one_of(
    st.builds(Rule, st.sampled_from((Kind.OFFSET, Kind.VAL_OFFSET)), OFFSETS),
    st.builds(Rule, st.just(Kind.REGISTER), st.sampled_from((3, BP, DI, SP, RA))),
    st.builds(Rule, st.sampled_from((Kind.UNDEFINED, Kind.SAME))),
    # saved at, or is: *(breg + n), or breg + n
    st.builds(
        lambda kind, number, offset, tail: Rule(kind, 0, bytes((0x70 + number, offset)) + tail),
        st.sampled_from((Kind.EXPRESSION, Kind.VAL_EXPRESSION)),
        st.sampled_from((3, BP, DI, SP)),
        st.integers(0, 40),
        st.sampled_from((b"", b"\x06", b"\x94\x04", b"\x22")),
    ),
)
ROWS = st.one_of(
    *[
        st.builds(
            Row,
            st.sampled_from((SP, SP, SP, BP, 3)),
            st.sampled_from(range(0, 64, 8)),
            st.one_of(
                st.none(),
                st.none(),
                st.sampled_from((b"\x77\x10", b"\x77\x08\x06", b"\x76\x08", b"\x73\x00\x06")),
            ),
            st.dictionaries(st.sampled_from((3, BP, DI)), RULES, max_size=3).flatmap(
                lambda rules: st.one_of(
                    st.just(Rule(Kind.OFFSET, -8)), st.just(Rule(Kind.OFFSET, -8)), RULES
                ).map(lambda address: {**rules, RA: address})
            ),
            st.just(RA),
            st.booleans(),
        )
    ]
    * 9,
    st.none(),
)
CODES = st.integers(1, 15).map(lambda n: CODE + n)
VALUES = st.one_of(
    CODES,
    CODES,
    CODES,
    st.integers(0, WORDS).map(lambda n: STACK + 8 * n),
    st.sampled_from((0, 8, 64, 1 << 63)),
)


@settings(max_examples=600, deadline=None)
@given(
    rows=st.lists(ROWS, min_size=16, max_size=16),
    words=st.lists(VALUES, min_size=WORDS, max_size=WORDS),
    others=st.lists(VALUES, min_size=WORDS, max_size=WORDS),
    entry=st.dictionaries(st.sampled_from((3, BP, DI)), VALUES),
    changed=st.dictionaries(st.sampled_from((3, BP, DI, 0, 12)), VALUES),
)
def test_what_is_not_listed_does_not_matter(
    rows: list[Row | None],
    words: list[int],
    others: list[int],
    entry: dict[int, int],
    changed: dict[int, int],
) -> None:
    """The kernel takes a stack for a known one when the listed words and registers are equal: all others may differ."""
    code = space(dict(enumerate(rows)))
    first = unwind(code, nothing, regs(1) | entry, STACK, struct.pack(f"<{WORDS}Q", *words), max_frames=12)
    second = bytearray(struct.pack(f"<{WORDS}Q", *others))
    for offset, value in first.words:
        second[offset : offset + 8] = value.to_bytes(8, "little")
    assert all(offset % 8 or words[offset // 8] == value for offset, value in first.words)
    registers = regs(1) | entry | {n: v for n, v in changed.items() if n not in first.registers}
    assert unwind(code, nothing, registers, STACK, bytes(second), max_frames=12) == first
