"""The C library's thread calls, watched in single processes: uprobes whose one program (bpf/threads.c) is told by a
cookie which function begins.

A uprobe is a breakpoint in the code of a process.  These are put into the address spaces of named processes alone:
not into a stranger's that maps the same library.  One that stands in a process stays with it over an exec of a program
that maps the same file; a forked child is another process, which the kernel takes it out of.

The kernel waits some 50 ms for all CPUs when a set of them is taken away, so that is done by threads beside.
"""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Final

from tracer.errors import ForktraceError, Unavailable
from tracer.probe.loader import ATTACH_UPROBE_MULTI, BpfObject
from tracer.probe.programs import Compiled
from tracer.records import ThreadCall
from tracer.stacks.elf import BadElf, ElfFile
from tracer.stacks.maps import parse
from tracer.stacks.symbols import find_symbols

FUNCTIONS: Final[Mapping[str, ThreadCall]] = {
    "pthread_create": ThreadCall.CREATE,
    "pthread_join": ThreadCall.JOIN,
    "pthread_tryjoin_np": ThreadCall.TRY_JOIN,
    "pthread_timedjoin_np": ThreadCall.TIMED_JOIN,
    "pthread_clockjoin_np": ThreadCall.CLOCK_JOIN,
    "pthread_detach": ThreadCall.DETACH,
}
PROGRAM: Final = "on_thread_call"
CLOSERS = 16  # uprobes of so many processes are taken away at once
_TRIAL: Final = "getppid"  # a function of the C library that this program calls from a thread of its own
_THREAD_KEY = struct.Struct("=Q")

Attach = Callable[[int, str, Mapping[int, int]], tuple[int, ...]]


class Uprobes:
    """Sets of uprobes, each in one process and one file."""

    def __init__(self, programs: BpfObject, compiled: Compiled) -> None:
        """Adds ``compiled`` to ``programs``.  Raises ``ForktraceError`` where this kernel has no uprobes for BPF."""
        self._programs = programs
        self._sets: set[tuple[int, ...]] = set()
        self._closer = ThreadPoolExecutor(CLOSERS, "uprobes")
        self.way = ""  # in words, how they are attached here
        try:
            self._attach = self._choose(compiled)
        except ForktraceError:
            self._closer.shutdown(wait=True)
            raise

    def attach(self, pid: int, path: str, offsets: Mapping[int, int]) -> tuple[int, ...]:
        """offsets: bytes into the file, by ``ThreadCall``.  path: as this process sees the file.

        Returns what ``release`` takes.  Raises OSError, also when the process is gone.
        """
        made = self._attach(pid, path, offsets)
        self._sets.add(made)
        return made

    def release(self, made: tuple[int, ...]) -> None:
        """Take a set away, soon."""
        self._sets.discard(made)
        self._closer.submit(_close, made)

    def detach(self) -> None:
        """Take all away; returns when none is left."""
        for made in tuple(self._sets):
            self.release(made)
        self._closer.shutdown(wait=True)

    def _choose(self, compiled: Compiled) -> Attach:
        """The way of attaching that works here: before 6.6 there is one alone, and in some 6.x the other sees but one
        thread of a process."""
        why: OSError | ForktraceError | None = None
        for attach_type, attach, way in (
            (ATTACH_UPROBE_MULTI, self._all_at_once, "attached all at once"),
            (0, self._one_by_one, "attached one by one (before 6.6)"),
        ):
            try:
                self._programs.add(compiled, {}, attach_type)
                if self._sees_threads(attach):
                    self.way = way
                    return attach
            except (OSError, ForktraceError) as error:
                why = error
        reason = why.message if isinstance(why, ForktraceError) else str(why or "a trial was not seen")
        raise Unavailable(
            f"no uprobes on this kernel: {reason}", "a kernel from 5.15 on with CONFIG_UPROBE_EVENTS=y"
        )

    def _all_at_once(self, pid: int, path: str, offsets: Mapping[int, int]) -> tuple[int, ...]:
        return (self._programs.attach_uprobes(PROGRAM, path, offsets, pid),)

    def _one_by_one(self, pid: int, path: str, offsets: Mapping[int, int]) -> tuple[int, ...]:
        made: list[int] = []
        try:
            for cookie, offset in offsets.items():
                made += self._programs.attach_perf_uprobe(PROGRAM, path, offset, cookie, pid)
        except OSError:
            _close(tuple(made))
            raise
        return tuple(made)

    def _sees_threads(self, attach: Attach) -> bool:
        """Attach to this process itself, call the function from another thread, and look whether the program ran."""
        path, offset = _own_function(_TRIAL)
        made = attach(os.getpid(), path, {ThreadCall.TRIAL: offset})
        tids: list[int] = []

        def call() -> None:
            os.getppid()
            tids.append(threading.get_native_id())

        thread = threading.Thread(target=call)
        thread.start()
        thread.join()
        self._closer.submit(_close, made)
        creating = self._programs.maps["creating"]
        key = _THREAD_KEY.pack(os.getpid() << 32 | tids[0])
        seen = creating.lookup(key) is not None
        creating.delete(key)
        return seen


def _close(descriptors: tuple[int, ...]) -> None:
    for each in descriptors:
        with suppress(OSError):
            os.close(each)


def _own_function(name: str) -> tuple[str, int]:
    """The file and the offset of a function of this process's own C library.  Raises ``Unavailable``."""
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as file:
        space = parse(file.read())
    for path in dict.fromkeys(mapping.path for mapping in space.mappings if is_c_library(mapping.path)):
        with suppress(OSError, BadElf):
            elf = ElfFile.from_fd(os.open(path, os.O_RDONLY | os.O_CLOEXEC), path)
            found = find_symbols(elf, [name])
            if name in found:
                return path, elf.file_offset(found[name])
    raise Unavailable("this program's own C library was not found", "run it with the distribution's Python")


def is_c_library(path: str) -> bool:
    """By its name: glibc's libc and, before 2.34, its libpthread; musl's loader, which is its libc."""
    name = path.rpartition("/")[2]
    return name.startswith(("libc.so", "libc-2", "libpthread.so", "libpthread-2", "ld-musl-", "libc.musl-"))
