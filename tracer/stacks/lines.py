"""The source file and line of a virtual address, from DWARF line tables (versions 2 to 5).

Called by ``symbolize``.  pyelftools decodes; here the one compilation unit that covers the address is found (by
.debug_aranges, else by the units' own ranges) and its line program is kept as sorted arrays.  All streams share a
budget: a table that would take too long, hostile or just huge, costs a note.
"""

from __future__ import annotations

import inspect
import posixpath
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import IO, Any, TypeVar, cast

from elftools.dwarf.dwarfinfo import DebugSectionDescriptor, DwarfConfig, DWARFInfo

from tracer.stacks.elf import BadElf, ElfFile, guarded
from tracer.stacks.source import Budget, Stream

MAX_SECTION = 1 << 30  # bytes of a section that is read in place
MAX_COMPRESSED = 64 << 20  # bytes of one that has to be decompressed into memory
READS, VOLUME = 4_000_000, 2 << 30  # of one module's DWARF: ten to twenty seconds

_SECTIONS = (
    "debug_info",
    "debug_aranges",
    "debug_abbrev",
    "debug_str",
    "debug_line",
    "debug_ranges",
    "debug_addr",
    "debug_str_offsets",
    "debug_line_str",
    "debug_rnglists",
)

Position = tuple[str | None, int | None]
Span = tuple[int, int, int]  # start, end (exclusive), offset of the unit in .debug_info
Ranges = tuple["array[int]", "array[int]", "array[int]"]  # the same in columns, by start

T = TypeVar("T")


def budget() -> Budget:
    """For all line tables of one module, as long as it lives."""
    return Budget(READS, VOLUME)


@dataclass(frozen=True, slots=True)
class Run:
    """A sequence of a line program: addresses ascend from the first to ``end`` (exclusive)."""

    end: int
    addresses: array[int]
    files: array[int]
    lines: array[int]


@dataclass(frozen=True, slots=True)
class Unit:
    """The line program of a compilation unit: its runs by address, and file names by number."""

    starts: list[int]
    runs: list[Run]
    names: dict[int, str]

    def position(self, address: int) -> Position | None:
        index = bisect_right(self.starts, address) - 1
        if index < 0 or address >= self.runs[index].end:
            return None
        run = self.runs[index]
        row = bisect_right(run.addresses, address) - 1
        return self.names.get(run.files[row]), run.lines[row] or None  # line 0: made by the compiler


class LineTable:
    """``position`` is all there is to it."""

    def __init__(self, files: Sequence[ElfFile], note: Callable[[str], None], limit: Budget) -> None:
        """files: the mapped file and its separate debug file; the first with .debug_line counts."""
        self._files = files
        self._note = note
        self._budget = limit
        self._units: dict[int, Unit] = {}

    def position(self, address: int) -> Position | None:
        """(file, line) at a virtual address; the file is DWARF's, joined with the directory of the compilation."""
        if self._dwarf is None:
            return None
        offset = self._unit_offset(address)
        if offset is None:
            return None
        unit = self._units.get(offset)
        if unit is None:
            nothing = Unit([], [], {})
            unit = self._units[offset] = self._try(lambda: _read_unit(self._dwarf, offset), nothing)
        return unit.position(address)

    def _try(self, step: Callable[[], T], otherwise: T) -> T:
        try:
            return guarded(step)
        except BadElf as error:
            self._note(f"line table: it {error}")
            return otherwise

    @cached_property
    def _dwarf(self) -> Any:
        return self._try(self._open, None)

    def _open(self) -> Any:
        """A DWARFInfo that reads the sections in place; None without line tables."""
        with_lines = (f for f in self._files if f.section(".debug_line") and f.section(".debug_info"))
        elf = next(with_lines, None)
        if elf is None:
            return None
        found: dict[str, Any] = {}
        for name in _SECTIONS:
            section = elf.section(f".{name}")
            if section is not None:
                source = elf.window(section, MAX_COMPRESSED if section.compressed else MAX_SECTION)
                stream = cast(IO[bytes], Stream(source, self._budget))
                found[f"{name}_sec"] = DebugSectionDescriptor(
                    stream, section.name, 0, source.size, section.address
                )
        # All section parameters are required, and later versions of pyelftools add some.
        parameters = dict.fromkeys(list(inspect.signature(DWARFInfo.__init__).parameters)[2:])
        config = DwarfConfig(little_endian=True, machine_arch="x64", default_address_size=8)
        return DWARFInfo(config, **{**parameters, **found})

    def _unit_offset(self, address: int) -> int | None:
        for starts, ends, offsets in self._tables():
            index = bisect_right(starts, address) - 1
            if index >= 0 and address < ends[index]:
                return offsets[index]
        return None

    def _tables(self) -> Iterator[Ranges]:
        yield self._aranges
        yield self._unit_ranges

    @cached_property
    def _aranges(self) -> Ranges:
        return self._try(lambda: _columns(_aranges(self._dwarf)), _columns(()))

    @cached_property
    def _unit_ranges(self) -> Ranges:
        """Of units that .debug_aranges leaves out: all of clang's, and some assembly."""
        listed = set(self._aranges[2])
        return self._try(lambda: _columns(_unit_ranges(self._dwarf, listed)), _columns(()))


