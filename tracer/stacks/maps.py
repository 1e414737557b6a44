"""/proc/PID/maps as text -> the executable mappings of an address space, ready for a lookup by pc.

Source of the format: Documentation/filesystems/proc.rst.  Only executable mappings are kept: a pc anywhere else is
no frame.  (``readable`` is for those who read memory.)
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tracer.stacks.registers import PAGE_SIZE

if TYPE_CHECKING:
    from tracer.stacks.unwind import Code

MAX_MAPPINGS = 1 << 20  # executable ones; vm.max_map_count is 65530 unless somebody raised it


@dataclass(frozen=True, slots=True)
class Mapping:
    """One line of /proc/PID/maps.  ``path`` is "" for anonymous memory, "[vdso]" and the like for the kernel's.

    start, end: addresses; offset: bytes into the file; dev: as os.makedev gives it.
    """

    start: int
    end: int
    offset: int
    dev: int
    inode: int
    path: str
    executable: bool = True
    writable: bool = False


class AddressSpace:
    """The executable mappings of one process between two execs.  A forked child shares its parent's.

    code: what ``unwind`` found behind each mapping, by its position; filled at the first pc in it.
    code_pages: as the kernel counts them in mm->exec_vm.
    """

    __slots__ = ("code", "code_pages", "ends", "mappings", "starts")

    def __init__(self, mappings: Iterable[Mapping]) -> None:
        kept = sorted((m for m in mappings if m.executable), key=lambda m: m.start)
        self.mappings = tuple(kept[:MAX_MAPPINGS])
        self.starts = [m.start for m in self.mappings]
        self.ends = [m.end for m in self.mappings]
        self.code: list[Code | None] = [None] * len(self.mappings)
        # [vsyscall], in the upper half, is in nobody's address space
        self.code_pages = (
            sum(m.end - m.start for m in self.mappings if not m.writable and m.start < 1 << 63) // PAGE_SIZE
        )

    def find(self, pc: int) -> Mapping | None:
        """The executable mapping that holds an address."""
        index = bisect_right(self.starts, pc) - 1
        return self.mappings[index] if index >= 0 and pc < self.ends[index] else None


def parse(text: str) -> AddressSpace:
    """Lines that cannot be read (a process that ends while its maps are read leaves half of one) are passed over."""
    return AddressSpace(filter(None, map(_mapping, text.split("\n"))))


def readable(text: str) -> list[Mapping]:
    """All mappings that the process itself may read, by address."""
    found = filter(None, (_mapping(line, "r") for line in text.split("\n")))
    return sorted(found, key=lambda mapping: mapping.start)


def _mapping(line: str, permission: str = "x") -> Mapping | None:
    # start-end perms offset major:minor inode [blanks, path]
    fields = line.split(" ", 5)
    if len(fields) < 5 or permission not in fields[1]:
        return None
    try:
        start, _, end = fields[0].partition("-")
        major, _, minor = fields[3].partition(":")
        mapping = Mapping(
            start=int(start, 16),
            end=int(end, 16),
            offset=int(fields[2], 16),
            dev=_makedev(int(major, 16), int(minor, 16)),
            inode=int(fields[4]),
            # the kernel escapes the newline alone, so a backslash in a name stands for itself
            writable="w" in fields[1],
            path=fields[5].lstrip(" ").replace("\\012", "\n") if len(fields) > 5 else "",
            executable="x" in fields[1],
        )
    except ValueError:
        return None
    return mapping if mapping.start < mapping.end else None


def _makedev(major: int, minor: int) -> int:
    """As glibc's makedev, but without an OverflowError for what no kernel would print."""
    return (major & 0xFFF) << 8 | (major & ~0xFFF) << 32 | minor & 0xFF | (minor & ~0xFF) << 12
