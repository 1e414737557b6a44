"""Finds the separate file that holds a stripped file's symbols and line tables, in the target's own root.

Called by ``modules``.  Where gdb looks: by build id below /usr/lib/debug, then by the name in .gnu_debuglink.
Source: "Debugging Information in Separate Files", the GDB manual.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath

from tracer.stacks.elf import BadElf, ElfFile
from tracer.stacks.files import FileRefused, Root
from tracer.stacks.source import FileSource, Source

DEBUG_DIRECTORY = "/usr/lib/debug"
MAX_CHECKSUM = 512 << 20  # bytes of a file named by .gnu_debuglink: all of it has to be read
MAX_LINK = 4096

_CHUNK = 1 << 20


def find_debug_file(elf: ElfFile, path: str, root: Root, note: Callable[[str], None]) -> ElfFile | None:
    """path: of ``elf`` in the root.  What is there but cannot be used goes to ``note``."""
    for candidate, checksum in _candidates(elf, path, note):
        try:
            source = FileSource(root.open(candidate))
        except FileRefused:
            continue
        try:
            found = ElfFile(source, candidate)
            if elf.build_id and found.build_id:
                matches = elf.build_id == found.build_id
            else:
                matches = checksum is not None and checksum == _crc32(source)
        except BadElf as error:
            note(f"{candidate} {error}")
            continue
        except OSError as error:
            note(f"{candidate} cannot be read: {error.strerror}")
            continue
        if matches:
            return found
        note(f"{candidate} belongs to another build")
    return None


def _candidates(elf: ElfFile, path: str, note: Callable[[str], None]) -> Iterator[tuple[str, int | None]]:
    """Paths to try, and the checksum that the file must have where no build id proves it."""
    if elf.build_id and len(elf.build_id) > 2:
        yield f"{DEBUG_DIRECTORY}/.build-id/{elf.build_id[:2]}/{elf.build_id[2:]}.debug", None
    try:
        name, checksum = _debug_link(elf)
    except BadElf as error:
        note(str(error))
        return
    if name:
        directory = PurePosixPath(path).parent
        yield str(directory / name), checksum
        yield str(directory / ".debug" / name), checksum
        yield f"{DEBUG_DIRECTORY}{directory / name}", checksum


def _debug_link(elf: ElfFile) -> tuple[str, int]:
    """File name and CRC; ("", 0) without a link.  Raises BadElf."""
    section = elf.section(".gnu_debuglink")
    if section is None:
        return "", 0
    data = elf.contents(section, MAX_LINK)
    name, _, _ = data.partition(b"\0")
    at = len(name) + 4 & -4  # the NUL, then up to a multiple of four
    if len(data) < at + 4 or b"/" in name or name in (b"", b".", b".."):
        raise BadElf("has a malformed .gnu_debuglink")
    return name.decode("utf-8", "surrogateescape"), struct.unpack_from("<I", data, at)[0]


def _crc32(source: Source) -> int | None:
    """None for a file too large to read for this."""
    if source.size > MAX_CHECKSUM:
        return None
    checksum = offset = 0
    while data := source.read(offset, _CHUNK):
        checksum = zlib.crc32(data, checksum)
        offset += len(data)
    return checksum