def _columns(spans: Iterable[Span]) -> Ranges:
    """(start, end, offset) -> three arrays by start.  Address 0 is code that the linker dropped."""
    kept = sorted(span for span in spans if 0 < span[0] < span[1] < 1 << 63)
    return (
        array("Q", [start for start, _, _ in kept]),
        array("Q", [end for _, end, _ in kept]),
        array("Q", [offset for _, _, offset in kept]),
    )


def _aranges(dwarf: Any) -> Iterator[Span]:
    table = dwarf.get_aranges()
    for entry in table.entries if table else ():
        yield entry.begin_addr, entry.begin_addr + entry.length, entry.info_offset


def _unit_ranges(dwarf: Any, listed: set[int]) -> Iterator[Span]:
    for unit in dwarf.iter_CUs():
        if unit.cu_offset in listed:
            continue
        attributes = unit.get_top_DIE().attributes
        low = attributes["DW_AT_low_pc"].value if "DW_AT_low_pc" in attributes else 0
        if "DW_AT_high_pc" in attributes:
            high = attributes["DW_AT_high_pc"]
            yield low, high.value if high.form == "DW_FORM_addr" else low + high.value, unit.cu_offset
        elif "DW_AT_ranges" in attributes:
            base = low
            for entry in dwarf.range_lists().get_range_list_at_offset(attributes["DW_AT_ranges"].value, unit):
                if hasattr(entry, "base_address"):
                    base = entry.base_address
                else:
                    offset = 0 if entry.is_absolute else base
                    yield entry.begin_offset + offset, entry.end_offset + offset, unit.cu_offset


def _read_unit(dwarf: Any, offset: int) -> Unit:
    unit = dwarf.get_CU_at(offset)
    program = dwarf.line_program_for_CU(unit)
    if program is None:
        return Unit([], [], {})
    attributes = unit.get_top_DIE().attributes
    directory = attributes["DW_AT_comp_dir"].value if "DW_AT_comp_dir" in attributes else b""
    runs = sorted(_runs(program), key=lambda run: run.addresses[0])
    return Unit([run.addresses[0] for run in runs], runs, _names(program, directory))


def _runs(program: Any) -> Iterator[Run]:
    rows: list[tuple[int, int, int]] = []
    for entry in program.get_entries():
        state = entry.state
        if state is None:
            continue
        if not state.end_sequence:
            rows.append((state.address, state.file, state.line))
            continue
        rows.sort(key=lambda row: row[0])  # stable: of rows at one address the last one counts
        if rows and 0 < rows[0][0] < state.address < 1 << 63:
            yield Run(
                state.address,
                array("Q", [address for address, _, _ in rows]),
                array("Q", [file for _, file, _ in rows]),
                array("Q", [line for _, _, line in rows]),
            )
        rows = []


def _names(program: Any, directory: Any) -> dict[int, str]:
    header = program.header
    first = 0 if header["version"] >= 5 else 1  # the number of the first file, and of the first directory
    directories = [_text(d) for d in header["include_directory"]]
    names = {}
    for number, entry in enumerate(header["file_entry"], first):
        index = entry.dir_index - first
        base = directories[index] if 0 <= index < len(directories) else ""
        names[number] = posixpath.join(_text(directory), base, _text(entry.name))
    return names


def _text(value: Any) -> str:
    """A name; where it is kept in a supplementary file (dwz), only its offset is here, and it counts as empty."""
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else ""
