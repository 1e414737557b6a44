"""An ELF file's container: segments, sections, build id, and bytes by address.  All content is hostile until read.

It stands on ``source`` and below ``cfi`` (unwind tables), ``symbols`` and ``lines``.  Headers are decoded by
pyelftools through a stream with a budget; counts and sizes are checked here before anything loops or allocates.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import IO, TypeVar, cast

from elftools.common.utils import struct_parse
from elftools.elf.elffile import ELFFile

from tracer.stacks.registers import PAGE_SIZE
from tracer.stacks.source import Budget, BytesSource, Exhausted, FileSource, Source, Stream, Window

MAX_SEGMENTS = 256
MAX_SECTIONS = 8192
MAX_NAMES = 1 << 20  # bytes of section names
MAX_NOTES = 1 << 16  # bytes of notes looked through for the build id
_READS, _VOLUME = 40_000, 16 << 20  # for the headers: two orders above what the largest real files need

_SHF_EXECINSTR, _SHF_COMPRESSED = 0x4, 0x800
_NT_GNU_BUILD_ID = 3
_PF_X = 1
_ZLIB = 1
_CHDR = struct.Struct("<IIQQ")  # ch_type, ch_reserved, ch_size, ch_addralign

T = TypeVar("T")


class BadElf(Exception):
    """The file is no ELF file of this machine, or a part of it is malformed.  ``str()`` completes "it ..."."""


@dataclass(frozen=True, slots=True)
class Segment:
    """kind: "PT_LOAD" and so on.  offset, size: in the file.  address: virtual, as linked."""

    kind: str
    executable: bool
    offset: int
    size: int
    address: int


@dataclass(frozen=True, slots=True)
class Section:
    """kind: "SHT_SYMTAB" and so on.  ``has_data``: its bytes are in this file (not so for most of a debug file)."""

    name: str
    kind: str
    executable: bool
    compressed: bool
    has_data: bool
    address: int
    offset: int
    size: int
    link: int


class ElfFile:
    """``name`` is for messages.  Raises BadElf when this is not an ELF file for x86-64."""

    def __init__(self, source: Source, name: str) -> None:
        self.name = name
        self.source = source
        self._stream = cast(IO[bytes], Stream(source, Budget(_READS, _VOLUME)))  # all of it that is asked for
        self._elf = guarded(lambda: ELFFile(self._stream))
        header = self._elf.header
        if self._elf.elfclass != 64 or not self._elf.little_endian or header["e_machine"] != "EM_X86_64":
            raise BadElf("is not for x86-64")
        self.segments = guarded(self._read_segments)
        self._loads = sorted(
            (s for s in self.segments if s.kind == "PT_LOAD"), key=lambda s: (not s.executable, s.offset)
        )

    @classmethod
    def from_fd(cls, fd: int, name: str) -> ElfFile:
        """Takes the descriptor over, also when it raises BadElf."""
        return cls(FileSource(fd), name)

    def _read_segments(self) -> tuple[Segment, ...]:
        header, structs = self._elf.header, self._elf.structs
        count, size = header["e_phnum"], header["e_phentsize"]
        if count and size < structs.Elf_Phdr.sizeof():
            raise BadElf("has program headers of a wrong size")
        if count > MAX_SEGMENTS:
            raise BadElf(f"has {count} program headers, more than {MAX_SEGMENTS}")
        entries = (
            struct_parse(structs.Elf_Phdr, self._stream, header["e_phoff"] + index * size)
            for index in range(count)
        )
        return tuple(
            Segment(str(e["p_type"]), bool(e["p_flags"] & _PF_X), e["p_offset"], e["p_filesz"], e["p_vaddr"])
            for e in entries
        )

    @cached_property
    def sections(self) -> tuple[Section, ...]:
        """The section table, () when the file has none.  Raises BadElf."""
        return guarded(self._read_sections)

    def _read_sections(self) -> tuple[Section, ...]:
        header, structs = self._elf.header, self._elf.structs
        if not header["e_shoff"]:
            return ()
        count, size = self._elf.num_sections(), header["e_shentsize"]
        if size < structs.Elf_Shdr.sizeof():
            raise BadElf("has section headers of a wrong size")
        if count > MAX_SECTIONS:
            raise BadElf(f"has {count} sections, more than {MAX_SECTIONS}")
        entries = [
            struct_parse(structs.Elf_Shdr, self._stream, header["e_shoff"] + index * size)
            for index in range(count)
        ]
        strings = self._elf.get_shstrndx()
        if strings >= count:
            raise BadElf("has no section names")
        names = self.read(entries[strings]["sh_offset"], min(entries[strings]["sh_size"], MAX_NAMES))
        return tuple(
            Section(
                name=string_at(names, e["sh_name"]),
                kind=str(e["sh_type"]),
                executable=bool(e["sh_flags"] & _SHF_EXECINSTR),
                compressed=bool(e["sh_flags"] & _SHF_COMPRESSED),
                has_data=e["sh_type"] not in ("SHT_NOBITS", "SHT_NULL"),
                address=e["sh_addr"],
                offset=e["sh_offset"],
                size=e["sh_size"],
                link=e["sh_link"],
            )
            for e in entries
        )

    def section(self, name: str) -> Section | None:
        """The first section of that name whose bytes are in this file.  Raises BadElf for a bad section table."""
        return next((s for s in self.sections if s.name == name and s.has_data), None)

    def read(self, offset: int, size: int) -> bytes:
        """Bytes of the file, all of them or BadElf."""
        try:
            data = self.source.read(offset, size)
        except OSError as error:
            raise BadElf(f"cannot be read: {error.strerror}") from error
        if len(data) != size:
            raise BadElf("ends before its content does")
        return data

    def contents(self, section: Section, limit: int) -> bytes:
        """A section's bytes, decompressed.  Raises BadElf, also above ``limit`` bytes."""
        window = self.window(section, limit)
        data = window.read(0, window.size)
        if len(data) != window.size:
            raise BadElf("ends before its content does")
        return data

    def window(self, section: Section, limit: int) -> Source:
        """A section as a source: of the file itself, or of the decompressed bytes (at most ``limit``)."""
        if section.size > limit:
            raise BadElf(f"has a {section.name} of {section.size} bytes, more than {limit}")
        if not section.compressed:
            if section.offset + section.size > self.source.size:
                raise BadElf("ends before its content does")
            return Window(self.source, section.offset, section.size)
        data = self.read(section.offset, section.size)
        if len(data) < _CHDR.size:
            raise BadElf(f"has a malformed {section.name}")
        kind, _, size, _ = _CHDR.unpack_from(data)
        if kind != _ZLIB:
            raise BadElf(f"has a {section.name} compressed in a way this program does not know")
        if size > limit:
            raise BadElf(f"has a {section.name} of {size} bytes, more than {limit}")
        try:
            plain = zlib.decompressobj().decompress(data[_CHDR.size :], size)
        except zlib.error as error:
            raise BadElf(f"has a malformed {section.name}") from error
        return BytesSource(plain)

    def file_offset(self, address: int) -> int:
        """Where in the file the byte at a virtual address is.  Raises BadElf."""
        for segment in self._loads:
            if segment.address <= address < segment.address + segment.size:
                return address - segment.address + segment.offset
        raise BadElf(f"has nothing at address {address:#x}")

    def read_at(self, address: int, size: int) -> bytes:
        """At most ``size`` bytes at a virtual address: fewer where the segment or the file ends.  Raises BadElf."""
        for segment in self._loads:
            inside = address - segment.address
            if 0 <= inside < segment.size:
                try:
                    return self.source.read(segment.offset + inside, min(size, segment.size - inside))
                except OSError as error:
                    raise BadElf(f"cannot be read: {error.strerror}") from error
        raise BadElf(f"has nothing at address {address:#x}")

    def vaddr(self, file_offset: int) -> int:
        """The virtual address of a mapped file offset, executable segments first.  Raises BadElf.

        Whole pages are mapped, so an offset before a segment's own start belongs to it too.
        """
        for segment in self._loads:
            if segment.offset & -PAGE_SIZE <= file_offset < segment.offset + segment.size:
                return segment.address - segment.offset + file_offset
        raise BadElf(f"has no segment at offset {file_offset:#x}")

    @property
    def eh_frame_hdr(self) -> Segment | None:
        return next((s for s in self.segments if s.kind == "PT_GNU_EH_FRAME"), None)

    @cached_property
    def build_id(self) -> str | None:
        """In hexadecimal; None when there is none (or its note cannot be read)."""
        try:
            spans = [(s.offset, s.size) for s in self.segments if s.kind == "PT_NOTE"]
            found = self._find_build_id(spans)
            if found is None:  # a separate debug file keeps the section but not the segment's bytes
                section = self.section(".note.gnu.build-id")
                found = self._find_build_id([(section.offset, section.size)]) if section else None
        except (BadElf, OSError):
            return None
        return found

    def _find_build_id(self, spans: list[tuple[int, int]]) -> str | None:
        for offset, size in spans:
            data = self.source.read(offset, min(size, MAX_NOTES))
            at = 0
            while at + 12 <= len(data):
                name_size, size, kind = struct.unpack_from("<III", data, at)
                content = at + 12 + (name_size + 3 & -4)
                if kind == _NT_GNU_BUILD_ID and data[at + 12 : at + 12 + name_size] == b"GNU\0":
                    return data[content : content + size].hex() or None
                at = content + (size + 3 & -4)
        return None


def guarded(step: Callable[[], T]) -> T:
    """Run a step of pyelftools.  Whatever it trips over in a malformed file comes out as BadElf."""
    try:
        return step()
    except BadElf:
        raise
    except (
        Exception
    ) as error:  # ELFError, KeyError, TypeError, RecursionError, ... : any of them means one thing
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, Exhausted):
            cause = cause.__context__  # the parsing library dresses errors of the stream as its own
        if cause is not None:
            raise BadElf("is built to keep its reader busy") from None
        raise BadElf(f"is malformed: {str(error)[:120] or type(error).__name__}") from error


def string_at(table: bytes, offset: int) -> str:
    """A NUL-terminated string of a string table; cut where the table ends, "" outside of it."""
    end = table.find(b"\0", offset)
    return table[offset : end if end >= 0 else len(table)].decode("utf-8", "surrogateescape")
