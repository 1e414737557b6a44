"""The unwind table decoder, row by row, against readelf's own interpreter of it."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tracer.stacks.cfi import CfiTable, Kind, Row, Rule
from tracer.stacks.elf import ElfFile

LIBRARIES = Path("/usr/lib/x86_64-linux-gnu")
FILES = [
    LIBRARIES / "libc.so.6",
    LIBRARIES / "libpython3.11.so.1.0",
    LIBRARIES / "libruby-3.1.so.3.1",
    Path("/usr/bin/python3"),
    Path("/bin/bash"),
]
NAMES = ["rax", "rdx", "rcx", "rbx", "rsi", "rdi", "rbp", "rsp", *(f"r{n}" for n in range(8, 16)), "ra"]
FDE = re.compile(r"[0-9a-f]+ [0-9a-f]+ [0-9a-f]+ FDE cie=([0-9a-f]+) pc=([0-9a-f]+)\.\.([0-9a-f]+)")
CIE = re.compile(r"([0-9a-f]+) [0-9a-f]+ [0-9a-f]+ CIE")

Cells = dict[str, str]


def reference(path: Path) -> Iterator[tuple[int, int, Cells]]:
    """(first address, last address, cells by column) of each row that readelf prints."""
    # Its status is not looked at: on libc it complains of something else.
    command = ["readelf", "--debug-dump=frames-interp,no-follow-links", str(path)]
    text = subprocess.run(
        command, check=False, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"}
    )
    initial: dict[str, Cells] = {}
    plain = re.sub(r"r\d+ \((\w+)\)", r"\1", text.stdout)  # a register's number and name -> its name
    for block in plain.split("\n\n"):
        lines = [line for line in block.split("\n") if line]
        for at, line in enumerate(lines):
            common, fde = CIE.match(line), FDE.match(line)
            if not common and not fde:
                continue
            rows = lines[at + 1 :]
            columns = rows[0].split() if rows else []
            cells = [dict(zip(columns, row.split(), strict=True)) for row in rows[1:]]
            if common:
                initial[common[1]] = cells[0] if cells else {}
            elif fde:
                start, end = int(fde[2], 16), int(fde[3], 16)
                cells = cells or [{**initial[fde[1]], "LOC": fde[2]}]  # only what the common entry says
                starts = [int(row["LOC"], 16) for row in cells]
                for first, after, row in zip(starts, [*starts[1:], end], cells, strict=True):
                    if start <= first < after:
                        yield first, after - 1, row


def as_readelf(rule: Rule | None) -> str:
    """How it prints a rule.  It does not tell an undefined register from one without a rule."""
    if rule is None or rule.kind is Kind.UNDEFINED:
        return "u"
    if rule.kind is Kind.REGISTER:
        return NAMES[rule.number]
    return {
        Kind.OFFSET: f"c{rule.number:+}",
        Kind.VAL_OFFSET: f"v{rule.number:+}",
        Kind.EXPRESSION: "exp",
        Kind.VAL_EXPRESSION: "vexp",
        Kind.SAME: "s",
    }[rule.kind]


def cells_of(row: Row, columns: Cells) -> Cells:
    """Our row in the same columns."""
    found = {"CFA": "exp" if row.cfa_block is not None else f"{NAMES[row.cfa_register]}{row.cfa_offset:+}"}
    for name in columns:
        if name in NAMES:
            found[name] = as_readelf(row.rules.get(NAMES.index(name)))
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_rows_are_those_of_readelf(path: Path) -> None:
    elf = ElfFile.from_fd(os.open(path, os.O_RDONLY), path.name)
    table = CfiTable(elf)
    compared = 0
    for first, last, cells in reference(path):
        wanted = {name: cell for name, cell in cells.items() if name in {"CFA", *NAMES}}
        for address in {first, last}:
            row = table.row(address)
            assert row is not None, hex(address)
            assert (hex(address), cells_of(row, wanted)) == (hex(address), wanted)
            others = [
                n for n, r in row.rules.items() if NAMES[n] not in cells and r.kind is not Kind.UNDEFINED
            ]
            assert not others, hex(address)
            compared += 1
    assert compared > 1000


def test_a_gap_between_functions_has_no_row(library: Path) -> None:
    table = CfiTable(ElfFile.from_fd(os.open(library, os.O_RDONLY), "libdeep.so"))
    assert table.row(0) is None
    assert table.row(1 << 62) is None


def test_without_the_sorted_table_the_entries_are_scanned(library: Path) -> None:
    indexed = CfiTable(ElfFile.from_fd(os.open(library, os.O_RDONLY), "libdeep.so"))
    elf = ElfFile.from_fd(os.open(library, os.O_RDONLY), "libdeep.so")
    elf.segments = tuple(s for s in elf.segments if s.kind != "PT_GNU_EH_FRAME")
    scanned = CfiTable(elf)
    assert not scanned.indexed
    rows = 0
    for first, last, _ in reference(library):
        for address in (first, last):
            assert scanned.row(address) == indexed.row(address) != None  # noqa: E711
            rows += 1
    assert rows > 10
