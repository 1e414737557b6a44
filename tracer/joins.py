"""Whose thread calls are watched: the C library of each traced process that makes threads, found in its mappings.

A session asks it for the processes that are there at the start, and then for each that makes a thread nobody saw the
pthread_create of: the first of a forked child, or of a program that was exec'd.  What cannot be watched is
said by name.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Protocol

from tracer import procfs
from tracer.lifecycle.task import pid_of
from tracer.probe.uprobes import FUNCTIONS, is_c_library
from tracer.records import ThreadCall
from tracer.stacks.elf import BadElf, ElfFile
from tracer.stacks.files import FileRefused, locate_mapped, open_located
from tracer.stacks.maps import AddressSpace, parse
from tracer.stacks.maps import Mapping as Mapped
from tracer.stacks.symbols import find_symbols

MAX_WATCHED: Final = 128  # processes at once: the kernel takes 50 ms to let go of each
MAX_FILES: Final = 256  # whose functions are remembered
MAX_NOTES: Final = 16

GLIBC_ONLY: Final = "pthread_attr_setaffinity_np"  # in whichever file has pthread_create; musl has none

FileKey = tuple[int, int, int, int]


class Kernel(Protocol):
    """What is wanted of the probe."""

    def image_of(self, identity: int) -> int | None: ...
    def watch_threads(self, pid: int, path: str, offsets: Mapping[int, int]) -> tuple[int, ...]: ...
    def unwatch_threads(self, watched: tuple[int, ...]) -> None: ...


@dataclass(frozen=True, slots=True)
class _Watched:
    file: FileKey
    uprobes: tuple[int, ...]


class Joins:
    """note: takes a sentence on what cannot be watched."""

    def __init__(self, kernel: Kernel, note: Callable[[str], None]) -> None:
        self._kernel = kernel
        self._note = note
        self._noted: set[str] = set()
        self._looked: dict[int, int | None] = {}  # process -> the image in which it was looked at
        self._watched: dict[int, _Watched] = {}
        self._offsets: dict[FileKey, dict[int, int]] = {}

    def watch(self, identity: int) -> None:
        """See the thread calls of this process from now on.  Costs nothing when that was tried in this image."""
        image = self._kernel.image_of(identity)
        if image is None or self._looked.get(identity) == image:
            return
        self._looked[identity] = image
        pid = pid_of(identity)
        space = _space(pid)
        if space is None or self._kernel.image_of(identity) != image:
            del self._looked[identity]  # it ended, or exec'd
            return
        for mapping in space.mappings:
            if is_c_library(mapping.path) and self._watch(identity, pid, mapping):
                if any(each.path.endswith("/libjvm.so") for each in space.mappings):
                    self._say(
                        pid, "it runs a JVM, which detaches its threads itself: Java's are never unjoined"
                    )
                return
        self._say(pid, _why_not(pid, space))

    def forget(self, lives: Callable[[int], bool]) -> None:
        """Let go of the processes that ended."""
        for identity in [each for each in self._looked if not lives(each)]:
            del self._looked[identity]
            self._release(identity)

    def _watch(self, identity: int, pid: int, mapping: Mapped) -> bool:
        """True if this is the library, and all that can be done was done."""
        located = -1
        try:
            located = locate_mapped(pid, mapping)
            info = os.fstat(located)
            file = info.st_dev, info.st_ino, info.st_mtime_ns, info.st_size
            offsets = self._functions(file, located, mapping.path)
            if ThreadCall.JOIN not in offsets or not {ThreadCall.CREATE, ThreadCall.CREATE_MUSL} & set(
                offsets
            ):
                return False
            watched = self._watched.get(identity)
            if watched is not None and watched.file == file:
                return True  # they outlived the exec
            self._release(identity)
            if len(self._watched) >= MAX_WATCHED:
                self._once(
                    f"more than {MAX_WATCHED} processes make threads: further ones' are not judged unjoined"
                )
                return True
            uprobes = self._kernel.watch_threads(pid, f"/proc/self/fd/{located}", offsets)
            self._watched[identity] = _Watched(file, uprobes)
        except (OSError, BadElf) as error:
            if procfs.read_stat(pid) is not None:
                reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
                self._say(pid, f"{mapping.path} cannot be watched: {reason}")
            return True
        finally:
            if located >= 0:
                os.close(located)
        return True

    def _release(self, identity: int) -> None:
        watched = self._watched.pop(identity, None)
        if watched is not None:
            self._kernel.unwatch_threads(watched.uprobes)

    def _functions(self, file: FileKey, located: int, path: str) -> dict[int, int]:
        """File offsets by ``ThreadCall``.  Raises FileRefused or BadElf."""
        known = self._offsets.get(file)
        if known is None:
            elf = ElfFile.from_fd(open_located(os.dup(located), path), path)
            found = find_symbols(elf, [*FUNCTIONS, GLIBC_ONLY])
            known = {
                int(FUNCTIONS[name]): elf.file_offset(found[name]) for name in FUNCTIONS if name in found
            }
            if GLIBC_ONLY not in found and ThreadCall.CREATE in known:
                known[int(ThreadCall.CREATE_MUSL)] = known.pop(int(ThreadCall.CREATE))
            if len(self._offsets) >= MAX_FILES:
                self._offsets.clear()
            self._offsets[file] = known
        return known

    def _say(self, pid: int, reason: str) -> None:
        stat = procfs.read_stat(pid)
        if stat is not None and reason:
            self._once(f"threads of {stat.comm}: {reason}")

    def _once(self, sentence: str) -> None:
        if sentence not in self._noted and len(self._noted) < MAX_NOTES:
            self._noted.add(sentence)
            self._note(sentence)


def _space(pid: int) -> AddressSpace | None:
    text = procfs.read_file(f"/proc/{pid}/maps")
    return parse(text.decode("utf-8", "surrogateescape")) if text else None


def _why_not(pid: int, space: AddressSpace) -> str:
    """No C library is mapped.  Empty: its loader has not come so far."""
    if any(mapping.path.rpartition("/")[2].startswith("ld-") for mapping in space.mappings):
        return ""
    program = next((mapping for mapping in space.mappings if mapping.path.startswith("/")), None)
    if program is not None:
        with suppress(FileRefused, BadElf):
            elf = ElfFile.from_fd(open_located(locate_mapped(pid, program), program.path), program.path)
            if elf.section(".go.buildinfo") is not None or elf.section(".gopclntab") is not None:
                return (
                    "it is a Go program, whose runtime makes its threads itself: they are not judged unjoined"
                )
    return "it is statically linked, so that its pthread_join cannot be watched: they are not judged unjoined"
