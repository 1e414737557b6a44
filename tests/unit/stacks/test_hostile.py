"""Malformed ELF files: an answer or BadElf, within seconds, whatever the bytes are."""

from __future__ import annotations

import os
import struct
import time
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tracer.stacks.cfi import CfiTable
from tracer.stacks.debugfile import find_debug_file
from tracer.stacks.elf import BadElf, ElfFile
from tracer.stacks.files import Root
from tracer.stacks.lines import LineTable
from tracer.stacks.modules import Modules
from tracer.stacks.source import Budget, BytesSource, FileSource
from tracer.stacks.symbols import SymbolTables, mini_debug_file

ADDRESSES = (0, 0x1000, 0x1020, 0x1120, 0x1148, 0x1170, 0x11A0, 0x1200, (1 << 64) - 1)
NASTY = (0, 1, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 40, (1 << 63) - 1, (1 << 64) - 1)


def read_everything(data: bytes) -> None:
    """All that ``stacks`` ever asks of a file.  Only BadElf may come out, and only from the first three steps."""
    notes: list[str] = []
    try:
        elf = ElfFile(BytesSource(data), "hostile.so")
    except BadElf:
        return
    assert elf.build_id is None or len(elf.build_id) <= 2 * len(data)
    table = CfiTable(elf)
    for address in ADDRESSES:
        for step in (table.row, elf.vaddr):
            with suppress(BadElf):
                step(address)
    with suppress(BadElf):
        mini_debug_file(elf)
    root = Root(os.open("/proc/self/fdinfo", os.O_PATH))  # nothing to be found there
    assert find_debug_file(elf, "/a/hostile.so", root, notes.append) is None
    symbols = SymbolTables([elf], notes.append)
    lines = LineTable([elf], notes.append, Budget(200_000, 1 << 26))
    for address in ADDRESSES:
        symbols.name(address)
        lines.position(address)


class Sample(bytes):
    def __repr__(self) -> str:
        return "Sample"  # hypothesis would print all of it


@pytest.fixture(scope="module")
def sample(library: Path) -> Sample:
    return Sample(library.read_bytes())


def test_the_sample_is_good(sample: bytes) -> None:
    elf = ElfFile(BytesSource(sample), "sample")
    assert (
        elf.build_id and elf.sections and LineTable([elf], pytest.fail, Budget(10**6, 10**9)).position(0x1148)
    )


_settings = settings(
    max_examples=300,
    deadline=3000,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@_settings
@given(data=st.data())
def test_changed_words(sample: bytes, data: st.DataObject) -> None:
    changed = bytearray(sample)
    anywhere = st.integers(0, len(sample) - 8)
    headers = st.integers(0, 64 + 56 * 12)
    sections = st.integers(struct.unpack_from("<Q", sample, 40)[0], len(sample) - 8)
    for _ in range(data.draw(st.integers(1, 6))):
        offset = data.draw(st.one_of(anywhere, headers, sections))
        width = data.draw(st.sampled_from((1, 2, 4, 8)))
        value = data.draw(st.one_of(st.sampled_from(NASTY), st.integers(0, (1 << 64) - 1)))
        changed[offset : offset + width] = value.to_bytes(8, "little")[:width]
    read_everything(bytes(changed))


@_settings
@given(data=st.data())
def test_changed_sections(sample: bytes, data: st.DataObject) -> None:
    """Within one section that is parsed, so that the damage is not drowned by code."""
    elf = ElfFile(BytesSource(sample), "sample")
    names = (
        ".eh_frame",
        ".eh_frame_hdr",
        ".debug_line",
        ".debug_info",
        ".debug_abbrev",
        ".debug_aranges",
        ".symtab",
    )
    section = elf.section(data.draw(st.sampled_from(names)))
    assert section is not None
    changed = bytearray(sample)
    for _ in range(data.draw(st.integers(1, 4))):
        at = section.offset + data.draw(st.integers(0, section.size - 1))
        changed[at] = data.draw(st.integers(0, 255))
    read_everything(bytes(changed))


@_settings
@given(size=st.integers(0, 20000))
def test_cut_off(sample: bytes, size: int) -> None:
    read_everything(sample[:size])


@given(st.binary(max_size=300))
def test_any_bytes_after_the_magic(rest: bytes) -> None:
    read_everything(b"\x7fELF\x02\x01\x01" + rest)


def test_a_file_that_is_cut_while_it_is_open(library: Path, tmp_path: Path) -> None:
    """A mapped file would kill its reader with SIGBUS here."""
    path = tmp_path / "cut.so"
    path.write_bytes(library.read_bytes())
    elf = ElfFile(FileSource(os.open(path, os.O_RDONLY)), "cut.so")
    os.truncate(path, 100)
    with pytest.raises(BadElf, match=r"ends before its content does|malformed"):
        assert not elf.sections
    with pytest.raises(BadElf):
        CfiTable(elf).row(0x1148)


@pytest.mark.parametrize(
    ("offset", "layout", "reason"),
    [
        (0, "<B", "malformed"),
        (4, "<B", "x86-64"),  # 32 bits
        (18, "<H", "x86-64"),  # another machine
        (54, "<H", "wrong size"),
        (56, "<H", "program headers, more than 256"),
    ],
)
def test_reasons(sample: bytes, offset: int, layout: str, reason: str) -> None:
    changed = bytearray(sample)
    struct.pack_into(layout, changed, offset, 1 if offset < 56 else 60000)
    with pytest.raises(BadElf, match=reason):
        ElfFile(BytesSource(bytes(changed)), "bad.so")


def test_a_bomb_in_a_compressed_section(tmp_path: Path) -> None:
    from .conftest import build

    data = bytearray(build(tmp_path / "lib.so", "-g", "-gz").read_bytes())
    elf = ElfFile(BytesSource(bytes(data)), "bomb.so")
    section = elf.section(".debug_line")
    assert section is not None and section.compressed
    struct.pack_into("<Q", data, section.offset + 8, 1 << 40)  # ch_size
    notes: list[str] = []
    assert (
        LineTable(
            [ElfFile(BytesSource(bytes(data)), "bomb.so")], notes.append, Budget(10**6, 10**9)
        ).position(0x1148)
        is None
    )
    assert notes == ["line table: it has a .debug_line of 1099511627776 bytes, more than 67108864"]


def test_a_budget_that_is_spent_costs_a_note(library: Path) -> None:
    notes: list[str] = []
    elf = ElfFile(FileSource(os.open(library, os.O_RDONLY)), "slow.so")
    start = time.monotonic()
    assert LineTable([elf], notes.append, Budget(10, 1 << 30)).position(0x1148) is None
    assert time.monotonic() - start < 1
    assert set(notes) == {"line table: it is built to keep its reader busy"}


def test_a_process_that_is_gone() -> None:
    from tracer.stacks.maps import Mapping

    module = Modules().of(4194305, Mapping(0x1000, 0x2000, 0, 1, 2, "/usr/lib/libgone.so"))
    assert module is not None and module.elf is None
    assert module.problem.startswith("cannot be read: cannot open /proc/4194305/root")
